//! Busy-polling before blocking: on an idle machine, waking a processor costs more than a request.
//!
//! It helps only clients that wait for each reply before the next request: with several requests in flight a
//! wake-up serves many, and a polling thread takes the processor from their sender. So a thread polls only
//! while requests arrive one by one, only one thread of a server polls at a time, and after each failed poll
//! twice as many sleeps skip it. `kernel-notes/nbd-server.md` has the figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Duration of a poll: longer than a local client takes from a reply to its next request.
const SPIN_TIME: Duration = Duration::from_micros(30);
/// Maximum number of sleeps without a poll.
const MAX_SKIPPED: u32 = 1024;
/// Number of sleeps without a poll after concurrent requests.
const SKIPPED_WHEN_BUSY: u32 = 64;

/// Ensures that one thread polls at a time.
#[derive(Debug, Default)]
pub(crate) struct SpinPermit {
    is_spinning: AtomicBool,
}

/// Polling state of a thread.
#[derive(Debug, Default)]
pub(crate) struct SpinPoller {
    /// Remaining sleeps without a poll.
    to_skip: u32,
    /// Number of sleeps skipped before the last poll.
    skipped: u32,
}

/// Running poll.
pub(crate) struct Spin<'a> {
    poller: &'a mut SpinPoller,
    permit: &'a SpinPermit,
}

impl SpinPoller {
    /// Decides before a sleep whether to poll, given the number of requests since the last one.
    pub(crate) fn begin<'a>(&'a mut self, requests: usize, spin_permit: &'a SpinPermit) -> Option<Spin<'a>> {
        if requests > 1 {
            self.to_skip = self.to_skip.max(SKIPPED_WHEN_BUSY);
        }
        if self.to_skip > 0 {
            self.to_skip -= 1;
            return None;
        }
        // Lazily: a dropped `Spin` returns the permit.
        (!spin_permit.is_spinning.swap(true, Ordering::Acquire))
            .then(|| Spin { poller: self, permit: spin_permit })
    }
}

impl Spin<'_> {
    /// Polls until something has arrived or the time is over.
    pub(crate) fn until(self, mut is_ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_ready() {
            if start.elapsed() >= SPIN_TIME {
                self.poller.skipped = (self.poller.skipped * 2).clamp(1, MAX_SKIPPED);
                self.poller.to_skip = self.poller.skipped;
                return;
            }
            std::hint::spin_loop();
        }
        self.poller.skipped = 0;
    }
}

impl Drop for Spin<'_> {
    fn drop(&mut self) {
        let was_spinning = self.permit.is_spinning.swap(false, Ordering::Release);
        debug_assert!(was_spinning, "a poll holds the permit to its end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls if one is due, and returns whether one was.
    fn poll(spin: &mut SpinPoller, requests: usize, comes: bool) -> bool {
        spin.begin(requests, &SpinPermit::default()).map(|spin| spin.until(|| comes)).is_some()
    }

    #[test]
    fn failing_attempts_back_off() {
        let mut spin = SpinPoller::default();
        let polls = (0..10_000).filter(|_| poll(&mut spin, 1, false)).count();
        assert!((10..=20).contains(&polls), "{polls}");
        // A successful poll resets the back-off.
        while !poll(&mut spin, 1, true) {}
        assert!((0..100).all(|_| poll(&mut spin, 1, true)));
    }

    #[test]
    fn no_thread_spins_for_concurrent_requests() {
        let mut spin = SpinPoller::default();
        assert!((0..10_000).all(|_| !poll(&mut spin, 2, true)));
        assert!((1..SKIPPED_WHEN_BUSY).all(|_| !poll(&mut spin, 1, true)));
        assert!(poll(&mut spin, 1, true));
    }

    #[test]
    fn poll_is_refused_while_another_runs() {
        let (spin_permit, mut first, mut second) = Default::default();
        let poll = SpinPoller::begin(&mut first, 1, &spin_permit);
        assert!(poll.is_some());
        for _ in 0..2 {
            assert!(SpinPoller::begin(&mut second, 1, &spin_permit).is_none());
        }
        drop(poll);
        assert!(SpinPoller::begin(&mut second, 1, &spin_permit).is_some());
    }
}
