//! What every part of the running daemon shares.

use crate::{
    attachments::Attachments,
    browse::Browse,
    config::Config,
    credentials::Repositories,
    db::Db,
    lazy::{CloudSource, Fetcher},
    limits::PlannedBandwidth,
    merger::Wake,
    pressure::Pressure,
    references::References,
    registry::{Registry, RollbackMark},
    secrets::Secrets,
    tasks::Tasks,
};
use blockd_cloud::{CancelToken, store::RetryPolicy};
use blockd_extent::{SnapshotId, VolumeId};
use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Instant,
};
use uuid::Uuid;

/// The daemon's state. Always behind an `Arc`.
#[derive(Debug)]
pub struct Core {
    /// The configuration.
    pub config: Config,
    /// Where everything is, absolute.
    pub data_dir: PathBuf,
    /// The database.
    pub db: Arc<Db>,
    /// Sealing of secrets.
    pub secrets: Secrets,
    /// Fetches secrets that lie elsewhere.
    pub(crate) references: Arc<References>,
    /// The volumes.
    pub registry: Arc<Registry>,
    /// The volumes that are devices of the kernel.
    pub attachments: Attachments,
    /// Opened repositories.
    pub repositories: Repositories,
    /// Background tasks.
    pub tasks: Tasks,
    /// What all tasks of the host together may move.
    pub(crate) bandwidth: Arc<PlannedBandwidth>,
    /// How the work of tasks is done, so that guests come first.
    pub(crate) pressure: Arc<Pressure>,
    /// What fetches for lazy volumes.
    pub fetcher: Arc<Fetcher>,
    /// The sources of the lazy volumes.
    pub lazy_sources: parking_lot::Mutex<HashMap<VolumeId, Arc<CloudSource>>>,
    /// What keeps clients out of the volumes that go back to a cloud snapshot.
    pub(crate) going_back: parking_lot::Mutex<HashMap<VolumeId, RollbackMark>>,
    /// The id of this installation.
    pub cluster: Uuid,
    /// The id of this run of the daemon.
    pub run: Uuid,
    /// The name of this host.
    pub node: String,
    /// Since when it runs.
    pub started: Instant,
    /// Cancelled when the daemon stops.
    pub stopping: CancelToken,
    /// The TCP addresses that NBD is served at, once it is.
    pub nbd_tcp: OnceLock<Vec<SocketAddr>>,
    /// The address that metrics are served at, once they are.
    pub(crate) metrics_tcp: OnceLock<SocketAddr>,
    /// Where the control API is served over TCP.
    pub(crate) control_tcp: OnceLock<SocketAddr>,
    /// What is open for looking into.
    pub browse: Browse,
    /// Wakes the thread that merges layers.
    pub merger: Arc<Wake>,
    /// Disk space kept for operations that free space; `None` where the filesystem gives none.
    pub(crate) reserve: Option<Arc<blockd_volume::Reserve>>,
    /// Who waits for events.
    pub(crate) events: crate::events::Events,
    /// Who is told of events.
    pub(crate) webhooks: Vec<Arc<crate::webhooks::Webhook>>,
    /// How far the log was told of events, if it is.
    pub(crate) log_reader: Option<crate::db::EventReader>,
    /// What keeps it from its work.
    pub(crate) health: crate::health::Health,
    /// What is asked of the stores.
    pub(crate) meters: crate::metrics::Meters,
    /// Wakes the task that looks at the schedules.
    pub(crate) scheduler: crate::schedules::Scheduler,
    /// Held while something is admitted that excludes something else: a task on a volume and the volume's
    /// deletion.
    pub admission: tokio::sync::Mutex<()>,
    /// Snapshots that did not come about and could not be taken back yet.
    pub(crate) to_undo: parking_lot::Mutex<Vec<(VolumeId, SnapshotId)>>,
    /// Who may bring something to rest now.
    pub(crate) resting: crate::quiesce::Resting,
    /// Rules that cannot be followed here.
    pub(crate) rule_problems: crate::rules::RuleProblems,
    /// Why the last reload of the configuration failed, if it did.
    pub(crate) reload_failed: parking_lot::Mutex<Option<blockd_api::status::ReloadFailure>>,
    /// The step at which a test wants the daemon to die.
    #[cfg(test)]
    pub(crate) dies_at: parking_lot::Mutex<Option<&'static str>>,
    /// What happens at a step because a test wants it.
    #[cfg(test)]
    pub(crate) meanwhile: crate::meanwhile::Meanwhile,
}

impl Core {
    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("blockd.sock")
    }

    /// The NBD socket that is always there.
    pub fn nbd_socket(&self) -> PathBuf {
        self.data_dir.join("nbd.sock")
    }

    /// Where a volume's files are.
    pub fn volume_dir(&self, id: VolumeId) -> PathBuf {
        volume_dir(&self.data_dir, id)
    }

    /// Where a task keeps what it needs to go on after a restart.
    pub fn task_dir(&self, id: Uuid) -> PathBuf {
        tasks_dir(&self.data_dir).join(id.to_string())
    }

    /// Marks the end of a step of a task; between any two of them the daemon may be killed. Tests make it
    /// stop there.
    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests have another one")]
    pub(crate) fn reached(&self, _step: &'static str) -> Result<(), crate::error::ServiceError> {
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn reached(&self, step: &'static str) -> Result<(), crate::error::ServiceError> {
        self.meanwhile.reached(self, step);
        if *self.dies_at.lock() == Some(step) {
            self.stopping.cancel();
            return Err(crate::error::ServiceError::Stopping);
        }
        Ok(())
    }

    /// How requests to stores are retried.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.config.store_attempts,
            request_timeout_ms: self.config.store_timeout_ms,
            ..RetryPolicy::default()
        }
    }
}

/// Where a volume's files are.
pub fn volume_dir(data_dir: &Path, id: VolumeId) -> PathBuf {
    data_dir.join("volumes").join(id.to_string())
}

/// Where tasks keep their files.
pub fn tasks_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("tasks")
}

/// A random id that is no other's.
///
/// # Errors
/// The system has no random bytes.
pub fn random_id() -> Result<u64, crate::secrets::SecretsError> {
    loop {
        let mut bytes = [0; 8];
        crate::secrets::fill_random(&mut bytes)?;
        // Below 2^63, so that no tool takes it for a negative number.
        let number = u64::from_le_bytes(bytes) >> 1;
        if number != 0 {
            return Ok(number);
        }
    }
}
