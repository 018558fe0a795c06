//! Errors of starting and stopping a server. What goes wrong on one connection ends that connection and is
//! logged.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// The kernel refused an io_uring.
    #[error(
        "io_uring cannot be used here: it needs Linux 5.11 or newer, kernel.io_uring_disabled = 0 and a \
         sandbox that allows io_uring_setup"
    )]
    RingSetup {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A setting is out of its range.
    #[error("the NBD server setting {setting} is {value}: {wanted}")]
    InvalidConfig {
        /// Which setting.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// The path of the socket is taken by something that is no socket.
    #[error("cannot listen on {path}: there is a file that is not a socket, move it away")]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// Another server answers on the socket.
    #[error("cannot listen on {path}: another server answers there, stop it or choose another path")]
    SocketInUse {
        /// Where.
        path: PathBuf,
    },
    /// The unix socket could not be made.
    #[error("cannot listen on the unix socket {path}: {doing}")]
    BindUnix {
        /// Where.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The TCP address could not be bound.
    #[error("cannot listen on tcp://{addr}")]
    BindTcp {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started, or died while starting.
    #[error("cannot start the thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Some request had not finished when the time for stopping was over.
    #[error("the NBD server did not stop within {timeout:?}: {running} threads still wait for a device")]
    ShutdownTimeout {
        /// How long it was waited.
        timeout: Duration,
        /// Threads that were left running.
        running: usize,
    },
}

impl NbdError {
    /// Whether the same call may succeed later.
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
