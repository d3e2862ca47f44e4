//! What is written down about an instance. Never a secret, never the value of an environment variable.

use std::time::Duration;

use provisioner_core::{
    ErrorKind,
    types::{ControlPlaneId, DataDisposition, DataId, Generation, Incarnation, InstanceId, InstanceSpec, Reason},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::{
    error::{Problem, Result},
    layout::{self, InstanceFolder, Key},
};

/// The schema that this release writes. A reader accepts this one and the one before.
const SCHEMA: u32 = 1;

/// What an instance is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Intended {
    Running,
    Zero,
    Suspended,
    Destroying(DataDisposition),
}

/// What an instance is meant to be and how it was started last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    pub(crate) control_plane: ControlPlaneId,
    pub(crate) id: InstanceId,
    pub(crate) incarnation: Incarnation,
    /// A hash: see [`TenantId::digest`](provisioner_core::types::TenantId::digest).
    pub(crate) tenant: String,
    pub(crate) generation: Generation,
    pub(crate) data: DataId,
    pub(crate) port: u16,
    pub(crate) intended: Intended,
    /// A digest of the spec it was started with.
    pub(crate) started_with: String,
    // What an adopting control plane must know without the spec.
    pub(crate) health_path: String,
    start_timeout_seconds: u32,
    stop_grace_seconds: u32,
    /// Thousandths of a CPU; 0: not held to any, as by earlier releases.
    #[serde(default)]
    pub(crate) cpu_millis: u32,
    #[serde(default)]
    pub(crate) memory_mib: u32,
}

impl Record {
    pub(crate) fn new(key: &Key, tenant: String, data: DataId, port: u16, generation: Generation) -> Self {
        Self {
            schema: SCHEMA,
            control_plane: key.control_plane.clone(),
            id: key.id.clone(),
            incarnation: key.incarnation,
            tenant,
            generation,
            data,
            port,
            intended: Intended::Running,
            started_with: String::new(),
            health_path: "/".into(),
            start_timeout_seconds: 0,
            stop_grace_seconds: 0,
            cpu_millis: 0,
            memory_mib: 0,
        }
    }

    /// The same about to be started with this spec.
    pub(crate) fn started_with(mut self, spec: &InstanceSpec) -> Self {
        self.started_with = digest(spec);
        self.health_path.clone_from(&spec.workload.health_path);
        self.start_timeout_seconds = spec.workload.start_timeout_seconds;
        self.stop_grace_seconds = spec.workload.stop_grace_seconds;
        self.cpu_millis = spec.size.cpu_millis;
        self.memory_mib = spec.size.memory_mib;
        self
    }

    /// The same meant to be something else.
    pub(crate) fn with_intended(&self, intended: Intended) -> Self {
        Self { intended, ..self.clone() }
    }

    pub(crate) fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.start_timeout_seconds.into())
    }

    pub(crate) fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.stop_grace_seconds.into())
    }

    /// Reads the record of a folder. `None`: there is none that can be read; the making was cut short.
    pub(crate) fn read(folder: &InstanceFolder, key: &Key) -> Result<Option<Self>> {
        let Some(record) = read_json::<Self>(&folder.record())? else {
            return Ok(None);
        };
        if (&record.control_plane, &record.id, &record.incarnation) == (&key.control_plane, &key.id, &key.incarnation) {
            Ok(Some(record))
        } else {
            let message = format!("{} is the record of another instance", folder.record().display());
            Err(Problem::new(ErrorKind::Conflict, message))
        }
    }

    pub(crate) fn write(&self, folder: &InstanceFolder) -> Result<()> {
        write_json(&folder.record(), self)
    }
}

/// How the last start ended, if badly. Goes when the next one begins.
pub(crate) fn read_outcome(folder: &InstanceFolder) -> Result<Option<Reason>> {
    Ok(layout::read(&folder.outcome())?.and_then(|content| serde_json::from_slice(&content).ok()))
}

pub(crate) fn write_outcome(folder: &InstanceFolder, reason: &Reason) -> Result<()> {
    write_json(&folder.outcome(), reason)
}

/// Reads a file of ours. `None`: it is not there, or it is not what we write.
///
/// # Errors
/// When it cannot be read, or was written by a newer release: overwriting that would lose what it knows.
pub(crate) fn read_json<T: DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Header {
        schema: u32,
    }
    let Some(content) = layout::read(path)? else {
        return Ok(None);
    };
    let Ok(header) = serde_json::from_slice::<Header>(&content) else {
        tracing::warn!(path = %path.display(), "not readable; taken as never written");
        return Ok(None);
    };
    if header.schema > SCHEMA {
        let message = format!("{} has schema {}: this release knows up to {SCHEMA}", path.display(), header.schema);
        return Err(Problem::new(ErrorKind::StoreRefused, message));
    }
    match serde_json::from_slice(&content) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "not readable; taken as never written");
            Ok(None)
        }
    }
}

pub(crate) fn write_json<T: Serialize>(path: &std::path::Path, value: &T) -> Result<()> {
    let content = serde_json::to_vec_pretty(value)
        .map_err(|error| Problem::new(ErrorKind::Internal, format!("cannot write {}: {error}", path.display())))?;
    layout::write_durably(path, &content)
}

pub(crate) const fn schema() -> u32 {
    SCHEMA
}

/// 64 hexadecimal digits that change with the spec. Environment values go in but cannot be read out of it.
pub(crate) fn digest(spec: &InstanceSpec) -> String {
    hex(&serde_json::to_vec(spec).unwrap_or_default())
}

/// A SHA-256 digest in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn folder(root: &std::path::Path) -> (InstanceFolder, Key) {
        let key = Key {
            control_plane: ControlPlaneId::new("plane").unwrap(),
            id: InstanceId::new("acme").unwrap(),
            incarnation: Incarnation::new(1, 1),
        };
        let folder = Layout::new(root.into()).instance(&key);
        layout::make_folder(folder.path()).unwrap();
        (folder, key)
    }

    #[test]
    fn a_record_reads_back_and_garbage_is_no_record() {
        let root = tempfile::tempdir().unwrap();
        let (folder, key) = folder(root.path());
        assert_eq!(Record::read(&folder, &key).unwrap(), None);
        let mut record = Record::new(&key, "tenant".into(), DataId::from_random(1), 2000, Generation(3));
        for intended in [Intended::Zero, Intended::Destroying(DataDisposition::Retain)] {
            record.intended = intended;
            record.write(&folder).unwrap();
            assert_eq!(Record::read(&folder, &key).unwrap().as_ref(), Some(&record));
        }
        for garbage in ["", "{", "{\"schema\": 1}", "[]"] {
            std::fs::write(folder.record(), garbage).unwrap();
            assert_eq!(Record::read(&folder, &key).unwrap(), None, "{garbage}");
        }
    }

    #[test]
    fn a_record_of_a_newer_release_or_another_instance_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (folder, key) = folder(root.path());
        std::fs::write(folder.record(), "{\"schema\": 2}").unwrap();
        assert!(Record::read(&folder, &key).unwrap_err().to_string().contains("schema 2"));
        let other = Key { incarnation: Incarnation::new(2, 2), ..key.clone() };
        Record::new(&other, "t".into(), DataId::from_random(1), 1, Generation(1)).write(&folder).unwrap();
        assert!(Record::read(&folder, &key).unwrap_err().to_string().contains("another instance"));
    }
}
