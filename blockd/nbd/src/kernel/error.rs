//! What can go wrong with the kernel's nbd driver, in words that say what to do.

use std::{io, path::PathBuf};

/// The kernel's nbd driver does not do what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The driver is not there.
    #[error(
        "the kernel's nbd module is not loaded: run `modprobe nbd`, and put a line `nbd` into /etc/modules-load.d/nbd.conf for the next boot"
    )]
    NoModule,
    /// It takes more rights.
    #[error(
        "the kernel does not let this process {doing}: it needs CAP_SYS_ADMIN (run as root, or give the service that capability)"
    )]
    Denied {
        /// What was asked for.
        doing: String,
    },
    /// Someone else has the device.
    #[error(
        "/dev/nbd{index} is in use by another NBD client: choose another device, or none to get a free one"
    )]
    Busy {
        /// The device.
        index: u32,
    },
    /// The kernel knows no such device.
    #[error("/dev/nbd{index} is not connected, or belongs to somebody else")]
    NoDevice {
        /// The device.
        index: u32,
    },
    /// The kernel refused.
    #[error("the kernel cannot {doing}: {source}")]
    Refused {
        /// What was asked for.
        doing: String,
        /// What it said.
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("netlink: cannot {doing}: {source}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel said something else than what it should.
    #[error("netlink: the kernel's answer to `{doing}` is not understood")]
    Garbled {
        /// What was asked for.
        doing: String,
    },
}

impl KernelError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Socket { .. } => true,
            Self::Refused { source, .. } => {
                matches!(source.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted)
            }
            _ => false,
        }
    }
}

/// No connection to the server could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The socket failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// The server's socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server does not serve the export.
    #[error("the server does not serve export {export:?}: {reason}")]
    Refused {
        /// The export.
        export: String,
        /// What the server said.
        reason: String,
    },
    /// The server does not follow the protocol.
    #[error("the server at {} does not speak NBD as it should: {what}", path.display())]
    Protocol {
        /// The server's socket.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl DialError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Protocol { .. })
    }
}
