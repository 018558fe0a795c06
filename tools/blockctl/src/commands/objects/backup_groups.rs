//! Backups of one name, which may be of several volumes.

use super::{
    found::{Found, one_or_all},
    resources::{ResourceSet, backup_name},
    status::{BackupSpec, Condition, RestoreSpec, TransferMember, TransferStatus},
};
use crate::{
    objects::{Kind, NAMESPACE, ReclaimPolicy},
    table::short_uuid,
};
use blockd_api::{
    VolumeName,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, CloudsnapStatus},
    tasks::{Task, TaskKind, TaskStage},
};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Digits of the number of a snapshot in tables.
const SHORT: usize = 8;

/// Backups of a name, a location and a host, or the restore of a volume.
#[derive(Debug)]
pub struct BackupGroup<'a> {
    name: String,
    location: &'a str,
    cluster: Option<Uuid>,
    stored: Vec<&'a Cloudsnap>,
    /// Newest task of each volume without a stored backup.
    tasks: Vec<&'a Task>,
}

impl<'a> BackupGroup<'a> {
    /// Returns the backups of all hosts, those of this one first.
    pub fn all(resources: &'a ResourceSet) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for one in resources.cloudsnaps.iter().flatten() {
            let (name, location) = (backup_name(one), one.credential_name.as_str());
            Self::entry(&mut groups, name, location, Some(one.cloud_snapshot_id.cluster)).stored.push(one);
        }
        // The newest comes first.
        for task in resources.tasks.iter().filter(|task| task.state.kind == TaskKind::Backup) {
            let Some(name) = task.name.as_ref().filter(|_| task.state.stage != TaskStage::Done) else {
                continue;
            };
            let location = task.credential_name.as_ref().map_or("-", |name| name.as_str());
            let group = Self::entry(&mut groups, name.to_string(), location, resources.own);
            let volume = task.volume_name.as_ref().map_or("", |volume| volume.as_str());
            let is_stored = group.stored.iter().any(|one| one.volume_name == volume);
            if !is_stored && !group.tasks.iter().any(|other| other.volume_name == task.volume_name) {
                group.tasks.push(task);
            }
        }
        groups.retain(|group| !group.stored.is_empty() || !group.tasks.is_empty());
        groups.sort_by_key(|group| group.cluster != resources.own);
        groups
    }

    /// Returns the restore of a volume.
    pub fn of_restore(volume: &VolumeName, task: &'a Task) -> Self {
        let location = task.credential_name.as_ref().map_or("-", |name| name.as_str());
        Self { name: volume.to_string(), location, cluster: None, stored: Vec::new(), tasks: vec![task] }
    }

    fn entry<'b>(
        groups: &'b mut Vec<Self>,
        name: String,
        location: &'a str,
        cluster: Option<Uuid>,
    ) -> &'b mut Self {
        let is_it =
            |group: &Self| group.name == name && group.location == location && group.cluster == cluster;
        let index = groups.iter().position(is_it).unwrap_or_else(|| {
            groups.push(Self { name, location, cluster, stored: Vec::new(), tasks: Vec::new() });
            groups.len() - 1
        });
        &mut groups[index]
    }

    /// Returns the name for tables: short if it is an id, and with the host if it is another one.
    fn shown(&self, own: Option<Uuid>) -> String {
        let short = match self.name.parse::<CloudSnapshotId>() {
            Ok(id) => id.snapshot.to_string().chars().take(SHORT).collect(),
            Err(_) => self.name.clone(),
        };
        match self.cluster {
            Some(cluster) if self.cluster != own => format!("{}/{short}", short_uuid(cluster)),
            _ => short,
        }
    }

    fn stage(&self) -> (&'static str, &'static str) {
        let running = self.tasks.iter().find(|task| !task.state.stage.is_over());
        if let Some(task) = running.or(self.tasks.first()) {
            return stage_of(task);
        }
        let is_damaged = self.stored.iter().any(|one| one.status == CloudsnapStatus::Damaged);
        ("Final", if is_damaged { "Damaged" } else { "Successful" })
    }

    /// Returns start and duration in seconds.
    fn times(&self) -> (Timestamp, f64) {
        let stored =
            self.stored.iter().flat_map(|one| [one.started_at, one.completed_at.unwrap_or(one.started_at)]);
        let tasks = self.tasks.iter().flat_map(|task| {
            let elapsed = std::time::Duration::try_from_secs_f64(task.elapsed_seconds).unwrap_or_default();
            [task.started_at, task.started_at.checked_add(elapsed).unwrap_or(task.started_at)]
        });
        let all: Vec<Timestamp> = stored.chain(tasks).collect();
        let (first, last) = (all.iter().min(), all.iter().max());
        let first = first.copied().unwrap_or_default();
        (first, last.map_or(0.0, |last| last.duration_since(first).as_secs_f64()))
    }

    /// Returns the backup.
    pub fn found(&self, own: Option<Uuid>) -> Found {
        let volumes = self.volumes();
        let own_labels = self.stored.first().map(|one| one.backup_labels.clone()).unwrap_or_default();
        let body = json!(BackupSpec {
            backup_location: self.location.to_owned(),
            volume: one_or_all(&volumes),
            reclaim_policy: ReclaimPolicy::of(&own_labels),
        });
        let labels = self.stored.iter().flat_map(|one| [&one.labels, &one.backup_labels]);
        let namespaces = labels.filter_map(|labels| labels.as_map().get(NAMESPACE).cloned()).collect();
        Found {
            shown: self.shown(own),
            labels: own_labels,
            is_of_other_host: self.cluster != own,
            tasks: self.tasks.iter().map(|task| task.task_id).collect(),
            volumes,
            namespaces,
            ..Found::new(Kind::VolumeBackup, self.name.clone(), body, json!(self.status()))
        }
    }

    /// Returns the restore.
    pub fn found_restore(&self) -> Found {
        let mut status = self.status();
        status.cloud_snapshot_id = status.volumes.first().and_then(TransferMember::cloud_snapshot_id);
        let body = json!(RestoreSpec {
            backup_location: self.location.to_owned(),
            cloud_snapshot_id: status.cloud_snapshot_id.clone(),
            destination_volume: self.name.clone(),
        });
        let tasks = self.tasks.iter().map(|task| task.task_id).collect();
        let found = Found::new(Kind::VolumeRestore, self.name.clone(), body, json!(status));
        Found { tasks, volumes: self.volumes(), ..found }
    }

    fn volumes(&self) -> BTreeSet<String> {
        let stored = self.stored.iter().map(|one| one.volume_name.clone());
        let tasks = self.tasks.iter().filter_map(|task| task.volume_name.as_ref().map(ToString::to_string));
        stored.chain(tasks).collect()
    }

    fn status(&self) -> TransferStatus {
        let ((stage, status), (created_at, elapsed_seconds)) = (self.stage(), self.times());
        let reason_of = |task: &&Task| task.error.as_ref().map(|error| error.message.clone());
        let reason = self.tasks.iter().find_map(reason_of);
        let only = match (self.stored.as_slice(), self.tasks.as_slice()) {
            ([one], []) => Some(one.cloud_snapshot_id.to_string()),
            _ => None,
        };
        let done = self.tasks.iter().filter(|task| task.state.stage == TaskStage::Done).count();
        let condition = |kind: &str, is_true, message| Condition {
            kind: kind.to_owned(),
            status: is_true,
            reason: Some(status.to_owned()),
            message,
        };
        TransferStatus {
            stage: stage.to_owned(),
            status: status.to_owned(),
            created_at,
            elapsed_seconds,
            cluster_id: self.cluster,
            cloud_snapshot_id: only,
            stored_bytes: self.stored.iter().map(|one| one.stored_bytes).sum(),
            done_count: self.stored.len() + done,
            volume_count: self.stored.len() + self.tasks.len(),
            volumes: self.members(),
            conditions: vec![
                condition("Complete", stage == "Final", None),
                condition("Succeeded", status == "Successful", reason.clone()),
            ],
            reason,
        }
    }

    fn members(&self) -> Vec<TransferMember> {
        let stored = self.stored.iter().map(|one| TransferMember::Stored {
            volume_name: one.volume_name.clone(),
            cloud_snapshot_id: one.cloud_snapshot_id,
            status: one.status,
            created_at: one.created_at,
            backup_type: one.backup_type,
            size_bytes: one.size_bytes,
            stored_bytes: one.stored_bytes,
            verification: one.verification,
        });
        let tasks = self.tasks.iter().map(|task| TransferMember::Task {
            volume_name: task.volume_name.clone(),
            task_id: task.task_id,
            status: stage_of(task).1.to_owned(),
            started_at: task.started_at,
            completed_at: task.completed_at,
            cloud_snapshot_id: task.cloud_snapshot_id.clone(),
            reason: task.error.as_ref().map(|error| error.message.clone()),
        });
        stored.chain(tasks).collect()
    }
}

/// Returns the stage and status of a task in the words of custom resources.
fn stage_of(task: &Task) -> (&'static str, &'static str) {
    match task.state.stage {
        TaskStage::Pending => ("Initial", "Pending"),
        TaskStage::Active => ("Volumes", "InProgress"),
        TaskStage::Done => ("Final", "Successful"),
        TaskStage::Stopped => ("Final", "Stopped"),
        TaskStage::Failed => ("Final", "Failed"),
    }
}
