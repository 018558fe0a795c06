//! How long a client may take over bytes that hold memory, when others wait for that memory. What counts is that it gets
//! on: a byte now and then, or one short send after the other, must not keep the memory for ever.

use std::time::{Duration, Instant};

/// What has to move for the time to begin again, unless all of it has.
const HEADWAY_BYTES: u64 = 1 << 20;

/// The time that is left for some bytes.
#[derive(Debug)]
pub(crate) struct Patience {
    timeout: Duration,
    ends_at: Instant,
    moved_bytes: u64,
}

impl Patience {
    pub(crate) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, ends_at: later(now, timeout), moved_bytes: 0 }
    }

    /// So many bytes were moved, or given back.
    pub(crate) fn moved(&mut self, bytes: u64, now: Instant) {
        self.moved_bytes = self.moved_bytes.saturating_add(bytes);
        if self.moved_bytes >= HEADWAY_BYTES {
            self.renew(now);
        }
    }

    /// Begins anew.
    pub(crate) fn renew(&mut self, now: Instant) {
        *self = Self::new(self.timeout, now);
    }

    /// When the time is over.
    pub(crate) fn ends_at(&self) -> Instant {
        self.ends_at
    }
}

fn later(now: Instant, timeout: Duration) -> Instant {
    now.checked_add(timeout).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_headway_gives_more_time() {
        let start = Instant::now();
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let mut patience = Patience::new(minute, start);
        patience.moved(1, start + second);
        patience.moved(HEADWAY_BYTES - 2, start + 2 * second);
        assert_eq!(patience.ends_at(), start + minute);
        patience.moved(1, start + 3 * second);
        assert_eq!(patience.ends_at(), start + 3 * second + minute);
        patience.moved(HEADWAY_BYTES - 1, start + 4 * second);
        assert_eq!(patience.ends_at(), start + 3 * second + minute);
    }
}
