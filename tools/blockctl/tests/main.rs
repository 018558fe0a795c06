//! Tests of the command with a fake daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod arguments;
mod clones;
mod copy;
mod costs;
mod damage;
mod drills;
mod earlier_restores;
mod first_hour;
mod happens_once;
mod labels;
mod lists;
mod locations;
mod migration;
mod names;
mod object_errors;
mod objects;
mod open_locations;
mod output;
mod overlaps;
mod plans;
mod replacements;
mod restores;
mod retirement;
mod rules;
mod schemas;
mod sources;
mod streams;
mod support;
mod task_names;
mod terminal;
mod top;
mod waiting;
