//! Tests of the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod activation;
#[path = "../../nbd/tests/common/certs.rs"]
mod certs;
mod journal;
mod process;
mod tls;
