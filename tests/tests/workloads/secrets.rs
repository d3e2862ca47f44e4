//! A secret is known to whoever resolves it and to the process that gets it, and to nobody else.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use async_trait::async_trait;
use provisioner_core::{
    Chain, Result,
    seams::Random,
    secret::{SecretReference, SecretResolver, SecretString},
    store::InstanceFilter,
    types::VariableName,
};
use tests::{http, processes};
use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// Everything that is logged by this process.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[derive(Debug)]
struct Vault(SecretString);

#[async_trait]
impl SecretResolver for Vault {
    async fn resolve(&self, _: &SecretReference) -> Result<SecretString> {
        Ok(self.0.clone())
    }
}

/// Every file below these folders that has this text in it.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                _ => {
                    let content = fs::read(entry.path()).unwrap_or_default();
                    if content.windows(text.len()).any(|part| part == text.as_bytes()) {
                        found.push(entry.path());
                    }
                }
            }
        }
    }
    found
}

/// Everything that the control plane says about itself and its instances.
async fn everything_told(world: &World) -> String {
    let records = world.plane.store.instances(&InstanceFilter::default(), None, 100).await.unwrap();
    let events = world.plane.events(None).await;
    let mut told = format!("{:?} {records:?} {events:?} {:?}", world.plane, world.plane.listed().await);
    for record in records {
        let instance = world.plane.get(record.row.id.as_str()).await;
        let operation = world.plane.plane.operation(&record.row.created_by).await.unwrap();
        told += &format!("{instance:?} {operation:?} {:?}", ended(&operation).await);
    }
    told
}

fn assert_untold(told: &dyn fmt::Display, canary: &str) {
    let told = told.to_string();
    if let Some(at) = told.find(canary) {
        let from = (0..=at.saturating_sub(200)).rev().find(|from| told.is_char_boundary(*from)).unwrap_or(0);
        panic!("told: {}", &told[from..at]);
    }
}

#[tokio::test]
async fn a_secret_is_told_to_its_process_and_to_nobody_else() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    // For the whole process: the engine works on threads of its own. Nobody else here listens.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    tracing::trace!("begun");
    let canary = format!("canary-{:016x}", Random::from_os().bits());
    let place = Place::new(PRODUCT);
    let vault = Arc::new(Vault(canary.clone().into()));
    let plane = Plane::start(&place, Options { secrets: vault, config: config(), ..Options::default() }).await;
    let world = World { place, plane };
    let with_secret = |told: &[(&str, &str)]| {
        let mut spec = world.spec("1.0", told);
        spec.secrets.insert(VariableName::new("PASSWORD").unwrap(), "vault:db/password".parse().unwrap());
        spec
    };

    // Through the whole of a life, of one that works.
    world.running("acme", with_secret(&[])).await;
    let pid = world.place.products()[0];
    assert_eq!(processes::variable(pid, "PASSWORD").as_deref(), Some(canary.as_str()), "the process has it");
    assert_eq!(http::text(&world.plane.endpoint("acme").await, "/variable/PASSWORD").await, canary);
    assert!(!fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains(&canary));
    world.sleep("acme").await;
    world.wake("acme").await;
    done(&world.plane.plane.restart(&id("acme"), by()).await.unwrap()).await;
    done(&world.update("acme", with_secret(&[("VERSION", "2.0")])).await).await;
    assert_eq!(files_with(world.place.folder(), &canary), Vec::<PathBuf>::new());

    // Of one that prints it and dies, where what it printed last is part of the reason.
    let operation = world.create("leak", with_secret(&[("PRINT", "PASSWORD"), ("EXIT_CODE", "3")])).await;
    let reason = world.given_up("leak").await;
    assert!(reason.message.contains("cannot go on with"), "the tail of its log is told: {reason}");
    let printed = files_with(world.place.folder(), &canary);
    assert!(!printed.is_empty() && printed.iter().all(|path| path.ends_with("log")), "{printed:?}");
    assert_untold(&format!("{:?} {reason}", ended(&operation).await), &canary);

    // And of errors, for want of a program and for a key that was used.
    let mut missing = with_secret(&[]);
    missing.workload.command = vec!["/nowhere".into()];
    world.create("none", missing).await;
    world.given_up("none").await;
    let error = world.plane.plane.create(world.place.new_instance("acme"), by()).await.unwrap_err();
    assert_untold(&format!("{error} {error:?} {} {}", Chain(&error), error.customer_message()), &canary);

    assert_untold(&everything_told(&world).await, &canary);
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    for level in ["TRACE", "DEBUG provisioner_core", "INFO backend_process"] {
        let captured = logged.lines().any(|line| level.split(' ').all(|part| line.contains(part)));
        assert!(captured, "{level} is captured");
    }
    assert_untold(&logged, &canary);
    for name in ["leak", "none"] {
        world.destroy(name).await;
    }
    world.sleep("acme").await;
    world.end("acme").await;
}
