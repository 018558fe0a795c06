//! Volumes that restores and clones made. The objects are their labels.

use super::{
    found::{Found, one_or_all},
    resources::ResourceSet,
    status::{CloneMember, CloneSpec, CloneStatus, RestoreSpec, TransferMember, TransferStatus},
    transfers::Transfer,
};
use crate::objects::{Kind, Object};
use blockd_api::{
    CLONED_BY, CLONED_FROM, Labels, RESTORED_BY, RESTORED_FROM,
    cloudsnaps::CloudSnapshotId,
    tasks::{Task, TaskKind, TaskStage},
    volumes::{Volume, VolumeState},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Volumes of an object.
struct Made<'a> {
    name: &'a str,
    /// The object is known; otherwise, the volume is named.
    is_labelled: bool,
    volumes: Vec<&'a Volume>,
}

/// Groups volumes by the objects that made them; one without an object is its own.
fn by_object<'a>(
    volumes: impl Iterator<Item = &'a Volume>,
    object_of: impl Fn(&'a Volume) -> Option<&'a str>,
) -> Vec<Made<'a>> {
    let mut all: Vec<Made<'a>> = Vec::new();
    for volume in volumes {
        let object = object_of(volume);
        match all.iter_mut().find(|made| made.is_labelled && Some(made.name) == object) {
            Some(made) => made.volumes.push(volume),
            None => all.push(Made {
                name: object.unwrap_or(volume.name.as_str()),
                is_labelled: object.is_some(),
                volumes: vec![volume],
            }),
        }
    }
    all
}

impl Made<'_> {
    fn found(&self, kind: Kind, body: Value, status: Value) -> Found {
        Found { volumes: self.volume_names(), ..Found::new(kind, self.name.to_owned(), body, status) }
    }

    fn volume_names(&self) -> BTreeSet<String> {
        self.volumes.iter().map(|volume| volume.name.to_string()).collect()
    }
}

impl ResourceSet {
    /// Returns the restore tasks of a volume, the newest first. Hydrations of clones are none.
    fn restore_tasks<'a>(&'a self, volume: &Volume) -> impl Iterator<Item = &'a Task> {
        let is_hydrated_clone =
            volume.hydration.is_some() && volume.labels.as_map().contains_key(CLONED_FROM);
        // The id tells a new volume of the name from a deleted one.
        let is_meant = move |task: &&Task| match task.volume_id {
            Some(id) => id == volume.volume_id,
            None => task.volume_name.as_ref() == Some(&volume.name),
        };
        let restores = self.tasks.iter().filter(|task| task.state.kind == TaskKind::Restore);
        restores.filter(move |task| !is_hydrated_clone && is_meant(task))
    }

    /// Returns the restore task of a volume that runs or can be resumed.
    fn unfinished_restore(&self, volume: &Volume) -> Option<&Task> {
        self.restore_tasks(volume).find(|task| is_unfinished(task))
    }

    /// Returns the unfinished task by which an object restores a volume.
    pub fn restore_by(&self, object: &Object, volume: &Volume) -> Option<&Task> {
        let task = self.unfinished_restore(volume)?;
        let labels = task.labels.as_ref().unwrap_or(&volume.labels);
        let is_by_it = label(labels, RESTORED_BY) == Some(object.name.as_str());
        // Without the origin, other content has replaced that of the task.
        let is_origin = label(labels, RESTORED_FROM) == task.cloud_snapshot_id.as_deref();
        (is_by_it && is_origin).then_some(task)
    }

    /// Returns the name of the object that restored a volume, or is restoring it.
    fn restoring<'a>(&'a self, volume: &'a Volume) -> Option<&'a str> {
        let labels = self.unfinished_restore(volume).and_then(|task| task.labels.as_ref());
        labels.and_then(|labels| label(labels, RESTORED_BY)).or_else(|| label(&volume.labels, RESTORED_BY))
    }

    /// Returns the restore task that prevents another one into the same volume: one that it leaves half done,
    /// or the running hydration of a volume that is to be replaced.
    pub fn blocking_restore(&self, volume: &Volume, is_replaced: bool) -> Option<&Task> {
        self.unfinished_restore(volume).filter(|task| {
            let is_half_done = task.labels.is_some() || volume.state == VolumeState::Restoring;
            is_half_done || (is_replaced && !task.state.stage.is_over())
        })
    }

    /// Returns the volumes that an object restored, also before another one, or is restoring.
    pub fn restored_by<'a>(&'a self, object: &'a Object) -> impl Iterator<Item = &'a Volume> {
        let is_of = |volume: &&Volume| was_restored_by(volume, object.name.as_str());
        self.volumes.iter().filter(move |volume| is_of(volume) || self.restore_by(object, volume).is_some())
    }

    /// Returns the cloud snapshot whose content a volume has or gets by the restore of an object; `None` if
    /// other content replaced it.
    pub fn content_by(&self, object: &Object, volume: &Volume) -> Option<CloudSnapshotId> {
        let is_by_it = label(&volume.labels, RESTORED_BY) == Some(object.name.as_str());
        let last = || is_by_it.then(|| restored_from(volume)).flatten();
        self.restore_by(object, volume).map_or_else(last, restored_with)
    }

    /// Returns the volumes whose labels name a restore.
    pub fn labelled_by_restore(&self, name: &str) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().filter(move |volume| was_restored_by(volume, name))
    }

    /// Returns the unfinished task by which a restore of a name has a volume.
    pub fn unfinished_by(&self, name: &str, volume: &Volume) -> Option<&Task> {
        self.unfinished_restore(volume).filter(|_| self.restoring(volume) == Some(name))
    }

    /// Returns the cloud snapshot whose content a volume has or gets. Its label is removed when other content
    /// replaces this one; of a volume that no object made, the newest task is all that is known.
    fn origin<'a>(&'a self, volume: &'a Volume) -> Option<&'a String> {
        let labels = volume.labels.as_map();
        let is_labelled =
            [RESTORED_BY, RESTORED_FROM, CLONED_FROM].iter().any(|label| labels.contains_key(*label));
        let is_known =
            |task: &&Task| is_unfinished(task) || (!is_labelled && task.state.stage == TaskStage::Done);
        let task = self.restore_tasks(volume).next().filter(is_known);
        // Without its object, the restore was deleted.
        let last = labels.get(RESTORED_FROM).filter(|_| labels.contains_key(RESTORED_BY));
        task.and_then(|task| task.cloud_snapshot_id.as_ref()).or(last)
    }

    /// Returns the newest restore task of a volume, if the volume has or gets its content.
    fn task_of_origin(&self, volume: &Volume) -> Option<&Task> {
        let task = self.restore_tasks(volume).next()?;
        (task.cloud_snapshot_id.as_ref() == self.origin(volume)).then_some(task)
    }

    /// Returns the volumes that an object of a name cloned.
    pub fn cloned_by<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Volume> {
        self.volumes.iter().filter(move |volume| label(&volume.labels, CLONED_BY) == Some(name))
    }

    /// Returns the restores that have volumes with their content.
    pub fn restores(&self) -> Vec<Found> {
        let is_restored = |volume: &&Volume| self.origin(volume).is_some();
        let restores = by_object(self.volumes.iter().filter(is_restored), |volume| self.restoring(volume));
        restores.iter().map(|made| self.restore(made)).collect()
    }

    fn restore(&self, made: &Made<'_>) -> Found {
        let tasks: Vec<&Task> =
            made.volumes.iter().filter_map(|volume| self.task_of_origin(volume)).collect();
        let transfer = |volume: &&Volume| match self.task_of_origin(volume) {
            Some(task) => Transfer::of_task(task),
            None => Transfer::of_restored(volume, self.origin(volume).cloned()),
        };
        let status = TransferStatus::of(made.volumes.iter().map(transfer).collect(), None);
        let snapshots = status.volumes.iter().filter_map(TransferMember::cloud_snapshot_id).collect();
        let body = json!(RestoreSpec {
            backup_location: tasks.iter().find_map(|task| task.credential_name.clone()),
            cloud_snapshot_id: one_or_all(&snapshots),
            destination_volume: one_or_all(&made.volume_names()),
        });
        let found = made.found(Kind::VolumeRestore, body, json!(status));
        Found { tasks: tasks.iter().map(|task| task.task_id).collect(), ..found }
    }

    /// Returns the clones.
    pub fn clones(&self) -> Vec<Found> {
        // Without its object, the clone was deleted.
        let is_clone =
            |volume: &&Volume| origin(volume).is_some() && label(&volume.labels, CLONED_BY).is_some();
        by_object(self.volumes.iter().filter(is_clone), |volume| label(&volume.labels, CLONED_BY))
            .iter()
            .map(clone)
            .collect()
    }
}

fn is_unfinished(task: &Task) -> bool {
    !task.state.stage.is_over() || task.resumable
}

fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.as_map().get(key).map(String::as_str)
}

fn was_restored_by(volume: &Volume, name: &str) -> bool {
    label(&volume.labels, RESTORED_BY) == Some(name)
        || volume.labels.restored_before().any(|earlier| earlier == name)
}

/// Returns the cloud snapshot of the content of a restored volume; `None` if other content replaced it.
pub fn restored_from(volume: &Volume) -> Option<CloudSnapshotId> {
    label(&volume.labels, RESTORED_FROM)?.parse().ok()
}

/// Returns the cloud snapshot of a restore task.
fn restored_with(task: &Task) -> Option<CloudSnapshotId> {
    task.cloud_snapshot_id.as_ref()?.parse().ok()
}

/// Returns the source and the snapshot of a cloned volume.
fn origin(volume: &Volume) -> Option<(&str, &str)> {
    volume.labels.as_map().get(CLONED_FROM)?.split_once('@')
}

fn clone(made: &Made<'_>) -> Found {
    let origins = || made.volumes.iter().filter_map(|volume| origin(volume));
    let body = json!(CloneSpec {
        source_volume: one_or_all(&origins().map(|(source, _)| source.to_owned()).collect()),
        snapshot: one_or_all(&origins().map(|(_, snapshot)| snapshot.to_owned()).collect()),
        destination_volume: one_or_all(&made.volume_names()),
    });
    let member = |volume: &&Volume| {
        let (source, snapshot) = origin(volume)?;
        Some(CloneMember {
            volume_name: volume.name.clone(),
            volume_id: volume.volume_id,
            origin: format!("{source}@{snapshot}"),
            state: volume.state,
        })
    };
    let status = CloneStatus {
        stage: "Final".to_owned(),
        status: "Successful".to_owned(),
        created_at: made.volumes.iter().map(|volume| volume.created_at).min(),
        volumes: made.volumes.iter().filter_map(member).collect(),
    };
    made.found(Kind::VolumeClone, body, json!(status))
}
