//! Which plan a site goes to, and which plans go.
//!
//! Sites are packed: a new one goes to the fullest plan with room, and a plan that is left empty is removed, as it costs the same as a
//! full one. What is known of plans is kept for a while; sites that this process is about to make count from the moment on at which
//! they are given a plan. Several control planes in one group each have plans of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_account::{Failure, Turn, Turns};
use provisioner_azure::web::{self, Plan};
use provisioner_core::{ErrorKind, OpContext, types::ControlPlaneId};
use tokio::time::Instant;

use crate::{
    config::{AppServiceConfig, PlanPolicy},
    group::{Group, plan_of},
    names,
};

/// How long what is known of plans is good for. What another process made meanwhile is not counted until then.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// How long a site that was given a plan counts there, shown or not: as long as a call for it may take to have its effect.
const GIVEN_FOR: Duration = Duration::from_secs(180);

/// What is known of one plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    sites: BTreeSet<Box<str>>,
    /// Whether it is there, or may be, and not only wanted.
    is_made: bool,
    /// Whether it is of another kind than new ones: the cell was told of another since. It gets no more sites.
    is_closed: bool,
}

/// What is known of a control plane's plans.
#[derive(Debug, Default)]
struct State {
    read_at: Option<Instant>,
    plans: BTreeMap<String, Known>,
    /// Sites that were given a plan by this process, and when: a listing may not show them yet.
    given: BTreeMap<Box<str>, (String, Instant)>,
}

impl State {
    /// The fullest plan with room, or a new one, or none.
    fn choose(&self, prefix: &str, policy: &PlanPolicy) -> Option<String> {
        let has_room = |known: &Known| !known.is_closed && known.sites.len() < policy.sites_max as usize;
        let room = self.plans.iter().filter(|(_, known)| has_room(known));
        // Of several that are as full, the first: the later ones run empty sooner.
        let fullest =
            room.max_by_key(|(name, known)| (known.sites.len(), std::cmp::Reverse((name.len(), (*name).clone()))));
        let new = || {
            let names = (1..=policy.plans_max).map(|number| format!("{prefix}{number}"));
            let free = names.into_iter().find(|name| !self.plans.contains_key(name));
            free.filter(|_| self.plans.len() < policy.plans_max as usize)
        };
        fullest.map(|(name, _)| name.clone()).or_else(new)
    }

    fn give(&mut self, site: &str, plan: &str) {
        self.plans.entry(plan.to_owned()).or_default().sites.insert(site.into());
        self.given.insert(site.into(), (plan.to_owned(), Instant::now()));
    }

    /// A plan is gone. A site that was given it meanwhile has it made again.
    fn removed(&mut self, plan: &str) {
        match self.plans.get_mut(plan) {
            Some(known) if !known.sites.is_empty() => known.is_made = false,
            _ => drop(self.plans.remove(plan)),
        }
    }

    /// How many plans are there that new sites may go to. Only these are kept for sites to come.
    fn open(&self) -> usize {
        self.plans.values().filter(|known| known.is_made && !known.is_closed).count()
    }

    fn drop_site(&mut self, site: &str) {
        self.given.remove(site);
        for known in self.plans.values_mut() {
            known.sites.remove(site);
        }
    }

    /// Takes what was listed, and what was given a plan since.
    fn learn(&mut self, plans: BTreeMap<String, Known>, began: Instant) {
        self.plans = plans;
        self.read_at = Some(began);
        self.given.retain(|_, (_, at)| began.saturating_duration_since(*at) < GIVEN_FOR);
        for (site, (plan, _)) in &self.given {
            self.plans.entry(plan.clone()).or_default().sites.insert(site.clone());
        }
    }
}

/// The plans of a resource group.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    states: Mutex<BTreeMap<ControlPlaneId, State>>,
    reading: Turns<ControlPlaneId>,
    /// The service refuses writes to a plan, and to sites in it, while there is another one.
    writing: Turns<String>,
}

/// What upkeep would do, or has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upkeep {
    pub(crate) empty: Vec<String>,
    pub(crate) missing: Vec<String>,
    pub(crate) advice: Option<String>,
}

impl Plans {
    fn states(&self) -> MutexGuard<'_, BTreeMap<ControlPlaneId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, cx: &OpContext, act: impl FnOnce(&mut State) -> T) -> T {
        act(self.states().entry(cx.control_plane.clone()).or_default())
    }

    /// Waits until nobody else writes to a plan.
    pub(crate) async fn turn(&self, cx: &OpContext, plan: &str) -> Result<Turn, Failure> {
        let turn = self.writing.take(plan.to_owned(), cx).await;
        // That others are busy is no fault of the instance that waits.
        turn.map_err(|why| Failure::not_sent(why, "a write to a plan"))
    }

    /// The name of the plan that a site is to go to. It counts there from now on, until [`clear`](Self::clear).
    pub(crate) async fn choose(
        &self,
        cx: &OpContext,
        group: &Group,
        config: &AppServiceConfig,
        site: &str,
    ) -> Result<String, Failure> {
        self.know(cx, group, config).await?;
        let prefix = names::plans(&cx.control_plane, &config.region);
        let chosen = self.with(cx, |state| {
            if let Some((plan, _)) = state.given.get(site) {
                return Some(plan.clone());
            }
            let plan = state.choose(&prefix, &config.plans)?;
            state.give(site, &plan);
            Some(plan)
        });
        chosen.ok_or_else(|| {
            let PlanPolicy { plans_max, sites_max, .. } = config.plans;
            let message = format!("all {plans_max} plans have {sites_max} sites");
            Failure::new(ErrorKind::CapacityExhausted, message)
        })
    }

    /// Makes a plan unless it is there. The caller has its turn.
    pub(crate) async fn ensure(
        &self,
        cx: &OpContext,
        group: &Group,
        config: &AppServiceConfig,
        plan: &str,
    ) -> Result<(), Failure> {
        if self.with(cx, |state| state.plans.get(plan).is_some_and(|known| known.is_made)) {
            return Ok(());
        }
        let made = group.put_plan(cx, plan, &plan_of(config, cx.control_plane.as_str())).await;
        // One of which nobody knows counts, too: it is removed when its site is not made, and made again when it is missed.
        if made.as_ref().map_or_else(|failure| failure.may_have_acted, |_| true) {
            self.with(cx, |state| state.plans.entry(plan.to_owned()).or_default().is_made = true);
        }
        made.map(drop)
    }

    /// The same, for who has no turn yet.
    pub(crate) async fn make(
        &self,
        cx: &OpContext,
        group: &Group,
        config: &AppServiceConfig,
        plan: &str,
    ) -> Result<(), Failure> {
        let _turn = self.turn(cx, plan).await?;
        self.ensure(cx, group, config, plan).await
    }

    /// A plan that was thought to be there is not: somebody has removed it.
    pub(crate) fn missing(&self, cx: &OpContext, plan: &str) {
        self.with(cx, |state| state.plans.entry(plan.to_owned()).or_default().is_made = false);
    }

    /// Removes a plan of ours that has no site, unless it is one of those that are kept. The service has the last word: it refuses
    /// where another process has put a site there.
    pub(crate) async fn remove_if_empty(
        &self,
        cx: &OpContext,
        group: &Group,
        config: &AppServiceConfig,
        plan: &str,
    ) -> Result<bool, Failure> {
        if !plan.starts_with(&names::plans(&cx.control_plane, &config.region)) {
            return Ok(false);
        }
        let _turn = self.turn(cx, plan).await?;
        let (known, open) = self.with(cx, |state| (state.plans.get(plan).cloned(), state.open()));
        let is_kept = |known: &Known| !known.is_closed && open <= config.plans.plans_min as usize;
        match known {
            Some(known) if !known.sites.is_empty() || is_kept(&known) => return Ok(false),
            Some(known) if known.is_made => {}
            // Nobody here has made or listed it.
            _ => {
                let found = group.plan(cx, plan).await?;
                let sites = found.as_ref().and_then(|found| found.properties.number_of_sites).unwrap_or(0);
                // One that has just gone may be counted still.
                if !found.is_some_and(|found| is_ours(&found, cx, config)) || sites > 1 {
                    return Ok(false);
                }
            }
        }
        match group.delete_plan(cx, plan).await {
            Ok(()) => {
                self.with(cx, |state| state.removed(plan));
                Ok(true)
            }
            Err(failure) if failure.kind == ErrorKind::Conflict => {
                tracing::debug!(plan, ?failure, "a plan is not empty");
                self.with(cx, |state| state.read_at = None);
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// A site is not in its plan any more, or was never made: what is empty by that goes, also a plan that was made for it by a call
    /// that was cut. `plan`: where it was, if it was anywhere. What is not removed here costs money until upkeep comes back for it, but
    /// the instance is gone.
    pub(crate) async fn clear(
        &self,
        cx: &OpContext,
        group: &Group,
        config: &AppServiceConfig,
        site: &str,
        plan: Option<&str>,
    ) {
        // Where some are kept, a process that has just begun does not know yet which are there.
        if (plan.is_none() || config.plans.plans_min > 0)
            && let Err(failure) = self.know(cx, group, config).await
        {
            tracing::warn!(?failure, "it is not known whether a plan is empty");
            return;
        }
        let mut empty = self.with(cx, |state| {
            state.drop_site(site);
            let empty = state.plans.iter().filter(|(_, known)| known.is_made && known.sites.is_empty());
            empty.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>()
        });
        empty.extend(plan.map(str::to_owned));
        for plan in empty {
            if let Err(failure) = self.remove_if_empty(cx, group, config, &plan).await {
                tracing::warn!(plan, ?failure, "an empty plan is not removed yet");
            }
        }
    }

    /// What is known, read anew if it is old.
    async fn know(&self, cx: &OpContext, group: &Group, config: &AppServiceConfig) -> Result<(), Failure> {
        let is_known = |state: &mut State| state.read_at.is_some_and(|at| at.elapsed() < KNOWN_FOR);
        if self.with(cx, is_known) {
            return Ok(());
        }
        let turn = self.reading.take(cx.control_plane.clone(), cx).await;
        let _turn = turn.map_err(|why| Failure::no_turn(why, "others read the plans"))?;
        if self.with(cx, is_known) {
            return Ok(());
        }
        self.read(cx, group, config).await
    }

    async fn read(&self, cx: &OpContext, group: &Group, config: &AppServiceConfig) -> Result<(), Failure> {
        let began = Instant::now();
        let mut plans = BTreeMap::new();
        for plan in group.all_plans(cx).await? {
            if is_ours(&plan, cx, config) {
                let is_closed = !is_as_wanted(&plan, config);
                plans.insert(plan.name, Known { sites: BTreeSet::new(), is_made: true, is_closed });
            }
        }
        if !plans.is_empty() {
            for site in group.all_sites(cx).await? {
                if let Some(known) = plan_name(&site).and_then(|plan| plans.get_mut(plan)) {
                    known.sites.insert(site.name.into());
                }
            }
        }
        self.with(cx, |state| state.learn(plans, began));
        Ok(())
    }

    /// What upkeep there is: empty plans beyond those that are kept, plans that are missing for that, and what could be saved.
    pub(crate) async fn upkeep(
        &self,
        cx: &OpContext,
        group: &Group,
        config: &AppServiceConfig,
    ) -> Result<Upkeep, Failure> {
        self.read(cx, group, config).await?;
        let prefix = names::plans(&cx.control_plane, &config.region);
        Ok(self.with(cx, |state| {
            let policy = &config.plans;
            let (made, kept) = (state.plans.iter().filter(|(_, known)| known.is_made), policy.plans_min as usize);
            let made: Vec<_> = made.collect();
            let open = state.open();
            let (closed, mut empty): (Vec<_>, Vec<_>) =
                made.iter().filter(|(_, known)| known.sites.is_empty()).partition(|(_, known)| known.is_closed);
            empty.truncate(open.saturating_sub(kept));
            let empty = closed.into_iter().chain(empty).map(|(name, _)| (*name).clone()).collect();
            let names = (1..=policy.plans_max).map(|number| format!("{prefix}{number}"));
            let free = names.into_iter().filter(|name| !state.plans.contains_key(name));
            let missing = free.take(kept.saturating_sub(open)).collect();
            let sites: usize = made.iter().map(|(_, known)| known.sites.len()).sum();
            let (used, enough) = (
                made.iter().filter(|(_, known)| !known.sites.is_empty()).count(),
                sites.div_ceil(policy.sites_max as usize),
            );
            let advice = (used > enough).then(|| {
                format!(
                    "{sites} sites in {used} plans would have room in {enough}: moving them would save {}",
                    used - enough
                )
            });
            Upkeep { empty, missing, advice }
        }))
    }
}

/// Whether a plan is the control plane's, and in the region of this cell: those of another one in the same group are its own.
fn is_ours(plan: &Plan, cx: &OpContext, config: &AppServiceConfig) -> bool {
    let owner = plan.tags.as_ref().and_then(|tags| tags.get(names::CONTROL_PLANE));
    owner.is_some_and(|owner| owner == cx.control_plane.as_str()) && names::is_in(&plan.location, &config.region)
}

/// Whether a plan is of the kind that new ones are: the cell may have been told of another kind of machine since.
fn is_as_wanted(plan: &Plan, config: &AppServiceConfig) -> bool {
    plan.sku.as_ref().is_some_and(|sku| sku.name.eq_ignore_ascii_case(&config.plans.sku))
}

/// The plan that a site is in, by its name.
fn plan_name(site: &web::Site) -> Option<&str> {
    name_of(site.properties.server_farm_id.as_deref()?)
}

/// The name at the end of a path.
pub(crate) fn name_of(path: &str) -> Option<&str> {
    path.rsplit('/').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(sites_max: u32, plans_max: u32) -> PlanPolicy {
        PlanPolicy { sites_max, plans_max, ..PlanPolicy::default() }
    }

    fn filled(plans: &[(&str, usize)]) -> State {
        let mut state = State::default();
        for (plan, count) in plans {
            let sites = (0..*count).map(|n| format!("{plan}-{n}").into()).collect();
            state.plans.insert((*plan).to_owned(), Known { sites, is_made: true, is_closed: false });
        }
        state
    }

    #[test]
    fn a_site_goes_to_the_fullest_plan_with_room_then_to_a_new_one_and_then_nowhere() {
        let choose =
            |plans: &[(&str, usize)], sites_max, plans_max| filled(plans).choose("p-", &policy(sites_max, plans_max));
        assert_eq!(choose(&[], 8, 2).as_deref(), Some("p-1"));
        assert_eq!(choose(&[("p-1", 3), ("p-2", 5)], 8, 3).as_deref(), Some("p-2"));
        assert_eq!(choose(&[("p-1", 3), ("p-2", 8)], 8, 3).as_deref(), Some("p-1"));
        assert_eq!(choose(&[("p-1", 8), ("p-3", 8)], 8, 3).as_deref(), Some("p-2"));
        assert_eq!(choose(&[("p-1", 8), ("p-2", 8)], 8, 2), None);
        assert_eq!(choose(&[("p-2", 4), ("p-10", 4)], 8, 20).as_deref(), Some("p-2"));
        let mut state = filled(&[("p-1", 1)]);
        state.plans.get_mut("p-1").unwrap().is_closed = true;
        assert_eq!(state.choose("p-", &policy(8, 2)).as_deref(), Some("p-2"), "one of another kind gets no more");
        assert_eq!(state.choose("p-", &policy(8, 1)), None, "and counts");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_a_plan_counts_before_a_listing_shows_it_and_not_twice() {
        let mut state = filled(&[("p-1", 1)]);
        state.give("new", "p-1");
        let listed = filled(&[("p-1", 1)]).plans;
        state.learn(listed, Instant::now());
        assert_eq!(state.plans["p-1"].sites.len(), 2);
        let mut shown = filled(&[("p-1", 1)]).plans;
        shown.get_mut("p-1").unwrap().sites.insert("new".into());
        state.learn(shown, Instant::now());
        assert_eq!(state.plans["p-1"].sites.len(), 2);
        state.drop_site("new");
        assert_eq!(state.plans["p-1"].sites.len(), 1);
    }
}
