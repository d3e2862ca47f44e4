//! A backend whose calls can be followed in the log.

use std::{fmt, future::Future, slice::from_ref, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tracing::{Instrument, Span, debug_span, field::Empty};

use super::around::{Answer, Around, BackendCall, Listing, Underway, Witness, forward_around, send_around};
use crate::{
    context::OpContext,
    error::Result,
    provisioner::Provisioner,
    types::{Capabilities, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

/// A backend whose calls can be followed in the log: one span each. A clone is the same backend.
///
/// The span is called `call`. From its beginning it has the `operation`, named as in errors, the `backend` as it prints
/// itself, and, of a call about one instance, `instance`, `incarnation` and `generation`; of one about many, how many
/// `instances`. At its end it gets an `outcome`: the phase that was seen, `absent`, `unknown`, `ok` where there is nothing to
/// see, or the kind of the error; `dropped` where nobody waited for the answer. `took_us` is how long its caller waited, in
/// microseconds. A listing is one call, from the first item that is asked for to the last. A watch goes on for as long as
/// its cell is worked on, and has no span.
///
/// All spans are of level DEBUG: a fleet makes many calls, state changes are logged by who acts on them, and so are errors,
/// once. Whoever does not ask for that level sees nothing, and nearly nothing is done. Specs, environments, references to
/// secrets, endpoints and error texts are never in a span.
///
/// ```
/// use provisioner_core::{Provisioner, layers::Traced, memory::MemoryProvisioner};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let traced = Traced::new(MemoryProvisioner::new(Default::default()));
/// assert_eq!(traced.to_string(), "Traced(Memory(memory))");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Traced<P> {
    backend: P,
}

impl<P: fmt::Display> fmt::Display for Traced<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traced({})", self.backend)
    }
}

impl<P: Provisioner> Traced<P> {
    /// A backend whose calls have spans.
    #[must_use]
    pub fn new(backend: P) -> Self {
        Self { backend }
    }

    fn span(&self, call: &BackendCall<'_>) -> Span {
        debug_span!(
            "call",
            operation = call.operation,
            backend = %self.backend,
            instance = call.target().map(|target| display(&target.id)),
            incarnation = call.target().map(|target| display(target.incarnation)),
            generation = call.target().map(|target| target.generation.0),
            instances = (call.targets.len() > 1).then_some(call.targets.len()),
            outcome = Empty,
            took_us = Empty,
        )
    }
}

impl Witness for Span {
    fn ended(&self, outcome: &'static str, took: Duration) {
        self.record("outcome", outcome);
        self.record("took_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

impl<P: Provisioner> Around for Traced<P> {
    async fn around<A: Answer>(&self, call: BackendCall<'_>, sent: impl Future<Output = A> + Send) -> A {
        let span = self.span(&call);
        if span.is_disabled() {
            return sent.await;
        }
        let outcome = |answer: &A| answer.error_kind().map_or_else(|| answer.seen(), |_| answer.outcome());
        Underway::new(span.clone()).answer(sent.instrument(span), outcome).await
    }

    fn around_list(&self, cx: &OpContext, mut listed: Listing) -> Listing {
        let span = self.span(&BackendCall::read("list", cx, &[]));
        if span.is_disabled() {
            return listed;
        }
        let within = span.clone();
        let inside = stream::poll_fn(move |cx| within.in_scope(|| listed.poll_next_unpin(cx)));
        Underway::new(span).listing(inside.boxed())
    }
}

forward_around!(Traced);

#[cfg(test)]
mod tests;
