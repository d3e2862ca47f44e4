//! Control planes that die, and those that come after them.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures::StreamExt;
use provisioner_core::{
    Provisioner,
    seams::Random,
    types::{DataDisposition, DataId, DataSource, Generation, Incarnation, Observed, Phase, Target},
};
use rustix::process::{Pid, Signal};

use crate::support::{CONTROL_PLANE, PRODUCT, SOON, Site, change, deaf, eventually};

/// A control plane in a process of its own. Killed when dropped.
struct OtherControlPlane(Child);

impl Drop for OtherControlPlane {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn other_control_plane(site: &Site, seed: u64) -> OtherControlPlane {
    let child = Command::new(CONTROL_PLANE)
        .arg(site.root())
        .args(site.ports.ends())
        .args([PRODUCT.as_str(), &seed.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    OtherControlPlane(child)
}

/// The one instance of [`other_control_plane`].
fn its_target(site: &Site) -> Target {
    let mut target = site.target(&[]);
    target.incarnation = Incarnation::new(1, 1);
    target.data = DataSource::Fresh(DataId::from_random(1));
    target
}

/// Kills the control plane between the fork and the moment when its child says who it is: the child is held there by a
/// pipe in place of the file that it writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_has_not_yet_said_who_it_is_is_not_started_beside() {
    let site = Site::new();
    let mut target = its_target(&site);
    let folder = site.instance_folder(&target);
    fs::create_dir_all(&folder).unwrap();
    let (new, pipe, lock) = (folder.join("pid.new"), folder.join("pipe"), folder.join("lock"));
    rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    fs::hard_link(&new, &pipe).unwrap();
    let other = other_control_plane(&site, 1);
    let other_pid = i32::try_from(other.0.id()).unwrap();
    // The child is another process than the control plane, has the lock, and waits for a reader.
    let child = || {
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        all.filter(|pid: &i32| *pid != other_pid).find(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd"));
            let has_lock = |file: fs::DirEntry| fs::read_link(file.path()).is_ok_and(|file| file == lock);
            files.is_ok_and(|mut files| files.any(|file| file.is_ok_and(has_lock)))
        })
    };
    eventually(|| child().is_some()).await;
    let child = child().unwrap();
    drop(other);
    let rest = Guard(child);

    let record: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("record.json")).unwrap()).unwrap();
    target.generation = Generation(record["generation"].as_u64().unwrap());
    let create = {
        let (backend, cx, target) = (site.backend.clone(), site.cx.clone(), target.clone());
        tokio::spawn(async move { backend.create(&cx, &target).await })
    };
    // The next one does not get past the locks that the child has inherited. It waits for them for two seconds.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(!create.is_finished() && site.starts(&target) == 0);
    }
    // Let it go on, with a true file in the place of the pipe.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
    fs::remove_file(&new).unwrap();
    fs::write(&new, format!("{boot}{stat}")).unwrap();
    let reader = tokio::task::spawn_blocking(move || fs::read(pipe));
    create.await.unwrap().unwrap();
    let adopted = site.until_phase(&target, Phase::Running).await;
    assert_eq!((site.processes(), site.starts(&target)), (vec![child], 1));
    assert_eq!(adopted.generation, target.generation);
    let told = reader.await.unwrap().unwrap();
    assert!(String::from_utf8(told).unwrap().starts_with(&format!("{boot}{child} (")));
    std::mem::forget(rest);
}

/// Kills a process that is not yet known by its environment.
struct Guard(i32);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = Pid::from_raw(self.0).map(|pid| rustix::process::kill_process(pid, Signal::KILL));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_killed_at_any_moment_never_leads_to_two_processes() {
    const ROUNDS: u64 = 120;
    let site = Site::new();
    let seed = Random::from_os().bits();
    println!("seed {seed}");
    let random = Random::from_seed(seed);
    let mut target = its_target(&site);
    // How long a start takes here and now.
    let begin = Instant::now();
    let first = other_control_plane(&site, seed);
    eventually(|| site.starts(&target) > 0).await;
    let start_time = begin.elapsed();
    drop(first);
    for round in 0..ROUNDS {
        let child = other_control_plane(&site, seed ^ round);
        // When it dies is the point: any moment will do, and no condition is waited for.
        tokio::time::sleep(random.up_to(start_time * if round % 2 == 0 { 1 } else { 3 })).await;
        drop(child);
        assert!(!site.files(&target).join("doubled").exists(), "round {round}");
        // The next one starts at once, while the product of the last may still be on its way.
        assert!(site.processes().len() <= 1, "round {round}: {:?}", site.processes());
    }
    target.generation = Generation(1_000_000);
    let seen = site.running(&target).await;
    assert_eq!(seen.generation, target.generation);
    assert_eq!(site.processes().len(), 1);
    assert!(!site.files(&target).join("doubled").exists());
    println!("{} starts in {ROUNDS} rounds, a start takes {start_time:?}", site.starts(&target));
    assert!(site.starts(&target) > 10, "the rounds were too short to start anything");
    site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    site.until_absent(&target).await;
    assert!(site.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_control_plane_adopts_and_watches_again() {
    let mut site = Site::new();
    let target = site.target(&[]);
    // What it uses differs from look to look.
    let but_usage = |seen: &Observed| seen.present().cloned().map(|present| present.with_usage(None));
    let seen = Some(site.running(&target).await.with_usage(None));
    site.backend.shutdown().await;
    site.restart();
    assert_eq!(but_usage(&site.observe(&target).await), seen, "at the first look");
    assert_eq!(but_usage(&site.backend.create(&site.cx, &target).await.unwrap()), seen);
    assert_eq!(site.starts(&target), 1);
    // And one that nobody looks at.
    site.restart();
    let mut changes = site.backend.watch(&site.cx);
    let pid = Pid::from_raw(site.processes()[0]).unwrap();
    // The change that tells of its readiness shows that it was adopted.
    assert_eq!(tokio::time::timeout(SOON, changes.next()).await.unwrap(), Some(target.id.clone()));
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(tokio::time::timeout(SOON, changes.next()).await.unwrap(), Some(target.id.clone()));
    assert_eq!(site.observe(&target).await.phase(), Some(Phase::Failed));
    // And one that ended while nobody was there.
    site.restart();
    let mut changes = site.backend.watch(&site.cx);
    assert_eq!(tokio::time::timeout(SOON, changes.next()).await.unwrap(), Some(target.id.clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stop_is_continued_by_the_next_verb() {
    let mut site = Site::new();
    let mut target = site.target(&[]);
    change(&mut target, |spec| {
        spec.workload.command = deaf();
        spec.workload.stop_grace_seconds = 1;
    });
    site.running(&target).await;
    for (verb, phase) in [("zero", Some(Phase::Zero)), ("update", Some(Phase::Running)), ("destroy", None)] {
        for attempt in 0..2 {
            let done = match verb {
                "zero" => site.backend.scale_to_zero(&site.cx, &target).await,
                "destroy" => site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await,
                _ => {
                    if attempt == 0 {
                        site.running(&target).await;
                        target.generation = target.generation.next();
                    }
                    site.backend.create(&site.cx, &target).await
                }
            };
            assert_ne!(done.unwrap(), Observed::Absent, "{verb} {attempt}");
            if attempt == 0 {
                site.restart();
                let seen = site.observe(&target).await;
                assert!(seen.present().is_some(), "{verb}: {seen:?}");
            }
        }
        let generation = target.generation;
        site.until(&target, |seen| {
            seen.phase() == phase && seen.present().is_none_or(|present| present.generation == generation)
        })
        .await;
    }
    assert!(site.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_pid_file_and_a_recycled_pid_are_not_the_instance() {
    let mut site = Site::new();
    let target = site.target(&[]);
    site.running(&target).await;
    let pid_file = site.instance_folder(&target).join("pid");
    let text = fs::read_to_string(&pid_file).unwrap();
    let pid = site.processes()[0];
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    site.until_phase(&target, Phase::Failed).await;
    // Somebody else has the pid now: this very test program.
    let own = std::process::id().to_string();
    let (boot, stat) = text.split_once('\n').unwrap();
    let own_stat = fs::read_to_string("/proc/self/stat").unwrap();
    for forged in [
        format!("{boot}\n{}", stat.replacen(&pid.to_string(), &own, 1)),
        format!("another-boot\n{own_stat}"),
        format!("{boot}\n"),
        String::new(),
        "garbage".into(),
    ] {
        site.restart();
        fs::write(&pid_file, &forged).unwrap();
        let seen = site.observe(&target).await;
        assert_eq!(seen.phase(), Some(Phase::Failed), "{forged}");
        assert_eq!(seen.present().unwrap().reason.as_ref().unwrap().code, "exited");
    }
    fs::write(&pid_file, format!("another-boot\n{own_stat}")).unwrap();
    site.backend.create(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Running).await;
    assert_eq!(site.processes().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_is_seen_through_or_never_begun() {
    let site = Site::new();
    let random = Random::from_os();
    let target = site.target(&[]);
    for _ in 0..30 {
        let create = site.backend.create(&site.cx, &target);
        let _ = tokio::time::timeout(random.up_to(Duration::from_millis(3)), create).await;
        let zero = site.backend.scale_to_zero(&site.cx, &target);
        let _ = tokio::time::timeout(random.up_to(Duration::from_millis(3)), zero).await;
        assert!(site.processes().len() <= 1);
    }
    site.running(&target).await;
    assert_eq!(site.processes().len(), 1);
    assert!(!site.files(&target).join("doubled").exists());
    let old = Target { ..target.clone() };
    site.backend.destroy(&site.cx, &old, DataDisposition::Delete).await.unwrap();
    site.until_absent(&old).await;
    eventually(|| site.processes().is_empty()).await;
}
