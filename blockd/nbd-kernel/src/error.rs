//! Errors of the kernel's nbd driver, with their remedies.

use std::{io, path::PathBuf};

/// Failure of the kernel's nbd driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The driver is not loaded.
    #[error(
        "the kernel's nbd module is not loaded: run `modprobe nbd`, and put a line `nbd` into /etc/modules-load.d/nbd.conf for the next boot"
    )]
    NoModule,
    /// The process lacks privileges.
    #[error(
        "the kernel does not let this process {doing}: it needs CAP_SYS_ADMIN (run as root, or give the service that capability)"
    )]
    Denied {
        /// Operation.
        doing: String,
    },
    /// Another client uses the device.
    #[error(
        "/dev/nbd{index} is in use by another NBD client: choose another device, or none to get a free one"
    )]
    Busy {
        /// Device.
        index: u32,
    },
    /// The device does not exist.
    #[error("/dev/nbd{index} is not connected, or belongs to another server")]
    NoDevice {
        /// Device.
        index: u32,
    },
    /// The kernel refused the request.
    #[error("the kernel cannot {doing}: {source}")]
    Refused {
        /// Operation.
        doing: String,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("netlink: cannot {doing}: {source}")]
    Socket {
        /// Operation.
        doing: &'static str,
        /// System error.
        source: io::Error,
    },
    /// The reply of the kernel is malformed.
    #[error("netlink: the kernel's answer to `{doing}` is not understood")]
    Garbled {
        /// Operation.
        doing: String,
    },
}

/// Failure to connect to the server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The socket failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Socket {
        /// Operation.
        doing: &'static str,
        /// Socket of the server.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// The server does not serve the export.
    #[error("the server does not serve export {export:?}: {reason}")]
    Refused {
        /// Export.
        export: String,
        /// Message of the server.
        reason: String,
    },
    /// The server does not follow the protocol.
    #[error("the server at {} does not speak NBD as it should: {what}", path.display())]
    Protocol {
        /// Socket of the server.
        path: PathBuf,
        /// Violation.
        what: &'static str,
    },
}
