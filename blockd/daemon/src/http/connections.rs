//! One request a connection, from whoever is at its other end, within bounds.
//!
//! A caller's role is looked up when it connects, so a connection ends with its request: what was taken from somebody is
//! not theirs for as long as they keep a connection.

use super::{
    caller::{Caller, User},
    closing::Closer,
    passed::{Passed, Receiving, may_pass},
};
use axum::{Router, body::Body};
use blockd_cloud::CancelToken;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
    sync::Semaphore,
    task::JoinSet,
};
use tower_service::Service;

/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections to one socket at once; more wait in the kernel.
const CONNECTIONS_MOST: usize = 256;
/// How long nothing is accepted after that failed: there may be no descriptors left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves whoever comes through a socket, until told to stop, then ends when the requests under way are answered. Who that is is asked
/// for each connection.
pub(crate) async fn serve(
    listener: UnixListener,
    caller: impl Fn() -> Caller,
    router: Router,
    stop: CancelToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MOST));
    let mut connections = JoinSet::new();
    let accept = async || {
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        match listener.accept().await {
            Ok((stream, _)) => Some((stream, slot)),
            Err(error) => {
                tracing::warn!(%error, "a control connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    };
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = accept() => next,
        };
        while connections.try_join_next().is_some() {}
        let Some((stream, slot)) = next else { continue };
        let (mut caller, router, stop) = (caller(), router.clone(), stop.clone());
        caller.user = stream.peer_cred().ok().map(|peer| User { uid: peer.uid(), gid: peer.gid() });
        connections.spawn(async move {
            let closer = may_pass(&caller).then(Closer::shared).flatten();
            let (stream, passed) = Receiving::new(stream, closer);
            serve_one(stream, caller, passed, router, &stop).await;
            drop(slot);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection to its end. When told to stop, a request that is under way is answered. The request is given the descriptors that came
/// before it was read.
pub(super) async fn serve_one<S>(
    stream: S,
    caller: Caller,
    passed: Passed,
    router: Router,
    stop: &CancelToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        request.extensions_mut().insert(passed.take());
        router.clone().call(request.map(Body::new))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection broke");
    }
}
