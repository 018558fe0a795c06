//! Two daemons on one bucket: backups, resumptions, deletions, collections of garbage and verifications at the same time, through a store that
//! fails, is slow, and is cut off, day after day. What is listed restores to what was frozen, whatever happened.
//!
//! `BLOCKD_SIMULATION_SEEDS` says how many lives are lived (24); `BLOCKD_SIMULATION_FIRST` where they begin.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics")]

mod common;

use blockd_cloud::{
    BackupOptions, BackupSpec, CancelToken, CloudError, CloudsnapId, EncryptionMode, GarbageOptions,
    Manifest, ManifestFilter, MemoryJournal, NoCache, Progress, Repository, VerifyDepth, VerifyOptions,
    backup, collect_garbage, delete_with_manifest,
    store::{
        ObjectInfo, ObjectStore, PutMode, RetryPolicy, RetryStore, StoreError, StoreErrorKind, StoreFuture,
    },
    testing::{MemoryStore, MemoryVolume},
    verify,
};
use blockd_extent::{BlockSet, SnapshotId};
use bytes::Bytes;
use common::{BLOCK, Noise, fixed, requests, restored, set, spec};
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
};
use uuid::Uuid;

type Content = BTreeMap<u64, Box<[u8]>>;

const SIZE: u64 = 4096 * BLOCK as u64;
const STEPS: u64 = 40;
const DAY_S: i64 = 24 * 3600;

/// What is made wrong on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// One daemon's clock is ahead by more than clocks may be apart.
    WrongClock,
    /// Listings do not show the newest manifests.
    LaggingListings,
    /// What is stored is sometimes not what was sent.
    RottenWrites,
}

/// The network between one daemon and the bucket.
struct Net {
    bucket: Arc<MemoryStore>,
    dice: Mutex<Noise>,
    planted: Planted,
    /// Operations until the daemon is killed.
    dies_after: Mutex<Option<(u64, CancelToken)>>,
    /// The bucket takes nothing more for now.
    is_full: Mutex<bool>,
}

impl Net {
    fn dice(&self, sides: u64) -> u64 {
        self.dice.lock().next() % sides
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        key: &'a str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let error = |kind| Err(StoreError::new(kind, operation, key, "simulated store"));
            for _ in 0..self.dice(8) {
                tokio::task::yield_now().await;
            }
            let dies = match &mut *self.dies_after.lock() {
                Some((0, token)) => Some(token.clone()),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            if *self.is_full.lock() && matches!(operation, "PUT" | "MULTIPART") {
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

impl ObjectStore for Net {
    fn describe(&self) -> &str {
        "simulated store"
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
        self.ask("PUT", key, self.bucket.put(key, body, mode))
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.ask("GET", key, self.bucket.get(key, max_len_bytes))
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.ask("GET", key, self.bucket.get_range(key, offset_bytes, len_bytes))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.ask("DELETE", key, self.bucket.delete(key))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        let lags = self.planted == Planted::LaggingListings && prefix.starts_with("blockd/manifests");
        self.ask("LIST", prefix, async move {
            let mut listed = self.bucket.list(prefix).await?;
            if lags {
                let newest = listed.iter().filter_map(|object| object.modified_unix_s).max();
                listed.retain(|object| object.modified_unix_s < newest);
            }
            Ok(listed)
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.ask("MULTIPART", key, self.bucket.multipart_start(key))
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        self.ask("MULTIPART", key, self.bucket.multipart_put(key, upload_id, part_no, body))
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        self.ask("MULTIPART", key, self.bucket.multipart_complete(key, upload_id, tags))
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        self.ask("MULTIPART", key, self.bucket.multipart_abort(key, upload_id))
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
    live: MemoryVolume,
    /// Blocks changed since the tip was frozen; and since the backup that is under way was.
    dirty: BlockSet,
    tip: Option<CloudsnapId>,
    kept: Option<Kept>,
    next_snapshot: u64,
}

/// What is to be listed, and what it must restore to.
#[derive(Default)]
struct Expected {
    content: BTreeMap<CloudsnapId, Content>,
    committed: BTreeMap<CloudsnapId, bool>,
    /// Cut off, and not given up: their daemon does not know whether they were committed.
    in_doubt: BTreeSet<CloudsnapId>,
}

impl Daemon {
    fn new(bucket: &Arc<MemoryStore>, number: u64, seed: u64, planted: Planted) -> Self {
        let net = Arc::new(Net {
            bucket: bucket.clone(),
            dice: Mutex::new(Noise(seed * 7919 + number * 104_729 + 1)),
            planted,
            dies_after: Mutex::default(),
            is_full: Mutex::default(),
        });
        let policy = RetryPolicy { attempts: 8, base_ms: 0, max_ms: 0, ..RetryPolicy::default() };
        let store = Arc::new(RetryStore::new(net.clone(), policy));
        Self {
            cluster: Uuid::from_u128(u128::from(number) + 1),
            repo: fixed(store, EncryptionMode::Aes256GcmSiv),
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
        if self.net.dice(3) == 0 {
            *self.net.dies_after.lock() = Some((self.net.dice(12), cancel.clone()));
        }
        *self.net.is_full.lock() = self.net.dice(8) == 0;
        let options = BackupOptions { upload_concurrency: 2, cpu_threads: 1, write_once: true };
        let progress = Arc::new(Progress::new(requests()));
        let reader = Arc::new(kept.frozen.fork());
        let journal = kept.journal.clone();
        let done = backup(&self.repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await;
        *self.net.dies_after.lock() = None;
        *self.net.is_full.lock() = false;
        expected.lock().in_doubt.remove(&id);
        match done {
            Ok(_) => {
                self.tip = Some(id);
                expected.lock().committed.insert(id, true);
            }
            Err(CloudError::Store(_) | CloudError::Cancelled) if self.net.dice(4) != 0 => {
                expected.lock().in_doubt.insert(id);
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
        let mut whole: Vec<Manifest> = listed.into_iter().filter_map(|listed| listed.manifest.ok()).collect();
        // Deleted by somebody else it would come back broken, as FORMAT.md says under "Deleting".
        whole.retain(|manifest| !expected.lock().in_doubt.contains(&manifest.id()));
        if whole.is_empty() {
            return;
        }
        let manifest = &whole[self.net.dice(whole.len() as u64) as usize];
        let protected: Vec<SnapshotId> = self.kept.iter().map(|kept| kept.spec.snapshot).collect();
        if self.kept.iter().any(|kept| kept.spec.base.as_ref().is_some_and(|base| base.id() == manifest.id()))
        {
            return;
        }
        expected.lock().committed.insert(manifest.id(), false);
        // What an interruption leaves is garbage.
        let _ = delete_with_manifest(&self.repo, manifest, &protected, &NoCache).await;
    }

    async fn collect(&self, now_s: i64) {
        let ahead = if self.net.planted == Planted::WrongClock { 30 * DAY_S } else { 0 };
        let protected = self.kept.iter().map(|kept| kept.spec.snapshot).collect();
        let now = Timestamp::from_second(now_s + ahead).unwrap();
        let options = GarbageOptions { now, dry_run: false, protected };
        let _ = collect_garbage(&self.repo, &options, &NoCache).await;
    }
}

/// Looks at everything in the bucket; the first thing that does not hold.
///
/// A backup that was cut off between its commit and the look at its base is listed, and may have lost that base; its daemon finds
/// out when it takes it up again. `unconfirmed` are those.
async fn look(
    bucket: &Arc<MemoryStore>,
    expected: &Expected,
    unconfirmed: &[CloudsnapId],
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
    for (id, is_there) in &expected.committed {
        if *is_there && !ids.contains(id) {
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
    let mut daemons = [0, 1].map(|number| Daemon::new(&bucket, number, seed, planted));
    let told = Mutex::new(Expected::default());
    let mut dice = Noise(seed * 31 + 5);
    let mut now_s = 1_000_000;
    for step in 0..STEPS {
        now_s += (dice.next() % 3) as i64 * DAY_S + 1;
        bucket.set_clock(now_s);
        let choice = [dice.next() % 8, dice.next() % 8];
        let acts = daemons.iter_mut().zip(choice).map(|(daemon, choice)| {
            let expected = &told;
            async move {
                match choice {
                    0..=3 => daemon.back_up(now_s, expected).await,
                    4 | 5 => daemon.delete_some(expected).await,
                    6 => daemon.collect(now_s).await,
                    _ => {
                        daemon.collect(now_s).await;
                        daemon.back_up(now_s, expected).await;
                    }
                }
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
async fn what_is_listed_restores_whatever_happens() {
    let first = number("BLOCKD_SIMULATION_FIRST", 1);
    for seed in first..first + number("BLOCKD_SIMULATION_SEEDS", 24) {
        live(seed, Planted::Nothing).await.unwrap();
    }
}

#[tokio::test]
async fn planted_bugs_are_found() {
    for planted in [Planted::WrongClock, Planted::LaggingListings, Planted::RottenWrites] {
        let mut found = None;
        for seed in 1..60 {
            if let Err(what) = live(seed, planted).await {
                found = Some(what);
                break;
            }
        }
        assert!(found.is_some(), "nobody noticed: {planted:?}");
    }
}
