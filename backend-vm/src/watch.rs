//! What happens to machines that nobody here has called for: looked for once a minute or so, by a page of a thousand at a time.
//! Machines that are stopped are not asked for.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use aws_sdk_ec2::types::{InstanceStatus, InstanceStatusSummary};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use provisioner_core::{OpContext, Priority, types::InstanceId};

use crate::{
    backend::Shared,
    calls::{by, by_tag},
    digest::{Intended, Machine, State},
    error::Failure,
    names,
};

/// The longest that one look may take.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// What is remembered of a machine that runs: when any of it changes, somebody should look.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sign {
    instance: InstanceId,
    state: State,
    intended: Intended,
    has_volume: bool,
    /// What the service says of its checks, and of what is planned for it.
    status: String,
}

type Signs = BTreeMap<Box<str>, Sign>;

struct Watch {
    shared: Arc<Shared>,
    cx: OpContext,
    known: Option<Signs>,
    news: VecDeque<InstanceId>,
}

/// Yields instances that something happened to since the first look, until the caller gives up. What cannot be seen now is looked
/// for the next time.
pub(crate) fn watch(shared: Arc<Shared>, mut cx: OpContext) -> BoxStream<'static, InstanceId> {
    cx.priority = Priority::Background;
    cx.deadline = None;
    let watch = Watch { shared, cx, known: None, news: VecDeque::new() };
    stream::unfold(watch, |mut watch| async move {
        loop {
            if let Some(id) = watch.news.pop_front() {
                return Some((id, watch));
            }
            if watch.known.is_some() {
                tokio::select! {
                    () = tokio::time::sleep(watch.shared.config.watch_every) => {}
                    () = watch.cx.cancel.cancelled() => return None,
                }
            }
            watch.look().await;
            if watch.cx.cancel.is_cancelled() {
                return None;
            }
        }
    })
    .boxed()
}

impl Watch {
    async fn look(&mut self) {
        let cx = self.cx.clone().with_timeout(LOOK_MAX);
        match signs(&self.shared, &cx).await {
            Ok(seen) => {
                if let Some(known) = &self.known {
                    self.news.extend(changed(known, &seen));
                }
                self.known = Some(seen);
            }
            Err(failure) => {
                tracing::debug!(?failure, "machines are not watched for now");
                self.known.get_or_insert_default();
            }
        }
    }
}

/// The instances of which one look tells something else than the other.
fn changed(before: &Signs, now: &Signs) -> Vec<InstanceId> {
    let came = now.iter().filter(|(id, sign)| before.get(*id) != Some(sign)).map(|(_, sign)| sign);
    let went = before.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, sign)| sign);
    let mut changed: Vec<_> = came.chain(went).map(|sign| sign.instance.clone()).collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

async fn signs(shared: &Shared, cx: &OpContext) -> Result<Signs, Failure> {
    let calls = shared.fleet.during(cx);
    let own = by_tag(names::CONTROL_PLANE, [cx.control_plane.to_string()]);
    let awake = by("instance-state-name", ["pending", "running"].map(str::to_owned));
    let mut signs = Signs::new();
    let mut next = None;
    loop {
        let (page, then) = calls.machines(&[own.clone(), awake.clone()], next).await?;
        for machine in page.iter().filter_map(Machine::of) {
            let sign = Sign {
                instance: machine.owner.instance,
                state: machine.state,
                intended: machine.intended,
                has_volume: machine.volume.is_some(),
                status: String::new(),
            };
            signs.insert(machine.id, sign);
        }
        if then.is_none() {
            break;
        }
        next = then;
    }
    // There is no filter for whose they are.
    let mut next = None;
    while !signs.is_empty() {
        let (page, then) = calls.all_statuses(next).await?;
        for status in &page {
            if let Some(sign) = status.instance_id().and_then(|id| signs.get_mut(id)) {
                sign.status = said(status);
            }
        }
        if then.is_none() {
            break;
        }
        next = then;
    }
    Ok(signs)
}

fn said(status: &InstanceStatus) -> String {
    let of = |summary: Option<&InstanceStatusSummary>| {
        summary.and_then(InstanceStatusSummary::status).map(|status| status.as_str().to_owned()).unwrap_or_default()
    };
    let events = status.events().iter().map(|event| {
        let code = event.code().map(|code| code.as_str()).unwrap_or_default();
        format!(" {code} {}", event.description().unwrap_or_default())
    });
    events.fold(format!("{} {}", of(status.system_status()), of(status.instance_status())), |all, event| all + &event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(all: &[(&str, &str, State, &str)]) -> Signs {
        let sign = |(id, instance, state, status): &(&str, &str, State, &str)| {
            let instance = InstanceId::new(*instance).unwrap();
            let (intended, status) = (Intended::Running, (*status).to_owned());
            (Box::from(*id), Sign { instance, state: *state, intended, has_volume: true, status })
        };
        all.iter().map(sign).collect()
    }

    #[test]
    fn what_came_went_or_changed_is_told_once() {
        let before = signs(&[
            ("i-1", "same", State::Running, "ok ok"),
            ("i-2", "stopped", State::Running, "ok ok"),
            ("i-3", "impaired", State::Running, "ok ok"),
            ("i-4", "replaced", State::Running, "ok ok"),
        ]);
        let now = signs(&[
            ("i-1", "same", State::Running, "ok ok"),
            ("i-3", "impaired", State::Running, "impaired ok"),
            ("i-5", "replaced", State::Pending, ""),
        ]);
        let names: Vec<_> = changed(&before, &now).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["impaired", "replaced", "stopped"]);
        assert!(changed(&now, &now).is_empty());
    }
}
