//! Costs of a restore before it runs: the requests of its reads are planned from the indexes.

use crate::{
    costs::{self, begin_estimate},
    error::{ServiceError, blocking, spawned},
    ids::random_id,
    repositories::preflight::until_cancelled,
    restore::{
        Restores,
        in_place::{chunks, differing},
        lazy::source::SnapshotSource,
    },
    tasks::LiveTask,
    volumes::registry::VolumeEntry,
};
use blockd_api::{List, SnapshotName, cloudsnaps::StartRestore, costs::CostEstimate, lazy::StartInPlace};
use blockd_catalog::{CredentialRow, DbManifestCache, RestoreTask, SnapshotRow, TaskRow, TaskSpec};
use blockd_cloud::{CloudSnapshotId, ManifestCache, ManifestKey, SnapshotReader, estimate_read};
use blockd_extent::{Extent, SnapshotId};
use blockd_store::RequestCounts;
use std::sync::Arc;

impl Restores {
    /// Estimates the costs of a restore into a new volume.
    ///
    /// # Errors
    /// Those of [`start_restore`](Self::start_restore).
    pub async fn estimate(
        self: &Arc<Self>,
        request: &StartRestore,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let id = request.cloud_snapshot_id;
        let credential = self.admit_new(request).await?.0;
        let counts = self.planned_reads(&credential, id).await?;
        Ok(self.estimated(&credential, id, &counts, "planned from the indexes"))
    }

    /// Estimates the costs of an in-place restore.
    ///
    /// # Errors
    /// Those of [`start_in_place`](Self::start_in_place), except of a volume in use; another estimate of the
    /// volume is running.
    pub async fn estimate_in_place(
        self: &Arc<Self>,
        request: &StartInPlace,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let id = request.cloud_snapshot_id;
        // Other tasks leave the content as it is.
        let (credential, entry, admission) =
            self.admit_in_place(request, |task| task.spec.is_in_place()).await?;
        drop(admission);
        let _one = begin_estimate(&entry)?;
        let (counts, basis) = Box::pin(self.planned_in_place(&credential, id, &entry)).await?;
        Ok(self.estimated(&credential, id, &counts, basis))
    }

    fn estimated(
        &self,
        credential: &CredentialRow,
        id: CloudSnapshotId,
        counts: &RequestCounts,
        basis: &'static str,
    ) -> List<CostEstimate> {
        let volume = self.registry.source_name(&id, self.runner.host.cluster);
        let estimate = costs::estimate(&self.runner.host.settings, credential, volume, counts, basis);
        vec![CostEstimate { added_bytes: 0, ..estimate }].into()
    }

    /// Returns the requests of a restore into a new volume.
    async fn planned_reads(
        &self,
        credential: &CredentialRow,
        id: CloudSnapshotId,
    ) -> Result<RequestCounts, ServiceError> {
        let (repository, requests) = self.repositories.task_repository(credential.uuid).await?;
        let (cache, key) = (DbManifestCache::new(Arc::clone(&self.db), credential.uuid), id.manifest_key());
        let manifest = match blocking(move || Ok::<_, ServiceError>(cache.load(&key))).await? {
            Some(manifest) => manifest,
            None => repository.manifest(&id).await?,
        };
        let planned = spawned(async move {
            let reader = SnapshotReader::open(&repository, &manifest).await?;
            estimate_read(&reader, [Extent::whole(manifest.size_bytes)]).await
        });
        let planned = planned.await?;
        Ok(requests.snapshot().plus(planned))
    }

    /// Returns the requests of an in-place restore, and how its blocks were determined. A temporary snapshot
    /// ends the compared block sets, as that of the restore would.
    async fn planned_in_place(
        &self,
        credential: &CredentialRow,
        id: CloudSnapshotId,
        entry: &Arc<VolumeEntry>,
    ) -> Result<(RequestCounts, &'static str), ServiceError> {
        let work = &self.in_place_work;
        let volume = entry.volume()?;
        let spec = TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged: false });
        let live = LiveTask::new(TaskRow::new(spec, credential.uuid, id, crate::owner::current()), None);
        let source = until_cancelled(SnapshotSource::open(&self.lazy, &live, credential.uuid, id)).await?;
        let before = SnapshotId::from_u64(random_id()?);
        let name: SnapshotName = format!("estimate-{before}").parse()?;
        let frozen = work.snapshots.freeze(entry, before, name).await?;
        let released = self.db.run(move |tx| SnapshotRow::release(tx, before)).await;
        let found = match released {
            Ok(()) => until_cancelled(differing(work, &volume, &frozen, &source)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = work.snapshots.drop_snapshot(volume, before).await {
            tracing::warn!(snapshot = %before, %error, "deleting the snapshot of an estimate failed; the next start retries");
        }
        work.snapshots.drop_unneeded_intervals(entry).await;
        let (blocks, how) = found?;
        let planned = source.planned_reads(chunks(&blocks).collect()).await?;
        Ok((source.requests().plus(planned), how))
    }
}
