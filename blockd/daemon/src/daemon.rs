//! Start and stop of the daemon, in an order that loses no data.
//!
//! Start: directory, lock, database, volumes, NBD, attached devices, control socket, readiness, then
//! unfinished tasks. Stop: no new requests, tasks to a point from which they can resume, NBD, merges, then
//! the volumes are flushed and closed.

use crate::{
    access::Access,
    activation::Passed,
    attachments::Attachments,
    browse::Browse,
    config::{Config, ConfigError, LogFormat},
    control::Control,
    core::{Core, tasks_dir},
    credentials::Repositories,
    error::ServiceError,
    health, http,
    limits::PlannedBandwidth,
    lock::{DirLock, LockError},
    merger::{Merger, Wake},
    nbd::{self, Certificates},
    pressure::Pressure,
    reconcile::reconcile,
    registry::EntryState,
    supervisor::Supervisor,
    tasks::Tasks,
    watchdog,
};
use blockd_catalog::{Db, DbError, EventReader};
use blockd_nbd::{NbdError, Server, TlsError};
use blockd_nbd_kernel::System;
use blockd_secrets::References;
use blockd_secrets::Secrets;
use blockd_volume::{OpenOptions, Recovery};
use jiff::Timestamp;
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, set_dumpable_behavior},
};
use std::{
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Maximum length of a Unix socket path, in bytes: one less than `sun_path`, for the terminating zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Timeout of a stop for post-freeze commands: less than systemd's stop timeout.
const POST_HOOK_TIMEOUT: Duration = Duration::from_secs(180);

/// Delay before binding the metrics address is retried.
const METRICS_RETRY_DELAY: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(15) };

/// Reasons why the daemon could not start, or not stop cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The data directory is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The database cannot be used.
    #[error(transparent)]
    Db(#[from] DbError),
    /// NBD cannot be served.
    #[error("cannot serve NBD: {}", with_sources(.0))]
    Nbd(NbdError),
    /// NBD cannot be served over TLS.
    #[error("cannot serve NBD: {}", with_sources(.0))]
    Tls(TlsError),
    /// A file, directory or socket cannot be created or accessed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Operation.
        action: &'static str,
        /// Path.
        path: PathBuf,
        /// Cause reported by the system.
        source: std::io::Error,
    },
    /// A socket path is too long for an address.
    #[error("socket path {} has {len_bytes} bytes, more than the system's limit of {MAX_SOCKET_PATH_BYTES}: use a shorter --data-dir", path.display())]
    SocketPath {
        /// Path.
        path: PathBuf,
        /// Its length.
        len_bytes: usize,
    },
    /// The control API cannot be served over TCP.
    #[error("cannot serve the control API at {address}: {source}")]
    Control {
        /// Address.
        address: SocketAddr,
        /// Cause reported by the system.
        source: std::io::Error,
    },
    /// The control API cannot be served over TLS.
    #[error("cannot serve the control API: {}", with_sources(.0))]
    ControlTls(TlsError),
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The sources of lazy volumes could not be determined.
    #[error("cannot resume lazy volumes: {0}")]
    Lazy(ServiceError),
    /// The NBD server failed.
    #[error("stopped after a failure of the NBD server: see the log for the cause")]
    NbdFailed,
    /// The stop was not clean: the next start recovers.
    #[error("stopped, but not cleanly: {0}")]
    UncleanStop(String),
}

impl DaemonError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Lock(error) => error.is_retryable(),
            Self::Db(error) => error.is_retryable(),
            Self::Lazy(error) => error.is_retryable(),
            _ => false,
        }
    }
}

pub(crate) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::File { action, path: path.to_owned(), source }
}

/// A running daemon.
pub struct Daemon {
    pub(crate) core: Arc<Core>,
    pub(crate) access: Arc<Access>,
    servers: Vec<Server>,
    nbd_failed: Arc<Notify>,
    pub(crate) certificates: Certificates,
    pub(crate) control: Control,
    http_stop: CancellationToken,
    merger: Merger,
    supervisor: Supervisor,
    watchdog: Option<JoinHandle<()>>,
    _lock: DirLock,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("data_dir", &self.core.data_dir).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Starts the daemon; everything is served when this returns.
    ///
    /// # Errors
    /// The data directory is in use, or it or a socket cannot be used.
    pub async fn start(config: Config, after_power_loss: bool) -> Result<Self, DaemonError> {
        Self::start_with(Passed::default(), config, after_power_loss).await
    }

    /// Starts the daemon with the sockets that systemd passed.
    ///
    /// # Errors
    /// The errors of [`start`](Self::start).
    pub async fn start_with(
        passed: Passed,
        config: Config,
        after_power_loss: bool,
    ) -> Result<Self, DaemonError> {
        Self::start_all(System::default(), passed, config, after_power_loss).await
    }

    /// Starts the daemon on a fake system.
    #[cfg(test)]
    pub(crate) async fn start_on(
        system: System,
        config: Config,
        after_power_loss: bool,
    ) -> Result<Self, DaemonError> {
        Self::start_all(system, Passed::default(), config, after_power_loss).await
    }

    async fn start_all(
        system: System,
        passed: Passed,
        config: Config,
        after_power_loss: bool,
    ) -> Result<Self, DaemonError> {
        let started = Instant::now();
        let (lock, core) = {
            let config = config.clone();
            let prepared = tokio::task::spawn_blocking(move || prepare(system, config, after_power_loss));
            prepared.await.map_err(|error| DaemonError::Thread(std::io::Error::other(error)))??
        };
        for path in [&core.control_socket(), &core.nbd_socket()] {
            check_socket_path(path)?;
        }
        core.resume_lazy_volumes().await.map_err(DaemonError::Lazy)?;
        core.fence_volumes_in_rollback().await.map_err(DaemonError::Lazy)?;
        let nbd::Nbd { servers, identity, access } = nbd::start(&core, &config).await?;
        let nbd_failed = Arc::new(Notify::new());
        for server in &servers {
            let nbd_failed = Arc::clone(&nbd_failed);
            server.on_failure(Box::new(move || nbd_failed.notify_one()));
        }
        let addresses = servers.iter().flat_map(|server| server.local_addrs().iter().copied()).collect();
        let _ = core.nbd_tcp.set(addresses);
        if let Err(error) = core.resume_attachments().await {
            tracing::error!(%error, "resuming attachments failed");
        }
        grow_devices_with_volumes(&core);
        core.release_quiesced();
        check_rules(&core);
        core.start_browsing();
        let http_stop = CancellationToken::new();
        let control = Control::start(&core, &http_stop, passed).await?;
        let certificates = Certificates::new([identity, control.identity.clone()]);
        let mut supervisor = Supervisor::new(core.stopping.clone());
        if let Some(address) = config.metrics.listen {
            let listener = listen_for_metrics(&core, address).await;
            let serve = serve_metrics(Arc::clone(&core), listener, address, http_stop.clone());
            supervisor.start_interruptible("metrics", serve);
        }
        let limit = core.config.merge_limit_bytes_per_s;
        let merger =
            Merger::start(Arc::clone(&core.registry), Arc::clone(&core.merger), core.reserve.clone(), limit)
                .map_err(DaemonError::Thread)?;
        if let Err(error) = core.resume_tasks().await {
            tracing::error!(%error, "resuming unfinished tasks failed");
        }
        start_loops(&mut supervisor, &core);
        if let Err(error) = core.resume_hydrations().await {
            tracing::error!(%error, "resuming the hydration of lazy volumes failed");
        }
        supervisor.start("schedules", crate::schedules::run(Arc::clone(&core)));
        notify(sd_notify::NotifyState::Ready);
        let watchdog = watchdog::start();
        tracing::info!(
            data_dir = %core.data_dir.display(),
            cluster = %core.cluster,
            volumes = core.registry.all().len(),
            start_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "ready"
        );
        Ok(Self {
            core,
            access,
            servers,
            nbd_failed,
            certificates,
            control,
            http_stop,
            merger,
            supervisor,
            watchdog,
            _lock: lock,
        })
    }

    /// Returns the shared state.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Reloads changed TLS certificates. Established connections continue.
    pub async fn renew_certificates(&self) {
        let certificates = self.certificates.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || certificates.renew(false)).await {
            tracing::error!(%error, "checking the TLS certificates failed");
        }
    }

    /// Waits until the NBD server fails: the daemon should exit then, so that the service manager restarts
    /// it.
    pub async fn nbd_failed(&self) {
        self.nbd_failed.notified().await;
    }

    /// Stops cleanly: all acknowledged writes are durable, and no dirty set is rebuilt at the next start.
    ///
    /// # Errors
    /// A part did not stop in time, or a volume could not be flushed.
    pub async fn stop(self) -> Result<(), DaemonError> {
        notify(sd_notify::NotifyState::Stopping);
        let Self { core, servers, mut control, http_stop, merger, supervisor, watchdog, _lock: lock, .. } =
            self;
        let time_limit = Duration::from_millis(core.config.stop_timeout_ms);
        let mut problems = Vec::new();
        http_stop.cancel();
        core.stopping.cancel();
        // Runs that have not begun, and interrupted deliveries of events, begin after the next start.
        supervisor.stop(time_limit).await;
        let (answered, unfinished) =
            tokio::join!(tokio::time::timeout(time_limit, control.ended()), core.tasks.stop(time_limit));
        if answered.is_err() {
            control.abort();
            tracing::warn!("requests in flight were aborted");
        }
        if unfinished > 0 {
            tracing::warn!(tasks = unfinished, "tasks were aborted; they resume after the next start");
        }
        if !core.quiescing.ended(POST_HOOK_TIMEOUT).await {
            tracing::warn!("post-freeze commands did not end in time; the next start runs them");
        }
        let closing = Arc::clone(&core);
        let closed = tokio::task::spawn_blocking(move || {
            let mut problems = Vec::new();
            closing.attachments.stop_reconnecting();
            closing.stop_browsing();
            for mut server in servers {
                if let Err(error) = server.shutdown() {
                    problems.push(with_sources(&error));
                }
            }
            drop(merger);
            for entry in closing.registry.all() {
                if let EntryState::Up(volume) = entry.view().state
                    && let Err(error) = volume.close()
                {
                    problems.push(format!("volume {}: {error}", entry.name));
                }
            }
            problems
        });
        match closed.await {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(error.to_string()),
        }
        control.remove_sockets();
        // Its tasks hold the shared state, too.
        drop(control);
        drop(core);
        drop(lock);
        if let Some(watchdog) = watchdog {
            watchdog.abort();
        }
        if problems.is_empty() {
            tracing::info!("stopped");
            Ok(())
        } else {
            Err(DaemonError::UncleanStop(problems.join("; ")))
        }
    }
}

/// Prepares everything up to the open volumes. Blocks.
fn prepare(
    system: System,
    config: Config,
    after_power_loss: bool,
) -> Result<(DirLock, Arc<Core>), DaemonError> {
    let data_dir = std::path::absolute(&config.data_dir).map_err(file_error("find", &config.data_dir))?;
    blockd_files::make_dir(&data_dir).map_err(file_error("make", &data_dir))?;
    let lock = DirLock::take(&data_dir)?;
    // An administrator may have created the directory with a wider mode.
    std::fs::set_permissions(&data_dir, std::fs::Permissions::from_mode(0o700))
        .map_err(file_error("restrict the mode of", &data_dir))?;
    for dir in [data_dir.join("volumes"), tasks_dir(&data_dir)] {
        blockd_files::make_dir(&dir).map_err(file_error("make", &dir))?;
    }
    let db = Db::open(&data_dir.join("blockd.db"))?;
    let cluster = db.cluster_id()?;
    let systemd = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let secrets = Secrets::load(&data_dir, systemd.as_deref());
    if let Some(problem) = secrets.problem() {
        tracing::error!(error = %problem, "unsealing credentials is not possible");
    }
    let references = References::new(&config.secrets, systemd.as_deref());
    let recovery = if after_power_loss { Recovery::AfterPowerLoss } else { Recovery::Auto };
    let has_tcp =
        config.nbd_listen.iter().any(|address| matches!(address, crate::config::NbdAddress::Tcp(_)));
    let options = OpenOptions { recovery, serves_remote: db.serves_remote(has_tcp)? };
    let registry = reconcile(&db, &data_dir, &options)?;
    let pressure = Pressure::new(config.task_priority, config.cpu_threads).map_err(DaemonError::Thread)?;
    let mut names: Vec<_> = config.webhook.iter().map(crate::webhooks::reader_name).collect();
    // Other log formats have separate lines for the changes that events report.
    if config.log_format == LogFormat::Journal {
        names.push(crate::events::LOG_READER.to_owned());
    }
    let readers = db.transaction::<_, DbError>(|tx| EventReader::take_up(tx, &names))?;
    let reserve = blockd_volume::Reserve::open(&data_dir).map(Arc::new);
    let reserve = reserve.inspect_err(|error| {
        tracing::warn!(dir = %data_dir.display(), %error, "reserving disk space for snapshot deletion on a full disk failed");
    });
    let core = Core {
        tasks: Tasks::new(config.task_concurrency),
        webhooks: crate::webhooks::all(&config, &readers),
        log_reader: readers.into_iter().find(|reader| reader.name == crate::events::LOG_READER),
        pressure: Arc::new(pressure),
        bandwidth: PlannedBandwidth::new(config.limit_plan()?, Timestamp::now()),
        fetcher: Arc::default(),
        lazy_sources: parking_lot::Mutex::default(),
        going_back: parking_lot::Mutex::default(),
        attachments: Attachments::new(cluster, data_dir.join("nbd.sock"), system),
        config,
        data_dir,
        db: Arc::new(db),
        secrets,
        references,
        registry: Arc::new(registry),
        repositories: Repositories::default(),
        cluster,
        run: Uuid::new_v4(),
        node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        started: Instant::now(),
        stopping: CancellationToken::new(),
        nbd_tcp: OnceLock::new(),
        metrics_tcp: OnceLock::new(),
        control_tcp: OnceLock::new(),
        browse: Browse::default(),
        merger: Arc::new(Wake::default()),
        reserve: reserve.ok(),
        events: crate::events::Events::default(),
        health: crate::health::Health::default(),
        meters: crate::metrics::Meters::default(),
        scheduler: crate::schedules::Scheduler::default(),
        admission: tokio::sync::Mutex::new(()),
        to_undo: parking_lot::Mutex::default(),
        quiescing: blockd_quiesce::Admission::default(),
        rule_problems: crate::rules::RuleProblems::default(),
        reload_failed: parking_lot::Mutex::default(),
        #[cfg(test)]
        dies_at: parking_lot::Mutex::new(None),
        #[cfg(test)]
        failpoint: crate::failpoint::Failpoint::default(),
    };
    Ok((lock, Arc::new(core)))
}

/// Checks the rules in the background and reports those that can no longer be applied.
fn check_rules(core: &Arc<Core>) {
    let core = Arc::clone(core);
    tokio::spawn(async move {
        if let Err(error) = core.tell_of_rules_that_cannot_run().await {
            tracing::warn!(%error, "checking the rules failed");
        }
    });
}

/// Resizes a device when its volume grows, on a separate thread, since the kernel may block.
fn grow_devices_with_volumes(core: &Arc<Core>) {
    let weak = Arc::downgrade(core);
    core.registry.on_resized(Box::new(move |entry, _| {
        let (weak, volume) = (weak.clone(), entry.id);
        let tell = move || {
            if let Some(core) = weak.upgrade() {
                core.attachments.resized(&core.registry, volume);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("resize".to_owned()).spawn(tell) {
            tracing::error!(%volume, %error, "resizing the device failed: detach and attach the volume");
        }
    }));
}

/// Marks this thread, and those that it starts later, as I/O flushers (`PR_SET_IO_FLUSHER`): they may use
/// memory reserves for writeback, and never wait for their own writeback. Must be called before other threads
/// exist.
pub fn make_io_flusher() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "not marked as an I/O flusher: that needs CAP_SYS_RESOURCE");
    }
}

/// Disables core dumps and access to this process's memory by other processes of its user: it holds keys.
/// Child processes are unaffected.
pub fn hide_memory(config: &Config) {
    if config.core_dumps {
        return;
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "other processes of this user can read the memory of this process");
    }
}

/// Locks memory: a page reclaimed by the kernel might have to be read while all memory waits for writeback to
/// this very process. Only without a memlock limit, since allocations beyond a limit would fail.
pub fn lock_memory() {
    let unlimited = rustix::process::getrlimit(rustix::process::Resource::Memlock).current.is_none();
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK));
    if !unlimited && !privileged {
        tracing::debug!("memory is not locked: that needs LimitMEMLOCK=infinity or CAP_IPC_LOCK");
        return;
    }
    // On fault: thread stacks are not allocated in advance.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        tracing::warn!(%error, "memory is not locked");
    }
}

/// Formats an error and its causes in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

pub(crate) fn check_socket_path(path: &Path) -> Result<(), DaemonError> {
    let len_bytes = path.as_os_str().len();
    if len_bytes > MAX_SOCKET_PATH_BYTES {
        return Err(DaemonError::SocketPath { path: path.to_owned(), len_bytes });
    }
    Ok(())
}

/// Removes a stale socket; any other file at the path is kept.
pub(crate) fn remove_socket(path: &Path) -> Result<(), DaemonError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(file_error("remove", path))
        }
        _ => Ok(()),
    }
}

/// Starts the loops that need nothing but the shared state.
fn start_loops(supervisor: &mut Supervisor, core: &Arc<Core>) {
    let (pressure, registry) = (Arc::clone(&core.pressure), Arc::clone(&core.registry));
    supervisor.start_interruptible("pressure", crate::pressure::run(pressure, registry));
    supervisor.start_interruptible("limits", crate::limits::run(Arc::clone(core)));
    supervisor.start_interruptible("secrets", blockd_secrets::run_expiry(Arc::clone(&core.references)));
    supervisor.start_interruptible("map sync", crate::map_sync::run(Arc::clone(&core.registry)));
    supervisor.start_interruptible("maintenance", crate::maintenance::run(Arc::clone(core)));
    supervisor.start_interruptible("health", crate::health::run(Arc::clone(core)));
    supervisor.start("events", crate::webhooks::run(Arc::clone(core), core.log_reader.clone()));
}

/// Serves metrics; binds the address again until that succeeds: volumes are served without it.
async fn serve_metrics(
    core: Arc<Core>,
    mut listener: Option<TcpListener>,
    address: SocketAddr,
    stop: CancellationToken,
) {
    let listener = loop {
        match listener {
            Some(listener) => break listener,
            None => tokio::time::sleep(METRICS_RETRY_DELAY).await,
        }
        listener = listen_for_metrics(&core, address).await;
    };
    http::metrics::serve(listener, core, stop).await;
}

async fn listen_for_metrics(core: &Core, address: SocketAddr) -> Option<TcpListener> {
    let bound = TcpListener::bind(address).await;
    match bound.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            if core.health.clear(health::METRICS, "") {
                tracing::info!(%address, "serving metrics");
            }
            let _ = core.metrics_tcp.set(address);
            Some(listener)
        }
        Err(error) => {
            let what = format!("metrics are not served at {address}: {error}");
            let todo = "free the address, or change metrics.listen and restart blockd; binding is retried automatically";
            if core.health.note(health::METRICS, "", what, todo) {
                tracing::error!(%address, %error, "serving metrics failed; retrying");
            }
            None
        }
    }
}

pub(crate) fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "notifying systemd failed");
    }
}
