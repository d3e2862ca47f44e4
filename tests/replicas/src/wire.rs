//! Calls to the provider in memory and their answers as lines of JSON, over a connection each.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Effect, Error, ErrorKind,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Endpoint, Generation, Incarnation, InstanceId,
        InstanceSpec, Observed, Owned, OwnedKind, Phase, Present, Reason, Target, TenantId,
    },
};
use serde::{Deserialize, Serialize};

/// A call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Which replica makes it.
    pub by: String,
    /// Whose all is.
    pub control_plane: ControlPlaneId,
    /// What is asked.
    pub asked: Asked,
}

/// What a call asks.
#[expect(clippy::large_enum_variant, reason = "each is sent at once, and none is kept")]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// Of one thing.
    Of(Verb, Wanted),
    /// All that there is.
    List,
    /// The removal of data.
    DeleteData(DataId),
}

/// What is asked of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words of the contract")]
pub enum Verb {
    Create,
    Suspend,
    ScaleToZero,
    Resume,
    Destroy(DataDisposition),
    Observe,
}

impl Verb {
    /// The word for it, as in the engine's log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Suspend => "suspend",
            Self::ScaleToZero => "scale to zero",
            Self::Resume => "resume",
            Self::Destroy(_) => "destroy",
            Self::Observe => "observe",
        }
    }
}

/// A target.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in a target")]
pub struct Wanted {
    pub id: InstanceId,
    pub tenant: TenantId,
    pub incarnation: Incarnation,
    pub generation: Generation,
    pub spec: InstanceSpec,
    pub data: DataId,
    /// Whether that data must be there.
    pub exists: bool,
}

impl From<&Target> for Wanted {
    fn from(target: &Target) -> Self {
        Self {
            id: target.id.clone(),
            tenant: target.tenant.clone(),
            incarnation: target.incarnation,
            generation: target.generation,
            spec: target.spec.as_ref().clone(),
            data: target.data.id().clone(),
            exists: matches!(target.data, DataSource::Existing(_)),
        }
    }
}

impl From<Wanted> for Target {
    fn from(wanted: Wanted) -> Self {
        let data = if wanted.exists { DataSource::Existing(wanted.data) } else { DataSource::Fresh(wanted.data) };
        let Wanted { id, tenant, incarnation, generation, spec, .. } = wanted;
        Self { id, tenant, incarnation, generation, spec: Arc::new(spec), data }
    }
}

/// The answer to a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// What is seen of the thing.
    Seen(Seen),
    /// All that there is.
    Listed(Vec<Found>),
    /// It is done.
    Done,
    /// It could not be done.
    Failed(Failed),
}

/// What is seen of a thing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "as in what is observed")]
pub enum Seen {
    Unknown {
        again: Duration,
    },
    Absent,
    Present {
        phase: Phase,
        endpoint: Option<Endpoint>,
        generation: Generation,
        incarnation: Incarnation,
        reason: Option<Reason>,
        again: Option<Duration>,
    },
}

impl From<Observed> for Seen {
    fn from(observed: Observed) -> Self {
        match observed {
            Observed::Unknown { again } => Self::Unknown { again },
            Observed::Absent => Self::Absent,
            Observed::Present(Present { phase, endpoint, generation, incarnation, reason, again, .. }) => {
                Self::Present { phase, endpoint, generation, incarnation, reason, again }
            }
        }
    }
}

impl From<Seen> for Observed {
    fn from(seen: Seen) -> Self {
        match seen {
            Seen::Unknown { again } => Self::Unknown { again },
            Seen::Absent => Self::Absent,
            Seen::Present { phase, endpoint, generation, incarnation, reason, again } => {
                let mut present = Present::new(phase, generation, incarnation);
                (present.endpoint, present.reason, present.again) = (endpoint, reason, again);
                present.into()
            }
        }
    }
}

/// One thing of a listing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in a listing")]
pub struct Found {
    pub id: InstanceId,
    pub incarnation: Incarnation,
    pub is_data: bool,
    pub data: Option<DataId>,
    pub seen: Seen,
}

impl From<Owned> for Found {
    fn from(owned: Owned) -> Self {
        let is_data = owned.kind == OwnedKind::Data;
        Self { id: owned.id, incarnation: owned.incarnation, is_data, data: owned.data, seen: owned.observed.into() }
    }
}

impl From<Found> for Owned {
    fn from(found: Found) -> Self {
        let kind = if found.is_data { OwnedKind::Data } else { OwnedKind::Instance };
        Self { id: found.id, incarnation: found.incarnation, kind, data: found.data, observed: found.seen.into() }
    }
}

/// An error of the provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    kind: String,
    field: Option<String>,
    text: String,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let field = error.field().map(str::to_owned);
        Self { kind: error.kind().as_str().to_owned(), field, text: error.to_string() }
    }
}

impl Failed {
    /// The error of this call.
    #[must_use]
    pub fn into_error(self, operation: &'static str) -> Error {
        // The kinds that a faultless provider in memory has.
        let kinds = [ErrorKind::Conflict, ErrorKind::DataMissing];
        let kind = kinds.into_iter().find(|kind| kind.as_str() == self.kind).unwrap_or(ErrorKind::Internal);
        let error = Error::new(kind, operation).with_effect(Effect::None).with_message(self.text);
        match self.field {
            Some(field) => error.with_field(field),
            None => error,
        }
    }
}
