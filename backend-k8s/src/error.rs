//! What the cluster's refusals mean to the engine: the only place where its codes are read.

use std::time::Duration;

use http::StatusCode;
use kube::core::Status;
use provisioner_core::{Effect, Error, ErrorKind, Retry, types::InstanceId};

/// What a request was about, for the errors it ends in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct During<'a> {
    /// The verb that is under way, in the infinitive.
    pub(crate) operation: &'static str,
    pub(crate) instance: Option<&'a InstanceId>,
}

impl During<'_> {
    /// An error of this kind in this operation.
    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        let error = Error::new(kind, self.operation);
        match self.instance {
            Some(instance) => error.with_instance(instance),
            None => error,
        }
    }
}

/// An answer that is no success.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) code: StatusCode,
    pub(crate) status: Status,
    /// The header `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
    /// By which the cluster's audit log tells of the request: its header `Audit-Id`, or ours.
    pub(crate) audit_id: Option<String>,
    /// The verb and the resource, as rights are told: `patch statefulsets.apps`.
    pub(crate) request: String,
}

/// What came of a request that did not succeed.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// The cluster said no.
    Refused(Box<Refusal>),
    /// No answer, and whether the request was sent.
    Unanswered { was_sent: bool, message: String },
    /// No answer in time.
    TimedOut,
    /// The caller gave up before it was sent.
    Cancelled,
    /// An answer that nobody expects.
    Unreadable(String),
    /// Azure gave no way to the cluster, or no token for it: the cluster was not asked.
    #[cfg(feature = "aks")]
    Azure(Box<provisioner_account::Failure>),
}

impl Failure {
    /// Whether there is no such thing. A proxy's page, and a server that does not serve the kind yet, say nothing of that.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(refusal)
            if refusal.code == StatusCode::NOT_FOUND && refusal.status.reason == "NotFound")
    }

    /// Whether what a watch would begin with is too old.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code == StatusCode::GONE)
    }

    /// Whether the cluster's refusal has these words.
    pub(crate) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status.message.contains(words))
    }

    /// Whether rights are missing.
    pub(crate) fn is_unauthorized(&self) -> bool {
        match self {
            Self::Refused(refusal) => matches!(refusal.code, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
            #[cfg(feature = "aks")]
            Self::Azure(failure) => failure.kind == ErrorKind::Unauthorized,
            _ => false,
        }
    }

    /// Whether somebody said no, and did not merely fail to answer: it does not pass by itself in a moment.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            #[cfg(feature = "aks")]
            Self::Azure(failure) => !matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::Timeout),
            _ => false,
        }
    }

    /// When whoever refused it wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            #[cfg(feature = "aks")]
            Self::Azure(failure) => match failure.retry {
                Some(Retry::After(pause)) => Some(pause),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it is there already.
    pub(crate) fn is_already_there(&self) -> bool {
        matches!(self, Self::Refused(refusal)
            if refusal.code == StatusCode::CONFLICT && refusal.status.reason == "AlreadyExists")
    }

    /// Whether a condition of the request did not hold: somebody else was faster.
    pub(crate) fn is_overtaken(&self) -> bool {
        match self {
            Self::Refused(refusal) => match refusal.code {
                StatusCode::CONFLICT => refusal.status.reason != "AlreadyExists",
                // A `test` of a JSON patch that fails is told in these words, whatever the release; what is wrong with an
                // object is told by its fields.
                StatusCode::UNPROCESSABLE_ENTITY => refusal.status.message.contains("rejected our request"),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether a mutating request that failed so may have done something.
    pub(crate) fn may_have_acted(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.is_server_error() && !is_webhook(&refusal.status),
            Self::Unanswered { was_sent, .. } => *was_sent,
            Self::Cancelled => false,
            #[cfg(feature = "aks")]
            Self::Azure(_) => false,
            Self::TimedOut | Self::Unreadable(_) => true,
        }
    }

    /// The public error. A mutating request that was sent may have acted unless the cluster said that it did not.
    pub(crate) fn during(self, during: During<'_>, mutating: bool) -> Error {
        let maybe = if mutating { Effect::Unknown } else { Effect::None };
        match self {
            Self::Refused(refusal) => refused(*refusal, during, maybe),
            Self::Unanswered { was_sent, message } => during
                .error(ErrorKind::Unavailable)
                .with_effect(if was_sent { maybe } else { Effect::None })
                .with_message(message),
            Self::TimedOut => during.error(ErrorKind::Timeout).with_effect(maybe),
            Self::Cancelled => during.error(ErrorKind::Cancelled),
            Self::Unreadable(message) => during.error(ErrorKind::Internal).with_effect(maybe).with_message(message),
            #[cfg(feature = "aks")]
            Self::Azure(failure) => {
                let During { operation, instance } = during;
                // Whatever was asked of Azure changes nothing there, either.
                failure.during(provisioner_account::During { operation, instance }, false)
            }
        }
    }
}

/// Whether a webhook did not answer. Webhooks are asked before anything is written.
fn is_webhook(status: &Status) -> bool {
    status.message.contains("failed calling webhook")
}

/// Whether it is a webhook's word on what was to be written, and not one on who may write it.
fn is_policy(status: &Status) -> bool {
    status.message.contains("denied the request")
}

/// By status code and reason; see
/// <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md#response-status-kind>.
fn refused(refusal: Refusal, during: During<'_>, maybe: Effect) -> Error {
    let Refusal { code, status, retry_after, audit_id, request } = refusal;
    let is_quota = code == StatusCode::FORBIDDEN && status.message.contains("exceeded quota");
    let (kind, retry, effect) = match code {
        StatusCode::UNAUTHORIZED => (ErrorKind::Unauthorized, None, Effect::None),
        StatusCode::FORBIDDEN if is_quota => (ErrorKind::QuotaExceeded, None, Effect::None),
        StatusCode::FORBIDDEN if is_terminating(&status) => (ErrorKind::Conflict, Some(Retry::Backoff), Effect::None),
        StatusCode::FORBIDDEN if is_policy(&status) => (ErrorKind::InvalidSpec, None, Effect::None),
        StatusCode::FORBIDDEN => (ErrorKind::Unauthorized, None, Effect::None),
        StatusCode::NOT_FOUND if status.reason == "NotFound" => {
            (ErrorKind::NotFound, Some(Retry::Backoff), Effect::None)
        }
        // Nobody there knows such an address: a proxy, or a server that has only begun to start.
        StatusCode::NOT_FOUND => (ErrorKind::Unavailable, None, Effect::None),
        // Two writers at one thing: the one that came second looks again.
        StatusCode::CONFLICT => (ErrorKind::Conflict, Some(Retry::Backoff), Effect::None),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
            (ErrorKind::InvalidSpec, None, Effect::None)
        }
        StatusCode::TOO_MANY_REQUESTS => (ErrorKind::Throttled, None, Effect::None),
        _ if is_webhook(&status) => (ErrorKind::Unavailable, None, Effect::None),
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => (ErrorKind::Timeout, None, maybe),
        code if code.is_server_error() => (ErrorKind::Unavailable, None, maybe),
        _ => (ErrorKind::Internal, None, maybe),
    };
    let seconds = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
    let after = retry_after.or(seconds.map(|seconds| Duration::from_secs(seconds.into())));
    let retry = match (after, retry) {
        (Some(after), None) if kind != ErrorKind::Unauthorized && kind != ErrorKind::InvalidSpec => {
            Some(Retry::After(after))
        }
        (_, retry) => retry,
    };
    let mut error = during
        .error(kind)
        .with_effect(effect)
        .with_code(if status.reason.is_empty() { code.as_str().to_owned() } else { status.reason.clone() })
        .with_message(format!("{request}: {}", status.message));
    if let Some(retry) = retry {
        error = error.with_retry(retry);
    }
    if kind == ErrorKind::InvalidSpec
        && let Some(cause) = status.details.as_ref().and_then(|details| details.causes.first())
    {
        error = error.with_field(cause.field.clone());
    }
    match audit_id {
        Some(id) => error.with_request_id(id),
        None => error,
    }
}

fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16, body: &str, retry_after: Option<u64>) -> Failure {
        Failure::Refused(Box::new(Refusal {
            code: StatusCode::from_u16(code).unwrap(),
            status: serde_json::from_str(body).unwrap(),
            retry_after: retry_after.map(Duration::from_secs),
            audit_id: Some("7f9c".into()),
            request: "patch statefulsets.apps".into(),
        }))
    }

    fn error(failure: Failure) -> Error {
        failure.during(During { operation: "create", instance: None }, true)
    }

    #[test]
    fn refusals_by_meaning() {
        let quota = r#"{"message":"pods \"a\" is forbidden: exceeded quota: q","reason":"Forbidden"}"#;
        let rights = r#"{"message":"User \"x\" cannot patch resource","reason":"Forbidden"}"#;
        let policy = r#"{"message":"admission webhook \"p\" denied the request: no latest","reason":"Forbidden"}"#;
        let terminating = r#"{"message":"unable to create","reason":"Forbidden",
            "details":{"causes":[{"reason":"NamespaceTerminating","message":"","field":"metadata.namespace"}]}}"#;
        let webhook = r#"{"message":"Internal error occurred: failed calling webhook \"w\": timeout"}"#;
        let not_found = r#"{"message":"namespaces \"a\" not found","reason":"NotFound"}"#;
        let plain = "{}";
        for (code, body, kind, retry, effect) in [
            (401, plain, ErrorKind::Unauthorized, Retry::Never, Effect::None),
            (403, rights, ErrorKind::Unauthorized, Retry::Never, Effect::None),
            (403, policy, ErrorKind::InvalidSpec, Retry::Never, Effect::None),
            (403, quota, ErrorKind::QuotaExceeded, Retry::Backoff, Effect::None),
            (403, terminating, ErrorKind::Conflict, Retry::Backoff, Effect::None),
            (404, not_found, ErrorKind::NotFound, Retry::Backoff, Effect::None),
            (404, plain, ErrorKind::Unavailable, Retry::Backoff, Effect::None),
            (409, plain, ErrorKind::Conflict, Retry::Backoff, Effect::None),
            (422, plain, ErrorKind::InvalidSpec, Retry::Never, Effect::None),
            (429, plain, ErrorKind::Throttled, Retry::Backoff, Effect::None),
            (500, webhook, ErrorKind::Unavailable, Retry::Backoff, Effect::None),
            (500, plain, ErrorKind::Unavailable, Retry::Backoff, Effect::Unknown),
            (503, plain, ErrorKind::Unavailable, Retry::Backoff, Effect::Unknown),
            (504, webhook, ErrorKind::Unavailable, Retry::Backoff, Effect::None),
            (504, plain, ErrorKind::Timeout, Retry::Backoff, Effect::Unknown),
            (418, plain, ErrorKind::Internal, Retry::Backoff, Effect::Unknown),
        ] {
            let error = error(refusal(code, body, None));
            assert_eq!((error.kind(), error.retry(), error.effect()), (kind, retry, effect), "{code} {body}");
            assert_eq!(error.request_id(), Some("7f9c"));
            assert!(error.code().is_some());
        }
    }

    #[test]
    fn the_time_to_come_back_is_told_by_header_or_body() {
        assert_eq!(error(refusal(429, "{}", Some(7))).retry(), Retry::After(Duration::from_secs(7)));
        let body = r#"{"details":{"retryAfterSeconds":3}}"#;
        assert_eq!(error(refusal(503, body, None)).retry(), Retry::After(Duration::from_secs(3)));
    }

    #[test]
    fn missing_rights_name_verb_and_resource() {
        let text = error(refusal(403, r#"{"message":"no"}"#, None)).to_string();
        assert!(text.contains("patch statefulsets.apps"), "{text}");
    }

    #[test]
    fn what_was_not_sent_has_no_effect() {
        let unanswered = |was_sent| error(Failure::Unanswered { was_sent, message: "refused".into() }).effect();
        assert_eq!((unanswered(false), unanswered(true)), (Effect::None, Effect::Unknown));
        assert_eq!(error(Failure::TimedOut).effect(), Effect::Unknown);
        let read = Failure::TimedOut.during(During { operation: "observe", instance: None }, false);
        assert_eq!(read.effect(), Effect::None);
    }
}
