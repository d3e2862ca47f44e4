//! What went wrong, as RFC 9457 says it.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use provisioner_core::{
    Chain, Error, ErrorKind, Retry,
    types::{InvalidName, InvalidSpec},
};
use serde_json::{Map, Value};

/// What went wrong, in words for the customer.
///
/// What cannot be read at all (broken JSON, an unknown field, a wrong type) is 400; what can be read but not be had (no
/// such plan, no such name) is 422 and names the field.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    kind: Option<&'static str>,
    field: Option<String>,
    retry_after_seconds: Option<u64>,
}

impl Problem {
    /// A problem with this status and these words.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), kind: None, field: None, retry_after_seconds: None }
    }

    /// The same, with this field to blame.
    pub(crate) fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same, with when to try again.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }
}

/// Which status a kind of error has.
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        // A full house is a state that the request contradicts; nobody asked too often.
        ErrorKind::Conflict | ErrorKind::QuotaExceeded => StatusCode::CONFLICT,
        ErrorKind::InvalidSpec => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::CapacityExhausted
        | ErrorKind::Throttled
        | ErrorKind::Timeout
        | ErrorKind::Unavailable
        | ErrorKind::Cancelled
        | ErrorKind::StoreFull
        | ErrorKind::SessionLost => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = status(error.kind());
        if status.is_server_error() {
            // The customer gets a sentence without internals, so what happened has to be told here.
            tracing::error!(error = %Chain(&error), "a request was not served");
        }
        let retry_after_seconds = (status == StatusCode::SERVICE_UNAVAILABLE).then(|| match error.retry() {
            Retry::After(delay) => delay.as_secs().max(1),
            Retry::Backoff | Retry::Never | Retry::Anew => 2,
        });
        Self {
            status,
            detail: error.customer_message().to_owned(),
            kind: Some(error.kind().as_str()),
            field: error.field().map(str::to_owned),
            retry_after_seconds,
        }
    }
}

impl From<InvalidSpec> for Problem {
    fn from(invalid: InvalidSpec) -> Self {
        Error::from(invalid).into()
    }
}

/// A name that is none, in this field of the request.
pub(crate) fn invalid_name(field: &'static str) -> impl FnOnce(InvalidName) -> Problem {
    move |invalid| Problem::from(Error::from(invalid)).with_field(field)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // "about:blank" says that the status says it all; programs look at `kind` and `field`.
        let mut body = Map::new();
        body.insert("type".into(), "about:blank".into());
        body.insert("title".into(), self.status.canonical_reason().unwrap_or("Problem").into());
        body.insert("status".into(), self.status.as_u16().into());
        body.insert("detail".into(), self.detail.into());
        body.extend(self.kind.map(|kind| ("kind".to_owned(), kind.into())));
        body.extend(self.field.map(|field| ("field".to_owned(), field.into())));
        let mut response = (self.status, Value::Object(body).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_has_its_status() {
        for (kind, expected) in [
            (ErrorKind::InvalidSpec, 422),
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::QuotaExceeded, 409),
            (ErrorKind::StoreFull, 503),
            (ErrorKind::Unavailable, 503),
            (ErrorKind::Cancelled, 503),
            (ErrorKind::SessionLost, 503),
            (ErrorKind::StoreRefused, 500),
            (ErrorKind::Internal, 500),
        ] {
            let problem = Problem::from(Error::new(kind, "create"));
            assert_eq!(problem.status.as_u16(), expected, "{kind}");
            assert_eq!(problem.retry_after_seconds.is_some(), expected == 503, "{kind}");
        }
    }

    #[test]
    fn internals_stay_inside() {
        let error = Error::new(ErrorKind::Unavailable, "create")
            .with_message("10.0.0.7 refused")
            .with_source(std::io::Error::other("secret cause"))
            .with_retry(Retry::After(Duration::from_secs(7)));
        let problem = Problem::from(error);
        assert_eq!(problem.detail, "The service is busy. Please try again in a moment.");
        assert_eq!(problem.retry_after_seconds, Some(7));
    }
}
