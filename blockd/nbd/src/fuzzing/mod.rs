//! Properties for arbitrary input of clients; for fuzzing and tests only.
//!
//! A connection is driven without sockets over an in-memory device. An independent parser, written from the
//! protocol document and `PROTOCOL.md`, checks the replies: each request has one reply of the right form with
//! an allowed error, and reads return content that the device held at some moment meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what does not hold is to be found"
)]

mod device;
mod driver;
mod negotiation;
mod plan;
mod replies;
mod requests;
mod session;

#[cfg(test)]
pub(crate) use driver::Driver;
pub use session::{handshake, transmission};
