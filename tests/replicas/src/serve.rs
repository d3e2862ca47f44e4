//! What a replica does: it works, answers what it is asked, and ends gently at SIGTERM.

use std::{
    error::Error,
    io::{self, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use backend_process::ProcessBackend;
use provisioner_core::{
    Cell, ControlPlane, Provisioner, Result,
    control_plane::{NewInstance, OperationHandle},
    engine::EngineConfig,
    error::Chain,
    store::{PostgresConfig, PostgresStore},
    types::{DataDisposition, InstanceSpec, OperationId, Workload},
};
use tests::{
    place::{self, PORTS, Site, cell, control_plane, id, keyed},
    watched::{Watch, WatchedStore},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    command::{Answer, Answered, Ask, Asked, Drift, Instance, Options, Place, UNASKED, Verb},
    remote::Remote,
    stop::Stops,
};

/// Serves until SIGTERM, or until whoever asks is gone.
///
/// # Errors
/// When it does not start, or does not end as it should.
pub async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let mut term = signal(SignalKind::terminate())?;
    let replica = Replica::start(&options).await?;
    say(UNASKED, Answer::Ready);
    let mut lines = lines();
    let ending = async {
        term.recv().await;
        replica.end().await
    };
    let mut ending = std::pin::pin!(ending);
    loop {
        tokio::select! {
            biased;
            ended = &mut ending => return ended,
            line = lines.recv() => {
                let Some(line) = line else { return Ok(()) };
                let Asked { number, ask } = serde_json::from_str(&line)?;
                let replica = Arc::clone(&replica);
                tokio::spawn(async move {
                    let answer = replica.answer(ask).await;
                    say(number, answer.unwrap_or_else(|error| failed(&error)));
                });
            }
        }
    }
}

/// The lines of the standard input, read by a thread that nobody waits for.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(64);
    thread::spawn(move || io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.blocking_send(line)));
    receiver
}

fn failed(error: &provisioner_core::Error) -> Answer {
    Answer::Failed { kind: error.kind().as_str().to_owned(), text: Chain(error).to_string() }
}

/// Says one line. Nobody may be there any more to hear it.
fn say(number: u64, answer: Answer) {
    let line = serde_json::to_string(&Answered { number, answer }).expect("an answer has only strings as keys");
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[derive(Debug)]
struct Replica {
    plane: ControlPlane,
    place: Place,
    backend: Option<ProcessBackend>,
    stops: Arc<Stops>,
}

impl Replica {
    async fn start(options: &Options) -> Result<Arc<Self>, Box<dyn Error>> {
        let config = PostgresConfig::from_url(&options.url)?
            .with_schema(&options.schema)?
            .with_pool_size(4)?
            .with_lapses_after(options.lapses_after)?
            .with_timeout(options.call_timeout)?
            .with_connect_timeout(options.call_timeout)?;
        let stops = Arc::new(Stops::default());
        let store = PostgresStore::open(config, control_plane()).await?;
        let store = WatchedStore::new(store, Arc::new(Watch::with_witness(Arc::<Stops>::clone(&stops))));
        let (mut backend, mut provisioner): (_, Arc<dyn Provisioner>) = (
            None,
            Arc::new(Remote {
                by: options.name.clone(),
                port: match options.place {
                    Place::Memory { port } => port,
                    Place::Process { .. } => 0,
                },
                call_max: options.call_timeout,
                stops: Arc::clone(&stops),
            }),
        );
        if let Some(site) = site(&options.place) {
            let built = site.backend().build()?;
            provisioner = Arc::new(built.clone());
            backend = Some(built);
        }
        let plane = ControlPlane::builder(Arc::new(store))
            .cell(Cell::new(cell(), provisioner))
            .config(timings(options.call_timeout))
            .holder(&options.name)
            .start()
            .await?;
        Ok(Arc::new(Self { plane, place: options.place.clone(), backend, stops }))
    }

    async fn end(&self) -> Result<(), Box<dyn Error>> {
        self.plane.shutdown().await?;
        if let Some(backend) = &self.backend {
            backend.shutdown().await;
        }
        Ok(())
    }

    async fn answer(&self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Request { verb, name, key } => {
                let operation = self.request(verb, &name, &key).await?.operation().id.to_string();
                Ok(Answer::Accepted { operation })
            }
            Ask::Wait { operation } => {
                let ended = self.plane.operation(&OperationId::new(operation)?).await?.wait().await?;
                let failure = ended.failure.map(|failure| failure.to_string());
                Ok(Answer::Ended { state: ended.state.as_str().to_owned(), failure })
            }
            Ask::Look { name } => {
                let found = self.plane.get(&id(&name)).await?;
                let reason = found.reason.map(|reason| reason.to_string());
                let (settled, parked, incarnation) = (found.settled, found.parked, found.incarnation);
                let (phase, endpoint) = (found.phase, found.endpoint);
                Ok(Answer::Instance(Instance { phase, endpoint, settled, parked, incarnation, reason }))
            }
            Ask::Drift => {
                let found = self.plane.check_drift(&cell()).await?;
                let (listed, differing, vanished) = (found.listed, found.differing, found.vanished);
                let (remnants, strangers) = (found.remnants, found.strangers);
                Ok(Answer::Drift(Drift { listed, differing, vanished, remnants, strangers }))
            }
            Ask::Report => Ok(Answer::Report { refused: self.stops.refused() }),
            Ask::Stop(stop) => {
                self.stops.add(stop);
                Ok(Answer::Done)
            }
        }
    }

    async fn request(&self, verb: Verb, name: &str, key: &str) -> Result<OperationHandle> {
        let (id, request) = (id(name), keyed(key));
        match verb {
            Verb::Create => self.plane.create(self.new_instance(name), request).await,
            Verb::Sleep => self.plane.sleep(&id, request).await,
            Verb::Wake => self.plane.wake(&id, request).await,
            Verb::Destroy => self.plane.destroy(&id, DataDisposition::Delete, request).await,
        }
    }

    fn new_instance(&self, name: &str) -> NewInstance {
        match site(&self.place) {
            Some(site) => site.new_instance(name),
            None => NewInstance::new(id(name), place::tenant(), InstanceSpec::new(Workload::new("1.0"))),
        }
    }
}

fn site(place: &Place) -> Option<Site> {
    let Place::Process { root, address, product } = place.clone() else { return None };
    // The store is elsewhere.
    Some(Site { store: "none".into(), root, address, ports: PORTS, product, users: false, groups: true })
}

fn timings(call_timeout: Duration) -> EngineConfig {
    let mut config = EngineConfig::default();
    config.call_timeout = call_timeout;
    config.backoff_min = Duration::from_millis(50);
    config.backoff_max = Duration::from_secs(1);
    config
}
