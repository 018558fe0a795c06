//! Bandwidth: what is sent to a store and what comes from it, held to so many bytes a second.

use super::{ObjectInfo, ObjectStore, PutMode, StoreFuture};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How much may be saved up while nothing moves, in seconds of the rate.
const SAVED_MOST: Duration = Duration::from_secs(1);

/// One direction.
#[derive(Debug)]
struct Bucket {
    bytes_per_s: u64,
    /// When everything that was let through so far would have been through at the rate.
    paid_until: Mutex<Instant>,
}

impl Bucket {
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), paid_until: Mutex::new(Instant::now()) }
    }

    /// Books so many bytes; gives the time at which they may go.
    fn book(&self, bytes: u64) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let mut paid_until = self.paid_until.lock();
        let now = Instant::now();
        let from = (*paid_until).max(now.checked_sub(SAVED_MOST).unwrap_or(now));
        *paid_until = from + takes;
        // The bytes go out as fast as the line takes them; what follows waits for the rate.
        from.max(now)
    }
}

/// The bandwidth of one credential, shared by all its tasks.
#[derive(Debug, Default)]
pub struct Bandwidth {
    up: Option<Bucket>,
    down: Option<Bucket>,
}

impl Bandwidth {
    /// At most so many bytes a second each way; `None` is as fast as it goes.
    pub fn new(upload_bytes_per_s: Option<u64>, download_bytes_per_s: Option<u64>) -> Self {
        Self { up: upload_bytes_per_s.map(Bucket::new), down: download_bytes_per_s.map(Bucket::new) }
    }

    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.up.is_some() || self.down.is_some()
    }
}

async fn wait(bucket: Option<&Bucket>, bytes: usize) {
    if let Some(bucket) = bucket {
        tokio::time::sleep_until(bucket.book(bytes as u64)).await;
    }
}

/// A store that holds bodies back.
///
/// Each body is booked as a whole: it goes at the speed of the line, and the next one waits until the average is within
/// the limit. It belongs in front of the retrying store, whose time limits would count the waiting; bodies that are sent
/// again are therefore not counted.
pub struct LimitStore {
    inner: Arc<dyn ObjectStore>,
    bandwidth: Arc<Bandwidth>,
}

impl LimitStore {
    /// Holds what goes through `inner` to `bandwidth`.
    pub fn new(inner: Arc<dyn ObjectStore>, bandwidth: Arc<Bandwidth>) -> Self {
        Self { inner, bandwidth }
    }
}

impl ObjectStore for LimitStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            wait(self.bandwidth.up.as_ref(), body.len()).await;
            self.inner.put(key, body, mode).await
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            wait(self.bandwidth.down.as_ref(), 0).await;
            let body = self.inner.get(key, max_len_bytes).await?;
            // Its length is known only now: what follows waits for it.
            if let Some(bucket) = &self.bandwidth.down {
                bucket.book(body.len() as u64);
            }
            Ok(body)
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            wait(self.bandwidth.down.as_ref(), len_bytes as usize).await;
            self.inner.get_range(key, offset_bytes, len_bytes).await
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.inner.delete(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.inner.multipart_start(key)
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        Box::pin(async move {
            wait(self.bandwidth.up.as_ref(), body.len()).await;
            self.inner.multipart_put(key, upload_id, part_no, body).await
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        self.inner.multipart_complete(key, upload_id, tags)
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        self.inner.multipart_abort(key, upload_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemoryStore, store_suite};

    fn limited(up: Option<u64>, down: Option<u64>) -> LimitStore {
        LimitStore::new(Arc::new(MemoryStore::default()), Arc::new(Bandwidth::new(up, down)))
    }

    #[tokio::test(start_paused = true)]
    async fn each_way_is_held_to_its_rate_whoever_asks() {
        let store = limited(Some(1000), Some(10_000));
        let began = Instant::now();
        let put = |key: &'static str| store.put(key, Bytes::from(vec![1; 500]), PutMode::Overwrite);
        // A second's worth is saved up at most; with none used, 20 puts of half a second take about nine and a half.
        for results in [futures::join!(put("a"), put("b")), futures::join!(put("c"), put("d"))] {
            results.0.unwrap();
            results.1.unwrap();
        }
        for _ in 0..16 {
            put("e").await.unwrap();
        }
        let took = began.elapsed().as_secs_f64();
        assert!((8.0..10.1).contains(&took), "20 bodies of 500 bytes at 1000 bytes/s took {took} s");
        let began = Instant::now();
        for _ in 0..200 {
            store.get("a", 1000).await.unwrap();
        }
        for _ in 0..200 {
            store.get_range("a", 0, 500).await.unwrap();
        }
        let took = began.elapsed().as_secs_f64();
        assert!((18.0..20.1).contains(&took), "400 bodies of 500 bytes at 10000 bytes/s took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let began = Instant::now();
        store_suite(&limited(None, None)).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        store_suite(&limited(Some(100 << 20), Some(1 << 30))).await;
    }
}
