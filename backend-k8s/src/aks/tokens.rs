//! Tokens for a cluster: kept, renewed before they expire, and put on requests.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use azure_core::{credentials::AccessToken, time::OffsetDateTime};
use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use kube::{Client, client::Body};
use provisioner_account::Failure;
use provisioner_azure::{TokenCredential, is_refused};
use provisioner_core::ErrorKind;
use tokio::time::Instant;
use tower::BoxError;
use tracing::warn;

/// How long before its end a token is renewed. Credentials, which keep tokens too, give out a kept one until then.
const RENEWED_BEFORE: Duration = Duration::from_secs(5 * 60);
/// How long a credential may take for a token.
const GIVEN_WITHIN: Duration = Duration::from_secs(30);
/// Between two renewals while there is a token that is good.
const RENEWALS_APART: Duration = Duration::from_secs(10);

/// Why a request was not sent.
#[derive(Debug)]
pub(super) struct NoToken(pub(super) Failure);

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for NoToken {}

/// The tokens of one credential for one cluster.
pub(super) struct Tokens {
    credential: Arc<dyn TokenCredential>,
    scope: String,
    kept: Mutex<Option<Token>>,
    /// Whose turn it is to ask the credential, and what came of asking it last.
    turn: Arc<tokio::sync::Mutex<Option<Asked>>>,
}

/// When a credential had answered, and why there was no token, if there was none.
struct Asked {
    at: Instant,
    /// There was a good token meanwhile.
    is_renewal: bool,
    failure: Option<Failure>,
}

#[derive(Clone)]
struct Token {
    /// It says of itself that it is not to be printed.
    header: HeaderValue,
    expires: OffsetDateTime,
}

impl Token {
    fn lasts(&self, time: Duration) -> bool {
        self.expires > OffsetDateTime::now_utc() + time
    }
}

/// A client whose requests carry our tokens.
pub(super) fn signing(client: Client, tokens: Tokens) -> Client {
    let tokens = Arc::new(tokens);
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (client, tokens) = (client.clone(), Arc::clone(&tokens));
        async move {
            let token = tokens.get().await.map_err(NoToken)?;
            request.headers_mut().insert(AUTHORIZATION, token.header.clone());
            let answer: Response<Body> = client.send(request).await?;
            if answer.status() == StatusCode::UNAUTHORIZED {
                tokens.forget(&token);
            }
            Ok::<_, BoxError>(answer)
        }
    });
    Client::new(service, namespace)
}

impl Tokens {
    pub(super) fn new(credential: Arc<dyn TokenCredential>, scope: String) -> Self {
        Self { credential, scope, kept: Mutex::default(), turn: Arc::default() }
    }

    /// A token that is good now. While there is one, nobody waits for the next, nor for its failing.
    async fn get(self: &Arc<Self>) -> Result<Token, Failure> {
        let since = Instant::now();
        if let Some(token) = self.kept() {
            if !token.lasts(RENEWED_BEFORE) {
                self.renew();
            }
            return Ok(token);
        }
        let mut turn = self.turn.lock().await;
        // Others may have asked while this one waited: what they were told is the answer to it, too.
        if let Some(token) = self.kept() {
            return Ok(token);
        }
        if let Some(Asked { at, failure: Some(failure), .. }) = &*turn
            && *at >= since
        {
            return Err(failure.clone());
        }
        self.ask(&mut turn).await
    }

    /// Renews the token beside the requests, unless somebody is at it or was a moment ago.
    fn renew(self: &Arc<Self>) {
        let Ok(mut turn) = Arc::clone(&self.turn).try_lock_owned() else { return };
        if turn.as_ref().is_some_and(|asked| asked.is_renewal && asked.at.elapsed() < RENEWALS_APART) {
            return;
        }
        let tokens = Arc::clone(self);
        // In a task of its own, as the request that notices may be given up; it ends by itself.
        tokio::spawn(async move {
            if let Err(failure) = tokens.ask(&mut turn).await {
                warn!(failure.message, "the token for a cluster is not renewed; the old one is still good");
            }
        });
    }

    /// Asks the credential, and keeps what it gives.
    async fn ask(&self, turn: &mut Option<Asked>) -> Result<Token, Failure> {
        let is_renewal = self.kept().is_some();
        let scopes = [self.scope.as_str()];
        let given = tokio::time::timeout(GIVEN_WITHIN, self.credential.get_token(&scopes, None)).await;
        let token = match given {
            Ok(Ok(token)) => readable(&token),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(Failure::new(ErrorKind::Timeout, "no token for the cluster in time")),
        };
        if let Ok(token) = &token {
            *self.keep() = Some(token.clone());
        }
        *turn = Some(Asked { at: Instant::now(), is_renewal, failure: token.as_ref().err().cloned() });
        token
    }

    /// The token that is kept, if it is good.
    fn kept(&self) -> Option<Token> {
        self.keep().clone().filter(|token| token.lasts(Duration::ZERO))
    }

    /// The cluster does not take this one, whatever its time.
    fn forget(&self, token: &Token) {
        self.keep().take_if(|kept| kept.header == token.header);
    }

    fn keep(&self) -> std::sync::MutexGuard<'_, Option<Token>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn readable(token: &AccessToken) -> Result<Token, Failure> {
    let header = HeaderValue::try_from(format!("Bearer {}", token.token.secret()));
    // The error is of no use, and the token is not for it.
    let unreadable = |_| Failure::new(ErrorKind::Unauthorized, "the token for the cluster fits into no header");
    let mut header = header.map_err(unreadable)?;
    header.set_sensitive(true);
    Ok(Token { header, expires: token.expires_on })
}

/// As the calls to Resource Manager tell it.
fn refused(error: &azure_core::Error) -> Failure {
    let kind = if is_refused(error) { ErrorKind::Unauthorized } else { ErrorKind::Unavailable };
    Failure::new(kind, format!("no token for the cluster is to be had: {error}"))
}
