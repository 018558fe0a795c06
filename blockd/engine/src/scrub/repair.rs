//! Repair of damaged blocks from cloud snapshots.
//!
//! A cloud snapshot is a source if the epoch of its point in time is known: the newest backup of the volume
//! at each location, which the next incremental is based on, and each backup of a local snapshot that still
//! exists, found by the time of its freeze. The volume proves which blocks are unchanged between that epoch
//! and the damaged layer.

use crate::{
    error::{ServiceError, blocking},
    scrub::task::ScrubWork,
    tasks::LiveTask,
    volumes::registry::VolumeEntry,
};
use blockd_catalog::{Chain, DbManifestCache, SnapshotRow, SnapshotState};
use blockd_cloud::{CloudError, CloudSnapshotId, SnapshotReader};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use blockd_volume::{LayerDamage, Volume};
use jiff::Timestamp;
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Maximum number of blocks of a fetch and a repair.
const BATCH_BLOCKS: u64 = 256;

/// Maximum number of passes over the damage of a volume.
const MAX_PASSES: usize = 3;

/// Backup with a known epoch.
#[derive(Clone, Copy)]
struct Candidate {
    credential: Uuid,
    cloudsnap: CloudSnapshotId,
    epoch: Epoch,
}

impl ScrubWork {
    /// Repairs the damage of a volume; returns the repaired blocks with their sources, and the last cause of
    /// a failed repair. A cloud snapshot that cannot be read is skipped. Starts again if a merge moves the
    /// damage to another layer meanwhile.
    pub(crate) async fn repair(
        &self,
        live: &LiveTask,
        volume: &Arc<Volume>,
        entry: &VolumeEntry,
    ) -> Result<(Vec<(BlockSet, CloudSnapshotId)>, Option<String>), ServiceError> {
        let candidates = self.candidates(entry).await?;
        let (mut repaired, mut obstacle) = (Vec::new(), None);
        for _ in 0..MAX_PASSES {
            let damage = volume.damage();
            let layers: Vec<_> = damage.iter().map(|damage| (damage.file, damage.epoch)).collect();
            repaired.extend(self.repair_layers(live, volume, &candidates, damage, &mut obstacle).await?);
            let left = volume.damage();
            if left.iter().all(|damage| layers.contains(&(damage.file, damage.epoch))) {
                break;
            }
        }
        Ok((repaired, obstacle))
    }

    /// Repairs layers, as far as the candidates are sources; returns the repaired blocks with their sources.
    async fn repair_layers(
        &self,
        live: &LiveTask,
        volume: &Arc<Volume>,
        candidates: &[Candidate],
        layers: Vec<LayerDamage>,
        obstacle: &mut Option<String>,
    ) -> Result<Vec<(BlockSet, CloudSnapshotId)>, ServiceError> {
        let mut all = Vec::new();
        for damage in layers {
            let mut left = damage.blocks.clone();
            for candidate in candidates {
                if left.is_empty() {
                    break;
                }
                let (from, file, at) = (Arc::clone(volume), damage.file, candidate.epoch);
                let mut blocks = blocking(move || from.repairable(file, at)).await?;
                blocks.intersect_with(&left);
                if blocks.is_empty() {
                    continue;
                }
                let repaired = match self.repair_from(live, volume, &damage, candidate, &blocks).await {
                    Err(error) if error.is_cancelled() => return Err(error),
                    Err(error) => {
                        let cloudsnap = candidate.cloudsnap;
                        tracing::warn!(volume = %volume.id(), %cloudsnap, %error, "repair failed from a cloud snapshot");
                        *obstacle = Some(error.to_string());
                        continue;
                    }
                    Ok(repaired) => repaired,
                };
                left.subtract(&repaired);
                all.extend((!repaired.is_empty()).then_some((repaired, candidate.cloudsnap)));
            }
        }
        Ok(all)
    }

    /// Returns the backups of a volume with known epochs, newest first.
    async fn candidates(&self, entry: &VolumeEntry) -> Result<Vec<Candidate>, ServiceError> {
        let (id, cluster) = (entry.id, self.host.cluster);
        let (chains, snapshots) = self
            .db
            .run(move |tx| {
                Ok::<_, blockd_catalog::DbError>((Chain::all(tx, Some(id))?, SnapshotRow::all(tx, Some(id))?))
            })
            .await?;
        let mut found: Vec<Candidate> = chains
            .iter()
            .map(|chain| Candidate {
                credential: chain.credential,
                cloudsnap: chain.cloudsnap,
                epoch: chain.epoch,
            })
            .collect();
        let epochs = epochs_by_time(&snapshots);
        for credential in self.repositories.credential_rows().await? {
            let cache = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
            let manifests = blocking(move || cache.all()).await?;
            for manifest in manifests.iter().filter(|own| own.cluster == cluster && own.volume == id) {
                let (credential, cloudsnap) = (credential.uuid, manifest.id());
                let is_new =
                    !found.iter().any(|one| (one.credential, one.cloudsnap) == (credential, cloudsnap));
                if let Some(&epoch) = epochs.get(&manifest.description.created).filter(|_| is_new) {
                    found.push(Candidate { credential, cloudsnap, epoch });
                }
            }
        }
        found.sort_by_key(|candidate| std::cmp::Reverse(candidate.epoch));
        Ok(found)
    }

    /// Fetches blocks from a cloud snapshot and writes them; returns the repaired blocks.
    async fn repair_from(
        &self,
        live: &LiveTask,
        volume: &Arc<Volume>,
        damage: &LayerDamage,
        candidate: &Candidate,
        blocks: &BlockSet,
    ) -> Result<BlockSet, ServiceError> {
        let (repository, _requests) = self.repositories.guest_repository(candidate.credential).await?;
        let manifest = repository.manifest(&candidate.cloudsnap).await?;
        let reader = SnapshotReader::open(&repository, &manifest).await?;
        let (mut repaired, mut batch) = (BlockSet::new(), Vec::new());
        for extent in blocks.extents() {
            for start in (extent.start.0..extent.end().0).step_by(BATCH_BLOCKS as usize) {
                if live.cancel.is_cancelled() {
                    return Err(CloudError::Cancelled.into());
                }
                let part =
                    Extent::between(BlockIndex(start), BlockIndex(start + BATCH_BLOCKS).min(extent.end()));
                let content = reader.read_blocks(part).await?;
                batch.push((part, content));
                if batch.iter().map(|(part, _)| part.len_blocks).sum::<u64>() >= BATCH_BLOCKS {
                    repaired.union_with(&write(volume, damage, candidate, std::mem::take(&mut batch)).await?);
                }
            }
        }
        if !batch.is_empty() {
            repaired.union_with(&write(volume, damage, candidate, batch).await?);
        }
        Ok(repaired)
    }
}

/// Returns the epochs of local snapshots by the time of the freeze: a backup has an id of its own, and this
/// time. A time of several snapshots proves no epoch.
fn epochs_by_time(snapshots: &[SnapshotRow]) -> HashMap<Timestamp, Epoch> {
    let mut times = HashMap::<_, u32>::new();
    snapshots.iter().for_each(|row| *times.entry(row.created).or_default() += 1);
    let frozen = snapshots.iter().filter(|row| row.state == SnapshotState::Ready);
    frozen.filter(|row| times[&row.created] == 1).map(|row| (row.created, row.epoch)).collect()
}

/// Writes fetched extents.
async fn write(
    volume: &Arc<Volume>,
    damage: &LayerDamage,
    candidate: &Candidate,
    batch: Vec<(Extent, Vec<u8>)>,
) -> Result<BlockSet, ServiceError> {
    let (to, file, at) = (Arc::clone(volume), damage.file, candidate.epoch);
    let cloudsnap = candidate.cloudsnap;
    blocking(move || -> Result<_, ServiceError> {
        let blocks: Vec<_> = batch
            .iter()
            .flat_map(|(part, content)| {
                let numbers = (part.start.0..).map(BlockIndex);
                numbers.zip(content.chunks_exact(BLOCK_SIZE_BYTES as usize))
            })
            .collect();
        let done = to.repair(file, at, &blocks)?;
        for (unrepaired, why) in
            [(&done.mismatched, "has another checksum"), (&done.failed, "cannot be written")]
        {
            if let Some(first) = unrepaired.first() {
                let blocks = unrepaired.len_blocks();
                tracing::warn!(volume = %to.id(), %cloudsnap, %first, blocks, why, "blocks are not repaired");
            }
        }
        Ok(done.blocks)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{SnapshotId, VolumeId};

    #[test]
    fn time_of_several_snapshots_proves_no_epoch() {
        let snapshot = |second: i64, epoch: u64, state| SnapshotRow {
            id: SnapshotId::from_u64(epoch),
            volume: VolumeId::from_u64(1),
            name: format!("s{epoch}").parse().unwrap(),
            created: Timestamp::from_second(second).unwrap(),
            state,
            internal: false,
            epoch: Epoch(epoch),
            dirty_bytes: 0,
            freeze_stall_micros: 0,
            taken_with: None,
            quiesce: None,
            pinned: false,
        };
        let (ready, deleting) = (SnapshotState::Ready, SnapshotState::Deleting);
        let rows = [
            snapshot(10, 1, ready),
            snapshot(20, 2, ready),
            snapshot(20, 3, ready),
            snapshot(30, 4, ready),
            snapshot(30, 5, deleting),
            snapshot(40, 6, deleting),
        ];
        let only = (Timestamp::from_second(10).unwrap(), Epoch(1));
        assert_eq!(epochs_by_time(&rows).into_iter().collect::<Vec<_>>(), [only]);
    }
}
