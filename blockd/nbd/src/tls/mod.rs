//! TLS: the server's identity, the session of a connection without I/O, and the names in certificates.

pub(crate) mod identity;
pub(crate) mod names;
pub(crate) mod session;
