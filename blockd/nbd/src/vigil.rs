//! Staying awake for a moment before going to sleep: on an idle machine, waking a processor costs more than a
//! request.
//!
//! It pays for a client that waits for each reply before it sends the next request, and for nobody else: with
//! more requests on their way a wake-up serves many, and a thread that looks for them takes the processor
//! from their sender. So a thread does it only while requests come one by one, only one thread of a server
//! does it at a time, and each time nothing comes within the moment, it is left out for twice as many sleeps.
//! `kernel-notes/nbd-server.md` has the figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long it lasts: longer than a client on the same machine takes from a reply to its next request.
const LENGTH: Duration = Duration::from_micros(30);
/// How many sleeps go by without one, at most.
const LEFT_OUT_MAX: u32 = 1024;
/// How many sleeps go by without one after requests that came together.
const LEFT_OUT_BUSY: u32 = 64;

/// Sees to it that one thread at a time stays awake.
#[derive(Debug, Default)]
pub(crate) struct Watchman {
    is_awake: AtomicBool,
}

/// When a thread stays awake, and how that went.
#[derive(Debug, Default)]
pub(crate) struct Vigil {
    /// Sleeps that are still to go by without one.
    to_leave_out: u32,
    /// How many went by before the last.
    left_out: u32,
}

/// A moment awake.
pub(crate) struct Kept<'a> {
    vigil: &'a mut Vigil,
    watchman: &'a Watchman,
}

impl Vigil {
    /// Before a sleep: whether to stay awake this time, so many requests having been taken up since the last
    /// one.
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
    /// Stays awake until something has come, or the moment is over.
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

    /// Keeps the vigil, if it is time for it, and says so.
    fn keep(vigil: &mut Vigil, requests: usize, comes: bool) -> bool {
        vigil.begin(requests, &Watchman::default()).map(|kept| kept.until(|| comes)).is_some()
    }

    #[test]
    fn failing_attempts_back_off() {
        let mut vigil = Vigil::default();
        let kept = (0..10_000).filter(|_| keep(&mut vigil, 1, false)).count();
        assert!((10..=20).contains(&kept), "{kept}");
        // One that pays brings it back.
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
