//! What the layers share: one place where something is done around every call, whichever it is.

use std::{borrow::Cow, future::Future, time::Duration};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::Instant;

use crate::{
    context::OpContext,
    error::{Error, ErrorKind, Result},
    types::{Observed, Owned, Target},
};

/// How a call ended that was not seen through: nobody waits for its answer any more.
const DROPPED: &str = "dropped";
/// How a call ended that has nothing more to say.
const OK: &str = "ok";

/// A listing under way.
pub(super) type Listing = BoxStream<'static, Result<Owned>>;

/// A call on its way to a backend: what a layer knows of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackendCall<'a> {
    /// Named as in errors.
    pub(super) operation: &'static str,
    /// Whether it may change something at the provider.
    pub(super) mutates: bool,
    pub(super) cx: &'a OpContext,
    /// The instances that it is about.
    pub(super) targets: &'a [Target],
}

impl<'a> BackendCall<'a> {
    pub(super) fn read(operation: &'static str, cx: &'a OpContext, targets: &'a [Target]) -> Self {
        Self { operation, mutates: false, cx, targets }
    }

    pub(super) fn mutation(operation: &'static str, cx: &'a OpContext, targets: &'a [Target]) -> Self {
        Self { operation, mutates: true, cx, targets }
    }

    /// The instance that it is about, when it is about one.
    pub(super) fn target(&self) -> Option<&'a Target> {
        match self.targets {
            [target] => Some(target),
            _ => None,
        }
    }

    /// An error of this call, without effect.
    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        let error = Error::new(kind, self.operation);
        match self.target() {
            Some(target) => error.with_instance(&target.id),
            None => error,
        }
    }
}

/// What a layer does around calls. [`forward_around!`] makes a whole `Provisioner` of it.
pub(super) trait Around {
    /// The context that the call goes on with.
    fn context<'a>(&self, call: &BackendCall<'a>) -> Cow<'a, OpContext> {
        Cow::Borrowed(call.cx)
    }

    /// Goes around one call. Nothing is sent before `sent` is polled, and nothing more once it is dropped.
    fn around<A: Answer>(
        &self,
        call: BackendCall<'_>,
        sent: impl Future<Output = A> + Send,
    ) -> impl Future<Output = A> + Send;

    /// Goes around a listing. Nothing is sent before it is polled.
    fn around_list(&self, cx: &OpContext, listed: Listing) -> Listing;
}

/// What a backend answers.
pub(super) trait Answer: Send {
    /// The answer of a call that failed here, with such an error for all that was asked.
    fn failed(call: &BackendCall<'_>, error: impl Fn(&BackendCall<'_>) -> Error) -> Self;

    /// The kind of its error, the first of several.
    fn error_kind(&self) -> Option<ErrorKind>;

    /// What was seen, in a word.
    fn seen(&self) -> &'static str {
        OK
    }

    /// `ok`, or the kind of its error.
    fn outcome(&self) -> &'static str {
        self.error_kind().map_or(OK, ErrorKind::as_str)
    }
}

impl<T: Seen + Send> Answer for Result<T> {
    fn failed(call: &BackendCall<'_>, error: impl Fn(&BackendCall<'_>) -> Error) -> Self {
        Err(error(call))
    }

    fn error_kind(&self) -> Option<ErrorKind> {
        self.as_ref().err().map(Error::kind)
    }

    fn seen(&self) -> &'static str {
        self.as_ref().map_or(OK, Seen::seen)
    }
}

/// One answer for each target.
impl Answer for Vec<Result<Observed>> {
    fn failed(call: &BackendCall<'_>, error: impl Fn(&BackendCall<'_>) -> Error) -> Self {
        let each = call.targets.iter().map(std::slice::from_ref);
        each.map(|target| Err(error(&BackendCall { targets: target, ..*call }))).collect()
    }

    fn error_kind(&self) -> Option<ErrorKind> {
        self.iter().find_map(|answer| answer.as_ref().err()).map(Error::kind)
    }
}

/// What a call that succeeded answers.
pub(super) trait Seen {
    /// It in a word.
    fn seen(&self) -> &'static str {
        OK
    }
}

impl Seen for Observed {
    fn seen(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Absent => "absent",
            Self::Present(present) => present.phase.as_str(),
        }
    }
}

impl Seen for () {}
impl Seen for String {}
impl Seen for Vec<String> {}

/// Who is told how a call went.
pub(super) trait Witness: Send + 'static {
    /// It is over: seen through, or dropped. `took` is how long its caller waited.
    fn ended(&self, outcome: &'static str, took: Duration);
}

/// A call under way, or a listing. When it is over, however it ends, its witness is told.
pub(super) struct Underway<W: Witness> {
    witness: W,
    outcome: &'static str,
    took: Duration,
    /// Since when its caller waits; for a listing, only while more of it is waited for.
    waits_since: Option<Instant>,
}

impl<W: Witness> Underway<W> {
    pub(super) fn new(witness: W) -> Self {
        Self { witness, outcome: DROPPED, took: Duration::ZERO, waits_since: None }
    }

    fn asks(&mut self) {
        self.waits_since = Some(Instant::now());
    }

    fn is_answered(&mut self) {
        self.took += self.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Waits for an answer, which says in a word how the call went.
    pub(super) async fn answer<A>(mut self, sent: impl Future<Output = A>, outcome: impl Fn(&A) -> &'static str) -> A {
        self.asks();
        let answer = sent.await;
        self.outcome = outcome(&answer);
        answer
    }

    /// Goes along with a listing to its end.
    pub(super) fn listing(self, listed: Listing) -> Listing {
        let next = |(mut this, mut listed): (Self, Listing)| async move {
            this.asks();
            let item = listed.next().await;
            this.is_answered();
            match &item {
                // Its caller may be content with that.
                Some(Err(error)) => this.outcome = error.kind().as_str(),
                None if this.outcome == DROPPED => this.outcome = OK,
                _ => {}
            }
            item.map(|item| (item, (this, listed)))
        };
        stream::unfold((self, listed), next).boxed()
    }
}

impl<W: Witness> Drop for Underway<W> {
    fn drop(&mut self) {
        self.is_answered();
        self.witness.ended(self.outcome, self.took);
    }
}

/// Sends one call on, with the layer around it.
macro_rules! send_around {
    ($this:ident, $call:expr, $method:ident($($argument:expr),*)) => {{
        let call = $call;
        let cx = $this.context(&call);
        let call = BackendCall { cx: &cx, ..call };
        $this.around(call, async { $this.backend.$method(&cx, $($argument),*).await }).await
    }};
}
pub(super) use send_around;

/// Implements the trait for a layer with a field `backend`, from what it does [`Around`] calls. What involves no call, and
/// a watch, go straight to the backend.
macro_rules! forward_around {
    ($layer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<P: Provisioner> Provisioner for $layer<P> {
            fn capabilities(&self) -> Capabilities {
                self.backend.capabilities()
            }
            fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
                self.backend.validate(wanted, applied)
            }
            async fn identity(&self, cx: &OpContext) -> Result<String> {
                send_around!(self, BackendCall::read("identity", cx, &[]), identity())
            }
            async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                send_around!(self, BackendCall::mutation("create", cx, from_ref(target)), create(target))
            }
            async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                send_around!(self, BackendCall::mutation("suspend", cx, from_ref(target)), suspend(target))
            }
            async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                send_around!(self, BackendCall::mutation("scale to zero", cx, from_ref(target)), scale_to_zero(target))
            }
            async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                send_around!(self, BackendCall::mutation("resume", cx, from_ref(target)), resume(target))
            }
            async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
                send_around!(self, BackendCall::mutation("destroy", cx, from_ref(target)), destroy(target, data))
            }
            async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                send_around!(self, BackendCall::read("observe", cx, from_ref(target)), observe(target))
            }
            async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
                send_around!(self, BackendCall::read("observe many", cx, targets), observe_many(targets))
            }
            fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
                self.around_list(cx, self.backend.list(cx))
            }
            fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
                self.backend.watch(cx)
            }
            async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
                send_around!(self, BackendCall::mutation("delete data", cx, &[]), delete_data(data))
            }
            async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
                let call = BackendCall { mutates: !plan_only, ..BackendCall::mutation("maintain", cx, &[]) };
                send_around!(self, call, maintain(plan_only))
            }
        }
    };
}
pub(super) use forward_around;
