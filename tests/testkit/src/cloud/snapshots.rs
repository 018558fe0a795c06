//! Thousands of cloud snapshots: manifests without their objects.

use super::forge::object_of;
use blockd_cloud::{
    BackupType, CloudError, CloudSnapshotId, Compression, CompressionLevel, CompressionReport, Delta,
    FORMAT_VERSION, IndexRef, LevelUse, Manifest, ManifestKey, Repository, SnapshotDescription,
};
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_store::{PutMode, RequestCounts};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Interval of full backups.
const FULL_EVERY: u64 = 7;

/// Stores the manifests of `each` hourly snapshots of each of `volumes` volumes in an unencrypted repository;
/// returns their total length in bytes. The snapshots can be listed but not read.
///
/// # Errors
/// Those of the store.
///
/// # Panics
/// If the repository is encrypted.
#[allow(clippy::expect_used, reason = "a failed test panics")]
pub async fn put_many_snapshots(repo: &Repository, volumes: u64, each: u64) -> Result<u64, CloudError> {
    assert!(!repo.is_encrypted());
    let (key_id, mut len_bytes) = (repo.keys()[0].key_id(), 0);
    for volume in 1..=volumes {
        let mut last: Option<Manifest> = None;
        for number in 0..each {
            let base = last.filter(|_| !number.is_multiple_of(FULL_EVERY));
            let id = CloudSnapshotId {
                cluster: Uuid::from_u128(0x5e7),
                volume: VolumeId::from_u64(volume),
                snapshot: SnapshotId::from_u64(1 + number),
                incremental: base.is_some(),
            };
            let mut manifest = plain_manifest(id, key_id);
            manifest.description.created += SignedDuration::from_hours(number as i64);
            manifest.base = base.as_ref().map(Manifest::id);
            manifest.chain = base.map(|base| base.layers().cloned().collect()).unwrap_or_default();
            let object = object_of(&manifest, key_id).expect("a manifest is serializable");
            len_bytes += object.len() as u64;
            repo.store().put(&id.manifest_key(), object.into(), PutMode::CreateIfAbsent).await?;
            last = Some(manifest);
        }
    }
    Ok(len_bytes)
}

/// Returns the manifest of a snapshot with one pack and no base.
pub(super) fn plain_manifest(id: CloudSnapshotId, key_id: Uuid) -> Manifest {
    let CloudSnapshotId { cluster, volume, snapshot, incremental } = id;
    let created = Timestamp::UNIX_EPOCH;
    let (data_blocks, root_len_bytes) = (1000, 200);
    let index = IndexRef { len_bytes: 4000, root_offset_bytes: 3800, root_len_bytes, root_sha256: [7; 32] };
    let delta = Delta {
        cluster,
        volume,
        snapshot,
        key_id,
        salt: [snapshot.as_u64() as u8; 32],
        index,
        pack_count: 1,
        frames: 32,
        data_blocks,
        zero_blocks: 0,
        reference_blocks: 0,
        stored_bytes: 2_000_000,
    };
    Manifest {
        format_version: FORMAT_VERSION,
        cluster,
        volume,
        snapshot,
        description: SnapshotDescription {
            volume_name: format!("volume-{}", volume.as_u64()),
            labels: BTreeMap::from([("tier".into(), "gold".into())]),
            created,
            trigger: "Schedule".into(),
            freeze_stall_micros: 40,
            ..SnapshotDescription::default()
        },
        size_bytes: 1 << 40,
        backup_type: if incremental { BackupType::Incremental } else { BackupType::Full },
        started: created,
        finished: created,
        dirty_bytes: data_blocks * BLOCK_SIZE_BYTES,
        stored_bytes: delta.stored_bytes,
        pack_count: delta.pack_count,
        requests: RequestCounts::default(),
        encryption: "none".into(),
        compression: CompressionReport {
            mode: Some(Compression::Auto),
            levels: vec![LevelUse {
                level: CompressionLevel::Zstd(3),
                packs: delta.pack_count,
                data_bytes: data_blocks * BLOCK_SIZE_BYTES,
                stored_bytes: delta.stored_bytes - 4000 - 64,
            }],
        },
        base: None,
        repairs: None,
        chain: Vec::new(),
        sources: Vec::new(),
        delta,
    }
}
