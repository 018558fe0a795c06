//! Objects of declarative configuration, in YAML or JSON.
//!
//! The daemon stores no objects: each is converted to and from the resources of its API.

pub mod backup;
mod document;
pub mod drill;
mod foreign;
pub mod hook;
mod kind;
pub mod location;
pub mod location_table;
mod object;
pub mod policy;
mod reader;
mod resolve;
pub mod schedule;
mod secret;
mod values;
pub mod volumes;

pub use backup::ReclaimPolicy;
pub use kind::{API_VERSION, Kind};
pub use object::{Body, Object, document, yaml};
pub use reader::{ObjectSet, read_all};
pub use resolve::resolve;
pub use values::{NAMESPACE, view};

#[cfg(test)]
mod tests;
