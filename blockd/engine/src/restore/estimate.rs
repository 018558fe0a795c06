//! Costs of a restore before it runs: the requests of its reads are planned from the indexes.

use crate::{
    costs::{self, begin_estimate},
    error::{ServiceError, blocking, spawned},
    ids::random_id,
    repositories::{locate::Purpose, preflight::until_cancelled},
    restore::{
        Restores,
        in_place::{chunks, differing},
        lazy::source::SnapshotSource,
        start_in_place::refuse_larger,
    },
    tasks::LiveTask,
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    List, SnapshotName,
    costs::{CostEstimate, EstimateRestore},
};
use blockd_catalog::{CredentialRow, DbManifestCache, RestoreTask, SnapshotRow, TaskRow, TaskSpec};
use blockd_cloud::{CloudSnapshotId, ManifestCache, ManifestKey, SnapshotReader, estimate_read};
use blockd_extent::{Extent, SnapshotId};
use blockd_store::RequestCounts;
use std::sync::Arc;

impl Restores {
    /// Estimates the costs of a restore.
    ///
    /// # Errors
    /// There is no such cloud snapshot or volume, or the location does not answer.
    pub async fn estimate(
        self: &Arc<Self>,
        request: &EstimateRestore,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let id = request.cloud_snapshot_id;
        let wanted = request.credential.as_ref();
        let credential = self.repositories.credential_with(&id, wanted, Purpose::Read).await?;
        if let Some(name) = &request.volume_name {
            self.registry.check_free(name)?;
        }
        let (counts, basis) = match &request.in_place {
            None => (self.planned_reads(&credential, id).await?, "planned from the indexes"),
            Some(volume) => {
                let entry = self.registry.find(volume)?;
                let _one = begin_estimate(&entry)?;
                // Other tasks leave the content as it is.
                self.refuse_other_work(&entry, |task| task.spec.is_in_place()).await?;
                Box::pin(self.planned_in_place(&credential, id, &entry)).await?
            }
        };
        let volume = self.registry.source_name(&id, self.runner.host.cluster);
        let estimate = costs::estimate(&self.runner.host.settings, &credential, volume, &counts, basis);
        Ok(vec![CostEstimate { added_bytes: 0, ..estimate }].into())
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
        refuse_larger(&id, source.size_bytes(), entry)?;
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
