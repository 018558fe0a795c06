//! Busy-polling before a blocking wait: on an idle machine, the wake-up of a core takes longer than a
//! request.
//!
//! Only clients with one request in flight benefit. With several requests, one wake-up serves many, and the
//! polling thread takes processor time from the client. So a thread polls only while requests arrive one by
//! one, one thread of a server polls at a time, and each failed poll doubles the number of waits without a
//! poll. Measurements are in `kernel-notes/nbd-server.md`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Duration of a poll: longer than the time between a reply and the next request of a local client.
const SPIN_TIME: Duration = Duration::from_micros(30);
/// Maximum number of waits without a poll.
const MAX_SKIPPED: u32 = 1024;
/// Number of waits without a poll after concurrent requests.
const SKIPPED_WHEN_BUSY: u32 = 64;

/// Permit that limits a server to one polling thread.
#[derive(Debug, Default)]
pub(crate) struct SpinPermit {
    is_spinning: AtomicBool,
}

/// Polling state of a thread.
#[derive(Debug, Default)]
pub(crate) struct SpinPoller {
    /// Remaining waits without a poll.
    to_skip: u32,
    /// Number of waits without a poll after the last failed poll.
    skipped: u32,
}

/// Poll in progress; holds the permit.
pub(crate) struct Spin<'a> {
    poller: &'a mut SpinPoller,
    permit: &'a SpinPermit,
}

impl SpinPoller {
    /// Returns a poll if one is due before a wait, from the number of requests since the last wait.
    pub(crate) fn begin<'a>(&'a mut self, requests: usize, spin_permit: &'a SpinPermit) -> Option<Spin<'a>> {
        if requests > 1 {
            self.to_skip = self.to_skip.max(SKIPPED_WHEN_BUSY);
        }
        if self.to_skip > 0 {
            self.to_skip -= 1;
            return None;
        }
        // Only with the permit: a dropped `Spin` releases it.
        (!spin_permit.is_spinning.swap(true, Ordering::Acquire))
            .then(|| Spin { poller: self, permit: spin_permit })
    }
}

impl Spin<'_> {
    /// Polls until `is_ready` returns true or the poll duration has elapsed.
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
        debug_assert!(was_spinning, "a poll holds the permit");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a poll if one is due; returns true if it was.
    fn poll(spin: &mut SpinPoller, requests: usize, is_ready: bool) -> bool {
        spin.begin(requests, &SpinPermit::default()).map(|spin| spin.until(|| is_ready)).is_some()
    }

    #[test]
    fn failed_poll_backs_off() {
        let mut spin = SpinPoller::default();
        let polls = (0..10_000).filter(|_| poll(&mut spin, 1, false)).count();
        assert!((10..=20).contains(&polls), "{polls}");
        // A successful poll resets the back-off.
        while !poll(&mut spin, 1, true) {}
        assert!((0..100).all(|_| poll(&mut spin, 1, true)));
    }

    #[test]
    fn concurrent_requests_prevent_polls() {
        let mut spin = SpinPoller::default();
        assert!((0..10_000).all(|_| !poll(&mut spin, 2, true)));
        assert!((1..SKIPPED_WHEN_BUSY).all(|_| !poll(&mut spin, 1, true)));
        assert!(poll(&mut spin, 1, true));
    }

    #[test]
    fn poll_is_refused_while_another_thread_polls() {
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
