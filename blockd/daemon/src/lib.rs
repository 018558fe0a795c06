//! The blockd daemon: volumes over NBD, their backups to object storage, and the control API for both.
//!
//! This crate is the process: command line, configuration, listeners, the control API (`http`), and the
//! supervisor of background loops. The use cases are in the crate `blockd-engine`.

pub mod activation;
pub mod allocator;
pub mod check;
pub mod check_start;
pub mod cli;
pub mod config;
mod control;
pub mod daemon;
pub mod error;
pub mod generate;
mod http;
pub mod lock;
pub mod logging;
mod nbd;
pub mod open_files;
pub mod reload;
pub mod salvage;
mod served;
mod sockets;
mod supervisor;
mod watchdog;
