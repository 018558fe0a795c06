//! Errors of the kernel's nbd driver and of the negotiation with the server.

use std::{io, path::PathBuf};

/// Failure of the kernel's nbd driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The driver is not loaded.
    #[error(
        "the kernel's nbd module is not loaded: run `modprobe nbd` (if the kernel has no such module, use nbdfuse instead), and add the line `nbd` to /etc/modules-load.d/nbd.conf"
    )]
    NoModule,
    /// The process lacks privileges.
    #[error(
        "{operation} failed on {object}: permission denied; run as root, or grant CAP_SYS_ADMIN to the service"
    )]
    Denied {
        /// Operation.
        operation: &'static str,
        /// Device, or the driver.
        object: String,
    },
    /// Another client uses the device.
    #[error(
        "attach failed on /dev/nbd{index}: another NBD client uses it; choose another device, or none for a free one"
    )]
    Busy {
        /// Index of the device.
        index: u32,
    },
    /// The device is not connected, or has another backend.
    #[error("/dev/nbd{index} is not connected, or belongs to another server")]
    NoDevice {
        /// Index of the device.
        index: u32,
    },
    /// The kernel refused the request.
    #[error("{operation} failed on {object}")]
    Refused {
        /// Operation.
        operation: &'static str,
        /// Device, or the driver.
        object: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("{operation} failed on the netlink socket")]
    Socket {
        /// Operation.
        operation: &'static str,
        /// System error.
        #[source]
        source: io::Error,
    },
    /// The reply of the kernel is malformed.
    #[error("{operation} failed on {object}: malformed netlink reply")]
    Malformed {
        /// Operation.
        operation: &'static str,
        /// Device, or the driver.
        object: String,
    },
}

/// Failure of [`dial()`](crate::dial()).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The socket failed.
    #[error("{operation} failed on {}", path.display())]
    Socket {
        /// Operation.
        operation: &'static str,
        /// Socket of the server.
        path: PathBuf,
        /// System error.
        #[source]
        source: io::Error,
    },
    /// The server refuses the export.
    #[error("negotiation failed on export {export:?}: {reason}")]
    Refused {
        /// Name of the export.
        export: String,
        /// Message of the server.
        reason: String,
    },
    /// The server violates the protocol.
    #[error("negotiation failed on {}: {violation}", path.display())]
    Protocol {
        /// Socket of the server.
        path: PathBuf,
        /// Violation.
        violation: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn causes_are_sources_and_not_in_messages() {
        let cause = || io::Error::from_raw_os_error(libc::EIO);
        let path = PathBuf::from("/run/nbd.sock");
        let errors: [Box<dyn Error>; 3] = [
            Box::new(KernelError::Refused {
                operation: "resize",
                object: "/dev/nbd1".into(),
                source: cause(),
            }),
            Box::new(KernelError::Socket { operation: "send", source: cause() }),
            Box::new(DialError::Socket { operation: "connect", path, source: cause() }),
        ];
        for error in errors {
            let (message, source) = (error.to_string(), error.source().unwrap().to_string());
            assert_eq!(source, cause().to_string());
            assert!(!message.contains(&source), "{message}");
        }
    }
}
