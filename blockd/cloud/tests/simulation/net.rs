//! Fake network between a daemon and the bucket: with failures, latency and disconnections.

use super::Planted;
use crate::common::Noise;
use blockd_cloud::CancelToken;
use blockd_store::{
    BlobStore, ListPage, Middleware, ObjectInfo, Operation, PutMode, Request, RequestKind, Response,
    StoreError, StoreErrorKind, StoreFuture,
};
use blockd_testkit::store::MemoryStore;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

/// Observations and actions of one deletion or collection, for planted bugs.
#[derive(Default)]
pub struct Deletion {
    /// The manifests as they were first listed, without those that were missing when they were read.
    pub first_listing: Option<Vec<ObjectInfo>>,
    /// The manifests that it deleted.
    pub deleted: BTreeSet<String>,
}

/// Progress of each daemon in requests, not in time, so that thread scheduling has no effect.
#[derive(Default)]
pub struct Pace {
    pub requests: [AtomicU64; 2],
    pub is_idle: [AtomicBool; 2],
    /// Number of requests of each daemon that wait for the other one.
    pub waiting: [AtomicU64; 2],
}

impl Pace {
    /// Lets the other daemon make some requests first, unless it is waiting itself or has nothing to do.
    async fn wait_for_other(&self, number: usize, requests: u64) {
        let other = 1 - number;
        if self.waiting[other].load(SeqCst) > 0 {
            return;
        }
        let _waits = Waits::new(&self.waiting[number]);
        let until = self.requests[other].load(SeqCst) + requests;
        while self.requests[other].load(SeqCst) < until && !self.is_idle[other].load(SeqCst) {
            tokio::task::yield_now().await;
        }
    }
}

/// Request that waits until it is released or its daemon is killed.
struct Waits<'a>(&'a AtomicU64);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// The network between one daemon and the bucket.
pub struct Net {
    pub bucket: Arc<MemoryStore>,
    pub pace: Arc<Pace>,
    pub number: usize,
    pub dice: Mutex<Noise>,
    pub planted: Planted,
    /// Operations until the daemon is killed.
    pub dies_after: Mutex<Option<(u64, CancelToken)>>,
    /// The bucket refuses writes for now.
    pub is_full: Mutex<bool>,
    /// Running deletion.
    pub deletion: Mutex<Option<Deletion>>,
}

impl Net {
    pub fn dice(&self, sides: u64) -> u64 {
        self.dice.lock().next() % sides
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        request: Request<'a>,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let error = |kind| Err(request.failed(kind, "simulated store"));
            // A deletion that another action must overtake is slow.
            let may_wait = match self.planted {
                Planted::VanishedPassedOver | Planted::DeletedOnce => self.deletion.lock().is_some(),
                _ => true,
            };
            match self.dice(4) {
                0 | 1 if may_wait => self.pace.wait_for_other(self.number, self.dice(12)).await,
                _ => {
                    for _ in 0..self.dice(8) {
                        tokio::task::yield_now().await;
                    }
                }
            }
            self.pace.requests[self.number].fetch_add(1, SeqCst);
            let dies = match &mut *self.dies_after.lock() {
                Some((0, token)) => Some(token.clone()),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            if *self.is_full.lock()
                && matches!(request.operation.kind(), RequestKind::Put | RequestKind::Multipart)
            {
                return error(StoreErrorKind::NoSpace);
            }
            let fate = self.dice(40);
            if let Some(token) = dies {
                // Killed before the request arrived, or after.
                if fate.is_multiple_of(2) {
                    let _ = work.await;
                }
                token.cancel();
                return std::future::pending().await;
            }
            match fate {
                0 => error(StoreErrorKind::Unreachable),
                1 => {
                    work.await?;
                    error(StoreErrorKind::Timeout)
                }
                2 => {
                    work.await?;
                    error(StoreErrorKind::ShortBody)
                }
                _ => {
                    let answer = work.await;
                    for _ in 0..self.dice(4) {
                        tokio::task::yield_now().await;
                    }
                    answer
                }
            }
        })
    }
}

impl Middleware for Net {
    fn describe(&self) -> &str {
        "simulated store"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        self.ask(request, ask(self.bucket.clone()))
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        let rots = self.planted == Planted::RottenWrites && key.contains("/pack-") && self.dice(10) == 0;
        let body = match rots {
            true => {
                let mut body = body.to_vec();
                let at = body.len() / 2;
                body[at] ^= 1;
                body.into()
            }
            false => body,
        };
        self.ask(Request::new(Operation::Put, key), self.bucket.put(key, body, mode))
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.ask(Request::new(Operation::Get, key), async move {
            let found = self.bucket.get(key, max_len_bytes).await;
            if matches!(&found, Err(error) if error.kind == StoreErrorKind::NotFound)
                && let Some(Deletion { first_listing: Some(listing), .. }) = &mut *self.deletion.lock()
            {
                listing.retain(|object| object.key != key);
            }
            found
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.ask(Request::new(Operation::GetRange, key), async move {
            match self.bucket.get_range(key, offset_bytes, len_bytes).await {
                Err(_) if len_bytes == 1 && self.planted == Planted::PresenceTakenForGranted => {
                    Ok(Bytes::from_static(b"?"))
                }
                answer => answer,
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.ask(Request::new(Operation::Delete, key), async move {
            if self.planted == Planted::DeletedOnce
                && key.starts_with("blockd/manifests")
                && let Some(deletion) = &mut *self.deletion.lock()
                && !deletion.deleted.insert(key.to_owned())
            {
                return Ok(false);
            }
            self.bucket.delete(key).await
        })
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        let lags = self.planted == Planted::LaggingListings && prefix.starts_with("blockd/manifests");
        let once = self.planted == Planted::VanishedPassedOver && prefix.starts_with("blockd/manifests");
        self.ask(Request::new(Operation::List, prefix), async move {
            if once && let Some(Deletion { first_listing: Some(first), .. }) = &*self.deletion.lock() {
                return Ok(ListPage { objects: first.clone(), next: None });
            }
            let mut listed = self.bucket.list_page(prefix, page).await?;
            if lags {
                let newest = listed.objects.iter().filter_map(|object| object.modified_unix_s).max();
                listed.objects.retain(|object| object.modified_unix_s < newest);
            }
            if once && let Some(deletion) = &mut *self.deletion.lock() {
                deletion.first_listing = Some(listed.objects.clone());
            }
            Ok(listed)
        })
    }
}
