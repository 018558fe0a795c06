//! Work that may hang in the kernel, waited for only so long.

use parking_lot::{Condvar, Mutex};
use std::{io, sync::Arc, time::Instant};

/// What became of the work.
enum Attempt<R> {
    /// It is being done.
    UnderWay,
    /// It is done, and somebody waits for it.
    Done(R),
    /// Nobody waits for it any more.
    GivenUp,
}

/// Does the work on a thread of its own, and waits for it until then. Of what is done later than that, `late`
/// is told, there; `given_up` is called before that, here. `None` if it is late.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn within<R: Send + 'static>(
    until: Instant,
    work: impl FnOnce() -> R + Send + 'static,
    late: impl FnOnce(R) + Send + 'static,
    given_up: impl FnOnce(),
) -> io::Result<Option<R>> {
    let shared = Arc::new((Mutex::new(Attempt::UnderWay), Condvar::new()));
    let there = Arc::clone(&shared);
    let run = move || {
        let result = work();
        let (attempt, done) = &*there;
        let mut attempt = attempt.lock();
        if matches!(*attempt, Attempt::GivenUp) {
            drop(attempt);
            return late(result);
        }
        *attempt = Attempt::Done(result);
        done.notify_all();
    };
    std::thread::Builder::new().name("quiesce".into()).spawn(run)?;
    let (attempt, done) = &*shared;
    let mut attempt = attempt.lock();
    while matches!(*attempt, Attempt::UnderWay) && Instant::now() < until {
        done.wait_until(&mut attempt, until);
    }
    if matches!(*attempt, Attempt::UnderWay) {
        given_up();
    }
    match std::mem::replace(&mut *attempt, Attempt::GivenUp) {
        Attempt::Done(result) => Ok(Some(result)),
        Attempt::UnderWay | Attempt::GivenUp => Ok(None),
    }
}

/// From now to then, the part of one of so many that are left.
pub(super) fn share(until: Instant, left: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(left).unwrap_or(u32::MAX).max(1);
    now + until.saturating_duration_since(now) / parts
}
