//! The blockd daemon: volumes over NBD, their backups to object storage, and the control API for both.
//!
//! This crate combines the others: `daemon` starts and stops the parts, `core` holds their shared state, and
//! modules such as `volumes`, `snapshots`, `credentials` and `cloudsnaps` implement the operations that
//! `http` serves.

mod access;
pub mod activation;
mod activity;
pub mod allocator;
mod asking;
pub mod attachments;
mod backups;
mod beginnings;
pub mod browse;
mod care;
pub mod check;
pub mod check_start;
pub mod cli;
mod cloud;
mod cloudsnaps;
pub mod config;
mod control;
pub mod core;
mod credential_update;
mod credentials;
pub mod daemon;
pub mod db;
mod delete_start;
pub mod discarded;
mod error;
mod events;
mod exports;
mod files;
pub mod generate;
mod groups;
mod health;
mod http;
pub mod key_slots;
mod lazy;
mod limits;
mod locate;
pub mod lock;
pub mod logging;
mod map_sync;
mod marks;
#[cfg(test)]
mod meanwhile;
mod merger;
mod metrics;
mod nbd;
pub mod open_files;
mod owner;
mod pressure;
mod provider_update;
mod providers;
pub mod quiesce;
mod reconcile;
mod references;
pub mod registry;
mod rekey;
pub mod reload;
mod renewable;
mod rollback;
mod rules;
pub mod salvage;
#[cfg(test)]
mod scenarios;
mod schedules;
pub mod secrets;
mod secrets_elsewhere;
mod snapshots;
pub mod tasks;
mod turns;
mod upkeep;
mod volumes;
mod watchdog;
mod webhooks;
