//! Services and state that backup tasks work with.

use crate::{
    anomalies::Anomalies, backup::shared_reader::Readers, events::EventLog, host::Host,
    repositories::Repositories, snapshots::Snapshots, tasks::Tasks, volumes::registry::Registry,
};
use blockd_api::{ApiError, quiesce::QuiesceReport};
use blockd_catalog::Db;
use blockd_quiesce::KeyedLocks;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Work of backup tasks.
pub struct BackupWork {
    pub(crate) anomalies: Arc<Anomalies>,
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

/// Failed freezes by their keys. The next failure drops those whose backups have ended and cannot be
/// resumed.
#[derive(Debug, Default)]
pub(crate) struct FailedFreezes(pub(super) HashMap<String, (ApiError, Option<QuiesceReport>)>);

impl FailedFreezes {
    /// Adds a failed freeze, and drops those whose backups have ended.
    pub(super) fn note(
        &mut self,
        key: String,
        why: ApiError,
        report: Option<QuiesceReport>,
        ended: &[String],
    ) {
        ended.iter().for_each(|key| drop(self.0.remove(key)));
        self.0.insert(key, (why, report));
    }

    pub(super) fn find(&self, key: &str) -> Option<(ApiError, Option<QuiesceReport>)> {
        self.0.get(key).cloned()
    }
}
