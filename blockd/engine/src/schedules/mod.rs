//! Schedules: requests, and the task that runs them.

pub mod engine;
#[cfg(test)]
mod engine_tests;
pub mod judgement;
pub mod known_health;
mod local;
pub mod plausibility;
pub mod policies;
pub mod requests;
pub mod retention_checks;
pub mod runner;
#[cfg(test)]
mod simulation;
pub mod uses;
pub mod wake;
