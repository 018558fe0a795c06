//! Tests of garbage collection: objects of abandoned backups are deleted, and no object of a snapshot.
use crate::common::{BLOCK, CLUSTER, proof, restored, run, run_with, set, with_slot};
use blockd_cloud::{
    BACKUP_LIFETIME_S, CancelToken, CloudError, EncryptionMode, GarbageOptions, GarbageReport,
    MAX_CLOCK_SKEW_S, ManifestFilter, ManifestKey, MemoryJournal, NoCache, ProofId, ProofKind, Repository,
    collect_garbage, remove_leftovers_of,
};
use blockd_extent::{CloudSnapshotId, SnapshotId};
use blockd_store::{
    BlobStore, DELETE_MAX_KEYS, DryStore, LIST_MAX_OBJECTS, ListPage, Middleware, ObjectInfo, Operation,
    Request, Response, StoreErrorKind, StoreFuture,
};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use jiff::{SignedDuration, Timestamp};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

const SIZE: u64 = 100_000 * BLOCK as u64;

async fn collect(repo: &Repository, after_s: i64, dry_run: bool, protected: &[u64]) -> GarbageReport {
    let options = GarbageOptions {
        now: Timestamp::from_second(after_s).unwrap(),
        protected: protected.iter().map(|id| SnapshotId::from_u64(*id)).collect::<BTreeSet<_>>(),
        ..GarbageOptions::default()
    };
    let repo = match dry_run {
        true => repo.with_store(Arc::new(DryStore::new(repo.store().clone(), DELETE_MAX_KEYS))),
        false => repo.clone(),
    };
    collect_garbage(&repo, &options, &NoCache).await.unwrap()
}

/// A full backup, an incremental whose base was deleted later, and an abandoned backup; all stored at
/// second 1000.
async fn sample(store: &Arc<MemoryStore>) -> (Repository, MemoryVolume, blockd_cloud::Manifest) {
    store.set_clock(1000);
    let repo = with_slot(store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    (0..40).for_each(|block| live.set(block, &[block as u8 + 1; BLOCK]));
    let full = run(&repo, spec(1, SIZE, set(0..40), set([]), None), &live).await.unwrap().manifest;
    live.set(3, &[99; BLOCK]);
    let tip = run(&repo, spec(2, SIZE, set([3]), set([]), Some(&full)), &live).await.unwrap().manifest;
    store.remove(&full.id().manifest_key()).unwrap();

    let faults = Arc::new(FaultStore::new(store.clone()));
    faults.fail_from(2, Fault::BeforeApply);
    let abandoned = spec(3, SIZE, set(0..40), set([]), None);
    let journal = Arc::new(MemoryJournal::default());
    let repo_of_other = repo.with_store(faults);
    let cancel = CancelToken::new();
    run_with(&repo_of_other, abandoned, Arc::new(live.fork()), journal, &cancel).await.err().unwrap();
    store.insert("blockd/probe/5/x", "?");
    store.insert("blockd/data/readme.txt", "?");
    (repo, live, tip)
}

#[tokio::test]
async fn leftovers_without_a_possible_commit_are_deleted() {
    let store = Arc::new(MemoryStore::default());
    let (repo, live, tip) = sample(&store).await;
    let before = store.objects();
    let limit = 1000 + BACKUP_LIFETIME_S + MAX_CLOCK_SKEW_S;

    let report = collect(&repo, limit, false, &[]).await;
    assert_eq!((report.garbage.len(), report.young.len()), (0, 1));
    assert_eq!(report.young[0].snapshot, SnapshotId::from_u64(3));
    assert_eq!((report.probe_objects, report.objects_deleted), (1, 1));

    let report = collect(&repo, limit + 1, true, &[]).await;
    assert_eq!((report.garbage.len(), report.young.len()), (1, 0));
    let leftover = &report.garbage[0];
    let (objects, len_bytes): (Vec<_>, Vec<_>) = before
        .iter()
        .filter(|(key, _)| key.contains("/3/"))
        .map(|(key, body)| (key, body.len() as u64))
        .unzip();
    assert_eq!((leftover.objects, leftover.len_bytes), (2, len_bytes.iter().sum()));
    assert_eq!(leftover.since, Some(Timestamp::from_second(1000).unwrap()));
    assert_eq!(store.objects().len(), before.len() - 1, "a dry run deletes nothing");

    // Known backups of this host stay regardless of age.
    let report = collect(&repo, limit * 9, false, &[3]).await;
    assert_eq!(report.objects_deleted, 0);

    let report = collect(&repo, limit + 1, false, &[]).await;
    assert_eq!(report.objects_deleted, 2);
    let after = store.objects();
    assert!(objects.iter().all(|key| !after.contains_key(*key)));
    assert_eq!(after.len(), before.len() - 3);
    // The base has no manifest any more, but the tip names its delta.
    assert_eq!(restored(&repo, &tip).await.unwrap(), live.content());
}

#[tokio::test]
async fn unreadable_manifest_keeps_all_objects() {
    let store = Arc::new(MemoryStore::default());
    let (repo, _, tip) = sample(&store).await;
    // The manifest may name deltas of other volumes.
    let of_other = store.objects().into_iter().find(|(key, _)| key.contains("/3/")).unwrap();
    let volume = tip.id().volume.to_string();
    store.insert(&of_other.0.replace(&format!("/{volume}/"), "/777/"), of_other.1.to_vec());
    assert_eq!(collect(&repo, i64::from(i32::MAX), true, &[]).await.garbage.len(), 2);
    let mut body = store.objects()[&tip.id().manifest_key()].to_vec();
    body[70] ^= 1;
    store.insert(&tip.id().manifest_key(), body);
    let report = collect(&repo, i64::from(i32::MAX), false, &[]).await;
    assert_eq!((report.garbage.len(), report.objects_deleted), (0, 1), "only the probe");
    assert!(report.unknown[0].2.contains(&tip.id().manifest_key()), "{:?}", report.unknown);
}

#[tokio::test]
async fn leftovers_named_by_a_manifest_are_kept() {
    let store = Arc::new(MemoryStore::default());
    let (repo, live, tip) = sample(&store).await;
    let id = tip.id();
    let remove = async |snapshot| {
        remove_leftovers_of(&repo, id.cluster, id.volume, SnapshotId::from_u64(snapshot)).await.unwrap()
    };
    assert_eq!(remove(2).await, 0, "the delta of the tip");
    assert_eq!(remove(1).await, 0, "the tip builds on it");
    let key = id.manifest_key();
    let body = store.objects()[&key].to_vec();
    let mut flipped = body.clone();
    flipped[70] ^= 1;
    store.insert(&key, flipped);
    assert_eq!(remove(3).await, 0, "its references are unknown");
    store.insert(&key, body);
    let foreign = format!("blockd/data/{}/{}/3/notes.txt", id.cluster, id.volume);
    store.insert(&foreign, "?");
    assert_eq!(remove(3).await, 2);
    assert!(store.objects().contains_key(&foreign), "a foreign object was deleted");
    assert_eq!(restored(&repo, &tip).await.unwrap(), live.content());
}

async fn proof_ids(repo: &Repository) -> Vec<ProofId> {
    let listed = repo.list_proofs(&ManifestFilter::default()).await.unwrap();
    listed.into_iter().map(|one| one.id).collect()
}

#[tokio::test]
async fn proofs_of_deleted_snapshots_are_collected_after_a_week() {
    let store = Arc::new(MemoryStore::default());
    let (repo, _, tip) = sample(&store).await;
    let deleted = CloudSnapshotId { snapshot: SnapshotId::from_u64(1), incremental: false, ..tip.id() };
    let of_tip = repo.publish_proof(&proof(tip.id(), ProofKind::Full, 1000, CLUSTER)).await.unwrap();
    let orphan = repo.publish_proof(&proof(deleted, ProofKind::Full, 1000, CLUSTER)).await.unwrap();
    let foreign = format!("blockd/proofs/{deleted}/notes.txt");
    store.insert(&foreign, "?");
    let limit = 1000 + BACKUP_LIFETIME_S + MAX_CLOCK_SKEW_S;
    store.set_clock(limit);
    let young = repo.publish_proof(&proof(deleted, ProofKind::Deep, 1000, CLUSTER)).await.unwrap();

    assert_eq!(collect(&repo, limit, false, &[]).await.proofs, 0);
    let report = collect(&repo, limit + 1, true, &[3]).await;
    assert_eq!(report.proofs, 1);
    let mut all = vec![of_tip, orphan, young];
    all.sort_by_key(ProofId::key);
    assert_eq!(proof_ids(&repo).await, all, "a dry run deletes nothing");
    let report = collect(&repo, limit + 1, false, &[3]).await;
    assert_eq!((report.proofs, report.objects_deleted), (1, 1));
    all.retain(|id| *id != orphan);
    assert_eq!(proof_ids(&repo).await, all);
    assert!(store.objects().contains_key(&foreign), "a foreign object was deleted");
}

#[tokio::test]
async fn proofs_of_snapshots_with_a_manifest_are_never_collected() {
    let store = Arc::new(MemoryStore::default());
    let (repo, _, tip) = sample(&store).await;
    let own = repo.publish_proof(&proof(tip.id(), ProofKind::Full, 1000, CLUSTER)).await.unwrap();
    let key = tip.id().manifest_key();
    let mut body = store.objects()[&key].to_vec();
    body[70] ^= 1;
    store.insert(&key, body);
    let deleted = CloudSnapshotId { snapshot: SnapshotId::from_u64(1), incremental: false, ..tip.id() };
    repo.publish_proof(&proof(deleted, ProofKind::Full, 1000, CLUSTER)).await.unwrap();
    let report = collect(&repo, i64::from(i32::MAX), false, &[]).await;
    assert_eq!(
        (report.unknown.len(), report.proofs),
        (1, 1),
        "an unreadable manifest keeps its own proofs only"
    );
    assert_eq!(proof_ids(&repo).await, [own]);
}

#[tokio::test]
async fn collection_in_an_unmounted_directory_deletes_no_proof() {
    let store = Arc::new(MemoryStore::default());
    let (repo, _, tip) = sample(&store).await;
    repo.publish_proof(&proof(tip.id(), ProofKind::Full, 1000, CLUSTER)).await.unwrap();
    let gone = store.objects().into_keys().filter(|key| !key.starts_with("blockd/proofs/"));
    gone.for_each(|key| drop(store.remove(&key)));
    let now = Timestamp::from_second(i64::from(i32::MAX)).unwrap();
    let options = GarbageOptions { now, ..GarbageOptions::default() };
    let error = collect_garbage(&repo, &options, &NoCache).await.unwrap_err();
    assert!(matches!(error, CloudError::KeySlotMissing { .. }), "{error}");
    assert_eq!(proof_ids(&repo).await.len(), 1);
}

#[tokio::test]
async fn deletion_needs_no_free_space() {
    let store = Arc::new(MemoryStore::default());
    let (repo, ..) = sample(&store).await;
    let faults = Arc::new(FaultStore::new(store));
    faults.fail_writes(Fault::NoSpace);
    let report = collect(&repo.with_store(faults), i64::from(i32::MAX), false, &[]).await;
    assert_eq!(report.objects_deleted, 3);
}

#[tokio::test]
async fn backup_beyond_the_grace_period_does_not_commit() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    for (age_s, commits) in
        [(BACKUP_LIFETIME_S - 60, true), (BACKUP_LIFETIME_S + 60, false), (-MAX_CLOCK_SKEW_S - 60, false)]
    {
        let started = Timestamp::now() - SignedDuration::from_secs(age_s);
        let snapshot = 100 + u64::from(commits);
        let spec = blockd_cloud::BackupSpec { started, ..spec(snapshot, SIZE, set([1]), set([]), None) };
        match run(&repo, spec, &live).await {
            Ok(_) => assert!(commits, "{age_s}"),
            Err(error) => {
                assert!(!commits && matches!(error, CloudError::Expired { .. }), "{age_s}: {error}");
            }
        }
    }
}

/// A store that lists more objects than fit into one listing, page by page.
struct Crowded {
    inner: Arc<dyn BlobStore>,
}

impl Crowded {
    const PAGE_LEN: usize = 10_000;
    const PAGES: usize = LIST_MAX_OBJECTS / Self::PAGE_LEN + 1;

    /// Young objects of 100 deltas.
    fn page(number: usize) -> ListPage {
        let object = |at: usize| ObjectInfo {
            key: format!(
                "blockd/data/00000000-0000-4000-8000-000000000007/9/{}/pack-{at:08x}",
                100 + at % 100
            ),
            size_bytes: 1,
            version: String::new(),
            modified_unix_s: Some(i64::MAX / 2),
        };
        let objects = (number * Self::PAGE_LEN..(number + 1) * Self::PAGE_LEN).map(object);
        ListPage { objects: objects.collect(), next: Some((number + 1).to_string()) }
    }
}

impl Middleware for Crowded {
    fn describe(&self) -> &str {
        "crowded"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.inner.clone())
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        let number: usize = page.map_or(0, |page| page.parse().unwrap());
        match prefix == "blockd/data/" && number < Self::PAGES {
            true => Box::pin(async move { Ok(Self::page(number)) }),
            false => self.wrap(Request::new(Operation::List, prefix), move |store| {
                Box::pin(async move { store.list_page(prefix, None).await })
            }),
        }
    }
}

#[tokio::test]
async fn millions_of_objects_do_not_end_the_collection() {
    let store = Arc::new(MemoryStore::default());
    let (repo, live, tip) = sample(&store).await;
    let repo = repo.with_store(Arc::new(Crowded { inner: store.clone() }));
    repo.store().list("blockd/data/").await.unwrap_err();
    let report = collect(&repo, 1001 + BACKUP_LIFETIME_S + MAX_CLOCK_SKEW_S, false, &[]).await;
    assert_eq!((report.garbage.len(), report.young.len(), report.objects_deleted), (1, 100, 3));
    let listed: u64 = report.young.iter().map(|leftover| leftover.objects).sum();
    assert_eq!(listed, (Crowded::PAGES * Crowded::PAGE_LEN) as u64);
    assert_eq!(restored(&repo, &tip).await.unwrap(), live.content());
}

/// A store whose listing of the data has no end.
struct Endless {
    inner: Arc<dyn BlobStore>,
    /// Each object is of another delta, or all are of one.
    many_deltas: bool,
    page_len: u64,
    page_takes: Duration,
}

impl Middleware for Endless {
    fn describe(&self) -> &str {
        "endless"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.inner.clone())
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        if prefix != "blockd/data/" {
            return self.wrap(Request::new(Operation::List, prefix), move |store| {
                Box::pin(async move { store.list_page(prefix, page).await })
            });
        }
        let number: u64 = page.map_or(0, |page| page.parse().unwrap());
        let object = |at: u64| ObjectInfo {
            key: format!(
                "blockd/data/00000000-0000-4000-8000-000000000007/9/{}/index",
                if self.many_deltas { at + 1 } else { 1 }
            ),
            size_bytes: 1,
            version: String::new(),
            modified_unix_s: Some(0),
        };
        let objects = (number * self.page_len..(number + 1) * self.page_len).map(object).collect();
        Box::pin(async move {
            tokio::time::sleep(self.page_takes).await;
            Ok(ListPage { objects, next: Some((number + 1).to_string()) })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn collection_ends_on_a_store_that_lists_without_end() {
    let inner = Arc::new(MemoryStore::default());
    let repo = with_slot(&inner, EncryptionMode::Aes256GcmSiv);
    let collected = async |many_deltas, page_len, page_takes| {
        let store = Endless { inner: inner.clone(), many_deltas, page_len, page_takes };
        let options = GarbageOptions { now: Timestamp::now(), ..GarbageOptions::default() };
        collect_garbage(&repo.with_store(Arc::new(store)), &options, &NoCache).await.unwrap_err()
    };
    let error = collected(true, 100_000, Duration::ZERO).await;
    assert!(matches!(error, CloudError::TooManyDeltas { max: 2_000_000, .. }), "{error}");
    let error = collected(false, 1, Duration::from_secs(60)).await;
    assert!(matches!(error, CloudError::CollectionTimeout { hours: 6, .. }), "{error}");
    let error = collected(false, 1, Duration::ZERO).await;
    let CloudError::Store(error) = error else { panic!("{error}") };
    assert_eq!(error.kind, StoreErrorKind::TooLarge, "{error}");
}
