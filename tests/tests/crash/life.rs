//! One instance's life under control planes that are killed.

use std::{fs, os::unix::process::ExitStatusExt, process::Stdio, time::Duration};

use provisioner_core::{seams::Random, store::OperationState, types::DataId};
use tests::{
    PATIENCE, http,
    place::{Place, Site, cell},
    plane::{Options, Plane, done},
    verb::{NAME, Verb},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

pub(crate) const PRODUCT: &str = env!("CARGO_BIN_EXE_tests-product");
const CONTROL_PLANE: &str = env!("CARGO_BIN_EXE_tests-control-plane");
/// What the customer wrote before anything went wrong.
pub(crate) const NOTE: &str = "minutes";
/// How long a request takes at most, from the start of its control plane on, as far as kills from outside go.
const MOMENT_MAX: Duration = Duration::from_millis(120);

/// How a control plane that was to be killed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    /// It did all that was asked and never came to that place.
    Survived,
}

/// What came of a life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lived {
    /// Killed: all of its control planes that were to be were.
    pub(crate) end: End,
    /// Whether one of those had told that the request is accepted: then nobody asked again before it was done.
    pub(crate) accepted: bool,
}

/// The seed of all choices: the one that is set, or another one each time.
pub(crate) fn seed() -> u64 {
    let set = std::env::var("CRASH_SEED").ok().map(|seed| seed.parse().expect("CRASH_SEED: a number"));
    set.unwrap_or_else(|| Random::from_os().bits() % 1_000_000)
}

pub(crate) fn random_moment(random: &Random) -> Duration {
    random.up_to(MOMENT_MAX)
}

/// What was so before the request.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) data: DataId,
    pub(crate) products: Vec<i32>,
    /// The last event until then.
    pub(crate) position: u64,
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) place: Place,
    pub(crate) verb: Verb,
    /// Nothing before a creation.
    pub(crate) before: Option<Before>,
    /// The operation that a control plane said it had accepted.
    pub(crate) accepted: Option<String>,
    /// How many control planes were to be killed.
    pub(crate) kills: usize,
}

impl Life {
    /// The state that the request starts from.
    pub(crate) async fn prepare(verb: Verb) -> Self {
        let mut place = Place::new(PRODUCT);
        let before = match verb {
            Verb::Create => None,
            _ => Some(prepare(&mut place, verb).await),
        };
        Self { place, verb, before, accepted: None, kills: 0 }
    }

    /// A control plane whose clock is so far ahead asks for it and is killed at this place.
    pub(crate) async fn killed_at(&mut self, at: u64, ahead: Duration) -> End {
        let (lines, end) = run(&self.place, &self.verb.to_string(), ahead, at).await;
        self.note(&lines);
        end
    }

    /// A control plane asks for it and is left alone: how many places it passed, by its own count.
    pub(crate) async fn uncut(&mut self) -> u64 {
        let (lines, end) = run(&self.place, &self.verb.to_string(), Duration::ZERO, 0).await;
        assert_eq!(end, End::Survived);
        self.note(&lines);
        assert!(self.accepted.is_some(), "a control plane tells what it accepted: {lines:?}");
        let passed = lines.iter().find_map(|line| line.strip_prefix("passed "));
        passed.expect("a control plane that ends tells its count").parse().unwrap()
    }

    /// A control plane asks for it and is killed so long after it was started, if it is not done before.
    pub(crate) async fn killed_after(&mut self, moment: Duration) {
        let mut child = start(&self.place, &self.verb.to_string(), Duration::ZERO, 0);
        let _ = timeout(moment, child.wait()).await;
        // Not there any more: it was done before.
        let _ = child.start_kill();
        let (lines, _) = ended(child).await;
        self.note(&lines);
    }

    fn note(&mut self, lines: &[String]) {
        self.kills += 1;
        let Some(accepted) = lines.iter().find_map(|line| line.strip_prefix("accepted ")) else { return };
        let before = self.accepted.get_or_insert_with(|| accepted.into());
        assert_eq!(before, accepted, "the same key is the same operation, whoever answers");
    }
}

async fn prepare(place: &mut Place, verb: Verb) -> Before {
    if verb == Verb::Retry {
        place.link_product();
    }
    let mut plane = Plane::start(place, Options::default()).await;
    done(&Verb::Create.ask(&plane.plane, place).await.unwrap()).await;
    let endpoint = plane.endpoint(NAME).await;
    http::text(&endpoint, &format!("/write/{NOTE}")).await;
    let first = match verb {
        Verb::Wake | Verb::Retry => Some(Verb::Sleep),
        Verb::Lift => Some(Verb::Suspend),
        _ => None,
    };
    if let Some(first) = first {
        done(&first.ask(&plane.plane, place).await.unwrap()).await;
    }
    let data = plane.get(NAME).await.data;
    match verb {
        Verb::Retry => park(&plane, place).await,
        Verb::Adopt => plane = forgotten(plane, place).await,
        _ => {}
    }
    let position = plane.plane.position();
    plane.stop().await;
    Before { data, products: place.products(), position }
}

/// An instance that was to wake while its program was away.
async fn park(plane: &Plane, place: &Place) {
    let (there, away) = (&place.product, place.product.with_extension("away"));
    fs::rename(there, &away).unwrap();
    let operation = Verb::Wake.ask(&plane.plane, place).await.unwrap();
    assert_eq!(tests::plane::ended(&operation).await.state, OperationState::Failed);
    plane.until(NAME, |instance| instance.parked).await;
    fs::rename(&away, there).unwrap();
}

/// A control plane with a new store, which knows nothing of what the other one made and has found it.
async fn forgotten(plane: Plane, place: &Place) -> Plane {
    plane.stop().await;
    for end in ["", "-wal", "-shm"] {
        let mut file = place.store.clone().into_os_string();
        file.push(end);
        let _ = fs::remove_file(file);
    }
    let plane = Plane::start(place, Options::default()).await;
    assert_eq!(plane.plane.check_drift(&cell()).await.unwrap().strangers, 1);
    plane
}

/// Runs a control plane that is to be killed at this place: what it said, and how it ended.
pub(crate) async fn run(site: &Site, verb: &str, ahead: Duration, at: u64) -> (Vec<String>, End) {
    ended(start(site, verb, ahead, at)).await
}

fn start(site: &Site, verb: &str, ahead: Duration, at: u64) -> Child {
    Command::new(CONTROL_PLANE)
        .args([&site.store, &site.root])
        .arg(site.address.to_string())
        .arg(&site.product)
        .args([&ahead.as_secs().to_string(), &at.to_string(), verb])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn ended(mut child: Child) -> (Vec<String>, End) {
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = Vec::new();
    let read = async {
        while let Some(line) = said.next_line().await.unwrap() {
            lines.push(line);
        }
        child.wait().await.unwrap()
    };
    let Ok(status) = timeout(PATIENCE, read).await else { panic!("it neither died nor ended; it said {lines:?}") };
    let end = match (status.signal(), status.success()) {
        (Some(signal), _) if signal == rustix::process::Signal::KILL.as_raw() => End::Killed,
        (None, true) => End::Survived,
        _ => panic!("{status}; it said {lines:?}"),
    };
    (lines, end)
}
