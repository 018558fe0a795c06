//! Middleware: stores that forward requests to another store.

mod dry;
mod failover;
mod layer;
mod limit;
mod meter;
mod prefix;
mod reload;
mod retry;
mod store_time;

pub use dry::DryStore;
pub use failover::FailoverStore;
pub use layer::{Middleware, Operation, Request, RequestKind, Response};
pub use limit::{Bandwidth, LimitStore};
pub(crate) use meter::note_received;
pub use meter::{BudgetCheck, MeterStore, RequestCounts, RequestObserver, Requests, Reservation};
pub use prefix::{BadPrefix, plain_prefix};
pub use reload::{ClientFuture, ClientSource, ReloadStore};
pub use retry::{RetryPolicy, RetryStore, task_store};
pub(crate) use store_time::wait_locally;
