//! TLS: the server's identity, the session of a connection without I/O, and the names in certificates.

pub(crate) mod identity;
mod incoming;
pub(crate) mod names;
pub(crate) mod session;
