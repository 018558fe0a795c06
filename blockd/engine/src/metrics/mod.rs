//! Counters of the daemon, and their exposition for Prometheus.
//!
//! A request costs two clock reads and four relaxed additions or subtractions in the memory of one core.
//! Other values are read on each scrape. Labels are names and ids of configured objects and fixed words, so
//! the number of series grows with the number of those objects only.

pub mod exposition;
pub mod histogram;
pub mod store;
pub mod traffic;

pub use crate::metrics::exposition::TEXT_FORMAT;
pub use crate::metrics::store::Meters;
pub use crate::metrics::traffic::{Operation, Traffic};
