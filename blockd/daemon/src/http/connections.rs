//! Connections, within limits.
//!
//! A caller's role is looked up for each request on a Unix socket, where a client may keep its connection. A
//! TLS connection ends with its request: a revoked role does not live on in an open connection. While a
//! client waits for a connection, kept ones end with their request, and idle ones at once.

use super::{
    caller::Caller,
    passed_fds::{PassedFds, Receiving, may_pass},
};
use axum::{Router, body::Body};
use blockd_engine::owner::User;
use blockd_views::foreign_fd::Closer;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    future::{Future, poll_fn},
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Timeout of a request's head, also of the next one on a kept connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections of a socket; more wait in the kernel.
const MAX_CONNECTIONS: usize = 256;
/// Timeout of the first request on a connection from before the stop: it is answered, so that a restart
/// behind an activated socket refuses no client.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept: there may be no descriptors left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a socket until the stop, and ends after the running requests. The caller is determined for each
/// request.
pub(crate) async fn serve(
    listener: UnixListener,
    caller: impl Fn() -> Caller + Clone + Send + 'static,
    router: Router,
    stop: CancellationToken,
) {
    let until = stop.clone();
    let crowded = watch::Sender::new(false);
    let is_crowded = crowded.subscribe();
    let connection = move |stream: UnixStream| {
        let (caller, router, stop) = (caller.clone(), router.clone(), stop.clone());
        let is_crowded = is_crowded.clone();
        let user = stream.peer_cred().ok().map(|peer| User { uid: peer.uid(), gid: peer.gid() });
        let caller = move || Caller { user, ..caller() };
        async move {
            let closer = may_pass(&caller()).then(Closer::shared).flatten();
            let (stream, passed) = Receiving::new(stream, closer);
            serve_one(stream, (caller, KeepAlive::Until(is_crowded)), passed, router, &stop).await;
        }
    };
    serve_each(listener, (MAX_CONNECTIONS, &crowded), &until, connection).await;
}

/// Listening socket.
pub(super) trait Listen {
    type Stream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Self::Stream>>;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        Self::poll_accept(self, context).map_ok(|(stream, _)| stream)
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        Self::poll_accept(self, context).map_ok(|(stream, _)| stream)
    }
}

/// Serves at most `limit` connections, each by a task; more wait in the kernel. `crowded` is true while one
/// may wait. Ends at the stop, after the accepted connections.
pub(super) async fn serve_each<L: Listen, F>(
    listener: L,
    (limit, crowded): (usize, &watch::Sender<bool>),
    stop: &CancellationToken,
    connection: impl Fn(L::Stream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limit));
    let mut connections = JoinSet::new();
    let accept = async || {
        crowded.send_replace(slots.available_permits() == 0);
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        crowded.send_replace(false);
        match poll_fn(|context| listener.poll_accept(context)).await {
            Ok(stream) => Some((stream, slot)),
            Err(error) => {
                tracing::warn!(%error, "accept failed on control socket");
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
        let served = connection(stream);
        connections.spawn(async move {
            served.await;
            drop(slot);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Further requests of a connection.
#[derive(Debug)]
pub(super) enum KeepAlive {
    /// The client may keep the connection until others wait for one.
    Until(watch::Receiver<bool>),
    /// The connection ends with its request.
    No,
}

/// Serves one connection to its end. At the stop, a running request is answered, and an immediate one
/// if it is the first. The first request gets the descriptors that came before it was read.
pub(super) async fn serve_one<S>(
    stream: S,
    (caller, keep_alive): (impl Fn() -> Caller, KeepAlive),
    passed: PassedFds,
    router: Router,
    stop: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = CancellationToken::new();
    let has_started = begun.clone();
    let is_kept = matches!(keep_alive, KeepAlive::Until(_));
    // A connection without a request ends by the timeout of its head.
    let crowded = async {
        begun.cancelled().await;
        if let KeepAlive::Until(mut is_crowded) = keep_alive
            && is_crowded.wait_for(|is_crowded| *is_crowded).await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        has_started.cancel();
        request.extensions_mut().insert(caller());
        request.extensions_mut().insert(passed.take());
        router.clone().call(request.map(Body::new))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    http.keep_alive(is_kept);
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = crowded => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = stop.cancelled() => {
            // Hyper closes a connection at once if it is shut down before a request was read.
            let asks = tokio::time::timeout(LAST_REQUEST_TIMEOUT, begun.cancelled());
            tokio::select! {
                ended = served.as_mut() => ended,
                asked = asks => match asked {
                    Ok(()) => {
                        served.as_mut().graceful_shutdown();
                        served.await
                    }
                    // A partial head, or none.
                    Err(_) => Ok(()),
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
        time::Instant,
    };

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: blockd\r\n\r\n";

    fn kept() -> KeepAlive {
        KeepAlive::Until(watch::channel(false).1)
    }

    /// Returns an accepted connection and its server task, which is stopping.
    async fn accepted_before_the_stop() -> (UnixStream, tokio::task::JoinHandle<()>) {
        let (near, far) = UnixStream::pair().unwrap();
        let router = Router::new().route("/", get(async || "still here"));
        let stop = CancellationToken::new();
        let told = stop.clone();
        let served = tokio::spawn(async move {
            let caller = (Caller::owner, KeepAlive::No);
            serve_one(far, caller, PassedFds::default(), router, &told).await;
        });
        // On one thread, the task waits for a request when this continues.
        tokio::task::yield_now().await;
        stop.cancel();
        tokio::task::yield_now().await;
        (near, served)
    }

    /// Fake listener with queued connections.
    struct Queued(std::cell::RefCell<Vec<usize>>);

    impl Listen for Queued {
        type Stream = usize;

        fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
            self.0.borrow_mut().pop().map_or(Poll::Pending, |next| Poll::Ready(Ok(next)))
        }
    }

    #[tokio::test]
    async fn listener_at_its_limit_accepts_when_a_connection_ends() {
        let (stop, ends) = (CancellationToken::new(), [(); 4].map(|()| CancellationToken::new()));
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let connection = |number: usize| {
            let (begun, end) = (begun.clone(), ends[number].clone());
            async move {
                begun.send(number).unwrap();
                end.cancelled().await;
            }
        };
        let (crowded, is_crowded) = watch::channel(false);
        let served = serve_each(Queued(vec![3, 2, 1, 0].into()), (2, &crowded), &stop, connection);
        let test = async {
            assert_eq!((begins.recv().await, begins.recv().await), (Some(0), Some(1)));
            // On one thread, the server runs after each of these.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(begins.try_recv().is_err(), "a third connection at a limit of two");
            assert!(*is_crowded.borrow());
            ends[1].cancel();
            assert_eq!(begins.recv().await, Some(2));
            ends.iter().for_each(CancellationToken::cancel);
            assert_eq!(begins.recv().await, Some(3));
            stop.cancel();
        };
        tokio::join!(served, test);
    }

    #[tokio::test(start_paused = true)]
    async fn connection_from_before_the_stop_is_answered() {
        let (mut near, served) = accepted_before_the_stop().await;
        near.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("still here"), "{answer:?}");
        served.await.unwrap();
    }

    /// Reads an answer of the test's router.
    async fn read_answer(near: &mut UnixStream, last: &str) {
        let mut answer = Vec::new();
        while !answer.ends_with(last.as_bytes()) {
            assert!(near.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn kept_connection_has_the_current_role_until_it_idles() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let router = Router::new().route("/", get(async |caller: Caller| caller.name));
        let name = Arc::new(parking_lot::Mutex::new("before"));
        let current = Arc::clone(&name);
        let served = tokio::spawn(async move {
            let caller = move || Caller { name: (*current.lock()).to_owned(), ..Caller::owner() };
            let stop = CancellationToken::new();
            serve_one(far, (caller, kept()), PassedFds::default(), router, &stop).await;
        });
        near.write_all(REQUEST).await.unwrap();
        read_answer(&mut near, "before").await;
        *name.lock() = "after";
        near.write_all(REQUEST).await.unwrap();
        read_answer(&mut near, "after").await;
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0, "it ends while idle");
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connection_ends_while_a_client_waits_for_one() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (crowded, is_crowded) = watch::channel(false);
        let router = Router::new().route("/", get(async || "done"));
        let served = tokio::spawn(async move {
            let (caller, stop) = ((Caller::owner, KeepAlive::Until(is_crowded)), CancellationToken::new());
            serve_one(far, caller, PassedFds::default(), router, &stop).await;
        });
        near.write_all(REQUEST).await.unwrap();
        read_answer(&mut near, "done").await;
        let began = Instant::now();
        crowded.send_replace(true);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        served.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "before the timeout of its next head");
    }

    #[tokio::test(start_paused = true)]
    async fn kept_connection_does_not_delay_the_stop() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (router, stop) = (Router::new().route("/", get(async || "done")), CancellationToken::new());
        let told = stop.clone();
        let served = tokio::spawn(async move {
            let caller = (Caller::owner, kept());
            serve_one(far, caller, PassedFds::default(), router, &told).await;
        });
        near.write_all(REQUEST).await.unwrap();
        read_answer(&mut near, "done").await;
        let began = Instant::now();
        stop.cancel();
        served.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    /// Cancels on drop.
    struct Held(CancellationToken);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }

    #[tokio::test]
    async fn request_of_a_closed_connection_is_dropped() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (begun, gone) = (CancellationToken::new(), CancellationToken::new());
        let (begins, goes) = (begun.clone(), gone.clone());
        let handler = move || {
            let (begins, held) = (begins.clone(), Held(goes.clone()));
            async move {
                let _held = held;
                begins.cancel();
                std::future::pending::<&'static str>().await
            }
        };
        let router = Router::new().route("/", get(handler));
        let served = tokio::spawn(async move {
            let (caller, stop) = ((Caller::owner, kept()), CancellationToken::new());
            serve_one(far, caller, PassedFds::default(), router, &stop).await;
        });
        near.write_all(REQUEST).await.unwrap();
        begun.cancelled().await;
        assert!(!gone.is_cancelled());
        drop(near);
        tokio::time::timeout(std::time::Duration::from_secs(60), gone.cancelled()).await.unwrap();
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silent_or_partial_request_does_not_delay_the_stop() {
        for said in [&b""[..], &REQUEST[..20]] {
            let began = Instant::now();
            let (mut near, served) = accepted_before_the_stop().await;
            near.write_all(said).await.unwrap();
            served.await.unwrap();
            assert!(began.elapsed() <= 2 * LAST_REQUEST_TIMEOUT, "{:?}", began.elapsed());
        }
    }
}
