//! Schedules: requests, and the task that runs them.

pub(crate) mod engine;
#[cfg(test)]
mod engine_tests;
mod known_health;
mod local;
mod plausibility;
mod policies;
mod requests;
mod retention_checks;
mod runner;
#[cfg(test)]
mod simulation;
mod uses;

pub(crate) use known_health::KnownHealth;
pub(crate) use retention_checks::{delete_command, is_relied_on};
#[cfg(test)]
pub(crate) use runner::Delays;
pub(crate) use runner::{Scheduler, run};
pub(crate) use uses::Uses;
