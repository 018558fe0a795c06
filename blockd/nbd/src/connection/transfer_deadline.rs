//! Deadline of a transfer that holds memory which other connections wait for. Only progress of 1 MiB extends
//! it, so a client cannot hold memory with single bytes.

use std::time::{Duration, Instant};

/// Progress that extends the deadline, in bytes.
const MIN_PROGRESS_BYTES: u64 = 1 << 20;

/// Deadline of a transfer.
#[derive(Debug)]
pub(crate) struct TransferDeadline {
    timeout: Duration,
    ends_at: Instant,
    moved_bytes: u64,
}

impl TransferDeadline {
    pub(crate) fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, ends_at: later(now, timeout), moved_bytes: 0 }
    }

    /// Records progress in bytes.
    pub(crate) fn moved(&mut self, bytes: u64, now: Instant) {
        self.moved_bytes = self.moved_bytes.saturating_add(bytes);
        if self.moved_bytes >= MIN_PROGRESS_BYTES {
            self.renew(now);
        }
        debug_assert!(self.moved_bytes < MIN_PROGRESS_BYTES, "progress renews the deadline");
    }

    /// Restarts the deadline.
    pub(crate) fn renew(&mut self, now: Instant) {
        *self = Self::new(self.timeout, now);
    }

    /// Returns the deadline.
    pub(crate) fn ends_at(&self) -> Instant {
        self.ends_at
    }
}

/// Awaited payload, whose memory other connections may wait for.
pub(super) struct Payload {
    pub(super) number: u64,
    pub(super) deadline: TransferDeadline,
}

fn later(now: Instant, timeout: Duration) -> Instant {
    now.checked_add(timeout).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_is_extended_by_progress_only() {
        let start = Instant::now();
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let mut deadline = TransferDeadline::new(minute, start);
        deadline.moved(1, start + second);
        deadline.moved(MIN_PROGRESS_BYTES - 2, start + 2 * second);
        assert_eq!(deadline.ends_at(), start + minute);
        deadline.moved(1, start + 3 * second);
        assert_eq!(deadline.ends_at(), start + 3 * second + minute);
        deadline.moved(MIN_PROGRESS_BYTES - 1, start + 4 * second);
        assert_eq!(deadline.ends_at(), start + 3 * second + minute);
    }
}
