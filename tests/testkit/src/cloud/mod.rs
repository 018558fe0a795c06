//! Generated repositories, and a test suite for repositories.

mod forge;
pub mod fuzz;
mod snapshots;
mod suite;
mod tebibyte;

use blockd_cloud::{
    BackupSpec, CancelToken, CloudError, KdfParams, Manifest, MemoryJournal, Progress, References,
    Repository, SnapshotDescription, UploadOptions, backup,
};
use blockd_extent::{BlockSet, BlockSource, SnapshotId, VolumeId};
use blockd_store::{RetryPolicy, task_store};
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

pub use forge::data_key;
pub use snapshots::put_many_snapshots;
pub use suite::{MemoryVolume, repository_suite};
pub use tebibyte::Tebibyte;

/// Minimum parameters of Argon2, without protection.
pub const FAST_KDF: KdfParams = KdfParams { m_kib: 8, t: 1, p: 1 };

/// Returns the specification of a backup of these blocks.
pub fn spec(
    snapshot: u64,
    size_bytes: u64,
    data: BlockSet,
    zero: BlockSet,
    base: Option<&Manifest>,
) -> BackupSpec {
    BackupSpec {
        cluster: Uuid::from_u128(0x3a1a_b4d5_9bc2_4c70_9b4e_0a2b_2d3d_8f10),
        volume: VolumeId::from_u64(590_114_184_663_672_482),
        snapshot: SnapshotId::from_u64(snapshot),
        description: SnapshotDescription {
            volume_name: "db".into(),
            snapshot_name: "nightly".into(),
            labels: BTreeMap::from([("tier".into(), "gold".into())]),
            backup_labels: BTreeMap::new(),
            created: Timestamp::UNIX_EPOCH,
            trigger: "Manual".into(),
            freeze_stall_micros: 17,
        },
        size_bytes,
        started: Timestamp::now(),
        data,
        zero,
        base: base.cloned(),
        references: References::default(),
        donors: Vec::new(),
        deduplicated: BlockSet::new(),
        synthetic: false,
        repair: None,
        delta_salt: [snapshot as u8; 32],
    }
}

/// Makes a backup with a new journal; it cannot be cancelled.
///
/// # Errors
/// Those of [`backup`].
pub async fn back_up(
    repo: &Repository,
    spec: BackupSpec,
    reader: Arc<dyn BlockSource>,
) -> Result<Manifest, CloudError> {
    let policy = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let (store, requests) = task_store(repo.store().clone(), policy);
    let (progress, journal) = (Arc::new(Progress::new(requests)), Arc::new(MemoryJournal::default()));
    let (options, cancel) = (UploadOptions::default(), CancelToken::new());
    backup(&repo.with_store(store), Arc::new(spec), reader, journal, &options, progress, &cancel).await
}
