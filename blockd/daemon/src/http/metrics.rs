//! Metrics and health checks, on the control socket and on a separate address.

use super::{
    caller::Caller,
    connections::{KeepAlive, serve_each, serve_one},
    passed_fds::PassedFds,
    replies::Failure,
    routes::{Api, Routes},
};
use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use blockd_api::{ErrorCode, operations, roles::Role};
use blockd_catalog::DbError;
use blockd_engine::{
    engine::Engine, error::ServiceError, free_space::SpaceLevel, metrics::TEXT_FORMAT, quota::Quota,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Timeout of the database, after which the daemon counts as not ready.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Returns the read-only routes.
pub(super) fn routes() -> Routes {
    Routes::default()
        .raw(operations::GET_METRICS, show)
        .raw(operations::GET_LIVENESS, healthz)
        .raw(operations::GET_READINESS, readyz)
}

/// Maximum number of connections; more wait in the kernel.
const MAX_CONNECTIONS: usize = 64;
/// Maximum number of connections of one address; more are closed, so that one client cannot use up all.
const MAX_PER_ADDRESS: usize = 8;
/// Time limit of a connection: a client that does not read its reply must not block others.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves these routes only, until the stop.
pub(crate) async fn serve(listener: TcpListener, api: Api, stop: CancellationToken) {
    serve_router(listener, routes().into_router().with_state(api), stop).await;
}

async fn serve_router(listener: TcpListener, router: Router, stop: CancellationToken) {
    let until = stop.clone();
    let addresses = Quota::<_, MAX_PER_ADDRESS, MAX_CONNECTIONS>::default();
    let connection = move |stream: TcpStream| {
        let (router, stop) = (router.clone(), stop.clone());
        let caller = Caller { role: Some(Role::ReadOnly), name: "metrics".to_owned(), user: None };
        let peer = stream.peer_addr().ok();
        let slot = peer.and_then(|peer| addresses.take(peer.ip().to_canonical()));
        async move {
            let Some(_slot) = slot else {
                tracing::debug!(?peer, "a metrics connection was closed: its address has too many");
                return;
            };
            let caller = (move || caller.clone(), KeepAlive::No);
            let served = serve_one(stream, caller, PassedFds::default(), router, &stop);
            if tokio::time::timeout(CONNECTION_TIMEOUT, served).await.is_err() {
                tracing::debug!("a metrics connection was closed at its time limit");
            }
        }
    };
    let limit = (MAX_CONNECTIONS, &watch::Sender::new(false));
    serve_each(listener, limit, &until, connection).await;
}

async fn show(State(engine): State<Arc<Engine>>) -> Result<Response, Failure> {
    let text = engine.monitor.metrics_text().await?;
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

/// Liveness: returns success if the daemon answers.
async fn healthz() -> &'static str {
    "ok\n"
}

/// Readiness: fails if the daemon stops, its disk is full, or its database does not answer.
async fn readyz(State(engine): State<Arc<Engine>>) -> Result<&'static str, Failure> {
    if engine.host.stopping.is_cancelled() {
        return Err(Failure(ServiceError::Stopping));
    }
    let level = engine.free_space.check_free_space().await.map(SpaceLevel::of);
    if level == Some(SpaceLevel::Full) {
        let message = format!("the data directory {} is full", engine.host.data_dir.display());
        return Err(Failure(ServiceError::refused(ErrorCode::NoSpace, message)));
    }
    let asked = engine.db.run(|tx| -> Result<(), DbError> { Ok(tx.query_row("SELECT 1", [], |_| Ok(()))?) });
    match tokio::time::timeout(READY_WITHIN, asked).await {
        Ok(answer) => answer.map_err(Failure::from)?,
        Err(_) => return Err(Failure(ServiceError::Internal("the database does not answer".into()))),
    }
    Ok(if level == Some(SpaceLevel::Scarce) { "ok, but the data directory is nearly full\n" } else { "ok\n" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    /// Connects from a loopback address.
    async fn connect_from(last: u8, to: std::net::SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn connections_of_one_address_leave_places_for_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/", get(async || "served"));
        let served = tokio::spawn(serve_router(listener, router, stop.clone()));
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(connect_from(2, address).await);
        }
        let mut asks = connect_from(3, address).await;
        asks.write_all(b"GET / HTTP/1.1\r\nhost: blockd\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        asks.read_to_string(&mut reply).await.unwrap();
        assert!(reply.ends_with("served"), "{reply:?}");
        for stream in idle.split_off(MAX_PER_ADDRESS) {
            assert_eq!(stream.take(1).read_to_end(&mut Vec::new()).await.unwrap(), 0);
        }
        for stream in &idle {
            let open = stream.try_read(&mut [0]).unwrap_err();
            assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
        }
        drop(idle);
        stop.cancel();
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_metrics_connections_are_closed_and_others_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/", get(async || "served"));
        let served = tokio::spawn(serve_router(listener, router, stop.clone()));
        let mut idle = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            idle.push(connect_from((2 + number / MAX_PER_ADDRESS) as u8, address).await);
        }
        let mut asks = TcpStream::connect(address).await.unwrap();
        asks.write_all(b"GET / HTTP/1.1\r\nhost: blockd\r\n\r\n").await.unwrap();
        let test = async {
            let mut reply = String::new();
            asks.read_to_string(&mut reply).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("served"), "{reply:?}");
            for mut stream in idle {
                stream.read_to_end(&mut Vec::new()).await.unwrap();
            }
        };
        // The paused clock advances when no task can run.
        tokio::time::timeout(Duration::from_secs(3600), test).await.unwrap();
        stop.cancel();
        served.await.unwrap();
    }
}
