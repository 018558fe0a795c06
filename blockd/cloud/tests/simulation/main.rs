//! Simulation of two daemons on one bucket: backups, resumes, deletions, garbage collections and
//! verifications at the same time, through a store that fails, is slow, and is cut off, day after day. Each
//! listed snapshot must restore to its frozen content.
//!
//! `BLOCKD_SIMULATION_SEEDS` is the number of lives (24); `BLOCKD_SIMULATION_FIRST` is the first seed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics")]

mod common;

use blockd_cloud::{
    BackupOptions, BackupSpec, CancelToken, CloudError, CloudSnapshotId, EncryptionMode, GarbageOptions,
    Manifest, ManifestFilter, ManifestKey, MemoryJournal, NoCache, Progress, Repository, UnreadableSiblings,
    VerifyDepth, VerifyOptions, backup, collect_garbage, delete_with_manifest, testing::MemoryVolume, verify,
};
use blockd_extent::{BlockSet, SnapshotId};
use blockd_store::{
    BlobStore, ListPage, Middleware, ObjectInfo, Operation, PutMode, Request, RequestKind, Requests,
    Response, RetryPolicy, StoreError, StoreErrorKind, StoreFuture, task_store, testing::MemoryStore,
};
use bytes::Bytes;
use common::{BLOCK, Noise, fixed, requests, restored, set, spec, with_slot};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use uuid::Uuid;

type Content = BTreeMap<u64, Box<[u8]>>;

const SIZE: u64 = 4096 * BLOCK as u64;
const STEPS: u64 = 40;
const DAY_S: i64 = 24 * 3600;

/// Planted bugs, which the simulation must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// One daemon's clock is ahead by more than clocks may be apart.
    WrongClock,
    /// Listings do not show the newest manifests.
    LaggingListings,
    /// Stored data sometimes differs from the sent data.
    RottenWrites,
    /// Deletions list the manifests once, and skip those that are gone when they are read.
    VanishedPassedOver,
    /// A manifest is not deleted again after its objects, though its writer may put it again.
    DeletedOnce,
    /// Existence checks always succeed.
    PresenceTakenForGranted,
}

impl Planted {
    /// Returns true for a bug that shows when a snapshot is deleted whose daemon does not know of its commit.
    fn is_of_doubts(self) -> bool {
        matches!(self, Self::DeletedOnce | Self::PresenceTakenForGranted)
    }

    /// Chooses the next actions of the daemons, with a bias to those that reveal the planted bug.
    fn choice(self, dice: &mut Noise) -> [u64; 2] {
        // What one deletes is what the other one's new backup rests on, or what it is about to complete.
        let crossed = match (self, dice.next() % 2) {
            (Self::VanishedPassedOver, 0) => [4, 7],
            (Self::VanishedPassedOver, _) => [7, 4],
            (planted, 0) if planted.is_of_doubts() => [4, 0],
            (planted, _) if planted.is_of_doubts() => [0, 4],
            _ => [[4, 7], [7, 4], [4, 0], [0, 4]][dice.next() as usize % 4],
        };
        match (self, dice.next() % 4) {
            // There must be something to delete.
            (Self::VanishedPassedOver, 1..) => [0, 0],
            (Self::Nothing, 0 | 1) | (Self::VanishedPassedOver | Self::DeletedOnce, _) => crossed,
            (Self::PresenceTakenForGranted, _) => crossed,
            _ => [dice.next() % 8, dice.next() % 8],
        }
    }
}

/// Observations and actions of one deletion or collection, for planted bugs.
#[derive(Default)]
struct Deletion {
    /// The manifests as they were first listed, without those that were gone when they were read.
    first_listing: Option<Vec<ObjectInfo>>,
    /// The manifests that it deleted.
    deleted: BTreeSet<String>,
}

/// Progress of each daemon in requests, not in time, so that thread scheduling has no effect.
#[derive(Default)]
struct Pace {
    requests: [AtomicU64; 2],
    is_idle: [AtomicBool; 2],
    /// Number of requests of each daemon that wait for the other one.
    waiting: [AtomicU64; 2],
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

/// One request that waits, until it goes on or its daemon is killed.
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
struct Net {
    bucket: Arc<MemoryStore>,
    pace: Arc<Pace>,
    number: usize,
    dice: Mutex<Noise>,
    planted: Planted,
    /// Operations until the daemon is killed.
    dies_after: Mutex<Option<(u64, CancelToken)>>,
    /// The bucket takes nothing more for now.
    is_full: Mutex<bool>,
    /// While something is being deleted.
    deletion: Mutex<Option<Deletion>>,
}

impl Net {
    fn dice(&self, sides: u64) -> u64 {
        self.dice.lock().next() % sides
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        request: Request<'a>,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let error = |kind| Err(request.failed(kind, "simulated store"));
            // Where a deletion is to be overtaken, it is the one that is slow.
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

/// A backup that was cut off, as its daemon keeps it.
struct Kept {
    spec: BackupSpec,
    began_s: i64,
    frozen: MemoryVolume,
    journal: Arc<MemoryJournal>,
}

struct Daemon {
    cluster: Uuid,
    net: Arc<Net>,
    repo: Repository,
    /// To the store, by all that it does: one thing at a time.
    requests: Arc<Requests>,
    live: MemoryVolume,
    /// Blocks changed since the tip was frozen; and since the backup that is under way was.
    dirty: BlockSet,
    tip: Option<CloudSnapshotId>,
    kept: Option<Kept>,
    next_snapshot: u64,
}

/// Expected listing and contents.
#[derive(Default)]
struct Expected {
    content: BTreeMap<CloudSnapshotId, Content>,
    committed: BTreeSet<CloudSnapshotId>,
    /// Deletions that were requested; the daemons may have completed the backups nevertheless.
    deleted: BTreeSet<CloudSnapshotId>,
}

impl Daemon {
    fn new(bucket: &Arc<MemoryStore>, pace: &Arc<Pace>, number: u64, seed: u64, planted: Planted) -> Self {
        let net = Arc::new(Net {
            bucket: bucket.clone(),
            pace: pace.clone(),
            number: number as usize,
            dice: Mutex::new(Noise(seed * 7919 + number * 104_729 + 1)),
            planted,
            dies_after: Mutex::default(),
            is_full: Mutex::default(),
            deletion: Mutex::default(),
        });
        let policy = RetryPolicy { attempts: 8, base_ms: 0, max_ms: 0, ..RetryPolicy::default() };
        let (store, requests) = task_store(net.clone(), policy);
        Self {
            cluster: Uuid::from_u128(u128::from(number) + 1),
            repo: fixed(store, EncryptionMode::Aes256GcmSiv),
            requests,
            net,
            live: MemoryVolume::default(),
            dirty: BlockSet::new(),
            tip: None,
            kept: None,
            next_snapshot: number * 1_000_000 + 1,
        }
    }

    fn write(&mut self) {
        for _ in 0..self.net.dice(20) {
            let block = self.net.dice(600);
            let byte = self.net.dice(255) as u8 + 1;
            self.live.set(block, &[byte; BLOCK]);
            self.dirty.union_with(&set([block]));
        }
    }

    /// The base of the next backup, if it is still there.
    async fn base(&self) -> Option<Manifest> {
        self.repo.manifest(&self.tip?).await.ok()
    }

    async fn back_up(&mut self, now_s: i64, expected: &Mutex<Expected>) {
        let kept = match self.kept.take() {
            Some(kept) => kept,
            None => {
                self.write();
                let base = match self.net.dice(5) {
                    0 => None,
                    _ => self.base().await,
                };
                let frozen = self.live.fork();
                let all: BlockSet = frozen.content().keys().copied().map(|block| set([block])).fold(
                    BlockSet::new(),
                    |mut all, one| {
                        all.union_with(&one);
                        all
                    },
                );
                let data = if base.is_some() { self.dirty.clone() } else { all };
                let mut spec = spec(self.next_snapshot, SIZE, data, set([]), base.as_ref());
                spec.cluster = self.cluster;
                self.next_snapshot += 1;
                expected.lock().content.insert(spec.id(), frozen.content());
                self.dirty = BlockSet::new();
                Kept { spec, began_s: now_s, frozen, journal: Arc::default() }
            }
        };
        let age = SignedDuration::from_secs(now_s - kept.began_s);
        let spec = BackupSpec { started: Timestamp::now() - age, ..kept.spec.clone() };
        let id = spec.id();
        let cancel = CancelToken::new();
        let of_doubts = self.net.planted.is_of_doubts();
        if self.net.dice(if of_doubts { 2 } else { 3 }) == 0 {
            // The third or fourth request of a small backup is its commit.
            let after = if of_doubts { 2 + self.net.dice(2) } else { self.net.dice(12) };
            *self.net.dies_after.lock() = Some((after, cancel.clone()));
        }
        *self.net.is_full.lock() = self.net.dice(8) == 0;
        let options =
            BackupOptions { upload_concurrency: 2, cpu_threads: 1, write_once: true, resumed: false };
        let progress = Arc::new(Progress::new(self.requests.clone()));
        let reader = Arc::new(kept.frozen.fork());
        let journal = kept.journal.clone();
        let done = backup(&self.repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await;
        *self.net.dies_after.lock() = None;
        *self.net.is_full.lock() = false;
        match done {
            Ok(_) => {
                self.tip = Some(id);
                expected.lock().committed.insert(id);
            }
            Err(CloudError::Store(_) | CloudError::Cancelled) if self.net.dice(4) != 0 => {
                self.kept = Some(kept);
            }
            // Given up: what it was to carry is carried by a full one.
            Err(_) => {
                let _ = self.repo.store().delete(&id.manifest_key()).await;
                self.tip = None;
            }
        }
    }

    async fn delete_some(&mut self, expected: &Mutex<Expected>) {
        let Ok(listed) = self.repo.list_manifests(&ManifestFilter::default(), &NoCache).await else { return };
        let whole: Vec<Manifest> = listed.into_iter().filter_map(|listed| listed.manifest.ok()).collect();
        if whole.is_empty() {
            return;
        }
        let is_needed =
            |one: &Manifest| whole.iter().any(|other| other.id() != one.id() && other.needs(one.snapshot));
        let mut needed: Vec<&Manifest> = whole.iter().filter(|manifest| is_needed(manifest)).collect();
        needed.sort_by_key(|manifest| (manifest.cluster != self.cluster, manifest.snapshot.as_u64()));
        let newest_of_other: Vec<&Manifest> =
            whole.iter().rfind(|manifest| manifest.cluster != self.cluster).into_iter().collect();
        let some: Vec<&Manifest> = match self.net.dice(4) {
            // The last one that is needed is needed by one only.
            0 | 1 if !needed.is_empty() && !self.net.planted.is_of_doubts() => {
                needed.split_off(needed.len() - 1)
            }
            0..3 if !newest_of_other.is_empty() => newest_of_other,
            _ => whole.iter().collect(),
        };
        let manifest = some[self.net.dice(some.len() as u64) as usize];
        self.delete(manifest, expected).await;
    }

    /// Makes a backup and deletes what it was made on, as a policy that keeps only the last one does.
    async fn replace(&mut self, now_s: i64, expected: &Mutex<Expected>) {
        let base = self.base().await;
        self.back_up(now_s, expected).await;
        if let Some(base) = base.filter(|base| self.tip.is_some_and(|tip| tip != base.id())) {
            self.delete(&base, expected).await;
        }
    }

    async fn delete(&self, manifest: &Manifest, expected: &Mutex<Expected>) {
        let protected: Vec<SnapshotId> = self.kept.iter().map(|kept| kept.spec.snapshot).collect();
        if self.kept.iter().any(|kept| kept.spec.base.as_ref().is_some_and(|base| base.id() == manifest.id()))
        {
            return;
        }
        expected.lock().deleted.insert(manifest.id());
        *self.net.deletion.lock() = Some(Deletion::default());
        // What an interruption leaves is garbage.
        let _ = delete_with_manifest(&self.repo, manifest, &protected, &NoCache, UnreadableSiblings::Refuse)
            .await;
        *self.net.deletion.lock() = None;
    }

    async fn collect(&self, now_s: i64) {
        let ahead = if self.net.planted == Planted::WrongClock { 30 * DAY_S } else { 0 };
        let protected = self.kept.iter().map(|kept| kept.spec.snapshot).collect();
        let now = Timestamp::from_second(now_s + ahead).unwrap();
        let options = GarbageOptions { now, dry_run: false, protected };
        *self.net.deletion.lock() = Some(Deletion::default());
        let _ = collect_garbage(&self.repo, &options, &NoCache).await;
        *self.net.deletion.lock() = None;
    }
}

/// Looks at everything in the bucket; the first thing that does not hold.
///
/// A backup that was cut off between its commit and the look at its base is listed, and may have lost that
/// base; its daemon finds out when it takes it up again. `unconfirmed` are those.
async fn look(
    bucket: &Arc<MemoryStore>,
    expected: &Expected,
    unconfirmed: &[CloudSnapshotId],
) -> Result<(), String> {
    let repo = fixed(bucket.clone(), EncryptionMode::Aes256GcmSiv);
    let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
    let mut ids = Vec::new();
    for listed in listed {
        let manifest = listed.manifest.map_err(|error| error.to_string())?;
        let id = manifest.id();
        if unconfirmed.contains(&id) {
            continue;
        }
        let content = restored(&repo, &manifest).await.map_err(|error| format!("{id}: {error}"))?;
        if content != expected.content[&id] {
            return Err(format!("{id} restores to something else"));
        }
        ids.push(id);
    }
    for id in expected.committed.difference(&expected.deleted) {
        if !ids.contains(id) {
            return Err(format!("{id} was committed and is gone"));
        }
    }
    let options = VerifyOptions { depth: VerifyDepth::Frames, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let report = verify(&repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    match report.findings.first() {
        Some(finding) => Err(format!("{}: {}", finding.object, finding.what)),
        None => Ok(()),
    }
}

async fn live(seed: u64, planted: Planted) -> Result<(), String> {
    let bucket = Arc::new(MemoryStore::default());
    // Nothing is deleted where it is not.
    with_slot(&bucket, EncryptionMode::Aes256GcmSiv);
    let pace = Arc::new(Pace::default());
    let mut daemons = [0, 1].map(|number| Daemon::new(&bucket, &pace, number, seed, planted));
    let told = Mutex::new(Expected::default());
    let mut dice = Noise(seed * 31 + 5);
    let mut now_s = 1_000_000;
    for step in 0..STEPS {
        now_s += (dice.next() % 3) as i64 * DAY_S + 1;
        bucket.set_clock(now_s);
        let choice = planted.choice(&mut dice);
        pace.is_idle.iter().for_each(|is_idle| is_idle.store(false, SeqCst));
        let acts = daemons.iter_mut().zip(choice).map(|(daemon, choice)| {
            let expected = &told;
            let pace = &pace;
            async move {
                match choice {
                    0..=3 => daemon.back_up(now_s, expected).await,
                    4 | 5 => daemon.delete_some(expected).await,
                    6 => daemon.collect(now_s).await,
                    _ => {
                        daemon.replace(now_s, expected).await;
                        daemon.collect(now_s).await;
                    }
                }
                pace.is_idle[daemon.net.number].store(true, SeqCst);
            }
        });
        join_all(acts).await;
        let unconfirmed: Vec<_> =
            daemons.iter().filter_map(|daemon| daemon.kept.as_ref()).map(|kept| kept.spec.id()).collect();
        let expected = std::mem::take(&mut *told.lock());
        let seen = look(&bucket, &expected, &unconfirmed).await;
        *told.lock() = expected;
        seen.map_err(|what| format!("seed {seed}, step {step}, {choice:?}: {what}"))?;
    }
    Ok(())
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test]
async fn listed_snapshots_restore_after_any_fault() {
    let first = number("BLOCKD_SIMULATION_FIRST", 1);
    for seed in first..first + number("BLOCKD_SIMULATION_SEEDS", 24) {
        live(seed, Planted::Nothing).await.unwrap();
    }
}

#[tokio::test]
async fn planted_bugs_are_found() {
    for planted in [
        Planted::WrongClock,
        Planted::LaggingListings,
        Planted::RottenWrites,
        Planted::VanishedPassedOver,
        Planted::DeletedOnce,
        Planted::PresenceTakenForGranted,
    ] {
        let mut found = None;
        // The rarest shows in one life of some dozens; threads make each life another one.
        for seed in 1..2000 {
            if let Err(what) = live(seed, planted).await {
                found = Some(what);
                break;
            }
        }
        assert!(found.is_some(), "not detected: {planted:?}");
    }
}
