//! Client tokens: who asks again with the same one gets the first machine, and never a second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::{answer::Refusal, query::Form, stand::locked};

/// What was launched with a token: what was asked for, and the id.
pub(crate) type Launched = Option<(Form, String)>;

/// What was launched with each token in each zone.
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html>
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<BTreeMap<(String, String), Entry>>);

type Entry = Arc<AsyncMutex<Launched>>;

impl Tokens {
    /// Waits until nobody else launches with this token. What was launched is written through what this gives.
    pub(crate) async fn take(&self, token: &str, zone: &str) -> OwnedMutexGuard<Launched> {
        let key = (token.to_owned(), zone.to_owned());
        let entry = Arc::clone(locked(&self.0).entry(key).or_default());
        entry.lock_owned().await
    }
}

/// The machine that was launched with a token, when a request asks for the same.
pub(crate) fn replayed(launched: &Launched, form: &Form) -> Result<Option<String>, Refusal> {
    match launched {
        None => Ok(None),
        Some((first, id)) if first == form => Ok(Some(id.clone())),
        Some(_) => Err(Refusal::new(
            "IdempotentParameterMismatch",
            "The client token you have provided is associated with a resource that was created with different parameters.",
        )),
    }
}
