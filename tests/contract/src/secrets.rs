//! A vault for the rules about secrets.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use provisioner_core::{
    Error, ErrorKind, Result,
    secret::{SecretReference, SecretResolver, SecretString},
};

/// A vault in memory that counts how often it was asked. It serves `vault:NAME`.
#[derive(Default)]
pub struct Vault {
    values: Mutex<BTreeMap<String, String>>,
    asked: Mutex<u64>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    /// Puts a value under a name, over what was there.
    pub fn put(&self, name: &str, value: &str) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value.to_owned());
    }

    /// How often it was asked so far.
    #[must_use]
    pub fn asked(&self) -> u64 {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SecretResolver for Vault {
    async fn resolve(&self, reference: &SecretReference) -> Result<SecretString> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        // A vault is another machine.
        tokio::task::yield_now().await;
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.get(reference.path()).filter(|_| reference.scheme() == "vault");
        value.map(|value| SecretString::from(value.clone())).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "resolve secret").with_message(format!("no secret {reference}"))
        })
    }
}
