//! JSON replies and errors.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use blockd_api::{ApiError, Document, ErrorBody, ErrorCode};
use blockd_engine::error::ServiceError;
use serde::Serialize;

/// Error response.
pub(crate) struct Failure(pub(super) ServiceError);

impl<E: Into<ServiceError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = self.0.to_api();
        let status =
            StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(code = %error.code, error = %error.message, "request failed");
        } else if matches!(error.code, ErrorCode::InvalidRequest | ErrorCode::QuiesceFailed) {
            // The message may contain input with a misplaced secret, or the output of a command.
            tracing::debug!(code = %error.code, "the request was refused");
        } else {
            tracing::debug!(code = %error.code, error = %error.message, "the request was refused");
        }
        let code = error.code;
        let mut response = json(status, &ErrorBody { error });
        // For the check that the operation lists it.
        response.extensions_mut().insert(code);
        response
    }
}

fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(&Document::new(body)) {
        Ok(bytes) => (status, [(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// JSON reply.
pub(super) struct Reply<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure(ServiceError::Refused(ApiError::new(ErrorCode::InvalidRequest, message)))
}
