//! The configuration: defaults, then the file, then the command line.
//!
//! A key that is not known is an error that names it: a typo must not turn into a silently used default.

mod control;
mod references;
mod webhook;

pub use control::{ControlConfig, ControlSocket};
pub use references::SecretsConfig;
pub use webhook::{WebhookConfig, WebhookUrl};

use crate::cli::Cli;
use crate::limits::LimitPlan;
use crate::logging;
use blockd_api::{CredentialRef, DailyLimit, credentials::CredentialLimits};
use blockd_nbd::{TlsFiles, TlsMode};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where the configuration file is looked for when none is named.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/blockd/blockd.toml";
/// Where data is kept when no place is named.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/blockd";

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("configuration {}, line {line}: {what}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A value is out of its range.
    #[error("{key} is {given}, but must be {wanted}")]
    Range {
        /// The key.
        key: &'static str,
        /// What it is.
        given: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// The level of the log is none.
    #[error("log_level: {reason}")]
    LogLevel {
        /// Why.
        reason: String,
    },
    /// A group that control sockets are for is not there.
    #[error("control.sockets: {reason}; the socket would not be served")]
    Group {
        /// Why.
        reason: String,
    },
    /// A limit of bandwidth cannot be.
    #[error("limit_upload, limit_download or limit_time_zone: {reason}")]
    Limit {
        /// Why.
        reason: String,
    },
    /// A webhook cannot be as it is written.
    #[error("webhook `{name}`: {what}")]
    Webhook {
        /// Its name.
        name: String,
        /// What is wrong, without its address.
        what: String,
    },
    /// Others would read along.
    #[error(
        "nbd_listen has tcp://{address}, which other hosts can reach, without requiring TLS: set nbd_tls_certificate and nbd_tls_key, or nbd_allow_plaintext = true if the network is trusted"
    )]
    Plaintext {
        /// The address.
        address: SocketAddr,
    },
}

impl ConfigError {
    /// Whether the same configuration may be good later.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// How log lines look, and where they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// To the journal if stderr goes there, else as text.
    #[default]
    Auto,
    /// For people, to stderr.
    Text,
    /// One JSON object a line, to stderr.
    Json,
    /// Records with fields, to the journal of systemd.
    Journal,
}

/// How much tasks that move data take of a machine on which guests work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskPriority {
    /// What nobody else wants: their threads have the lowest priority, and they work less as soon as guests
    /// wait longer.
    #[default]
    Low,
    /// As much as others, but less as soon as guests wait longer.
    Normal,
    /// As much as they can get.
    High,
}

/// Where NBD is served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NbdAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix("tcp://") {
            return address.parse().map(Self::Tcp).map_err(|_| {
                format!("`{text}` is no NBD address: after tcp:// comes ADDRESS:PORT, such as tcp://127.0.0.1:10809 or tcp://[::1]:10809")
            });
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => {
                Err(format!("`{text}` is no NBD address: write tcp://ADDRESS:PORT or unix:///ABSOLUTE/PATH"))
            }
        }
    }
}

impl TryFrom<String> for NbdAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NbdAddress> for String {
    fn from(address: NbdAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Whether TCP addresses are served over TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdTls {
    /// Never.
    Off,
    /// If the client asks for it.
    Allow,
    /// Always.
    Require,
}

impl From<NbdTls> for TlsMode {
    fn from(tls: NbdTls) -> Self {
        match tls {
            NbdTls::Off => Self::Off,
            NbdTls::Allow => Self::Allow,
            NbdTls::Require => Self::Require,
        }
    }
}

/// Looking into snapshots.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrowseConfig {
    /// Where snapshots are mounted as files from the start on. Not set: nowhere.
    pub mountpoint: Option<PathBuf>,
    /// Cloud snapshots of these credentials are shown there; of all if there is none.
    pub credentials: Vec<CredentialRef>,
    /// Whether other users may look into mounts, by the modes and owners that are shown.
    pub allow_other: bool,
    /// Where pieces of cloud snapshots are cached. Not set: `cache` in the data directory.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes that the cache takes.
    pub cache_bytes: u64,
    /// How long whoever reads a cloud snapshot waits for the store.
    pub stall_timeout_ms: u64,
    /// How often the stores are listed at most, while somebody looks.
    pub refresh_ms: u64,
}

impl Default for BrowseConfig {
    fn default() -> Self {
        Self {
            mountpoint: None,
            credentials: Vec::new(),
            allow_other: false,
            cache_dir: None,
            cache_bytes: 4 << 30,
            stall_timeout_ms: 30_000,
            refresh_ms: 10_000,
        }
    }
}

/// Telling metrics to whoever asks.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where `/metrics`, `/healthz` and `/readyz` are served beside the control socket, in clear and to
    /// everybody.
    pub listen: Option<SocketAddr>,
}

/// Everything that can be set.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of everything the daemon keeps.
    pub data_dir: PathBuf,
    /// Further NBD addresses beside `DIR/nbd.sock`.
    pub nbd_listen: Vec<NbdAddress>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Level or filter of the log.
    pub log_level: String,
    /// Every how many backups of a volume to a credential one is full; 1 = always.
    pub full_every: u32,
    /// How many bytes a second merging layers in the background may copy, over all volumes; 0: as many as it
    /// can.
    pub merge_limit_bytes_per_s: u64,
    /// Backups and restores that move data at once.
    pub task_concurrency: usize,
    /// What they take of a machine on which guests work.
    pub task_priority: TaskPriority,
    /// How many bytes a second the hydration of one lazy volume may fetch; 0: as many as it can.
    pub hydration_limit_bytes_per_s: u64,
    /// Fetches of at most 4 MiB that the hydration of one lazy volume makes at once.
    pub hydration_concurrency: usize,
    /// How long reads of a lazy volume wait for a store that is gone, if they are to stall.
    pub lazy_stall_ms: u64,
    /// The same if they are to fail.
    pub lazy_error_ms: u64,
    /// What all tasks of the host together send at most, by the time of day. Not set: no limit.
    pub limit_upload: Option<DailyLimit>,
    /// What they receive at most.
    pub limit_download: Option<DailyLimit>,
    /// The time zone of parts of the day in these limits. Not set: UTC.
    pub limit_time_zone: Option<String>,
    /// Packs that one backup uploads at once.
    pub upload_concurrency: usize,
    /// Requests that one restore makes at once.
    pub download_concurrency: usize,
    /// Threads that compress and seal; 0 = one per core.
    pub cpu_threads: usize,
    /// Threads that serve NBD sockets; 0 = one per core.
    pub ring_threads: usize,
    /// Threads for NBD requests that must wait for storage.
    pub nbd_workers: usize,
    /// NBD connections at once; a quarter of them, at most 64, is for unix sockets only.
    pub nbd_connections: usize,
    /// NBD connections of one volume at once, for clients that come over TCP.
    pub nbd_connections_per_volume: u64,
    /// Time that an NBD client has to choose its volume, a TLS handshake included.
    pub nbd_handshake_timeout_ms: u64,
    /// Time after which an NBD connection over TCP with nothing to do is closed; 0 = never.
    pub nbd_idle_timeout_ms: u64,
    /// Payload that one NBD connection may have in flight.
    pub nbd_connection_in_flight_bytes: u64,
    /// Payload that all NBD connections together may have in flight.
    pub nbd_in_flight_bytes: u64,
    /// Whether TCP addresses are served over TLS. Not set: they are if there is a certificate.
    pub nbd_tls: Option<NbdTls>,
    /// The server's certificate chain, PEM.
    pub nbd_tls_certificate: Option<PathBuf>,
    /// The server's private key, PEM.
    pub nbd_tls_key: Option<PathBuf>,
    /// The authorities of client certificates, PEM; if set, clients must have one.
    pub nbd_tls_client_ca: Option<PathBuf>,
    /// The authorities' revocation lists, PEM; if set, a client's certificate must not be in them.
    pub nbd_tls_client_crl: Option<PathBuf>,
    /// Whether TCP addresses that other hosts can reach may be served without requiring TLS.
    pub nbd_allow_plaintext: bool,
    /// Attempts of one request to an object store.
    pub store_attempts: u32,
    /// Time that one request to an object store may take, before its body.
    pub store_timeout_ms: u64,
    /// How long whoever asks for something waits for the store's answer before anything is begun.
    pub store_answer_ms: u64,
    /// Time that a stop gives tasks and clients.
    pub stop_timeout_ms: u64,
    /// Every how many hours it is looked for what abandoned backups left in the stores; 0: never.
    pub gc_every_hours: u32,
    /// Bytes of the stores' content that background verification reads a day; 0: none. The default costs a
    /// location of any price little, and proves each snapshot of a small host within days.
    pub verify_bytes_per_day: u64,
    /// Finished tasks that are remembered.
    pub task_history: u32,
    /// Whether the kernel may write cores of this process, and others of its user look into its memory: there
    /// are keys in it.
    pub core_dumps: bool,
    /// Looking into snapshots.
    pub browse: BrowseConfig,
    /// Telling metrics to whoever asks.
    pub metrics: MetricsConfig,
    /// Driving the daemon from elsewhere, and as somebody else.
    pub control: ControlConfig,
    /// Secrets that lie elsewhere.
    pub secrets: SecretsConfig,
    /// By volume: the names in client certificates that may have it over TCP. Almost last, as it is a table.
    pub nbd_access: BTreeMap<String, Vec<String>>,
    /// Whom to tell of events. Last, as they are tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhook: Vec<WebhookConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: DEFAULT_DATA_DIR.into(),
            nbd_listen: Vec::new(),
            log_format: LogFormat::Auto,
            log_level: "info".into(),
            full_every: 7,
            merge_limit_bytes_per_s: 0,
            task_concurrency: 2,
            task_priority: TaskPriority::Low,
            hydration_limit_bytes_per_s: 0,
            hydration_concurrency: 8,
            lazy_stall_ms: 600_000,
            lazy_error_ms: 20_000,
            limit_upload: None,
            limit_download: None,
            limit_time_zone: None,
            upload_concurrency: 4,
            download_concurrency: 4,
            cpu_threads: 0,
            ring_threads: 0,
            nbd_workers: 8,
            nbd_connections: 1024,
            nbd_connections_per_volume: 64,
            nbd_handshake_timeout_ms: 10_000,
            nbd_idle_timeout_ms: 0,
            nbd_connection_in_flight_bytes: 64 << 20,
            nbd_in_flight_bytes: 512 << 20,
            nbd_tls: None,
            nbd_tls_certificate: None,
            nbd_tls_key: None,
            nbd_tls_client_ca: None,
            nbd_tls_client_crl: None,
            nbd_allow_plaintext: false,
            store_attempts: 6,
            store_timeout_ms: 60_000,
            store_answer_ms: 30_000,
            stop_timeout_ms: 30_000,
            gc_every_hours: 24,
            verify_bytes_per_day: 1 << 30,
            task_history: 1000,
            core_dumps: false,
            browse: BrowseConfig::default(),
            metrics: MetricsConfig::default(),
            control: ControlConfig::default(),
            secrets: SecretsConfig::default(),
            nbd_access: BTreeMap::new(),
            webhook: Vec::new(),
        }
    }
}

impl Config {
    /// The configuration for this command line.
    ///
    /// # Errors
    /// The file was named but is not there, is no TOML, has an unknown key, or a value is out of range.
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
        let range = |key, given: u64, low: u64, high: u64, wanted| {
            if (low..=high).contains(&given) {
                Ok(())
            } else {
                Err(ConfigError::Range { key, given: given.to_string(), wanted })
            }
        };
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::Range { key: "data_dir", given: "empty".into(), wanted: "a directory" });
        }
        logging::check_level(&self.log_level)
            .map_err(|error| ConfigError::LogLevel { reason: error.to_string() })?;
        range("full_every", self.full_every.into(), 1, 1000, "1 to 1000")?;
        if self.merge_limit_bytes_per_s != 0 {
            let wanted = "0 (no limit), or 1048576 (1 MiB a second) to 1099511627776";
            range("merge_limit_bytes_per_s", self.merge_limit_bytes_per_s, 1 << 20, 1 << 40, wanted)?;
        }
        range("task_concurrency", self.task_concurrency as u64, 1, 64, "1 to 64")?;
        if self.hydration_limit_bytes_per_s != 0 {
            let wanted = "0 (no limit), or 1048576 (1 MiB a second) to 1099511627776";
            range("hydration_limit_bytes_per_s", self.hydration_limit_bytes_per_s, 1 << 20, 1 << 40, wanted)?;
        }
        range("hydration_concurrency", self.hydration_concurrency as u64, 1, 64, "1 to 64")?;
        range("lazy_stall_ms", self.lazy_stall_ms, 1000, 86_400_000, "1000 to 86400000")?;
        range("lazy_error_ms", self.lazy_error_ms, 100, 3_600_000, "100 to 3600000")?;
        range("upload_concurrency", self.upload_concurrency as u64, 1, 64, "1 to 64")?;
        range("download_concurrency", self.download_concurrency as u64, 1, 64, "1 to 64")?;
        range("cpu_threads", self.cpu_threads as u64, 0, 1024, "0 (one per core) to 1024")?;
        range("ring_threads", self.ring_threads as u64, 0, 256, "0 (one per core) to 256")?;
        range("nbd_workers", self.nbd_workers as u64, 1, 1024, "1 to 1024")?;
        range("nbd_connections", self.nbd_connections as u64, 1, 65_536, "1 to 65536")?;
        range("nbd_connections_per_volume", self.nbd_connections_per_volume, 1, 65_536, "1 to 65536")?;
        range("nbd_handshake_timeout_ms", self.nbd_handshake_timeout_ms, 100, 3_600_000, "100 to 3600000")?;
        if self.nbd_idle_timeout_ms != 0 {
            let wanted = "0 (never) or 1000 to 86400000";
            range("nbd_idle_timeout_ms", self.nbd_idle_timeout_ms, 1000, 86_400_000, wanted)?;
        }
        let (low, high, wanted) = (1 << 20, 1 << 40, "1048576 (1 MiB) to 1099511627776 (1 TiB)");
        range("nbd_connection_in_flight_bytes", self.nbd_connection_in_flight_bytes, low, high, wanted)?;
        range("nbd_in_flight_bytes", self.nbd_in_flight_bytes, low, high, wanted)?;
        self.check_tls()?;
        self.control.check()?;
        self.secrets.check()?;
        webhook::check(&self.webhook)?;
        self.limit_plan()?;
        range("store_attempts", self.store_attempts.into(), 1, 100, "1 to 100")?;
        range("store_timeout_ms", self.store_timeout_ms, 100, 3_600_000, "100 to 3600000")?;
        range("store_answer_ms", self.store_answer_ms, 100, 3_600_000, "100 to 3600000")?;
        let browse = &self.browse;
        let wanted = "1048576 (1 MiB) to 1125899906842624 (1 PiB)";
        range("browse.cache_bytes", browse.cache_bytes, 1 << 20, 1 << 50, wanted)?;
        range("browse.stall_timeout_ms", browse.stall_timeout_ms, 100, 3_600_000, "100 to 3600000")?;
        range("browse.refresh_ms", browse.refresh_ms, 100, 3_600_000, "100 to 3600000")?;
        let relative = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.is_absolute());
        if relative(&browse.mountpoint) || relative(&browse.cache_dir) {
            let given = "a relative path".into();
            return Err(ConfigError::Range { key: "browse", given, wanted: "absolute paths" });
        }
        range("stop_timeout_ms", self.stop_timeout_ms, 0, 3_600_000, "0 to 3600000")?;
        range("gc_every_hours", self.gc_every_hours.into(), 0, 8760, "0 (never) to 8760")?;
        if self.verify_bytes_per_day != 0 {
            let wanted = "0 (nothing), or 104857600 (100 MiB) to 1125899906842624 (1 PiB)";
            range("verify_bytes_per_day", self.verify_bytes_per_day, 100 << 20, 1 << 50, wanted)?;
        }
        range("task_history", self.task_history.into(), 1, 1_000_000, "1 to 1000000")
    }

    /// Looks for what the configuration needs of this host, and the daemon starts without.
    ///
    /// # Errors
    /// A group is not there.
    pub fn check_host(&self) -> Result<(), ConfigError> {
        for socket in &self.control.sockets {
            crate::control::find_group(&socket.group)
                .map_err(|error| ConfigError::Group { reason: error.to_string() })?;
        }
        Ok(())
    }

    /// What all tasks of the host together may move.
    pub(crate) fn limit_plan(&self) -> Result<LimitPlan, ConfigError> {
        let limits = CredentialLimits {
            upload: self.limit_upload.clone().unwrap_or_default(),
            download: self.limit_download.clone().unwrap_or_default(),
            time_zone: self.limit_time_zone.clone(),
        };
        LimitPlan::of(&limits).map_err(|error| ConfigError::Limit { reason: error.to_string() })
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        let wrong =
            |key, given: &str, wanted| Err(ConfigError::Range { key, given: given.to_owned(), wanted });
        let has_certificate = self.nbd_tls_certificate.is_some();
        if has_certificate != self.nbd_tls_key.is_some() {
            let key = if has_certificate { "nbd_tls_key" } else { "nbd_tls_certificate" };
            return wrong(key, "not set", "set: certificate and key belong together");
        }
        if self.tls_mode() != NbdTls::Off && !has_certificate {
            return wrong("nbd_tls_certificate", "not set", "set for nbd_tls to be anything but \"off\"");
        }
        if self.nbd_tls_client_ca.is_some() && self.tls_mode() == NbdTls::Off {
            return wrong("nbd_tls_client_ca", "set", "left out without TLS");
        }
        if self.nbd_tls_client_crl.is_some() && self.nbd_tls_client_ca.is_none() {
            return wrong("nbd_tls_client_ca", "not set", "set for nbd_tls_client_crl to mean anything");
        }
        if !self.nbd_access.is_empty() && self.nbd_tls_client_ca.is_none() {
            return wrong("nbd_tls_client_ca", "not set", "set for nbd_access to know whom it lets in");
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

    /// Whether TCP addresses are served over TLS.
    pub fn tls_mode(&self) -> NbdTls {
        let by_certificate = if self.nbd_tls_certificate.is_some() { NbdTls::Require } else { NbdTls::Off };
        self.nbd_tls.unwrap_or(by_certificate)
    }

    /// The files for TLS, if it is served.
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

    /// The configuration for people, as a TOML document: the addresses of webhooks, which may hold secrets,
    /// without their paths.
    pub fn to_shown_toml(&self) -> String {
        let mut shown = self.clone();
        for webhook in &mut shown.webhook {
            webhook.url = webhook.url.shown();
        }
        shown.to_toml()
    }

    /// The configuration as a TOML document.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/x.toml"))
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse("full_every = 3\n\nuplod_concurrency = 4\n").unwrap_err().to_string();
        assert!(error.starts_with("configuration /etc/x.toml, line 3: "), "{error}");
        assert!(error.contains("uplod_concurrency"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(
            &path,
            "data_dir = \"/a\"\nfull_every = 3\nlog_level = \"warn\"\nnbd_listen = [\"tcp://127.0.0.1:1\"]\n",
        )
        .unwrap();
        let path_text = path.to_str().unwrap();
        let cli = Cli::parse_from([
            "blockd",
            "--config",
            path_text,
            "--data-dir",
            "/b",
            "--nbd-listen",
            "tcp://[::1]:2",
        ]);
        let config = Config::load(&cli).unwrap();
        assert_eq!(config.data_dir, Path::new("/b"));
        assert_eq!(config.full_every, 3);
        assert_eq!(config.upload_concurrency, 4);
        assert_eq!(config.nbd_listen, vec![NbdAddress::Tcp("[::1]:2".parse().unwrap())]);
    }

    #[test]
    fn a_named_file_must_exist() {
        let cli = Cli { config: Some("/nonexistent/blockd.toml".into()), ..Cli::default() };
        let error = Config::load(&cli).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/blockd.toml"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let config = Config { full_every: 0, ..Config::default() };
        assert_eq!(config.check().unwrap_err().to_string(), "full_every is 0, but must be 1 to 1000");
    }

    #[test]
    fn a_level_of_the_log_that_is_none_is_refused() {
        let config = Config { log_level: "bogus".into(), ..Config::default() };
        let error = config.check().unwrap_err().to_string();
        assert!(error.starts_with("log_level: ") && error.contains("bogus"), "{error}");
    }

    #[test]
    fn what_is_printed_reads_back() {
        let config = Config { nbd_listen: vec!["unix:///run/x.sock".parse().unwrap()], ..Config::default() };
        assert_eq!(parse(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn limits_are_for_parts_of_the_day_and_checked() {
        let text = "limit_upload = \"20M@08:00-18:00,100MiB\"\nlimit_time_zone = \"Europe/Berlin\"\n";
        let config = parse(text).unwrap();
        config.check().unwrap();
        assert_eq!(parse(&config.to_toml()).unwrap(), config);
        assert!(parse("limit_upload = \"20M@8-18\"").unwrap_err().to_string().contains("08:00-18:00"));
        for (text, word) in [("limit_download = \"7\"", "1024"), ("limit_time_zone = \"X/Y\"", "X/Y")] {
            let error = parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn others_read_along_only_if_that_was_asked_for() {
        let with = |text: &str| {
            let config = parse(text).unwrap();
            config.check().map(|()| config.tls_mode()).map_err(|error| error.to_string())
        };
        let certificate = "nbd_tls_certificate = \"/c\"\nnbd_tls_key = \"/k\"\n";
        let open = "nbd_listen = [\"tcp://127.0.0.1:1\", \"tcp://0.0.0.0:1\"]\n";
        let error = with(open).unwrap_err();
        assert!(error.contains("0.0.0.0:1") && error.contains("nbd_allow_plaintext"), "{error}");
        assert_eq!(with(&format!("{open}nbd_allow_plaintext = true")), Ok(NbdTls::Off));
        assert_eq!(with(&format!("{open}{certificate}")), Ok(NbdTls::Require), "it is used if it is there");
        let allow = format!("{open}{certificate}nbd_tls = \"allow\"\n");
        assert!(with(&allow).unwrap_err().contains("nbd_allow_plaintext"), "a client in clear could come");
        assert_eq!(with(&format!("{allow}nbd_allow_plaintext = true")), Ok(NbdTls::Allow));
        for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(with(&format!("nbd_listen = [\"tcp://{address}\"]")), Ok(NbdTls::Off));
        }
        for (text, named) in [
            ("nbd_tls = \"require\"", "nbd_tls_certificate"),
            ("nbd_tls_certificate = \"/c\"", "nbd_tls_key"),
            ("nbd_tls_key = \"/k\"", "nbd_tls_certificate"),
            ("nbd_tls_client_ca = \"/ca\"", "nbd_tls_client_ca"),
            ("nbd_tls_client_crl = \"/crl\"", "nbd_tls_client_ca"),
            ("[nbd_access]\nvol = [\"alice\"]", "nbd_tls_client_ca"),
            ("nbd_idle_timeout_ms = 5", "nbd_idle_timeout_ms"),
        ] {
            let error = with(text).unwrap_err();
            assert!(error.starts_with(&format!("{named} is ")), "{text}: {error}");
        }
        let full =
            format!("{certificate}nbd_tls_client_ca = \"/ca\"\n[nbd_access]\n\"db-*\" = [\"alice\"]\n");
        assert_eq!(with(&full), Ok(NbdTls::Require));
        let config = parse(&full).unwrap();
        assert_eq!(parse(&config.to_toml()).unwrap(), config, "what is printed reads back");
    }

    #[test]
    fn addresses_say_what_would_be_right() {
        for bad in ["127.0.0.1:10809", "tcp://localhost", "unix://relative", "http://x", ""] {
            let error = bad.parse::<NbdAddress>().unwrap_err();
            assert!(error.contains("tcp://"), "{error}");
        }
    }
}
