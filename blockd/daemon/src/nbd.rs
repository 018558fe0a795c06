//! NBD servers, from the configuration to running servers, and renewal of their certificates.

use crate::{
    config::{Config, NbdAddress},
    error::DaemonError,
    sockets::{check_socket_path, remove_socket},
};
use blockd_api::with_sources;
use blockd_engine::engine::Engine;
use blockd_nbd::{ExportCatalog, NbdError, Server, ServerConfig, TlsError, TlsFiles, TlsIdentity};
use blockd_views::{
    access::Access,
    browse::{Browser, CloudExports},
    exports::Exports,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Timeout for an NBD address in use, and the interval of attempts.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
const LISTEN_RETRY: Duration = Duration::from_millis(50);

/// NBD servers.
#[derive(Debug)]
pub(crate) struct Nbd {
    pub(crate) servers: Vec<Server>,
    pub(crate) identity: Option<Arc<TlsIdentity>>,
    pub(crate) access: Arc<Access>,
}

/// Returns what is notified when a server fails.
pub(crate) fn notify_failure(servers: &[Server]) -> Arc<Notify> {
    let failed = Arc::new(Notify::new());
    for server in servers {
        let failed = Arc::clone(&failed);
        server.on_failure(Box::new(move || failed.notify_one()));
    }
    failed
}

/// All renewable certificates.
#[derive(Debug, Clone)]
pub(crate) struct Certificates(Vec<Arc<TlsIdentity>>);

impl Certificates {
    pub(crate) fn new(identities: [Option<Arc<TlsIdentity>>; 2]) -> Self {
        Self(identities.into_iter().flatten().collect())
    }

    /// Checks the files of all certificates except `except`, which gets other files.
    pub(crate) fn check_but(&self, moved: Option<&Arc<TlsIdentity>>) -> Result<(), TlsError> {
        let stay = self.0.iter().filter(|identity| !moved.is_some_and(|moved| Arc::ptr_eq(moved, identity)));
        stay.into_iter().try_for_each(|identity| identity.check())
    }

    /// Reads changed files, or all with `must`; unusable files are reported, and the old certificates stay.
    pub(crate) fn renew(&self, must: bool) {
        for identity in self.0.iter().filter(|identity| must || identity.has_changed()) {
            match identity.reload() {
                Ok(()) => tracing::info!("TLS certificates reloaded"),
                Err(error) => {
                    let error = with_sources(&error);
                    tracing::error!(error, "reload failed on TLS certificates: the old ones stay in use");
                }
            }
        }
    }
}

/// Starts the NBD servers.
///
/// # Errors
/// Certificates cannot be used, or an address not be listened on.
pub(crate) async fn start(
    engine: &Arc<Engine>,
    browser: &Arc<Browser>,
    config: &Config,
) -> Result<Nbd, DaemonError> {
    // This process holds the lock of the directory: an existing socket is stale.
    remove_socket(&engine.host.data_dir.nbd_socket())?;
    let identity = match config.tls_files() {
        Some(files) => Some(load_identity(files).await.map_err(DaemonError::Tls)?),
        None => None,
    };
    let access = Arc::new(Access::new(config.nbd_access.clone(), config.nbd_connections_per_volume));
    let exports: Arc<dyn ExportCatalog> = Arc::new(
        Exports::new(Arc::clone(&engine.registry))
            .with_access(Arc::clone(&access))
            .with_cloud(CloudExports::new(browser)),
    );
    let mut tcp = Vec::new();
    let mut unix = vec![engine.host.data_dir.nbd_socket()];
    for address in &config.nbd_listen {
        match address {
            NbdAddress::Tcp(address) => tcp.push(*address),
            NbdAddress::Unix(path) => {
                check_socket_path(path)?;
                unix.push(path.clone());
            }
        }
    }
    let mut servers = Vec::new();
    for path in unix {
        let mut settings = ServerConfig {
            unix_path: Some(path),
            // All TCP addresses are served by the first one.
            tcp: std::mem::take(&mut tcp),
            worker_threads: config.nbd_workers,
            max_connections: config.nbd_connections,
            handshake_timeout: Duration::from_millis(config.nbd_handshake_timeout_ms),
            idle_timeout: (config.nbd_idle_timeout_ms > 0)
                .then(|| Duration::from_millis(config.nbd_idle_timeout_ms)),
            in_flight_bytes_per_connection: config.nbd_connection_in_flight_bytes,
            in_flight_bytes_total: config.nbd_in_flight_bytes,
            tls: identity.clone(),
            tcp_tls: config.tls_mode().into(),
            ..ServerConfig::default()
        };
        if config.ring_threads > 0 {
            settings.ring_threads = config.ring_threads;
        }
        servers.push(start_server(&settings, &exports).await?);
    }
    Ok(Nbd { servers, identity, access })
}

/// Reads certificates, on a thread that may block.
pub(crate) async fn load_identity(files: TlsFiles) -> Result<Arc<TlsIdentity>, TlsError> {
    let path = files.certificate.clone();
    let loaded = tokio::task::spawn_blocking(move || TlsIdentity::load(files).map(Arc::new)).await;
    loaded.unwrap_or_else(|error| {
        Err(TlsError::Content { what: "server certificate", path, reason: error.to_string() })
    })
}

/// Starts an NBD server. After a kill, the kernel takes a while to cancel submitted ring operations, and
/// listening sockets live until then: an address in use is retried before it is an error.
async fn start_server(
    settings: &ServerConfig,
    exports: &Arc<dyn ExportCatalog>,
) -> Result<Server, DaemonError> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    loop {
        match Server::start(settings.clone(), Arc::clone(exports)) {
            Ok(server) => return Ok(server),
            Err(error @ (NbdError::SocketInUse { .. } | NbdError::BindTcp { .. }))
                if error.is_retryable() && Instant::now() < deadline =>
            {
                tracing::debug!(error = %with_sources(&error), "waiting for the address");
                tokio::time::sleep(LISTEN_RETRY).await;
            }
            Err(error) => return Err(DaemonError::Nbd(error)),
        }
    }
}
