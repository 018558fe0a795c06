//! Tests of volumes through the public API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod altered;
mod clone;
mod concurrent;
mod contract;
mod dirty_queries;
mod discarded;
mod faults;
mod groups;
mod kills;
mod lazy;
mod left_out_zeroes;
mod merge;
mod model;
mod offline;
mod power;
mod reflink;
mod rollback;
mod scrub;
mod scrub_history;
mod sequential_reads;
mod sim;
mod sums;
mod support;
