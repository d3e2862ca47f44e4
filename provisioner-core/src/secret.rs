//! References to secrets, and where their values come from.
//!
//! A spec holds references; a value exists only between its resolution and the call that hands it over. Values are
//! [`SecretString`]s, which print as `[REDACTED]` and are wiped when dropped.

use std::{fmt, path::PathBuf, str::FromStr};

use async_trait::async_trait;
pub use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Where a secret's value is to be found. Written `env:NAME`, `file:PATH`, or `SCHEME:PATH` for the embedder's vault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretReference {
    scheme: String,
    path: String,
}

impl SecretReference {
    /// Who resolves it: `env`, `file`, or the word of another vault.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What it is called there.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme, self.path)
    }
}

/// A text is not a reference to a secret. Does not quote the text: it may be the secret itself, put in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a reference to a secret: expected env:NAME, file:PATH or SCHEME:PATH")]
pub struct InvalidSecretReference;

impl FromStr for SecretReference {
    type Err = InvalidSecretReference;

    fn from_str(text: &str) -> Result<Self, InvalidSecretReference> {
        let (scheme, path) = text.split_once(':').ok_or(InvalidSecretReference)?;
        let scheme_ok = (1..=32).contains(&scheme.len())
            && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        // A URL is no reference, and may hold a password.
        let path_ok =
            !path.starts_with("//") && (1..=1024).contains(&path.len()) && !path.chars().any(char::is_control);
        if scheme_ok && path_ok {
            Ok(Self { scheme: scheme.into(), path: path.into() })
        } else {
            Err(InvalidSecretReference)
        }
    }
}

impl TryFrom<String> for SecretReference {
    type Error = InvalidSecretReference;

    fn try_from(text: String) -> Result<Self, InvalidSecretReference> {
        text.parse()
    }
}

impl From<SecretReference> for String {
    fn from(reference: SecretReference) -> Self {
        reference.to_string()
    }
}

/// Resolves references to secrets: the embedder's vault.
#[async_trait]
pub trait SecretResolver: fmt::Debug + Send + Sync + 'static {
    /// Looks the value up.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] for a reference that this resolver cannot serve, [`ErrorKind::NotFound`] when there is
    /// no such secret, [`ErrorKind::Unavailable`] when the vault did not answer.
    async fn resolve(&self, reference: &SecretReference) -> Result<SecretString>;
}

/// Resolves `env:NAME` from the environment of the control plane and `file:PATH` from below one folder.
///
/// Both are off by default: who may write a spec could otherwise read whatever the control plane can.
#[derive(Debug, Clone, Default)]
pub struct LocalSecrets {
    variable_prefix: Option<String>,
    folder: Option<PathBuf>,
}

impl LocalSecrets {
    /// A resolver that refuses every reference.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The same, resolving `env:NAME` for variables whose name starts with the prefix.
    #[must_use]
    pub fn with_variables(mut self, prefix: impl Into<String>) -> Self {
        self.variable_prefix = Some(prefix.into());
        self
    }

    /// The same, resolving `file:PATH`, relative to this folder and nowhere outside it. A line end at the end of the
    /// file is not part of the secret.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    fn variable(&self, name: &str) -> Result<SecretString> {
        match &self.variable_prefix {
            Some(prefix) if name.starts_with(prefix.as_str()) => std::env::var(name)
                .map(SecretString::from)
                .map_err(|_| missing(format!("no environment variable {name} in the control plane"))),
            _ => Err(refused(format!("the control plane hands out no environment variable {name}"))),
        }
    }

    async fn file(&self, path: &str) -> Result<SecretString> {
        let Some(folder) = &self.folder else {
            return Err(refused("the control plane hands out no files".into()));
        };
        let missing_file = |_| missing(format!("no secret file {path}"));
        // Both sides resolved, so that neither `..` nor a link leads outside.
        let folder = tokio::fs::canonicalize(folder).await.map_err(missing_file)?;
        let file = tokio::fs::canonicalize(folder.join(path)).await.map_err(missing_file)?;
        if !file.starts_with(&folder) {
            return Err(refused(format!("the secret file {path} lies outside the folder of secrets")));
        }
        let mut text = tokio::fs::read_to_string(&file).await.map_err(missing_file)?;
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
        Ok(SecretString::from(text))
    }
}

#[async_trait]
impl SecretResolver for LocalSecrets {
    async fn resolve(&self, reference: &SecretReference) -> Result<SecretString> {
        match reference.scheme() {
            "env" => self.variable(reference.path()),
            "file" => self.file(reference.path()).await,
            scheme => Err(refused(format!("no vault answers to {scheme}:"))),
        }
    }
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidSpec, "resolve secret").with_message(message).with_field("secrets")
}

fn missing(message: String) -> Error {
    Error::new(ErrorKind::NotFound, "resolve secret").with_message(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_handed_out_unless_allowed() {
        let none = LocalSecrets::none();
        for reference in ["env:PATH", "file:/etc/hostname", "vault:x"] {
            let error = none.resolve(&reference.parse().unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{reference}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_below_the_folder_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).unwrap();
        let local = LocalSecrets::none().with_folder(folder.path());
        assert_eq!(local.resolve(&"file:token".parse().unwrap()).await.unwrap().expose_secret(), "hunter2");
        for (path, kind) in [
            ("file:../../etc/hostname", ErrorKind::NotFound),
            ("file:/etc/hostname", ErrorKind::InvalidSpec),
            ("file:link", ErrorKind::InvalidSpec),
            ("file:nothing", ErrorKind::NotFound),
        ] {
            let error = local.resolve(&path.parse().unwrap()).await.unwrap_err();
            assert!(error.kind() == kind || path.contains(".."), "{path}: {error}");
        }
    }

    #[test]
    fn a_value_in_place_of_a_reference_is_not_quoted() {
        let error = "hunter2".parse::<SecretReference>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
