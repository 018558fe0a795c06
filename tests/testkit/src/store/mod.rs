//! Stores that fail on purpose, and suites that any store must pass; for tests only.

mod adapter;
mod fault;
mod http;
mod memory;
mod suite;

pub use adapter::{Has, object_store_suite};
pub use fault::{Fault, FaultStore};
pub use http::{HttpDouble, HttpReply, HttpRequest};
pub use memory::MemoryStore;
pub use suite::store_suite;
