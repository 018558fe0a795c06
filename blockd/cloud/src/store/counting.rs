//! Counting what is asked of a store: requests by kind and bytes both ways, every attempt included.

use super::{ObjectInfo, ObjectStore, PutMode, StoreFuture};
use bytes::Bytes;
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

/// How often a store was asked, by kind. A listing counts once, however many pages the store cuts it into.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestCounts {
    /// Objects stored.
    pub put: u64,
    /// Objects, or ranges of objects, read.
    pub get: u64,
    /// Listings.
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
    inner: Arc<dyn ObjectStore>,
    requests: Arc<Requests>,
}

impl CountingStore {
    /// Counts everything that is asked of `inner` in `requests`.
    pub fn new(inner: Arc<dyn ObjectStore>, requests: Arc<Requests>) -> Self {
        Self { inner, requests }
    }

    fn up(&self, counter: &AtomicU64, len: usize) {
        counter.fetch_add(1, Relaxed);
        self.requests.bytes_up.fetch_add(len as u64, Relaxed);
    }

    fn down<'a>(&'a self, answer: StoreFuture<'a, Bytes>) -> StoreFuture<'a, Bytes> {
        self.requests.get.fetch_add(1, Relaxed);
        Box::pin(async move {
            let body = answer.await?;
            self.requests.bytes_down.fetch_add(body.len() as u64, Relaxed);
            Ok(body)
        })
    }
}

impl ObjectStore for CountingStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        self.up(&self.requests.put, body.len());
        self.inner.put(key, body, mode)
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.down(self.inner.get(key, max_len_bytes))
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.down(self.inner.get_range(key, offset_bytes, len_bytes))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.requests.delete.fetch_add(1, Relaxed);
        self.inner.delete(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        self.requests.list.fetch_add(1, Relaxed);
        self.inner.list(prefix)
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.up(&self.requests.multipart, 0);
        self.inner.multipart_start(key)
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        self.up(&self.requests.multipart, body.len());
        self.inner.multipart_put(key, upload_id, part_no, body)
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        self.up(&self.requests.multipart, 0);
        self.inner.multipart_complete(key, upload_id, tags)
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        self.up(&self.requests.multipart, 0);
        self.inner.multipart_abort(key, upload_id)
    }
}
