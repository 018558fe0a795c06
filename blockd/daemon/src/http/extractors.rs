//! Parameters of requests: body, query and path.

use super::replies::{Failure, invalid};
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::BytesRejection},
    http::{StatusCode, request::Parts},
};
use blockd_api::{ErrorCode, operations::PathParameter};
use blockd_engine::error::ServiceError;
use serde::de::DeserializeOwned;

/// Maximum size of a request body: names, labels and secrets.
pub(super) const MAX_REQUEST_BYTES: usize = 1 << 20;

/// JSON body. An empty body stands for `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| body_failure(&error))?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|error| invalid(format!("invalid request: {error}")))
    }
}

fn body_failure(error: &BytesRejection) -> Failure {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the request is too large: at most {MAX_REQUEST_BYTES} bytes are accepted");
        return Failure(ServiceError::refused(ErrorCode::RequestTooLarge, message));
    }
    invalid(format!("the request cannot be read: {}", error.body_text()))
}

/// Query parameters.
pub(super) struct Input<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Input<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(invalid(format!("invalid query: {}", error.body_text()))),
        }
    }
}

/// Path parameter.
pub(super) struct Named<T>(pub(super) T);

impl<T: PathParameter, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => T::parse(&text).map(Self).map_err(invalid),
            Err(error) => Err(invalid(error.body_text())),
        }
    }
}
