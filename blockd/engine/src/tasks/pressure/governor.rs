//! Throttling policy: computes the share of the time in which tasks may work from samples of guest requests.
//! It uses no clock and no threads.
//!
//! As in TCP congestion control, the share is halved when requests take clearly longer than their baseline,
//! and grows by small steps otherwise. Without guest requests, tasks have all of the time.
//!
//! The baseline is learned while tasks hardly work, so that it excludes their effect on guests: when requests
//! suffer, the share falls to its minimum, and latency that stays high there after a while is caused by the
//! guest itself or by other load. While tasks work, the baseline only falls, or rises within a narrow bound,
//! so that a single fast sample does not count forever.

use std::time::Duration;

/// All of the time.
pub const ALL_PERMILLE: u32 = 1000;
/// Minimum share: a task makes progress under any guest load.
const MIN_PERMILLE: u32 = 20;
/// Initial share while guests are active, once the baseline is known.
const FIRST_PERMILLE: u32 = 200;
/// Increase of the share after a sample at the baseline.
const STEP_PERMILLE: u32 = 20;
/// Minimum number of requests of a judgement: single ones are not significant.
const MIN_JUDGED: u64 = 20;
/// Time after which guests with fewer requests than that count as idle, unless these requests took a
/// significant part of it.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// Part of the time that is significant, in percent.
const BUSY_PERCENT: u128 = 5;
/// Mean duration, relative to the baseline, above which requests suffer, in percent.
const LONGER_PERCENT: u64 = 150;
/// Minimum increase of the mean that counts.
const LONGER_NANOS: u64 = 10_000;
/// Increase of slow requests that does not count, in permille.
const SLOW_PERMILLE: u64 = 5;
/// Time at the minimum share after which earlier effects of tasks have ceased, so that the baseline is
/// learned.
const REST_TIME: Duration = Duration::from_secs(2);
/// Maximum growth of the baseline by a judgement at rest, in percent.
const LEARN_PERCENT: u64 = 5;
/// Maximum growth of the baseline by a judgement while tasks work, in percent.
const FORGET_PERCENT: u64 = 1;
/// Maximum of that baseline relative to the one at rest, in percent.
const FORGET_UP_TO_PERCENT: u64 = 125;
/// Mean age, in multiples of the baseline, from which requests in flight are late.
const LATE_TIMES: u64 = 4;
/// Minimum mean age of late requests.
const LATE_NANOS: u64 = 50_000_000;

/// Guest requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Number of completed requests.
    pub(crate) count: u64,
    /// Sum of their durations, including their wait for a processor.
    pub(crate) nanos: u64,
    /// Number of slow ones, above a few milliseconds.
    pub(crate) slow: u64,
    /// Number of requests in flight, which are not included above.
    pub(crate) waiting: u64,
    /// Sum of their ages.
    pub(crate) waiting_nanos: u64,
}

/// Sample of guest requests since the previous one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Reads and writes.
    pub(crate) data: Requests,
    /// Flushes: they take much longer under normal conditions, so they are judged separately.
    pub(crate) flushes: Requests,
    /// No request was completed, and a serving thread is blocked on a disk.
    pub(crate) is_stalled: bool,
    /// Duration of the sample.
    pub(crate) during: Duration,
}

/// Latency of a sample or a baseline.
#[derive(Clone, Copy, Debug)]
struct Baseline {
    mean_nanos: u64,
    slow_permille: u64,
}

impl Baseline {
    fn of(seen: &Requests) -> Self {
        let count = seen.count.max(1);
        Self { mean_nanos: seen.nanos / count, slow_permille: seen.slow * 1000 / count }
    }

    /// Moves the baseline towards a sample: down by a fraction of the difference, so that a single fast
    /// sample does not dominate; up by at most a percentage, or by a number of slow requests in permille.
    fn towards(self, now: Self, up_percent: u64, up_slow_permille: u64) -> Self {
        let next = |before: u64, now: u64, part: u64, up: u64| match now < before {
            true => before - (before - now).div_ceil(part),
            false => now.min(before + before * up_percent / 100 + up),
        };
        Self {
            mean_nanos: next(self.mean_nanos, now.mean_nanos, 4, 1),
            slow_permille: next(self.slow_permille, now.slow_permille, 8, up_slow_permille),
        }
    }

    /// Limits the baseline relative to the one at rest, so that it excludes the effect of tasks.
    fn bounded(self, at_rest: Self) -> Self {
        Self {
            mean_nanos: self.mean_nanos.min(at_rest.mean_nanos * FORGET_UP_TO_PERCENT / 100),
            slow_permille: self.slow_permille.min(at_rest.slow_permille),
        }
    }
}

/// Activity of tasks during a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskActivity {
    /// Tasks worked, or the effect of their work has not ceased.
    Work,
    /// Tasks have just begun at the minimum share.
    Begin,
    /// Tasks have hardly worked for a while.
    Rest,
}

/// Judge of requests of one kind.
#[derive(Debug, Default)]
struct BaselineJudge {
    /// Requests since the last judgement.
    pending: Requests,
    during: Duration,
    /// Tasks worked in that time.
    was_pressed: bool,
    baseline: Option<Baseline>,
    /// Baseline at rest.
    at_rest: Option<Baseline>,
    /// Guests have requests of this kind.
    is_active: bool,
}

impl BaselineJudge {
    /// Returns true if the requests suffer; `None` if there are too few to judge.
    fn update(&mut self, seen: &Requests, during: Duration, tasks: TaskActivity) -> Option<bool> {
        self.pending.count += seen.count;
        self.pending.nanos = self.pending.nanos.saturating_add(seen.nanos);
        self.pending.slow += seen.slow;
        self.during += during;
        self.was_pressed |= tasks == TaskActivity::Work;
        let is_late = self.is_late(seen);
        if self.pending.count < MIN_JUDGED && self.during < IDLE_AFTER {
            self.is_active |= is_late;
            return is_late.then_some(true);
        }
        let judged = std::mem::take(&mut self.pending);
        let during = std::mem::take(&mut self.during);
        let was_pressed = std::mem::take(&mut self.was_pressed);
        // Few requests that take a significant part of the time are no idleness: a client that waits for each
        // request has no more.
        let is_busy = u128::from(judged.nanos) * 100 >= during.as_nanos() * BUSY_PERCENT;
        let is_judged = judged.count >= MIN_JUDGED || (judged.count > 0 && is_busy);
        self.is_active = is_judged || is_late;
        self.is_active.then(|| (is_judged && self.judge(&judged, was_pressed)) || is_late)
    }

    /// Returns true if the requests in flight are late.
    fn is_late(&self, seen: &Requests) -> bool {
        let baseline_nanos = self.baseline.map_or(0, |baseline| baseline.mean_nanos);
        seen.waiting > 0
            && seen.waiting_nanos / seen.waiting > baseline_nanos.saturating_mul(LATE_TIMES).max(LATE_NANOS)
    }

    /// Judges a sample of at least one request, and updates the baseline.
    fn judge(&mut self, seen: &Requests, was_pressed: bool) -> bool {
        let now = Baseline::of(seen);
        let suffers = self.baseline.is_some_and(|baseline| {
            now.mean_nanos > baseline.mean_nanos * LONGER_PERCENT / 100 + LONGER_NANOS
                || now.slow_permille > baseline.slow_permille + SLOW_PERMILLE
        });
        if was_pressed {
            if let (Some(baseline), Some(at_rest)) = (self.baseline, self.at_rest) {
                self.baseline = Some(baseline.towards(now, FORGET_PERCENT, 1).bounded(at_rest));
            }
        } else {
            let learned =
                self.at_rest.map_or(now, |before| before.towards(now, LEARN_PERCENT, SLOW_PERMILLE));
            (self.baseline, self.at_rest) = (Some(learned), Some(learned));
        }
        suffers
    }

    /// Returns true if there are requests without a baseline yet.
    fn wants_rest(&self) -> bool {
        self.is_active && self.baseline.is_none()
    }
}

/// Controller of the share.
#[derive(Debug, Default)]
pub(crate) struct Governor {
    data: BaselineJudge,
    flushes: BaselineJudge,
    /// Duration of the current stall.
    stalled: Duration,
    /// Time at the minimum share.
    rested: Duration,
    /// Tasks had more than the minimum share for longer than a sample.
    has_pressed: bool,
    /// Current share; `None` while guests are idle.
    share_permille: Option<u32>,
}

impl Governor {
    /// Returns true if guests are active.
    pub(crate) fn sees_guests(&self) -> bool {
        self.share_permille.is_some()
    }

    /// Returns the activity of tasks since the previous sample.
    fn tasks(&self) -> TaskActivity {
        match self.share_permille {
            Some(MIN_PERMILLE) if !self.has_pressed => TaskActivity::Begin,
            Some(MIN_PERMILLE) if self.rested >= REST_TIME => TaskActivity::Rest,
            _ => TaskActivity::Work,
        }
    }

    /// Processes a sample and returns the new share, in permille.
    pub(crate) fn next_share(&mut self, seen: &Sample) -> u32 {
        let tasks = self.tasks();
        let judged = [
            self.data.update(&seen.data, seen.during, tasks),
            self.flushes.update(&seen.flushes, seen.during, tasks),
        ];
        self.stalled = if seen.is_stalled { self.stalled + seen.during } else { Duration::ZERO };
        let is_stuck = self.stalled >= IDLE_AFTER;
        if is_stuck {
            // The next decrease is only made after the same time again, but the guests do not count as idle
            // until then.
            self.stalled = Duration::from_nanos(1);
        }
        let before = self.share_permille;
        let share = before.unwrap_or(FIRST_PERMILLE);
        if is_stuck || judged.contains(&Some(true)) {
            self.share_permille = Some((share / 2).max(MIN_PERMILLE));
        } else if self.data.wants_rest() || self.flushes.wants_rest() {
            self.share_permille = Some(MIN_PERMILLE);
        } else if judged.contains(&Some(false)) {
            // Once the baseline is known, tasks begin with the initial share.
            let least = if self.has_pressed { 0 } else { FIRST_PERMILLE };
            self.share_permille = Some((share + STEP_PERMILLE).clamp(least, ALL_PERMILLE));
        } else if !self.data.is_active && !self.flushes.is_active && self.stalled.is_zero() {
            self.share_permille = None;
        }
        let is_least = self.share_permille == Some(MIN_PERMILLE);
        self.rested = if is_least && before == self.share_permille {
            self.rested + seen.during
        } else {
            Duration::ZERO
        };
        self.has_pressed |= self.share_permille != Some(MIN_PERMILLE);
        self.share_permille.unwrap_or(ALL_PERMILLE)
    }
}

#[cfg(test)]
mod tests;
