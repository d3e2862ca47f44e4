//! Reads requests, and says what is wrong with them.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use provisioner_core::types::{Actor, IdempotencyKey, InstanceId, Revision};
use serde::de::DeserializeOwned;

use crate::problem::{Problem, invalid_name};

/// The largest body, in bytes.
pub(crate) const BODY_MAX: usize = 64 * 1024;
/// The longest reason, in characters.
const REASON_MAX: usize = 500;

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body that may be left out.
pub(crate) struct OptionalJson<T>(pub(crate) T);

/// The query of the URL.
pub(crate) struct Search<T>(pub(crate) T);

/// The instance that the path names.
pub(crate) struct Named(pub(crate) InstanceId);

/// The headers that say under which conditions a request is meant.
pub(crate) struct Conditions {
    key: Option<IdempotencyKey>,
    expected: Option<Revision>,
}

impl Conditions {
    /// A request by this actor, for this reason, under these conditions.
    pub(crate) fn request(
        self,
        actor: Actor,
        reason: Option<String>,
    ) -> Result<provisioner_core::control_plane::Request, Problem> {
        let reason = reason.filter(|reason| !reason.trim().is_empty());
        if reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_MAX) {
            let detail = format!("The reason is too long: expected up to {REASON_MAX} characters.");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with_field("reason"));
        }
        Ok(provisioner_core::control_plane::Request { actor, reason, key: self.key, expected: self.expected })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let key = text(&parts.headers, "idempotency-key")?;
        let key = key.map(IdempotencyKey::new).transpose().map_err(invalid_name("Idempotency-Key"))?;
        let expected = match text(&parts.headers, "if-match")? {
            None | Some("*") => None,
            Some(tag) => {
                let number = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').parse().map_err(|_| {
                    let detail = "If-Match is no revision: expected a number, such as 7.";
                    Problem::new(StatusCode::BAD_REQUEST, detail).with_field("If-Match")
                })?;
                Some(Revision(number))
            }
        };
        Ok(Self { key, expected })
    }
}

/// A header's text.
fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Problem> {
    headers.get(name).map(axum::http::HeaderValue::to_str).transpose().map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, format!("The header {name} is not visible ASCII.")).with_field(name)
    })
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        // What cannot be a name names nothing.
        let id = name.ok().and_then(|Path(name)| InstanceId::new(name).ok());
        id.map(Self).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "There is no such instance."))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Search<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (declared, bytes) = body(request, state).await?;
        read(declared, &bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (declared, bytes) = body(request, state).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { read(declared, &bytes).map(Self) }
    }
}

/// Whether a body is declared as JSON, and the body.
async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<(bool, Bytes), Problem> {
    let declared = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = declared.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let declared = media_type.eq_ignore_ascii_case("application/json");
    match Bytes::from_request(request, state).await {
        Ok(bytes) => Ok((declared, bytes)),
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("The body is too large: expected up to {} KiB.", BODY_MAX / 1024);
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Err(rejection) => Err(Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())),
    }
}

fn read<T: DeserializeOwned>(declared: bool, bytes: &[u8]) -> Result<T, Problem> {
    if !declared {
        let detail = "Expected a JSON body, with Content-Type: application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let problem = Problem::new(StatusCode::BAD_REQUEST, format!("The body is not as expected: {}.", error.inner()));
        if matches!(path.as_str(), "." | "?") { problem } else { problem.with_field(path) }
    })?;
    let end = reader.end();
    end.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("The body is not as expected: {error}.")))?;
    Ok(value)
}
