//! A credential that is written down, and does what a test says.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use azure_core::{
    credentials::{AccessToken, TokenCredential, TokenRequestOptions},
    error::{Error, ErrorKind},
    http::StatusCode,
    time::OffsetDateTime,
};
use test_azure::Azure;

/// Long enough that it is not renewed.
const LONG: Duration = Duration::from_secs(3600);

/// What comes of asking for a token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Given {
    /// One that lasts so long.
    For(Duration),
    /// None, and why.
    Refused,
    /// None, as nobody can be asked.
    Unreachable,
    /// Nothing, for ever.
    Nothing,
}

/// Signed in at the stand-in for Resource Manager, which knows its tokens; those for clusters are counted: `cluster-1`, `cluster-2`.
#[derive(Debug)]
pub(crate) struct Credential {
    azure: Azure,
    next: Mutex<VecDeque<Given>>,
    /// For whom tokens for clusters were wanted.
    asked: Mutex<Vec<String>>,
    given: AtomicUsize,
}

impl Credential {
    pub(crate) fn new(azure: &Azure) -> Self {
        Self { azure: azure.clone(), next: Mutex::default(), asked: Mutex::default(), given: AtomicUsize::new(0) }
    }

    /// What comes of asking for tokens for a cluster next. Later ones last an hour.
    pub(crate) fn then(&self, given: impl IntoIterator<Item = Given>) {
        self.next.lock().unwrap().extend(given);
    }

    /// For whom tokens for clusters were wanted, so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl TokenCredential for Credential {
    async fn get_token(&self, scopes: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        let [scope] = scopes else { panic!("one is wanted: {scopes:?}") };
        if scope.starts_with("https://management.") {
            return Ok(AccessToken::new(self.azure.token(), OffsetDateTime::now_utc() + LONG));
        }
        self.asked.lock().unwrap().push((*scope).to_owned());
        let given = self.next.lock().unwrap().pop_front().unwrap_or(Given::For(LONG));
        // It takes a moment, so that many can want it at once.
        tokio::time::sleep(Duration::from_millis(30)).await;
        match given {
            Given::For(time) => {
                let number = self.given.fetch_add(1, Ordering::SeqCst) + 1;
                Ok(AccessToken::new(format!("cluster-{number}"), OffsetDateTime::now_utc() + time))
            }
            Given::Refused => {
                // As the credentials of the SDK tell what the token service answers.
                let answered = ErrorKind::HttpResponse {
                    status: StatusCode::Unauthorized,
                    error_code: Some("50053".to_owned()),
                    raw_response: None,
                };
                let answered = Error::new(answered, "it answers 401");
                Err(Error::with_error(ErrorKind::Credential, answered, "the account is locked"))
            }
            Given::Unreachable => Err(Error::with_message(ErrorKind::Credential, "no route to the token service")),
            Given::Nothing => std::future::pending().await,
        }
    }
}
