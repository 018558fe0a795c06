//! Schedules: requests, and the task that runs them.

mod drills;
pub mod judgement;
pub mod known_health;
mod local;
mod plan;
pub mod plausibility;
pub mod policies;
pub mod requests;
pub mod resumption;
#[cfg(test)]
mod resumption_tests;
pub mod retention_checks;
mod run_events;
pub mod runner;
pub mod selection;
pub mod settle;
#[cfg(test)]
mod simulation;
pub mod transactions;
#[cfg(test)]
mod transactions_tests;
mod update;
pub mod uses;
pub mod wake;
