//! The wire protocol, without I/O: messages, and the state machine of the negotiation.

pub mod constants;
pub mod handshake;
mod lookup;
pub mod meta_context;
mod options;
pub mod reply;
pub mod request;
pub(crate) mod tls_option;
pub(crate) mod wire;
