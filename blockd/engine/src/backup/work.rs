//! Services and state that backup tasks work with.

use crate::{
    backup::{freeze::FailedFreezes, shared_reader::Readers},
    events::EventLog,
    host::Host,
    repositories::Repositories,
    snapshots::Snapshots,
    tasks::Tasks,
    volumes::registry::Registry,
};
use blockd_catalog::Db;
use blockd_quiesce::KeyedLocks;
use parking_lot::Mutex;
use std::sync::Arc;

/// Work of backup tasks.
pub struct BackupWork {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
    /// Snapshots that backups read.
    pub(crate) shared_readers: Arc<Readers>,
    /// Serializes the freezes of backups that share a snapshot.
    pub(crate) freezing: KeyedLocks,
    /// Failed freezes.
    pub(crate) failed: Mutex<FailedFreezes>,
}
