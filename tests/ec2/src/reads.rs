//! What is read: as moto has it, dressed as the machines are, as old as reads lag, in pages.

use crate::{
    answer::{Refusal, answer},
    lag::Shown,
    launch::volumes_of,
    machine::{Machine, State},
    query::{Filter, Form},
    stand::{Stand, locked},
    xml::Element,
};

/// Where the items of a read are, and what names each.
#[derive(Debug, Clone, Copy)]
struct Listing {
    action: &'static str,
    list: &'static str,
    id: fn(&Element) -> &str,
}

const INSTANCES: Listing =
    Listing { action: "DescribeInstances", list: "reservationSet", id: |item| instance_of(item).at(&["instanceId"]) };
const STATUSES: Listing =
    Listing { action: "DescribeInstanceStatus", list: "instanceStatusSet", id: |item| item.at(&["instanceId"]) };
const VOLUMES: Listing = Listing { action: "DescribeVolumes", list: "volumeSet", id: |item| item.at(&["volumeId"]) };
const SNAPSHOTS: Listing =
    Listing { action: "DescribeSnapshots", list: "snapshotSet", id: |item| item.at(&["snapshotId"]) };

/// The instance of a reservation. Each has one.
pub(crate) fn instance_of(reservation: &Element) -> &Element {
    static NONE: std::sync::LazyLock<Element> = std::sync::LazyLock::new(Element::default);
    reservation.items("instancesSet").first().unwrap_or(&NONE)
}

impl Stand {
    /// A read whose items are looked after here; nothing, when it is another.
    pub(crate) async fn read(&self, form: &Form) -> Option<Result<Element, Refusal>> {
        let _launched = self.launching.read().await;
        Some(match form.action() {
            "DescribeInstances" => self.instances(form).await,
            "DescribeInstanceStatus" => self.statuses(form).await,
            "DescribeVolumes" => self.plain(form, VOLUMES).await,
            "DescribeSnapshots" => self.plain(form, SNAPSHOTS).await,
            _ => return None,
        })
    }

    async fn instances(&self, form: &Form) -> Result<Element, Refusal> {
        check_pages(form)?;
        let items = self.reservations(form).await?;
        let mut items = self.as_shown(form, items, INSTANCES)?;
        let states = values(form, "instance-state-name");
        items.retain(|item| states.as_ref().is_none_or(|states| states.contains(&state_of(item).to_owned())));
        self.paged(form, items, INSTANCES)
    }

    /// Reservations as they are now. Which states are asked for is left out: those of moto are others.
    pub(crate) async fn reservations(&self, form: &Form) -> Result<Vec<Element>, Refusal> {
        let filters = form.filters();
        let filters = filters.iter().filter(|filter| filter.name != "instance-state-name");
        let is_other = |name: &str| !matches!(name, "Action" | "Version" | "MaxResults" | "NextToken");
        let form = Form::new(INSTANCES.action).extended(&form.with_filters(filters).only(is_other));
        let mut items = Vec::new();
        let mut token = None;
        // It gives no more than a hundred at once, also where ids are named and pages cannot be asked for.
        loop {
            let page = match &token {
                Some(token) => form.clone().with("NextToken", token),
                None => form.clone(),
            };
            let page = if form.has("InstanceId") { page } else { page.with("MaxResults", "1000000") };
            let mut answer = self.moto.call(&page).await?;
            items.append(answer.items_mut(INSTANCES.list));
            token = Some(answer.at(&["nextToken"]).to_owned()).filter(|token| !token.is_empty());
            if token.is_none() {
                break;
            }
        }
        for item in &mut items {
            item.items_mut("instancesSet").iter_mut().try_for_each(|instance| self.dress(instance))?;
        }
        Ok(items)
    }

    /// Shows an instance as it is. One that was launched behind the proxy's back is taken as it is.
    fn dress(&self, instance: &mut Element) -> Result<(), Refusal> {
        let id = instance.at(&["instanceId"]).to_owned();
        let mut machines = locked(&self.machines);
        if !machines.contains_key(&id) {
            let state = State::read(instance.at(&["instanceState", "name"])).unwrap_or(State::Running);
            let (zone, kind) = (instance.at(&["placement", "availabilityZone"]), instance.at(&["instanceType"]));
            machines.insert(id.clone(), Machine::new(state, zone, kind, self.new_address()?));
        }
        if let Some(machine) = machines.get(&id) {
            machine.dress(instance);
        }
        Ok(())
    }

    /// Learns of machines that the proxy has not seen.
    ///
    /// # Errors
    /// When one of them is none.
    pub(crate) async fn know(&self, ids: &[String]) -> Result<(), Refusal> {
        let is_id = |id: &String| {
            let digits = id.strip_prefix("i-").unwrap_or_default();
            matches!(digits.len(), 8 | 17) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if let Some(id) = ids.iter().find(|id| !is_id(id)) {
            return Err(Refusal::new("InvalidInstanceID.Malformed", format!("Invalid id: \"{id}\"")));
        }
        let unknown: Vec<_> = {
            let machines = locked(&self.machines);
            ids.iter().filter(|id| !machines.contains_key(*id)).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        self.reservations(&Form::new("").with_list("InstanceId", unknown)).await.map(drop)
    }

    async fn statuses(&self, form: &Form) -> Result<Element, Refusal> {
        check_pages(form)?;
        let ids = form.list("InstanceId");
        self.know(&ids).await?;
        // Its states are others, and it knows no filter.
        let asked = Form::new(STATUSES.action).with("IncludeAllInstances", "true").with_list("InstanceId", &ids);
        let mut items = std::mem::take(self.moto.call(&asked).await?.items_mut(STATUSES.list));
        {
            let machines = locked(&self.machines);
            for item in &mut items {
                if let Some(machine) = machines.get((STATUSES.id)(item)) {
                    machine.dress_status(item, self.options.checks);
                }
            }
        }
        let mut items = self.as_shown(form, items, STATUSES)?;
        if !form.is_true("IncludeAllInstances") {
            items.retain(|item| item.at(&["instanceState", "name"]) == State::Running.name());
        }
        for Filter { name, values } in form.filters() {
            let path: &[&str] = match &*name {
                "instance-state-name" => &["instanceState", "name"],
                "instance-status.status" => &["instanceStatus", "status"],
                "system-status.status" => &["systemStatus", "status"],
                "availability-zone" => &["availabilityZone"],
                "event.code" => {
                    let has = |item: &Element| {
                        item.items("eventsSet").iter().any(|event| values.iter().any(|it| it == event.at(&["code"])))
                    };
                    items.retain(has);
                    continue;
                }
                _ => return Err(Refusal::new("InvalidParameterValue", format!("The filter '{name}' is invalid"))),
            };
            items.retain(|item| values.iter().any(|value| value == item.at(path)));
        }
        self.paged(form, items, STATUSES)
    }

    async fn plain(&self, form: &Form, listing: Listing) -> Result<Element, Refusal> {
        let asked = form.only(|name| !matches!(name, "MaxResults" | "NextToken"));
        let items = std::mem::take(self.moto.call(&asked).await?.items_mut(listing.list));
        let items = self.as_shown(form, items, listing)?;
        self.paged(form, items, listing)
    }

    /// Items as old as reads lag.
    fn as_shown(&self, form: &Form, items: Vec<Element>, listing: Listing) -> Result<Vec<Element>, Refusal> {
        if self.lag.is_none() {
            return Ok(items);
        }
        let mut shown = Vec::new();
        for item in items {
            let id = (listing.id)(&item);
            match self.lag.shown(id) {
                Shown::Current => shown.push(item),
                Shown::Nothing => {
                    if form.resources().iter().any(|named| named == id) {
                        return Err(missing(id));
                    }
                }
                // The status checks know of no older state.
                Shown::Older(_) if listing.action == STATUSES.action => shown.push(item),
                Shown::Older(older) => {
                    if has_tags(&older, &form.filters()) {
                        shown.push(*older);
                    }
                }
            }
        }
        Ok(shown)
    }

    fn paged(&self, form: &Form, mut items: Vec<Element>, listing: Listing) -> Result<Element, Refusal> {
        let next = self.pages.cut(form, &mut items, |item| (listing.id)(item).to_owned())?;
        let mut list = Element::new(listing.list);
        list.children = items;
        let answer = answer(listing.action).with(list);
        Ok(match next {
            Some(token) => answer.with_text("nextToken", &token),
            None => answer,
        })
    }

    /// Refuses a request that names what was made too short a time ago.
    pub(crate) fn check_shown(&self, form: &Form) -> Result<(), Refusal> {
        if self.lag.is_none() {
            return Ok(());
        }
        match form.resources().iter().find(|id| self.lag.shown(id) == Shown::Nothing) {
            Some(id) => Err(missing(id)),
            None => Ok(()),
        }
    }

    /// Remembers what machines and volumes are like, and the volumes of those machines, before they change.
    pub(crate) async fn remember(&self, ids: &[String]) {
        if self.lag.is_none() {
            return;
        }
        let mut volumes: Vec<_> = ids.iter().filter(|id| id.starts_with("vol-")).cloned().collect();
        for id in ids.iter().filter(|id| id.starts_with("i-")) {
            let found = self.reservations(&Form::new("").with("InstanceId.1", &**id)).await;
            for reservation in found.into_iter().flatten() {
                volumes.extend(volumes_of(instance_of(&reservation)).into_iter().map(|(volume, _)| volume));
                self.lag.remember(id, Some(reservation));
            }
        }
        for id in volumes {
            let found = self.moto.call(&Form::new(VOLUMES.action).with("VolumeId.1", &*id)).await;
            for volume in found.iter().flat_map(|answer| answer.items(VOLUMES.list)) {
                self.lag.remember(&id, Some(volume.clone()));
            }
        }
    }

    /// A volume, as moto has it.
    pub(crate) async fn volume(&self, id: &str) -> Result<Element, Refusal> {
        let answer = self.moto.call(&Form::new(VOLUMES.action).with("VolumeId.1", id)).await?;
        answer.items(VOLUMES.list).first().cloned().ok_or_else(|| Refusal::no_volume(id))
    }
}

fn missing(id: &str) -> Refusal {
    if id.starts_with("vol-") { Refusal::no_volume(id) } else { Refusal::no_instance(id) }
}

fn state_of(reservation: &Element) -> &str {
    instance_of(reservation).at(&["instanceState", "name"])
}

/// What one filter lets through, if it is there.
fn values(form: &Form, name: &str) -> Option<Vec<String>> {
    form.filters().into_iter().find(|filter| filter.name == name).map(|filter| filter.values)
}

fn check_pages(form: &Form) -> Result<(), Refusal> {
    match form.has("InstanceId") && form.get("MaxResults").is_some() {
        true => Err(Refusal::new(
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        )),
        false => Ok(()),
    }
}

/// Whether an item has the tags that filters ask for.
fn has_tags(item: &Element, filters: &[Filter]) -> bool {
    let item = if item.child("instancesSet").is_some() { instance_of(item) } else { item };
    let tags = item.items("tagSet");
    filters.iter().filter_map(|filter| Some((filter.name.strip_prefix("tag:")?, &filter.values))).all(
        |(key, values)| {
            let is_it =
                |tag: &Element| tag.at(&["key"]) == key && values.iter().any(|value| value == tag.at(&["value"]));
            tags.iter().any(is_it)
        },
    )
}
