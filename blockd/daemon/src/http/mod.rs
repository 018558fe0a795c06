//! Control API: JSON over HTTP, on Unix sockets and TLS.
//!
//! Changes run apart from their connection, so that a disconnecting client does not interrupt them. All
//! errors have the same JSON body.

mod attachments;
mod browse;
pub(crate) mod caller;
mod cloudsnaps;
pub(crate) mod connections;
mod credentials;
pub(crate) mod metrics;
mod passed_fds;
pub(crate) mod remote;
mod routes;
mod rules;
mod schedules;
mod snapshots;
mod status;
mod tasks;
mod volumes;

use crate::served::Served;
use axum::{
    Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, FromRef, FromRequest, FromRequestParts, Path, Query, Request, State,
        rejection::BytesRejection,
    },
    http::{StatusCode, header::CONTENT_TYPE, request::Parts},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use blockd_api::{ApiError, Document, ErrorBody, ErrorCode, operations::PathParameter};
use blockd_engine::{
    engine::Engine,
    error::{ServiceError, spawned},
    owner,
    repositories::preflight::with_client_cancellation,
};
use blockd_views::browse::Browser;
use caller::Caller;
use futures::FutureExt;
use routes::Routes;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tracing::Instrument;

/// Maximum size of a request body: names, labels and secrets.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// State of the handlers.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) browser: Arc<Browser>,
    pub(crate) served: Arc<Served>,
}

impl FromRef<Api> for Arc<Browser> {
    fn from_ref(api: &Api) -> Self {
        Arc::clone(&api.browser)
    }
}

impl FromRef<Api> for Arc<Engine> {
    fn from_ref(api: &Api) -> Self {
        Arc::clone(&api.engine)
    }
}

/// Returns the router, for callers identified by the connection.
pub(crate) fn router(api: Api) -> Router {
    routes()
        .into_router()
        .route_layer(from_fn(caller::guard))
        .fallback(no_such_address)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(from_fn_with_state(Arc::new(AtomicU64::new(1)), watch))
        .with_state(api)
}

fn routes() -> Routes {
    metrics::routes()
        .and(status::routes())
        .and(volumes::routes())
        .and(attachments::routes())
        .and(snapshots::routes())
        .and(credentials::routes())
        .and(cloudsnaps::routes())
        .and(browse::routes())
        .and(schedules::routes())
        .and(rules::routes())
        .and(tasks::routes())
}

/// Numbers and logs each request with its caller, and converts a panic to an error.
async fn watch(State(next): State<Arc<AtomicU64>>, request: Request, then: Next) -> Response {
    let number = next.fetch_add(1, Ordering::Relaxed);
    let caller = request.extensions().get::<Caller>();
    // All members of a group share one socket.
    let uid = caller.and_then(|caller| caller.user).map(|user| user.uid);
    let caller = caller.map_or("?", |caller| &caller.name);
    let (method, path) = (request.method(), request.uri().path());
    let span = tracing::info_span!("request", number, %method, path, caller, uid);
    let changes = !matches!(method.as_str(), "GET" | "HEAD");
    let began = Instant::now();
    async move {
        let response = AssertUnwindSafe(then.run(request)).catch_unwind().await;
        let response = response.unwrap_or_else(|_| {
            Failure(ServiceError::Internal("a request panicked; see the log".into())).into_response()
        });
        let status = response.status().as_u16();
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        if changes {
            tracing::info!(status, micros, "answered");
        } else {
            tracing::debug!(status, micros, "answered");
        }
        response
    }
    .instrument(span)
    .await
}

async fn no_such_address(request: Request) -> Failure {
    let message = format!(
        "there is nothing at {}: blockctl and blockd may be of different versions",
        request.uri().path()
    );
    Failure(ServiceError::refused(ErrorCode::NoSuchAddress, message))
}

async fn wrong_method(request: Request) -> Failure {
    let message = format!(
        "{} is not possible at {}: blockctl and blockd may be of different versions",
        request.method(),
        request.uri().path()
    );
    Failure(ServiceError::refused(ErrorCode::MethodNotAllowed, message))
}

/// Error response.
pub(crate) struct Failure(ServiceError);

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
struct Reply<T>(T);

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

/// Runs a change apart from its connection, and waits for it. A change with a preflight request to a store
/// does not start if the client has disconnected by then.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, Failure> {
    let (_waiting, work) = with_client_cancellation(work.boxed());
    Ok(spawned(owner::scope(owner::current(), work)).await?)
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure(ServiceError::Refused(ApiError::new(ErrorCode::InvalidRequest, message)))
}

/// JSON body. An empty body stands for `{}`.
struct Body<T>(T);

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
struct Input<T>(T);

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
struct Named<T>(T);

impl<T: PathParameter, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => T::parse(&text).map(Self).map_err(invalid),
            Err(error) => Err(invalid(error.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicBool, time::Duration};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn change_is_not_started_after_its_client_disconnects() {
        let (answer, answered) = oneshot::channel::<()>();
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let change = async move {
            let question = async { Ok(answered.await.is_ok()) };
            blockd_engine::repositories::preflight::in_time(Duration::from_secs(60), question).await?;
            begins.store(true, Ordering::SeqCst);
            Ok(())
        };
        let cancelled = tokio::time::timeout(Duration::from_millis(20), detached(change)).await;
        assert!(cancelled.is_err());
        let _ = answer.send(());
        // The request ends in either way.
        while Arc::strong_count(&begun) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(!begun.load(Ordering::SeqCst));
    }
}
