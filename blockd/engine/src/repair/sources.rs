//! Sources of lost blocks: points in time of the volume on this host, and other locations.
//!
//! The time of its freeze identifies a point in time of a volume: a local snapshot or an epoch with this time
//! has the content of the cloud snapshot. Other points provide the blocks that did not change between, by the
//! deltas in the store or by the volume's own record of changes.

use super::task::RepairWork;
use crate::{
    error::{ServiceError, blocking},
    tasks::LiveTask,
    volume_io::to_io,
};
use blockd_api::SnapshotName;
use blockd_catalog::{Chain, CredentialRow, DbManifestCache, SnapshotRow, SnapshotState};
use blockd_cloud::{
    CloudError, Manifest, ManifestFilter, Repair, RepairSource, Repository, differing_blocks,
};
use blockd_extent::{BlockIndex, BlockSet, BlockSource, Epoch, Extent};
use blockd_volume::{Content, SnapshotView, Volume, VolumeErrorKind};
use std::{io, sync::Arc};

/// Blocks of a read that checks for damage on the disk.
const CHECK_BLOCKS: u64 = 256;

/// Snapshot of a volume as a source.
struct LocalSource(SnapshotView);

impl BlockSource for LocalSource {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.0.read(offset_bytes, buf).map_err(to_io)? == Content::Zeroes {
            buf.fill(0);
        }
        Ok(())
    }

    fn may_wait(&self) -> bool {
        self.0.is_lazy()
    }
}

/// Local point in time.
struct LocalPoint {
    /// Snapshot of this point in time; `None` if only its epoch is known.
    snapshot: Option<SnapshotRow>,
    epoch: Epoch,
    /// Blocks that may differ from the damaged cloud snapshot.
    differing: BlockSet,
}

impl RepairWork {
    /// Adds all blocks that the volume still has.
    pub(super) async fn add_local(
        &self,
        live: &LiveTask,
        repository: &Repository,
        manifest: &Manifest,
        siblings: &[Manifest],
        repair: &mut Repair,
    ) -> Result<(), ServiceError> {
        let row = live.view();
        let (Some(id), Some(snapshot)) = (row.volume, row.snapshot) else { return Ok(()) };
        let Some(entry) = self.registry.by_id(id) else { return Ok(()) };
        let Ok(volume) = entry.volume() else { return Ok(()) };
        for point in self.local_points(repository, manifest, siblings).await? {
            if repair.missing().is_empty() {
                return Ok(());
            }
            let mut wanted = repair.missing().clone();
            wanted.subtract(&point.differing);
            if wanted.is_empty() {
                continue;
            }
            let (frozen, since) = match point.snapshot {
                Some(frozen) => (frozen, None),
                None => {
                    let rows = self.db.run(move |tx| SnapshotRow::all(tx, Some(id))).await?;
                    let is_own = |row: &SnapshotRow| row.id == snapshot && row.state == SnapshotState::Ready;
                    let frozen = match rows.into_iter().find(is_own) {
                        Some(frozen) => frozen,
                        None => {
                            let name: SnapshotName = format!("repair-{}", row.id).parse()?;
                            self.snapshots.freeze(&entry, snapshot, name).await?
                        }
                    };
                    (frozen, Some(point.epoch))
                }
            };
            let from = Arc::clone(&volume);
            match blocking(move || local_source(&from, &frozen, since, wanted)).await {
                Ok(source) => repair.add_source(source),
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "a point in time of the volume is no source of a repair");
                }
            }
        }
        Ok(())
    }

    /// Returns the local points in time with blocks of a cloud snapshot, those with a snapshot first.
    async fn local_points(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        siblings: &[Manifest],
    ) -> Result<Vec<LocalPoint>, ServiceError> {
        let id = manifest.volume;
        let (rows, chains) = self
            .db
            .run(move |tx| {
                Ok::<_, blockd_catalog::DbError>((SnapshotRow::all(tx, Some(id))?, Chain::all(tx, Some(id))?))
            })
            .await?;
        let (mut points, mut epochs) = (Vec::new(), Vec::new());
        for other in std::iter::once(manifest).chain(siblings) {
            let created = other.description.created;
            let snapshot =
                rows.iter().find(|row| row.created == created && row.state == SnapshotState::Ready);
            let epoch =
                chains.iter().find(|chain| chain.point_in_time == created && !chain.is_backing_snapshot());
            let Some(epoch) = snapshot.map(|row| row.epoch).or(epoch.map(|chain| chain.epoch)) else {
                continue;
            };
            let Some(differing) = differing_blocks(repository, manifest, other).await? else { continue };
            let into = if snapshot.is_some() { &mut points } else { &mut epochs };
            into.push(LocalPoint { snapshot: snapshot.cloned(), epoch, differing });
        }
        points.extend(epochs);
        Ok(points)
    }

    /// Adds the blocks that other locations have of the same point in time, or only the given one.
    pub(super) async fn add_other_locations(
        &self,
        manifest: &Manifest,
        own: uuid::Uuid,
        from: Option<uuid::Uuid>,
        repair: &mut Repair,
    ) -> Result<(), ServiceError> {
        for credential in self.repositories.credential_rows().await? {
            if repair.missing().is_empty() {
                return Ok(());
            }
            if from.map_or(credential.uuid == own, |from| credential.uuid != from) {
                continue;
            }
            match self.add_location(manifest, &credential, repair).await {
                Err(error) if error.is_cancelled() || from.is_some() => return Err(error),
                Err(error) => {
                    tracing::warn!(credential = %credential.name, %error, "a location is no source of a repair");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    async fn add_location(
        &self,
        manifest: &Manifest,
        credential: &CredentialRow,
        repair: &mut Repair,
    ) -> Result<(), ServiceError> {
        let (repository, _requests) = self.repositories.guest_repository(credential.uuid).await?;
        let cache = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
        let filter = ManifestFilter { cluster: Some(manifest.cluster), volume: Some(manifest.volume) };
        for listed in repository.list_manifests(&filter, &cache).await? {
            let Ok(other) = listed.manifest else { continue };
            let is_same_point = other.description.created == manifest.description.created
                && other.size_bytes == manifest.size_bytes;
            if is_same_point {
                repair.add_snapshot(&repository, &other).await?;
            }
        }
        Ok(())
    }
}

/// Returns the wanted blocks that a snapshot has; with `since`, only those that did not change since the end
/// of that epoch. Blocks that the disk altered are left out.
fn local_source(
    volume: &Volume,
    frozen: &SnapshotRow,
    since: Option<Epoch>,
    mut wanted: BlockSet,
) -> Result<RepairSource, ServiceError> {
    if let Some(since) = since {
        let changes = volume.changes(Some(since), frozen.epoch)?;
        wanted.subtract(&changes.data);
        wanted.subtract(&changes.zero);
    }
    let view = volume.view(frozen.id)?;
    wanted.intersect_with(&BlockSet::from_iter([Extent::whole(view.size_bytes())]));
    let mut data = volume.changes(None, frozen.epoch)?.data;
    data.intersect_with(&wanted);
    let mut altered = BlockSet::new();
    for extent in data.extents() {
        for start in (extent.start.0..extent.end().0).step_by(CHECK_BLOCKS as usize) {
            let end = BlockIndex(start + CHECK_BLOCKS).min(extent.end());
            find_altered(&view, Extent::between(BlockIndex(start), end), &mut altered)?;
        }
    }
    wanted.subtract(&altered);
    data.subtract(&altered);
    Ok(RepairSource { blocks: wanted, data, reader: Arc::new(LocalSource(view)) })
}

/// Finds blocks without the content of their checksums, by halving.
fn find_altered(view: &SnapshotView, extent: Extent, altered: &mut BlockSet) -> Result<(), ServiceError> {
    let mut buf = vec![0; extent.len_bytes() as usize];
    match view.read_extents(&[extent], &mut buf) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() != VolumeErrorKind::Damaged => Err(error.into()),
        Err(_) if extent.len_blocks == 1 => {
            altered.insert(extent.start);
            Ok(())
        }
        Err(_) => {
            let middle = BlockIndex(extent.start.0 + extent.len_blocks / 2);
            find_altered(view, Extent::between(extent.start, middle), altered)?;
            find_altered(view, Extent::between(middle, extent.end()), altered)
        }
    }
}

/// Fails after a stop of the task.
pub(super) fn check_cancelled(live: &LiveTask) -> Result<(), ServiceError> {
    if live.cancel.is_cancelled() { Err(CloudError::Cancelled.into()) } else { Ok(()) }
}
