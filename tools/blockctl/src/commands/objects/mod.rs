//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

mod apply;
pub mod args;
mod backup_groups;
mod backup_locations;
mod backups;
mod clones;
mod delete;
mod differences;
mod existing;
mod found;
mod made_volumes;
mod object_plans;
mod overlaps;
mod plan;
pub mod record;
mod references;
mod resources;
mod restore_plans;
mod restores;
mod scheduled;
mod show;
mod sources;
pub mod status;
mod transfers;

pub use apply::run as apply;
pub use delete::run as delete;
pub use show::{describe, diff, get};
