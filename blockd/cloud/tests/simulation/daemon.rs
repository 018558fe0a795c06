//! Simulated daemon: a volume, its backups, deletions and collections.

use super::{
    Content, DAY_S, Planted, SIZE,
    net::{Deletion, Net, Pace},
};
use crate::common::{BLOCK, CHECKED, Noise, fixed, set};
use blockd_cloud::{
    BackupSpec, CancelToken, CloudError, CloudSnapshotId, Compression, EncryptionMode, GarbageOptions,
    Manifest, ManifestFilter, ManifestKey, MemoryJournal, NoCache, Progress, Repository, UploadOptions,
    backup, collect_garbage, delete_with_manifest,
};
use blockd_extent::{BlockSet, SnapshotId};
use blockd_store::{Requests, RetryPolicy, task_store};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

/// Interrupted backup that its daemon keeps.
pub struct Kept {
    pub spec: BackupSpec,
    began_s: i64,
    frozen: MemoryVolume,
    journal: Arc<MemoryJournal>,
}

pub struct Daemon {
    cluster: Uuid,
    pub net: Arc<Net>,
    repo: Repository,
    /// Requests of all actions, which run one at a time.
    requests: Arc<Requests>,
    live: MemoryVolume,
    /// Blocks changed since the freeze of the tip or of the running backup.
    dirty: BlockSet,
    tip: Option<CloudSnapshotId>,
    pub kept: Option<Kept>,
    next_snapshot: u64,
}

/// Expected listing and contents.
#[derive(Default)]
pub struct Expected {
    pub content: BTreeMap<CloudSnapshotId, Content>,
    pub committed: BTreeSet<CloudSnapshotId>,
    /// Deletions that were requested; the daemons may have completed the backups nevertheless.
    pub deleted: BTreeSet<CloudSnapshotId>,
}

impl Daemon {
    pub fn new(
        bucket: &Arc<MemoryStore>,
        pace: &Arc<Pace>,
        number: u64,
        seed: u64,
        planted: Planted,
    ) -> Self {
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

    /// The base of the next backup, if it still exists.
    async fn base(&self) -> Option<Manifest> {
        self.repo.manifest(&self.tip?).await.ok()
    }

    pub async fn back_up(&mut self, now_s: i64, expected: &Mutex<Expected>) {
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
        let options = UploadOptions {
            upload_concurrency: 2,
            cpu_threads: 1,
            write_once: true,
            // By the backup, as each run of it has the same one.
            compression: match kept.spec.snapshot.as_u64() % 2 {
                0 => Compression::Auto,
                _ => UploadOptions::default().compression,
            },
            ..UploadOptions::default()
        };
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
            // Abandoned: the next backup is a full one.
            Err(_) => {
                let _ = self.repo.store().delete(&id.manifest_key()).await;
                self.tip = None;
            }
        }
    }

    pub async fn delete_some(&mut self, expected: &Mutex<Expected>) {
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
            // The last needed one has only one user.
            0 | 1 if !needed.is_empty() && !self.net.planted.is_of_doubts() => {
                needed.split_off(needed.len() - 1)
            }
            0..3 if !newest_of_other.is_empty() => newest_of_other,
            _ => whole.iter().collect(),
        };
        let manifest = some[self.net.dice(some.len() as u64) as usize];
        self.delete(manifest, expected).await;
    }

    /// Makes a backup and deletes its base, like a policy that keeps the last one only.
    pub async fn replace(&mut self, now_s: i64, expected: &Mutex<Expected>) {
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
        // The leftovers of an interruption are garbage.
        let _ = delete_with_manifest(&self.repo, manifest, &protected, &NoCache, CHECKED).await;
        *self.net.deletion.lock() = None;
    }

    pub async fn collect(&self, now_s: i64) {
        let ahead = if self.net.planted == Planted::WrongClock { 30 * DAY_S } else { 0 };
        let protected = self.kept.iter().map(|kept| kept.spec.snapshot).collect();
        let now = Timestamp::from_second(now_s + ahead).unwrap();
        let options = GarbageOptions { now, protected, ..GarbageOptions::default() };
        *self.net.deletion.lock() = Some(Deletion::default());
        let _ = collect_garbage(&self.repo, &options, &NoCache).await;
        *self.net.deletion.lock() = None;
    }
}
