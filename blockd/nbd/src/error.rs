//! Errors of starting and stopping a server. Errors of a connection end it and are logged.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Failure to start or stop a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The kernel refused an io_uring.
    #[error(
        "io_uring cannot be used here: it needs Linux 5.11 or newer, kernel.io_uring_disabled = 0 and a \
         sandbox that allows io_uring_setup"
    )]
    RingSetup {
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A setting is out of range.
    #[error("the NBD server setting {setting} is {value}: {wanted}")]
    InvalidConfig {
        /// Setting.
        setting: &'static str,
        /// Given value.
        value: String,
        /// Valid range.
        wanted: &'static str,
    },
    /// The path of the socket exists and is not a socket.
    #[error("cannot listen on {path}: there is a file that is not a socket, move it away")]
    NotASocket {
        /// Path.
        path: PathBuf,
    },
    /// Another server answers on the socket.
    #[error("cannot listen on {path}: another server answers there, stop it or choose another path")]
    SocketInUse {
        /// Path.
        path: PathBuf,
    },
    /// The Unix socket could not be created.
    #[error("cannot listen on the unix socket {path}: {doing}")]
    BindUnix {
        /// Path.
        path: PathBuf,
        /// Failed step.
        doing: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The TCP address could not be bound.
    #[error("cannot listen on tcp://{addr}")]
    BindTcp {
        /// Path.
        addr: SocketAddr,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the thread {name}")]
    Thread {
        /// Name.
        name: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Requests were still running after the shutdown timeout.
    #[error("the NBD server did not stop within {timeout:?}: {running} threads still wait for a device")]
    ShutdownTimeout {
        /// Timeout.
        timeout: Duration,
        /// Number of running threads.
        running: usize,
    },
}

impl NbdError {
    /// Returns true if a retry can succeed.
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
