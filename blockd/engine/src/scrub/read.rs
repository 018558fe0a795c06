//! Reads of a scrub, on a thread of low priority, in short steps that a token bucket spreads evenly.

use crate::tasks::workers::TaskWorkers;
use blockd_cloud::CancelToken;
use blockd_volume::{ScrubPosition, ScrubStep, Volume, VolumeError};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Maximum time of steps without a report.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Pauses, in multiples of the time of a read, while guests send requests: they have four fifths of the time
/// of the disk.
const BUSY_PAUSES: u32 = 4;
/// Rate of a scrub without a limit while guests send requests: 8 MiB/s. At 79 MiB/s the 99th percentile of
/// 4 KiB writes was 2.3 times as high as without a scrub (`tools/bench guest --load scrub`, 2 cores).
const BUSY_BYTES_PER_SECOND: u64 = 8 << 20;

/// Token bucket with room for one step, and pauses for the requests of guests.
#[derive(Clone)]
pub(super) struct Pace {
    workers: Arc<TaskWorkers>,
    /// Maximum rate, also beside active guests.
    pub bytes_per_second: Option<u64>,
    /// Start of the next step.
    pub next: Instant,
}

impl Pace {
    pub fn new(workers: &Arc<TaskWorkers>) -> Self {
        Self { workers: Arc::clone(workers), bytes_per_second: None, next: Instant::now() }
    }

    /// Sets the start of the next step after a step: it follows a pause as long as the read, or longer beside
    /// active guests, and the refill of the bucket. Time that no step used is not made up for.
    fn end_step(&mut self, bytes: u64, started: Instant, ended: Instant) {
        let busy = self.workers.are_guests_active();
        let pauses = if busy { BUSY_PAUSES } else { 1 };
        let rate = self.bytes_per_second.or(busy.then_some(BUSY_BYTES_PER_SECOND));
        let refill = rate.map(|rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        let filled = started.max(self.next) + refill.unwrap_or_default();
        self.next = filled.max(ended + ended.duration_since(started) * pauses);
    }
}

/// Reads a volume from a position on, to a report: at its end, that of the budget, after a second, or after a
/// cancellation. Blocks.
pub(super) fn read(
    volume: &Volume,
    from: ScrubPosition,
    budget_bytes: u64,
    pace: &mut Pace,
    cancel: &CancelToken,
) -> Result<ScrubStep, VolumeError> {
    let report_at = Instant::now() + REPORT_EVERY;
    let mut read = ScrubStep::default();
    read.next = Some(from);
    while let Some(at) = read.next {
        let started = Instant::now();
        let step = match volume.scrub_step(at) {
            // Damage is reported first; the next call returns the error.
            Err(_) if !read.found.is_empty() => break,
            other => other?,
        };
        pace.end_step(step.read_bytes, started, Instant::now());
        read.next = step.next;
        read.read_bytes += step.read_bytes;
        read.unlisted_blocks += step.unlisted_blocks;
        read.found.extend(step.found);
        if read.read_bytes >= budget_bytes || pace.next >= report_at || cancel.is_cancelled() {
            break;
        }
        thread::sleep(pace.next.saturating_duration_since(Instant::now()));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TaskPriority;

    #[test]
    fn steps_are_spread_evenly() {
        let workers = Arc::new(TaskWorkers::new(TaskPriority::Low, 1).unwrap());
        let mut pace = Pace::new(&workers);
        let (start, ms) = (pace.next, Duration::from_millis(1));
        pace.end_step(4096, start, start + 2 * ms);
        assert_eq!(pace.next, start + 4 * ms, "half of the time");
        pace.bytes_per_second = Some(4096 * 100);
        let mut expected = pace.next;
        for _ in 0..3 {
            pace.end_step(4096, pace.next, pace.next + ms);
            expected += 10 * ms;
            assert_eq!(pace.next, expected);
        }
        let late = pace.next + 500 * ms;
        pace.end_step(4096, late, late + ms);
        assert_eq!(pace.next, late + 10 * ms, "no burst after a delay");
        pace.bytes_per_second = None;
        let _active = workers.begin();
        let started = pace.next;
        pace.end_step(4096, started, started + ms);
        assert_eq!(pace.next, started + 5 * ms, "guests are active");
        let started = pace.next;
        pace.end_step(1 << 20, started, started + ms);
        assert_eq!(pace.next, started + 125 * ms, "the rate beside guests");
        pace.bytes_per_second = Some(100 << 20);
        let started = pace.next;
        pace.end_step(1 << 20, started, started + ms);
        assert_eq!(pace.next, started + 10 * ms, "the requested rate");
    }
}
