//! What the layers add to a call, over the backend that they wrap.
//!
//! `cargo bench -p benches --bench layers`
//!
//! Two backends. One of the benchmark's own does nothing, so that what the layers take is not lost in what it takes; with
//! 256 callers it lets the others run once in each call, as a backend does that waits for its provider, so that calls are
//! under way at once and wait for places. The other is the one in memory, one call of which is about the least that
//! anything does. All are tried in turn, round after round, so that a machine that is busy is busy for all of them; what a
//! layer adds is the median of what it added in each round.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use benches::{heading, row};
use futures::{StreamExt, stream, stream::BoxStream};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use provisioner_core::{
    OpContext, Provisioner, Result,
    layers::{Limited, Measured, Timed, Traced},
    memory::{MemoryConfig, MemoryProvisioner},
    types::{
        Capabilities, CellName, ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation,
        InstanceId, InstanceSpec, Observed, Owned, Phase, Present, Target, TenantId, Workload,
    },
};
use tracing_subscriber::layer::SubscriberExt;

/// Callers at once.
const CALLERS: usize = 256;
/// Places among them.
const PLACES: usize = 64;
/// How often everything is tried.
const ROUNDS: usize = 15;
/// Calls in a round of one caller.
const CALLS: usize = 20_000;
/// Calls in a round of each of many callers.
const CALLS_EACH: usize = 100;
/// Never reached.
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!(
            "ns a call: of a bare backend in all, of a layer what it adds; medians of {ROUNDS} rounds. With {CALLERS} \
             callers, of whom {PLACES} have a place, ns by the clock for each of their calls, on {} cores\n",
            std::thread::available_parallelism().map_or(0, usize::from)
        );
        heading(&["backend", "what", "observe", "create", "observe, 256 callers", "create, 256 callers"]);
        table("nobody listens").await;
        // From here on somebody does. Neither can be taken back.
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(AllSpans))
            .expect("nobody listens yet");
        metrics::set_global_recorder(Figures::default()).map_err(|_| ()).expect("nobody listens yet");
        table("somebody listens").await;
    });
}

type Wrap = fn(Arc<dyn Provisioner>) -> Arc<dyn Provisioner>;

const LAYERS: [(&str, Wrap); 6] = [
    ("bare", |backend| backend),
    ("Limited", |backend| Arc::new(Limited::new(backend, PLACES))),
    ("Timed", |backend| Arc::new(Timed::new(backend, LIMIT))),
    ("Traced", |backend| Arc::new(Traced::new(backend))),
    ("Measured", |backend| Arc::new(Measured::new(backend, &cell()))),
    ("all four", |backend| {
        Arc::new(Measured::new(Traced::new(Limited::new(Timed::new(backend, LIMIT), PLACES)), &cell()))
    }),
];

fn cell() -> CellName {
    CellName::new("bench").expect("a name")
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Observe,
    Create,
}

/// One row for each layer, of what was seen while somebody listens to spans and metrics, or nobody does.
async fn table(listening: &str) {
    let nothing = |is_busy| -> Arc<dyn Provisioner> { Arc::new(Nothing { is_busy }) };
    let memory = || -> Arc<dyn Provisioner> { Arc::new(MemoryProvisioner::new(MemoryConfig::default())) };
    for (name, alone, many) in [("does nothing", nothing(false), nothing(true)), ("memory", memory(), memory())] {
        let mut columns = Vec::new();
        for (backend, callers, verb) in [
            (&alone, 1, Verb::Observe),
            (&alone, 1, Verb::Create),
            (&many, CALLERS, Verb::Observe),
            (&many, CALLERS, Verb::Create),
        ] {
            columns.push(column(backend, callers, verb).await);
        }
        for (layer, (what, _)) in LAYERS.iter().enumerate() {
            let mut cells = vec![format!("{name}, {listening}"), (*what).to_owned()];
            cells.extend(columns.iter().map(|column| match layer {
                0 => format!("{:.0}", column[layer]),
                _ => format!("{:+.0}", column[layer]),
            }));
            row(&cells);
        }
    }
}

/// What each layer adds to a call; of the first, which is none, what the call takes.
async fn column(backend: &Arc<dyn Provisioner>, callers: usize, verb: Verb) -> Vec<f64> {
    let wrapped: Vec<_> = LAYERS.iter().map(|(_, wrap)| wrap(Arc::clone(backend))).collect();
    let calls = if callers == 1 { CALLS } else { CALLS_EACH };
    let mut seen = vec![Vec::new(); LAYERS.len()];
    // The first round is thrown away: it fills caches and makes what is called for.
    for round in 0..=ROUNDS {
        let mut bare = 0.0;
        for (layer, backend) in wrapped.iter().enumerate() {
            let took =
                if callers == 1 { alone(backend, calls, verb).await } else { at_once(backend, calls, verb).await };
            let each = took.as_secs_f64() * 1e9 / (callers * calls) as f64;
            if layer == 0 {
                bare = each;
            }
            if round > 0 {
                seen[layer].push(if layer == 0 { each } else { each - bare });
            }
        }
    }
    seen.into_iter().map(median).collect()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}

/// In a task of the runtime, as the engine's are, and not on the thread that waits for it.
async fn alone(backend: &Arc<dyn Provisioner>, calls: usize, verb: Verb) -> Duration {
    let backend = Arc::clone(backend);
    let began = tokio::spawn(async move {
        let began = Instant::now();
        call(&backend, 0, calls, verb).await;
        began.elapsed()
    });
    began.await.expect("a caller does not panic")
}

async fn at_once(backend: &Arc<dyn Provisioner>, calls: usize, verb: Verb) -> Duration {
    let began = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let backend = Arc::clone(backend);
            tokio::spawn(async move { call(&backend, caller, calls, verb).await })
        })
        .collect();
    for caller in callers {
        caller.await.expect("a caller does not panic");
    }
    began.elapsed()
}

async fn call(backend: &Arc<dyn Provisioner>, caller: usize, calls: usize, verb: Verb) {
    let target = target(caller);
    // With a deadline, as the engine's calls have, and one that is later than `Timed`'s, so that it sets its own.
    let cx = OpContext::new(ControlPlaneId::new("bench").expect("a name")).with_timeout(LIMIT * 10);
    for _ in 0..calls {
        let answer = match verb {
            Verb::Observe => backend.observe(&cx, &target).await,
            Verb::Create => backend.create(&cx, &target).await,
        };
        std::hint::black_box(answer.expect("nothing goes wrong"));
    }
}

fn target(n: usize) -> Target {
    Target {
        id: InstanceId::new(format!("i{n}")).expect("a label"),
        tenant: TenantId::new("acme").expect("a name"),
        incarnation: Incarnation::new(1, n as u128),
        generation: Generation(1),
        spec: Arc::new(InstanceSpec::new(Workload::new("1.0"))),
        data: DataSource::Fresh(DataId::from_random(n as u128)),
    }
}

/// A backend that does nothing.
#[derive(Debug)]
struct Nothing {
    /// Whether others run meanwhile.
    is_busy: bool,
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nothing")
    }
}

impl Nothing {
    async fn answer(&self, target: &Target) -> Result<Observed> {
        if self.is_busy {
            tokio::task::yield_now().await;
        }
        Ok(Present::new(Phase::Running, target.generation, target.incarnation).into())
    }
}

#[async_trait]
impl Provisioner for Nothing {
    fn capabilities(&self) -> Capabilities {
        Capabilities::PLAIN
    }
    fn validate(&self, _wanted: &InstanceSpec, _applied: Option<&InstanceSpec>) -> Result<()> {
        Ok(())
    }
    async fn identity(&self, _cx: &OpContext) -> Result<String> {
        Ok(String::new())
    }
    async fn create(&self, _cx: &OpContext, target: &Target) -> Result<Observed> {
        self.answer(target).await
    }
    async fn suspend(&self, _cx: &OpContext, target: &Target) -> Result<Observed> {
        self.answer(target).await
    }
    async fn scale_to_zero(&self, _cx: &OpContext, target: &Target) -> Result<Observed> {
        self.answer(target).await
    }
    async fn resume(&self, _cx: &OpContext, target: &Target) -> Result<Observed> {
        self.answer(target).await
    }
    async fn destroy(&self, _cx: &OpContext, target: &Target, _data: DataDisposition) -> Result<Observed> {
        self.answer(target).await
    }
    async fn observe(&self, _cx: &OpContext, target: &Target) -> Result<Observed> {
        self.answer(target).await
    }
    async fn observe_many(&self, _cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        targets.iter().map(|_| Ok(Observed::Absent)).collect()
    }
    fn list(&self, _cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        stream::empty().boxed()
    }
    fn watch(&self, _cx: &OpContext) -> BoxStream<'static, InstanceId> {
        stream::empty().boxed()
    }
    async fn delete_data(&self, _cx: &OpContext, _data: &DataId) -> Result<()> {
        Ok(())
    }
    async fn maintain(&self, _cx: &OpContext, _plan_only: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Listens to every span, keeps each in the registry while it is open, and writes nothing: writing is the exporter's.
struct AllSpans;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for AllSpans {}

/// Keeps figures as exporters do: one number for each key, found in a table that is shared.
#[derive(Default)]
struct Figures {
    numbers: RwLock<BTreeMap<Key, Arc<Number>>>,
}

#[derive(Default)]
struct Number(AtomicU64);

impl HistogramFn for Number {
    fn record(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl metrics::CounterFn for Number {
    fn increment(&self, value: u64) {
        metrics::CounterFn::increment(&self.0, value);
    }
    fn absolute(&self, value: u64) {
        metrics::CounterFn::absolute(&self.0, value);
    }
}

impl metrics::GaugeFn for Number {
    fn increment(&self, value: f64) {
        metrics::GaugeFn::increment(&self.0, value);
    }
    fn decrement(&self, value: f64) {
        metrics::GaugeFn::decrement(&self.0, value);
    }
    fn set(&self, value: f64) {
        metrics::GaugeFn::set(&self.0, value);
    }
}

impl Figures {
    fn number(&self, key: &Key) -> Arc<Number> {
        if let Some(number) = self.numbers.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return Arc::clone(number);
        }
        let mut numbers = self.numbers.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(numbers.entry(key.clone()).or_default())
    }
}

impl Recorder for Figures {
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn describe_histogram(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.number(key))
    }
    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.number(key))
    }
    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.number(key))
    }
}
