//! The one place that knows which backends there are.

use std::{path::Path, sync::Arc};

use backend_process::ProcessConfig;
use provisioner_core::{Provisioner, Result};

use crate::args::BackendKind;

/// The backend of this kind, keeping what it needs to keep on this machine under `root`.
pub(crate) fn backend(kind: BackendKind, root: &Path) -> Result<Arc<dyn Provisioner>> {
    match kind {
        // Without users of their own: the product lies in a build folder, which others than its owner may not enter.
        BackendKind::Process => Ok(Arc::new(ProcessConfig::new(root).without_users().build()?)),
    }
}
