//! Tests with images created by e2fsprogs and the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod check;
mod common;
mod features;
mod journal;
mod kernel;
mod metadata;
mod readme;
mod sample;
mod users;
