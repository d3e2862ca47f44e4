use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::StreamExt;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, Unit};

use super::{
    super::{
        Chaos, Fault,
        fixture::{cx, memory, target},
    },
    *,
};
use crate::error::ErrorKind;

/// What was recorded on this thread.
#[derive(Default)]
struct Figures {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    histograms: Mutex<BTreeMap<String, Arc<Times>>>,
}

#[derive(Default)]
struct Times(Mutex<Vec<f64>>);

impl HistogramFn for Times {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

fn text(key: &Key) -> String {
    let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
    format!("{}{}", key.name(), labels.collect::<String>())
}

impl Recorder for Figures {
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn describe_histogram(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::clone(self.counters.lock().unwrap().entry(text(key)).or_default()))
    }
    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(self.gauges.lock().unwrap().entry(text(key)).or_default()))
    }
    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(self.histograms.lock().unwrap().entry(text(key)).or_default()))
    }
}

impl Figures {
    fn calls(&self, operation: &str, outcome: &str) -> u64 {
        let key = format!("provisioner_calls_total cell=weu-1 operation={operation} outcome={outcome}");
        self.counters.lock().unwrap().get(&key).map_or(0, |counter| counter.load(Ordering::SeqCst))
    }

    fn in_flight(&self, operation: &str) -> f64 {
        let key = format!("provisioner_calls_in_flight cell=weu-1 operation={operation}");
        self.gauges.lock().unwrap().get(&key).map_or(0.0, |gauge| f64::from_bits(gauge.load(Ordering::SeqCst)))
    }

    fn seconds(&self, operation: &str) -> Vec<f64> {
        let key = format!("provisioner_call_seconds cell=weu-1 operation={operation}");
        self.histograms.lock().unwrap().get(&key).map_or_else(Vec::new, |times| times.0.lock().unwrap().clone())
    }
}

fn measured() -> (Measured<Chaos<crate::memory::MemoryProvisioner>>, Chaos<crate::memory::MemoryProvisioner>) {
    let chaos = Chaos::new(memory());
    (Measured::new(chaos.clone(), &CellName::new("weu-1").unwrap()), chaos)
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_outcome_and_timed() {
    let figures = Figures::default();
    let _guard = metrics::set_default_local_recorder(&figures);
    let (measured, chaos) = measured();
    chaos.script("create", Fault::Late { after_ms: 1500 });
    measured.create(&cx(), &target(1)).await.unwrap();
    chaos.script("create", Fault::Throttled { after_ms: 1 });
    measured.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((figures.calls("create", "ok"), figures.calls("create", "throttled")), (1, 1));
    assert_eq!(figures.seconds("create"), [1.5, 0.0]);
    assert_eq!(figures.in_flight("create"), 0.0);

    measured.scale_to_zero(&cx(), &target(1)).await.unwrap();
    assert_eq!(figures.calls("scale to zero", "ok"), 1);
    measured.observe_many(&cx(), &[target(1), target(2)]).await;
    chaos.script("observe many", Fault::BeforeSend(ErrorKind::Unavailable));
    measured.observe_many(&cx(), &[target(1), target(2)]).await;
    assert_eq!((figures.calls("observe many", "ok"), figures.calls("observe many", "unavailable")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_right_also_when_a_call_is_dropped() {
    let figures = Figures::default();
    let _guard = metrics::set_default_local_recorder(&figures);
    let (measured, chaos) = measured();
    let (cx, target) = (cx(), target(1));
    for _ in 0..2 {
        chaos.script("observe", Fault::Hang);
    }
    let never_polled = measured.observe(&cx, &target);
    let mut calls: Vec<_> = (0..2).map(|_| measured.observe(&cx, &target)).collect();
    for call in &mut calls {
        assert!(futures::poll!(call).is_pending());
    }
    drop(never_polled);
    assert_eq!(figures.in_flight("observe"), 2.0);
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(calls);
    assert_eq!(figures.in_flight("observe"), 0.0);
    assert_eq!(figures.calls("observe", "dropped"), 2);
    assert_eq!(figures.seconds("observe"), [3.0, 3.0]);
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_one_call_in_flight_while_it_is_open() {
    let figures = Figures::default();
    let _guard = metrics::set_default_local_recorder(&figures);
    let (measured, chaos) = measured();
    for n in 0..3 {
        chaos.create(&cx(), &target(n)).await.unwrap();
    }
    chaos.script("list", Fault::Late { after_ms: 1000 });
    let mut listed = measured.list(&cx());
    listed.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(figures.in_flight("list"), 1.0);
    assert!(listed.collect::<Vec<_>>().await.iter().all(Result::is_ok));
    assert_eq!((figures.in_flight("list"), figures.calls("list", "ok")), (0.0, 1));
    assert_eq!(figures.seconds("list"), [1.0]);

    chaos.script("list", Fault::AfterApply);
    drop(measured.list(&cx()).collect::<Vec<_>>().await);
    drop(measured.list(&cx()));
    assert_eq!((figures.calls("list", "timeout"), figures.calls("list", "dropped")), (1, 1));
}
