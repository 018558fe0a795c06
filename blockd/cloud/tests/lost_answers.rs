//! Creations whose reply is lost: the second attempt finds the object of the first one, complete or damaged.
use crate::common::open;
use blockd_store::{
    BlobStore, Middleware, PutMode, Request, Response, StoreError, StoreErrorKind, StoreFuture, probe,
};
use blockd_testkit::store::MemoryStore;
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

/// Fate of a creation.
#[derive(Clone, Copy, PartialEq)]
enum First {
    /// It succeeds, and its reply is lost.
    Whole,
    /// It arrives without its last byte, and its reply is lost.
    Cut,
    /// Refused: the object exists.
    Refused,
}

/// Store whose first creations run twice, with a lost reply.
struct LostAnswers {
    inner: Arc<MemoryStore>,
    first: First,
    left: AtomicU32,
    replaced: AtomicU32,
}

impl LostAnswers {
    fn new(inner: &Arc<MemoryStore>, first: First, times: u32) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), first, left: times.into(), replaced: 0.into() })
    }
}

impl Middleware for LostAnswers {
    fn describe(&self) -> &str {
        "lost answers"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.inner.clone())
    }

    fn put<'a>(&'a self, key: &'a str, mut body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        if mode == PutMode::Overwrite {
            self.replaced.fetch_add(1, SeqCst);
            return self.inner.put(key, body, mode);
        }
        if self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
            return self.inner.put(key, body, mode);
        }
        Box::pin(async move {
            if self.first == First::Cut {
                body.truncate(body.len() - 1);
            }
            if self.first != First::Refused {
                self.inner.put(key, body, mode).await?;
            }
            Err(StoreError::new(StoreErrorKind::AlreadyExists, "PUT", key, "lost answers"))
        })
    }
}

/// A slot with the only key of a new repository: one that arrived damaged is written again.
#[tokio::test]
async fn key_slot_damaged_in_transit_is_rewritten() {
    for (first, replaced) in [(First::Whole, 0), (First::Cut, 1), (First::Refused, 1)] {
        let inner = Arc::new(MemoryStore::default());
        let store = LostAnswers::new(&inner, first, 1);
        let made = open(store.clone(), Some("correct horse")).await.unwrap();
        assert_eq!(store.replaced.load(SeqCst), replaced, "only a damaged slot is written again");
        let found = open(inner, Some("correct horse")).await.unwrap();
        found.prove_key_slot().await.unwrap();
        let ids = |keys: &[blockd_cloud::DataKey]| keys.iter().map(|key| key.key_id()).collect::<Vec<_>>();
        assert_eq!(ids(found.keys()), ids(made.keys()));
    }
}

#[tokio::test]
async fn lost_answer_does_not_disable_create_if_absent() {
    for (times, conditional_put) in [(1, true), (2, false)] {
        let inner = Arc::new(MemoryStore::default());
        let store = LostAnswers::new(&inner, First::Whole, times);
        assert_eq!(probe(&*store).await.unwrap().conditional_put, conditional_put, "{times} lost");
        assert_eq!(inner.objects().len(), 0, "the probe leaves nothing");
    }
}
