//! Store with several servers.

use super::{
    layer::{Middleware, Operation, Request, RequestKind, Response},
    store_time::StoreClock,
};
use crate::{BlobStore, ListPage, StoreErrorKind, StoreFuture};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Time of cancelled requests, without any response in between, after which a server is left.
const SILENCE: Duration = Duration::from_secs(10);

/// Time for the response to a request that can be repeated at the next server, in addition to the time of its
/// body. Longer than what a working server needs for a page of a listing.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Minimum transfer rate of a response body, in bytes per second.
const MIN_BYTES_PER_S: u64 = 64 << 10;

/// Store whose servers are used in turn: after a request that got no response, the later ones go to the next
/// server. All servers have the same objects.
///
/// A request that got no response may have succeeded. Reads, deletions and listings are repeated at the next
/// server at once. Writes fail, so that the caller repeats and counts them: the commit of a backup depends on
/// the number of its requests. A listing begins again at the next server, which may take the position of
/// another one for the end; its pages then repeat objects.
pub struct FailoverStore {
    description: String,
    servers: Vec<Server>,
    /// Index of the server of the next request.
    current: AtomicUsize,
}

struct Server {
    store: Arc<dyn BlobStore>,
    /// Time of the cancelled requests since its last response.
    silence: Mutex<Duration>,
}

impl FailoverStore {
    /// Creates a store of a first server and others.
    pub fn new(first: Arc<dyn BlobStore>, others: Vec<Arc<dyn BlobStore>>, description: String) -> Self {
        let servers = std::iter::once(first).chain(others);
        let servers = servers.map(|store| Server { store, silence: Mutex::default() }).collect();
        Self { description, servers, current: AtomicUsize::new(0) }
    }

    /// Directs later requests to the server after this one; returns its index.
    fn leave(&self, at: usize, why: &str) -> usize {
        let next = (at + 1) % self.servers.len();
        // Unless another request has moved on already.
        if self.current.compare_exchange(at, next, Relaxed, Relaxed).is_ok() {
            tracing::warn!(
                server = self.servers[at].store.describe(),
                next = self.servers[next].store.describe(),
                why,
                "server of the store does not respond; using the next one"
            );
        }
        *self.servers[at].silence.lock() = Duration::ZERO;
        next
    }

    /// Returns the route of a new request.
    fn route(&self, kind: RequestKind) -> Route {
        let others = match kind {
            RequestKind::Get | RequestKind::List | RequestKind::Delete => self.servers.len() - 1,
            RequestKind::Put | RequestKind::Multipart => 0,
        };
        Route { at: self.current.load(Relaxed), others }
    }

    /// Sends a request along a route; returns the route from the server that responded, and the response.
    async fn send<'a, T>(
        &self,
        request: Request<'a>,
        Route { mut at, mut others }: Route,
        ask: &(impl Fn(usize, Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync),
    ) -> (Route, Result<T, crate::StoreError>) {
        loop {
            let attempt = Attempt::start(self, at);
            let asked = ask(at, Arc::clone(&self.servers[at].store));
            let result = if others == 0 || request.operation == Operation::DeleteMany {
                // A server may need minutes for a thousand objects.
                attempt.clock.run(asked).await
            } else {
                // Most bodies are much shorter than their maximum.
                let body = Duration::from_secs(request.wanted_bytes / MIN_BYTES_PER_S).min(RESPONSE_TIMEOUT);
                attempt.clock.timeout(RESPONSE_TIMEOUT + body, asked).await.unwrap_or_else(|| {
                    Err(request.failed(StoreErrorKind::Timeout, self.servers[at].store.describe()))
                })
            };
            attempt.end();
            match result {
                Err(error) if error.kind.is_without_response() => {
                    let next = self.leave(at, &error.to_string());
                    if others == 0 {
                        return (Route { at, others }, Err(error));
                    }
                    (at, others) = (next, others - 1);
                }
                result => return (Route { at, others }, result),
            }
        }
    }
}

/// Server of a request or of the next page of a listing, and the number of servers after it that may repeat
/// the request.
#[derive(Clone, Copy)]
struct Route {
    at: usize,
    others: usize,
}

impl Route {
    /// Returns the position of a page whose server calls it `page`.
    fn position(self, page: &str) -> String {
        format!("{}:{}:{page}", self.at, self.others)
    }

    /// Returns the route of a position, and the position at its server.
    fn of_position(position: &str) -> Option<(Self, &str)> {
        let mut parts = position.splitn(3, ':');
        let mut number = || parts.next()?.parse().ok();
        let route = Self { at: number()?, others: number()? };
        Some((route, parts.next()?))
    }
}

/// Request at a server, which a caller cancels when its time is up.
struct Attempt<'a> {
    store: &'a FailoverStore,
    at: usize,
    clock: StoreClock,
    has_ended: bool,
}

impl<'a> Attempt<'a> {
    fn start(store: &'a FailoverStore, at: usize) -> Self {
        Self { store, at, clock: StoreClock::start(), has_ended: false }
    }

    fn end(mut self) {
        *self.store.servers[self.at].silence.lock() = Duration::ZERO;
        self.has_ended = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let silence = {
            let mut silence = self.store.servers[self.at].silence.lock();
            *silence += self.clock.elapsed();
            *silence
        };
        if silence >= SILENCE {
            self.store.leave(self.at, "requests were cancelled that got no response");
        }
    }
}

impl Middleware for FailoverStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        let route = self.route(request.operation.kind());
        Box::pin(async move { self.send(request, route, &|_, store| ask(store)).await.1 })
    }

    /// Positions begin with their route, so that a listing begins again at most once at each other server.
    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        let request = Request::new(Operation::List, prefix);
        Box::pin(async move {
            let position = page.map(|page| {
                let found = Route::of_position(page);
                let count = self.servers.len();
                found.filter(|(route, _)| route.at < count && route.others < count).ok_or_else(|| {
                    request.failed(StoreErrorKind::Other, &self.description).with_detail("unknown position")
                })
            });
            let (start, page) = position.transpose()?.unzip();
            let start = start.unwrap_or_else(|| self.route(RequestKind::List));
            let ask = move |at, store: Arc<dyn BlobStore>| -> StoreFuture<'a, ListPage> {
                let page = page.filter(|_| at == start.at);
                Box::pin(async move { store.list_page(prefix, page).await })
            };
            let (route, listed) = self.send(request, start, &ask).await;
            let listed = listed?;
            Ok(ListPage { next: listed.next.map(|next| route.position(&next)), ..listed })
        })
    }
}
