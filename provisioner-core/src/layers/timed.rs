//! A backend whose calls end in time.

use std::{borrow::Cow, fmt, future::Future, slice::from_ref, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::{Instant, timeout_at};

use super::around::{Answer, Around, BackendCall, Listing, forward_around, send_around};
use crate::{
    context::OpContext,
    error::{Effect, Error, ErrorKind, Result},
    provisioner::Provisioner,
    types::{Capabilities, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

/// A backend whose calls end in time: at the context's deadline, or after a time of their own if that is sooner. A clone is
/// the same backend.
///
/// The backend is told the deadline through the context, so that it can end the call itself and say more. When it has not,
/// the call is dropped there, and the answer is [`Timeout`](ErrorKind::Timeout): its effect is unknown for what changes
/// something (the verbs, `delete data`, `maintain` unless it only plans), and none for what only reads. A call whose
/// deadline has passed before it was made is not sent, so it has no effect either.
///
/// `list` has the time of a read for each item that is waited for, as a whole listing takes as long as it is long; when it
/// passes, the listing ends with the error. `watch` has no deadline.
///
/// ```
/// use std::time::Duration;
/// use provisioner_core::{Provisioner, ErrorKind, OpContext, layers::{Chaos, Fault, Timed}, memory::MemoryProvisioner};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let chaos = Chaos::new(MemoryProvisioner::new(Default::default()));
/// let timed = Timed::new(chaos.clone(), Duration::from_secs(30)).with_reads(Duration::from_millis(20));
/// let cx = OpContext::new(provisioner_core::types::ControlPlaneId::new("prod")?);
/// chaos.script("identity", Fault::Hang);
/// assert_eq!(timed.identity(&cx).await.unwrap_err().kind(), ErrorKind::Timeout);
/// assert_eq!(timed.identity(&cx).await?, "memory");
/// assert_eq!(timed.to_string(), "Timed(Chaos(Memory(memory)))");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Timed<P> {
    backend: P,
    reads: Duration,
    mutations: Duration,
}

impl<P: fmt::Display> fmt::Display for Timed<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timed({})", self.backend)
    }
}

impl<P: Provisioner> Timed<P> {
    /// A backend whose calls take at most so long.
    #[must_use]
    pub fn new(backend: P, limit: Duration) -> Self {
        Self { backend, reads: limit, mutations: limit }
    }

    /// The same with another limit for calls that only read, which usually are the quicker ones.
    #[must_use]
    pub fn with_reads(mut self, limit: Duration) -> Self {
        self.reads = limit;
        self
    }
}

/// The sooner of a deadline and the end of a limit that begins now.
fn sooner(deadline: Option<Instant>, limit: Duration) -> Option<Instant> {
    // A limit beyond the end of time is none.
    [deadline, Instant::now().checked_add(limit)].into_iter().flatten().min()
}

fn too_late(error: Error, effect: Effect) -> Error {
    error.with_effect(effect).with_message("no answer by the deadline")
}

impl<P: Provisioner> Around for Timed<P> {
    fn context<'a>(&self, call: &BackendCall<'a>) -> Cow<'a, OpContext> {
        let deadline = sooner(call.cx.deadline, if call.mutates { self.mutations } else { self.reads });
        if deadline == call.cx.deadline {
            return Cow::Borrowed(call.cx);
        }
        let mut cx = call.cx.clone();
        cx.deadline = deadline;
        Cow::Owned(cx)
    }

    async fn around<A: Answer>(&self, call: BackendCall<'_>, sent: impl Future<Output = A> + Send) -> A {
        let Some(deadline) = call.cx.deadline else { return sent.await };
        if deadline <= Instant::now() {
            let error = |call: &BackendCall<'_>| call.error(ErrorKind::Timeout);
            return A::failed(&call, |call| error(call).with_message("the deadline passed before it was sent"));
        }
        // The backend's own answer comes first where both are there: it says more.
        timeout_at(deadline, sent).await.unwrap_or_else(|_| {
            let effect = if call.mutates { Effect::Unknown } else { Effect::None };
            A::failed(&call, |call| too_late(call.error(ErrorKind::Timeout), effect))
        })
    }

    fn around_list(&self, cx: &OpContext, listed: Listing) -> Listing {
        let (whole, limit) = (cx.deadline, self.reads);
        let next = move |listed: Option<Listing>| async move {
            let mut listed = listed?;
            let item = match sooner(whole, limit) {
                Some(deadline) => timeout_at(deadline, listed.next()).await,
                None => Ok(listed.next().await),
            };
            match item {
                Ok(item) => item.map(|item| (item, Some(listed))),
                Err(_) => Some((Err(too_late(Error::new(ErrorKind::Timeout, "list"), Effect::None)), None)),
            }
        };
        stream::unfold(Some(listed), next).boxed()
    }
}

forward_around!(Timed);

#[cfg(test)]
mod tests;
