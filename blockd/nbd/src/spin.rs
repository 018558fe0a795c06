//! Whether a ring thread with nothing to do looks again for a moment before it sleeps.
//!
//! A client with one request at a time answers within microseconds, while putting a thread to sleep and waking it costs
//! more than the request itself (`kernel-notes/nbd-server.md`). So the thread looks for a moment first; it keeps doing so
//! as long as that pays, and after each time in vain it sleeps at once for twice as many waits as the time before.

use std::time::Duration;

/// How long to look before sleeping: what waking a thread costs on a busy virtual machine. Waiting as long as the sleep
/// would have cost is never worse than twice the best.
const LOOK: Duration = Duration::from_micros(50);
/// The most waits that go to sleep at once after a look in vain.
const MAX_SKIPPED: u32 = 256;

/// Decides, from how the last looks ended, whether the next one is worth it.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    /// Waits that are still to sleep at once.
    skip: u32,
    /// How many waits were skipped after the last look in vain.
    backoff: u32,
}

impl Spin {
    /// How long the coming wait looks before it sleeps.
    pub(crate) fn next_look(&mut self) -> Duration {
        if self.skip == 0 {
            return LOOK;
        }
        self.skip -= 1;
        Duration::ZERO
    }

    /// A look ended: something came, or it was in vain.
    pub(crate) fn looked(&mut self, something_came: bool) {
        if something_came {
            self.backoff /= 2;
        } else {
            self.backoff = (self.backoff * 2).clamp(1, MAX_SKIPPED);
            self.skip = self.backoff;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 10,000 waits look first, when every n-th look finds something.
    fn looks(finds: impl Fn(u32) -> bool) -> u32 {
        let mut spin = Spin::default();
        let mut looks = 0;
        for _ in 0..10_000 {
            if spin.next_look() > Duration::ZERO {
                looks += 1;
                spin.looked(finds(looks));
            }
        }
        looks
    }

    #[test]
    fn it_looks_as_long_as_that_pays() {
        assert_eq!(looks(|_| true), 10_000);
        assert!(looks(|n| n % 4 != 0) > 5_000, "three of four find something");
        assert!(looks(|_| false) < 60, "in vain");
        assert!(looks(|n| n % 4 == 0) < 1_000, "one of four finds something");
    }

    #[test]
    fn it_comes_back_to_looking_when_that_pays_again() {
        let mut spin = Spin::default();
        for _ in 0..10_000 {
            if spin.next_look() > Duration::ZERO {
                spin.looked(false);
            }
        }
        let mut waits = 0;
        let mut in_a_row = 0;
        while in_a_row < 100 {
            waits += 1;
            if spin.next_look() > Duration::ZERO {
                in_a_row += 1;
                spin.looked(true);
            } else {
                in_a_row = 0;
            }
        }
        assert!(waits < 500, "{waits}");
    }
}
