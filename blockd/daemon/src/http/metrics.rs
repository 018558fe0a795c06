//! Metrics, and whether the daemon is well. The same on the control socket and at an address of its own.

use super::{Failure, routes::Routes};
use crate::{core::Core, db::DbError, error::ServiceError, health::Room, metrics::TEXT_FORMAT};
use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use blockd_api::{ErrorCode, paths};
use blockd_cloud::CancelToken;
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// How long the database may take before the daemon counts as not ready.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// The addresses that tell and change nothing.
pub(super) fn routes() -> Routes {
    Routes::default().get(paths::METRICS, show).get(paths::HEALTHZ, healthz).get(paths::READYZ, readyz)
}

/// Serves nothing but these until told to stop.
pub async fn serve(listener: TcpListener, core: Arc<Core>, stop: CancelToken) {
    let router = routes().into_router().with_state(core);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "metrics are no longer served");
    }
}

async fn show(State(core): State<Arc<Core>>) -> Result<Response, Failure> {
    let text = core.metrics_text().await?;
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

/// It answers, so it lives.
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether it can do its work: it does not stop, it has room, and its database answers.
async fn readyz(State(core): State<Arc<Core>>) -> Result<&'static str, Failure> {
    if core.stopping.is_cancelled() {
        return Err(Failure(ServiceError::Stopping));
    }
    let room = core.look_at_room().await.map(Room::of);
    if room == Some(Room::Full) {
        let message = format!("the data directory {} is full", core.data_dir.display());
        return Err(Failure(ServiceError::refused(ErrorCode::NoSpace, message)));
    }
    let asked = core.db.run(|tx| -> Result<(), DbError> { Ok(tx.query_row("SELECT 1", [], |_| Ok(()))?) });
    match tokio::time::timeout(READY_WITHIN, asked).await {
        Ok(answer) => answer.map_err(Failure::from)?,
        Err(_) => return Err(Failure(ServiceError::Internal("the database does not answer".into()))),
    }
    Ok(if room == Some(Room::Scarce) { "ok, but the data directory is nearly full\n" } else { "ok\n" })
}
