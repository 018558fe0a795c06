//! Store with several servers.

use super::layer::{Middleware, Request, Response};
use crate::{BlobStore, StoreErrorKind, StoreFuture};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Store whose servers are used in turn: a request whose server cannot be reached goes to the next one, which
/// serves the later requests too. All servers have the same objects.
///
/// As with retries, a request whose response was lost may have succeeded.
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
}

impl Middleware for FailoverStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let count = self.servers.len();
            let mut at = self.current.load(Relaxed);
            let mut others = count - 1;
            loop {
                match ask(Arc::clone(&self.servers[at])).await {
                    Err(error) if error.kind == StoreErrorKind::Unreachable && others > 0 => {
                        let next = (at + 1) % count;
                        tracing::warn!(%error, next = self.servers[next].describe(), "server of the store unreachable; using the next one");
                        // Unless another request has moved on already.
                        let _ = self.current.compare_exchange(at, next, Relaxed, Relaxed);
                        at = next;
                        others -= 1;
                    }
                    result => return result,
                }
            }
        })
    }
}
