//! A backend whose calls are counted and timed.

use std::{fmt, future::Future, slice::from_ref, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use metrics::SharedString;

use super::around::{Answer, Around, BackendCall, Listing, Underway, Witness, forward_around, send_around};
use crate::{
    context::OpContext,
    error::Result,
    provisioner::Provisioner,
    types::{Capabilities, CellName, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

/// A backend whose calls are counted and timed, through the facade `metrics`. A clone is the same backend.
///
/// | metric | labels | what |
/// |---|---|---|
/// | `provisioner_calls_total` | `cell`, `operation`, `outcome` | calls that are over; the outcome is `ok` or the kind of the error, and `dropped` where nobody waited for the answer |
/// | `provisioner_call_seconds` | `cell`, `operation` | how long their callers waited, also of those that failed |
/// | `provisioner_calls_in_flight` | `cell`, `operation` | calls that are not over |
///
/// The cell is labelled as by the engine, so that its figures and these stand side by side. A look at many instances is one
/// call, whose outcome is that of the first that could not be looked at. A listing is one call, in flight for as long as it
/// is open, and its seconds are those in which its caller waited for items. A watch is not counted.
///
/// ```
/// use provisioner_core::{Provisioner, layers::Measured, memory::MemoryProvisioner, types::CellName};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let measured = Measured::new(MemoryProvisioner::new(Default::default()), &CellName::new("weu-1")?);
/// assert_eq!(measured.to_string(), "Measured(Memory(memory))");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Measured<P> {
    backend: P,
    cell: SharedString,
}

impl<P: fmt::Display> fmt::Display for Measured<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measured({})", self.backend)
    }
}

impl<P: Provisioner> Measured<P> {
    /// A backend whose calls are counted as those of this cell.
    #[must_use]
    pub fn new(backend: P, cell: &CellName) -> Self {
        Self { backend, cell: SharedString::from(Arc::<str>::from(cell.as_str())) }
    }

    fn begin(&self, operation: &'static str) -> Underway<InFlight> {
        let call = InFlight { cell: self.cell.clone(), operation };
        call.gauge().increment(1.0);
        Underway::new(call)
    }
}

/// A call that is counted as in flight until it is over.
struct InFlight {
    cell: SharedString,
    operation: &'static str,
}

impl InFlight {
    fn gauge(&self) -> metrics::Gauge {
        metrics::gauge!("provisioner_calls_in_flight", "cell" => self.cell.clone(), "operation" => self.operation)
    }
}

impl Witness for InFlight {
    fn ended(&self, outcome: &'static str, took: Duration) {
        let (cell, operation) = (&self.cell, self.operation);
        self.gauge().decrement(1.0);
        metrics::counter!(
            "provisioner_calls_total",
            "cell" => cell.clone(), "operation" => operation, "outcome" => outcome
        )
        .increment(1);
        metrics::histogram!("provisioner_call_seconds", "cell" => cell.clone(), "operation" => operation).record(took);
    }
}

impl<P: Provisioner> Around for Measured<P> {
    async fn around<A: Answer>(&self, call: BackendCall<'_>, sent: impl Future<Output = A> + Send) -> A {
        self.begin(call.operation).answer(sent, A::outcome).await
    }

    fn around_list(&self, _cx: &OpContext, listed: Listing) -> Listing {
        self.begin("list").listing(listed)
    }
}

forward_around!(Measured);

#[cfg(test)]
mod tests;
