//! Schedules: requests, and the task that runs them.

pub(crate) mod engine;
#[cfg(test)]
mod engine_tests;
mod kept;
mod local;
mod policies;
mod requests;
mod runner;
mod sense;
#[cfg(test)]
mod simulation;
mod uses;

pub(crate) use kept::delete_command;
#[cfg(test)]
pub(crate) use runner::Delays;
pub(crate) use runner::{Scheduler, start};
pub(crate) use uses::Uses;
