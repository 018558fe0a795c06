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
mod extractors;
pub(crate) mod metrics;
mod passed_fds;
pub(crate) mod remote;
mod replies;
mod routes;
mod rules;
mod schedules;
mod snapshots;
mod status;
mod tasks;
mod volumes;

pub(crate) use routes::Api;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use blockd_api::ErrorCode;
use blockd_engine::error::ServiceError;
use caller::Caller;
use extractors::MAX_REQUEST_BYTES;
use futures::FutureExt;
use replies::Failure;
use routes::Routes;
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use tracing::Instrument;

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
