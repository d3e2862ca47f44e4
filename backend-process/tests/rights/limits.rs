//! What an instance may use, what happens when it wants more, and what is told of it.

use std::{fs, io::Write, path::PathBuf, process::Command, time::Duration};

use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{Bound, DataDisposition, Observed, Phase, Present, Reason, Target},
};

use crate::support::{Site, change, eventually, get};

/// The folders of a target's control group, one for each hierarchy.
fn groups(target: &Target) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for path in entries.filter(|entry| entry.file_type().is_ok_and(|what| what.is_dir())).map(|entry| entry.path())
        {
            if path.to_string_lossy().contains(&target.incarnation.to_string()) {
                found.push(path);
            } else {
                folders.push(path);
            }
        }
    }
    found
}

/// The value of the first of these files that is there, in whichever hierarchy.
fn value(target: &Target, files: &[&str]) -> String {
    let paths = groups(target).into_iter().flat_map(|folder| files.iter().map(move |file| folder.join(file)));
    paths.filter_map(|path| fs::read_to_string(path).ok()).next().unwrap_or_default().trim().to_owned()
}

fn sized(site: &Site, cpu_millis: u32, memory_mib: u32) -> Target {
    let mut target = site.target(&[]);
    change(&mut target, |spec| {
        spec.size.cpu_millis = cpu_millis;
        spec.size.memory_mib = memory_mib;
    });
    target
}

fn reason(seen: &Present) -> Reason {
    seen.reason.clone().unwrap_or_else(|| Reason::new("", ""))
}

pub(crate) async fn an_instance_has_a_group_of_its_size_for_as_long_as_it_runs() {
    let site = Site::with(|config| config.processes_max = 77);
    let target = sized(&site, 500, 64);
    site.running(&target).await;
    assert_eq!(value(&target, &["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    assert_eq!(value(&target, &["pids.max"]), "77");
    // CPU time is bounded once it is ready.
    eventually(|| {
        let quota = value(&target, &["cpu.max", "cpu.cfs_quota_us"]);
        quota == "50000" || quota == "50000 100000"
    })
    .await;
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    assert_eq!(groups(&target), Vec::<PathBuf>::new(), "asleep it has none");
    site.backend.resume(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Running).await;
    assert!(!groups(&target).is_empty());
    site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    site.until_absent(&target).await;
    assert_eq!(groups(&target), Vec::<PathBuf>::new());
}

pub(crate) async fn memory_that_is_used_up_is_the_reason_that_is_told() {
    let site = Site::new();
    let target = sized(&site, 1000, 48);
    let seen = site.running(&target).await;
    assert_eq!(get(&seen, "/take?8"), "done");
    get(&seen, "/take?200");
    let failed = site.until_phase(&target, Phase::Failed).await;
    let reason = reason(&failed);
    assert_eq!(reason.code, "out-of-memory", "{reason}");
    assert!(reason.message.contains("48 MiB"), "{reason}");
    // The next start has its memory anew.
    site.backend.create(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Running).await;
    get(&seen, "/exit");
    let failed = site.until_phase(&target, Phase::Failed).await;
    assert_eq!(failed.reason.as_ref().unwrap().code, "exited");
}

pub(crate) async fn another_instance_is_not_hurt_by_one_that_wants_too_much() {
    let site = Site::with(|config| config.processes_max = 20);
    let (greedy, other) = (sized(&site, 1000, 48), {
        let mut other = sized(&site, 1000, 48);
        other.id = "other".parse().unwrap();
        other
    });
    let (greedy_seen, other_seen) = (site.running(&greedy).await, site.running(&other).await);
    let started: usize = get(&greedy_seen, "/fork?100").parse().unwrap();
    assert!((1..20).contains(&started), "{started}");
    assert_eq!(get(&other_seen, "/fork?5"), "5");
    get(&greedy_seen, "/take?200");
    let failed = site.until_phase(&greedy, Phase::Failed).await;
    let reason = reason(&failed);
    assert_eq!(reason.code, "out-of-memory", "{reason}");
    assert_eq!(site.observe(&other).await.phase(), Some(Phase::Running));
    // Those that it had started are gone before it runs again.
    site.backend.create(&site.cx, &greedy).await.unwrap();
    site.until_phase(&greedy, Phase::Running).await;
    let group = value(&greedy, &["cgroup.procs"]);
    assert_eq!(group.lines().count(), 1, "{group}");
}

pub(crate) async fn where_there_are_no_groups_each_process_is_bounded() {
    let site = Site::with(|config| config.cgroup = None);
    let isolation = site.backend.capabilities().isolation;
    assert_eq!((isolation.memory, isolation.cpu), (Bound::Process, Bound::None));
    let target = sized(&site, 1000, 64);
    let seen = site.running(&target).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", site.process(&target))).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_ascii_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max data size"), (64 << 20).to_string());
    assert_eq!(limit("Max core file size"), "0");
    if isolation.users {
        assert_eq!(limit("Max processes"), site.config.processes_max.to_string());
    }
    assert_eq!(get(&seen, "/take?8"), "done");
    get(&seen, "/take?200");
    let failed = site.until_phase(&target, Phase::Failed).await;
    assert_eq!(reason(&failed).code, "exited", "it was refused the memory, and gave up");
}

pub(crate) async fn what_it_uses_is_told_while_it_runs() {
    for grouped in [true, false] {
        let site = Site::with(|config| config.cgroup = config.cgroup.take().filter(|_| grouped));
        let target = sized(&site, 4000, 256);
        let seen = site.running(&target).await;
        let before = site.observe(&target).await.present().unwrap().usage.unwrap();
        get(&seen, "/spin?200");
        get(&seen, "/take?32");
        let after = site.observe(&target).await.present().unwrap().usage.unwrap();
        assert!(after.cpu >= before.cpu + Duration::from_millis(20), "{before:?} {after:?}");
        assert!(after.memory_bytes >= before.memory_bytes + (30 << 20), "{before:?} {after:?}");
        site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
        assert_eq!(site.until_phase(&target, Phase::Zero).await.usage, None);
    }
}

pub(crate) async fn a_process_that_left_everything_but_its_group_is_stopped_with_the_others() {
    let site = Site::new();
    let mut target = site.target(&[]);
    // Another session, no inherited file, another environment: nothing tells of it any more.
    let script =
        "(setsid env -i sh -c 'exec 0<&- 1>&- 2>&- 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; sleep 1000' &); exec \"$0\"";
    change(&mut target, |spec| {
        spec.workload.command = ["/bin/bash", "-c", script, &crate::support::PRODUCT].map(Into::into).into();
    });
    site.running(&target).await;
    let members = || value(&target, &["cgroup.procs"]).lines().count();
    eventually(|| members() >= 2).await;
    let pids: Vec<i32> = value(&target, &["cgroup.procs"]).lines().map(|pid| pid.parse().unwrap()).collect();
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    for pid in pids {
        assert!(!PathBuf::from(format!("/proc/{pid}/exe")).exists(), "{pid} lives");
    }
}

pub(crate) async fn what_runs_without_a_folder_is_ended_by_upkeep() {
    let mut site = Site::new();
    let target = site.target(&[]);
    site.running(&target).await;
    let pid = site.process(&target);
    site.backend.shutdown().await;
    site.delete_instance_folder(&target);
    // The one after it has never heard of the process.
    site.restart();
    let plan = site.backend.maintain(&site.cx, true).await.unwrap();
    assert!(plan.iter().any(|action| action.contains("acme")), "{plan:?}");
    assert!(PathBuf::from(format!("/proc/{pid}/exe")).exists(), "a plan does nothing");
    assert_eq!(site.backend.maintain(&site.cx, false).await.unwrap(), plan);
    assert!(!PathBuf::from(format!("/proc/{pid}/exe")).exists());
    assert_eq!(groups(&target), Vec::<PathBuf>::new());
    assert_eq!(site.backend.maintain(&site.cx, false).await.unwrap(), Vec::<String>::new());
}

pub(crate) async fn a_log_that_has_grown_is_turned_over() {
    let mut site = Site::with(|config| config.log_mib_max = 1);
    let target = site.target(&[]);
    let seen = site.running(&target).await;
    let folder = site.instance_folder(&target);
    let size = |name: &str| fs::metadata(folder.join(name)).map_or(0, |file| file.len());
    get(&seen, "/print?20000");
    assert!(size("log") > 2 << 20);
    // A new control plane looks at once.
    site.restart();
    site.observe(&target).await;
    eventually(|| size("log.1") == 1 << 20).await;
    eventually(|| size("log") == 0).await;
    let old = fs::read_to_string(folder.join("log.1")).unwrap();
    assert!(old.ends_with(&format!("line 19999 {}\n", "x".repeat(100))));
    get(&seen, "/print?3");
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.starts_with("line 0 x") && log.lines().count() == 3, "{log}");
}

pub(crate) async fn a_log_is_turned_over_also_while_a_product_is_not_ready() {
    let mut site = Site::with(|config| config.log_mib_max = 1);
    let mut target = site.target(&[("LISTEN", "never")]);
    change(&mut target, |spec| spec.workload.start_timeout_seconds = 600);
    site.backend.create(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Provisioning).await;
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    let folder = site.instance_folder(&target);
    let size = |name: &str| fs::metadata(folder.join(name)).map_or(0, |file| file.len());
    let print = || {
        let mut log = fs::OpenOptions::new().append(true).open(folder.join("log")).unwrap();
        log.write_all(&[b'x'; 2 << 20]).unwrap();
    };
    print();
    site.backend.resume(&site.cx, &target).await.unwrap();
    eventually(|| size("log.1") == 1 << 20 && size("log") == 0).await;
    // One that is adopted and does not answer.
    fs::remove_file(folder.join("log.1")).unwrap();
    print();
    site.restart();
    site.observe(&target).await;
    eventually(|| size("log.1") == 1 << 20 && size("log") == 0).await;
    assert_eq!(site.observe(&target).await.phase(), Some(Phase::Provisioning));
}

/// Something over a control group that may only be read. Taken away when dropped.
struct Cover(PathBuf);

impl Cover {
    fn over(group: PathBuf) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(&group).status().unwrap();
        assert!(mounted.success());
        Self(group)
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The group that those of all instances lie below, in each hierarchy.
fn base(site: &Site) -> Vec<PathBuf> {
    test_reserved::groups::folders(site.config.cgroup.as_ref().unwrap())
}

pub(crate) async fn without_the_group_that_was_promised_nothing_starts_and_it_is_tried_again() {
    let site = Site::new();
    let target = sized(&site, 1000, 64);
    site.running(&target).await;
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    let cover = Cover::over(base(&site).pop().unwrap());
    let error = site.backend.resume(&site.cx, &target).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Backoff), "{error}");
    assert!(error.to_string().contains("control group"), "{error}");
    assert_eq!(site.processes(), Vec::<i32>::new());
    let failed = site.until_phase(&target, Phase::Failed).await;
    assert_eq!(reason(&failed).code, "not-started", "{failed:?}");
    assert_eq!(groups(&target), Vec::<PathBuf>::new(), "half a group is none");
    // Nor is a new one half made.
    let other = site.target_called("other");
    site.backend.create(&site.cx, &other).await.unwrap_err();
    assert_eq!(site.observe(&other).await, Observed::Absent);
    drop(cover);
    site.running(&target).await;
    site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    site.until_absent(&target).await;
}

pub(crate) async fn memory_that_was_used_up_while_no_control_plane_ran_is_the_reason_all_the_same() {
    let mut site = Site::new();
    let target = sized(&site, 1000, 48);
    let seen = site.running(&target).await;
    let pid = site.process(&target);
    site.backend.shutdown().await;
    get(&seen, "/take?200");
    eventually(|| !PathBuf::from(format!("/proc/{pid}/exe")).exists()).await;
    for _ in 0..2 {
        site.restart();
        let failed = site.until_phase(&target, Phase::Failed).await;
        let reason = reason(&failed);
        assert_eq!(reason.code, "out-of-memory", "{reason}");
        assert!(reason.message.contains("48 MiB"), "{reason}");
    }
    // What comes after is another matter.
    let seen = site.running(&target).await;
    let pid = site.process(&target);
    site.backend.shutdown().await;
    get(&seen, "/exit");
    eventually(|| !PathBuf::from(format!("/proc/{pid}/exe")).exists()).await;
    site.restart();
    assert_eq!(reason(&site.until_phase(&target, Phase::Failed).await).code, "exited");
}

pub(crate) async fn memory_that_was_used_up_by_all_together_is_told_apart() {
    let site = Site::new();
    let target = sized(&site, 1000, 512);
    let seen = site.running(&target).await;
    for folder in base(&site) {
        for file in ["memory.max", "memory.limit_in_bytes"].map(|file| folder.join(file)) {
            if file.exists() {
                fs::write(file, (48 << 20).to_string()).unwrap();
            }
        }
    }
    get(&seen, "/take?200");
    let failed = site.until_phase(&target, Phase::Failed).await;
    let reason = reason(&failed);
    assert_eq!(reason.code, "machine-out-of-memory", "{reason}");
    site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    site.until_absent(&target).await;
}

pub(crate) async fn the_last_words_are_told_also_right_after_the_log_was_turned_over() {
    let site = Site::with(|config| config.log_mib_max = 1);
    let target = site.target(&[]);
    let seen = site.running(&target).await;
    get(&seen, "/print?20000");
    let log = site.instance_folder(&target).join("log");
    eventually(|| fs::metadata(&log).is_ok_and(|log| log.len() == 0)).await;
    get(&seen, "/exit");
    let reason = reason(&site.until_phase(&target, Phase::Failed).await);
    assert!(reason.message.contains("it last printed: ") && reason.message.contains("line 19999 xxx"), "{reason}");
}
