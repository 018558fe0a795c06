//! Backups of one name, which may be of several volumes.

use super::{
    found::{Found, conditions, short_duration, short_time, stage_of},
    resources::{ResourceSet, backup_name},
};
use crate::objects::{Kind, NAMESPACE};
use blockd_api::{
    ByteSize,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, CloudsnapStatus},
    tasks::{Task, TaskKind, TaskStage},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Digits of the number of a snapshot, or of the id of a cluster, in tables.
const SHORT: usize = 8;

/// Backups of a name, a location and a host.
#[derive(Debug)]
pub struct BackupGroup<'a> {
    name: String,
    location: &'a str,
    cluster: Option<Uuid>,
    stored: Vec<&'a Cloudsnap>,
    /// Newest task of each volume without a stored backup.
    tasks: Vec<&'a Task>,
}

/// Returns the first digits of an id.
pub fn short_id(id: &impl ToString) -> String {
    id.to_string().chars().take(SHORT).collect()
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
            Ok(id) => short_id(&id.snapshot),
            Err(_) => self.name.clone(),
        };
        match self.cluster {
            Some(cluster) if self.cluster != own => format!("{}/{short}", short_id(&cluster)),
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

    /// Returns the object.
    pub fn found(&self, own: Option<Uuid>) -> Found {
        let names = self.stored.iter().map(|one| one.volume_name.clone());
        let started = self.tasks.iter().filter_map(|task| task.volume_name.as_ref().map(ToString::to_string));
        let volumes: BTreeSet<String> = names.chain(started).collect();
        let of: Value = match volumes.first() {
            Some(only) if volumes.len() == 1 => only.as_str().into(),
            _ => json!(volumes),
        };
        let (stage, status) = self.stage();
        let (created, elapsed_s) = self.times();
        let ids: Vec<String> = self.stored.iter().map(|one| one.cloud_snapshot_id.to_string()).collect();
        let types: BTreeSet<String> = self.stored.iter().map(|one| one.backup_type.to_string()).collect();
        let size_bytes: u64 = self.stored.iter().map(|one| one.stored_bytes).sum();
        let word = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let cells = vec![
            stage.to_owned(),
            status.to_owned(),
            format!("{}/{}", self.stored.len(), self.stored.len() + self.tasks.len()),
            "-".to_owned(),
            short_time(created),
            short_duration(elapsed_s),
            self.location.to_owned(),
            word(self.cluster.as_ref().map(short_id).unwrap_or_default()),
            word(volumes.iter().cloned().collect::<Vec<_>>().join(",")),
            word(types.into_iter().collect::<Vec<_>>().join(",")),
            ByteSize::from_bytes(size_bytes).to_string(),
            word(ids.join(",")),
        ];
        let body = json!({ "backupLocation": self.location, "volume": of });
        let found = Found::new(
            Kind::VolumeBackup,
            self.name.clone(),
            body,
            self.status(stage, status, created),
            cells,
        );
        let labels = self.stored.iter().flat_map(|one| [&one.labels, &one.backup_labels]);
        let namespaces = labels.filter_map(|labels| labels.as_map().get(NAMESPACE).cloned());
        Found {
            shown: self.shown(own),
            labels: self.stored.first().map(|one| one.backup_labels.clone()).unwrap_or_default(),
            is_of_other_host: self.cluster != own,
            tasks: self.tasks.iter().map(|task| task.task_id).collect(),
            volumes,
            namespaces: Some(namespaces.collect()),
            ..found
        }
    }

    fn status(&self, stage: &str, status: &str, created: Timestamp) -> Value {
        let stored = self.stored.iter().map(|one| {
            json!({
                "volumeName": one.volume_name, "cloudSnapshotId": one.cloud_snapshot_id, "status": one.status,
                "createdAt": one.created_at, "backupType": one.backup_type, "sizeBytes": one.size_bytes,
                "storedBytes": one.stored_bytes, "verification": one.verification
            })
        });
        let tasks = self.tasks.iter().map(|task| {
            let reason = task.error.as_ref().map(|error| &error.message);
            json!({
                "volumeName": task.volume_name, "taskId": task.task_id, "status": stage_of(task).1,
                "startedAt": task.started_at, "reason": reason
            })
        });
        let reason =
            self.tasks.iter().find_map(|task| task.error.as_ref()).map(|error| error.message.as_str());
        let only = if let ([one], []) = (self.stored.as_slice(), self.tasks.as_slice()) {
            Some(one.cloud_snapshot_id)
        } else {
            None
        };
        json!({
            "stage": stage, "status": status, "createdAt": created, "clusterId": self.cluster, "cloudSnapshotId": only,
            "reason": reason, "volumes": stored.chain(tasks).collect::<Vec<_>>(),
            "conditions": conditions(stage == "Final", status == "Successful", status, reason)
        })
    }
}
