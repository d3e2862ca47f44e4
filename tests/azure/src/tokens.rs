//! Bearer tokens: which ones are good, and until when.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{answer::Refusal, stand::locked, words};

/// The tokens that were given, each with the end of its time.
#[derive(Debug)]
pub(crate) struct Tokens {
    lifetime: Duration,
    given: Mutex<BTreeMap<String, Instant>>,
}

impl Tokens {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, given: Mutex::default() }
    }

    pub(crate) fn give(&self) -> String {
        let token = format!("test.{}", words::unique());
        locked(&self.given).insert(token.clone(), Instant::now() + self.lifetime);
        token
    }

    pub(crate) fn expire(&self) {
        let now = Instant::now();
        locked(&self.given).values_mut().for_each(|until| *until = now);
    }

    /// Looks at what a request says of who sends it.
    pub(crate) fn check(&self, authorization: Option<&str>) -> Result<(), Refusal> {
        let refused = |code, message| {
            let challenge = format!(
                "Bearer authorization_uri=\"https://login.microsoftonline.com/{}\", error=\"invalid_token\", error_description=\"{message}\"",
                words::TENANT
            );
            Err(Refusal::new(401, code, message).with_header("www-authenticate", challenge))
        };
        let Some(authorization) = authorization else {
            return refused("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.");
        };
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        match locked(&self.given).get(token) {
            None => refused("InvalidAuthenticationToken", "The access token is invalid."),
            Some(until) if *until <= Instant::now() => refused(
                "ExpiredAuthenticationToken",
                "The access token expiry UTC time is earlier than current UTC time.",
            ),
            Some(_) => Ok(()),
        }
    }
}
