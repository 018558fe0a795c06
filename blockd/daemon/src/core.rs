//! State shared by all parts of the running daemon.

use crate::{
    attachments::Attachments,
    browse::Browse,
    config::Config,
    credentials::Repositories,
    lazy::{CloudSource, Fetcher},
    limits::PlannedBandwidth,
    merger::Wake,
    pressure::Pressure,
    registry::{Registry, RollbackMark},
    tasks::Tasks,
};
use blockd_catalog::Db;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_secrets::References;
use blockd_secrets::Secrets;
use blockd_store::RetryPolicy;
use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The daemon's state. Always behind an `Arc`.
#[derive(Debug)]
pub struct Core {
    /// The configuration.
    pub config: Config,
    /// Data directory, absolute.
    pub data_dir: PathBuf,
    /// The database.
    pub db: Arc<Db>,
    /// Encryption of stored secrets.
    pub secrets: Secrets,
    /// Resolver of external secrets.
    pub(crate) references: Arc<References>,
    /// The volumes.
    pub registry: Arc<Registry>,
    /// Volumes attached as kernel block devices.
    pub attachments: Attachments,
    /// Opened repositories.
    pub repositories: Repositories,
    /// Background tasks.
    pub tasks: Tasks,
    /// Bandwidth limits over all tasks of the host.
    pub(crate) bandwidth: Arc<PlannedBandwidth>,
    /// Throttling of tasks in favour of guests.
    pub(crate) pressure: Arc<Pressure>,
    /// Fetcher of remote data for lazy volumes.
    pub fetcher: Arc<Fetcher>,
    /// Sources of the lazy volumes.
    pub lazy_sources: parking_lot::Mutex<HashMap<VolumeId, Arc<CloudSource>>>,
    /// Fences that keep clients out of volumes during a rollback to a cloud snapshot.
    pub(crate) going_back: parking_lot::Mutex<HashMap<VolumeId, RollbackMark>>,
    /// Id of this installation.
    pub cluster: Uuid,
    /// Id of this run of the daemon.
    pub run: Uuid,
    /// Name of this host.
    pub node: String,
    /// Start time.
    pub started: Instant,
    /// Cancelled when the daemon stops.
    pub stopping: CancellationToken,
    /// TCP addresses of the NBD listeners, once they are bound.
    pub nbd_tcp: OnceLock<Vec<SocketAddr>>,
    /// Address of the metrics endpoint, once it is bound.
    pub(crate) metrics_tcp: OnceLock<SocketAddr>,
    /// TCP address of the control API, once it is bound.
    pub(crate) control_tcp: OnceLock<SocketAddr>,
    /// Open browse mounts and images.
    pub browse: Browse,
    /// Wakes the merge thread.
    pub merger: Arc<Wake>,
    /// Disk space reserved for operations that free space; `None` if the filesystem cannot reserve any.
    pub(crate) reserve: Option<Arc<blockd_volume::Reserve>>,
    /// Subscribers to events.
    pub(crate) events: crate::events::Events,
    /// Webhooks that receive events.
    pub(crate) webhooks: Vec<Arc<crate::webhooks::Webhook>>,
    /// Position of the log among the event readers; `None` if events are not logged.
    pub(crate) log_reader: Option<blockd_catalog::EventReader>,
    /// Known problems of the daemon.
    pub(crate) health: crate::health::Health,
    /// Metrics of store requests.
    pub(crate) meters: crate::metrics::Meters,
    /// Wakes the scheduler task.
    pub(crate) scheduler: crate::schedules::Scheduler,
    /// Held while an operation is admitted that excludes another one: a task on a volume and the volume's
    /// deletion.
    pub admission: tokio::sync::Mutex<()>,
    /// Snapshots that failed and could not be removed yet.
    pub(crate) to_undo: parking_lot::Mutex<Vec<(VolumeId, SnapshotId)>>,
    /// State of quiesced filesystems and applications.
    pub(crate) quiescing: blockd_quiesce::Admission,
    /// Rules that cannot be applied on this host.
    pub(crate) rule_problems: crate::rules::RuleProblems,
    /// Failure of the last configuration reload, if it failed.
    pub(crate) reload_failed: parking_lot::Mutex<Option<blockd_api::status::ReloadFailure>>,
    /// Step at which a test makes the daemon die.
    #[cfg(test)]
    pub(crate) dies_at: parking_lot::Mutex<Option<&'static str>>,
    /// Failpoints: actions of a test at a step.
    #[cfg(test)]
    pub(crate) failpoint: crate::failpoint::Failpoint,
}

impl Core {
    /// Returns the path of the control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("blockd.sock")
    }

    /// Returns the path of the default NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.data_dir.join("nbd.sock")
    }

    /// Returns the directory of a volume.
    pub fn volume_dir(&self, id: VolumeId) -> PathBuf {
        volume_dir(&self.data_dir, id)
    }

    /// Returns the directory with the resume state of a task.
    pub fn task_dir(&self, id: Uuid) -> PathBuf {
        tasks_dir(&self.data_dir).join(id.to_string())
    }

    /// Marks the end of a step of a task. The daemon may be killed between any two steps; tests stop it here.
    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "the test variant uses both")]
    pub(crate) fn reached(&self, _step: &'static str) -> Result<(), crate::error::ServiceError> {
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn reached(&self, step: &'static str) -> Result<(), crate::error::ServiceError> {
        self.failpoint.reached(self, step);
        if *self.dies_at.lock() == Some(step) {
            self.stopping.cancel();
            return Err(crate::error::ServiceError::Stopping);
        }
        Ok(())
    }

    /// Returns the retry policy of store requests.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.config.store_attempts,
            request_timeout_ms: self.config.store_timeout_ms,
            ..RetryPolicy::default()
        }
    }
}

/// Returns the directory of a volume.
pub fn volume_dir(data_dir: &Path, id: VolumeId) -> PathBuf {
    data_dir.join("volumes").join(id.to_string())
}

/// Returns the directory of the tasks' files.
pub fn tasks_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("tasks")
}

/// Generates a random non-zero id.
///
/// # Errors
/// The system provides no random bytes.
pub fn random_id() -> Result<u64, blockd_secrets::SecretsError> {
    loop {
        let mut bytes = [0; 8];
        blockd_secrets::fill_random(&mut bytes)?;
        // Below 2^63, so that no tool reads it as a negative number.
        let number = u64::from_le_bytes(bytes) >> 1;
        if number != 0 {
            return Ok(number);
        }
    }
}
