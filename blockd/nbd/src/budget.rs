//! The bound on what all connections together may have in flight.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counts bytes in flight; whoever finds too many waits for some to be released.
///
/// `W` wakes a waiting thread. A thread that was refused registers with [`wait`](Self::wait) and tries once more
/// before it sleeps; the next release after that wakes it. Hence no release is missed: it either came before the
/// second try, which then succeeds, or it sees the waiter.
pub(crate) struct Budget<W> {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<(usize, W)>>,
}

impl<W: Fn()> Budget<W> {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            has_waiters: AtomicBool::new(false),
            waiters: Mutex::new(Vec::new()),
        }
    }

    /// Takes `bytes` if they fit. If nothing is in flight, anything fits.
    pub(crate) fn try_charge(&self, bytes: u64) -> bool {
        self.used_bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                let after = used.checked_add(bytes)?;
                (used == 0 || after <= self.limit_bytes).then_some(after)
            })
            .is_ok()
    }

    /// Takes `bytes` whether they fit or not.
    pub(crate) fn charge(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives `bytes` back and wakes those who wait.
    pub(crate) fn release(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if self.has_waiters.load(Ordering::SeqCst) {
            let waiters = {
                let mut waiters = self.waiters.lock();
                self.has_waiters.store(false, Ordering::SeqCst);
                std::mem::take(&mut *waiters)
            };
            for (_, wake) in waiters {
                wake();
            }
        }
    }

    /// Has the thread `id` woken at the next release.
    pub(crate) fn wait(&self, id: usize, wake: impl FnOnce() -> W) {
        let mut waiters = self.waiters.lock();
        if !waiters.iter().any(|(waiting, _)| *waiting == id) {
            waiters.push((id, wake()));
        }
        self.has_waiters.store(true, Ordering::SeqCst);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::SeqCst)
    }

    /// Whether somebody waits for bytes to be released.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.has_waiters.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn bytes_are_bounded_and_waiters_woken_once() {
        let budget = Budget::new(100);
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = || {
            let woken = Arc::clone(&woken);
            move || {
                woken.fetch_add(1, Ordering::SeqCst);
            }
        };
        assert!(budget.try_charge(1000), "an empty budget takes anything");
        assert!(!budget.try_charge(1));
        budget.wait(0, wake);
        budget.wait(0, wake);
        assert!(budget.is_exhausted());
        budget.release(950);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(!budget.is_exhausted());
        budget.release(0);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(budget.try_charge(50));
        assert!(!budget.try_charge(1));
        budget.charge(5);
        budget.release(104);
        assert!(budget.try_charge(99));
    }
}
