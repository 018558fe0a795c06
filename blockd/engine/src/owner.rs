//! Owner of the tasks that a request starts.
//!
//! Requests reach the code that creates tasks on many paths, so the owner is a task-local value and not a
//! parameter. Work outside of a request belongs to the daemon.

use blockd_api::{roles::Role, tasks::TaskOwner};
use std::future::Future;

/// User of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

tokio::task_local! {
    static OWNER: TaskOwner;
}

/// Returns the owner of a task that is created now.
pub fn current() -> TaskOwner {
    OWNER.try_with(Clone::clone).unwrap_or(TaskOwner::Daemon)
}

/// Returns true if an owner may discard a kept task of another one: operators may discard their own tasks
/// only.
pub fn may_discard(by: &TaskOwner, of: &TaskOwner) -> bool {
    let TaskOwner::Caller { name, role, uid } = by else { return true };
    let is_same = matches!(of, TaskOwner::Caller { name: other, uid: of, .. } if (name, uid) == (other, of));
    *role == Role::Admin || is_same
}

/// Runs work whose tasks belong to this owner.
pub fn scope<F: Future>(owner: TaskOwner, work: F) -> impl Future<Output = F::Output> {
    OWNER.scope(owner, work)
}
