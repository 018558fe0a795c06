//! Costs of a backup before it is made.
//!
//! The backup is planned for a temporary snapshot, which is deleted afterwards: the blocks since the last
//! backup stay the same. Nothing is stored in the location.

use crate::{
    backup::{
        BackupRequest, Backups, PointInTime, check_options,
        planning::{FrozenBackup, make_plan},
        task::spec_of,
    },
    costs,
    error::{ServiceError, blocking},
    ids::random_id,
    tasks::{LiveTask, clean_files},
    volumes::registry::VolumeEntry,
};
use blockd_api::{ErrorCode, List, SnapshotName, cloudsnaps::StartBackup, costs::CostEstimate};
use blockd_catalog::{CredentialRow, DbManifestCache, SnapshotRow, SnapshotState};
use blockd_cloud::{UploadOptions, estimate_backup};
use blockd_extent::SnapshotId;
use std::sync::Arc;

impl Backups {
    /// Estimates the costs of the backups that the request would start, one for each location.
    ///
    /// # Errors
    /// Those of [`start_backup`](Self::start_backup); the volume cannot be read, or a location does not
    /// answer.
    pub async fn estimate(
        self: &Arc<Self>,
        request: &StartBackup,
    ) -> Result<List<CostEstimate>, ServiceError> {
        check_options(&request.options)?;
        let mut credentials = Vec::new();
        for credential in self.resolve_credentials(&request.credentials).await? {
            credentials.push(self.repositories.credential(Some(&credential)).await?);
        }
        let existing = self.existing_snapshot(request).await?;
        let entry = self.registry.find(&request.volume)?;
        entry.volume()?;
        let point = match existing {
            Some(id) => self.existing_point(&entry, id).await?,
            None => self.temporary_point(&entry).await?,
        };
        let estimated = self.estimate_all(request, &entry, &point, &credentials).await;
        if existing.is_none() {
            let dropped = self.snapshots.drop_snapshot(entry.volume()?, point.id).await;
            if let Err(error) = dropped {
                tracing::warn!(snapshot = %point.id, %error, "deleting the snapshot of an estimate failed; the next start retries");
            }
            self.snapshots.drop_unneeded_intervals(&entry).await;
        }
        Ok(List::from(estimated?))
    }

    async fn existing_point(&self, entry: &VolumeEntry, id: SnapshotId) -> Result<SnapshotRow, ServiceError> {
        let volume = entry.id;
        let rows = self.snapshots.db.run(move |tx| SnapshotRow::all(tx, Some(volume))).await?;
        let found = rows.into_iter().find(|row| row.id == id && row.state == SnapshotState::Ready);
        found.ok_or_else(|| {
            let message = format!("snapshot {id} of volume {} no longer exists", entry.name);
            ServiceError::refused(ErrorCode::SnapshotNotFound, message)
        })
    }

    /// Takes a snapshot that the next start deletes if this run does not.
    async fn temporary_point(&self, entry: &Arc<VolumeEntry>) -> Result<SnapshotRow, ServiceError> {
        let id = SnapshotId::from_u64(random_id()?);
        let name: SnapshotName = format!("estimate-{id}").parse()?;
        let row = self.snapshots.freeze(entry, id, name).await?;
        self.snapshots.db.run(move |tx| SnapshotRow::release(tx, id)).await?;
        Ok(row)
    }

    async fn estimate_all(
        &self,
        request: &StartBackup,
        entry: &Arc<VolumeEntry>,
        point: &SnapshotRow,
        credentials: &[CredentialRow],
    ) -> Result<Vec<CostEstimate>, ServiceError> {
        let asked = BackupRequest { options: request.options.clone(), ..BackupRequest::default() };
        let mut estimates = Vec::with_capacity(credentials.len());
        for credential in credentials {
            estimates.push(Box::pin(self.estimate_one(&asked, entry, point, credential)).await?);
        }
        Ok(estimates)
    }

    async fn estimate_one(
        &self,
        asked: &BackupRequest,
        entry: &Arc<VolumeEntry>,
        point: &SnapshotRow,
        credential: &CredentialRow,
    ) -> Result<CostEstimate, ServiceError> {
        let work = &self.runner.backup_work;
        let alone = PointInTime { group_freeze: None, quiesce_rules: Vec::new() };
        let credentials = std::slice::from_ref(credential);
        let mut rows = self.rows_of(entry, credentials, Some(point.id), asked, &alone)?;
        let row = rows.swap_remove(0);
        let Some(backup) = row.spec.backup().cloned() else {
            return Err(ServiceError::Internal("an estimate of another task".into()));
        };
        let volume = entry.volume()?;
        let frozen = FrozenBackup {
            asked: &backup,
            entry: Arc::clone(entry),
            volume: Arc::clone(&volume),
            snapshot: point.clone(),
            write_once: credential.capabilities.conditional_put,
        };
        let (repository, requests) = self.repositories.task_repository(credential.uuid).await?;
        repository.check_writable()?;
        let manifests = DbManifestCache::new(Arc::clone(&work.db), credential.uuid);
        let live = LiveTask::new(row.clone(), None);
        // The backup proves the location again if it would have without the estimate.
        let proven = self.repositories.proven.lock().get(&credential.uuid).copied();
        let planned = make_plan(work, &live, &frozen, &repository, &manifests).await;
        if proven.is_none() {
            self.repositories.proven.lock().remove(&credential.uuid);
        }
        // The fingerprints of its blocks.
        if let Err(error) = clean_files(&work.tasks, live.id).await {
            tracing::warn!(%error, "deleting the files of an estimate failed; the next start retries");
        }
        let (planned, note) = planned?;
        let planning = requests.snapshot();
        let spec = Arc::new(spec_of(&row, &frozen, planned).await?);
        let (readers, id) = (Arc::clone(&work.shared_readers), point.id);
        let reader = blocking(move || readers.join(id, || volume.view(id))).await?;
        let reader = Arc::new(reader);
        let options = UploadOptions {
            cpu_threads: self.host.settings.cpu_threads,
            write_once: frozen.write_once,
            compression: backup.options.compression.unwrap_or_default(),
            ..UploadOptions::default()
        };
        let stored = estimate_backup(&repository, spec, Arc::clone(&reader) as _, &options).await;
        blocking(move || {
            reader.close();
            Ok::<_, ServiceError>(())
        })
        .await?;
        let counts = planning.plus(stored?);
        let basis = format!("{note}; compression estimated from a sample");
        Ok(costs::estimate(&self.host.settings, credential, &counts, basis))
    }
}
