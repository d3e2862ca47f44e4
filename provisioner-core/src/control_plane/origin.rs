//! Where a request comes from.

use crate::types::OperationId;

/// Where a request comes from: from a caller at hand, or from the inbox, where its operation has a name already.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    /// The name of its operation; a new one where there is none yet.
    pub(super) operation: Option<OperationId>,
    /// Its place in the inbox, which it leaves when it is accepted.
    pub(super) request: Option<u64>,
}
