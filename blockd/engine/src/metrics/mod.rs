//! Counters of the daemon, and their exposition for Prometheus.
//!
//! The data path costs two clock reads and two relaxed additions in the memory of one core. Other values are
//! read on each scrape. Labels are names of volumes and credentials and fixed words, so the number of series
//! grows with the number of configured objects only.

mod collect;
mod exposition;
mod histogram;
mod store;
mod traffic;

pub use collect::TEXT_FORMAT;
pub use store::Meters;
pub use traffic::{Operation, Traffic};
