//! An answer of Resource Manager, read as far as every caller needs.

use std::{fmt, time::Duration};

use azure_core::http::{RawResponse, headers::HeaderName};
use provisioner_account::Failure;
use provisioner_core::ErrorKind;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Where the service says when an operation has ended.
const ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
const LOCATION: HeaderName = HeaderName::from_static("location");
const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");
const CORRELATION_ID: HeaderName = HeaderName::from_static("x-ms-correlation-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

/// An answer. `Debug` does not show the body, which may hold keys.
pub(crate) struct Answer {
    /// What was asked, for messages: a method and the end of a path.
    pub(crate) call: String,
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) async_operation: Option<String>,
    pub(crate) location: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) request_id: Option<String>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, status, body, .. } = self;
        f.debug_struct("Answer")
            .field("call", call)
            .field("status", status)
            .field("bytes", &body.len())
            .finish_non_exhaustive()
    }
}

impl Answer {
    pub(crate) fn new(call: String, response: &RawResponse) -> Self {
        let header = |name: &HeaderName| response.headers().get_optional_string(name);
        Self {
            call,
            status: response.status().into(),
            body: response.body().as_ref().to_vec(),
            async_operation: header(&ASYNC_OPERATION),
            location: header(&LOCATION),
            retry_after: header(&RETRY_AFTER).and_then(|text| Some(Duration::from_secs(text.trim().parse().ok()?))),
            request_id: header(&CORRELATION_ID).or_else(|| header(&REQUEST_ID)),
        }
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as any JSON. `Null`: there is none, or it is none.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body, read as a model.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // The body itself may hold secrets.
            let message = format!("{}: an answer that cannot be read, at line {}", self.call, error.line());
            let failure = Failure::new(ErrorKind::Unavailable, message).in_doubt();
            Failure { request_id: self.request_id.clone(), ..failure }
        })
    }
}
