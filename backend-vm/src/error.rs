//! Between the service's refusals and ours: the one table.

use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::{
    error::{ConnectorError, ProvideErrorMetadata, SdkError},
    operation::RequestId,
};
pub(crate) use provisioner_account::{During, Failure};
use provisioner_core::{Chain, ErrorKind, Retry};

/// The same of what may be gone, or be too new: that it may not be touched is no last word.
pub(crate) fn perhaps_gone(failure: Failure) -> Failure {
    match failure.kind {
        ErrorKind::Unauthorized => Failure { retry: Some(Retry::Backoff), ..failure },
        _ => failure,
    }
}

/// Whether one machine of many may be to blame, so that the request goes through without it.
pub(crate) fn is_about_one(failure: &Failure) -> bool {
    use ErrorKind::{
        CapacityExhausted, Conflict, Internal, InvalidSpec, NotFound, QuotaExceeded, Unauthorized, Unsupported,
    };
    let is_refusal = failure.code.is_some();
    let kinds =
        [CapacityExhausted, Conflict, Internal, InvalidSpec, NotFound, QuotaExceeded, Unauthorized, Unsupported];
    is_refusal && kinds.contains(&failure.kind)
}

/// Of a call by the client library.
pub(crate) fn failure_of<E: ProvideErrorMetadata>(call: &'static str, error: &SdkError<E>) -> Failure {
    let told =
        |kind, may_have_acted, why: String| Failure { may_have_acted, ..Failure::new(kind, format!("{call}: {why}")) };
    let request_id = error.request_id().map(str::to_owned);
    match error {
        SdkError::ConstructionFailure(_) => told(ErrorKind::Internal, false, "the request could not be built".into()),
        SdkError::TimeoutError(_) => told(ErrorKind::Timeout, true, "no answer in time".into()),
        SdkError::DispatchFailure(failure) => {
            if let Some(error) = failure.as_connector_error().and_then(lacking) {
                return without_credentials(call, error);
            }
            // Never connected: nothing was sent.
            let is_unsent = failure.is_user() || failure.as_connector_error().is_some_and(is_connecting);
            told(ErrorKind::Unavailable, !is_unsent, "the service could not be reached".into())
        }
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            let mut failure = match status {
                500.. => {
                    told(ErrorKind::Unavailable, true, format!("an answer with status {status} that cannot be read"))
                }
                _ => told(ErrorKind::Internal, true, format!("an answer with status {status} that cannot be read")),
            };
            failure.request_id = request_id;
            failure
        }
        SdkError::ServiceError(refusal) => {
            let (code, message) = (refusal.err().code(), refusal.err().message().unwrap_or_default());
            let status = refusal.raw().status().as_u16();
            let mut failure = refused(code.unwrap_or_default(), status);
            failure.message = format!("{call}: {message}");
            failure.code = code.map(str::to_owned);
            failure.request_id = request_id.or_else(|| request_id_of(refusal.raw().body().bytes()?));
            failure
        }
        _ => told(ErrorKind::Internal, true, "it failed in a way that is new".into()),
    }
}

/// Nobody is signed in, or that could not be asked right now. The library tells both as if the service was not reached.
fn without_credentials(call: &'static str, error: &CredentialsError) -> Failure {
    let kind = match error {
        CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => ErrorKind::Unavailable,
        _ => ErrorKind::Unauthorized,
    };
    Failure::new(kind, format!("{call}: no credentials: {}", Chain(error)))
}

fn lacking(error: &ConnectorError) -> Option<&CredentialsError> {
    sources(error).find_map(|cause| cause.downcast_ref())
}

/// What an error was caused by, and what that was caused by.
fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |cause| cause.source())
}

/// By code; see <https://docs.aws.amazon.com/ec2/latest/devguide/errors-overview.html>.
fn refused(code: &str, status: u16) -> Failure {
    let of = |kind| Failure::new(kind, "");
    let of_field = |kind, field| Failure { field: Some(field), ..Failure::new(kind, "") };
    match code {
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "EC2ThrottledException" => {
            Failure { retry: Some(Retry::After(THROTTLED_PAUSE)), ..of(ErrorKind::Throttled) }
        }
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientCapacity"
        | "InsufficientVolumeCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "Unsupported" => of(ErrorKind::CapacityExhausted),
        "InstanceLimitExceeded" | "VcpuLimitExceeded" | "VolumeLimitExceeded" | "MaxIOPSLimitExceeded" => {
            of(ErrorKind::QuotaExceeded)
        }
        "UnauthorizedOperation"
        | "AuthFailure"
        | "AccessDenied"
        | "AccessDeniedException"
        | "OptInRequired"
        | "Blocked"
        | "PendingVerification"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId" => of(ErrorKind::Unauthorized),
        "InvalidAMIID.NotFound"
        | "InvalidAMIID.Malformed"
        | "InvalidAMIID.Unavailable"
        | "InvalidLaunchTemplateId.NotFound"
        | "InvalidLaunchTemplateName.NotFoundException"
        | "InvalidLaunchTemplateId.VersionNotFound"
        | "InvalidLaunchTemplateId.Malformed" => of_field(ErrorKind::InvalidSpec, "workload.vm_image"),
        "InvalidUserData.Malformed" => of_field(ErrorKind::InvalidSpec, "workload.boot_script"),
        "InvalidParameterValue"
        | "InvalidParameterCombination"
        | "MissingParameter"
        | "InvalidParameter"
        | "ValidationError"
        | "InvalidSubnetID.NotFound"
        | "InvalidGroup.NotFound"
        | "InvalidBlockDeviceMapping"
        | "UnknownParameter" => of(ErrorKind::InvalidSpec),
        "UnsupportedOperation" => of(ErrorKind::Unsupported),
        // Once in six hours: <https://docs.aws.amazon.com/ebs/latest/userguide/modify-volume-requirements.html>.
        "VolumeModificationRateExceeded" => {
            Failure { retry: Some(Retry::After(MODIFIED_AGAIN)), ..of(ErrorKind::QuotaExceeded) }
        }
        // Not there, or not told of yet: who asks says which.
        "InvalidInstanceID.NotFound"
        | "InvalidVolume.NotFound"
        | "InvalidSnapshot.NotFound"
        | "InvalidAttachment.NotFound" => Failure { retry: Some(Retry::Backoff), ..of(ErrorKind::NotFound) },
        // Somebody protects it. Only that somebody can let it go.
        "OperationNotPermitted" => {
            Failure { retry: Some(Retry::Backoff), ..of_field(ErrorKind::Conflict, "protection") }
        }
        // Its machine was made, and has ended since: nothing can be made by that token any more.
        "IdempotentInstanceTerminated" => Failure { retry: Some(Retry::Anew), ..of(ErrorKind::Unavailable) },
        // The same token with other parameters: it was made by a call whose answer nobody has, and is shown soon.
        "IdempotentParameterMismatch" => Failure { may_have_acted: true, ..of(ErrorKind::Unavailable) },
        "IncorrectInstanceState" | "IncorrectState" | "VolumeInUse" | "IncorrectModificationState" => {
            Failure { retry: Some(Retry::Backoff), ..of(ErrorKind::Conflict) }
        }
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable" | "RequestExpired" => {
            Failure { may_have_acted: true, ..of(ErrorKind::Unavailable) }
        }
        _ if status >= 500 => Failure { may_have_acted: true, ..of(ErrorKind::Unavailable) },
        _ => Failure { may_have_acted: true, ..of(ErrorKind::Internal) },
    }
}

/// The service says it in the body of a refusal, where its client library does not look; see
/// <https://docs.aws.amazon.com/ec2/latest/devguide/errors-overview.html>.
fn request_id_of(body: &[u8]) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let (_, rest) = body.split_once("<RequestID>")?;
    Some(rest.split_once("</RequestID>")?.0.to_owned())
}

/// Some of the time after which a volume may be modified again.
const MODIFIED_AGAIN: Duration = Duration::from_secs(1800);

/// The service says no time to come back.
pub(crate) const THROTTLED_PAUSE: Duration = Duration::from_secs(2);

fn is_connecting(error: &ConnectorError) -> bool {
    let mut io = sources(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.next().is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use provisioner_core::{Effect, Error};

    use super::*;

    #[test]
    fn who_has_no_credentials_is_told_so_and_nothing_was_sent() {
        let missing = || CredentialsError::not_loaded("no profile of that name");
        for (error, kind) in [
            (missing(), ErrorKind::Unauthorized),
            (CredentialsError::provider_error("the metadata service answers 500"), ErrorKind::Unavailable),
        ] {
            let told = error.to_string();
            let unreached = ConnectorError::other(Box::new(error), None);
            let failure = failure_of("RunInstances", &SdkError::<aws_sdk_ec2::Error>::dispatch_failure(unreached));
            assert_eq!((failure.kind, failure.may_have_acted), (kind, false));
            assert!(failure.message.contains(&told), "{}", failure.message);
        }
    }

    #[test]
    fn each_code_says_what_it_is_whether_to_try_again_and_whether_it_acted() {
        use ErrorKind::{
            CapacityExhausted, Conflict, Internal, InvalidSpec, NotFound, QuotaExceeded, Throttled, Unauthorized,
            Unavailable,
        };
        let usual = |kind: ErrorKind| Error::new(kind, "t").retry();
        let (none, unknown, pause) = (Effect::None, Effect::Unknown, Retry::After(THROTTLED_PAUSE));
        for (code, status, kind, retry, effect, field) in [
            ("RequestLimitExceeded", 503, Throttled, pause, none, None),
            ("InsufficientInstanceCapacity", 500, CapacityExhausted, usual(CapacityExhausted), none, None),
            ("VcpuLimitExceeded", 400, QuotaExceeded, usual(QuotaExceeded), none, None),
            ("VolumeModificationRateExceeded", 400, QuotaExceeded, Retry::After(MODIFIED_AGAIN), none, None),
            ("UnauthorizedOperation", 403, Unauthorized, Retry::Never, none, None),
            ("InvalidAMIID.NotFound", 400, InvalidSpec, Retry::Never, none, Some("workload.vm_image")),
            ("InvalidUserData.Malformed", 400, InvalidSpec, Retry::Never, none, Some("workload.boot_script")),
            ("InvalidParameterCombination", 400, InvalidSpec, Retry::Never, none, None),
            ("InvalidInstanceID.NotFound", 400, NotFound, Retry::Backoff, none, None),
            ("OperationNotPermitted", 400, Conflict, Retry::Backoff, none, Some("protection")),
            ("IncorrectInstanceState", 400, Conflict, Retry::Backoff, none, None),
            ("IdempotentParameterMismatch", 400, Unavailable, usual(Unavailable), unknown, None),
            ("IdempotentInstanceTerminated", 400, Unavailable, Retry::Anew, none, None),
            ("InternalError", 500, Unavailable, usual(Unavailable), unknown, None),
            ("SomethingNew", 500, Unavailable, usual(Unavailable), unknown, None),
            ("SomethingNew", 400, Internal, usual(Internal), unknown, None),
        ] {
            let error = refused(code, status).during(During { operation: "t", instance: None }, true);
            let told = (error.kind(), error.retry(), error.effect(), error.field());
            assert_eq!(told, (kind, retry, effect, field), "{code} {status}");
        }
    }

    #[test]
    fn what_may_be_gone_is_asked_for_again_and_what_changes_nothing_has_no_effect() {
        let refused = perhaps_gone(refused("UnauthorizedOperation", 403));
        let error = refused.during(During { operation: "t", instance: None }, true);
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unauthorized, Retry::Backoff));
        let lost = Failure::new(ErrorKind::Timeout, "").in_doubt();
        assert_eq!(lost.during(During { operation: "t", instance: None }, false).effect(), Effect::None);
    }
}
