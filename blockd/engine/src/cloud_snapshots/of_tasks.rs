//! Backups of tasks in lists of cloud snapshots.

use super::{CloudSnapshots, ListedCloudsnaps};
use crate::{backup::task::trigger_of, error::ServiceError, tasks::backup_type};
use blockd_api::{
    Labels,
    cloudsnaps::{self as api, Cloudsnap, CloudsnapStatus},
    tasks::{BackupType, TaskStage},
};
use blockd_catalog::{CredentialRow, TaskRow};

impl CloudSnapshots {
    /// Adds running, failed and stopped backups of this daemon as list entries.
    pub(super) async fn tasks_as_entries(
        &self,
        credential: &CredentialRow,
        status: CloudsnapStatus,
        found: &mut ListedCloudsnaps,
    ) -> Result<(), ServiceError> {
        for row in self.db.run(TaskRow::all).await? {
            let matches = match row.state {
                TaskStage::Pending | TaskStage::Active => status == CloudsnapStatus::Active,
                TaskStage::Failed => status == CloudsnapStatus::Failed,
                TaskStage::Stopped => status == CloudsnapStatus::Stopped,
                TaskStage::Done => false,
            };
            let Some(asked) = row.spec.backup().filter(|_| row.credential == credential.uuid && matches)
            else {
                continue;
            };
            let name = row.detail.volume_name.as_ref().map(ToString::to_string).unwrap_or_default();
            let volume = row.volume.and_then(|id| self.registry.by_id(id));
            let (volume_size_bytes, labels) =
                volume.map_or((0, Labels::default()), |volume| (volume.size_bytes(), volume.tags().labels));
            found.entries.push(Cloudsnap {
                cloud_snapshot_id: row.cloudsnap,
                name: asked.options.name.as_ref().map(ToString::to_string),
                volume_id: row.cloudsnap.volume,
                volume_name: name,
                volume_size_bytes,
                labels,
                backup_labels: asked.options.labels.clone(),
                created_at: row.created,
                status,
                trigger: trigger_of(asked).into(),
                backup_type: row.detail.backup_type.map_or(BackupType::Full, backup_type),
                repairs: None,
                started_at: row.created,
                completed_at: row.detail.completed,
                credential_id: credential.uuid,
                credential_name: credential.name.to_string(),
                location_id: None,
                format_version: blockd_cloud::FORMAT_VERSION,
                compression: api::CompressionReport {
                    mode: Some(asked.options.compression.unwrap_or_default()),
                    levels: Vec::new(),
                },
                encrypted: credential.encrypted,
                size_bytes: row.detail.bytes_total,
                stored_bytes: row.detail.bytes_uploaded,
                referenced_bytes: 0,
                dirty_bytes: row.detail.bytes_dirty,
                freeze_stall_micros: row.detail.freeze_stall_micros,
                pinned: false,
                leases: Vec::new(),
                pinned_by: None,
                expires_at: None,
                last_proof: None,
                last_drill: None,
            });
        }
        Ok(())
    }
}
