//! Kernel devices `/dev/nbdN`: a client of the kernel's nbd driver over generic netlink, and its connections.
//!
//! The kernel takes sockets in transmission and speaks NBD on them. A device outlives the process that
//! created it: a process with its backend identifier can replace dead sockets.

mod dial;
mod driver;
mod error;
mod family;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod netlink;
mod system;
mod wire;

pub use dial::{Dialed, dial};
pub use driver::{Driver, DriverSession, KernelDriver, Watch};
pub use error::{DialError, KernelError};
pub use netlink::{Kernel, LinkWatch};
pub use system::{MountPoint, System};

/// Options of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachOptions {
    /// Logical block size: 512, 1024, 2048 or 4096.
    pub block_size_bytes: u32,
    /// Timeout before a request is sent again on another connection, in seconds.
    pub request_timeout_s: u64,
    /// Time that requests wait for a connection when all are dead, in seconds.
    pub dead_timeout_s: u64,
    /// Backend identifier of the owner; without zero bytes.
    pub backend: String,
}

/// Reads a datagram in every way that one is read, for fuzzing: how many messages it has, and how many bytes
/// of text and lists of devices.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn parse_datagram(datagram: &[u8]) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for message in wire::messages(datagram) {
        count += 1;
        let wire::Message::Generic { attributes, .. } = message else {
            continue;
        };
        let _ = (family::family(attributes), family::index(attributes));
        // A device takes two attributes of at least 8 bytes; their last byte may be missing.
        let devices = family::devices(attributes);
        bytes += devices.len() * 8;
        for (kind, attribute) in attributes {
            let _ = (attribute.u8(), attribute.u16(), attribute.u32());
            // A list of devices has been counted.
            if devices.is_empty() || kind != 9 {
                bytes += attribute.text().map_or(0, str::len);
            }
            for (_, inner) in attribute.nested() {
                let _ = (inner.text(), inner.nested().count());
            }
        }
    }
    (count, bytes)
}
