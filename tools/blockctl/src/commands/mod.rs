//! Implementations of the commands.

pub mod anomaly;
pub mod arguments;
pub mod browse;
pub mod bundle;
pub mod cloudsnap;
pub mod completions;
pub mod context;
pub mod credentials;
pub mod doctor;
pub mod events;
mod files;
mod filters;
mod health;
pub mod init;
pub mod limits;
mod list_filter;
pub mod objects;
mod protection;
pub mod rules;
pub mod schedules;
pub mod schema;
pub mod secrets;
pub mod snapshot;
mod space;
pub mod status;
pub mod top;
pub mod volume;
