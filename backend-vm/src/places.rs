//! Where a machine goes: the first place and type of the configured order that was not out of room a moment ago.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::types::{Incarnation, Size};
use tokio::time::Instant;

use crate::config::{MachineType, Place, VmConfig};

/// How long a place that had no room is left alone while there are others.
const NO_ROOM_FOR: Duration = Duration::from_secs(300);
/// How long a making that nobody heard of again keeps its place: its request may have been carried out.
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// By subnet and type.
type Key = (String, String);

#[derive(Debug, Default)]
pub(crate) struct Places {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    full_until: BTreeMap<Key, Instant>,
    chosen: BTreeMap<Incarnation, (Key, Instant)>,
}

impl Places {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this making goes, the same each time until it is [refused](Self::refused): a token is another one's in another zone.
    /// What another process asked for is not known here. Who takes over from it looks first, and sees nothing before the settling
    /// time has passed.
    /// All places of the cheapest type come before the first of the next. `zone`: where its data is.
    pub(crate) fn choose(
        &self,
        config: &VmConfig,
        incarnation: Incarnation,
        size: Size,
        zone: Option<&str>,
    ) -> Option<(Place, MachineType)> {
        let mut state = self.state();
        let now = Instant::now();
        state.chosen.retain(|_, (_, at)| now.saturating_duration_since(*at) < KEPT_FOR);
        let places = || config.places.iter().filter(|place| zone.is_none_or(|zone| place.zone == zone));
        let key = |place: &Place, kind: &MachineType| (place.subnet.clone(), kind.name.clone());
        let all: Vec<_> = config.types_for(size).flat_map(|kind| places().map(move |place| (place, kind))).collect();
        let chosen = state.chosen.get(&incarnation).map(|(chosen, _)| chosen.clone());
        let again = all.iter().find(|(place, kind)| Some(key(place, kind)) == chosen);
        // Where none has room the one that was full first is tried again: it is for the service to say so.
        let until = |(place, kind): &&(&Place, &MachineType)| {
            state.full_until.get(&key(place, kind)).copied().filter(|until| *until > now)
        };
        let (place, kind) = again.or_else(|| all.iter().min_by_key(until)).copied()?;
        state.chosen.insert(incarnation, (key(place, kind), now));
        Some((place.clone(), kind.clone()))
    }

    /// The service had no room there, and nothing was made. Whether another place is left that was not full a moment ago.
    pub(crate) fn refused(&self, config: &VmConfig, incarnation: Incarnation, size: Size, zone: Option<&str>) -> bool {
        let now = Instant::now();
        {
            let mut state = self.state();
            if let Some((key, _)) = state.chosen.remove(&incarnation) {
                state.full_until.insert(key, now + NO_ROOM_FOR);
            }
        }
        let state = self.state();
        let places = || config.places.iter().filter(|place| zone.is_none_or(|zone| place.zone == zone));
        let mut all = config.types_for(size).flat_map(|kind| places().map(move |place| (place, kind)));
        all.any(|(place, kind)| {
            let key = (place.subnet.clone(), kind.name.clone());
            state.full_until.get(&key).is_none_or(|until| *until <= now)
        })
    }

    /// The type that a stopped machine is to have there: the cheapest that has room for the size, unless there was no room for that a
    /// moment ago. `None`: there is none.
    pub(crate) fn choose_type(&self, config: &VmConfig, subnet: &str, size: Size) -> Option<MachineType> {
        let (state, now) = (self.state(), Instant::now());
        let is_full = |kind: &&MachineType| {
            let key = (subnet.to_owned(), kind.name.clone());
            state.full_until.get(&key).is_some_and(|until| *until > now)
        };
        config.types_for(size).find(|kind| !is_full(kind)).cloned()
    }

    /// There was no room to start a machine of this type there.
    pub(crate) fn is_full(&self, subnet: &str, kind: &str) {
        let until = Instant::now() + NO_ROOM_FOR;
        self.state().full_until.insert((subnet.to_owned(), kind.to_owned()), until);
    }

    /// It was made, or is no more.
    pub(crate) fn forget(&self, incarnation: Incarnation) {
        self.state().chosen.remove(&incarnation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        let place = |n: &str| Place { subnet: format!("subnet-{n}"), zone: format!("zone-{n}") };
        VmConfig::new("us-east-1", vec![place("a"), place("b")])
    }

    fn chosen(places: &Places, making: u128, zone: Option<&str>) -> (String, String) {
        let size = Size { cpu_millis: 100, memory_mib: 1_500 };
        let (place, kind) = places.choose(&config(), Incarnation::new(1, making), size, zone).unwrap();
        (place.zone, kind.name)
    }

    fn pair(zone: &str, kind: &str) -> (String, String) {
        (zone.to_owned(), kind.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_place_is_tried_and_then_the_next_type_and_a_making_keeps_what_it_was_given() {
        let (places, config) = (Places::default(), config());
        let size = Size { cpu_millis: 100, memory_mib: 1_500 };
        let refused = |making| places.refused(&config, Incarnation::new(1, making), size, None);
        assert_eq!(chosen(&places, 1, None), pair("zone-a", "t3.small"));
        assert_eq!(chosen(&places, 2, None), pair("zone-a", "t3.small"));
        assert!(refused(1));
        assert_eq!(chosen(&places, 1, None), pair("zone-b", "t3.small"));
        assert_eq!(chosen(&places, 2, None), pair("zone-a", "t3.small"), "its request may have been carried out");
        assert!(refused(1));
        assert_eq!(chosen(&places, 1, None), pair("zone-a", "t3.medium"));
        assert_eq!(chosen(&places, 3, Some("zone-b")), pair("zone-b", "t3.medium"), "its data is there");
        tokio::time::advance(NO_ROOM_FOR).await;
        assert_eq!(chosen(&places, 4, None), pair("zone-a", "t3.small"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_machine_gets_the_cheapest_type_for_which_there_is_room() {
        let (places, config) = (Places::default(), config());
        let size = Size { cpu_millis: 100, memory_mib: 1_500 };
        let choose = || places.choose_type(&config, "subnet-a", size).map(|kind| kind.name);
        assert_eq!(choose().as_deref(), Some("t3.small"));
        places.is_full("subnet-a", "t3.small");
        assert_eq!(choose().as_deref(), Some("t3.medium"));
        tokio::time::advance(NO_ROOM_FOR).await;
        assert_eq!(choose().as_deref(), Some("t3.small"), "it does not stay large");
        for kind in &config.types {
            places.is_full("subnet-a", &kind.name);
        }
        assert_eq!(choose(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_place_has_room_the_one_that_was_full_first_is_tried_again() {
        let (places, mut config) = (Places::default(), config());
        config.types.truncate(2);
        let size = Size { cpu_millis: 100, memory_mib: 1_500 };
        let choose = |making| places.choose(&config, Incarnation::new(1, making), size, None).unwrap().0.zone;
        let refused = |making| places.refused(&config, Incarnation::new(1, making), size, None);
        assert_eq!(choose(1), "zone-a");
        assert!(refused(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(choose(1), "zone-b");
        assert!(!refused(1));
        assert_eq!(choose(1), "zone-a");
        assert_eq!(places.choose(&config, Incarnation::new(1, 9), size, Some("elsewhere")), None);
    }
}
