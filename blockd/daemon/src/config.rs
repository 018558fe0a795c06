//! Daemon configuration: defaults, overridden by the file, overridden by the command line.
//!
//! An unknown key is an error that names it, so that a typo never silently selects a default.

mod control;
mod error;
mod ranges;
pub(crate) mod values;

pub use blockd_api::anomalies::AnomalyPolicy;
pub use blockd_engine::costs::PriceTables;
pub use blockd_engine::drills::probe_config::{ProbeAccess, ProbeConfig};
pub use blockd_engine::events::webhook_config::{WebhookConfig, WebhookConfigError, WebhookUrl};
pub use blockd_engine::settings::{BrowseConfig, Intervals, TaskPriority};
pub use blockd_secrets::SecretsConfig;
pub(crate) use control::find_group;
pub use control::{ControlConfig, ControlSocket};
pub use error::ConfigError;

pub use crate::config::values::{LogFormat, NbdAddress, NbdTls};
use crate::{cli::Cli, logging};
use blockd_api::{DailyLimit, ProbeName, credentials::CredentialLimits};
use blockd_engine::{repositories::limits::LimitPlan, settings::Settings};
use blockd_nbd::TlsFiles;
use ranges::{config, range, zero_or};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Configuration file that is read if the command line names none.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/blockd/blockd.toml";
/// Data directory if none is configured.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/blockd";

/// Metrics endpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Address that serves `/metrics`, `/healthz` and `/readyz` besides the control socket, in clear text and
    /// without authentication.
    pub listen: Option<SocketAddr>,
}

config! {
    /// Data directory.
    data_dir: PathBuf = DEFAULT_DATA_DIR.into();
    /// NBD addresses besides `DIR/nbd.sock`.
    nbd_listen: Vec<NbdAddress> = Vec::new();
    /// Log format.
    log_format: LogFormat = LogFormat::Auto;
    /// Log level or filter.
    log_level: String = "info".into();
    /// Backups per chain: every n-th backup of a volume to a credential is full; 1: all.
    full_every: u32 = 7, range(1, 1000);
    /// Bandwidth limit of background layer merges over all volumes, in bytes per second; 0: unlimited.
    merge_limit_bytes_per_s: u64 = 0, zero_or("no limit", 1 << 20, 1 << 40);
    /// Number of backups and restores that move data concurrently.
    task_concurrency: usize = 2, range(1, 64);
    /// Priority of these tasks.
    task_priority: TaskPriority = TaskPriority::Low;
    /// Bandwidth limit of the hydration of one lazy volume, in bytes per second; 0: unlimited.
    hydration_limit_bytes_per_s: u64 = 0, zero_or("no limit", 1 << 20, 1 << 40);
    /// Download bandwidth limit of each restore drill, in bytes per second; 0: unlimited.
    drill_limit_bytes_per_s: u64 = 0, zero_or("no limit", 1 << 20, 1 << 40);
    /// Limit of the requests of each restore drill to the store, per second; 0: unlimited.
    drill_limit_requests_per_s: u64 = 0, zero_or("no limit", 1, 1 << 20);
    /// Concurrent fetches, of at most 4 MiB each, of the hydration of one lazy volume.
    hydration_concurrency: usize = 8, range(1, 64);
    /// Timeout of reads from an unreachable store for lazy volumes with the policy "stall".
    lazy_stall_ms: u64 = 600_000, range(1000, 86_400_000);
    /// The same for lazy volumes with the policy "error".
    lazy_error_ms: u64 = 20_000, range(100, 3_600_000);
    /// Upload bandwidth limit over all tasks of the host, by time of day. Not set: unlimited.
    limit_upload: Option<DailyLimit> = None;
    /// Download bandwidth limit over all tasks of the host.
    limit_download: Option<DailyLimit> = None;
    /// Time zone of the times in these limits. Not set: UTC.
    limit_time_zone: Option<String> = None;
    /// Maximum of the concurrent pack uploads of one backup; their number follows latency and bandwidth.
    upload_concurrency: usize = 32, range(1, 64);
    /// The same for the requests of one restore or verification.
    download_concurrency: usize = 32, range(1, 64);
    /// Threads that compress and encrypt; 0: one per core.
    cpu_threads: usize = 0, zero_or("one per core", 1, 1024);
    /// Threads that serve NBD sockets; 0: one per core.
    ring_threads: usize = 0, zero_or("one per core", 1, 256);
    /// Threads for NBD requests that block on storage.
    nbd_workers: usize = 8, range(1, 1024);
    /// Maximum number of NBD connections; a quarter of them, at most 64, is reserved for Unix sockets.
    nbd_connections: usize = 1024, range(1, 65_536);
    /// Maximum number of TCP connections of one volume.
    nbd_connections_per_volume: u64 = 64, range(1, 65_536);
    /// Timeout of the NBD handshake, including the TLS handshake.
    nbd_handshake_timeout_ms: u64 = 10_000, range(100, 3_600_000);
    /// Idle timeout of NBD connections over TCP; 0: none.
    nbd_idle_timeout_ms: u64 = 0, zero_or("never", 1000, 86_400_000);
    /// In-flight payload limit of one NBD connection, in bytes.
    nbd_connection_in_flight_bytes: u64 = 64 << 20, range(1 << 20, 1 << 40);
    /// In-flight payload limit of all NBD connections, in bytes.
    nbd_in_flight_bytes: u64 = 512 << 20, range(1 << 20, 1 << 40);
    /// TLS policy of TCP listeners. Not set: `require` if there is a certificate.
    nbd_tls: Option<NbdTls> = None;
    /// Server certificate chain, PEM.
    nbd_tls_certificate: Option<PathBuf> = None;
    /// Server private key, PEM.
    nbd_tls_key: Option<PathBuf> = None;
    /// CA certificates for client certificates, PEM; if set, a client certificate is required.
    nbd_tls_client_ca: Option<PathBuf> = None;
    /// Revocation lists of these CAs, PEM; if set, revoked client certificates are refused.
    nbd_tls_client_crl: Option<PathBuf> = None;
    /// Allows TCP listeners that other hosts can reach without requiring TLS.
    nbd_allow_plaintext: bool = false;
    /// Maximum attempts of one request to an object store.
    store_attempts: u32 = 6, range(1, 100);
    /// Timeout of one attempt of a store request, plus the time of its body at 64 KiB/s.
    store_timeout_ms: u64 = 60_000, range(100, 3_600_000);
    /// Timeout of the pre-flight store requests of a command.
    store_answer_ms: u64 = 30_000, range(100, 3_600_000);
    /// Grace period for tasks and clients at shutdown.
    stop_timeout_ms: u64 = 30_000, range(0, 3_600_000);
    /// Interval of garbage collection in the repositories, in hours; 0: never.
    gc_every_hours: u32 = 24, zero_or("never", 1, 8760);
    /// Daily budget of background verification, in bytes read from stores; 0: off. The default costs little
    /// at any store's prices, and verifies every snapshot of a small host within days.
    verify_bytes_per_day: u64 = 1 << 30, zero_or("nothing", 100 << 20, 1 << 50);
    /// Treatment of anomalies of backups: `off`, `observe` or `protect`. The label `anomaly-policy` of a
    /// volume replaces it.
    anomaly_policy: AnomalyPolicy = AnomalyPolicy::Protect;
    /// Daily budget of background verification, in requests. The default costs less than a cent.
    verify_requests_per_day: u64 = 10_000, range(100, 1 << 40);
    /// Maximum age of the last proof of a volume at a location, in days; an older one is a problem. 0: any.
    proof_max_age_days: u32 = 7, zero_or("any age", 1, 3650);
    /// Daily budget of the background scrub, in bytes read from local disks; 0: off. The default is 1.2 MB a
    /// second.
    scrub_bytes_per_day: u64 = 100 << 30, zero_or("nothing", 100 << 20, 1 << 50);
    /// Number of finished tasks that are kept in the history.
    task_history: u32 = 1000, range(1, 1_000_000);
    /// Allows core dumps, and access to the daemon's memory by other processes of its user: the memory holds
    /// keys.
    core_dumps: bool = false;
    /// Browsing of snapshots as files.
    browse: BrowseConfig = BrowseConfig::default();
    /// Metrics endpoint.
    metrics: MetricsConfig = MetricsConfig::default();
    /// Remote access to the control API, and roles.
    control: ControlConfig = ControlConfig::default();
    /// External secrets.
    secrets: SecretsConfig = SecretsConfig::default();
    /// Probes of restore drills.
    drill_probes: BTreeMap<ProbeName, ProbeConfig> = BTreeMap::new();
    /// Prices by the name of a credential; those of `default` apply to the others. Amounts are text, such as
    /// "0.005".
    prices: PriceTables = PriceTables::new();
    /// By volume: names of client certificates that may use it over TCP. Almost last, since TOML puts tables
    /// after plain values.
    nbd_access: BTreeMap<String, Vec<String>> = BTreeMap::new();
    /// Event receivers. Last, since they are an array of tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhook: Vec<WebhookConfig> = Vec::new();
    /// Intervals that no administrator changes.
    #[serde(skip)]
    intervals: Intervals = Intervals::default();
}

impl Config {
    /// Loads the configuration for a command line.
    ///
    /// # Errors
    /// The named file does not exist, is not valid TOML, has an unknown key, or a value is out of range.
    pub fn load(cli: &Cli) -> Result<Self, ConfigError> {
        let mut config = match &cli.config {
            Some(path) => Self::read(path, true)?,
            None => Self::read(Path::new(DEFAULT_CONFIG_PATH), false)?,
        };
        config.apply(cli);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path, must_exist: bool) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                return Ok(Self::default());
            }
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
            let what = error.message().replace('\n', " ");
            ConfigError::Parse { path: path.to_owned(), line, what }
        })
    }

    fn apply(&mut self, cli: &Cli) {
        if let Some(data_dir) = &cli.data_dir {
            self.data_dir.clone_from(data_dir);
        }
        if !cli.nbd_listen.is_empty() {
            self.nbd_listen.clone_from(&cli.nbd_listen);
        }
        if let Some(format) = cli.log_format {
            self.log_format = format;
        }
        if let Some(level) = &cli.log_level {
            self.log_level.clone_from(level);
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::Range {
                key: "data_dir",
                given: "empty".into(),
                wanted: "a directory".into(),
            });
        }
        logging::check_level(&self.log_level)
            .map_err(|error| ConfigError::LogLevel { reason: error.to_string() })?;
        self.check_ranges()?;
        range(1 << 20, 1 << 50).check("browse.cache_bytes", self.browse.cache_bytes)?;
        range(100, 3_600_000).check("browse.stall_timeout_ms", self.browse.stall_timeout_ms)?;
        range(100, 3_600_000).check("browse.refresh_ms", self.browse.refresh_ms)?;
        self.check_tls()?;
        self.control.check()?;
        self.secrets.check().map_err(|error| ConfigError::Range {
            key: error.key,
            given: error.given,
            wanted: error.wanted.into(),
        })?;
        blockd_engine::events::webhook_config::check(&self.webhook)?;
        blockd_engine::drills::probe_config::check(&self.drill_probes)?;
        if let Some((name, _)) = self.prices.iter().find(|(_, prices)| prices.has_negative()) {
            let given = format!("a negative amount for {name}");
            return Err(ConfigError::Range { key: "prices", given, wanted: "amounts from 0".into() });
        }
        self.limit_plan()?;
        let relative = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.is_absolute());
        if relative(&self.browse.mountpoint) || relative(&self.browse.cache_dir) {
            let given = "a relative path".into();
            return Err(ConfigError::Range { key: "browse", given, wanted: "absolute paths".into() });
        }
        Ok(())
    }

    /// Checks the parts of the configuration that depend on this host; the daemon starts without them.
    ///
    /// # Errors
    /// A group does not exist.
    pub fn check_host(&self) -> Result<(), ConfigError> {
        for socket in &self.control.sockets {
            control::find_group(&socket.group)
                .map_err(|error| ConfigError::Group { reason: error.to_string() })?;
        }
        Ok(())
    }

    /// Returns the settings of the engine.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            full_every: self.full_every,
            task_concurrency: self.task_concurrency,
            task_history: self.task_history,
            hydration_limit_bytes_per_s: self.hydration_limit_bytes_per_s,
            drill_limit_bytes_per_s: self.drill_limit_bytes_per_s,
            drill_limit_requests_per_s: self.drill_limit_requests_per_s,
            hydration_concurrency: self.hydration_concurrency,
            lazy_stall_ms: self.lazy_stall_ms,
            lazy_error_ms: self.lazy_error_ms,
            upload_concurrency: self.upload_concurrency,
            download_concurrency: self.download_concurrency,
            cpu_threads: self.cpu_threads,
            store_attempts: self.store_attempts,
            store_timeout_ms: self.store_timeout_ms,
            store_answer_ms: self.store_answer_ms,
            gc_every_hours: self.gc_every_hours,
            verify_bytes_per_day: self.verify_bytes_per_day,
            anomaly_policy: self.anomaly_policy,
            verify_requests_per_day: self.verify_requests_per_day,
            proof_max_age_days: self.proof_max_age_days,
            scrub_bytes_per_day: self.scrub_bytes_per_day,
            secrets_wait_s: self.secrets.wait_s,
            browse: self.browse.clone(),
            drill_probes: self.drill_probes.clone(),
            prices: self.prices.clone(),
            intervals: self.intervals,
        }
    }

    /// Returns the bandwidth limits over all tasks of the host.
    pub(crate) fn limit_plan(&self) -> Result<LimitPlan, ConfigError> {
        let limits = CredentialLimits {
            upload: self.limit_upload.clone().unwrap_or_default(),
            download: self.limit_download.clone().unwrap_or_default(),
            time_zone: self.limit_time_zone.clone(),
        };
        LimitPlan::of(&limits).map_err(|error| ConfigError::Limit { reason: error.to_string() })
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        let wrong = |key, given: &str, wanted: &str| {
            Err(ConfigError::Range { key, given: given.to_owned(), wanted: wanted.to_owned() })
        };
        let has_certificate = self.nbd_tls_certificate.is_some();
        if has_certificate != self.nbd_tls_key.is_some() {
            let key = if has_certificate { "nbd_tls_key" } else { "nbd_tls_certificate" };
            return wrong(key, "not set", "set: certificate and key are only valid together");
        }
        if self.tls_mode() != NbdTls::Off && !has_certificate {
            return wrong("nbd_tls_certificate", "not set", "set unless nbd_tls is \"off\"");
        }
        if self.nbd_tls_client_ca.is_some() && self.tls_mode() == NbdTls::Off {
            return wrong("nbd_tls_client_ca", "set", "unset if TLS is off");
        }
        if self.nbd_tls_client_crl.is_some() && self.nbd_tls_client_ca.is_none() {
            return wrong("nbd_tls_client_ca", "not set", "set if nbd_tls_client_crl is set");
        }
        if !self.nbd_access.is_empty() && self.nbd_tls_client_ca.is_none() {
            return wrong("nbd_tls_client_ca", "not set", "set if nbd_access has entries");
        }
        if self.tls_mode() != NbdTls::Require && !self.nbd_allow_plaintext {
            for address in &self.nbd_listen {
                if let NbdAddress::Tcp(address) = address
                    && !address.ip().to_canonical().is_loopback()
                {
                    return Err(ConfigError::Plaintext { address: *address });
                }
            }
        }
        Ok(())
    }

    /// Returns the effective TLS policy of TCP listeners.
    pub fn tls_mode(&self) -> NbdTls {
        let by_certificate = if self.nbd_tls_certificate.is_some() { NbdTls::Require } else { NbdTls::Off };
        self.nbd_tls.unwrap_or(by_certificate)
    }

    /// Returns the TLS files if TLS is served.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        if self.tls_mode() == NbdTls::Off {
            return None;
        }
        Some(TlsFiles {
            certificate: self.nbd_tls_certificate.clone()?,
            key: self.nbd_tls_key.clone()?,
            client_ca: self.nbd_tls_client_ca.clone(),
            client_crl: self.nbd_tls_client_crl.clone(),
        })
    }

    /// Serializes the configuration for display, as TOML: webhook URLs, which may contain secrets, are shown
    /// without their paths.
    pub fn to_shown_toml(&self) -> String {
        let mut shown = self.clone();
        for webhook in &mut shown.webhook {
            webhook.url = webhook.url.shown();
        }
        shown.to_toml()
    }

    /// Serializes the configuration as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

#[cfg(test)]
mod tests;
