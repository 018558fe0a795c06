//! Backups of existing local snapshots, alone or of a group snapshot.
//!
//! Such a backup is incremental if its point in time is later than that of the last backup. An older one is
//! full and leaves the chain as it is, so that the next backup of the volume is still based on the newest
//! point in time.

use crate::{backup::Backups, error::ServiceError, ids::only_one};
use blockd_api::{
    ErrorCode, GroupSnapshotRef, SnapshotName,
    cloudsnaps::{StartBackup, StartGroupBackup},
    quiesce::HookOptions,
};
use blockd_catalog::{SnapshotRow, SnapshotState};
use blockd_extent::{SnapshotId, VolumeId};
use std::collections::BTreeSet;
use uuid::Uuid;

fn refuse<T>(message: impl Into<String>) -> Result<T, ServiceError> {
    Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
}

/// Refuses options of a freeze in the request of a backup without one.
fn refuse_freeze_options(hooks: &HookOptions, keep_local: bool) -> Result<(), ServiceError> {
    if !hooks.quiesce.is_nothing() || hooks.rule_name.is_some() {
        return refuse("rules and commands run around a new snapshot: omit them for an existing one");
    }
    match keep_local {
        true => refuse("an existing snapshot stays after its backup: omit --keep-local"),
        false => Ok(()),
    }
}

impl Backups {
    /// Returns the requested existing snapshot of the volume; `None` if a new one is requested.
    ///
    /// # Errors
    /// There is no such snapshot, it belongs to another volume, or the request has options of a freeze.
    pub(super) async fn existing_snapshot(
        &self,
        request: &StartBackup,
    ) -> Result<Option<SnapshotId>, ServiceError> {
        let Some(wanted) = &request.snapshot else { return Ok(None) };
        refuse_freeze_options(&request.hooks, request.keep_local)?;
        let entry = self.registry.find(&request.volume)?;
        let row = self.snapshots.find_snapshot(wanted).await?;
        if row.volume != entry.id {
            return refuse(format!("snapshot {wanted} is not one of volume {}", entry.name));
        }
        Ok(Some(row.id))
    }

    /// Returns the volumes and snapshots of the requested group snapshot, which must be complete; none if a
    /// new one is requested.
    ///
    /// # Errors
    /// There is no such group snapshot, it is incomplete, or the request also selects volumes or has options
    /// of a freeze.
    pub(super) async fn group_snapshot(
        &self,
        request: &StartGroupBackup,
    ) -> Result<Vec<(VolumeId, SnapshotId)>, ServiceError> {
        let Some(wanted) = &request.snapshot_group else { return Ok(Vec::new()) };
        if request.group.is_some() || request.label.is_some() || !request.volumes.is_empty() {
            return refuse("the selection of volumes is ambiguous: a group snapshot has its own volumes");
        }
        refuse_freeze_options(&request.hooks, request.keep_local)?;
        let mut rows = self.snapshots.db.run(|tx| SnapshotRow::all(tx, None)).await?;
        rows.retain(|row| !row.internal && row.state == SnapshotState::Ready);
        let no_such = || {
            let message = format!(
                "there is no group snapshot {wanted}: `blockctl snapshot list --wide` shows their ids"
            );
            ServiceError::refused(ErrorCode::SnapshotNotFound, message)
        };
        let id = group_snapshot_id(&rows, wanted)?.ok_or_else(no_such)?;
        rows.retain(|row| row.taken_with.as_ref().is_some_and(|group| group.group_id == id));
        let members = rows.first().and_then(|row| row.taken_with.as_ref()).map(|group| group.members);
        let message = match members {
            None => return Err(no_such()),
            Some(members) if members != rows.len() as u64 => format!(
                "group snapshot {id} has {} of its {members} snapshots: back them up one by one",
                rows.len()
            ),
            Some(_) => return Ok(rows.into_iter().map(|row| (row.volume, row.id)).collect()),
        };
        Err(ServiceError::refused(ErrorCode::SnapshotNotFound, message))
    }

    /// Refuses a name that a snapshot of one of these volumes has.
    pub(super) async fn refuse_taken(
        &self,
        name: &SnapshotName,
        volumes: &[VolumeId],
    ) -> Result<(), ServiceError> {
        let rows = self.snapshots.db.run(|tx| SnapshotRow::all(tx, None)).await?;
        match rows.iter().find(|row| row.name == *name && volumes.contains(&row.volume)) {
            Some(row) => {
                let volume = self.registry.by_id(row.volume);
                let volume = volume.map_or(row.volume.to_string(), |entry| entry.name.to_string());
                let message = format!("volume {volume} has a snapshot {name} already: choose another name");
                Err(ServiceError::refused(ErrorCode::SnapshotExists, message))
            }
            None => Ok(()),
        }
    }
}

/// Returns the id of a group snapshot by its UUID, the name of its snapshots, or a prefix of the UUID.
fn group_snapshot_id(rows: &[SnapshotRow], wanted: &GroupSnapshotRef) -> Result<Option<Uuid>, ServiceError> {
    let name = match wanted {
        GroupSnapshotRef::Id(id) => return Ok(Some(*id)),
        GroupSnapshotRef::Name(name) => name,
    };
    let ids = |is_wanted: &dyn Fn(&SnapshotRow) -> bool| {
        let groups = rows.iter().filter(|row| is_wanted(row)).filter_map(|row| row.taken_with.as_ref());
        groups.map(|group| group.group_id).collect::<BTreeSet<Uuid>>()
    };
    let named = ids(&|row| row.name == *name);
    match (named.first(), named.len()) {
        (Some(id), 1) => Ok(Some(*id)),
        (None, _) => {
            let all = ids(&|_| true).into_iter().map(|id| (id.to_string(), id));
            only_one("group snapshots", name.as_str(), all)
        }
        (Some(_), several) => {
            refuse(format!("{several} group snapshots have the name {name}: give the id of one"))
        }
    }
}
