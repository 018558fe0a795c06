//! Volumes as `/dev/nbdN`: a client of the kernel's nbd driver over generic netlink, and the connections that it is given.
//!
//! The kernel takes sockets that are in transmission and speaks NBD on them by itself. A device outlives the process that
//! made it: whoever knows its backend identifier can give it other sockets in place of dead ones.

mod dial;
mod error;
mod family;
mod netlink;
mod wire;

pub use dial::{Dialed, dial};
pub use error::{DialError, KernelError};
pub use netlink::{Kernel, LinkWatch};

/// How a device is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachOptions {
    /// The smallest unit that the kernel reads and writes: 512, 1024, 2048 or 4096.
    pub block_size_bytes: u32,
    /// After how long without a reply a request is sent again on another connection.
    pub request_timeout_s: u64,
    /// How long requests wait for a connection when all are dead, before they fail.
    pub dead_timeout_s: u64,
    /// What tells that the device belongs to its owner; without zeroes.
    pub backend: String,
}
