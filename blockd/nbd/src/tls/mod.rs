//! TLS: the server's identity, I/O-free sessions of connections, and names in client certificates.

pub(crate) mod identity;
mod incoming;
pub(crate) mod names;
pub(crate) mod session;
