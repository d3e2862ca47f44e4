//! What the service says: answers, and refusals in both of its shapes.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Option<Value>,
}

impl Answer {
    pub(crate) fn ok(body: Value) -> Self {
        Self::new(200, Some(body))
    }

    /// Without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self::new(status, None)
    }

    pub(crate) fn new(status: u16, body: Option<Value>) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    pub(crate) fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// As it is sent.
    pub(crate) fn to_response(&self) -> Response {
        let text = self.body.as_ref().map(Value::to_string);
        let mut response = response(self.status, JSON, text.unwrap_or_default());
        if self.body.is_none() {
            response.headers_mut().remove(header::CONTENT_TYPE);
        }
        for (name, value) in &self.headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

pub(crate) fn response(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    shape: Shape,
}

/// Which part of the service speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// The common front: `{"error":{"code","message"}}`.
    Common,
    /// App Service at times: the same in capitalised names, and once more below with a code of its own.
    Capitalised { extended: String },
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), headers: Vec::new(), shape: Shape::Common }
    }

    /// The same in capitalised names.
    pub(crate) fn capitalised(mut self, extended: &str) -> Self {
        self.shape = Shape::Capitalised { extended: extended.to_owned() };
        self
    }

    pub(crate) fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The caller's mistake.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message).capitalised("51021")
    }

    pub(crate) fn conflict(extended: &str, message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message).capitalised(extended)
    }

    /// `what` is as in `Microsoft.Web/sites/a`.
    pub(crate) fn no_resource(what: &str, group: &str) -> Self {
        let message = format!(
            "The Resource '{what}' under resource group '{group}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        );
        Self::new(404, "ResourceNotFound", message)
    }

    pub(crate) fn throttled(after: Option<String>) -> Self {
        let refusal =
            Self::new(429, "TooManyRequests", "The request is being throttled as the limit has been reached.");
        match after {
            Some(after) => refusal.with_header("retry-after", after),
            None => refusal,
        }
    }

    pub(crate) fn no_capacity() -> Self {
        let message = "No available instances to satisfy this request. App Service is attempting to increase capacity. Please retry your request later. If urgent, this can be mitigated by deploying this to a new resource group.";
        Self::conflict("03029", message)
    }

    pub(crate) fn to_answer(&self) -> Answer {
        let (code, message) = (&self.code, &self.message);
        let body = match &self.shape {
            Shape::Common => json!({ "error": { "code": code, "message": message } }),
            Shape::Capitalised { extended } => json!({
                "Code": code,
                "Message": message,
                "Target": null,
                "Details": [
                    { "Message": message },
                    { "Code": code },
                    { "ErrorEntity": {
                        "ExtendedCode": extended,
                        "MessageTemplate": message,
                        "Parameters": [],
                        "Code": code,
                        "Message": message,
                    } },
                ],
                "Innererror": null,
            }),
        };
        Answer { status: self.status, headers: self.headers.clone(), body: Some(body) }
    }
}
