//! What is counted while the daemon works, and how it is told to Prometheus.
//!
//! On the way of data: two looks at the clock and two relaxed additions in the memory of one core. All else
//! is looked up when somebody asks. Labels are names of volumes and of credentials, and words of this
//! program, so there are as many series as somebody made things.

mod collect;
mod exposition;
mod histogram;
mod store;
#[cfg(test)]
pub(crate) mod strict;
mod traffic;

pub(crate) use collect::TEXT_FORMAT;
pub(crate) use store::{MeteredStore, Meters};
pub(crate) use traffic::{Operation, Traffic};
