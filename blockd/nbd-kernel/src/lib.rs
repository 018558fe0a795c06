//! Kernel devices `/dev/nbdN`: a client of the kernel's nbd driver over generic netlink, and its connections.
//!
//! The kernel takes sockets in transmission and speaks NBD on them. A device outlives the process that
//! created it: a process with its backend identifier can replace dead sockets.

mod dial;
mod driver;
mod error;
mod family;
mod netlink;
mod system;
mod wire;

pub use dial::{Dialed, dial};
pub use driver::{Driver, DriverSession, Watch};
pub use error::{DialError, KernelError};
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
