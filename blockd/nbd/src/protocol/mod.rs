//! Wire protocol, without I/O: messages, and the state machine of the negotiation.

pub mod constants;
pub(crate) mod handshake;
#[cfg(test)]
mod handshake_tests;
mod lookup;
pub(crate) mod meta_context;
mod options;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod tls_option;
pub(crate) mod wire;
