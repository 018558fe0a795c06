//! Busy-polling before blocking: on an idle machine, waking a processor costs more than a request.
//!
//! It helps only clients that wait for each reply before the next request: with several requests in flight a
//! wake-up serves many, and a polling thread takes the processor from their sender. So a thread polls only
//! while requests arrive one by one, only one thread of a server polls at a time, and after each failed poll
//! twice as many sleeps skip it. `kernel-notes/nbd-server.md` has the figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Duration of a poll: longer than a local client takes from a reply to its next request.
const LENGTH: Duration = Duration::from_micros(30);
/// Maximum number of sleeps without a poll.
const LEFT_OUT_MAX: u32 = 1024;
/// Number of sleeps without a poll after concurrent requests.
const LEFT_OUT_BUSY: u32 = 64;

/// Ensures that one thread polls at a time.
#[derive(Debug, Default)]
pub(crate) struct Watchman {
    is_awake: AtomicBool,
}

/// Polling state of a thread.
#[derive(Debug, Default)]
pub(crate) struct Vigil {
    /// Remaining sleeps without a poll.
    to_leave_out: u32,
    /// Number of sleeps skipped before the last poll.
    left_out: u32,
}

/// Running poll.
pub(crate) struct Kept<'a> {
    vigil: &'a mut Vigil,
    watchman: &'a Watchman,
}

impl Vigil {
    /// Decides before a sleep whether to poll, given the number of requests since the last one.
    pub(crate) fn begin<'a>(&'a mut self, requests: usize, watchman: &'a Watchman) -> Option<Kept<'a>> {
        if requests > 1 {
            self.to_leave_out = self.to_leave_out.max(LEFT_OUT_BUSY);
        }
        if self.to_leave_out > 0 {
            self.to_leave_out -= 1;
            return None;
        }
        (!watchman.is_awake.swap(true, Ordering::Acquire)).then_some(Kept { vigil: self, watchman })
    }
}

impl Kept<'_> {
    /// Polls until something has arrived or the time is over.
    pub(crate) fn until(self, mut has_come: impl FnMut() -> bool) {
        let began = Instant::now();
        while !has_come() {
            if began.elapsed() >= LENGTH {
                self.vigil.left_out = (self.vigil.left_out * 2).clamp(1, LEFT_OUT_MAX);
                self.vigil.to_leave_out = self.vigil.left_out;
                return;
            }
            std::hint::spin_loop();
        }
        self.vigil.left_out = 0;
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.watchman.is_awake.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls if due and returns true.
    fn keep(vigil: &mut Vigil, requests: usize, comes: bool) -> bool {
        vigil.begin(requests, &Watchman::default()).map(|kept| kept.until(|| comes)).is_some()
    }

    #[test]
    fn failing_attempts_back_off() {
        let mut vigil = Vigil::default();
        let kept = (0..10_000).filter(|_| keep(&mut vigil, 1, false)).count();
        assert!((10..=20).contains(&kept), "{kept}");
        // A successful poll resets the back-off.
        while !keep(&mut vigil, 1, true) {}
        assert!((0..100).all(|_| keep(&mut vigil, 1, true)));
    }

    #[test]
    fn nobody_stays_awake_for_requests_that_come_together() {
        let mut vigil = Vigil::default();
        assert!((0..10_000).all(|_| !keep(&mut vigil, 2, true)));
        assert!((1..LEFT_OUT_BUSY).all(|_| !keep(&mut vigil, 1, true)));
        assert!(keep(&mut vigil, 1, true));
    }

    #[test]
    fn requests_run_one_at_a_time() {
        let (watchman, mut first, mut second) = Default::default();
        let kept = Vigil::begin(&mut first, 1, &watchman);
        assert!(kept.is_some());
        assert!(Vigil::begin(&mut second, 1, &watchman).is_none());
        drop(kept);
        assert!(Vigil::begin(&mut second, 1, &watchman).is_some());
    }
}
