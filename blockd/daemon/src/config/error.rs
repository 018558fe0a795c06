//! Errors of a configuration.

use blockd_engine::{drills::probe_config::ProbeConfigError, events::webhook_config::WebhookConfigError};
use std::{net::SocketAddr, path::PathBuf};

/// Reasons why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause reported by the system.
        source: std::io::Error,
    },
    /// The file is not valid TOML or has an unknown key.
    #[error("configuration {}, line {line}: {what}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line number, starting at 1.
        line: usize,
        /// Cause.
        what: String,
    },
    /// A value is out of its range.
    #[error("{key} is {given}, but must be {wanted}")]
    Range {
        /// The key.
        key: &'static str,
        /// Configured value.
        given: String,
        /// Valid values.
        wanted: String,
    },
    /// The log level or filter is invalid.
    #[error("log_level: {reason}")]
    LogLevel {
        /// Cause.
        reason: String,
    },
    /// The group of a control socket does not exist on this host.
    #[error("control.sockets: {reason}; this socket cannot be served")]
    Group {
        /// Cause.
        reason: String,
    },
    /// A bandwidth limit is invalid.
    #[error("limit_upload, limit_download or limit_time_zone: {reason}")]
    Limit {
        /// Cause.
        reason: String,
    },
    /// A probe of restore drills is invalid.
    #[error(transparent)]
    Probe(#[from] ProbeConfigError),
    /// A webhook is invalid.
    #[error(transparent)]
    Webhook(#[from] WebhookConfigError),
    /// NBD would be served in clear text to other hosts.
    #[error(
        "nbd_listen has tcp://{address}, which other hosts can reach without TLS: set nbd_tls_certificate and nbd_tls_key, or nbd_allow_plaintext = true if the network is trusted"
    )]
    Plaintext {
        /// The address.
        address: SocketAddr,
    },
}

impl ConfigError {
    /// Returns true if the same configuration may be valid later.
    pub fn is_retryable(&self) -> bool {
        false
    }
}
