//! Deadlines for calls that may hang in the kernel.

use parking_lot::{Condvar, Mutex};
use std::{io, sync::Arc, time::Instant};

/// State of the work.
enum Attempt<R> {
    /// The work runs.
    Running,
    /// Done, with a waiting caller.
    Done(R),
    /// Abandoned by the caller.
    Abandoned,
}

/// Runs work on a thread of its own and waits for it until the deadline; `None` after it. Calls `expired`
/// on the caller's thread at the deadline, and `late` on the new one with the result of late work.
///
/// # Errors
/// A thread cannot be started.
pub(crate) fn with_deadline<R: Send + 'static>(
    until: Instant,
    work: impl FnOnce() -> R + Send + 'static,
    late: impl FnOnce(R) + Send + 'static,
    expired: impl FnOnce(),
) -> io::Result<Option<R>> {
    let shared = Arc::new((Mutex::new(Attempt::Running), Condvar::new()));
    let there = Arc::clone(&shared);
    let run = move || {
        let result = work();
        let (attempt, done) = &*there;
        let mut attempt = attempt.lock();
        if matches!(*attempt, Attempt::Abandoned) {
            drop(attempt);
            return late(result);
        }
        *attempt = Attempt::Done(result);
        done.notify_all();
    };
    std::thread::Builder::new().name("quiesce".into()).spawn(run)?;
    let (attempt, done) = &*shared;
    let mut attempt = attempt.lock();
    while matches!(*attempt, Attempt::Running) && Instant::now() < until {
        done.wait_until(&mut attempt, until);
    }
    if matches!(*attempt, Attempt::Running) {
        expired();
    }
    match std::mem::replace(&mut *attempt, Attempt::Abandoned) {
        Attempt::Done(result) => Ok(Some(result)),
        Attempt::Running | Attempt::Abandoned => Ok(None),
    }
}

/// Returns the share of one of several items in the time until the deadline.
pub(crate) fn share(until: Instant, left: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(left).unwrap_or(u32::MAX).max(1);
    now + until.saturating_duration_since(now) / parts
}
