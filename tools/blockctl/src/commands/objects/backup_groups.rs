//! Backups of one name, which may be of several volumes.

use super::{
    found::{Found, one_or_all},
    resources::{ResourceSet, backup_name},
    status::{BackupSpec, TransferStatus},
    transfers::Transfer,
};
use crate::{
    backup_names::short_name,
    commands::cloudsnap::list::SCHEDULED,
    objects::{Kind, NAMESPACE, ReclaimPolicy},
};
use blockd_api::{
    cloudsnaps::Cloudsnap,
    tasks::{Task, TaskKind, TaskStage},
};
use serde_json::json;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Backups of a name, a location and a host: at most one of each volume.
#[derive(Debug)]
pub struct BackupGroup<'a> {
    name: String,
    /// `None` if it was deleted.
    location: Option<&'a str>,
    cluster: Option<Uuid>,
    stored: Vec<&'a Cloudsnap>,
    /// Newest task of each volume without a stored backup.
    tasks: Vec<&'a Task>,
}

impl<'a> BackupGroup<'a> {
    /// Returns the backups of all hosts, those of this one first.
    pub fn all(resources: &'a ResourceSet) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        // Two credentials may reach the same location.
        let mut seen = BTreeSet::new();
        let mut is_new = |one: &&Cloudsnap| seen.insert((one.cloud_snapshot_id, one.location()));
        for one in resources.cloudsnaps.iter().flatten().filter(|one| is_new(one)) {
            let (name, location) = (backup_name(one), Some(one.credential_name.as_str()));
            let cluster = Some(one.cloud_snapshot_id.cluster);
            Self::entry(&mut groups, name, location, cluster, Some(one)).stored.push(one);
        }
        // The newest comes first.
        for task in resources.tasks.iter().filter(|task| task.state.kind == TaskKind::Backup) {
            let Some(name) = task.name.as_ref().filter(|_| task.state.stage != TaskStage::Done) else {
                continue;
            };
            let location = task.credential_name.as_ref().map(|name| name.as_str());
            let group = Self::entry(&mut groups, name.to_string(), location, resources.own, None);
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

    /// Returns the first group, or the first without another backup of the same volume.
    fn entry<'b>(
        groups: &'b mut Vec<Self>,
        name: String,
        location: Option<&'a str>,
        cluster: Option<Uuid>,
        stored: Option<&Cloudsnap>,
    ) -> &'b mut Self {
        let is_other = |one: &Cloudsnap, other: &Cloudsnap| {
            one.volume_id == other.volume_id && one.cloud_snapshot_id != other.cloud_snapshot_id
        };
        let has_other =
            |group: &Self| stored.is_some_and(|stored| group.stored.iter().any(|one| is_other(one, stored)));
        let is_it = |group: &Self| {
            group.name == name && group.location == location && group.cluster == cluster && !has_other(group)
        };
        let index = groups.iter().position(is_it).unwrap_or_else(|| {
            groups.push(Self { name, location, cluster, stored: Vec::new(), tasks: Vec::new() });
            groups.len() - 1
        });
        &mut groups[index]
    }

    /// Returns the backup.
    pub fn found(&self, resources: &ResourceSet) -> Found {
        let own = resources.own;
        let host = self.cluster.map(|cluster| resources.short_host(cluster));
        let of_host = |name: &str| host.as_ref().map(|host| format!("{host}/{name}"));
        let (short, volumes) = (short_name(&self.name), self.volumes());
        let own_labels = self.stored.first().map(|one| one.backup_labels.clone()).unwrap_or_default();
        let body = json!(BackupSpec {
            backup_location: self.location.map(ToOwned::to_owned),
            volume: one_or_all(&volumes),
            reclaim_policy: ReclaimPolicy::of(&own_labels),
        });
        let labels = self.stored.iter().flat_map(|one| [&one.labels, &one.backup_labels]);
        let namespaces = labels.filter_map(|labels| labels.as_map().get(NAMESPACE).cloned()).collect();
        Found {
            shown: of_host(&short).filter(|_| self.cluster != own).unwrap_or(short),
            with_host: of_host(&self.name),
            cluster: self.cluster,
            labels: own_labels,
            is_of_other_host: self.cluster != own,
            obstacle: self.obstacle(resources),
            tasks: self.tasks.iter().map(|task| task.task_id).collect(),
            volumes,
            namespaces,
            ..Found::new(Kind::VolumeBackup, self.name.clone(), body, json!(self.status(own)))
        }
    }

    /// Returns the reason why the object cannot be applied.
    fn obstacle(&self, resources: &ResourceSet) -> Option<&'static str> {
        let is_older = |one: &Cloudsnap| {
            let mut volumes = resources.volumes.iter();
            volumes.any(|volume| volume.name.as_str() == one.volume_name && volume.volume_id != one.volume_id)
        };
        match self.location {
            _ if self.cluster != resources.own => {
                Some("is a backup of another host: applied, it would be one of this host")
            }
            None => Some("was to go to a location that is gone: it cannot be applied"),
            Some(_) if self.stored.iter().any(|one| one.trigger == SCHEDULED) => {
                Some("is a backup of a schedule: applied, it would be a new one")
            }
            Some(_) => {
                let older = "is of an older volume: applied, it would lack the present one of the name";
                self.stored.iter().any(|one| is_older(one)).then_some(older)
            }
        }
    }

    fn volumes(&self) -> BTreeSet<String> {
        let stored = self.stored.iter().map(|one| one.volume_name.clone());
        let tasks = self.tasks.iter().filter_map(|task| task.volume_name.as_ref().map(ToString::to_string));
        stored.chain(tasks).collect()
    }

    fn status(&self, own: Option<Uuid>) -> TransferStatus {
        let stored = self.stored.iter().map(|one| Transfer::of_stored(one));
        let tasks = self.tasks.iter().map(|task| Transfer::of_task(task));
        TransferStatus::of(stored.chain(tasks).collect(), self.cluster.filter(|one| Some(*one) != own))
    }
}
