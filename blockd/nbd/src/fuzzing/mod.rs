//! What must hold whatever a client, or the kernel, sends; for fuzzing and tests only.
//!
//! A connection is driven without sockets over a device in memory. What the server answers is read by a
//! parser of its own, written from the protocol document and `PROTOCOL.md` alone, and held against what the
//! client sent: each request has one reply, of the right form, with an error that the tables allow, and what
//! was read is what the device held at some moment meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what does not hold is to be found"
)]

mod device;
mod driver;
mod negotiation;
mod netlink;
mod plan;
mod replies;
mod requests;
mod session;

#[cfg(test)]
pub(crate) use driver::Driver;
pub use netlink::netlink;
pub use session::{handshake, transmission};
