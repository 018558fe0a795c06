//! Construction of the services, each from those below it.

use crate::{
    anomalies::Anomalies,
    backup::{Backups, work::BackupWork},
    cloud_snapshots::{CloudSnapshots, delete_requests::Deletions, delete_task::DeleteWork},
    credentials::Credentials,
    data_dir::DataDir,
    drills::{Drills, task::DrillWork},
    events::{
        EventLog,
        webhook_config::WebhookConfig,
        webhooks::{Webhook, WebhookDelivery},
    },
    failpoints::Failpoints,
    free_space::FreeSpace,
    health::ComponentHealth,
    host::{Admission, Host},
    leases::Leases,
    maintenance::{Maintenance, verify_task::VerifyWork},
    metrics::Meters,
    monitor::Monitor,
    names::Names,
    proofs::Proofs,
    quiesce::Quiescer,
    readers::SnapshotReaders,
    repair::{Repairs, task::RepairWork},
    repositories::{
        Repositories,
        limits::{LimitPlan, PlannedBandwidth},
    },
    restore::{
        Restores,
        full::RestoreWork,
        in_place::InPlaceWork,
        lazy::{LazyVolumes, hydrate::HydrationWork},
    },
    schedules::{
        requests::Schedules, retention_checks::RetentionChecks, runner::ScheduleRunner, wake::Scheduler,
    },
    scrub::{Scrubs, task::ScrubWork},
    settings::{Settings, TaskPriority},
    snapshots::Snapshots,
    tasks::{Tasks, runner::Runner, workers::TaskWorkers},
    volumes::{
        Volumes,
        attachments::{Attachments, requests::Devices},
        merger::Wake,
        reconcile::reconcile,
        registry::Registry,
    },
};
use blockd_catalog::{Db, DbError, EventReader};
use blockd_nbd_kernel::System;
use blockd_quiesce::Admission as QuiesceAdmission;
use blockd_secrets::{References, Secrets, SecretsConfig};
use blockd_volume::{OpenOptions, Recovery, Reserve};
use jiff::Timestamp;
use std::{path::PathBuf, sync::Arc, time::Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Creates a service from the services of the same names, and with its own state empty.
macro_rules! service {
    ($service:ident { $($part:ident),* } $($state:ident),*) => {
        Arc::new($service { $($part: $part.clone(),)* $($state: Default::default(),)* })
    };
}

/// The services.
pub struct Engine {
    /// This run of the daemon.
    pub host: Arc<Host>,
    /// Volumes of this process.
    pub registry: Arc<Registry>,
    /// Database.
    pub db: Arc<Db>,
    /// Volumes attached as kernel block devices.
    pub attachments: Arc<Attachments>,
    /// Known problems.
    pub health: Arc<ComponentHealth>,
    /// Resolver of external secrets.
    pub references: Arc<References>,
    /// Threads of tasks, which yield to active guests.
    pub task_workers: Arc<TaskWorkers>,
    /// Disk space reserved for operations that free space; `None` if the filesystem cannot reserve any.
    pub reserve: Option<Arc<Reserve>>,
    /// Wakes the merge thread.
    pub merger: Arc<Wake>,
    /// Wakes the scheduler.
    pub scheduler: Arc<Scheduler>,
    /// State of quiesced filesystems and applications.
    pub quiescing: Arc<QuiesceAdmission>,
    /// Held while an operation is admitted that excludes another one.
    pub admission: Arc<Admission>,
    /// Events: stores, lists and waits for them.
    pub events: Arc<EventLog>,
    /// Watches the free space of the data directory.
    pub free_space: Arc<FreeSpace>,
    /// Repositories.
    pub repositories: Arc<Repositories>,
    /// Stores, renews and imports leases.
    pub leases: Arc<Leases>,
    /// Publishes and imports proofs.
    pub proofs: Arc<Proofs>,
    /// Table of tasks.
    pub tasks: Arc<Tasks>,
    /// Quiesces applications and filesystems by the rules that apply.
    pub quiescer: Arc<Quiescer>,
    /// Attaches volumes as kernel block devices.
    pub devices: Arc<Devices>,
    /// Local snapshots.
    pub snapshots: Arc<Snapshots>,
    /// Lazy volumes and the sources of their blocks.
    pub lazy: Arc<LazyVolumes>,
    /// Detects anomalies of backups.
    pub anomalies: Arc<Anomalies>,
    /// Work of backup tasks.
    pub backup_work: Arc<BackupWork>,
    /// Work of in-place restores.
    pub in_place_work: Arc<InPlaceWork>,
    /// Starts, stops and resumes tasks.
    pub runner: Arc<Runner>,
    /// Restore drills.
    pub drills: Arc<Drills>,
    /// Repairs of damaged cloud snapshots.
    pub repairs: Arc<Repairs>,
    /// Schedules and their policies.
    pub schedules: Arc<Schedules>,
    /// Restores.
    pub restores: Arc<Restores>,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// Backups.
    pub backups: Arc<Backups>,
    /// Listing and inspection of cloud snapshots.
    pub cloud_snapshots: Arc<CloudSnapshots>,
    /// Deletions of cloud snapshots, their pins and expiries.
    pub deletions: Arc<Deletions>,
    /// Garbage collection and background verification.
    pub maintenance: Arc<Maintenance>,
    /// Scrubs of local data.
    pub scrubs: Arc<Scrubs>,
    /// Runs the schedules and their retention.
    pub schedule_runner: Arc<ScheduleRunner>,
    /// Credentials of repositories.
    pub credentials: Arc<Credentials>,
    /// Delivers events to webhooks.
    pub webhook_delivery: Arc<WebhookDelivery>,
    /// Activity and metrics of the daemon.
    pub monitor: Arc<Monitor>,
    /// Resolves abbreviated ids.
    pub names: Arc<Names>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Arguments of [`Engine::open`].
#[derive(Debug)]
pub struct OpenEngine {
    /// Data directory, which exists and is locked.
    pub data_dir: DataDir,
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
    /// Recover as after a power loss, regardless of the boot id.
    pub after_power_loss: bool,
    /// Kernel devices.
    pub system: System,
    /// Readers of snapshots outside of the engine.
    pub readers: Arc<dyn SnapshotReaders>,
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

impl Engine {
    /// Opens the database and all volumes, and completes or undoes interrupted operations. Blocks.
    ///
    /// # Errors
    /// The database cannot be used, or a thread not be created.
    pub fn open(options: OpenEngine) -> Result<Self, OpenError> {
        let OpenEngine { data_dir, settings, .. } = options;
        let db = Db::open(&data_dir.database())?;
        let cluster = db.cluster_id()?;
        let systemd = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let secrets = Secrets::load(&data_dir, systemd.as_deref());
        if let Some(problem) = secrets.problem() {
            tracing::error!(error = %problem, "loading the sealing key of the credentials failed");
        }
        let recovery = if options.after_power_loss { Recovery::AfterPowerLoss } else { Recovery::Auto };
        let serves_remote = db.serves_remote(options.listens_on_tcp)?;
        let registry = reconcile(&db, &data_dir, &OpenOptions { recovery, serves_remote })?;
        let task_workers =
            TaskWorkers::new(options.task_priority, settings.cpu_threads).map_err(OpenError::Thread)?;
        let readers = event_readers(&db, &options.webhooks, options.logs_events)?;
        let reserve = Reserve::open(&data_dir).inspect_err(|error| {
            tracing::warn!(dir = %data_dir.display(), %error, "reserving disk space for snapshot deletion on a full disk failed");
        });
        let log_reader = readers.iter().find(|reader| reader.name == crate::events::LOG_READER).cloned();
        let stopping = CancellationToken::new();
        let host = Arc::new(Host {
            cluster,
            run: Uuid::new_v4(),
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            started: Instant::now(),
            failpoints: Failpoints::new(stopping.clone()),
            stopping,
            data_dir,
            settings,
        });
        Ok(Self::assemble(Parts {
            attachments: Arc::new(Attachments::new(cluster, host.data_dir.nbd_socket(), options.system)),
            host,
            db: Arc::new(db),
            secrets: Arc::new(secrets),
            references: References::new(&options.secrets, systemd.as_deref()),
            registry: Arc::new(registry),
            task_workers: Arc::new(task_workers),
            bandwidth: PlannedBandwidth::new(options.bandwidth, Timestamp::now()),
            reserve: reserve.ok().map(Arc::new),
            webhooks: crate::events::webhooks::all(&options.webhooks, &readers),
            log_reader,
            readers: options.readers,
        }))
    }

    /// Creates the services, from the bottom to the top.
    #[rustfmt::skip]
    fn assemble(parts: Parts) -> Self {
        let Parts { host, db, secrets, references, registry, attachments, task_workers, bandwidth, reserve, .. } = parts;
        let Parts { webhooks, log_reader, readers, .. } = parts;
        let merger: Arc<Wake> = Arc::default();
        let health: Arc<ComponentHealth> = Arc::default();
        let meters: Arc<Meters> = Arc::default();
        let scheduler: Arc<Scheduler> = Arc::default();
        let admission: Arc<Admission> = Arc::default();
        let quiescing: Arc<QuiesceAdmission> = Arc::default();
        let slots = Arc::new(Semaphore::new(host.settings.task_concurrency));
        let events = service!(EventLog { db, host, registry } stored, degraded);
        let free_space = service!(FreeSpace { db, events, health, host });
        let repositories = service!(Repositories { bandwidth, db, events, health, host, meters, task_workers,
            references, secrets } proven, opened, opened_with, unopened, refused, stores, changes);
        let proofs = service!(Proofs { db, events, host, registry, repositories } refused, seen);
        let leases = service!(Leases { db, events, health, host, registry, repositories } failed);
        let checks = service!(RetentionChecks { db, events, health, host, leases, registry, repositories });
        let tasks = service!(Tasks { readers, db, host, references, repositories, slots } live, running, closed, ended);
        let quiescer = service!(Quiescer { attachments, db, events, host, quiescing, registry } rule_problems);
        let devices = service!(Devices { admission, attachments, db, registry });
        let snapshots = service!(Snapshots { admission, attachments, readers, db, events, host, merger,
            quiescer, quiescing, registry, reserve, scheduler, tasks } to_undo);
        let lazy = service!(LazyVolumes { db, host, leases, registry, repositories } fetcher, lazy_sources,
            reporting);
        let anomalies = service!(Anomalies { db, host, registry, scheduler });
        let backup_work = service!(BackupWork { anomalies, db, events, host, registry, repositories, snapshots, tasks
            } shared_readers, freezing, failed);
        let restore_work = service!(RestoreWork { db, host, merger, registry, repositories, tasks });
        let hydration_work = service!(HydrationWork { host, lazy, merger, registry, tasks });
        let in_place_work = service!(InPlaceWork { admission, lazy, db, host, merger, registry, snapshots,
            tasks } fences);
        let delete_work = service!(DeleteWork { db, host, lazy, registry, snapshots, tasks });
        let verify_work = service!(VerifyWork { db, host, proofs, registry, repositories, snapshots, tasks });
        let repair_work = service!(RepairWork { db, host, registry, repositories, snapshots, tasks });
        let drill_work = service!(DrillWork { attachments, db, health, host, proofs, registry, repositories, tasks } turn);
        let scrub_work = service!(ScrubWork { db, events, health, host, registry, repositories, task_workers,
            tasks } totals);
        let runner = service!(Runner { admission, backup_work, checks, db, delete_work, drill_work, events, health,
            host, hydration_work, in_place_work, task_workers, registry, repair_work, restore_work,
            scheduler, scrub_work, tasks, verify_work });
        let scrubs = service!(Scrubs { db, host, registry, runner, scrub_work, tasks });
        let schedules = service!(Schedules { db, host, quiescer, registry, repositories, scheduler, tasks });
        let restores = service!(Restores { admission, attachments, db, in_place_work, lazy, registry,
            repositories, runner, tasks });
        let volumes = service!(Volumes { admission, attachments, readers, db, events, health, host,
            in_place_work, lazy, merger, registry, restores, runner, schedules, snapshots, tasks } reported_losses);
        let backups = service!(Backups { admission, host, quiescer, registry, repositories, runner, snapshots, tasks });
        let cloud_snapshots = service!(CloudSnapshots { db, host, lazy, leases, proofs, registry, repositories });
        let drills = service!(Drills { admission, attachments, cloud_snapshots, db, host, registry, repositories, runner, snapshots });
        let deletions = service!(Deletions { admission, checks, cloud_snapshots, db, delete_work, host, leases,
            registry, repositories, runner, scheduler, tasks });
        let repairs = service!(Repairs { admission, db, deletions, host, registry, repositories, runner, tasks } deletions_started);
        let maintenance = service!(Maintenance { admission, backup_work, checks, db, deletions, events, health,
            host, lazy, leases, proofs, registry, repairs, repositories, runner, scrubs, tasks } plan);
        let schedule_runner = service!(ScheduleRunner { backups, checks, db, deletions, drills, events, health,
            host, quiescer, registry, repositories, runner, scheduler, schedules, snapshots, tasks });
        let credentials = service!(Credentials { admission, readers, db, health, host, lazy, meters,
            references, registry, repositories, runner, schedules, secrets, snapshots, tasks });
        let webhook_delivery = service!(WebhookDelivery { db, events, host, log_reader, references, webhooks });
        let monitor = service!(Monitor { readers, db, free_space, health, host, meters, quiescing,
            registry, repositories, schedules, scrub_work, tasks, volumes, webhook_delivery });
        let names = service!(Names { registry, repositories, snapshots });
        Self {
            host, reserve, registry, db, attachments, health, references, task_workers, merger, scheduler,
            quiescing, admission, events, free_space, repositories, tasks, quiescer, devices, snapshots,
            lazy, leases, anomalies, backup_work, in_place_work, runner, schedules, restores, volumes, backups,
            cloud_snapshots, deletions, drills, repairs, proofs, maintenance, scrubs, schedule_runner,
            credentials, webhook_delivery, monitor, names,
        }
    }
}

/// Parts that the services rest on.
struct Parts {
    readers: Arc<dyn SnapshotReaders>,
    host: Arc<Host>,
    db: Arc<Db>,
    secrets: Arc<Secrets>,
    references: Arc<References>,
    registry: Arc<Registry>,
    attachments: Arc<Attachments>,
    task_workers: Arc<TaskWorkers>,
    bandwidth: Arc<PlannedBandwidth>,
    reserve: Option<Arc<Reserve>>,
    webhooks: Vec<Arc<Webhook>>,
    log_reader: Option<EventReader>,
}

/// Returns the event readers of webhooks and the log, each with its position.
fn event_readers(
    db: &Db,
    webhooks: &[WebhookConfig],
    logs_events: bool,
) -> Result<Vec<EventReader>, DbError> {
    let mut names: Vec<_> = webhooks.iter().map(crate::events::webhooks::reader_name).collect();
    if logs_events {
        names.push(crate::events::LOG_READER.to_owned());
    }
    db.transaction(|tx| EventReader::reconcile(tx, &names))
}
