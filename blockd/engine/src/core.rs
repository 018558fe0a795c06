//! State shared by all parts of the running daemon.

use crate::{
    attachments::Attachments,
    browse::Browse,
    credentials::Repositories,
    failpoints::Failpoints,
    lazy::{CloudSource, Fetcher},
    limits::{LimitPlan, PlannedBandwidth},
    merger::Wake,
    pressure::Pressure,
    reconcile::reconcile,
    registry::{Registry, RollbackMark},
    settings::{Settings, TaskPriority},
    tasks::Tasks,
    webhooks::{Webhook, config::WebhookConfig},
};
use blockd_catalog::{Db, DbError, EventReader};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_nbd_kernel::System;
use blockd_secrets::{References, Secrets, SecretsConfig};
use blockd_store::RetryPolicy;
use blockd_volume::{OpenOptions, Recovery, Reserve};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The daemon's state. Always behind an `Arc`.
#[derive(Debug)]
pub struct Core {
    /// Settings.
    pub settings: Settings,
    /// Data directory, absolute.
    pub data_dir: PathBuf,
    /// The database.
    pub db: Arc<Db>,
    /// Encryption of stored secrets.
    pub secrets: Secrets,
    /// Resolver of external secrets.
    pub references: Arc<References>,
    /// The volumes.
    pub registry: Arc<Registry>,
    /// Volumes attached as kernel block devices.
    pub attachments: Attachments,
    /// Opened repositories.
    pub repositories: Repositories,
    /// Background tasks.
    pub tasks: Tasks,
    /// Bandwidth limits over all tasks of the host.
    pub bandwidth: Arc<PlannedBandwidth>,
    /// Throttling of tasks in favour of guests.
    pub pressure: Arc<Pressure>,
    /// Fetcher of remote data for lazy volumes.
    pub fetcher: Arc<Fetcher>,
    /// Sources of the lazy volumes.
    pub lazy_sources: parking_lot::Mutex<HashMap<VolumeId, Arc<CloudSource>>>,
    /// Fences that keep clients out of volumes during a rollback to a cloud snapshot.
    pub going_back: parking_lot::Mutex<HashMap<VolumeId, RollbackMark>>,
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
    /// Open browse mounts and images.
    pub browse: Browse,
    /// Wakes the merge thread.
    pub merger: Arc<Wake>,
    /// Disk space reserved for operations that free space; `None` if the filesystem cannot reserve any.
    pub reserve: Option<Arc<Reserve>>,
    /// Subscribers to events.
    pub events: crate::events::Events,
    /// Webhooks that receive events.
    pub webhooks: Vec<Arc<Webhook>>,
    /// Position of the log among the event readers; `None` if events are not logged.
    pub log_reader: Option<EventReader>,
    /// Known problems of the daemon.
    pub health: crate::health::Health,
    /// Metrics of store requests.
    pub meters: crate::metrics::Meters,
    /// Wakes the scheduler task.
    pub scheduler: crate::schedules::Scheduler,
    /// Held while an operation is admitted that excludes another one: a task on a volume and the volume's
    /// deletion.
    pub admission: tokio::sync::Mutex<()>,
    /// Snapshots that failed and could not be removed yet.
    pub to_undo: parking_lot::Mutex<Vec<(VolumeId, SnapshotId)>>,
    /// State of quiesced filesystems and applications.
    pub quiescing: blockd_quiesce::Admission,
    /// Rules that cannot be applied on this host.
    pub rule_problems: crate::rules::RuleProblems,
    /// Steps at which tests act.
    pub failpoints: Arc<Failpoints>,
}

/// Arguments of [`Core::open`].
#[derive(Debug)]
pub struct OpenCore {
    /// Data directory, absolute; it exists and is locked.
    pub data_dir: PathBuf,
    /// Settings.
    pub settings: Settings,
    /// Priority of tasks that move data.
    pub task_priority: TaskPriority,
    /// Bandwidth limits over all tasks of the host.
    pub bandwidth: LimitPlan,
    /// External secrets.
    pub secrets: SecretsConfig,
    /// Event receivers.
    pub webhooks: Vec<WebhookConfig>,
    /// Events are written to the log.
    pub logs_events: bool,
    /// Volumes are served to other hosts.
    pub listens_on_tcp: bool,
    /// Recover as after a power loss, whatever the boot id says.
    pub after_power_loss: bool,
    /// Kernel devices.
    pub system: System,
}

/// Reasons why the state cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The database cannot be used.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl OpenError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Db(error) if error.is_retryable())
    }
}

impl Core {
    /// Opens the database and all volumes, and completes or undoes interrupted operations. Blocks.
    ///
    /// # Errors
    /// The database cannot be used, or a thread not be started.
    pub fn open(options: OpenCore) -> Result<Self, OpenError> {
        let OpenCore { data_dir, settings, .. } = options;
        let db = Db::open(&data_dir.join("blockd.db"))?;
        let cluster = db.cluster_id()?;
        let systemd = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let secrets = Secrets::load(&data_dir, systemd.as_deref());
        if let Some(problem) = secrets.problem() {
            tracing::error!(error = %problem, "unsealing credentials is not possible");
        }
        let recovery = if options.after_power_loss { Recovery::AfterPowerLoss } else { Recovery::Auto };
        let serves_remote = db.serves_remote(options.listens_on_tcp)?;
        let registry = reconcile(&db, &data_dir, &OpenOptions { recovery, serves_remote })?;
        let pressure =
            Pressure::new(options.task_priority, settings.cpu_threads).map_err(OpenError::Thread)?;
        let readers = event_readers(&db, &options.webhooks, options.logs_events)?;
        let reserve = Reserve::open(&data_dir).inspect_err(|error| {
            tracing::warn!(dir = %data_dir.display(), %error, "reserving disk space for snapshot deletion on a full disk failed");
        });
        let stopping = CancellationToken::new();
        Ok(Self {
            tasks: Tasks::new(settings.task_concurrency),
            webhooks: crate::webhooks::all(&options.webhooks, &readers),
            log_reader: readers.into_iter().find(|reader| reader.name == crate::events::LOG_READER),
            pressure: Arc::new(pressure),
            bandwidth: PlannedBandwidth::new(options.bandwidth, Timestamp::now()),
            fetcher: Arc::default(),
            lazy_sources: parking_lot::Mutex::default(),
            going_back: parking_lot::Mutex::default(),
            attachments: Attachments::new(cluster, data_dir.join("nbd.sock"), options.system),
            settings,
            data_dir,
            db: Arc::new(db),
            secrets,
            references: References::new(&options.secrets, systemd.as_deref()),
            registry: Arc::new(registry),
            repositories: Repositories::default(),
            cluster,
            run: Uuid::new_v4(),
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            started: Instant::now(),
            browse: Browse::default(),
            merger: Arc::new(Wake::default()),
            reserve: reserve.ok().map(Arc::new),
            events: crate::events::Events::default(),
            health: crate::health::Health::default(),
            meters: crate::metrics::Meters::default(),
            scheduler: crate::schedules::Scheduler::default(),
            admission: tokio::sync::Mutex::new(()),
            to_undo: parking_lot::Mutex::default(),
            quiescing: blockd_quiesce::Admission::default(),
            rule_problems: crate::rules::RuleProblems::default(),
            failpoints: Arc::new(Failpoints::new(stopping.clone())),
            stopping,
        })
    }

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

    /// Returns the retry policy of store requests.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.settings.store_attempts,
            request_timeout_ms: self.settings.store_timeout_ms,
            ..RetryPolicy::default()
        }
    }
}

/// Returns the event readers of webhooks and the log, each with its position.
fn event_readers(
    db: &Db,
    webhooks: &[WebhookConfig],
    logs_events: bool,
) -> Result<Vec<EventReader>, DbError> {
    let mut names: Vec<_> = webhooks.iter().map(crate::webhooks::reader_name).collect();
    if logs_events {
        names.push(crate::events::LOG_READER.to_owned());
    }
    db.transaction(|tx| EventReader::take_up(tx, &names))
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
