//! Tests of the command with a fake daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod copy;
mod first_hour;
mod migration;
mod objects;
mod output;
mod streams;
mod support;
mod top;
mod waiting;
