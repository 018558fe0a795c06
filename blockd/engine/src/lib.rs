//! The use cases of blockd: volumes, snapshots, backups, restores, schedules, and the tasks that run them.
//!
//! [`engine::Engine`] constructs the services from the bottom to the top. The daemon serves them over NBD and
//! the control API, and runs the background loops.

pub mod anomalies;
pub mod backup;
pub mod cloud_snapshots;
pub mod costs;
pub mod credentials;
mod damaged_files;
pub mod data_dir;
pub mod drills;
pub mod engine;
pub mod error;
pub mod events;
pub mod failpoints;
mod fingerprints;
pub mod free_space;
pub mod health;
pub mod host;
pub mod ids;
pub mod leases;
pub mod maintenance;
pub mod metrics;
pub mod monitor;
pub mod names;
pub mod owner;
pub mod proofs;
pub mod quiesce;
pub mod quota;
pub mod readers;
pub mod repair;
pub mod repositories;
pub mod restore;
pub mod schedules;
pub mod scrub;
pub mod settings;
pub mod snapshots;
pub mod tasks;
mod volume_io;
pub mod volumes;
