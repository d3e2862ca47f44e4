//! Starting, readiness, and what goes wrong there.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
    time::Instant,
};

use futures::StreamExt;
use provisioner_core::{
    Chain, ErrorKind, Provisioner, Retry,
    types::{Generation, Observed, Phase, Target},
};

use crate::support::{PRODUCT, SOON, Site, change, get};

fn code(seen: &provisioner_core::types::Present) -> &str {
    seen.reason.as_ref().map_or("", |reason| reason.code.as_str())
}

fn message(seen: &provisioner_core::types::Present) -> &str {
    seen.reason.as_ref().map_or("", |reason| reason.message.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn create_returns_before_it_is_ready_and_then_it_runs() {
    let site = Site::new();
    let target = site.target(&[("READY_AFTER_MS", "300"), ("GREETING", "hello")]);
    assert_eq!(site.observe(&target).await, Observed::Absent);
    let seen = site.backend.create(&site.cx, &target).await.unwrap();
    assert_eq!(seen.phase(), Some(Phase::Provisioning));
    let seen = site.until_phase(&target, Phase::Running).await;
    assert_eq!((seen.generation, seen.incarnation), (Generation::FIRST, target.incarnation));
    let environment = get(&seen, "/environment");
    let mut names: Vec<_> = environment.lines().map(|line| line.split('=').next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["DATA_PATH", "GREETING", "PATH", "PORT", "READY_AFTER_MS"], "and nothing of ours");
    assert!(environment.contains(&format!("DATA_PATH={}\n", site.files(&target).display())));
    assert_eq!(get(&seen, "/folder"), site.files(&target).canonicalize().unwrap().display().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_creates_at_once_on_two_backends_make_one_thing() {
    let site = Site::new();
    let target = site.target(&[]);
    let other = site.another_backend();
    let creates: Vec<_> = (0..16)
        .map(|i| {
            let backend = if i % 2 == 0 { site.backend.clone() } else { other.clone() };
            let (cx, target) = (site.cx.clone(), target.clone());
            tokio::spawn(async move { backend.create(&cx, &target).await })
        })
        .collect();
    for create in creates {
        let seen = create.await.unwrap().unwrap();
        assert!(matches!(seen.phase(), Some(Phase::Provisioning | Phase::Running)), "{seen:?}");
    }
    site.running(&target).await;
    assert_eq!((site.processes().len(), site.starts(&target)), (1, 1));
    assert!(!site.files(&target).join("doubled").exists());
    // The process itself has the lock, not who started it.
    let lock = fs::File::open(site.instance_folder(&target).join("lock")).unwrap();
    assert!(lock.try_lock().is_err());
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    assert!(lock.try_lock().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_at_start_is_told_with_its_status_and_last_words() {
    let mut site = Site::new();
    let target = site.target(&[
        ("EXIT_CODE", "7"),
        ("PRINT", "license canary-value is not valid\nbye"),
        ("KEY", "canary-value"),
    ]);
    site.backend.create(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Failed).await;
    assert_eq!(code(&seen), "exited");
    assert!(message(&seen).contains("status 7"), "{}", message(&seen));
    assert!(!format!("{seen:?}").contains("canary"), "{}", message(&seen));
    site.restart();
    assert_eq!(site.observe(&target).await.present(), Some(&seen), "it is remembered");
    assert_eq!(site.starts(&target), 1, "nothing is started again by itself");
    site.backend.create(&site.cx, &target).await.unwrap();
    crate::support::eventually(|| site.starts(&target) == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_quoted() {
    let site = Site::new();
    // The line is in no variable as a whole.
    let mut target = site.target(&[]);
    change(&mut target, |spec| {
        spec.workload.command = ["/bin/sh", "-c", "echo no database; exit 9"].map(Into::into).into();
    });
    site.backend.create(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Failed).await;
    assert!(message(&seen).contains("status 9") && message(&seen).contains("no database"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_is_not_ready_in_time_is_stopped_and_said_why() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = busy.local_addr().unwrap().port().to_string();
    drop(busy);
    for (environment, timeout, why) in [
        (("LISTEN", "never"), 1, "connection refused on port"),
        (("LISTEN", elsewhere.as_str()), 1, "connection refused on port"),
        // It has to come so far as to answer.
        (("STATUS", "500"), 4, "status 500 on /healthz"),
    ] {
        let site = Site::new();
        let mut target = site.target(&[environment]);
        change(&mut target, |spec| spec.workload.start_timeout_seconds = timeout);
        site.backend.create(&site.cx, &target).await.unwrap();
        let seen = site.until_phase(&target, Phase::Failed).await;
        assert_eq!(code(&seen), "start-up-timeout");
        assert!(message(&seen).contains(why), "{}", message(&seen));
        crate::support::eventually(|| site.processes().is_empty()).await;
        assert_eq!(code(site.observe(&target).await.present().unwrap()), "start-up-timeout");
        assert_eq!(site.starts(&target), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_run_is_the_specs_fault_and_leaves_nothing() {
    let site = Site::new();
    let script = site.root().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, executable).unwrap();
    for program in ["/no/such/program", "no-such-program", "/etc/passwd", "/tmp", script.to_str().unwrap()] {
        let mut target = site.target(&[]);
        change(&mut target, |spec| spec.workload.command = vec![program.into()]);
        let error = site.backend.create(&site.cx, &target).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::InvalidSpec, Retry::Never), "{program}");
        assert_eq!(error.field(), Some("workload.command[0]"), "{program}");
        assert_eq!((error.operation(), error.instance()), ("create", Some(&target.id)));
        assert!(error.customer_message().contains(program), "{}", error.customer_message());
        assert_eq!(site.observe(&target).await, Observed::Absent, "{program}");
        assert!(site.list().await.is_empty(), "{program}");
    }
    assert!(site.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_update_does_not_stop_what_runs() {
    let site = Site::new();
    let mut target = site.target(&[]);
    site.running(&target).await;
    target.generation = target.generation.next();
    change(&mut target, |spec| spec.workload.command = vec!["/no/such/program".into()]);
    assert_eq!(site.backend.create(&site.cx, &target).await.unwrap_err().kind(), ErrorKind::InvalidSpec);
    let seen = site.until_phase(&target, Phase::Running).await;
    assert_eq!((seen.generation, site.starts(&target)), (Generation::FIRST, 1));
}

#[tokio::test]
async fn a_spec_is_refused_naming_the_field() {
    let site = Site::new();
    let refused = |field: &str, edit: &dyn Fn(&mut provisioner_core::types::InstanceSpec)| {
        let mut target = site.target(&[]);
        change(&mut target, edit);
        let error = site.backend.validate(&target.spec, None).unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)));
    };
    refused("workload.command", &|spec| spec.workload.command.clear());
    refused("workload.command[0]", &|spec| spec.workload.command = vec!["./product".into()]);
    for name in ["PORT", "DATA_PATH"] {
        refused(&format!("environment.{name}"), &|spec| {
            spec.environment.insert(name.parse().unwrap(), "1".into());
        });
        refused(&format!("secrets.{name}"), &|spec| {
            spec.secrets.insert(name.parse().unwrap(), "env:X".parse().unwrap());
        });
    }
    refused("workload.health_path", &|spec| spec.workload.health_path = "/<x>".into());
    refused("size.memory_mib", &|spec| spec.size.memory_mib = 0);
}

/// Somebody who listens where an instance should, and answers like one. Gone when dropped.
struct Squatter(Arc<TcpListener>);

impl Squatter {
    fn at(address: (&str, u16)) -> Self {
        let listener = Arc::new(TcpListener::bind(address).unwrap());
        let own = Arc::downgrade(&listener);
        std::thread::spawn(move || {
            // What nobody holds any more ends with the connection that `drop` makes.
            while let Some(listener) = own.upgrade() {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Self(listener)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let address = self.0.local_addr().unwrap();
        self.0 = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let _ = std::net::TcpStream::connect(address);
    }
}

fn port(site: &Site, target: &Target) -> u16 {
    let record = fs::read(site.instance_folder(target).join("record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["port"].as_u64().unwrap().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_port_somebody_took_while_it_slept_wakes_on_another() {
    let site = Site::new();
    let target = site.target(&[]);
    site.running(&target).await;
    let had = port(&site, &target);
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    let _squatter = Squatter::at(("127.0.0.1", had));
    site.backend.resume(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Running).await;
    let has = port(&site, &target);
    assert_ne!(has, had);
    assert_eq!(seen.endpoint.as_ref().unwrap().as_str(), format!("http://127.0.0.1:{has}"));
    assert_eq!(get(&seen, "/starts").lines().count(), 2);
    assert_eq!(site.port_owners().len(), 1, "the other one is given back");
}

/// The product is held before it listens, so whoever takes its port meanwhile is there first.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_answer_does_not_make_an_instance_ready() {
    for (users, groups) in [(true, true), (true, false), (false, true), (false, false)] {
        let with = format!("users: {users}, groups: {groups}");
        for adopted in [false, true] {
            let mut site = Site::with(|config| {
                config.users = config.users.take().filter(|_| users);
                config.cgroup = config.cgroup.take().filter(|_| groups);
            });
            let mut target = site.target(&[("LISTEN", "never")]);
            change(&mut target, |spec| spec.workload.start_timeout_seconds = 600);
            site.backend.create(&site.cx, &target).await.unwrap();
            let had = port(&site, &target);
            if adopted {
                site.backend.shutdown().await;
                site.restart();
            }
            let _squatter = Squatter::at(("127.0.0.1", had));
            let seen = site.until(&target, |seen| seen.phase() != Some(Phase::Provisioning)).await;
            let seen = seen.present().unwrap();
            assert_eq!((seen.phase, code(seen)), (Phase::Failed, "port-taken"), "{with}");
            assert!(message(seen).contains(&had.to_string()), "{with}: {}", message(seen));
            crate::support::eventually(|| site.processes().is_empty()).await;
            // The next start has another, and one of its processes that listens is as good as the first.
            target.generation = target.generation.next();
            change(&mut target, |spec| {
                spec.environment.clear();
                spec.workload.command = ["/bin/sh", "-c", "\"$0\"; true", &PRODUCT].map(Into::into).into();
            });
            let seen = site.running(&target).await;
            assert_ne!(port(&site, &target), had, "{with}");
            assert_ne!(get(&seen, "/starts"), "", "{with}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_is_noticed_at_once_through_the_watch() {
    let site = Site::new();
    let target = site.target(&[]);
    site.running(&target).await;
    let other = provisioner_core::OpContext::new("other".parse().unwrap());
    let (mut ours, mut theirs) = (site.backend.watch(&site.cx), site.backend.watch(&other));
    let pid = site.processes()[0];
    let begin = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let id = tokio::time::timeout(SOON, ours.next()).await.unwrap().unwrap();
    println!("noticed after {:?}", begin.elapsed());
    assert_eq!(id, target.id);
    // It may have been the news that it was ready: what was lost or late costs time, never truth.
    let seen = site.until_phase(&target, Phase::Failed).await;
    assert_eq!((seen.phase, code(&seen)), (Phase::Failed, "exited"));
    assert!(message(&seen).contains("signal 9"), "{}", message(&seen));
    assert!(futures::poll!(theirs.next()).is_pending(), "another control plane's");
}

#[tokio::test]
async fn a_root_that_cannot_be_written_is_a_clear_error() {
    let site = Site::new();
    let file = site.root().join("file");
    fs::write(&file, "").unwrap();
    let backend = backend_process::ProcessConfig::new(file.join("below")).build().unwrap();
    let target = site.target(&[]);
    let error = backend.create(&site.cx, &target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(Chain(&error).to_string().contains("Not a directory"), "{}", Chain(&error));
    assert!(!error.customer_message().contains("below"));
    assert!(backend.observe(&site.cx, &target).await.is_err(), "could not look is not absent");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_waits_of_a_call_together_end_within_the_time_for_one() {
    let site = Site::new();
    // It is known to be a root.
    site.backend.identity(&site.cx).await.unwrap();
    let target = site.target(&[]);
    let lock = fs::OpenOptions::new().append(true).open(site.root().join(".lock")).unwrap();
    lock.try_lock().unwrap();
    // It needs the lock twice: to claim, and to give back what was claimed.
    let begin = Instant::now();
    let error = site.backend.create(&site.cx, &target).await.unwrap_err();
    let call_max = site.backend.capabilities().call_max;
    assert!(begin.elapsed() < call_max, "{:?}", begin.elapsed());
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Backoff), "{error}");
    drop(lock);
    site.running(&target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_noted_of_a_ready_instance_is_noted_later() {
    let site = Site::new();
    let mut target = site.target(&[]);
    let wait = "while [ ! -e go ]; do sleep 0.01; done; exec \"$0\"";
    change(&mut target, |spec| spec.workload.command = ["/bin/sh", "-c", wait, &PRODUCT].map(Into::into).into());
    site.backend.create(&site.cx, &target).await.unwrap();
    // What is no file cannot be written.
    let ready = site.instance_folder(&target).join("ready");
    fs::create_dir(&ready).unwrap();
    let mut changes = site.backend.watch(&site.cx);
    fs::write(site.files(&target).join("go"), "").unwrap();
    // Told after the first try.
    assert_eq!(tokio::time::timeout(SOON, changes.next()).await.unwrap(), Some(target.id.clone()));
    assert_eq!(site.observe(&target).await.phase(), Some(Phase::Running));
    fs::remove_dir(&ready).unwrap();
    let pid = format!("{} ", site.process(&target));
    crate::support::eventually(|| fs::read_to_string(&ready).is_ok_and(|text| text.starts_with(&pid))).await;
}
