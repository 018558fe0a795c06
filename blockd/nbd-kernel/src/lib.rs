//! Kernel devices `/dev/nbdN`: client of the kernel's nbd driver over generic netlink, NBD negotiation, and
//! inspection of devices.
//!
//! [`dial()`] negotiates with an NBD server on a Unix socket; [`DriverSession::connect`] passes the sockets
//! to the kernel, which then speaks NBD on them. A device outlives the process that attached it: a process
//! with its backend identifier can replace dead sockets.

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

/// Options of an attached device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachOptions {
    /// Logical block size, in bytes: 512, 1024, 2048 or 4096.
    pub block_size_bytes: u32,
    /// Timeout of a request, in seconds; then the kernel resends it on another connection.
    pub request_timeout_s: u64,
    /// Time that requests wait for a new connection if all are dead, in seconds.
    pub dead_timeout_s: u64,
    /// Backend identifier of the owner, without NUL.
    pub backend: String,
}
