//! Request counters by kind, with bytes sent and received; each attempt of a retry counts.

use super::layer::{Middleware, Request, RequestKind, Response, downcast};
use crate::{BlobStore, StoreErrorKind, StoreFuture};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Counters of a task, cheap to read while it runs.
#[derive(Default, Debug)]
pub struct Requests {
    by_kind: [AtomicU64; RequestKind::ALL.len()],
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

impl Requests {
    /// Returns the current values.
    pub fn snapshot(&self) -> RequestCounts {
        let of = |kind: RequestKind| self.by_kind[kind as usize].load(Relaxed);
        RequestCounts {
            put: of(RequestKind::Put),
            get: of(RequestKind::Get),
            list: of(RequestKind::List),
            delete: of(RequestKind::Delete),
            multipart: of(RequestKind::Multipart),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
        }
    }
}

/// Request counts by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestCounts {
    /// Objects stored.
    pub put: u64,
    /// Objects, or ranges of objects, read.
    pub get: u64,
    /// Pages of listings.
    pub list: u64,
    /// Objects removed.
    pub delete: u64,
    /// Requests of multipart uploads: start, each part, completion, abort.
    pub multipart: u64,
    /// Bytes of bodies sent.
    pub bytes_up: u64,
    /// Bytes of bodies received.
    pub bytes_down: u64,
}

impl RequestCounts {
    /// Returns the total number of requests.
    pub const fn total(&self) -> u64 {
        self.put + self.get + self.list + self.delete + self.multipart
    }
}

/// Observer of the requests to a store. A retry is a request of its own.
pub trait RequestObserver: Send + Sync {
    /// Called at the start of a request.
    fn started(&self, request: &Request<'_>);

    /// Called at the end of a request with its duration and the length of the response body or the kind of
    /// the error; not called for a cancelled request.
    fn ended(&self, request: &Request<'_>, elapsed: Duration, outcome: Result<u64, StoreErrorKind>);
}

impl RequestObserver for Requests {
    fn started(&self, request: &Request<'_>) {
        self.by_kind[request.operation.kind() as usize].fetch_add(1, Relaxed);
        self.bytes_up.fetch_add(request.sent_bytes, Relaxed);
    }

    fn ended(&self, _: &Request<'_>, _: Duration, outcome: Result<u64, StoreErrorKind>) {
        self.bytes_down.fetch_add(outcome.unwrap_or_default(), Relaxed);
    }
}

/// Store middleware that reports each request to its observers.
pub struct MeterStore {
    inner: Arc<dyn BlobStore>,
    observers: Vec<Arc<dyn RequestObserver>>,
}

impl MeterStore {
    /// Reports the requests to `inner`. If `inner` is a `MeterStore`, the observer is added to it: meters do
    /// not nest.
    pub fn new(inner: Arc<dyn BlobStore>, observer: Arc<dyn RequestObserver>) -> Self {
        let (inner, mut observers) = match downcast::<Self>(&inner) {
            Some(meter) => (Arc::clone(&meter.inner), meter.observers.clone()),
            None => (inner, Vec::new()),
        };
        debug_assert!(downcast::<Self>(&inner).is_none(), "meters are nested");
        observers.push(observer);
        Self { inner, observers }
    }
}

impl Middleware for MeterStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        self.observers.iter().for_each(|observer| observer.started(&request));
        Box::pin(async move {
            let began = Instant::now();
            let answer = ask(Arc::clone(&self.inner)).await;
            let elapsed = began.elapsed();
            let outcome = answer.as_ref().map(Response::received_bytes).map_err(|error| error.kind);
            self.observers.iter().for_each(|observer| observer.ended(&request, elapsed, outcome));
            answer
        })
    }
}
