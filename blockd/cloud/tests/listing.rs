//! Listing of thousands of snapshots: number of requests to the store and the cache.
use crate::common::{CHECKED, fixed};
use blockd_cloud::{
    CloudSnapshotId, EncryptionMode, Manifest, ManifestCache, ManifestFilter, MemoryCache, NoCache,
    delete_snapshot,
};
use blockd_store::ObjectInfo;
use blockd_testkit::cloud::put_many_snapshots;
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use futures::future::BoxFuture;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const VOLUMES: u64 = 5;
const EACH: u64 = 1_000;

/// Cache that counts requests.
#[derive(Default)]
struct Counting {
    inner: MemoryCache,
    one: AtomicU64,
    many: AtomicU64,
    stored: AtomicU64,
}

impl Counting {
    /// Returns the numbers of single reads, batch reads and batch writes.
    fn take(&self) -> (u64, u64, u64) {
        (self.one.swap(0, Relaxed), self.many.swap(0, Relaxed), self.stored.swap(0, Relaxed))
    }
}

impl ManifestCache for Counting {
    fn load(&self, key: &str) -> Option<Manifest> {
        self.one.fetch_add(1, Relaxed);
        self.inner.load(key)
    }

    fn load_version(&self, key: &str, version: &str) -> Option<Manifest> {
        self.one.fetch_add(1, Relaxed);
        self.inner.load_version(key, version)
    }

    fn load_versions<'a>(&'a self, objects: &'a [ObjectInfo]) -> BoxFuture<'a, HashMap<String, Manifest>> {
        self.many.fetch_add(1, Relaxed);
        self.inner.load_versions(objects)
    }

    fn store_version(&self, _: &str, _: &str, _: &Manifest) {
        unreachable!("the cache is written in batches")
    }

    fn store_versions<'a>(&'a self, manifests: &'a [(&'a ObjectInfo, &'a Manifest)]) -> BoxFuture<'a, ()> {
        self.stored.fetch_add(1, Relaxed);
        self.inner.store_versions(manifests)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_are_listed_with_one_request_and_one_question() {
    let store = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let repo = fixed(store.clone(), EncryptionMode::Checksummed);
    put_many_snapshots(&repo, VOLUMES, EACH).await.unwrap();
    let (cache, everything) = (Counting::default(), ManifestFilter::default());

    let before = store.operations();
    let first = repo.list_manifests(&everything, &cache).await.unwrap();
    assert_eq!(first.len() as u64, VOLUMES * EACH);
    assert!(first.is_sorted_by_key(|listed| &listed.key) && first.iter().all(|one| one.manifest.is_ok()));
    assert_eq!(store.operations() - before, 1 + VOLUMES * EACH, "each is read once");
    let (one, many, stored) = cache.take();
    assert!(one == 0 && many == 1 && stored < 50, "{one} {many} {stored}");

    let before = store.operations();
    let again = repo.list_manifests(&everything, &cache).await.unwrap();
    assert_eq!(store.operations() - before, 1, "only the listing");
    assert_eq!(cache.take(), (0, 1, 0));
    let ids = |listed: &[blockd_cloud::ListedManifest]| -> Vec<Option<CloudSnapshotId>> {
        listed.iter().map(|one| one.id).collect()
    };
    assert_eq!(ids(&first), ids(&again));

    // A new one is read separately, and a deleted one is not listed, regardless of the cache.
    let gone = again[17].id.unwrap();
    let manifest = repo.manifest(&gone).await.unwrap();
    let before = (store.operations(), cache.take());
    delete_snapshot(&repo, &gone, &[], &cache, CHECKED).await.unwrap();
    let asked = cache.take();
    assert!(asked.0 <= 2 && asked.1 <= 4, "a deletion asks for each by itself: {asked:?}");
    assert!(store.operations() - before.0 < 20, "{}", store.operations() - before.0);
    let listed = repo.list_manifests(&everything, &cache).await.unwrap();
    assert!(listed.len() as u64 == VOLUMES * EACH - 1 && listed.iter().all(|one| one.id != Some(gone)));
    assert_eq!(manifest.id(), gone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_listing_resumes_at_its_position() {
    let store = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let repo = fixed(store.clone(), EncryptionMode::Checksummed);
    put_many_snapshots(&repo, 1, EACH).await.unwrap();
    let (cache, everything) = (Counting::default(), ManifestFilter::default());
    // The store stops replying after half of them.
    let half = store.operations() + 1 + EACH / 2;
    store.fail_from(half, Fault::Hang);
    tokio::select! {
        biased;
        _ = repo.list_manifests(&everything, &cache) => panic!("it came to an end"),
        () = async { while store.operations() <= half { tokio::task::yield_now().await } } => {}
    }
    store.heal();
    let before = store.operations();
    let all = repo.list_manifests(&everything, &cache).await.unwrap();
    assert!(all.len() as u64 == EACH && all.iter().all(|one| one.manifest.is_ok()));
    let read = store.operations() - before - 1;
    assert!(read < EACH * 4 / 5, "{read} of {EACH} were read again");
    let all = repo.list_manifests(&everything, &NoCache).await.unwrap();
    assert_eq!(all.len() as u64, EACH);
}
