//! Start and stop of the daemon, in an order that loses no data.
//!
//! Start: directory, lock, database, volumes, NBD, attached devices, control socket, unfinished tasks, then
//! readiness. Stop: no new requests, tasks to a point from which they can resume, NBD, merges, then
//! the volumes are flushed and closed.

use crate::{
    activation::Passed,
    config::{Config, LogFormat, NbdAddress},
    control::Control,
    error::{DaemonError, file_error},
    http::{self, Api},
    lock::DirLock,
    nbd::{self, Certificates},
    served::Served,
    sockets::check_socket_path,
    supervisor::Supervisor,
    watchdog::{self, notify},
};
use blockd_api::with_sources;
use blockd_engine::{
    data_dir::DataDir,
    engine::{Engine, OpenEngine},
    health,
    readers::SnapshotReaders,
    volumes::{merger::Merger, startup_check::StartupCheck},
};
use blockd_nbd::Server;
use blockd_nbd_kernel::System;
use blockd_views::{
    access::Access,
    browse::{Browse, Browser},
};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, set_dumpable_behavior},
};
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Timeout of a stop for post-freeze commands: less than systemd's stop timeout.
const POST_HOOK_TIMEOUT: Duration = Duration::from_secs(180);

/// A running daemon.
pub struct Daemon {
    pub(crate) engine: Arc<Engine>,
    browser: Arc<Browser>,
    pub(crate) served: Arc<Served>,
    stop_timeout_ms: u64,
    pub(crate) access: Arc<Access>,
    servers: Vec<Server>,
    nbd_failed: Arc<Notify>,
    pub(crate) certificates: Certificates,
    pub(crate) control: Control,
    http_stop: CancellationToken,
    merger: Merger,
    startup_check: StartupCheck,
    supervisor: Supervisor,
    watchdog: Option<JoinHandle<()>>,
    _lock: DirLock,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("data_dir", &self.engine.host.data_dir).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Starts the daemon; everything is served when this returns.
    ///
    /// # Errors
    /// The data directory is in use, or it or a socket cannot be used.
    pub async fn start(config: Config, after_power_loss: bool) -> Result<Self, DaemonError> {
        Self::start_with(System::default(), Passed::default(), config, after_power_loss).await
    }

    /// Starts the daemon with this system of kernel devices and the sockets that systemd passed.
    ///
    /// # Errors
    /// The errors of [`start`](Self::start).
    pub async fn start_with(
        system: System,
        passed: Passed,
        config: Config,
        after_power_loss: bool,
    ) -> Result<Self, DaemonError> {
        let started = Instant::now();
        let (lock, engine, browser) = {
            let config = config.clone();
            let prepared = tokio::task::spawn_blocking(move || prepare(system, &config, after_power_loss));
            prepared.await.map_err(|error| DaemonError::Thread(std::io::Error::other(error)))??
        };
        for path in [&engine.host.data_dir.control_socket(), &engine.host.data_dir.nbd_socket()] {
            check_socket_path(path)?;
        }
        engine.lazy.resume_lazy_volumes().await.map_err(DaemonError::Lazy)?;
        engine.in_place_work.fence_volumes_in_rollback().await.map_err(DaemonError::Lazy)?;
        let nbd::Nbd { servers, identity, access } = nbd::start(&engine, &browser, &config).await?;
        let nbd_failed = nbd::notify_failure(&servers);
        let addresses = servers.iter().flat_map(|server| server.local_addrs().iter().copied()).collect();
        let served = Arc::new(Served::new(&config, addresses));
        let api =
            Api { engine: Arc::clone(&engine), browser: Arc::clone(&browser), served: Arc::clone(&served) };
        if let Err(error) = engine.devices.resume_attachments().await {
            tracing::error!(%error, "resuming attachments failed");
        }
        grow_devices_with_volumes(&engine);
        engine.quiescer.release_quiesced();
        check_rules(&engine);
        browser.start_browsing();
        let http_stop = CancellationToken::new();
        let control = Control::start(&api, &config, &http_stop, passed).await?;
        let certificates = Certificates::new([identity, control.identity.clone()]);
        let mut supervisor = Supervisor::new(engine.host.stopping.clone());
        if let Some(address) = config.metrics.listen {
            let retry_delay = Duration::from_millis(config.intervals.metrics_retry_ms);
            start_metrics(&mut supervisor, api, address, retry_delay, http_stop.clone()).await;
        }
        let merger = start_merger(&engine, config.merge_limit_bytes_per_s)?;
        resume_work(&mut supervisor, &engine).await;
        notify(sd_notify::NotifyState::Ready);
        let startup_check = start_check(&engine)?;
        let watchdog = watchdog::start();
        tracing::info!(
            data_dir = %engine.host.data_dir.display(),
            cluster = %engine.host.cluster,
            volumes = engine.registry.all().len(),
            start_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "ready"
        );
        Ok(Self {
            engine,
            browser,
            served,
            stop_timeout_ms: config.stop_timeout_ms,
            access,
            servers,
            nbd_failed,
            certificates,
            control,
            http_stop,
            merger,
            startup_check,
            supervisor,
            watchdog,
            _lock: lock,
        })
    }

    /// Returns the address of the metrics endpoint, once it is bound.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.served.metrics_tcp.get().copied()
    }

    /// Returns the services.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
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
        let Self {
            engine,
            browser,
            stop_timeout_ms,
            servers,
            mut control,
            http_stop,
            merger,
            startup_check,
            supervisor,
            watchdog,
            _lock: lock,
            ..
        } = self;
        let time_limit = Duration::from_millis(stop_timeout_ms);
        let mut problems = Vec::new();
        http_stop.cancel();
        engine.host.stopping.cancel();
        // Runs that have not begun, and interrupted deliveries of events, begin after the next start.
        supervisor.stop(time_limit).await;
        let (answered, unfinished) =
            tokio::join!(tokio::time::timeout(time_limit, control.ended()), engine.tasks.stop(time_limit));
        if answered.is_err() {
            control.abort();
            tracing::warn!("requests in flight were aborted");
        }
        if unfinished > 0 {
            tracing::warn!(tasks = unfinished, "tasks were aborted; they resume after the next start");
        }
        if !engine.quiescing.ended(POST_HOOK_TIMEOUT).await {
            tracing::warn!("post-freeze commands did not end in time; the next start runs them");
        }
        let closing = Arc::clone(&engine);
        let closed = tokio::task::spawn_blocking(move || {
            drop(startup_check);
            closing.attachments.stop_reconnecting();
            browser.stop_browsing();
            close(servers, merger, &closing)
        });
        match closed.await {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(error.to_string()),
        }
        control.remove_sockets();
        // Its tasks also hold references to the services.
        drop(control);
        drop(engine);
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

/// Stops NBD and merges, then flushes and closes the volumes. Returns what failed. Blocks.
fn close(servers: Vec<Server>, merger: Merger, engine: &Engine) -> Vec<String> {
    let mut problems = Vec::new();
    for mut server in servers {
        if let Err(error) = server.shutdown() {
            problems.push(with_sources(&error));
        }
    }
    drop(merger);
    for entry in engine.registry.all() {
        if let Err(error) = entry.shut_down() {
            problems.push(format!("volume {}: {error}", entry.name));
        }
    }
    problems
}

/// Prepares everything up to the open volumes. Blocks.
fn prepare(
    system: System,
    config: &Config,
    after_power_loss: bool,
) -> Result<(DirLock, Arc<Engine>, Arc<Browser>), DaemonError> {
    let data_dir = std::path::absolute(&config.data_dir).map_err(file_error("find", &config.data_dir))?;
    let data_dir = DataDir::new(data_dir);
    blockd_files::make_dir(&data_dir).map_err(file_error("make", &data_dir))?;
    let lock = DirLock::take(&data_dir)?;
    // An administrator may have created the directory with a wider mode.
    std::fs::set_permissions(&data_dir, std::fs::Permissions::from_mode(0o700))
        .map_err(file_error("restrict the mode of", &data_dir))?;
    for dir in [data_dir.volumes_dir(), data_dir.tasks_dir()] {
        blockd_files::make_dir(&dir).map_err(file_error("make", &dir))?;
    }
    let browse: Arc<Browse> = Arc::default();
    let engine = Engine::open(OpenEngine {
        data_dir,
        settings: config.settings(),
        task_priority: config.task_priority,
        bandwidth: config.limit_plan()?,
        secrets: config.secrets.clone(),
        webhooks: config.webhook.clone(),
        // Other log formats have separate lines for the changes that events report.
        logs_events: config.log_format == LogFormat::Journal,
        listens_on_tcp: config.nbd_listen.iter().any(|address| matches!(address, NbdAddress::Tcp(_))),
        after_power_loss,
        system,
        readers: Arc::clone(&browse) as Arc<dyn SnapshotReaders>,
    })?;
    let browser = Browser::new(browse, &engine);
    Ok((lock, Arc::new(engine), browser))
}

/// Starts the metrics endpoint.
async fn start_metrics(
    supervisor: &mut Supervisor,
    api: Api,
    address: SocketAddr,
    retry_delay: Duration,
    stop: CancellationToken,
) {
    let listener = listen_for_metrics(&api.engine, &api.served, address).await;
    supervisor.start_interruptible("metrics", serve_metrics(api, listener, address, retry_delay, stop));
}

/// Starts the merges of layers that no snapshot needs.
fn start_merger(engine: &Engine, limit_bytes_per_s: u64) -> Result<Merger, DaemonError> {
    let (registry, wake) = (Arc::clone(&engine.registry), Arc::clone(&engine.merger));
    Merger::start(registry, wake, engine.reserve.clone(), limit_bytes_per_s).map_err(DaemonError::Thread)
}

/// Starts the check of the volumes that are not open.
fn start_check(engine: &Engine) -> Result<StartupCheck, DaemonError> {
    let (registry, merger) = (Arc::clone(&engine.registry), Arc::clone(&engine.merger));
    StartupCheck::start(registry, merger, Arc::clone(&engine.scheduler)).map_err(DaemonError::Thread)
}

/// Resumes tasks and hydrations of the previous run, and starts the background loops.
async fn resume_work(supervisor: &mut Supervisor, engine: &Arc<Engine>) {
    if let Err(error) = engine.runner.resume_tasks().await {
        tracing::error!(%error, "resuming unfinished tasks failed");
    }
    start_loops(supervisor, engine);
    if let Err(error) = engine.restores.resume_hydrations().await {
        tracing::error!(%error, "resuming the hydration of lazy volumes failed");
    }
    supervisor.start("schedules", blockd_engine::schedules::runner::run(Arc::clone(&engine.schedule_runner)));
}

/// Checks the rules in the background and reports those that can no longer be applied.
fn check_rules(engine: &Arc<Engine>) {
    let engine = Arc::clone(engine);
    tokio::spawn(async move {
        if let Err(error) = engine.quiescer.report_unusable_rules().await {
            tracing::warn!(%error, "checking the rules failed");
        }
    });
}

/// Resizes a device when its volume grows, on a separate thread, since the kernel may block.
fn grow_devices_with_volumes(engine: &Arc<Engine>) {
    let weak = Arc::downgrade(engine);
    engine.registry.on_resized(Box::new(move |entry, _| {
        let (weak, volume) = (weak.clone(), entry.id);
        let tell = move || {
            if let Some(engine) = weak.upgrade() {
                engine.attachments.resized(&engine.registry, volume);
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

/// Starts the loops that need nothing but the services.
fn start_loops(supervisor: &mut Supervisor, engine: &Arc<Engine>) {
    let (workers, registry) = (Arc::clone(&engine.task_workers), Arc::clone(&engine.registry));
    supervisor.start_interruptible("task priority", blockd_engine::tasks::workers::run(workers, registry));
    supervisor.start_interruptible(
        "limits",
        blockd_engine::repositories::limit_changes::run(Arc::clone(&engine.repositories)),
    );
    supervisor.start_interruptible("secrets", blockd_secrets::run_expiry(Arc::clone(&engine.references)));
    supervisor
        .start_interruptible("map sync", blockd_engine::volumes::map_sync::run(Arc::clone(&engine.registry)));
    supervisor
        .start_interruptible("maintenance", blockd_engine::maintenance::run(Arc::clone(&engine.maintenance)));
    supervisor.start_interruptible("health", blockd_engine::monitor::run(Arc::clone(&engine.monitor)));
    supervisor.start("events", blockd_engine::events::webhooks::run(Arc::clone(&engine.webhook_delivery)));
}

/// Serves metrics; binds the address again until that succeeds: volumes are served without it.
async fn serve_metrics(
    api: Api,
    mut listener: Option<TcpListener>,
    address: SocketAddr,
    retry_delay: Duration,
    stop: CancellationToken,
) {
    let listener = loop {
        match listener {
            Some(listener) => break listener,
            None => tokio::time::sleep(retry_delay).await,
        }
        listener = listen_for_metrics(&api.engine, &api.served, address).await;
    };
    http::metrics::serve(listener, api, stop).await;
}

async fn listen_for_metrics(engine: &Engine, served: &Served, address: SocketAddr) -> Option<TcpListener> {
    let bound = TcpListener::bind(address).await;
    match bound.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            if engine.health.clear(health::METRICS, "") {
                tracing::info!(%address, "serving metrics");
            }
            let _ = served.metrics_tcp.set(address);
            Some(listener)
        }
        Err(error) => {
            let what = format!("metrics are not served at {address}: {error}");
            let todo = "free the address, or change metrics.listen and restart blockd; binding is retried automatically";
            if engine.health.note(health::METRICS, "", what, todo) {
                tracing::error!(%address, %error, "serving metrics failed; retrying");
            }
            None
        }
    }
}
