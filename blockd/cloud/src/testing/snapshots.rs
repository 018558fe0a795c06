//! Snapshots by the thousand: manifests as they would be, without what they name.

use crate::{
    BackupType, CloudError, Delta, IndexRef, Manifest, ManifestKey, Repository, SnapshotDescription,
    error::random,
};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_store::{PutMode, RequestCounts};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Every how many snapshots one is full.
const FULL_EVERY: u64 = 7;

/// Puts the manifests of `each` snapshots of each of `volumes` volumes into a store, one an hour, and returns
/// how many bytes they have. They can be listed, and nothing can be read from them.
///
/// # Errors
/// Properties that the store reports.
pub async fn put_many_snapshots(repo: &Repository, volumes: u64, each: u64) -> Result<u64, CloudError> {
    let mut len_bytes = 0;
    for volume in 1..=volumes {
        let mut last: Option<Manifest> = None;
        for number in 0..each {
            let manifest = next(repo, VolumeId::from_u64(volume), number, last.as_ref());
            let object = manifest.encode(repo.key(), &random()?)?;
            len_bytes += object.len() as u64;
            repo.store().put(&manifest.id().manifest_key(), object.into(), PutMode::CreateIfAbsent).await?;
            last = Some(manifest);
        }
    }
    Ok(len_bytes)
}

fn next(repo: &Repository, volume: VolumeId, number: u64, last: Option<&Manifest>) -> Manifest {
    let base = last.filter(|_| !number.is_multiple_of(FULL_EVERY));
    let (cluster, snapshot) = (Uuid::from_u128(0x5e7), SnapshotId::from_u64(1 + number));
    let created = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(number as i64);
    let (data_blocks, root_len_bytes) = (1000, 200);
    let index = IndexRef { len_bytes: 4000, root_offset_bytes: 3800, root_len_bytes, root_sha256: [7; 32] };
    let delta = Delta {
        cluster,
        volume,
        snapshot,
        key_id: repo.key().key_id(),
        salt: [number as u8; 32],
        index,
        pack_count: 1,
        frames: 32,
        data_blocks,
        zero_blocks: 0,
        stored_bytes: 2_000_000,
    };
    Manifest {
        format_version: crate::FORMAT_VERSION,
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
        backup_type: if base.is_some() { BackupType::Incremental } else { BackupType::Full },
        started: created,
        finished: created,
        dirty_bytes: data_blocks * blockd_extent::BLOCK_SIZE_BYTES,
        stored_bytes: delta.stored_bytes,
        pack_count: delta.pack_count,
        requests: RequestCounts::default(),
        encryption: if repo.is_encrypted() { "aes-256-gcm-siv" } else { "none" }.into(),
        compression: "lz4".into(),
        base: base.map(Manifest::id),
        chain: base.map(|base| base.deltas().cloned().collect()).unwrap_or_default(),
        delta,
    }
}
