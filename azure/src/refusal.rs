//! Between the refusals of Resource Manager and ours: the one table.

use std::time::Duration;

use provisioner_account::Failure;
use provisioner_core::{ErrorKind, Retry};
use serde_json::Value;

use crate::answer::Answer;

/// When the service says no time to come back.
pub(crate) const THROTTLED_PAUSE: Duration = Duration::from_secs(5);
/// A plan is locked for as long as a write to it takes: seconds.
const LOCKED_PAUSE: Duration = Duration::from_secs(1);

/// What a refusal says, in either of the two envelopes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// The code, such as `Conflict`.
    pub code: String,
    /// A number beside it, of App Service: `54001` is a name that somebody else has.
    pub extended_code: String,
    /// For people.
    pub message: String,
}

impl Refused {
    /// Reads `{"error": {"code", "message"}}`, which the contract documents, and `{"Code", "Message", "Details"}`, which App Service
    /// answers as well.
    #[must_use]
    pub fn read(body: &Value) -> Self {
        let envelope = body.get("error").filter(|error| error.is_object()).unwrap_or(body);
        let text = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| envelope.get(*name)?.as_str());
            found.unwrap_or_default().to_owned()
        };
        let details = ["Details", "details"].iter().find_map(|name| envelope.get(*name)?.as_array());
        let extended = details.into_iter().flatten().find_map(|detail| {
            let entity = detail.get("ErrorEntity").unwrap_or(detail);
            entity.get("ExtendedCode").or_else(|| entity.get("extendedCode"))?.as_str().map(str::to_owned)
        });
        Self {
            code: text(["code", "Code"]),
            extended_code: extended.unwrap_or_default(),
            message: text(["message", "Message"]),
        }
    }

    /// Both codes, as far as it says them.
    fn full_code(&self) -> Option<String> {
        match (self.code.as_str(), self.extended_code.as_str()) {
            ("", _) => None,
            (code, "") => Some(code.to_owned()),
            (code, extended) => Some(format!("{code}/{extended}")),
        }
    }
}

/// Of an answer that is no success.
pub(crate) fn failure_of(answer: &Answer) -> Failure {
    let refused = Refused::read(&answer.value());
    let mut failure = judged(&refused, answer.status, answer.retry_after);
    // Whatever it says: one that fails may have acted.
    failure.may_have_acted |= answer.status >= 500;
    failure.message = match refused.message.as_str() {
        "" => format!("{}: status {} without a reason that can be read", answer.call, answer.status),
        message => format!("{}: {message}", answer.call),
    };
    failure.code = Some(refused.full_code().unwrap_or_else(|| answer.status.to_string()));
    failure.request_id.clone_from(&answer.request_id);
    failure
}

/// What the service says of an operation that has ended badly.
pub(crate) fn failure_of_operation(call: &str, status: &str, answer: &Answer) -> Failure {
    let refused = Refused::read(&answer.value());
    // It was accepted, and may have left something.
    let mut failure = judged(&refused, 409, None).in_doubt();
    if failure.kind == ErrorKind::Conflict {
        failure = Failure::new(ErrorKind::Unavailable, "").in_doubt();
    }
    failure.message = match refused.message.as_str() {
        "" => format!("{call}: it ended {status}, and it is not told why"),
        message => format!("{call}: {message}"),
    };
    failure.code = refused.full_code();
    failure.request_id.clone_from(&answer.request_id);
    failure
}

/// By codes and statuses; see
/// <https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors>.
fn judged(refused: &Refused, status: u16, retry_after: Option<Duration>) -> Failure {
    let of = |kind| Failure::new(kind, "");
    let again = |kind, retry| Failure { retry: Some(retry), ..of(kind) };
    let message = refused.message.to_ascii_lowercase();
    if refused.extended_code == "59205" || message.contains("exclusive lock") {
        return again(ErrorKind::Unavailable, Retry::After(retry_after.unwrap_or(LOCKED_PAUSE)));
    }
    if refused.extended_code == "54001" {
        // Site names are global, and somebody has this one. Another making has another name.
        return again(ErrorKind::Unavailable, Retry::Anew);
    }
    // App Service says it with several codes; see
    // <https://learn.microsoft.com/azure/app-service/app-service-configure-premium-v3-tier#scale-from-an-unsupported-resource-group-and-region-combination>.
    if message.contains("available instances") {
        return of(ErrorKind::CapacityExhausted);
    }
    if refused.code.contains("Quota") || message.contains("quota") || refused.code == "SubscriptionRequestsLimit" {
        return of(ErrorKind::QuotaExceeded);
    }
    match (refused.code.as_str(), status) {
        ("ScopeLocked", _) => Failure { field: Some("lock"), ..again(ErrorKind::Conflict, Retry::Backoff) },
        ("ShareBeingDeleted", _) => again(ErrorKind::Unavailable, Retry::Backoff),
        ("ShareNotFound" | "ResourceNotFound", _) => again(ErrorKind::NotFound, Retry::Backoff),
        // Not what was asked for, but what it would be in: nothing can be said about it.
        ("ResourceGroupNotFound" | "SubscriptionNotFound" | "ParentResourceNotFound", _) => of(ErrorKind::Unauthorized),
        (_, 401 | 403) => of(ErrorKind::Unauthorized),
        (_, 404) => again(ErrorKind::NotFound, Retry::Backoff),
        (_, 408) => of(ErrorKind::Timeout).in_doubt(),
        (_, 409 | 412) => again(ErrorKind::Conflict, Retry::Backoff),
        (_, 429) => again(ErrorKind::Throttled, Retry::After(retry_after.unwrap_or(THROTTLED_PAUSE))),
        (_, 400 | 422) => of(ErrorKind::InvalidSpec),
        (_, 500..) => match retry_after {
            Some(after) => again(ErrorKind::Unavailable, Retry::After(after)).in_doubt(),
            None => of(ErrorKind::Unavailable).in_doubt(),
        },
        _ => of(ErrorKind::Internal).in_doubt(),
    }
}

#[cfg(test)]
mod tests {
    use provisioner_core::{Effect, Error};
    use serde_json::json;

    use super::*;

    #[test]
    fn both_envelopes_are_read() {
        let refused = |code: &str, extended: &str, message: &str| Refused {
            code: code.into(),
            extended_code: extended.into(),
            message: message.into(),
        };
        for (body, expected) in [
            (
                json!({"error": {"code": "AuthorizationFailed", "message": "no"}}),
                refused("AuthorizationFailed", "", "no"),
            ),
            (
                json!({"Code": "Conflict", "Message": "taken", "Details": [
                    {"Message": "taken"}, {"Code": "Conflict"}, {"ErrorEntity": {"ExtendedCode": "54001"}}]}),
                refused("Conflict", "54001", "taken"),
            ),
            (json!("<html>"), Refused::default()),
            (json!({"error": "text"}), Refused::default()),
        ] {
            assert_eq!(Refused::read(&body), expected);
        }
    }

    #[test]
    fn each_refusal_says_what_it_is_whether_to_try_again_and_whether_it_acted() {
        use ErrorKind::{
            CapacityExhausted, Conflict, InvalidSpec, NotFound, QuotaExceeded, Throttled, Unauthorized, Unavailable,
        };
        let usual = |kind: ErrorKind| Error::new(kind, "t").retry();
        let (none, unknown) = (Effect::None, Effect::Unknown);
        for (code, extended, message, status, kind, retry, effect) in [
            ("Conflict", "54001", "taken", 409, Unavailable, Retry::Anew, none),
            ("Conflict", "59205", "busy", 409, Unavailable, Retry::After(LOCKED_PAUSE), none),
            ("429", "", "Cannot acquire exclusive lock", 429, Unavailable, Retry::After(LOCKED_PAUSE), none),
            ("TooManyRequests", "", "slow down", 429, Throttled, Retry::After(THROTTLED_PAUSE), none),
            ("AuthorizationFailed", "", "no", 403, Unauthorized, Retry::Never, none),
            ("ScopeLocked", "", "locked", 409, Conflict, Retry::Backoff, none),
            ("ResourceNotFound", "", "gone", 404, NotFound, Retry::Backoff, none),
            ("ResourceGroupNotFound", "", "gone", 404, Unauthorized, Retry::Never, none),
            (
                "Conflict",
                "",
                "No available instances to satisfy this request",
                409,
                CapacityExhausted,
                usual(CapacityExhausted),
                none,
            ),
            (
                "Unauthorized",
                "",
                "This region has quota of 0 instances",
                401,
                QuotaExceeded,
                usual(QuotaExceeded),
                none,
            ),
            ("BadRequest", "", "wrong", 400, InvalidSpec, Retry::Never, none),
            ("InternalServerError", "", "", 500, Unavailable, usual(Unavailable), unknown),
        ] {
            let refused = Refused { code: code.into(), extended_code: extended.into(), message: message.into() };
            let during = provisioner_account::During { operation: "t", instance: None };
            let error = judged(&refused, status, None).during(during, true);
            assert_eq!((error.kind(), error.retry(), error.effect()), (kind, retry, effect), "{code} {message}");
        }
    }
}
