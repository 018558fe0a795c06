//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

mod apply;
pub mod args;
mod backups;
mod delete;
mod plan;
mod record;
mod resources;
mod show;

pub use apply::run as apply;
pub use delete::run as delete;
pub use show::{describe, diff, get};
