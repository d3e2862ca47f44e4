//! What the proxy says: answers and refusals in the shape of the real service.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::Response,
};

use crate::xml::Element;

/// Where the elements of EC2 are defined. moto names an older one, in which stricter clients find nothing.
const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

/// A request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Refusal {
    /// The caller's mistake, as most are.
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self::with_status(400, code, message)
    }

    pub(crate) fn with_status(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn no_instance(id: &str) -> Self {
        Self::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
    }

    pub(crate) fn no_volume(id: &str) -> Self {
        Self::new("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
    }

    pub(crate) fn throttled() -> Self {
        Self::with_status(503, "RequestLimitExceeded", "Request limit exceeded.")
    }

    pub(crate) fn no_capacity() -> Self {
        let message = "We currently do not have sufficient capacity in the Availability Zone you requested.";
        Self::with_status(500, "InsufficientInstanceCapacity", message)
    }

    /// As EC2 says it.
    pub(crate) fn to_element(&self) -> Element {
        let error = Element::new("Error").with_text("Code", &self.code).with_text("Message", &self.message);
        let errors = Element::new("Errors").with(error);
        Element::new("Response").with(errors).with_text("RequestID", &request_id())
    }

    /// As the services with newer protocols say it, STS among them.
    pub(crate) fn to_other_element(&self) -> Element {
        let whose = if self.status < 500 { "Sender" } else { "Receiver" };
        let error = Element::new("Error").with_text("Type", whose);
        let error = error.with_text("Code", &self.code).with_text("Message", &self.message);
        Element::new("ErrorResponse").with(error).with_text("RequestId", &request_id())
    }
}

/// The id of a request: another one each time.
fn request_id() -> String {
    static REQUESTS: AtomicU64 = AtomicU64::new(1);
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    format!("59dbff89-35bd-4eac-{:04x}-{:012x}", std::process::id() & 0xffff, number)
}

/// An answer to an action, still empty.
pub(crate) fn answer(action: &str) -> Element {
    Element::new(&format!("{action}Response")).with_text("requestId", &request_id())
}

/// An answer that says only that it was done.
pub(crate) fn done(action: &str) -> Element {
    answer(action).with_text("return", "true")
}

/// An answer as it is sent.
pub(crate) fn document(element: &Element) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{element}")
}

pub(crate) fn response(status: u16, content_type: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(content_type) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}

/// The answer to a request, whether it was refused or not.
pub(crate) fn xml(answer: Result<Element, Refusal>) -> Response {
    let (status, element) = match answer {
        Ok(element) => (200, element.with_attribute("xmlns", NAMESPACE)),
        Err(refusal) => (refusal.status, refusal.to_element()),
    };
    response(status, XML, document(&element))
}

pub(crate) const XML: &str = "text/xml;charset=UTF-8";
