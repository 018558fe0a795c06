//! Stores that fail on purpose, and suites that any store must pass; for tests only.

mod fault;
mod frames;
mod memory;
mod suite;

pub use fault::{Fault, FaultStore};
pub use frames::FrameBench;
pub use memory::MemoryStore;
pub use suite::{MemoryVolume, repository_suite, store_suite};
