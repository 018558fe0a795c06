//! Integration tests of the server with real sockets and clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panics")]

mod bad_clients;
#[path = "common/certs.rs"]
mod certs;
mod common;
mod real_clients;
mod remote_reads;
mod sessions;
mod structured;
mod syncs;
mod tls;
