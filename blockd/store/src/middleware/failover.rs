//! Store with several servers.

use super::layer::{Middleware, Request, RequestKind, Response};
use crate::{BlobStore, StoreFuture};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Time without a response after which a cancelled request counts as a failure of its server.
const SILENCE: Duration = Duration::from_secs(10);

/// Store whose servers are used in turn: after a request that got no response, the later ones go to the next
/// server. All servers have the same objects.
///
/// A request that got no response may have succeeded. Reads, listings and deletions are repeated at the next
/// server at once. Others fail, so that the caller repeats and counts them: the commit of a backup depends on
/// the number of its requests.
pub struct FailoverStore {
    description: String,
    servers: Vec<Arc<dyn BlobStore>>,
    /// Index of the server of the next request.
    current: AtomicUsize,
}

impl FailoverStore {
    /// Creates a store of a first server and others.
    pub fn new(first: Arc<dyn BlobStore>, others: Vec<Arc<dyn BlobStore>>, description: String) -> Self {
        let servers = std::iter::once(first).chain(others).collect();
        Self { description, servers, current: AtomicUsize::new(0) }
    }

    /// Directs later requests to the server after this one; returns its index.
    fn leave(&self, at: usize) -> usize {
        let next = (at + 1) % self.servers.len();
        // Unless another request has moved on already.
        let _ = self.current.compare_exchange(at, next, Relaxed, Relaxed);
        next
    }
}

/// Request at a server, which a caller cancels when its time is up.
struct Attempt<'a> {
    store: &'a FailoverStore,
    at: usize,
    began: Instant,
    has_ended: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.has_ended && self.began.elapsed() >= SILENCE {
            let next = self.store.leave(self.at);
            let silent = self.store.servers[self.at].describe();
            tracing::warn!(
                silent,
                next = self.store.servers[next].describe(),
                "server of the store does not respond; using the next one"
            );
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
        let is_repeatable = match request.operation.kind() {
            RequestKind::Get | RequestKind::List | RequestKind::Delete => true,
            RequestKind::Put | RequestKind::Multipart => false,
        };
        Box::pin(async move {
            let mut at = self.current.load(Relaxed);
            let mut others = self.servers.len() - 1;
            loop {
                let mut attempt = Attempt { store: self, at, began: Instant::now(), has_ended: false };
                let result = ask(Arc::clone(&self.servers[at])).await;
                attempt.has_ended = true;
                match result {
                    Err(error) if error.kind.is_without_response() => {
                        at = self.leave(at);
                        tracing::warn!(%error, next = self.servers[at].describe(), "server of the store unreachable; using the next one");
                        if others == 0 || !is_repeatable {
                            return Err(error);
                        }
                        others -= 1;
                    }
                    result => return result,
                }
            }
        })
    }
}
