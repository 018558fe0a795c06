//! Leases of lazy volumes, and deletions by other hosts.
use crate::common::{BLOCK, CHECKED, CLUSTER, restored, run, set, with_slot};
use blockd_cloud::{
    CloudError, CloudSnapshotId, DeleteMode, EncryptionMode, GarbageOptions, Lease, Manifest, ManifestFilter,
    ManifestKey, NoCache, Repository, collect_garbage, delete_damaged, delete_with_manifest,
};
use blockd_extent::VolumeId;
use blockd_store::{BlobStore, Middleware, Request, Response, StoreFuture};
use blockd_testkit::{
    cloud::{MemoryVolume, spec},
    store::{Fault, FaultStore, MemoryStore},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use uuid::Uuid;

const SIZE: u64 = 1000 * BLOCK as u64;
const OTHER: Uuid = Uuid::from_u128(2);
const DAY_S: i64 = 86_400;
/// Time of the store at the start of a test.
const START_S: i64 = 100 * DAY_S;

fn lease(cloudsnap: CloudSnapshotId, host: Uuid) -> Lease {
    let (volume, renewed) = (VolumeId::from_u64(7), Timestamp::UNIX_EPOCH);
    Lease { cloudsnap, host, volume, host_name: "db2".into(), renewed }
}

/// A repository with a snapshot and an incremental based on it.
async fn two_snapshots() -> (Arc<MemoryStore>, Repository, MemoryVolume, [Manifest; 2]) {
    let store = Arc::new(MemoryStore::default());
    store.set_clock(START_S);
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    (0..40).for_each(|block| live.set(block, &[block as u8 + 1; BLOCK]));
    let first = run(&repo, spec(1, SIZE, set(0..40), set([]), None), &live).await.unwrap().manifest;
    live.set(3, &[99; BLOCK]);
    let second = spec(2, SIZE, set([3]), set([]), Some(&first));
    let second = run(&repo, second, &live).await.unwrap().manifest;
    (store, repo, live, [first, second])
}

async fn delete(repo: &Repository, manifest: &Manifest, mode: DeleteMode) -> Result<(), CloudError> {
    delete_with_manifest(repo, manifest, &[], &NoCache, mode).await.map(drop)
}

fn is_leased<T>(result: &Result<T, CloudError>) -> bool {
    matches!(result, Err(CloudError::Leased { holders, .. }) if holders == "lazy volume 7 of host db2")
}

#[tokio::test]
async fn lease_of_another_host_prevents_a_deletion_until_it_expires() {
    let (store, repo, _, [_, second]) = two_snapshots().await;
    repo.put_lease(&lease(second.id(), OTHER)).await.unwrap();
    store.set_clock(START_S + 7 * DAY_S);
    assert!(is_leased(&delete(&repo, &second, CHECKED).await));
    // A renewal begins the time again, by the store's clock.
    repo.put_lease(&lease(second.id(), OTHER)).await.unwrap();
    store.set_clock(START_S + 14 * DAY_S);
    assert!(is_leased(&delete(&repo, &second, CHECKED).await));
    store.set_clock(START_S);
    assert!(is_leased(&delete(&repo, &second, CHECKED).await), "the clock was set back");
    store.set_clock(START_S + 14 * DAY_S + 1);
    delete(&repo, &second, CHECKED).await.unwrap();
}

#[tokio::test]
async fn own_and_forced_deletions_ignore_leases() {
    for (host, mode) in [(CLUSTER, CHECKED), (OTHER, DeleteMode::Forced)] {
        let (_, repo, _, [_, second]) = two_snapshots().await;
        repo.put_lease(&lease(second.id(), host)).await.unwrap();
        delete(&repo, &second, mode).await.unwrap();
    }
}

/// The manifest of the leased snapshot names the deltas of its base.
#[tokio::test]
async fn base_of_a_leased_snapshot_can_be_deleted() {
    let (_, repo, live, [first, second]) = two_snapshots().await;
    repo.put_lease(&lease(second.id(), OTHER)).await.unwrap();
    delete(&repo, &first, CHECKED).await.unwrap();
    assert_eq!(restored(&repo, &second).await.unwrap(), live.content());
}

/// A damaged lease, or one under an unknown key, keeps its snapshot.
#[tokio::test]
async fn lease_that_does_not_open_counts() {
    let (store, repo, _, [_, second]) = two_snapshots().await;
    store.insert(&lease(second.id(), OTHER).id().key(), &b"BLKDLEAS"[..]);
    let refused = delete(&repo, &second, CHECKED).await.unwrap_err();
    assert!(refused.to_string().ends_with(&format!("lazy volume 7 of host {OTHER}")), "{refused}");
}

/// Steps of a host that creates a lazy volume: its lease, then the look at the manifest.
struct Creator {
    repo: Repository,
    id: CloudSnapshotId,
    found: Mutex<Option<bool>>,
}

impl Creator {
    async fn step(&self, step: u32) {
        match step {
            0 => self.repo.put_lease(&lease(self.id, OTHER)).await.unwrap(),
            _ => {
                let found = match self.repo.manifest(&self.id).await {
                    // A lazy volume from a cached manifest.
                    Ok(_) | Err(CloudError::Damaged { .. }) => true,
                    Err(CloudError::SnapshotNotFound { .. }) => false,
                    Err(error) => panic!("{error}"),
                };
                *self.found.lock() = Some(found);
            }
        }
    }
}

/// Store that runs steps of another host before requests of these numbers.
struct Interleaved {
    inner: Arc<dyn BlobStore>,
    creator: Arc<Creator>,
    /// Number of the request before which each remaining step runs.
    steps: Mutex<Vec<(u32, u64)>>,
    requests: Mutex<u64>,
}

impl Interleaved {
    async fn run_due(&self, at: u64) {
        loop {
            let due = self.steps.lock().first().copied().filter(|(_, before)| *before <= at);
            let Some((step, _)) = due else { return };
            self.steps.lock().remove(0);
            self.creator.step(step).await;
        }
    }
}

impl Middleware for Interleaved {
    fn describe(&self) -> &str {
        "store with another host"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let at = {
                let mut requests = self.requests.lock();
                *requests += 1;
                *requests - 1
            };
            self.run_due(at).await;
            ask(self.inner.clone()).await
        })
    }
}

/// Deletion of the second snapshot that dies before this request and is repeated, beside another host that
/// creates a lazy volume.
async fn delete_beside_a_creation(
    (store, repo, live, second): (&MemoryStore, &Repository, &MemoryVolume, &Manifest),
    (dies_at, lease_at, look_at): (u64, u64, u64),
) -> ((bool, bool), u64) {
    let store = Arc::new(store.fork());
    let repo = repo.with_store(store.clone());
    let creator = Arc::new(Creator { repo: repo.clone(), id: second.id(), found: Mutex::default() });
    let faults = Arc::new(FaultStore::new(store));
    faults.fail_from(dies_at, Fault::BeforeApply);
    let interleaved = Arc::new(Interleaved {
        inner: faults.clone(),
        creator: creator.clone(),
        steps: Mutex::new(vec![(0, lease_at), (1, look_at)]),
        requests: Mutex::default(),
    });
    let other = repo.with_store(interleaved.clone());
    let mut deleted = delete(&other, second, CHECKED).await;
    if dies_at != u64::MAX {
        faults.heal();
        deleted = delete(&other, second, CHECKED).await;
    }
    let requests = *interleaved.requests.lock();
    interleaved.run_due(u64::MAX).await;
    let found = creator.found.lock().unwrap();
    let case = format!("dies at {dies_at}, leases at {lease_at}, looks at {look_at}: {deleted:?}");
    if found {
        assert!(is_leased(&deleted), "{case}");
        let listed = repo.manifest(&second.id()).await.expect(&case);
        assert_eq!(restored(&repo, &listed).await.unwrap(), live.content(), "{case}");
    } else {
        assert!(deleted.is_ok() || is_leased(&deleted), "{case}");
    }
    ((found, deleted.is_ok()), requests)
}

/// Each order of the steps of a creation and the requests of a deletion, which is also interrupted at each
/// request and repeated: a lazy volume that found the manifest keeps its snapshot.
#[tokio::test(start_paused = true)]
async fn lease_and_manifest_check_exclude_each_deletion() {
    let mut outcomes = BTreeSet::new();
    let (store, repo, live, [_, second]) = two_snapshots().await;
    let sample = (&*store, &repo, &live, &second);
    let (_, undisturbed) = delete_beside_a_creation(sample, (u64::MAX, u64::MAX, u64::MAX)).await;
    for dies_at in (0..undisturbed).chain([u64::MAX]) {
        for lease_at in 0.. {
            let mut last = 0;
            for look_at in [lease_at, lease_at + 1, lease_at + 2, lease_at + 4] {
                let (outcome, requests) =
                    delete_beside_a_creation(sample, (dies_at, lease_at, look_at)).await;
                outcomes.insert(outcome);
                last = last.max(requests);
            }
            // All later creations begin after the deletion, too.
            if lease_at >= last {
                break;
            }
        }
    }
    assert_eq!(outcomes, BTreeSet::from([(false, false), (false, true), (true, false)]));
}

/// A damaged manifest is not read, but a lazy volume from a cached copy of it keeps the objects.
#[tokio::test(start_paused = true)]
async fn lease_excludes_each_deletion_of_a_damaged_manifest() {
    let mut outcomes = BTreeSet::new();
    for lease_at in 0..12 {
        for look_at in [lease_at, lease_at + 1, lease_at + 2] {
            let (store, repo, _, [_, second]) = two_snapshots().await;
            store.insert(&second.id().manifest_key(), &b"BLKDMANI torn"[..]);
            let objects = |store: &MemoryStore| {
                let all = store.objects().into_iter();
                all.filter(|(key, _)| !key.contains("/leases/") && !key.contains("/probe"))
                    .collect::<Vec<_>>()
            };
            let before = objects(&store);
            let (id, found) = (second.id(), Mutex::default());
            let creator = Arc::new(Creator { repo: repo.clone(), id, found });
            let interleaved = Arc::new(Interleaved {
                inner: store.clone(),
                creator: creator.clone(),
                steps: Mutex::new(vec![(0, lease_at), (1, look_at)]),
                requests: Mutex::default(),
            });
            let other = repo.with_store(interleaved.clone());
            let deleted = delete_damaged(&other, &id, &[], &NoCache, CHECKED).await;
            interleaved.run_due(u64::MAX).await;
            let found = creator.found.lock().unwrap();
            let case = format!("leases at {lease_at}, looks at {look_at}: {deleted:?}");
            assert!(!found || is_leased(&deleted), "{case}");
            assert!(deleted.is_ok() || (is_leased(&deleted) && objects(&store) == before), "{case}");
            outcomes.insert((found, deleted.is_ok()));
        }
    }
    assert_eq!(outcomes, BTreeSet::from([(false, false), (false, true), (true, false)]));
}

#[tokio::test]
async fn collection_removes_leases_that_hold_nothing() {
    let (store, repo, _, [first, second]) = two_snapshots().await;
    for (id, host) in [(first.id(), CLUSTER), (second.id(), CLUSTER), (second.id(), OTHER)] {
        repo.put_lease(&lease(id, host)).await.unwrap();
    }
    let mut left = Vec::new();
    for days in [1, 2, 8, 9] {
        let now = Timestamp::from_second(START_S + days * DAY_S).unwrap();
        let backing = BTreeSet::from([second.id()]);
        let options = GarbageOptions { now, host: CLUSTER, backing, ..GarbageOptions::default() };
        collect_garbage(&repo, &options, &NoCache).await.unwrap();
        left.push(repo.list_leases(&ManifestFilter::default()).await.unwrap().len());
    }
    assert_eq!(left, [3, 2, 2, 0], "an own one that is not needed after a day, others after 8");
    assert!(store.objects().keys().any(|key| key.contains("/manifests/")));
}
