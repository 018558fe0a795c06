//! The blockd daemon: volumes over NBD, their backups to object storage, and the control API for both.
//!
//! This crate combines the others: `daemon` starts and stops the parts, `core` holds their shared state, and
//! modules such as `volumes`, `snapshots`, `credentials` and `cloudsnaps` implement the operations that
//! `http` serves.

mod access;
pub mod activation;
mod activity;
pub mod allocator;
pub mod attachments;
mod backups;
pub mod browse;
pub mod check;
pub mod check_start;
pub mod cli;
mod cloudsnaps;
pub mod config;
mod control;
pub mod core;
mod credential_update;
mod credentials;
pub mod daemon;
mod delete_start;
pub mod discarded;
mod error;
mod events;
mod exports;
mod external_secrets;
#[cfg(test)]
mod failpoint;
pub mod generate;
mod groups;
mod health;
mod http;
mod id_prefix;
pub mod key_slots;
mod lazy;
mod limits;
mod locate;
pub mod lock;
pub mod logging;
mod maintenance;
mod map_sync;
mod merger;
mod metrics;
mod nbd;
pub mod open_files;
mod owner;
mod preflight;
mod pressure;
mod provider_update;
mod providers;
mod quiesce;
mod reconcile;
mod referenced_client;
pub mod registry;
mod rekey;
pub mod reload;
mod retention_overrides;
mod rollback;
mod rules;
pub mod salvage;
#[cfg(test)]
mod scenarios;
mod schedules;
mod snapshots;
mod supervisor;
pub mod tasks;
mod verification;
mod volumes;
mod watchdog;
mod webhooks;
