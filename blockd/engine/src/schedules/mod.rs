//! Schedules: requests, and the task that runs them.

pub mod engine;
#[cfg(test)]
mod engine_tests;
mod known_health;
mod local;
mod plausibility;
mod policies;
pub mod requests;
pub mod retention_checks;
pub mod runner;
#[cfg(test)]
mod simulation;
mod uses;

pub use crate::schedules::known_health::KnownHealth;
pub use crate::schedules::retention_checks::{delete_command, is_relied_on};
pub use crate::schedules::runner::{Delays, Scheduler, run};
pub use crate::schedules::uses::Uses;
