//! Fake stores and servers, fault injection, and test suites for stores.

mod adapter;
mod fault;
mod http;
mod memory;
mod suite;

pub use adapter::{Has, object_store_suite};
pub use fault::{Fault, FaultStore};
pub use http::{FakeHttpServer, HttpReply, HttpRequest};
pub use memory::MemoryStore;
pub use suite::{deletion_suite, store_suite};
