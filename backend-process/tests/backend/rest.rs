//! Sleeping, waking, updating and stopping.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use provisioner_core::{
    ErrorKind, Provisioner,
    types::{Bound, DataDisposition, DataSource, Generation, Observed, Phase},
};

use crate::support::{SOON, Site, change, deaf, eventually, get};

#[tokio::test(flavor = "multi_thread")]
async fn data_and_port_survive_sleep_suspension_update_and_a_new_control_plane() {
    let mut site = Site::new();
    let mut target = site.target(&[]);
    let first = site.running(&target).await;
    for round in 2..5 {
        match round {
            2 => site.backend.scale_to_zero(&site.cx, &target).await.unwrap(),
            3 => site.backend.suspend(&site.cx, &target).await.unwrap(),
            _ => Observed::Absent,
        };
        match round {
            2 => site.until_phase(&target, Phase::Zero).await,
            3 => site.until_phase(&target, Phase::Suspended).await,
            _ => first.clone(),
        };
        if round < 4 {
            assert!(site.processes().is_empty());
            site.restart();
            assert!(site.observe(&target).await.phase().unwrap().is_asleep());
        }
        target.generation = target.generation.next();
        change(&mut target, |spec| {
            spec.environment.insert("ROUND".parse().unwrap(), round.to_string());
        });
        if round < 4 {
            site.backend.resume(&site.cx, &target).await.unwrap();
        } else {
            let seen = site.backend.create(&site.cx, &target).await.unwrap();
            assert_eq!(seen.phase(), Some(Phase::Provisioning), "an update");
        }
        let seen = site.running(&target).await;
        assert_eq!((seen.generation, &seen.endpoint), (target.generation, &first.endpoint));
        assert!(get(&seen, "/environment").contains(&format!("ROUND={round}\n")));
        assert_eq!(get(&seen, "/starts").lines().count(), round);
        assert_eq!(site.processes().len(), 1);
    }
    assert!(!site.files(&target).join("doubled").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_refused_and_touches_nothing() {
    let site = Site::new();
    let mut target = site.target(&[]);
    target.generation = Generation(5);
    site.running(&target).await;
    for verb in ["create", "resume"] {
        let old = provisioner_core::types::Target { generation: Generation(4), ..target.clone() };
        let error = match verb {
            "create" => site.backend.create(&site.cx, &old).await,
            _ => site.backend.resume(&site.cx, &old).await,
        }
        .unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Conflict, verb));
    }
    assert_eq!(site.running(&target).await.generation, Generation(5));
    assert_eq!(site.starts(&target), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_grace_the_whole_group_is_killed() {
    let site = Site::new();
    let mut target = site.target(&[("GRANDCHILD", "1")]);
    let grace = Duration::from_secs(5);
    change(&mut target, |spec| {
        spec.workload.command = deaf();
        spec.workload.stop_grace_seconds = 5;
    });
    site.running(&target).await;
    assert_eq!(site.processes().len(), 2);
    let begin = Instant::now();
    let seen = site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    assert!(begin.elapsed() < grace - Duration::from_secs(1), "a verb does not wait");
    let Observed::Present(seen) = seen else { panic!("gone") };
    assert_eq!((seen.phase, seen.reason.unwrap().code.as_str()), (Phase::Running, "stopping"));
    assert!(seen.again.is_some());
    site.until_phase(&target, Phase::Zero).await;
    assert!(begin.elapsed() >= grace, "the grace is given");
    assert!(site.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn descendants_of_a_dead_leader_end_before_the_next_start() {
    let mut site = Site::new();
    let target = site.target(&[("GRANDCHILD", "1")]);
    site.running(&target).await;
    let grandchild: i32 = fs::read_to_string(site.files(&target).join("grandchild")).unwrap().parse().unwrap();
    let leader = site.processes().into_iter().find(|pid| *pid != grandchild).unwrap();
    // Somebody who was there would have ended the other one at once.
    site.backend.shutdown().await;
    rustix::process::kill_process(rustix::process::Pid::from_raw(leader).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    eventually(|| site.processes() == [grandchild]).await;
    site.restart();
    site.backend.create(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Running).await;
    let now = site.processes();
    assert!(now.len() == 2 && !now.contains(&grandchild), "{now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_verb_may_follow_any_other_while_a_stop_is_in_progress() {
    let site = Site::new();
    let mut target = site.target(&[]);
    change(&mut target, |spec| {
        spec.workload.command = deaf();
        spec.workload.stop_grace_seconds = 1;
    });
    site.running(&target).await;
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    assert_eq!(site.backend.create(&site.cx, &target).await.unwrap().phase(), Some(Phase::Provisioning));
    assert_eq!(site.backend.create(&site.cx, &target).await.unwrap().phase(), Some(Phase::Provisioning));
    site.until_phase(&target, Phase::Running).await;
    assert_eq!(site.starts(&target), 2);
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.backend.suspend(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Suspended).await;
    site.running(&target).await;
    target.generation = target.generation.next();
    site.backend.create(&site.cx, &target).await.unwrap();
    let seen = site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    assert_eq!(seen.phase(), Some(Phase::Destroying));
    assert_eq!(site.backend.create(&site.cx, &target).await.unwrap().phase(), Some(Phase::Destroying));
    site.until_absent(&target).await;
    assert!(site.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_on_what_is_absent_succeed_and_make_nothing() {
    let site = Site::new();
    let target = site.target(&[]);
    let (backend, cx) = (&site.backend, &site.cx);
    assert_eq!(backend.suspend(cx, &target).await.unwrap(), Observed::Absent);
    assert_eq!(backend.scale_to_zero(cx, &target).await.unwrap(), Observed::Absent);
    assert_eq!(backend.resume(cx, &target).await.unwrap(), Observed::Absent);
    assert_eq!(backend.destroy(cx, &target, DataDisposition::Delete).await.unwrap(), Observed::Absent);
    backend.delete_data(cx, target.data.id()).await.unwrap();
    assert!(backend.maintain(cx, false).await.unwrap().is_empty());
    assert!(site.all_files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn destroy_leaves_no_process_and_no_folder() {
    let site = Site::new();
    let target = site.target(&[("GRANDCHILD", "1")]);
    site.running(&target).await;
    let destroys: Vec<_> = (0..4).map(|_| site.backend.destroy(&site.cx, &target, DataDisposition::Delete)).collect();
    for seen in futures::future::join_all(destroys).await {
        assert!(matches!(seen.unwrap().phase(), Some(Phase::Destroying) | None));
    }
    site.until_absent(&target).await;
    assert!(site.processes().is_empty());
    assert!(site.list().await.is_empty());
    assert!(site.backend.maintain(&site.cx, true).await.unwrap().is_empty());
    let left: Vec<_> = site.all_files().into_iter().map(|(path, _)| path).collect();
    assert!(left.iter().all(|path| path.ends_with(".lock") || path.ends_with(".last")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_deleted_by_outsiders_does_not_hide_its_process() {
    let site = Site::new();
    let target = site.target(&[]);
    site.running(&target).await;
    site.delete_instance_folder(&target);
    assert_eq!(site.observe(&target).await.phase(), Some(Phase::Failed));
    site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    site.until_absent(&target).await;
    eventually(|| site.processes().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destroy_of_what_outsiders_deleted_gives_its_port_back() {
    let ways = [
        ("running", DataDisposition::Delete),
        ("asleep", DataDisposition::Delete),
        ("asleep", DataDisposition::Retain),
        ("without its record", DataDisposition::Delete),
    ];
    for (state, data) in ways {
        let site = Site::new();
        let (target, other) = (site.target(&[]), site.target_called("other"));
        site.running(&target).await;
        site.running(&other).await;
        if state != "running" {
            site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
            site.until_phase(&target, Phase::Zero).await;
        }
        if state == "without its record" {
            fs::remove_file(site.instance_folder(&target).join("record.json")).unwrap();
        } else {
            site.delete_instance_folder(&target);
        }
        assert_eq!(site.port_owners().len(), 2, "{state}");
        site.backend.destroy(&site.cx, &target, data).await.unwrap();
        site.until_absent(&target).await;
        let owners = site.port_owners();
        assert!(owners.len() == 1 && owners[0].contains("other"), "{state}: {owners:?}");
        assert!(site.backend.maintain(&site.cx, true).await.unwrap().is_empty(), "{state}");
        assert_eq!(site.files(&target).exists(), data == DataDisposition::Retain, "{state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_product_leaves_behind_ends_with_it_and_so_does_its_log() {
    for adopted in [false, true] {
        let mut site = Site::with(|config| config.log_mib_max = 1);
        let mut target = site.target(&[]);
        // It prints more than a log may hold, and leaves somebody behind who has the log too.
        let script = "(sleep 1000 &); \"$0\"; yes | head -c 3000000; exit 3";
        change(&mut target, |spec| {
            spec.workload.command = ["/bin/sh", "-c", script, &crate::support::PRODUCT].map(Into::into).into();
        });
        let seen = site.running(&target).await;
        assert_eq!(site.processes().len(), 3);
        if adopted {
            site.backend.shutdown().await;
        }
        // Its own end is cut off before the answer.
        get(&seen, "/exit");
        if adopted {
            eventually(|| site.processes().len() == 1).await;
            site.restart();
        }
        let failed = site.until_phase(&target, Phase::Failed).await;
        assert_eq!(failed.reason.unwrap().code, "exited");
        eventually(|| site.processes().is_empty()).await;
        // A log that nobody watched is cut when it is written next.
        let log = site.instance_folder(&target).join("log");
        eventually(|| adopted || fs::metadata(&log).is_ok_and(|log| log.len() <= 1 << 20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_whose_first_thread_has_ended_lives_and_is_stopped() {
    for grouped in [true, false] {
        let site = Site::with(|config| config.cgroup = config.cgroup.take().filter(|_| grouped));
        let target = site.target(&[("FIRST_THREAD_ENDS", "1")]);
        let seen = site.running(&target).await;
        let pid = site.process(&target);
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        eventually(|| stat().contains(") Z ")).await;
        assert_eq!(get(&seen, "/starts").lines().count(), 1, "and it goes on");
        assert_eq!(site.observe(&target).await.phase(), Some(Phase::Running));
        site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
        site.until_phase(&target, Phase::Zero).await;
        assert!(TcpStream::connect(seen.endpoint.as_ref().unwrap().as_str().trim_start_matches("http://")).is_err());
        site.running(&target).await;
        assert!(!site.files(&target).join("doubled").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_folder_and_control_plane_are_gone_is_found_by_what_it_runs_on() {
    for told_by_more in [true, false] {
        for next in ["an heir", "the same again", "suspend", "destroy, retaining", "destroy, deleting", "delete data"] {
            let mut site = Site::with(|config| {
                if !told_by_more {
                    (config.users, config.cgroup) = (None, None);
                }
            });
            let target = site.target(&[]);
            site.running(&target).await;
            let old = site.processes();
            site.delete_instance_folder(&target);
            site.restart();
            let grouped = site.backend.capabilities().isolation.processes == Bound::Instance && told_by_more;
            let seen = site.observe(&target).await.phase();
            assert_eq!(seen, grouped.then_some(Phase::Failed), "nothing but its group names it any more");
            let data = target.data.id().clone();
            let expected = match next {
                // What nothing names is found by its data, and a suspension tells none.
                "suspend" if !grouped => continue,
                "suspend" => {
                    site.backend.suspend(&site.cx, &target).await.unwrap();
                    site.until_absent(&target).await;
                    assert!(site.files(&target).exists());
                    0
                }
                "an heir" => {
                    let mut heir = site.target(&[]);
                    heir.data = DataSource::Existing(data);
                    site.running(&heir).await;
                    old.len()
                }
                // As after a start that was cut before anybody was told of it.
                "the same again" => {
                    assert!(matches!(target.data, DataSource::Fresh(_)));
                    site.running(&target).await;
                    old.len()
                }
                "destroy, retaining" | "destroy, deleting" => {
                    let retain = next == "destroy, retaining";
                    let data = if retain { DataDisposition::Retain } else { DataDisposition::Delete };
                    site.backend.destroy(&site.cx, &target, data).await.unwrap();
                    site.until_absent(&target).await;
                    assert_eq!(site.files(&target).exists(), retain);
                    0
                }
                _ => {
                    site.backend.delete_data(&site.cx, &data).await.unwrap();
                    assert!(!site.files(&target).exists());
                    0
                }
            };
            let now = site.processes();
            assert!(now.iter().all(|pid| !old.contains(pid)), "{next}: {old:?} {now:?}");
            assert_eq!(now.len(), expected, "{next}");
        }
    }
}

/// A folder that takes a while to delete, and a small one that goes before it.
fn put_in_the_way(site: &Site, before: &Path, large: &Path, files: usize) {
    let original = site.root().join(".original");
    fs::write(&original, "").unwrap();
    fs::create_dir_all(large).unwrap();
    for file in 0..files {
        // As many links to one file as there may be on any file system.
        let folder = large.join((file / 10_000).to_string());
        if file % 10_000 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::hard_link(&original, folder.join(file.to_string())).unwrap();
    }
    fs::create_dir_all(before).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_deletes_without_keeping_others_from_the_root() {
    let site = Site::new();
    let target = site.target(&[]);
    site.running(&target).await;
    let removed = site.root().join("plane/removed");
    // In order of their names.
    let (before, large) = (removed.join("a"), removed.join("b"));
    let mut files = 10_000;
    loop {
        put_in_the_way(&site, &before, &large, files);
        let maintain = {
            let (backend, cx) = (site.backend.clone(), site.cx.clone());
            tokio::spawn(async move { backend.maintain(&cx, false).await })
        };
        let (before, large, lock) = (before.clone(), large.clone(), site.root().join(".lock"));
        let (free, deleting) = tokio::task::spawn_blocking(move || {
            let begin = Instant::now();
            while before.exists() {
                assert!(begin.elapsed() < SOON, "nothing is deleted");
            }
            let lock = fs::File::open(lock).unwrap();
            (lock.try_lock().is_ok(), large.exists())
        })
        .await
        .unwrap();
        let actions = maintain.await.unwrap().unwrap();
        assert_eq!(actions, ["delete the rest of a", "delete the rest of b"]);
        assert_eq!(fs::read_dir(&removed).unwrap().count(), 0);
        if deleting {
            assert!(free, "the root was locked while {files} files were deleted");
            return;
        }
        // Too fast to be seen.
        files *= 2;
        assert!(files < 1_000_000, "not seen to delete");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cut_removal_left_is_in_nobodys_way() {
    let site = Site::new();
    let target = site.target(&[]);
    let left = site.root().join("plane/removed").join(target.data.id().as_str());
    for how in ["destroy", "delete data", "upkeep"] {
        fs::create_dir_all(left.join("files")).unwrap();
        fs::write(left.join("files/old"), "").unwrap();
        site.running(&target).await;
        match how {
            "upkeep" => {
                let actions = site.backend.maintain(&site.cx, false).await.unwrap();
                assert_eq!(actions, [format!("delete the rest of {}", target.data.id())]);
                assert!(site.files(&target).exists());
                assert_eq!(site.observe(&target).await.phase(), Some(Phase::Running));
            }
            _ => {
                let data = if how == "destroy" { DataDisposition::Delete } else { DataDisposition::Retain };
                site.backend.destroy(&site.cx, &target, data).await.unwrap();
                site.until_absent(&target).await;
                site.backend.delete_data(&site.cx, target.data.id()).await.unwrap();
                assert!(!site.files(&target).exists());
            }
        }
        assert!(!left.exists(), "{how}");
    }
}

/// Living processes of a user, as the kernel tells.
fn processes_of(user: u32) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        field("Uid:") == Some(&user.to_string()) && field("State:") != Some("Z")
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_left_everything_but_its_user_is_stopped_with_the_others() {
    for how in ["zero", "destroy", "destroy without a folder", "delete data", "take up"] {
        let mut site = Site::with(|config| config.cgroup = None);
        if !site.backend.capabilities().isolation.users {
            println!("not tried: only root can run instances as users of their own");
            return;
        }
        let mut target = site.target(&[]);
        // Another session, no inherited file, another environment: nothing else tells of it any more.
        let script = "(setsid env -i sh -c 'exec 0<&- 1>&- 2>&- 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; sleep 1000' &); \
            exec \"$0\"";
        change(&mut target, |spec| {
            spec.workload.command = ["/bin/bash", "-c", script, &crate::support::PRODUCT].map(Into::into).into();
            spec.workload.stop_grace_seconds = 1;
        });
        let user: u32 = {
            let seen = site.running(&target).await;
            let status = get(&seen, "/status");
            let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let sleeps = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.starts_with(b"sleep"));
        eventually(|| processes_of(user).iter().any(sleeps)).await;
        assert_eq!(site.processes(), [site.process(&target)], "the other one is not known by its environment");
        match how {
            "zero" => {
                site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
                site.until_phase(&target, Phase::Zero).await;
            }
            "destroy" => {
                site.backend.destroy(&site.cx, &target, DataDisposition::Retain).await.unwrap();
                site.until_absent(&target).await;
            }
            _ => {
                site.backend.shutdown().await;
                site.delete_instance_folder(&target);
                site.restart();
                match how {
                    "delete data" => site.backend.delete_data(&site.cx, target.data.id()).await.unwrap(),
                    "take up" => {
                        let (old, mut heir) = (processes_of(user), site.target(&[]));
                        heir.data = DataSource::Existing(target.data.id().clone());
                        site.running(&heir).await;
                        // A late word about the old one does the new one no harm.
                        site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
                        let now = processes_of(user);
                        assert!(now == [site.process(&heir)] && !old.contains(&now[0]), "{old:?} {now:?}");
                        continue;
                    }
                    _ => {
                        site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
                    }
                }
            }
        }
        assert_eq!(processes_of(user), Vec::<i32>::new(), "{how}");
    }
}
