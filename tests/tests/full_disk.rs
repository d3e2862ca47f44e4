//! A control plane whose store's disk is really full: a small file system of its own, in a mount namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use provisioner_core::{
    ErrorKind,
    control_plane::OperationHandle,
    seams::KillPoints,
    store::InstanceFilter,
    types::{Phase, VariableName},
};
use tests::{
    http,
    place::{Place, by, id, keyed, set},
    plane::{Counter, Options, Plane, done},
    until,
};
use tokio::time::Instant;

const PRODUCT: &str = env!("CARGO_BIN_EXE_tests-product");
/// Makes a child of the test mount its disk on this folder and fill it.
const CHILD: &str = "FULL_DISK_TEST_CHILD";
const NAME: &str = "a_control_plane_whose_disk_is_full_refuses_truthfully_carries_on_and_recovers_by_itself";
/// As long as creations that were under way when the disk became full take to start.
const SLOW_MS: &str = "1500";
/// For so many bytes there is room at first, so that some are accepted with what comes of it finding none.
const ROOM: u64 = 256 * 1024;

fn main() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return child(folder.as_ref());
    }
    let run = || {
        let folder = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let output = Command::new("unshare").arg("--mount").arg(program).env(CHILD, folder.path()).output().unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into()),
        }
    };
    let trial = match probe() {
        Ok(()) => Trial::test(NAME, run),
        Err(reason) => Trial::test(NAME, run).with_kind(format!("needs to mount: {reason}")).with_ignored_flag(true),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Whether this process may mount.
fn probe() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let output = Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

fn child(folder: &Path) {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(folder).status();
    assert!(mounted.unwrap().success());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(fill_and_recover(folder));
    drop(runtime);
    assert!(Command::new("umount").arg(folder).status().unwrap().success());
}

struct World {
    plane: Plane,
    place: Place,
    counter: Arc<Counter>,
    ballast: PathBuf,
    accepted: BTreeSet<String>,
    refused: BTreeSet<String>,
}

async fn fill_and_recover(disk: &Path) {
    let place = Place::with_store_at(PRODUCT, disk.join("store.db"));
    let counter = Arc::new(Counter::default());
    let options = || Options { kill_points: Arc::clone(&counter) as Arc<dyn KillPoints>, ..Options::default() };
    let plane = Plane::start(&place, options()).await;
    let ballast = disk.join("ballast");
    let (accepted, refused) = Default::default();
    let mut world = World { place, plane, counter: Arc::clone(&counter), ballast, accepted, refused };

    for name in ["one", "two"] {
        let operation = world.sign_up(name, false).await.unwrap();
        done(&operation).await;
    }
    // Under way when there is no room any more: what comes of them cannot be written down.
    let mut pending = Vec::new();
    for name in ["slow-one", "slow-two"] {
        pending.push(world.sign_up(name, true).await.unwrap());
    }
    until("the slow ones have processes", || async { (world.place.products().len() == 4).then_some(()) }).await;
    pending.extend(world.fill().await);
    world.check_refusals().await;
    world.check_running().await;
    world.check_rest(pending.len()).await;
    world.check_truth().await;

    fs::remove_file(&world.ballast).unwrap();
    world.recover(&pending).await;
    world.check_running().await;
    world.check_truth().await;
    drop(pending);
    world.plane.stop().await;
    // And the next start finds the same.
    world.plane = Plane::start(&world.place, options()).await;
    world.check_truth().await;
    world.plane.stop().await;
}

impl World {
    async fn sign_up(&mut self, name: &str, slow: bool) -> Option<OperationHandle> {
        let mut new = self.place.new_instance(name);
        if slow {
            set(&mut new.spec, "READY_AFTER_MS", SLOW_MS);
        }
        // Large, so that what room is left is soon used.
        new.spec.environment.insert(VariableName::new("TEXT").unwrap(), "x".repeat(8000));
        match self.plane.plane.create(new, keyed(name)).await {
            Ok(operation) => {
                self.accepted.insert(name.into());
                Some(operation)
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StoreFull, "{error:?}");
                let said = error.customer_message();
                assert_eq!(said, "The service is busy. Please try again in a moment.");
                self.refused.insert(name.into());
                None
            }
        }
    }

    /// Takes nearly all the room there is and signs up until nobody is taken any more; the operations that were.
    async fn fill(&mut self) -> Vec<OperationHandle> {
        let mut file = File::create(&self.ballast).unwrap();
        let mut piece = vec![0_u8; 64 * 1024];
        while !piece.is_empty() {
            if file.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
        let length = file.metadata().unwrap().len();
        file.set_len(length - ROOM).unwrap();
        let mut accepted = Vec::new();
        for number in 0.. {
            assert!(number < 500, "the disk never got full");
            match self.sign_up(&format!("filler-{number}"), false).await {
                Some(operation) => accepted.push(operation),
                None => return accepted,
            }
        }
        unreachable!()
    }

    /// Nothing that needs room is taken, and whoever asks again in the same words hears the same.
    async fn check_refusals(&mut self) {
        for number in 0..10 {
            assert!(self.sign_up(&format!("late-{number}"), false).await.is_none());
            assert!(self.sign_up("late-0", false).await.is_none());
        }
        for name in ["one", "two"] {
            let error = self.plane.plane.sleep(&id(name), by()).await.unwrap_err();
            assert_eq!((error.kind(), error.instance()), (ErrorKind::StoreFull, Some(&id(name))), "{error:?}");
        }
    }

    async fn check_running(&self) {
        for name in ["one", "two"] {
            let instance = self.plane.get(name).await;
            assert_eq!((instance.phase, instance.settled), (Some(Phase::Running), true));
            assert_eq!(http::text(&self.plane.endpoint(name).await, "/version").await, "1.0");
        }
    }

    /// Once what is under way is ready, so that there is something to write: looks for two seconds at how often the engine
    /// tries. Each that is under way about once a second, and not in a circle.
    async fn check_rest(&self, pending: usize) {
        until("the slow ones are ready", || async {
            let listed = self.plane.listed().await;
            let running = listed.iter().filter(|owned| owned.observed.phase() == Some(Phase::Running)).count();
            (running >= 4).then_some(())
        })
        .await;
        let counts = || ["before a commit", "before a call"].map(|place| self.counter.passed(place));
        let (before, cpu_before, began) = (counts(), cpu_time(), Instant::now());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (after, cpu, took) = (counts(), cpu_time() - cpu_before, began.elapsed());
        let [commits, calls] = [after[0] - before[0], after[1] - before[1]];
        println!("{pending} pending, in {took:?}: {commits} commits, {calls} calls, {cpu:?} of CPU time");
        assert!(commits > 0, "it goes on trying");
        let most = pending as u64 * 3 * 2;
        assert!(commits <= most && calls <= most, "{commits} commits, {calls} calls by {pending} in {took:?}");
        assert!(cpu < took / 4, "{cpu:?} of CPU time in {took:?}");
    }

    /// Everything accepted is there, nothing refused is.
    async fn check_truth(&self) {
        let page = self.plane.plane.list(&InstanceFilter::default(), None, 1000).await.unwrap();
        let there: BTreeSet<_> = page.items.iter().map(|instance| instance.id.to_string()).collect();
        assert_eq!(there, self.accepted);
        let told: BTreeSet<_> =
            self.plane.events(None).await.into_iter().filter_map(|event| event.event.instance).collect();
        assert!(self.refused.iter().all(|name| !there.contains(name) && !told.contains(&id(name))));
        assert!(!self.refused.is_empty());
    }

    /// There is room again: what was under way ends by itself, and who was refused is taken.
    async fn recover(&mut self, pending: &[OperationHandle]) {
        for operation in pending {
            done(operation).await;
        }
        let refused: Vec<_> = std::mem::take(&mut self.refused).into_iter().collect();
        let (again, never) = refused.split_at(3);
        self.refused = never.iter().cloned().collect();
        for name in again {
            let operation = self.sign_up(name, false).await.expect("there is room again");
            done(&operation).await;
        }
        for name in self.accepted.clone() {
            self.plane.until(&name, |instance| instance.phase == Some(Phase::Running) && instance.settled).await;
        }
        assert_eq!(self.place.products().len(), self.accepted.len(), "one process each");
    }
}

/// The CPU time of this process so far.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = fields.split_ascii_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
