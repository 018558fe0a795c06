//! Registry of the host's volumes with their states and connections.
//!
//! An entry's state and its number of connections change under one lock, so that a volume is never removed
//! under a client that has just connected.

mod closed;
mod entries;
mod guards;
mod state;
mod tags;

pub use closed::{CheckOutcome, Closed, Content};
pub use guards::{ClientGuard, RollbackMark};
pub use state::{EntryState, EntryView};
pub use tags::Tags;

use crate::{error::ServiceError, ids::only_one, metrics::Traffic};
use blockd_api::{ApiError, ErrorCode, SnapshotName, VolumeName, VolumeRef};
use blockd_catalog::{SnapshotRow, SnapshotState, VolumeRow};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_volume::Volume;
use closed::Opening;
use entries::Entries;
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;
use uuid::Uuid;

struct Inner {
    state: EntryState,
    connections: u64,
    /// Message to clients during a rollback, which fences the volume.
    rolling_back: Option<String>,
}

/// Volume of this host under its name. A renamed volume has another entry, with the same state.
pub struct VolumeEntry {
    /// Its name.
    pub name: VolumeName,
    shared: Arc<VolumeShared>,
}

impl Deref for VolumeEntry {
    type Target = VolumeShared;
    fn deref(&self) -> &VolumeShared {
        &self.shared
    }
}

/// State of a volume, which is the same under each of its names.
pub struct VolumeShared {
    /// Its id.
    pub id: VolumeId,
    /// Creation time.
    pub created: Timestamp,
    tags: Mutex<Tags>,
    /// Held while layers are merged or files removed: never both at once.
    pub layer_changes: Mutex<()>,
    /// Size in its row when the entry was created.
    row_size_bytes: u64,
    read_only: AtomicBool,
    /// User snapshots, for callers that must not wait for the database or a freeze.
    snapshots: Mutex<Arc<Vec<SnapshotPoint>>>,
    /// Held while the costs of a backup or restore are estimated.
    pub estimating: Arc<tokio::sync::Mutex<()>>,
    /// Stops a merge.
    pub stop_merges: AtomicBool,
    /// Latencies of client requests.
    pub traffic: Traffic,
    opening: Opening,
    inner: Mutex<Inner>,
}

/// User snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPoint {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// Last epoch in the snapshot.
    pub epoch: Epoch,
    /// Creation time.
    pub created: Timestamp,
    /// Size of the volume at the time of the snapshot.
    pub size_bytes: u64,
}

impl std::fmt::Debug for VolumeEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeEntry").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl VolumeEntry {
    /// Creates the entry of a row.
    pub fn new(row: &VolumeRow, state: EntryState) -> Arc<Self> {
        let shared = VolumeShared {
            id: row.id,
            row_size_bytes: row.size_bytes,
            read_only: AtomicBool::new(row.read_only),
            snapshots: Mutex::default(),
            tags: Mutex::new(Tags { labels: row.labels.clone(), group: row.group.clone() }),
            created: row.created,
            layer_changes: Mutex::new(()),
            estimating: Arc::default(),
            stop_merges: AtomicBool::new(false),
            traffic: Traffic::default(),
            opening: Opening::default(),
            inner: Mutex::new(Inner { state, connections: 0, rolling_back: None }),
        };
        Arc::new(Self { name: row.name.clone(), shared: Arc::new(shared) })
    }

    /// Returns the size of the volume.
    pub fn size_bytes(&self) -> u64 {
        match &self.inner.lock().state {
            EntryState::Up(volume) => volume.size_bytes(),
            EntryState::Closed(closed) => closed.volume.size_bytes(),
            _ => self.row_size_bytes,
        }
    }

    /// Returns true if NBD clients may only read the volume.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Sets the read-only state, for connected clients as well.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Release);
    }

    /// Returns the labels and the group.
    pub fn tags(&self) -> Tags {
        self.tags.lock().clone()
    }

    /// Sets the labels and the group.
    pub fn set_tags(&self, tags: Tags) {
        *self.tags.lock() = tags;
    }

    /// Makes a user snapshot visible to clients.
    pub fn show_snapshot(&self, row: &SnapshotRow) {
        if row.internal || row.state != SnapshotState::Ready {
            return;
        }
        let found = match self.view().state {
            EntryState::Up(volume) => {
                let found = volume.snapshots().into_iter().find(|info| info.id == row.id);
                found.map(|info| (info.epoch, info.size_bytes))
            }
            EntryState::Closed(closed) => {
                let found = closed.volume.snapshots().iter().find(|found| found.id == row.id);
                found.map(|found| (found.epoch, found.size_bytes))
            }
            _ => None,
        };
        let Some((epoch, size_bytes)) = found else { return };
        let mut shared = self.snapshots.lock();
        let points = Arc::make_mut(&mut shared);
        points.retain(|point| point.id != row.id);
        points.push(SnapshotPoint {
            id: row.id,
            name: row.name.clone(),
            epoch,
            created: row.created,
            size_bytes,
        });
        points.sort_unstable_by_key(|point| point.epoch);
    }

    /// Hides a snapshot from new clients.
    pub fn hide_snapshot(&self, id: SnapshotId) {
        Arc::make_mut(&mut self.snapshots.lock()).retain(|point| point.id != id);
    }

    /// Returns the current user snapshots, oldest first.
    pub fn snapshots(&self) -> Arc<Vec<SnapshotPoint>> {
        Arc::clone(&self.snapshots.lock())
    }

    /// Returns the number of user snapshots.
    pub fn snapshot_count(&self) -> usize {
        self.snapshots.lock().len()
    }

    /// Returns the view of the volume.
    pub fn view(&self) -> EntryView {
        let inner = self.inner.lock();
        EntryView { state: inner.state.clone(), connections: inner.connections }
    }

    /// Returns the open volume; opens it on first use, which blocks.
    ///
    /// # Errors
    /// The volume is not open, with the cause.
    pub fn volume(&self) -> Result<Arc<Volume>, ApiError> {
        self.open_if_closed();
        self.volume_of(&self.inner.lock().state)
    }

    fn volume_of(&self, state: &EntryState) -> Result<Arc<Volume>, ApiError> {
        let name = &self.name;
        let (code, message) = match state {
            EntryState::Up(volume) => return Ok(Arc::clone(volume)),
            EntryState::Closed(closed) => match closed.failure() {
                Some((code, reason)) => {
                    let error = ApiError::new(code, format!("volume {name} cannot be opened: {reason}"));
                    let hint = format!(
                        "remove the cause: the next use opens the volume; or stop blockd and examine it: `blockd --check-volumes {name}`"
                    );
                    return Err(error.with_hint(hint));
                }
                None => (ErrorCode::VolumeNotReady, format!("volume {name} is being opened")),
            },
            EntryState::Creating => (ErrorCode::VolumeNotReady, format!("volume {name} is being created")),
            EntryState::Restoring => (ErrorCode::VolumeNotReady, format!("volume {name} is being restored")),
            EntryState::Failed(reason) => {
                let message = format!("volume {name} cannot be used: {reason}");
                let hint = format!(
                    "restore it from a cloud snapshot, or stop blockd and export what can be read: `blockd --check-volumes {name} --export IMAGE`"
                );
                return Err(ApiError::new(ErrorCode::VolumeFailed, message).with_hint(hint));
            }
            EntryState::Deleting => (ErrorCode::VolumeInUse, format!("volume {name} is being deleted")),
            EntryState::Stopping => (ErrorCode::ShuttingDown, "the daemon is stopping".to_owned()),
        };
        Err(ApiError::new(code, message))
    }

    /// Adds a client connection, which counts until the returned guard is dropped.
    ///
    /// # Errors
    /// The volume is not open, with the cause.
    pub fn connect(self: &Arc<Self>) -> Result<(Arc<Volume>, ClientGuard), ApiError> {
        self.connect_up_to(u64::MAX)
    }

    /// Adds a client connection up to a maximum.
    ///
    /// # Errors
    /// The volume is not open, with the cause, or there are too many connections.
    pub fn connect_up_to(
        self: &Arc<Self>,
        max_connections: u64,
    ) -> Result<(Arc<Volume>, ClientGuard), ApiError> {
        self.open_if_closed();
        let mut inner = self.inner.lock();
        let volume = self.volume_of(&inner.state)?;
        self.check_not_rolling_back(&inner)?;
        let guard = self.add_connection(&mut inner, max_connections)?;
        Ok((volume, guard))
    }

    fn add_connection(
        self: &Arc<Self>,
        inner: &mut Inner,
        max_connections: u64,
    ) -> Result<ClientGuard, ApiError> {
        if inner.connections >= max_connections {
            let name = &self.name;
            let message = format!(
                "volume {name} has {max_connections} NBD connections, and nbd_connections_per_volume allows no more"
            );
            return Err(ApiError::new(ErrorCode::VolumeInUse, message));
        }
        inner.connections += 1;
        Ok(ClientGuard { entry: Arc::clone(self) })
    }

    /// Sets the state.
    pub fn set_state(&self, state: EntryState) {
        self.inner.lock().state = state;
    }

    /// Starts a deletion: no client can connect any more. Returns the previous state for
    /// [`Self::undo_delete`].
    ///
    /// # Errors
    /// Clients are connected, or it is in creation, restore or deletion.
    pub fn begin_delete(&self) -> Result<EntryState, ApiError> {
        self.open_if_closed();
        let mut inner = self.inner.lock();
        let name = &self.name;
        self.check_unused(&inner)?;
        match &inner.state {
            EntryState::Up(_) | EntryState::Closed(_) | EntryState::Failed(_) => {}
            EntryState::Creating => {
                let message = format!("volume {name} is being created: wait for its creation to end");
                return Err(ApiError::new(ErrorCode::VolumeInUse, message));
            }
            EntryState::Restoring => {
                let message = format!("volume {name} is being restored: wait for that task to end");
                return Err(ApiError::new(ErrorCode::VolumeInUse, message));
            }
            EntryState::Deleting => {
                return Err(ApiError::new(ErrorCode::VolumeInUse, format!("volume {name} is being deleted")));
            }
            EntryState::Stopping => {
                return Err(ApiError::new(ErrorCode::ShuttingDown, "the daemon is stopping"));
            }
        }
        let before = std::mem::replace(&mut inner.state, EntryState::Deleting);
        self.stop_merges.store(true, Ordering::Relaxed);
        Ok(before)
    }

    /// Refuses an open volume with clients.
    ///
    /// # Errors
    /// Clients are connected, or it is not open.
    pub fn check_free(&self) -> Result<(), ApiError> {
        self.open_if_closed();
        let inner = self.inner.lock();
        self.volume_of(&inner.state)?;
        self.check_unused(&inner)
    }

    fn check_unused(&self, inner: &Inner) -> Result<(), ApiError> {
        self.check_not_rolling_back(inner)?;
        let (name, clients) = (&self.name, inner.connections);
        if clients == 0 {
            return Ok(());
        }
        let plural = if clients == 1 { "" } else { "s" };
        let message = format!(
            "volume {name} has {clients} NBD connection{plural} or browse read{plural}: disconnect first"
        );
        Err(ApiError::new(ErrorCode::VolumeInUse, message))
    }

    fn check_not_rolling_back(&self, inner: &Inner) -> Result<(), ApiError> {
        let Some(why) = &inner.rolling_back else { return Ok(()) };
        Err(ApiError::new(ErrorCode::VolumeInUse, format!("volume {} {why}", self.name)))
    }

    /// Returns true during a rollback.
    pub fn is_rolling_back(&self) -> bool {
        self.inner.lock().rolling_back.is_some()
    }

    /// Fences clients for a rollback, until the mark is dropped.
    ///
    /// # Errors
    /// Clients are connected, it is not open, or it is being rolled back already.
    pub fn begin_rollback(self: &Arc<Self>) -> Result<(Arc<Volume>, RollbackMark), ApiError> {
        self.open_if_closed();
        let mut inner = self.inner.lock();
        let volume = self.volume_of(&inner.state)?;
        self.check_unused(&inner)?;
        inner.rolling_back = Some("is being rolled back to a snapshot: try again later".to_owned());
        Ok((volume, RollbackMark { entry: Arc::clone(self) }))
    }

    /// Restores the previous state after a deletion that did not start.
    pub fn undo_delete(&self, before: EntryState) {
        let mut inner = self.inner.lock();
        inner.state = before;
        self.stop_merges.store(false, Ordering::Relaxed);
    }
}

/// Callback for a new size of a volume, in bytes. It must not block.
pub type Resized = Box<dyn Fn(&VolumeEntry, u64) + Send + Sync>;

/// Volumes of this host.
#[derive(Default)]
pub struct Registry {
    entries: RwLock<Entries>,
    resized: RwLock<Vec<Resized>>,
    /// Notified after the open of a closed volume found damage or discarded writes.
    pub found: Arc<Notify>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Registry {
    /// Adds a volume, replacing one of the same name.
    pub fn insert(&self, entry: Arc<VolumeEntry>) {
        let _ = entry.opening.found.set(Arc::clone(&self.found));
        self.entries.write().insert(entry);
    }

    /// Registers a callback after each durable growth of a volume.
    pub fn on_resized(&self, listener: Resized) {
        self.resized.write().push(listener);
    }

    /// Reports the new size of a volume to the callbacks.
    pub fn announce_size(&self, entry: &VolumeEntry) {
        let size_bytes = entry.size_bytes();
        for listener in self.resized.read().iter() {
            listener(entry, size_bytes);
        }
    }

    /// Adds a volume if its name is free.
    ///
    /// # Errors
    /// The name is taken.
    pub fn reserve(&self, entry: &Arc<VolumeEntry>) -> Result<(), ApiError> {
        self.entries.write().reserve(entry)
    }

    /// Refuses a name that a volume has.
    pub fn check_free(&self, name: &VolumeName) -> Result<(), ApiError> {
        self.entries.read().check_free(name)
    }

    /// Replaces the entry of a volume by one of another name, if that is free. Holders of the former entry
    /// share its state. No other volume gets the former name until [`end_rename`](Self::end_rename) or
    /// [`undo_rename`](Self::undo_rename).
    ///
    /// # Errors
    /// The name is taken, or the volume is not registered under the name of this entry.
    pub fn rename(&self, entry: &VolumeEntry, name: VolumeName) -> Result<Arc<VolumeEntry>, ApiError> {
        let renamed = Arc::new(VolumeEntry { name, shared: Arc::clone(&entry.shared) });
        self.entries.write().replace(entry, &renamed)?;
        Ok(renamed)
    }

    /// Releases the former name of a renamed volume.
    pub fn end_rename(&self, former: &VolumeEntry) {
        self.entries.write().release(&former.name);
    }

    /// Returns a renamed volume to its former entry.
    pub fn undo_rename(&self, renamed: &VolumeEntry, former: &Arc<VolumeEntry>) {
        self.entries.write().restore(renamed, former);
    }

    /// Removes a volume, under its current name.
    pub fn remove(&self, entry: &VolumeEntry) {
        self.entries.write().remove(entry);
    }

    /// Returns all volumes by name.
    pub fn all(&self) -> Vec<Arc<VolumeEntry>> {
        self.entries.read().all().cloned().collect()
    }

    /// Returns the volume of this name.
    pub fn by_name(&self, name: &str) -> Option<Arc<VolumeEntry>> {
        let name: VolumeName = name.parse().ok()?;
        self.entries.read().get(&name).cloned()
    }

    /// Returns the volume of this id.
    pub fn by_id(&self, id: VolumeId) -> Option<Arc<VolumeEntry>> {
        self.entries.read().all().find(|entry| entry.id == id).cloned()
    }

    /// Returns the name of the volume that a cloud snapshot of this host was made of.
    pub fn source_name(&self, id: &CloudSnapshotId, own_cluster: Uuid) -> Option<VolumeName> {
        let entry = (id.cluster == own_cluster).then(|| self.by_id(id.volume)).flatten();
        entry.map(|entry| entry.name.clone())
    }

    /// Finds a volume by name, id or unique id prefix.
    ///
    /// # Errors
    /// There is none, or the prefix is ambiguous.
    pub fn find(&self, wanted: &VolumeRef) -> Result<Arc<VolumeEntry>, ServiceError> {
        let found = match wanted {
            VolumeRef::Id(id) => match self.by_id(*id) {
                Some(entry) => Some(entry),
                None => {
                    let all = self.all().into_iter().map(|entry| (entry.id.to_string(), entry));
                    only_one("volumes", &id.to_string(), all)?
                }
            },
            VolumeRef::Name(name) => self.entries.read().get(name).cloned(),
        };
        found.ok_or_else(|| {
            ServiceError::refused(ErrorCode::VolumeNotFound, format!("there is no volume {wanted}"))
        })
    }
}

#[cfg(test)]
mod tests;
