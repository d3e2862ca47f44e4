//! Putting an instance to rest: to sleep, or suspended.

use provisioner_core::{ErrorKind, Result};
use serde_json::Value;

use super::{Work, set::edits_after};
use crate::{
    cache::{Intended, Space},
    client::{operation, path_of},
    names,
};

impl Work<'_> {
    pub(crate) async fn rest(&self, space: Option<Space>, intended: Intended) -> Result<()> {
        let Some(space) = space else { return Ok(()) };
        self.keep_namespace(Some(&space), false).await?;
        let Some(namespace) = &space.namespace else { return Ok(()) };
        let Some(set) = space.set_of(self.incarnation()) else { return Ok(()) };
        if namespace.is_ending || set.is_ending || namespace.released == Some(self.incarnation()) {
            return Ok(());
        }
        if set.replicas != 0 {
            self.expect_lasting_data(&space)?;
        }
        if set.intended != intended || set.replicas != 0 {
            let mut patch = vec![
                operation("test", "/metadata/uid", &*set.uid),
                operation("replace", &path_of("annotations", names::INTENDED), intended.as_str()),
                operation("replace", "/spec/replicas", 0),
            ];
            // What somebody else changed stays known for that.
            if !set.is_foreign {
                patch.push(operation(
                    "replace",
                    &path_of("annotations", names::WRITTEN),
                    edits_after(set, set.replicas != 0),
                ));
            }
            match self.patch_set(Value::Array(patch)).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => done?,
            }
        }
        match intended {
            Intended::Suspended => self.drop_routes_but(&[]).await,
            // It wakes by itself when a request comes, so there must be a way for one.
            _ if set.intended == Intended::Suspended && set.generation == self.subject.target.generation => {
                self.apply_all(&self.objects().routes, Some(&space)).await
            }
            _ => Ok(()),
        }
    }
}
