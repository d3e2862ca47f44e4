//! A backend that has so many calls at once.

mod places;

use std::{fmt, future::Future, slice::from_ref, sync::Arc};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream, ReadyChunks},
};

use self::places::{Place, Places};
use super::around::{Answer, Around, BackendCall, Listing, forward_around, send_around};
use crate::{
    context::OpContext,
    error::{Error, ErrorKind, Result},
    provisioner::Provisioner,
    types::{Capabilities, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

/// How many items of a listing that come along with the first are handed over without a place.
const LISTED_AT_ONCE: usize = 256;

/// A backend that has so many calls at once, whoever makes them; the others wait. A clone is the same backend, with the same
/// places.
///
/// People come first: whose [priority](crate::Priority) is `Interactive` is served before `Background`. The background gets
/// every fourth turn and at most three quarters of the places, as in the engine's queue: so neither can starve the other.
/// Within a priority, who came first is served first. A place is kept for as long as the call lasts; dropping the call gives
/// it back.
///
/// The wait ends at the context's deadline or when it is cancelled, with [`Timeout`](ErrorKind::Timeout) or
/// [`Cancelled`](ErrorKind::Cancelled). Nothing was sent then, so it has no effect. Without either, it has no end.
///
/// `observe many` is one call. `list` has a place while its caller waits for items, and not while the caller works on those
/// that came: that may need places itself, and one that waits for the other would wait for ever. A backend that asks for the
/// next page ahead may so have one request more under way for each open listing. `watch`, which goes on for ever, has none.
///
/// ```
/// use provisioner_core::{Provisioner, layers::Limited, memory::MemoryProvisioner};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limited = Limited::new(MemoryProvisioner::new(Default::default()), 16);
/// assert_eq!(limited.to_string(), "Limited(Memory(memory))");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Limited<P> {
    backend: P,
    places: Arc<Places>,
}

impl<P: fmt::Display> fmt::Display for Limited<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limited({})", self.backend)
    }
}

impl<P: Provisioner> Limited<P> {
    /// A backend with so many calls at once, 1 at least.
    #[must_use]
    pub fn new(backend: P, calls_max: usize) -> Self {
        Self { backend, places: Places::new(calls_max) }
    }

    /// Another backend with the same places, such as another cell of the same account: so many calls at once on all of them
    /// together.
    #[must_use]
    pub fn share<Q: Provisioner>(&self, backend: Q) -> Limited<Q> {
        Limited { backend, places: Arc::clone(&self.places) }
    }
}

/// Waits for a place: until the deadline, or until the caller gives up.
async fn wait(places: &Arc<Places>, cx: &OpContext) -> Result<Place, ErrorKind> {
    let (place, turn) = places.enter(cx.priority);
    let Some(turn) = turn else { return Ok(place) };
    let deadline = async {
        match cx.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        // The sender lives until it sends: it is among those who wait until `place` is dropped.
        _ = turn => Ok(place),
        () = cx.cancel.cancelled() => Err(ErrorKind::Cancelled),
        () = deadline => Err(ErrorKind::Timeout),
    }
}

fn no_place(call: &BackendCall<'_>, kind: ErrorKind) -> Error {
    call.error(kind).with_message("it waited for a place and was not sent")
}

impl<P: Provisioner> Around for Limited<P> {
    async fn around<A: Answer>(&self, call: BackendCall<'_>, sent: impl Future<Output = A> + Send) -> A {
        match wait(&self.places, call.cx).await {
            Ok(_place) => sent.await,
            Err(kind) => A::failed(&call, |call| no_place(call, kind)),
        }
    }

    fn around_list(&self, cx: &OpContext, listed: Listing) -> Listing {
        let waits = (Arc::clone(&self.places), cx.clone());
        let pages = listed.ready_chunks(LISTED_AT_ONCE);
        let next = |(pages, waits): (Option<ReadyChunks<Listing>>, (Arc<Places>, OpContext))| async move {
            let mut pages = pages?;
            let (places, cx) = &waits;
            match wait(places, cx).await {
                Ok(_place) => pages.next().await.map(|page| (page, (Some(pages), waits))),
                Err(kind) => {
                    let error = no_place(&BackendCall::read("list", cx, &[]), kind);
                    Some((vec![Err(error)], (None, waits)))
                }
            }
        };
        stream::unfold((Some(pages), waits), next).flat_map(stream::iter).boxed()
    }
}

forward_around!(Limited);

#[cfg(test)]
mod tests;
