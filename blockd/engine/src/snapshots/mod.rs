//! Local snapshots: creation, listing and deletion, including the internal ones of backups.

pub mod freeze;
mod groups;
pub mod rollback;

use crate::{
    error::{ServiceError, blocking},
    events::EventLog,
    host::{Admission, Host},
    ids::{only_one, random_id},
    quiesce::{Quiescer, rules::QuiesceRequest},
    readers::SnapshotReaders,
    schedules::wake::Scheduler,
    snapshots::freeze::{FreezeRequest, show},
    tasks::Tasks,
    volumes::{
        attachments::Attachments,
        merger::Wake,
        registry::{EntryState, Registry, VolumeEntry},
    },
};
use blockd_api::{
    ApiError, Deleted, ErrorCode, GroupRef, List, SnapshotName, SnapshotRef, VolumeRef,
    snapshots::{self as api, CreateSnapshot, ListSnapshots},
};
use blockd_catalog::{Chain, Db, DbError, SnapshotRow, SnapshotState, TaskRow};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_quiesce::Admission as QuiesceAdmission;
use blockd_volume::{Reserve, SnapshotSpace, Volume, VolumeError, VolumeErrorKind};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};
use uuid::Uuid;

/// Local snapshots.
pub struct Snapshots {
    pub(crate) admission: Arc<Admission>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) readers: Arc<dyn SnapshotReaders>,
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) host: Arc<Host>,
    pub(crate) merger: Arc<Wake>,
    pub(crate) quiescer: Arc<Quiescer>,
    pub(crate) quiescing: Arc<QuiesceAdmission>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) reserve: Option<Arc<Reserve>>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) to_undo: Mutex<Vec<(VolumeId, SnapshotId)>>,
}

impl Snapshots {
    /// Takes a snapshot of a volume.
    ///
    /// # Errors
    /// The volume cannot be used, it has a snapshot of that name, or the freeze failed.
    pub async fn create_snapshot(
        &self,
        wanted: &VolumeRef,
        request: CreateSnapshot,
    ) -> Result<api::Snapshot, ServiceError> {
        let entry = self.registry.find(wanted)?;
        let id = SnapshotId::from_u64(random_id()?);
        let name = request.name.unwrap_or_else(|| SnapshotName::from_time(Timestamp::now()));
        let asked = QuiesceRequest { hooks: request.hooks, scheduled: None };
        self.quiescer.check_hooks(&asked).await?;
        let quiesce_rules = self.quiescer.quiesce_for(&asked, &[Arc::clone(&entry)]).await?;
        let members = vec![(Arc::clone(&entry), id)];
        let wanted =
            FreezeRequest { members, name, internal: false, group: None, quiesce_rules, schedule: None };
        let row = self.freeze_alone(wanted).await?;
        self.drop_unneeded_intervals(&entry).await;
        tracing::info!(volume = %entry.id, snapshot = %id, name = %row.name, stall_micros = row.freeze_stall_micros, "snapshot taken");
        Ok(to_api(&row, &entry, None, &self.host.data_dir.nbd_socket()))
    }

    /// Lists the user snapshots, of one volume if it is given.
    ///
    /// # Errors
    /// There is no such volume.
    pub async fn list_snapshots(&self, query: &ListSnapshots) -> Result<List<api::Snapshot>, ServiceError> {
        let volume = query.volume.as_ref().map(|wanted| self.registry.find(wanted)).transpose()?;
        let volume = volume.map(|entry| entry.id);
        let rows = self.db.run(move |tx| SnapshotRow::all(tx, volume)).await?;
        let of_group = |row: &SnapshotRow| match (&query.group, &row.taken_with) {
            (None, _) => true,
            (Some(GroupRef::Id(id)), Some(group)) => group.group_id == *id,
            (Some(GroupRef::Name(name)), Some(group)) => group.group.as_ref() == Some(name),
            (Some(_), None) => false,
        };
        let mut snapshots = Vec::new();
        let socket = self.host.data_dir.nbd_socket();
        for entry in self.registry.all() {
            let shown = |row: &&SnapshotRow| {
                row.volume == entry.id
                    && !row.internal
                    && row.state != SnapshotState::Creating
                    && of_group(row)
            };
            let shown: Vec<_> = rows.iter().filter(shown).collect();
            if shown.is_empty() {
                continue;
            }
            let space = space_of(&entry).await?;
            let of = |row: &SnapshotRow| space.iter().find(|space| space.id == row.id);
            snapshots.extend(shown.into_iter().map(|row| to_api(row, &entry, of(row), &socket)));
        }
        Ok(snapshots.into())
    }

    /// Returns a user snapshot.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub async fn inspect_snapshot(&self, wanted: &SnapshotRef) -> Result<api::Snapshot, ServiceError> {
        let row = self.find_snapshot(wanted).await?;
        let entry = self.registry.find(&VolumeRef::Id(row.volume))?;
        let space = space_of(&entry).await?;
        Ok(to_api(
            &row,
            &entry,
            space.iter().find(|space| space.id == row.id),
            &self.host.data_dir.nbd_socket(),
        ))
    }

    /// Returns the row of a user snapshot by name, id or id prefix.
    pub async fn find_snapshot(&self, wanted: &SnapshotRef) -> Result<SnapshotRow, ServiceError> {
        let volume = match wanted {
            SnapshotRef::Named { volume, .. } => Some(self.registry.find(volume)?.id),
            SnapshotRef::Id(_) => None,
        };
        let rows = self.db.run(move |tx| SnapshotRow::all(tx, volume)).await?;
        let is_wanted = |row: &SnapshotRow| match wanted {
            SnapshotRef::Id(id) => row.id == *id,
            SnapshotRef::Named { name, .. } => row.name == *name,
        };
        let shown = |row: &SnapshotRow| !row.internal && row.state != SnapshotState::Creating;
        let mut rows: Vec<SnapshotRow> = rows.into_iter().filter(shown).collect();
        let found = match (rows.iter().position(is_wanted), wanted) {
            (Some(at), _) => Some(rows.swap_remove(at)),
            (None, SnapshotRef::Id(id)) => {
                only_one("snapshots", &id.to_string(), rows.into_iter().map(|row| (row.id.to_string(), row)))?
            }
            (None, SnapshotRef::Named { .. }) => None,
        };
        found.ok_or_else(|| {
            ServiceError::refused(ErrorCode::SnapshotNotFound, format!("there is no snapshot {wanted}"))
        })
    }

    /// Pins or unpins a snapshot.
    ///
    /// # Errors
    /// There is no such snapshot, or it is being deleted.
    pub async fn pin_snapshot(
        &self,
        wanted: &SnapshotRef,
        pinned: bool,
    ) -> Result<api::Snapshot, ServiceError> {
        let id = self.find_snapshot(wanted).await?.id;
        if !self.db.run(move |tx| SnapshotRow::set_pinned(tx, id, pinned)).await? {
            let message = format!("snapshot {wanted} is being deleted: it cannot be pinned any more");
            return Err(ServiceError::refused(ErrorCode::SnapshotNotFound, message));
        }
        tracing::info!(snapshot = %id, pinned, "snapshot pin changed");
        if !pinned {
            // The retention of its schedule applies again.
            self.scheduler.wake();
        }
        self.inspect_snapshot(&SnapshotRef::Id(id)).await
    }

    /// Deletes a snapshot, a pinned one with `force` only; its layer is merged in the background.
    ///
    /// # Errors
    /// There is no such snapshot, it is pinned, or it has readers.
    pub async fn delete_snapshot(&self, wanted: &SnapshotRef, force: bool) -> Result<Deleted, ServiceError> {
        let row = self.find_snapshot(wanted).await?;
        let entry = self.registry.find(&VolumeRef::Id(row.volume))?;
        let volume = entry.volume()?;
        let id = row.id;
        let shown = format!("{}@{}", entry.name, row.name);
        let mark = || {
            let shown = shown.clone();
            self.db.run(move |tx| -> Result<Option<Uuid>, ServiceError> {
                if !force && SnapshotRow::is_pinned(tx, id)? {
                    let message =
                        format!("snapshot {shown} is pinned: unpin it first, or delete it by force");
                    return Err(ServiceError::refused(ErrorCode::SnapshotPinned, message));
                }
                let needed_by = TaskRow::task_in_need(tx, id)?;
                if needed_by.is_none() {
                    SnapshotRow::set_state(tx, id, SnapshotState::Deleting)?;
                }
                Ok(needed_by)
            })
        };
        if let Some(task) = self.with_space_reserve(mark).await? {
            let message =
                format!("task {task} needs snapshot {shown}: wait for it to end, or stop it with --discard");
            return Err(ServiceError::refused(ErrorCode::SnapshotInUse, message));
        }
        entry.hide_snapshot(id);
        self.readers.release(entry.id);
        if let Err(error) = self.drop_snapshot(volume, id).await {
            let busy = matches!(&error, ServiceError::Volume(error) if error.kind() == VolumeErrorKind::Busy);
            if busy {
                self.db.run(move |tx| SnapshotRow::set_state(tx, id, SnapshotState::Ready)).await?;
                show(&entry, &row).await;
                let message = format!("delete failed on snapshot {shown}: it is open for reading");
                let hint =
                    "an NBD client of its export or a browse mount reads it: repeat the command afterwards";
                return Err(ApiError::new(ErrorCode::SnapshotInUse, message).with_hint(hint).into());
            }
            return Err(error);
        }
        self.drop_unneeded_intervals(&entry).await;
        tracing::info!(volume = %row.volume, snapshot = %id, name = %row.name, "snapshot deleted");
        let name = Some(row.name.to_string());
        Ok(Deleted { snapshot_id: Some(id), name, ..Deleted::default() })
    }

    /// Removes a snapshot in deletion from its volume, then its row.
    pub async fn drop_snapshot(&self, volume: Arc<Volume>, id: SnapshotId) -> Result<(), ServiceError> {
        let drop_from_volume = || {
            let volume = Arc::clone(&volume);
            blocking(move || match volume.delete_snapshot(id) {
                Err(error) if error.kind() == VolumeErrorKind::NotFound => Ok(()),
                // A closed volume deletes nothing; a missing snapshot needs no deletion.
                Err(_) if volume.snapshots().iter().all(|snapshot| snapshot.id != id) => Ok(()),
                other => other,
            })
        };
        self.with_space_reserve(drop_from_volume).await?;
        self.with_space_reserve(|| self.db.run(move |tx| SnapshotRow::remove(tx, id))).await?;
        self.merger.wake();
        Ok(())
    }

    /// Runs an operation that frees space, or a step of one; on a full disk again with the space reserve
    /// released, which the merger fills again.
    pub(crate) async fn with_space_reserve<T, E, F>(&self, step: impl Fn() -> F) -> Result<T, ServiceError>
    where
        E: Into<ServiceError>,
        F: Future<Output = Result<T, E>>,
    {
        let error = match step().await {
            Ok(done) => return Ok(done),
            Err(error) => error.into(),
        };
        let Some(reserve) = self.reserve.clone().filter(|_| error.to_api().code == ErrorCode::NoSpace) else {
            return Err(error);
        };
        let Ok(Some(_space)) = tokio::task::spawn_blocking(move || reserve.release()).await else {
            return Err(error);
        };
        let done = step().await.map_err(Into::into);
        self.merger.wake();
        done
    }

    /// Drops the block sets of a volume that no later incremental backup needs: those up to the oldest of the
    /// last backups of all credentials and of backups under way. A credential without new backups keeps all
    /// sets since its last one until it is deleted. A failure costs only space.
    pub async fn drop_unneeded_intervals(&self, entry: &Arc<VolumeEntry>) {
        let Ok(volume) = entry.volume() else { return };
        let id = entry.id;
        let running = self.tasks.running();
        let needed = self.db.run(move |tx| -> Result<Option<Epoch>, DbError> {
            // A backup under way will be the base of the next one.
            let tasks = running.into_iter().chain(TaskRow::unfinished(tx)?).chain(TaskRow::resumable(tx)?);
            let running: Vec<SnapshotId> =
                tasks.filter(|task| task.volume == Some(id)).filter_map(|task| task.snapshot).collect();
            let snapshots = SnapshotRow::all(tx, Some(id))?.into_iter();
            let underway = snapshots.filter(|row| running.contains(&row.id)).map(|row| row.epoch);
            Ok(Chain::all(tx, Some(id))?.into_iter().map(|chain| chain.epoch).chain(underway).min())
        });
        let forgotten = match needed.await {
            Ok(needed) => blocking(move || volume.forget_intervals(needed)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = forgotten {
            tracing::warn!(volume = %id, %error, "dropping unneeded block sets failed");
        }
    }
}

/// Returns the space of a volume's snapshots; empty if it is unknown.
pub async fn space_of(entry: &VolumeEntry) -> Result<Vec<SnapshotSpace>, ServiceError> {
    let Ok(volume) = entry.volume() else { return Ok(Vec::new()) };
    // Walks over all sets of the volume: not for the threads that serve requests.
    blocking(move || Ok::<_, VolumeError>(volume.snapshot_space())).await
}

/// Converts to the API; `socket` serves its export.
pub fn to_api(
    row: &SnapshotRow,
    entry: &VolumeEntry,
    space: Option<&SnapshotSpace>,
    socket: &Path,
) -> api::Snapshot {
    let state = match (row.state, entry.view().state) {
        (SnapshotState::Deleting, _) => api::SnapshotState::Deleting,
        (_, EntryState::Failed(_)) => api::SnapshotState::Failed,
        _ => api::SnapshotState::Ready,
    };
    let export = format!("{}@{}", entry.name, row.name);
    api::Snapshot {
        uri: blockd_api::nbd_unix_uri(&export, socket),
        export,
        snapshot_id: row.id,
        volume_name: entry.name.clone(),
        volume_id: entry.id,
        name: row.name.clone(),
        created_at: row.created,
        epoch: row.epoch,
        freeze_stall_micros: row.freeze_stall_micros,
        dirty_bytes: row.dirty_bytes,
        exclusive_bytes: space.map(|space| space.exclusive_bytes),
        shared_bytes: space.map(|space| space.shared_bytes),
        state,
        taken_with: row.taken_with.clone(),
        quiesce: row.quiesce.clone(),
        pinned: row.pinned,
    }
}

/// Converts to microseconds, rounded up: a measured stall is never shown as zero.
pub fn micros_up(stall: std::time::Duration) -> u64 {
    u64::try_from(stall.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}
