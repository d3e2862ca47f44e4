use std::{
    fmt::Write,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Id, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
    subscriber::DefaultGuard,
};

use super::{
    super::{
        Chaos, Fault,
        fixture::{cx, memory, target},
    },
    *,
};
use crate::{error::ErrorKind, types::VariableName};

/// Spans as they are recorded on this thread, a line each: level, name, fields in the order in which they came.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.name() == "call"
    }
    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut line = format!("{} {}", attributes.metadata().level(), attributes.metadata().name());
        attributes.record(&mut Line(&mut line));
        let mut lines = self.0.lock().unwrap();
        lines.push(line);
        Id::from_u64(lines.len() as u64)
    }
    fn record(&self, span: &Id, values: &Record<'_>) {
        let at = usize::try_from(span.into_u64()).unwrap() - 1;
        values.record(&mut Line(&mut self.0.lock().unwrap()[at]));
    }
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, _event: &Event<'_>) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

impl Spans {
    fn listen() -> (Self, DefaultGuard) {
        let spans = Self::default();
        let guard = tracing::subscriber::set_default(spans.clone());
        (spans, guard)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn last(&self) -> String {
        self.0.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

const OF_I1: &str = "instance=i1 incarnation=1-00000000000000000000000000000001 generation=1";

#[tokio::test(start_paused = true)]
async fn a_call_has_one_span_that_ends_with_what_was_seen_and_how_long_it_took() {
    let (spans, _guard) = Spans::listen();
    let chaos = Chaos::new(memory());
    let traced = Traced::new(chaos.clone());
    let backend = "backend=Chaos(Memory(memory))";
    chaos.script("create", Fault::Late { after_ms: 1500 });
    traced.create(&cx(), &target(1)).await.unwrap();
    let expected = format!("DEBUG call operation=\"create\" {backend} {OF_I1} outcome=\"running\" took_us=1500000");
    assert_eq!(spans.take(), [expected]);

    chaos.script("suspend", Fault::BeforeSend(ErrorKind::Unauthorized));
    traced.suspend(&cx(), &target(1)).await.unwrap_err();
    assert!(spans.last().ends_with(&format!("{OF_I1} outcome=\"unauthorized\" took_us=0")), "{}", spans.last());

    traced.observe(&cx(), &target(2)).await.unwrap();
    assert!(spans.last().contains("outcome=\"absent\""), "{}", spans.last());

    traced.observe_many(&cx(), &[target(1), target(2)]).await;
    assert!(spans.last().ends_with("instances=2 outcome=\"ok\" took_us=0"), "{}", spans.last());

    traced.identity(&cx()).await.unwrap();
    let expected = format!("DEBUG call operation=\"identity\" {backend} outcome=\"ok\" took_us=0");
    assert_eq!(spans.last(), expected);
    assert_eq!(spans.take().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_says_so() {
    let (spans, _guard) = Spans::listen();
    let chaos = Chaos::new(memory());
    let traced = Traced::new(chaos.clone());
    chaos.script("observe", Fault::Hang);
    let (cx, target) = (cx(), target(1));
    let dropped = tokio::time::timeout(Duration::from_secs(3), traced.observe(&cx, &target));
    assert!(dropped.await.is_err());
    assert!(spans.last().ends_with("outcome=\"dropped\" took_us=3000000"), "{}", spans.last());
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_one_call_and_its_time_is_that_of_its_waits() {
    let (spans, _guard) = Spans::listen();
    let chaos = Chaos::new(memory());
    let traced = Traced::new(chaos.clone());
    for n in 0..5 {
        chaos.create(&cx(), &target(n)).await.unwrap();
    }
    chaos.script("list", Fault::Late { after_ms: 1000 });
    let mut listed = traced.list(&cx());
    while let Some(item) = listed.next().await {
        item.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    drop(listed);
    assert!(spans.last().ends_with("outcome=\"ok\" took_us=1000000"), "{}", spans.last());

    chaos.script("list", Fault::AfterApply);
    assert_eq!(traced.list(&cx()).collect::<Vec<_>>().await.len(), 3);
    assert!(spans.last().contains("outcome=\"timeout\""), "{}", spans.last());

    let mut listed = traced.list(&cx());
    listed.next().await.unwrap().unwrap();
    drop(listed);
    assert!(spans.last().contains("outcome=\"dropped\""), "{}", spans.last());
    assert_eq!(spans.take().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_the_spec_is_in_a_span() {
    let (spans, _guard) = Spans::listen();
    let traced = Traced::new(memory());
    let mut target = target(1);
    let spec = Arc::make_mut(&mut target.spec);
    spec.environment.insert(VariableName::new("MODE").unwrap(), "canary".into());
    spec.secrets.insert(VariableName::new("TOKEN").unwrap(), "vault:canary".parse().unwrap());
    traced.create(&cx(), &target).await.unwrap_err();
    traced.observe(&cx(), &target).await.unwrap();
    let lines = spans.take();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| !line.contains("canary") && !line.contains("acme")), "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with(Level::DEBUG.as_str())));
}
