//! Errors of a start and a stop.

use crate::{config::ConfigError, lock::LockError};
use blockd_api::with_sources;
use blockd_engine::{engine::OpenError, error::ServiceError};
use blockd_nbd::{NbdError, TlsError};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Maximum length of a Unix socket path, in bytes: one less than `sun_path`, for the terminating zero.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Reasons why the daemon could not start, or not stop cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The data directory is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
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
    /// The state cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
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
            Self::Open(error) => error.is_retryable(),
            Self::Lazy(error) => error.is_retryable(),
            _ => false,
        }
    }
}

pub(crate) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::File { action, path: path.to_owned(), source }
}
