//! Tests of the cloud format through the public API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod cache;
mod chains;
mod common;
mod compression;
mod costs;
mod damage;
mod dedup;
mod deletions;
mod estimates;
mod fixtures;
mod garbage;
mod key_slots;
mod leases;
mod listing;
mod lost_answers;
mod proofs;
mod references;
mod repair;
mod restore_again;
mod resume;
mod rotate;
mod simulation;
mod suite;
mod transfers;
mod two_writers;
mod verify;
mod write_key;
