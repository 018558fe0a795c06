//! States of backups and restores, from those of their volumes.

use super::status::{Condition, TransferMember, TransferStatus};
use blockd_api::{
    cloudsnaps::{Cloudsnap, CloudsnapStatus},
    tasks::{Task, TaskStage},
    volumes::Volume,
};
use jiff::Timestamp;
use uuid::Uuid;

/// Status of a transfer without a failure.
const SUCCESSFUL: &str = "Successful";
/// Stage of a transfer that is over.
const FINAL: &str = "Final";

/// Backup or restore of a volume.
#[derive(Debug)]
pub struct Transfer {
    stage: &'static str,
    /// State in the words of custom resources.
    status: &'static str,
    started_at: Timestamp,
    ended_at: Timestamp,
    reason: Option<String>,
    stored_bytes: u64,
    member: TransferMember,
}

impl Transfer {
    /// Returns the transfer of a stored backup.
    pub fn of_stored(one: &Cloudsnap) -> Self {
        let is_damaged = one.status == CloudsnapStatus::Damaged;
        Self {
            stage: FINAL,
            status: if is_damaged { "Damaged" } else { SUCCESSFUL },
            started_at: one.started_at,
            ended_at: one.completed_at.unwrap_or(one.started_at),
            reason: None,
            stored_bytes: one.stored_bytes,
            member: TransferMember::Stored {
                volume_name: one.volume_name.clone(),
                cloud_snapshot_id: one.cloud_snapshot_id,
                status: one.status,
                created_at: one.created_at,
                backup_type: one.backup_type,
                size_bytes: one.size_bytes,
                stored_bytes: one.stored_bytes,
                last_proof: one.last_proof.clone(),
            },
        }
    }

    /// Returns the transfer of a task.
    pub fn of_task(task: &Task) -> Self {
        let (stage, status) = match task.state.stage {
            TaskStage::Pending => ("Initial", "Pending"),
            TaskStage::Active => ("Volumes", "InProgress"),
            TaskStage::Done => (FINAL, SUCCESSFUL),
            TaskStage::Stopped => (FINAL, "Stopped"),
            TaskStage::Failed => (FINAL, "Failed"),
        };
        let elapsed = std::time::Duration::try_from_secs_f64(task.elapsed_seconds).unwrap_or_default();
        let reason = task.error.as_ref().map(|error| error.message.clone());
        Self {
            stage,
            status,
            started_at: task.started_at,
            ended_at: task.started_at.checked_add(elapsed).unwrap_or(task.started_at),
            reason: reason.clone(),
            stored_bytes: 0,
            member: TransferMember::Task {
                volume_name: task.volume_name.clone(),
                task_id: Some(task.task_id),
                status: status.to_owned(),
                started_at: task.started_at,
                completed_at: task.completed_at,
                cloud_snapshot_id: task.cloud_snapshot_id.clone(),
                reason,
            },
        }
    }

    /// Returns the transfer of a restored volume whose task the daemon has forgotten.
    pub fn of_restored(volume: &Volume, cloud_snapshot_id: Option<String>) -> Self {
        Self {
            stage: FINAL,
            status: SUCCESSFUL,
            started_at: volume.created_at,
            ended_at: volume.created_at,
            reason: None,
            stored_bytes: 0,
            member: TransferMember::Task {
                volume_name: Some(volume.name.clone()),
                task_id: None,
                status: SUCCESSFUL.to_owned(),
                started_at: volume.created_at,
                completed_at: None,
                cloud_snapshot_id,
                reason: None,
            },
        }
    }

    fn is_over(&self) -> bool {
        self.stage == FINAL
    }

    fn is_successful(&self) -> bool {
        self.status == SUCCESSFUL
    }

    /// Returns true for a stored backup, also a damaged one, and for a successful task.
    fn is_done(&self) -> bool {
        self.is_successful() || matches!(self.member, TransferMember::Stored { .. })
    }
}

impl TransferStatus {
    /// Returns the state of the transfers of an object, which another cluster may have made.
    pub fn of(transfers: Vec<Transfer>, cluster_id: Option<Uuid>) -> Self {
        let running = transfers.iter().find(|one| !one.is_over());
        let worst = running.or_else(|| transfers.iter().rev().find(|one| !one.is_successful()));
        let (stage, status) = worst.map_or((FINAL, SUCCESSFUL), |one| (one.stage, one.status));
        let created_at = transfers.iter().map(|one| one.started_at).min().unwrap_or_default();
        let ended_at = transfers.iter().map(|one| one.ended_at).max().unwrap_or_default();
        let reason = transfers.iter().find_map(|one| one.reason.clone());
        let condition = |kind: &str, is_true, message| Condition {
            kind: kind.to_owned(),
            status: is_true,
            reason: Some(status.to_owned()),
            message,
        };
        Self {
            stage: stage.to_owned(),
            status: status.to_owned(),
            created_at,
            elapsed_seconds: ended_at.duration_since(created_at).as_secs_f64(),
            cluster_id,
            cloud_snapshot_id: match transfers.as_slice() {
                [one] => one.member.cloud_snapshot_id(),
                _ => None,
            },
            stored_bytes: transfers.iter().map(|one| one.stored_bytes).sum(),
            done_count: transfers.iter().filter(|one| one.is_done()).count(),
            volume_count: transfers.len(),
            conditions: vec![
                condition("Complete", stage == FINAL, None),
                condition("Succeeded", status == SUCCESSFUL, reason.clone()),
            ],
            reason,
            volumes: transfers.into_iter().map(|one| one.member).collect(),
        }
    }
}
