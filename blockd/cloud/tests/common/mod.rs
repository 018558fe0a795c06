//! A repository, a volume, and generations of backups of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics")]
#![allow(dead_code, reason = "each test file uses some of it")]

use blockd_cloud::{
    BackupJournal, BackupSpec, CancelToken, CloudError, CloudSnapshotId, DeleteMode, DrillReport,
    EncryptionMode, KnownKeys, Manifest, MemoryJournal, OpenOptions, Progress, Proof, ProofKind, Repository,
    RestoreOptions, RestoreRequest, UploadOptions, backup, restore,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent};
use blockd_store::{BlobStore, RequestCounts, Requests, RetryPolicy, task_store};
use blockd_testkit::{
    cloud::{FAST_KDF, MemoryVolume, data_key},
    store::MemoryStore,
};
use jiff::Timestamp;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use uuid::Uuid;

pub const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
pub const CLUSTER: Uuid = Uuid::from_u128(0x3a1a_b4d5_9bc2_4c70_9b4e_0a2b_2d3d_8f10);
pub const CHECKED: DeleteMode = DeleteMode::Checked { host: CLUSTER };

pub fn options() -> OpenOptions {
    OpenOptions { kdf: FAST_KDF }
}

pub async fn open(store: Arc<dyn BlobStore>, passphrase: Option<&str>) -> Result<Repository, CloudError> {
    Repository::open(store, passphrase, &options()).await
}

/// A repository without key slots: nothing can be deleted from it.
pub fn fixed(store: Arc<dyn BlobStore>, mode: EncryptionMode) -> Repository {
    let key = data_key(0x4b4b, mode, [0x42; 32]);
    Repository::from_saved_keys(store, vec![key], &KnownKeys::default()).unwrap()
}

/// A repository with both copies of its key slot.
pub fn with_slot(store: &Arc<MemoryStore>, mode: EncryptionMode) -> Repository {
    put_slot(store, mode.name());
    fixed(store.clone(), mode)
}

/// Puts both copies of a key slot of `golden/slots`; returns the id of its key.
pub fn put_slot(store: &MemoryStore, name: &str) -> Uuid {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/slots").join(name);
    let slot = std::fs::read(path).unwrap();
    let key_id = Uuid::from_slice(&slot[12..28]).unwrap();
    for prefix in ["blockd/keys/", "blockd/keys-copy/"] {
        store.insert(&format!("{prefix}{key_id}"), slot.clone());
    }
    key_id
}

pub fn set(blocks: impl IntoIterator<Item = u64>) -> BlockSet {
    blocks.into_iter().map(|block| Extent::new(BlockIndex(block), 1)).collect()
}

pub struct Run {
    pub manifest: Manifest,
    pub requests: RequestCounts,
}

pub async fn run_with(
    repo: &Repository,
    spec: BackupSpec,
    reader: Arc<dyn BlockSource>,
    journal: Arc<dyn BackupJournal>,
    cancel: &CancelToken,
) -> Result<Run, CloudError> {
    let options = UploadOptions::default();
    run_as(repo, spec, reader, journal, &options, cancel).await
}

pub async fn run_as(
    repo: &Repository,
    spec: BackupSpec,
    reader: Arc<dyn BlockSource>,
    journal: Arc<dyn BackupJournal>,
    options: &UploadOptions,
    cancel: &CancelToken,
) -> Result<Run, CloudError> {
    let policy = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let (store, requests) = task_store(repo.store().clone(), policy);
    let repo = repo.with_store(store);
    let progress = Arc::new(Progress::new(requests.clone()));
    let manifest = backup(&repo, Arc::new(spec), reader, journal, options, progress.clone(), cancel).await?;
    let snapshot = progress.snapshot();
    assert_eq!(snapshot.bytes_processed, snapshot.bytes_total);
    Ok(Run { manifest, requests: requests.snapshot() })
}

pub async fn run(repo: &Repository, spec: BackupSpec, live: &MemoryVolume) -> Result<Run, CloudError> {
    let (reader, journal) = (Arc::new(live.fork()), Arc::new(MemoryJournal::default()));
    run_with(repo, spec, reader, journal, &CancelToken::new()).await
}

/// Restores a snapshot and returns its nonzero blocks.
pub async fn restored(
    repo: &Repository,
    manifest: &Manifest,
) -> Result<BTreeMap<u64, Box<[u8]>>, CloudError> {
    Ok(restored_with(repo, manifest).await?.0)
}

pub async fn restored_with(
    repo: &Repository,
    manifest: &Manifest,
) -> Result<(BTreeMap<u64, Box<[u8]>>, RequestCounts), CloudError> {
    let target = Arc::new(MemoryVolume::default());
    let policy = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let (store, requests) = task_store(repo.store().clone(), policy);
    let progress = Arc::new(Progress::new(requests.clone()));
    let repo = repo.with_store(store);
    let (options, cancel) = (RestoreOptions::default(), CancelToken::new());
    let request = RestoreRequest::default();
    restore(&repo, manifest, target.clone(), &request, &options, progress.clone(), &cancel).await?;
    let snapshot = progress.snapshot();
    assert_eq!(snapshot.bytes_processed, snapshot.bytes_total);
    Ok((target.content(), requests.snapshot()))
}

/// Returns the proof of a sound snapshot.
pub fn proof(cloudsnap: CloudSnapshotId, kind: ProofKind, second: i64, host: Uuid) -> Proof {
    let proven = Timestamp::from_second(second).unwrap();
    Proof {
        cloudsnap,
        kind,
        proven,
        host,
        host_name: "db1".into(),
        version: "1.2.3".into(),
        location: Uuid::from_u128(0x10c),
        sound: true,
        drill: (kind == ProofKind::Drill).then(|| DrillReport::new(proven, 1)),
    }
}

pub fn requests() -> Arc<Requests> {
    Arc::default()
}

/// Bytes that do not compress.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn block(&mut self) -> Vec<u8> {
        (0..BLOCK / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}
