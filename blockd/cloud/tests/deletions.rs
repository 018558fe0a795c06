//! Deletions interleaved with the steps of other hosts: regression tests by the moment of the loss.
mod proofs;

use crate::common::{BLOCK, CHECKED, restored, run, run_with, set, with_slot};
use blockd_cloud::{
    BackupJournal, BackupSpec, CancelToken, CloudError, EncryptionMode, Manifest, ManifestKey, MemoryJournal,
    NoCache, Repository, delete_with_manifest,
};
use blockd_store::{
    BlobStore, ListPage, Middleware, ObjectInfo, Operation, PutMode, Request, Response, StoreFuture,
};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::{collections::BTreeMap, future::Future, sync::Arc};
use tokio::{runtime::Handle, sync::Notify};

const SIZE: u64 = 1000 * BLOCK as u64;

/// Moment of a concurrent action: an operation with a prefix and suffix of its key.
#[derive(Clone, Copy)]
struct Moment {
    operation: &'static str,
    prefix: &'static str,
    suffix: &'static str,
}

/// Store that runs a concurrent action at a chosen moment.
struct Between {
    inner: Arc<MemoryStore>,
    /// Action after the operation, once.
    after: Mutex<Option<(Moment, BoxFuture<'static, ()>)>>,
    /// Action before the operation, once.
    before: Mutex<Option<(Moment, BoxFuture<'static, ()>)>>,
    /// Object that listings of manifests always contain.
    still_listed: Mutex<Option<ObjectInfo>>,
}

impl Between {
    fn new(inner: &Arc<MemoryStore>) -> Self {
        Self {
            inner: inner.clone(),
            after: Mutex::default(),
            before: Mutex::default(),
            still_listed: Mutex::default(),
        }
    }

    fn take(
        planned: &Mutex<Option<(Moment, BoxFuture<'static, ()>)>>,
        request: Request<'_>,
    ) -> Option<BoxFuture<'static, ()>> {
        let mut planned = planned.lock();
        let fits = |moment: &Moment| {
            moment.operation == request.operation.kind().name()
                && request.key.starts_with(moment.prefix)
                && request.key.ends_with(moment.suffix)
        };
        planned.take_if(|(moment, _)| fits(moment)).map(|(_, act)| act)
    }
}

impl Middleware for Between {
    fn describe(&self) -> &str {
        "store with a concurrent action"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            if let Some(act) = Self::take(&self.before, request) {
                act.await;
            }
            let answer = ask(self.inner.clone()).await;
            if let Some(act) = Self::take(&self.after, request) {
                act.await;
            }
            answer
        })
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        self.wrap(Request::new(Operation::List, prefix), move |store| {
            Box::pin(async move {
                let mut listed = store.list_page(prefix, page).await?;
                let still = self.still_listed.lock().clone().filter(|object| object.key.starts_with(prefix));
                if let Some(object) = still
                    && !listed.objects.iter().any(|other| other.key == object.key)
                {
                    listed.objects.push(object);
                }
                Ok(listed)
            })
        })
    }
}

/// Runs work of another host on a separate thread: these futures borrow, so that no task can run them.
async fn on_other_host<T, F>(work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    tokio::task::spawn_blocking(move || Handle::current().block_on(work())).await.unwrap()
}

async fn delete(repo: &Repository, manifest: &Manifest) {
    delete_with_manifest(repo, manifest, &[], &NoCache, CHECKED).await.unwrap();
}

/// Three generations: the second is based on the first; the volume has the content of the third.
async fn generations(repo: &Repository) -> (MemoryVolume, Manifest, Manifest) {
    let live = MemoryVolume::default();
    (0..40).for_each(|block| live.set(block, &[block as u8 + 1; BLOCK]));
    let first = run(repo, spec(1, SIZE, set(0..40), set([]), None), &live).await.unwrap().manifest;
    live.set(3, &[99; BLOCK]);
    let second = run(repo, spec(2, SIZE, set([3]), set([]), Some(&first)), &live).await.unwrap().manifest;
    live.set(5, &[98; BLOCK]);
    (live, first, second)
}

/// While the first snapshot is deleted and the manifests were listed, another host makes a snapshot on the
/// second one and deletes that: its manifest is missing when it is read, and the listing lacks the new one.
#[tokio::test]
async fn snapshot_on_an_unlisted_base_keeps_its_deltas() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let (live, first, second) = generations(&repo).await;
    let third = Arc::new(Mutex::new(None));
    let between = Arc::new(Between::new(&store));
    let (other, frozen, made, base) = (repo.clone(), live.fork(), third.clone(), second.clone());
    let others = on_other_host(move || async move {
        let spec = spec(3, SIZE, set([5]), set([]), Some(&base));
        *made.lock() = Some(run(&other, spec, &frozen).await.unwrap().manifest);
        delete(&other, &base).await;
    });
    // After the listing that follows the deletion of the manifest, not after the one that allows it.
    let (deleted, armed) =
        (Moment { operation: "DELETE", prefix: "blockd/manifests/", suffix: "" }, between.clone());
    let arm = async move {
        let listed = Moment { operation: "LIST", prefix: "blockd/manifests/", suffix: "" };
        *armed.after.lock() = Some((listed, Box::pin(others)));
    };
    *between.after.lock() = Some((deleted, Box::pin(arm)));
    delete(&repo.with_store(between), &first).await;
    let third = third.lock().take().expect("the other host came in between");
    assert_eq!(restored(&repo, &third).await.unwrap(), live.content());
}

/// A disk is unmounted while the manifests are listed, and mounted again before deltas are deleted: they
/// seemed unused.
#[tokio::test]
async fn outage_during_a_listing_stops_deletions() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let (live, first, second) = generations(&repo).await;
    live.set(5, &[6; BLOCK]);
    let between = Between::new(&store);
    let away = Arc::new(Mutex::new(BTreeMap::new()));
    let (bucket, taken) = (store.clone(), away.clone());
    let goes = async move {
        let all = bucket.objects();
        all.keys().for_each(|key| drop(bucket.remove(key)));
        *taken.lock() = all;
    };
    let own = Moment { operation: "DELETE", prefix: "blockd/manifests/", suffix: "" };
    *between.after.lock() = Some((own, Box::pin(goes)));
    let (bucket, taken) = (store.clone(), away.clone());
    let comes_back = move || {
        std::mem::take(&mut *taken.lock()).into_iter().for_each(|(key, body)| bucket.insert(&key, body));
    };
    let delta = Moment { operation: "DELETE", prefix: "blockd/data/", suffix: "" };
    let mounted = comes_back.clone();
    *between.before.lock() = Some((delta, Box::pin(async move { mounted() })));
    let repo_in_between = repo.with_store(Arc::new(between));
    let deleted = delete_with_manifest(&repo_in_between, &first, &[], &NoCache, CHECKED).await;
    comes_back();
    assert_eq!(restored(&repo, &second).await.unwrap(), live.content());
    assert!(matches!(deleted, Err(CloudError::KeySlotMissing { .. })), "{deleted:?}");
    delete(&repo, &first).await;
    assert_eq!(restored(&repo, &second).await.unwrap(), live.content());
}

/// The listing is stale (Swift): it still has deleted objects, which cannot be read.
#[tokio::test(start_paused = true)]
async fn stale_listing_of_a_manifest_does_not_block_deletions() {
    for own in [true, false] {
        let store = Arc::new(MemoryStore::default());
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let (live, first, second) = generations(&repo).await;
        let key = if own { second.id() } else { first.id() }.manifest_key();
        let listed = store.list("blockd/manifests/").await.unwrap();
        let between = Between::new(&store);
        *between.still_listed.lock() = listed.into_iter().find(|object| object.key == key);
        if !own {
            delete(&repo, &first).await;
        }
        let began = tokio::time::Instant::now();
        let lagging = repo.with_store(Arc::new(between));
        delete_with_manifest(&lagging, &second, &[], &NoCache, CHECKED).await.unwrap();
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        assert!(repo.manifest(&second.id()).await.is_err());
        if own {
            live.set(3, &[4; BLOCK]);
            live.set(5, &[6; BLOCK]);
            assert_eq!(restored(&repo, &first).await.unwrap(), live.content());
        }
    }
}

/// Its delta stays because it is used; its manifest was put again during the deletion.
#[tokio::test]
async fn manifest_restored_after_its_deletion_is_deleted() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let (_, first, _) = generations(&repo).await;
    let key = first.id().manifest_key();
    let body = store.get(&key, 1 << 20).await.unwrap();
    let between = Between::new(&store);
    let listed = Moment { operation: "DELETE", prefix: "blockd/manifests/", suffix: "" };
    let bucket = store.clone();
    let puts = async move { bucket.put(&key, body, PutMode::CreateIfAbsent).await.unwrap() };
    *between.after.lock() = Some((listed, Box::pin(puts)));
    delete(&repo.with_store(Arc::new(between)), &first).await;
    assert!(repo.manifest(&first.id()).await.is_err(), "it is listed again");
}

/// Backup whose commit succeeded without a reply, and which its host resumes in doubt.
struct Doubted {
    store: Arc<MemoryStore>,
    repo: Repository,
    spec: BackupSpec,
    live: MemoryVolume,
    journal: Arc<MemoryJournal>,
    manifest: Manifest,
}

impl Doubted {
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let live = MemoryVolume::default();
        (0..9000).for_each(|block| live.set(block, &[block as u8 | 1; BLOCK]));
        let spec = spec(1, 10 * SIZE, set(0..9000), set([]), None);
        let journal = Arc::new(MemoryJournal::default());
        let faults = Arc::new(FaultStore::new(store.clone()));
        // Two packs, the index, then the manifest; later requests get no reply.
        faults.fail_from(3, Fault::AfterApply);
        let cut_off = repo.with_store(faults);
        let cancel = CancelToken::new();
        let reader = Arc::new(live.fork());
        run_with(&cut_off, spec.clone(), reader, journal.clone(), &cancel).await.err().unwrap();
        assert!(journal.may_be_committed());
        let manifest = repo.manifest(&spec.id()).await.expect("it was committed");
        Self { store, repo, spec, live, journal, manifest }
    }

    /// Resumes it, with an action of another host before this request.
    async fn go_on(&self, before: Moment, act: BoxFuture<'static, ()>) -> Result<Manifest, CloudError> {
        let between = Arc::new(Between::new(&self.store));
        *between.before.lock() = Some((before, act));
        let (repo, cancel) = (self.repo.with_store(between.clone()), CancelToken::new());
        let reader = Arc::new(self.live.fork());
        let done = run_with(&repo, self.spec.clone(), reader, self.journal.clone(), &cancel).await;
        assert!(between.before.lock().is_none(), "the action did not run");
        Ok(done?.manifest)
    }

    fn delete(&self) -> BoxFuture<'static, ()> {
        let (repo, manifest) = (self.repo.clone(), self.manifest.clone());
        Box::pin(on_other_host(move || async move { delete(&repo, &manifest).await }))
    }

    async fn check_listed(&self) {
        if let Ok(manifest) = self.repo.manifest(&self.spec.id()).await {
            assert_eq!(restored(&self.repo, &manifest).await.unwrap(), self.live.content());
        }
    }
}

const COMMIT: Moment = Moment { operation: "PUT", prefix: "blockd/manifests/", suffix: "" };

#[tokio::test]
async fn snapshot_deleted_in_doubt_is_not_committed_again() {
    let doubted = Doubted::new().await;
    let error = doubted.go_on(COMMIT, doubted.delete()).await.unwrap_err();
    assert!(matches!(error, CloudError::DeletedConcurrently { .. }), "{error}");
    assert!(doubted.repo.manifest(&doubted.spec.id()).await.is_err(), "it is not listed");
    // Another resume uploads everything again.
    let reader = Arc::new(doubted.live.fork());
    let cancel = CancelToken::new();
    let (repo, spec) = (&doubted.repo, doubted.spec.clone());
    run_with(repo, spec, reader, doubted.journal.clone(), &cancel).await.unwrap();
    assert!(doubted.repo.manifest(&doubted.spec.id()).await.is_ok());
    doubted.check_listed().await;
}

/// The journal lacks the record of the commit.
#[tokio::test]
async fn earlier_run_causes_a_check_of_its_objects() {
    let mut doubted = Doubted::new().await;
    let forgetful = Arc::new(MemoryJournal::default());
    for pack_no in doubted.journal.completed() {
        let lens = doubted.journal.frame_lens(pack_no).unwrap().unwrap();
        forgetful.record(pack_no, doubted.journal.level(pack_no).unwrap(), &lens).unwrap();
    }
    assert!(!forgetful.may_be_committed());
    doubted.journal = forgetful;
    let error = doubted.go_on(COMMIT, doubted.delete()).await.unwrap_err();
    assert!(matches!(error, CloudError::DeletedConcurrently { .. }), "{error}");
    assert!(doubted.repo.manifest(&doubted.spec.id()).await.is_err(), "it is not listed");
}

/// The other host deletes in two steps: the manifest before the commit is repeated, the objects after the
/// check of the writer.
#[tokio::test]
async fn deletion_covers_a_repeated_commit() {
    let doubted = Doubted::new().await;
    let deletes = Between::new(&doubted.store);
    let (goes_on, waiting) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let first_object = Moment { operation: "DELETE", prefix: "blockd/data/", suffix: "" };
    let pause = {
        let (goes_on, waiting) = (goes_on.clone(), waiting.clone());
        async move {
            waiting.notify_one();
            goes_on.notified().await;
        }
    };
    *deletes.before.lock() = Some((first_object, Box::pin(pause)));
    let repo = doubted.repo.with_store(Arc::new(deletes));
    let manifest = doubted.manifest.clone();
    let deletion = on_other_host(move || async move { delete(&repo, &manifest).await });
    let deletion = tokio::spawn(deletion);
    waiting.notified().await;
    let reader = Arc::new(doubted.live.fork());
    let cancel = CancelToken::new();
    let (repo, spec) = (&doubted.repo, doubted.spec.clone());
    run_with(repo, spec, reader, doubted.journal.clone(), &cancel).await.unwrap();
    assert!(
        doubted.repo.manifest(&doubted.spec.id()).await.is_ok(),
        "it was put again, and its objects existed"
    );
    goes_on.notify_one();
    deletion.await.unwrap();
    assert!(doubted.repo.manifest(&doubted.spec.id()).await.is_err(), "its leftovers are not listed");
}

/// The base exists or not, and the store does not reply to its check, or to the deletion of the manifest.
#[tokio::test]
async fn backup_that_cannot_check_its_base_checks_it_when_resumed() {
    for (is_gone, answers) in [(false, 0), (true, 0), (true, 1)] {
        let store = Arc::new(MemoryStore::default());
        let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
        let live = MemoryVolume::default();
        live.set(1, &[1; BLOCK]);
        let base = run(&repo, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap().manifest;
        if is_gone {
            delete(&repo, &base).await;
        }
        live.set(2, &[2; BLOCK]);
        let spec = spec(2, SIZE, set([2]), set([]), Some(&base));
        let journal = Arc::new(MemoryJournal::default());
        let go_on = async |repo: &Repository| {
            let (reader, cancel) = (Arc::new(live.fork()), CancelToken::new());
            run_with(repo, spec.clone(), reader, journal.clone(), &cancel).await
        };
        // A pack, the index and the manifest are stored; then the store sends this many more replies.
        let faults = Arc::new(FaultStore::new(store.clone()));
        faults.fail_from(3 + answers, Fault::Unauthorized);
        let error = go_on(&repo.with_store(faults)).await.err().expect("a backup in doubt");
        match answers {
            0 => assert!(matches!(error, CloudError::BaseUnknown { .. }), "{error}"),
            _ => assert!(matches!(error, CloudError::CommitNotUndone { .. }), "{error}"),
        }
        assert!(error.is_retryable() && error.to_string().contains("is in the store"), "{error}");
        assert!(repo.manifest(&spec.id()).await.is_ok(), "it is listed until the resume");
        assert!(journal.may_be_committed());
        let resumed = go_on(&repo).await;
        if is_gone {
            let error = resumed.err().expect("a backup without its base");
            assert!(matches!(error, CloudError::NeededDeleted { .. }), "{error}");
            assert!(repo.manifest(&spec.id()).await.is_err(), "its manifest is still listed");
        } else {
            let manifest = resumed.unwrap().manifest;
            assert_eq!(restored(&repo, &manifest).await.unwrap(), live.content());
        }
    }
}

/// The host dies after the commit and before the check of the base.
#[tokio::test]
async fn backup_cut_off_before_its_base_check_checks_when_resumed() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let base = run(&repo, spec(1, SIZE, set([1]), set([]), None), &live).await.unwrap().manifest;
    let spec = spec(2, SIZE, set([2]), set([]), Some(&base));
    let journal = Arc::new(MemoryJournal::default());
    let go_on = async |repo: &Repository, cancel: &CancelToken| {
        run_with(repo, spec.clone(), Arc::new(live.fork()), journal.clone(), cancel).await
    };
    let between = Between::new(&store);
    let question = Moment { operation: "GET", prefix: "blockd/manifests/", suffix: "" };
    let cancel = CancelToken::new();
    let dies = cancel.clone();
    let death = async move {
        dies.cancel();
        std::future::pending::<()>().await;
    };
    *between.before.lock() = Some((question, Box::pin(death)));
    let error = go_on(&repo.with_store(Arc::new(between)), &cancel).await.err();
    assert!(matches!(error, Some(CloudError::Cancelled)), "{error:?}");
    assert!(repo.manifest(&spec.id()).await.is_ok(), "it is listed until the resume");
    delete(&repo, &base).await;
    let error = go_on(&repo, &CancelToken::new()).await.err();
    assert!(matches!(error, Some(CloudError::NeededDeleted { .. })), "{error:?}");
    assert!(repo.manifest(&spec.id()).await.is_err(), "its manifest is still listed");
}

fn old(snapshot: u64, age_s: i64) -> BackupSpec {
    let started = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - age_s).unwrap();
    BackupSpec { started, ..spec(snapshot, SIZE, set(0..40), set([]), None) }
}

/// A collector whose clock is days ahead deletes a pack that this run stored.
#[tokio::test]
async fn commit_of_an_old_run_with_a_lost_pack_is_undone() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    (0..40).for_each(|block| live.set(block, &[block as u8 + 1; BLOCK]));
    let between = Between::new(&store);
    let bucket = store.clone();
    let collected = async move {
        let pack = bucket.objects().into_keys().find(|key| key.ends_with("pack-00000000"));
        bucket.remove(&pack.expect("the pack was stored"));
    };
    let index = Moment { operation: "PUT", prefix: "blockd/data/", suffix: "index" };
    *between.after.lock() = Some((index, Box::pin(collected)));
    let ended = run(&repo.with_store(Arc::new(between)), old(1, 2 * 3600), &live).await;
    assert!(
        matches!(ended, Err(CloudError::DeletedConcurrently { .. })),
        "{:?}",
        ended.map(|run| run.manifest.id())
    );
    assert!(store.objects().keys().all(|key| !key.starts_with("blockd/manifests/")));
}

/// The host is suspended between the last check of the clock and the put of the manifest.
#[tokio::test]
async fn commit_that_expires_during_its_put_is_undone() {
    const LIFETIME_S: i64 = 7 * 24 * 3600;
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    (0..40).for_each(|block| live.set(block, &[block as u8 + 1; BLOCK]));
    let between = Between::new(&store);
    let late = tokio::time::sleep(std::time::Duration::from_secs(4));
    let manifest = Moment { operation: "PUT", prefix: "blockd/manifests/", suffix: "" };
    *between.before.lock() = Some((manifest, Box::pin(late)));
    let ended = run(&repo.with_store(Arc::new(between)), old(1, LIFETIME_S - 2), &live).await;
    assert!(matches!(ended, Err(CloudError::Expired { .. })), "{:?}", ended.map(|run| run.manifest.id()));
    assert!(store.objects().keys().all(|key| !key.starts_with("blockd/manifests/")));
}
