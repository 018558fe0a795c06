//! Tests with images of real filesystems.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod common;
mod hostile;
mod journal;
mod kernel;
mod made;
mod metadata;
mod readme;
