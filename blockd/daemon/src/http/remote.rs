//! The control API over TCP: TLS with certificates on both sides, and what a caller may do by the names in its own.
//!
//! Whoever can reach the port can open connections, so everything that happens before a certificate was shown is bounded:
//! how many there are at once, and how long a handshake and a request's head may take.

use super::caller::Caller;
use crate::{config::ControlConfig, core::Core};
use axum::body::Body;
use blockd_cloud::CancelToken;
use blockd_nbd::{TlsIdentity, certificate_names};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;
use tracing::Instrument;

/// Connections at once; more wait in the kernel.
const CONNECTIONS_MOST: usize = 256;
/// Connections of which it is not known yet who they are.
const HANDSHAKES_MOST: usize = 32;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nothing is accepted after that failed: there may be no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What serves it.
pub(crate) struct Remote {
    core: Arc<Core>,
    identity: Arc<TlsIdentity>,
    config: ControlConfig,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    stop: CancelToken,
}

impl Remote {
    pub(crate) fn new(
        core: Arc<Core>,
        identity: Arc<TlsIdentity>,
        config: ControlConfig,
        stop: CancelToken,
    ) -> Self {
        Self {
            core,
            identity,
            config,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MOST)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MOST)),
            stop,
        }
    }

    /// Serves until told to stop, then ends when the requests under way are answered.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => break,
                next = self.accept(&listener) => next,
            };
            // What has ended is not kept.
            while connections.try_join_next().is_some() {}
            let Some((stream, peer, permits)) = next else { continue };
            let span = tracing::info_span!("control", %peer);
            connections.spawn(Arc::clone(&self).connection(stream, peer, permits).instrument(span));
        }
        while connections.join_next().await.is_some() {}
    }

    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> Option<(TcpStream, SocketAddr, [OwnedSemaphorePermit; 2])> {
        let permits = [
            Arc::clone(&self.connections).acquire_owned().await.ok()?,
            Arc::clone(&self.handshakes).acquire_owned().await.ok()?,
        ];
        match listener.accept().await {
            Ok((stream, peer)) => Some((stream, peer, permits)),
            Err(error) => {
                tracing::warn!(%error, "a control connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        [_connection, handshake]: [OwnedSemaphorePermit; 2],
    ) {
        // Replies are small, and somebody waits for each.
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(self.identity.server_config());
        let session = tokio::select! {
            () = self.stop.cancelled() => return,
            session = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => session,
        };
        let session = match session {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return tracing::info!(%error, "a control connection was refused"),
            Err(_) => return tracing::info!("the handshake of a control connection took too long"),
        };
        drop(handshake);
        let certificate = session.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = certificate.map(|der| certificate_names(der)).unwrap_or_default();
        let role = self.config.role_of(&names);
        let name = if names.is_empty() { format!("the certificate of {peer}") } else { names.join(", ") };
        tracing::debug!(name, ?role, "a control connection");
        let caller = Caller { role, name };
        let router = super::router(Arc::clone(&self.core));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            router.clone().call(request.map(Body::new))
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        let served = http.serve_connection(TokioIo::new(session), service);
        tokio::pin!(served);
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            () = self.stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a control connection broke");
        }
    }
}
