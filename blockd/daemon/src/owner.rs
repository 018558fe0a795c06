//! The owner of the tasks that a request starts.
//!
//! Requests reach the code that creates tasks by many ways, so the owner goes with the request's future and not through each
//! signature. Work outside of a request is the daemon's own.

use blockd_api::tasks::TaskOwner;
use std::future::Future;

tokio::task_local! {
    static OWNER: TaskOwner;
}

/// Returns the owner of a task that is created now.
pub(crate) fn current() -> TaskOwner {
    OWNER.try_with(Clone::clone).unwrap_or(TaskOwner::Daemon)
}

/// Runs work whose tasks belong to this owner.
pub(crate) fn scope<F: Future>(owner: TaskOwner, work: F) -> impl Future<Output = F::Output> {
    OWNER.scope(owner, work)
}
