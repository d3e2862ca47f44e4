//! Troubles that come now and then, besides failing calls, kills and the meddling that the driver does.
//!
//! Each draws from a stream of its own, and a run can be had without it. So a run without the troubles that were thought of
//! later is the run that it was before, to the byte.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc, time::Duration};

use provisioner_core::{
    OpContext, Provisioner,
    memory::MemoryProvisioner,
    seams::Random,
    types::{CellName, DataDisposition, DataSource, Generation, Target},
};
use tokio::time::Instant;

use crate::{
    customers::{cell_of, id, spec, tenant},
    replicas,
    scenario::Request,
    world::{World, owner},
};

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// An outsider deletes data, in use or retained, and sometimes what runs on it as well.
    DataLoss,
    /// A cell's quota is used up for a while.
    Quota,
    /// The clock of a control plane's machine is set forward or back.
    Clock,
    /// Something bears the control plane's mark that it never made.
    Stranger,
    /// One of several control planes cannot reach the store for a while, and everything else it can.
    CutOff,
    /// The store answers none of several control planes for a while.
    Outage,
    /// One of several control planes is shut down and replaced.
    Upgrade,
    /// Several control planes do not hear all that they tell each other.
    LostSignals,
    /// The clock of a store that several control planes share is set, by no more than they allow for.
    StoreClock,
}

impl Trouble {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::DataLoss,
        Self::Quota,
        Self::Clock,
        Self::Stranger,
        Self::CutOff,
        Self::Outage,
        Self::Upgrade,
        Self::LostSignals,
        Self::StoreClock,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DataLoss => "data-loss",
            Self::Quota => "quota",
            Self::Clock => "clock",
            Self::Stranger => "stranger",
            Self::CutOff => "cut-off",
            Self::Outage => "outage",
            Self::Upgrade => "upgrade",
            Self::LostSignals => "lost-signals",
            Self::StoreClock => "store-clock",
        }
    }

    /// How often it comes at most in a run of so many customers.
    const fn times_max(self, instances: usize) -> usize {
        match self {
            Self::DataLoss | Self::Stranger => 4 + instances / 25,
            Self::Quota => 4,
            Self::Clock | Self::CutOff | Self::Upgrade => 8,
            Self::Outage => 3,
            Self::StoreClock => 16,
            // They are lost all the time.
            Self::LostSignals => 0,
        }
    }

    /// Whether it can only befall several control planes.
    const fn is_of_replicas(self) -> bool {
        matches!(self, Self::CutOff | Self::Outage | Self::Upgrade | Self::LostSignals | Self::StoreClock)
    }
}

/// Which troubles a run has: `all`, `none`, or some with commas between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Troubles(BTreeSet<Trouble>);

impl Troubles {
    /// Every trouble there is.
    #[must_use]
    pub fn all() -> Self {
        Self(Trouble::ALL.into())
    }

    /// None of them.
    #[must_use]
    pub fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn has(&self, trouble: Trouble) -> bool {
        self.0.contains(&trouble)
    }
}

impl fmt::Display for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all() {
            return f.write_str("all");
        }
        let names: Vec<_> = self.0.iter().map(|trouble| trouble.as_str()).collect();
        f.write_str(if names.is_empty() { "none".into() } else { names.join(",") }.as_str())
    }
}

impl FromStr for Troubles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| {
            let found = Trouble::ALL.into_iter().find(|trouble| trouble.as_str() == name);
            found.ok_or_else(|| {
                format!("no trouble {name:?}: expected one of {}", Trouble::ALL.map(Trouble::as_str).join(", "))
            })
        };
        match text {
            "all" => Ok(Self::all()),
            "none" => Ok(Self::none()),
            some => some.split(',').map(named).collect::<Result<_, _>>().map(Self),
        }
    }
}

/// A stream of random bits that nothing else draws from.
#[must_use]
pub fn stream(seed: u64, name: &str) -> Random {
    let mixed = name.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |mixed, byte| {
        (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    });
    Random::from_seed(mixed)
}

/// A trouble that comes again and again in a run.
#[derive(Debug)]
struct Recurring {
    trouble: Trouble,
    random: Random,
    /// How long it is from one time to the next, on average.
    pause: Duration,
    next_at: Instant,
}

/// The troubles of one run, as they come.
#[derive(Debug)]
pub struct Coming {
    instances: usize,
    all: Vec<Recurring>,
}

impl Coming {
    /// The troubles of a run of this length: each of those asked for comes in two of three seeds.
    #[must_use]
    pub fn of(request: &Request, duration: Duration, are_several: bool) -> Self {
        let possible = |trouble: &&Trouble| trouble.times_max(100) > 0 && (are_several || !trouble.is_of_replicas());
        let asked_for = request.troubles.0.iter().filter(|_| !request.only_faults).filter(possible);
        let recurring = asked_for.filter_map(|trouble| {
            let random = stream(request.seed, trouble.as_str());
            if random.bits().is_multiple_of(3) {
                return None;
            }
            let times = 1 + below(&random, trouble.times_max(request.instances));
            let pause = duration / u32::try_from(times).unwrap_or(u32::MAX);
            let next_at = Instant::now() + random.up_to(pause * 2);
            Some(Recurring { trouble: *trouble, random, pause, next_at })
        });
        Self { instances: request.instances, all: recurring.collect() }
    }

    /// Has whatever is due befall the world.
    pub async fn befall(&mut self, world: &Arc<World>) {
        for due in self.all.iter_mut().filter(|recurring| recurring.next_at <= Instant::now()) {
            due.next_at = Instant::now() + due.random.up_to(due.pause * 2);
            let (random, number) = (&due.random, below(&due.random, self.instances));
            match due.trouble {
                Trouble::DataLoss => lose_data(world, random, number),
                Trouble::Quota => use_up_quota(world, random, number),
                Trouble::Clock => set_clock(world, random, number),
                Trouble::CutOff => replicas::cut_off(world, random, number),
                Trouble::Outage => replicas::outage(world, random),
                Trouble::Upgrade => replicas::upgrade(world, random, number),
                Trouble::LostSignals => {}
                Trouble::StoreClock => set_store_clock(world, random, number),
                Trouble::Stranger => {
                    // Of one of the customers, or of one of whom nobody knows any more.
                    let unknown = self.instances + number % UNKNOWN;
                    let number = if random.bits() & 1 == 0 { number } else { unknown };
                    make_stranger(world, random, number).await;
                }
            }
        }
    }
}

/// How many customers there are of whom only strangers tell.
const UNKNOWN: usize = 10;

fn below(random: &Random, bound: usize) -> usize {
    usize::try_from(random.bits() % bound.max(1) as u64).unwrap_or(0)
}

/// This customer's cell.
fn provider_of(world: &World, number: usize) -> (CellName, &MemoryProvisioner) {
    let cell = cell_of(world, number);
    let provider = &world.providers[&cell];
    (cell, provider)
}

/// Deletes one of the data sets of a cell, and one time in three the thing that uses it.
fn lose_data(world: &World, random: &Random, number: usize) {
    let (cell, provider) = provider_of(world, number);
    let all = provider.data(&owner());
    let Some(data) = all.get(below(random, all.len())) else { return };
    world.witness.note(&format!("an outsider deletes data {data} in {cell}"));
    world.witness.data_is_lost(data);
    provider.vanish_data(&owner(), data);
    if random.bits().is_multiple_of(3)
        && let Some(thing) = provider.things(&owner()).iter().find(|thing| thing.data == *data)
    {
        world.witness.note(&format!("and {}, which used it", thing.id));
        provider.vanish(&owner(), &thing.id);
    }
}

/// Lets a cell have no more than it has, or less, for up to an hour.
fn use_up_quota(world: &World, random: &Random, number: usize) {
    let (cell, provider) = provider_of(world, number);
    let quota = provider.things(&owner()).len() * (50 + below(random, 51)) / 100;
    world.witness.note(&format!("the quota in {cell} is {quota}"));
    provider.limit_quota(quota);
    let (provider, spell) = (provider.clone(), random.up_to(Duration::from_secs(3600)));
    world.spawn(async move {
        tokio::time::sleep(spell).await;
        provider.limit_quota(usize::MAX);
    });
}

/// The furthest that the clock is set forward at once. Idempotency keys are kept for a day, and customers ask again.
const FORWARD_MAX: Duration = Duration::from_secs(4 * 3600);
/// And back: so far that whoever waits for the clock to come back does so longer than the world lasts.
const BACK_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// Sets a machine's clock: one time in two by minutes, otherwise by hours.
fn set_clock(world: &World, random: &Random, number: usize) {
    let dice = random.bits();
    let (forward, by_minutes) = (dice & 1 == 0, dice & 2 == 0);
    let most = match (forward, by_minutes) {
        (_, true) => Duration::from_secs(1200),
        (true, false) => FORWARD_MAX,
        (false, false) => BACK_MAX,
    };
    let by = random.up_to(most);
    world.set_clock(number % world.places.len(), forward, by);
}

/// The furthest that a store's clock is ahead of the truth: what the engine takes for a correction, and not for a jump.
const STORE_AHEAD_MAX: Duration = Duration::from_secs(5);
/// And so little of a session that nobody calls when it may be over: they stop a fifth of its time before.
const OF_SESSION: u32 = 6;

/// Sets a shared store's clock, forward or back. One time in two somebody is replaced at once, whose time begins ahead of the others' or
/// behind them.
fn set_store_clock(world: &Arc<World>, random: &Random, number: usize) {
    let Some(sharing) = &world.scenario.sharing else { return };
    let most = STORE_AHEAD_MAX.min(sharing.lapses_after / OF_SESSION);
    let ahead = match random.bits() % 3 {
        0 => Duration::ZERO,
        1 => most,
        _ => random.up_to(most),
    };
    world.set_store_clock(ahead);
    if random.bits() & 1 == 0 {
        replicas::upgrade(world, random, number);
    }
}

/// Makes something for this customer behind the control plane's back and under its mark, as a control plane does that works
/// on a newer copy of the store. It runs, sleeps, or has left nothing but its data.
async fn make_stranger(world: &World, random: &Random, number: usize) {
    let (cell, provider) = provider_of(world, number);
    let incarnation = random.incarnation(1 + u32::from(random.bits() & 1 == 0));
    let target = Target {
        id: id(number),
        tenant: tenant(number),
        incarnation,
        generation: Generation(1 + random.bits() % 4),
        spec: Arc::new(spec("unheard-of")),
        data: DataSource::Fresh(random.data_id()),
    };
    world.witness.note(&format!("a stranger {incarnation} of {} in {cell}", target.id));
    world.witness.stranger_appears(&target);
    let cx = OpContext::new(owner());
    // The provider may refuse all of this, as it does others.
    let made = provider.create(&cx, &target).await;
    let done = match random.bits() % 6 {
        0 => provider.scale_to_zero(&cx, &target).await,
        1 => provider.suspend(&cx, &target).await,
        2 => return world.spawn(remove_in_the_end(provider.clone(), cx, target)),
        _ => made,
    };
    if let Err(error) = done {
        world.witness.note(&format!("it is not as it was to be: {error}"));
    }
}

/// Removes a stranger, its data not, as often as it takes: whoever made it sees its removal through.
async fn remove_in_the_end(provider: MemoryProvisioner, cx: OpContext, target: Target) {
    while provider.destroy(&cx, &target, DataDisposition::Retain).await.is_err() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_read_as_they_are_written() {
        for text in ["all", "none", "quota", "data-loss,clock"] {
            assert_eq!(text.parse::<Troubles>().unwrap().to_string(), text);
        }
        assert!("quota,weather".parse::<Troubles>().unwrap_err().contains("weather"));
    }
}
