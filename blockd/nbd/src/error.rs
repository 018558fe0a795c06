//! Errors of server start and shutdown. Errors of a connection end that connection and are logged.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Failure to start or stop a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The kernel refused to create an io_uring.
    #[error(
        "io_uring setup failed; requirements: Linux 5.11 or newer, kernel.io_uring_disabled = 0 and a sandbox \
        that permits io_uring_setup"
    )]
    RingSetup {
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A setting is out of range.
    #[error("invalid NBD server setting {setting} ({value}): {wanted}")]
    InvalidConfig {
        /// Name of the setting.
        setting: &'static str,
        /// Given value.
        value: String,
        /// Requirement, such as the valid range.
        wanted: &'static str,
    },
    /// The socket path is a file of another type.
    #[error("listen failed on {path}: the file is not a socket; move it away")]
    NotASocket {
        /// Path.
        path: PathBuf,
    },
    /// Another server listens on the socket.
    #[error("listen failed on {path}: another server listens there; stop it or choose another path")]
    SocketInUse {
        /// Path.
        path: PathBuf,
    },
    /// The Unix socket could not be created.
    #[error("listen failed on unix socket {path}: {reason}")]
    BindUnix {
        /// Path.
        path: PathBuf,
        /// Requirement or failed step.
        reason: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The TCP address could not be bound.
    #[error("listen failed on tcp://{addr}")]
    BindTcp {
        /// Address.
        addr: SocketAddr,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A thread, or its wake-up descriptor, could not be created.
    #[error("start failed on thread {name}")]
    Thread {
        /// Name of the thread.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Threads still ran after the shutdown timeout, usually in a call of a device.
    #[error("shutdown failed on the NBD server: {running} threads still run after {timeout:?}")]
    ShutdownTimeout {
        /// Elapsed timeout.
        timeout: Duration,
        /// Number of running threads.
        running: usize,
    },
}

impl NbdError {
    /// Returns true if a retry without a change of the configuration can succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::SocketInUse { .. } | Self::ShutdownTimeout { .. } => true,
            Self::BindUnix { source, .. }
            | Self::BindTcp { source, .. }
            | Self::Thread { source, .. }
            | Self::RingSetup { source } => matches!(
                source.kind(),
                io::ErrorKind::AddrInUse
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::OutOfMemory
                    | io::ErrorKind::Interrupted
            ),
            Self::InvalidConfig { .. } | Self::NotASocket { .. } => false,
        }
    }
}
