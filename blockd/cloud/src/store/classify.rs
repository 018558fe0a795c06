//! What an error of `object_store` means for a backup, and one line about it.

use super::StoreErrorKind;
use object_store::{
    Error as ClientError,
    client::{HttpError, HttpErrorKind},
};
use std::error::Error as StdError;

/// The part of an XML answer between two tags.
fn between<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{tag}>"))? + tag.len() + 2;
    let end = text[start..].find("</")? + start;
    Some(&text[start..end])
}

/// What an error of the client means that it gave in an operation, and one line about it.
pub(super) fn classify(operation: &str, error: &ClientError) -> (StoreErrorKind, String) {
    use StoreErrorKind as Kind;
    let mut chain = Vec::new();
    let mut at: Option<&(dyn StdError + 'static)> = Some(error);
    let mut http = None;
    while let Some(source) = at {
        if let Some(found) = source.downcast_ref::<HttpError>() {
            http = Some(found.kind());
        }
        chain.push(source.to_string());
        at = source.source();
    }
    let text = chain.join(" ");
    let code = between(&text, "Code").unwrap_or_default();
    let said = match (code, between(&text, "Message")) {
        ("", _) => chain.last().cloned().unwrap_or_default(),
        (code, Some(message)) => format!("{code}: {message}"),
        (code, None) => code.to_owned(),
    };
    let status = |code: &str| text.contains(&format!("status code: {code}"));
    let kind = match code {
        "NoSuchBucket"
        | "ContainerNotFound"
        | "ContainerBeingDeleted"
        | "InvalidBucketName"
        | "InvalidResourceName" => Kind::BucketMissing,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "RegionDisabledException"
        | "SignatureDoesNotMatch"
        | "AuthorizationHeaderMalformed"
        | "ExpiredToken"
        | "InvalidToken"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "AccountIsDisabled"
        | "AuthenticationFailed"
        | "AuthenticationRequired"
        | "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "AuthorizationProtocolMismatch"
        | "AuthorizationResourceTypeMismatch"
        | "AuthorizationServiceMismatch"
        | "AuthorizationSourceIPMismatch"
        | "InsufficientAccountPermissions"
        | "InvalidAuthenticationInfo"
        | "InvalidSecurity"
        | "NoAuthenticationInformation"
        | "SecondLevelDomainForbidden"
        | "UnauthorizedBlobOverwrite" => Kind::Unauthorized,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "ServerBusy"
        | "OperationTimedOut"
        | "ServiceUnavailable"
        | "InternalError"
        | "RequestTimeout"
        | "TooManyRequests"
        | "OperationAborted"
        | "ConditionalRequestConflict" => Kind::Throttled,
        "QuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "InsufficientCapacity"
        | "ServiceQuotaExceeded" => Kind::NoSpace,
        "InvalidRange" => Kind::RangeBeyondEnd,
        "NotImplemented" => Kind::Unsupported,
        "PreconditionFailed" | "BlobAlreadyExists" => Kind::AlreadyExists,
        _ => match error {
            ClientError::NotFound { .. } => Kind::NotFound,
            ClientError::AlreadyExists { .. } | ClientError::Precondition { .. } => Kind::AlreadyExists,
            ClientError::NotImplemented { .. } | ClientError::NotSupported { .. } => Kind::Unsupported,
            ClientError::PermissionDenied { .. } | ClientError::Unauthenticated { .. } => Kind::Unauthorized,
            // Elsewhere it has an error of its own, and this is the answer of a service that gives out tokens.
            _ if operation == "LIST" && status("404") => Kind::NotFound,
            _ if status("501") => Kind::Unsupported,
            _ if status("507") => Kind::NoSpace,
            _ if status("416") => Kind::RangeBeyondEnd,
            _ if ["429", "500", "502", "503", "504"].into_iter().any(status) => Kind::Throttled,
            _ => match http {
                Some(HttpErrorKind::Connect | HttpErrorKind::Request) => Kind::Unreachable,
                Some(HttpErrorKind::Timeout) => Kind::Timeout,
                Some(HttpErrorKind::Interrupted | HttpErrorKind::Decode) => Kind::ShortBody,
                // The client reports a range that the server clipped to the object's end by its own error.
                _ if text.contains("Requested range") || text.contains("range started at") => {
                    Kind::RangeBeyondEnd
                }
                _ => Kind::Other,
            },
        },
    };
    // Errors of access say enough themselves, and what servers add may repeat parts of the credentials.
    let detail = if kind == Kind::Unauthorized { code.to_owned() } else { said };
    (kind, detail)
}
