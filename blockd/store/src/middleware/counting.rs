//! Counting what is asked of a store: requests by kind and bytes both ways, every attempt included.

use crate::{BlobStore, Operation, Request, Response, StoreFuture};
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counters of a task, cheap to read while it runs.
#[derive(Default, Debug)]
pub struct Requests {
    put: AtomicU64,
    get: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    multipart: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

impl Requests {
    /// The counters as they stand.
    pub fn snapshot(&self) -> RequestCounts {
        RequestCounts {
            put: self.put.load(Relaxed),
            get: self.get.load(Relaxed),
            list: self.list.load(Relaxed),
            delete: self.delete.load(Relaxed),
            multipart: self.multipart.load(Relaxed),
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
    /// All requests together.
    pub const fn total(&self) -> u64 {
        self.put + self.get + self.list + self.delete + self.multipart
    }
}

/// A store that counts on the way to another one.
pub struct CountingStore {
    inner: Arc<dyn BlobStore>,
    requests: Arc<Requests>,
}

impl CountingStore {
    /// Counts everything that is asked of `inner` in `requests`.
    pub fn new(inner: Arc<dyn BlobStore>, requests: Arc<Requests>) -> Self {
        Self { inner, requests }
    }
}

impl crate::Middleware for CountingStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        let requests = &*self.requests;
        let counter = match request.operation {
            Operation::Put => &requests.put,
            Operation::Get | Operation::GetRange => &requests.get,
            Operation::Delete => &requests.delete,
            Operation::List => &requests.list,
            Operation::MultipartStart
            | Operation::MultipartPut
            | Operation::MultipartComplete
            | Operation::MultipartAbort => &requests.multipart,
        };
        counter.fetch_add(1, Relaxed);
        requests.bytes_up.fetch_add(request.sent_bytes, Relaxed);
        Box::pin(async move {
            let answer = ask(self.inner.clone()).await?;
            requests.bytes_down.fetch_add(answer.received_bytes(), Relaxed);
            Ok(answer)
        })
    }
}
