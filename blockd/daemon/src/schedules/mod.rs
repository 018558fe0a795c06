//! Schedules: what can be asked of them, and the task that runs them.

pub(crate) mod engine;
mod policies;
mod requests;
mod runner;
#[cfg(test)]
mod simulation;

pub(crate) use runner::{Scheduler, start};
