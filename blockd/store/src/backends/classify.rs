//! Classification of `object_store` errors with a one-line message.

use crate::StoreErrorKind as Kind;
use object_store::{
    Error as ClientError,
    client::{HttpError, HttpErrorKind},
};
use std::error::Error as StdError;

/// Returns true for an authentication error, whose response may contain parts of the credentials.
pub(super) fn is_about_access(kind: Kind) -> bool {
    matches!(kind, Kind::Unauthorized | Kind::WrongRegion | Kind::WrongClock)
}

/// Returns the text of the first XML element of this name.
fn between<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{tag}>"))? + tag.len() + 2;
    let end = text[start..].find("</")? + start;
    Some(&text[start..end])
}

/// Error messages that indicate a TLS mismatch.
const SCHEMES_DIFFER: [&str; 5] = [
    // Plain HTTP to a TLS server: nginx, Go, Apache, and a client that receives a TLS alert.
    "plain HTTP request was sent to HTTPS port",
    "HTTP request to an HTTPS server",
    "plain HTTP to an SSL-enabled server",
    "invalid HTTP version parsed",
    // TLS to a plain HTTP server.
    "InvalidContentType",
];

/// Returns the region that a server requests.
fn expected_region(text: &str) -> Option<&str> {
    let plain =
        |region: &&str| !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    between(text, "Region").filter(plain)
}

/// Error codes of servers by kind. One that is absent here, with a status that decides nothing either, is
/// [`Kind::Other`] and is retried: a permanent error belongs here.
const CODES: [(Kind, &[&str]); 11] = [
    (Kind::Archived, &["InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"]),
    (Kind::WrongClock, &["RequestTimeTooSkewed", "RequestExpired"]),
    (Kind::WrongStyle, &["SecondLevelDomainForbidden"]),
    (Kind::WrongRegion, &["PermanentRedirect", "IllegalLocationConstraintException"]),
    (Kind::Misconfigured, &["InvalidStorageClass"]),
    (
        Kind::BucketMissing,
        &[
            "NoSuchBucket",
            "ContainerNotFound",
            "ContainerBeingDeleted",
            "InvalidBucketName",
            "InvalidResourceName",
        ],
    ),
    (
        Kind::Unauthorized,
        &[
            "AccessDenied",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "MissingAuthenticationToken",
            "RegionDisabledException",
            "SignatureDoesNotMatch",
            "AuthorizationHeaderMalformed",
            "ExpiredToken",
            "InvalidToken",
            "AllAccessDisabled",
            "AccountProblem",
            "AccountIsDisabled",
            "AuthenticationFailed",
            "AuthenticationRequired",
            "AuthorizationFailure",
            "AuthorizationPermissionMismatch",
            "AuthorizationProtocolMismatch",
            "AuthorizationResourceTypeMismatch",
            "AuthorizationServiceMismatch",
            "AuthorizationSourceIPMismatch",
            "InsufficientAccountPermissions",
            "InvalidAuthenticationInfo",
            "InvalidSecurity",
            "NoAuthenticationInformation",
            "UnauthorizedBlobOverwrite",
        ],
    ),
    (
        Kind::Throttled,
        &[
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "RequestLimitExceeded",
            "ServerBusy",
            "OperationTimedOut",
            "ServiceUnavailable",
            "InternalError",
            "RequestTimeout",
            "TooManyRequests",
            "OperationAborted",
            "ConditionalRequestConflict",
        ],
    ),
    (
        Kind::NoSpace,
        &[
            "QuotaExceeded",
            "InsufficientStorage",
            "XMinioStorageFull",
            "InsufficientCapacity",
            "ServiceQuotaExceeded",
        ],
    ),
    (Kind::RangeBeyondEnd, &["InvalidRange"]),
    (Kind::Unsupported, &["NotImplemented"]),
];

/// Returns the kind of an error by the code of its response.
fn kind_of_code(code: &str, names_region: bool) -> Option<Kind> {
    match code {
        "AuthorizationHeaderMalformed" if names_region => Some(Kind::WrongRegion),
        "PreconditionFailed" | "BlobAlreadyExists" => Some(Kind::AlreadyExists),
        code => CODES.iter().find(|(_, codes)| codes.contains(&code)).map(|(kind, _)| *kind),
    }
}

/// Returns the kind of an error whose response has no known code. `text` has all causes of the error.
fn kind_of_error(operation: &str, error: &ClientError, http: Option<HttpErrorKind>, text: &str) -> Kind {
    let status = |code: &str| text.contains(&format!("status code: {code}"));
    // Of one object of a batch.
    let status_of_part = |code: &str| text.contains(&format!("(code: {code})"));
    match error {
        ClientError::NotFound { .. } => Kind::NotFound,
        ClientError::AlreadyExists { .. } | ClientError::Precondition { .. } => Kind::AlreadyExists,
        ClientError::NotImplemented { .. } | ClientError::NotSupported { .. } => Kind::Unsupported,
        ClientError::PermissionDenied { .. } | ClientError::Unauthenticated { .. } => Kind::Unauthorized,
        // Only for listings: other operations have an own error for a missing object, and there a 404 comes
        // from a token service.
        _ if operation == "LIST" && status("404") => Kind::NotFound,
        _ if SCHEMES_DIFFER.iter().any(|words| text.contains(words)) => Kind::WrongScheme,
        _ if text.contains("redirect without LOCATION") => Kind::WrongRegion,
        // A response without a code, such as that of a proxy, or a listing of a client that has no own error
        // for it.
        _ if status("401") || status("403") => Kind::Unauthorized,
        _ if ["301", "302", "307", "308"].into_iter().any(status) => Kind::WrongRegion,
        _ if status("501") => Kind::Unsupported,
        _ if status("507") => Kind::NoSpace,
        _ if status("416") => Kind::RangeBeyondEnd,
        // Response of a proxy.
        _ if status("407") => Kind::Unreachable,
        _ if ["429", "500", "502", "503", "504"]
            .into_iter()
            .any(|code| status(code) || status_of_part(code)) =>
        {
            Kind::Throttled
        }
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
    }
}

/// Classifies a client error of an operation, with a one-line message.
pub(super) fn classify(operation: &str, error: &ClientError) -> (Kind, String) {
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
    let region = expected_region(&text);
    let kind =
        kind_of_code(code, region.is_some()).unwrap_or_else(|| kind_of_error(operation, error, http, &text));
    // Authentication errors need no detail, and messages of servers may contain parts of the credentials.
    let detail = match (kind, region) {
        (Kind::WrongRegion, Some(region)) => format!("{code}: {region} is expected"),
        (Kind::WrongRegion, None) if code.is_empty() => "the server redirects without a target".to_owned(),
        (kind, _) if is_about_access(kind) => code.to_owned(),
        _ => match (code, between(&text, "Message")) {
            ("", _) => chain.pop().unwrap_or_default(),
            (code, Some(message)) => format!("{code}: {message}"),
            (code, None) => code.to_owned(),
        },
    };
    (kind, detail)
}
