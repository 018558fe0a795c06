//! What a backup that is given up may leave in a listing: it is whole, or it goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

mod common;

use blockd_cloud::{
    CancelToken, CloudError, CloudsnapId, EncryptionMode, Manifest, MemoryJournal, Repository, Settled,
    settle,
    testing::{Fault, FaultStore, MemoryStore, MemoryVolume},
};
use common::{BLOCK, fixed, restored, run, run_with, set, spec, with_slot};
use std::sync::Arc;

const SIZE: u64 = 100 * BLOCK as u64;

/// A full backup, and one on it that was committed and never learned whether the first is still there.
struct GivenUp {
    store: Arc<MemoryStore>,
    repo: Repository,
    live: MemoryVolume,
    base: Manifest,
    id: CloudsnapId,
}

impl GivenUp {
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let live = MemoryVolume::default();
        live.set(1, &[1; BLOCK]);
        let base = run(&repo, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap().manifest;
        live.set(2, &[2; BLOCK]);
        let spec = spec(2, SIZE, set([2]), set([]), Some(&base));
        let id = spec.id();
        let faults = Arc::new(FaultStore::new(store.clone()));
        // A pack, the index and the manifest are stored.
        faults.fail_from(3, Fault::Unauthorized);
        let cut_off = repo.with_store(faults);
        let (reader, journal) = (Arc::new(live.fork()), Arc::new(MemoryJournal::default()));
        let failed = run_with(&cut_off, spec, reader, journal, &CancelToken::new()).await;
        assert!(matches!(failed, Err(CloudError::BaseUnknown { .. })));
        Self { store, repo, live, base, id }
    }

    fn is_listed(&self) -> bool {
        self.store.objects().contains_key(&self.id.manifest_key())
    }
}

#[tokio::test]
async fn what_is_whole_stays() {
    let left = GivenUp::new().await;
    assert_eq!(settle(&left.repo, &left.id).await.unwrap(), Settled::Whole);
    let manifest = left.repo.manifest(&left.id).await.unwrap();
    assert_eq!(restored(&left.repo, &manifest).await.unwrap(), left.live.content());
}

#[tokio::test]
async fn what_lost_its_base_or_an_object_is_taken_back() {
    let base = GivenUp::new().await.base.id().manifest_key();
    for gone in [base.as_str(), "/2/pack-", "/2/index"] {
        let left = GivenUp::new().await;
        let key = left.store.objects().into_keys().find(|key| key.contains(gone)).unwrap();
        left.store.remove(&key).unwrap();
        assert_eq!(settle(&left.repo, &left.id).await.unwrap(), Settled::TakenBack, "{gone}");
        assert!(!left.is_listed(), "{gone}");
        assert_eq!(settle(&left.repo, &left.id).await.unwrap(), Settled::Absent);
    }
}

/// The directory of a disk that is away is empty; of another disk, it may hold anything but the key.
#[tokio::test]
async fn another_place_says_nothing() {
    let left = GivenUp::new().await;
    let elsewhere = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let error = settle(&elsewhere, &left.id).await.unwrap_err();
    assert!(matches!(error, CloudError::KeySlotMissing { .. }), "{error}");

    let slot = left.store.objects().into_keys().find(|key| key.starts_with("blockd/keys/")).unwrap();
    left.store.remove(&slot).unwrap();
    left.store.remove(&left.base.id().manifest_key()).unwrap();
    let error = settle(&left.repo, &left.id).await.unwrap_err();
    assert!(matches!(error, CloudError::KeySlotMissing { .. }), "{error}");
    assert!(left.is_listed());
}

#[tokio::test]
async fn a_store_that_does_not_answer_settles_nothing() {
    for answers in 0..5 {
        let left = GivenUp::new().await;
        left.store.remove(&left.base.id().manifest_key()).unwrap();
        let faults = Arc::new(FaultStore::new(left.store.clone()));
        faults.fail_from(answers, Fault::Unauthorized);
        let error = settle(&left.repo.with_store(faults), &left.id).await.unwrap_err();
        assert!(matches!(error, CloudError::Store(_)), "{answers}: {error}");
        assert!(left.is_listed(), "{answers}");
        assert_eq!(settle(&left.repo, &left.id).await.unwrap(), Settled::TakenBack);
    }
}
