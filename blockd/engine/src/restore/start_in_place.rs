//! Start of in-place restores.

use crate::{
    costs::check_max_cost,
    error::ServiceError,
    ids::random_id,
    restore::{
        Restores,
        in_place::fence_reason,
        labels::{before_first_write, with_labels},
    },
    tasks::requests::check_limits,
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    ErrorCode, SnapshotName, anomalies::AnomalyPolicy, cloudsnaps::RestoreStarted, lazy::StartInPlace,
    tasks::ways_to_end,
};
use blockd_catalog::{CredentialRow, InPlaceRestore, RestoreTask, TaskRow, TaskSpec};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::SnapshotId;
use std::sync::Arc;
use tokio::sync::MutexGuard;

impl Restores {
    /// Starts an in-place restore of a volume.
    ///
    /// # Errors
    /// There is no such cloud snapshot or volume, or the volume is in use or too small.
    pub async fn start_in_place(
        self: &Arc<Self>,
        request: &StartInPlace,
    ) -> Result<RestoreStarted, ServiceError> {
        self.tasks.stop_background_scrub(self.registry.find(&request.volume)?.id).await;
        let (credential, entry, _admission) = self.admit_in_place(request, |_| true).await?;
        let id = request.cloud_snapshot_id;
        self.attachments.check_delete(entry.id)?;
        let (_, mark) = entry.begin_rollback()?;
        let before = SnapshotId::from_u64(random_id()?);
        let spec = RestoreTask::InPlace(InPlaceRestore {
            before,
            discard: request.discard,
            labels: request.labels.clone(),
        });
        let mut row = TaskRow::new(TaskSpec::Restore(spec), credential.uuid, id, crate::owner::current());
        (row.volume, row.snapshot) = (Some(entry.id), Some(before));
        row.detail.volume_name = Some(entry.name.clone());
        row.detail.credential_name = credential.name.to_string();
        row.detail.limits = request.limits;
        let name = SnapshotName::before_restore(row.created);
        mark.set_reason(fence_reason(&row));
        self.in_place_work.fences.lock().insert(entry.id, mark);
        match self.runner.store_and_launch(row, |_| Ok(())).await {
            Ok(started) => Ok(RestoreStarted {
                task_id: started.task_id,
                volume_id: entry.id,
                volume_name: entry.name.clone(),
                previous_snapshot_id: (!request.discard).then_some(before),
                previous_snapshot_name: (!request.discard).then_some(name),
                schedules: Vec::new(),
            }),
            Err(error) => {
                self.in_place_work.fences.lock().remove(&entry.id);
                Err(error)
            }
        }
    }

    /// Admits a restore of a volume, on which no task that matters works, until the guard is dropped.
    pub(super) async fn admit_in_place(
        &self,
        request: &StartInPlace,
        matters: impl Fn(&TaskRow) -> bool,
    ) -> Result<(CredentialRow, Arc<VolumeEntry>, MutexGuard<'_, ()>), ServiceError> {
        check_limits(request.limits)?;
        AnomalyPolicy::check(&request.labels)?;
        let id = &request.cloud_snapshot_id;
        let (credential, manifest, admission) = self.admit(id, request.credential.as_ref()).await?;
        check_max_cost(&self.runner.host.settings, &request.limits, credential.name.as_str())?;
        let entry = self.registry.find(&request.volume)?;
        self.refuse_other_work(&entry, matters).await?;
        refuse_larger(id, manifest.size_bytes, &entry)?;
        with_labels(before_first_write(entry.tags(), &request.labels)?, &request.labels)?;
        Ok((credential, entry, admission))
    }

    /// Refuses a volume on which a task that matters works, or that another restore has left half done.
    async fn refuse_other_work(
        &self,
        entry: &VolumeEntry,
        matters: impl Fn(&TaskRow) -> bool,
    ) -> Result<(), ServiceError> {
        self.tasks.refuse_if_working(entry.id, &entry.name, matters).await?;
        let is_half_done = |task: &TaskRow| task.volume == Some(entry.id) && task.spec.is_in_place();
        if let Some(task) = self.tasks.resumable_tasks().await?.into_iter().find(is_half_done) {
            let message = format!(
                "volume {} is partially restored by task {}: {}",
                entry.name,
                task.id,
                ways_to_end(task.id)
            );
            return Err(ServiceError::refused(ErrorCode::VolumeInUse, message));
        }
        Ok(())
    }
}

/// Refuses a cloud snapshot that is larger than the volume.
fn refuse_larger(id: &CloudSnapshotId, size_bytes: u64, entry: &VolumeEntry) -> Result<(), ServiceError> {
    if size_bytes <= entry.size_bytes() {
        return Ok(());
    }
    let message = format!(
        "cloud snapshot {id} has {size_bytes} bytes, and volume {} only {}: grow the volume first",
        entry.name,
        entry.size_bytes()
    );
    Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
}
