//! The owner of the tasks that a request starts.
//!
//! Requests reach the code that creates tasks by many ways, so the owner goes with the request's future and
//! not through each signature. Work outside of a request is the daemon's own.

use blockd_api::{roles::Role, tasks::TaskOwner};
use std::future::Future;

tokio::task_local! {
    static OWNER: TaskOwner;
}

/// Returns the owner of a task that is created now.
pub(crate) fn current() -> TaskOwner {
    OWNER.try_with(Clone::clone).unwrap_or(TaskOwner::Daemon)
}

/// True if an owner may discard what is kept of a task of another one: an operator only of tasks that it
/// started.
pub(crate) fn may_discard(by: &TaskOwner, of: &TaskOwner) -> bool {
    let TaskOwner::Caller { name, role, uid } = by else { return true };
    let is_same = matches!(of, TaskOwner::Caller { name: other, uid: of, .. } if (name, uid) == (other, of));
    *role == Role::Admin || is_same
}

/// Runs work whose tasks belong to this owner.
pub(crate) fn scope<F: Future>(owner: TaskOwner, work: F) -> impl Future<Output = F::Output> {
    OWNER.scope(owner, work)
}
