//! End-to-end tests, one module per subject: `cargo build -p blockd -p blockctl && cargo test -p blockd-tests
//! MODULE::` runs one module with the programs of this tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod anomalies;
mod block_status;
mod browse;
mod browse_handed;
mod clients;
mod crash;
mod crash_replay;
mod damage;
mod database_probes;
mod databases;
mod docs;
mod failing_disk;
mod filesystem_shutdown;
mod groups;
mod harness;
mod identical;
mod incremental;
mod kernel;
mod layers;
mod lazy;
mod limits;
mod many;
mod objects;
mod operating;
mod package;
mod remote_control;
mod s3;
mod secrets;
mod stores;
