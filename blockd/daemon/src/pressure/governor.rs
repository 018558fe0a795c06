//! What share of the time tasks may work, from what guests' requests were like: no clock, no threads.
//!
//! The share is halved whenever requests take clearly longer than they usually do, and grows by small steps
//! otherwise, as flow control does. Without requests all of the time is the tasks'.
//!
//! What is usual is learned while tasks hardly work, and not from what they do to the guests: when requests
//! suffer, the share falls to its least, and what is still longer there after a while is the guest's own
//! doing, or somebody else's. While tasks work, the usual time only falls, or rises within a narrow bound, so
//! that a single good moment does not count for ever.

use std::time::Duration;

/// All of the time.
pub(crate) const ALL_PERMILLE: u32 = 1000;
/// The least share: a task gets on whatever guests do.
const MIN_PERMILLE: u32 = 20;
/// The share with which tasks begin while guests are active, once it is known what is usual.
const FIRST_PERMILLE: u32 = 200;
/// What the share grows by after requests that were as usual.
const STEP_PERMILLE: u32 = 20;
/// Requests that are judged together, at least: single ones say little.
const MIN_JUDGED: u64 = 20;
/// So long without that many requests, the guests count as idle, unless the few there were took much of that
/// time.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// What part of the time is much, in percent.
const BUSY_PERCENT: u128 = 5;
/// Requests may take so much longer than usual on average, in percent.
const LONGER_PERCENT: u64 = 150;
/// What does not count as longer in any case.
const LONGER_NANOS: u64 = 10_000;
/// Slow requests in a thousand that do not count.
const SLOW_PERMILLE: u64 = 5;
/// After so long at the least share, what tasks did before is out of the way: what is seen then is learned.
const REST: Duration = Duration::from_secs(2);
/// By how much the usual time grows at most with every judgement at rest, in percent.
const LEARN_PERCENT: u64 = 5;
/// The same while tasks work.
const FORGET_PERCENT: u64 = 1;
/// How far above what was seen at rest that may take it, in percent.
const FORGET_UP_TO_PERCENT: u64 = 125;
/// Requests that are under way count as late when they have been for so many times the usual time on average.
const LATE_TIMES: u64 = 4;
/// But not before.
const LATE_NANOS: u64 = 50_000_000;

/// Guests' requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    /// How many.
    pub(super) count: u64,
    /// How long all of them took, and waited for a processor.
    pub(super) nanos: u64,
    /// How many took longer than a few milliseconds.
    pub(super) slow: u64,
    /// How many are under way now; they are not among the others.
    pub(super) waiting: u64,
    /// How long all of these have been.
    pub(super) waiting_nanos: u64,
}

/// Guests' requests since the look before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// What reads and writes.
    pub(super) data: Requests,
    /// What makes durable: it takes much longer where nothing is wrong, so it is not mixed with the others.
    pub(super) flushes: Requests,
    /// Nothing was done, and something is under way that waits for a disk.
    pub(super) is_stalled: bool,
    /// Since when.
    pub(super) during: Duration,
}

/// What requests were like.
#[derive(Clone, Copy, Debug)]
struct Usual {
    mean_nanos: u64,
    slow_permille: u64,
}

impl Usual {
    fn of(seen: &Requests) -> Self {
        let count = seen.count.max(1);
        Self { mean_nanos: seen.nanos / count, slow_permille: seen.slow * 1000 / count }
    }

    /// Goes towards what is seen now: down by a part of the way, so that a single good moment is not taken
    /// for all of them; up by no more than some percent, and for slow requests some in a thousand.
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

    /// Not so far above what was seen at rest that what tasks do becomes usual.
    fn bounded(self, at_rest: Self) -> Self {
        Self {
            mean_nanos: self.mean_nanos.min(at_rest.mean_nanos * FORGET_UP_TO_PERCENT / 100),
            slow_permille: self.slow_permille.min(at_rest.slow_permille),
        }
    }
}

/// What tasks did while requests were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tasks {
    /// They worked, or what they did is not out of the way yet.
    Work,
    /// They have just begun to hold back before they did much.
    Begin,
    /// They have hardly worked for a while.
    Rest,
}

/// Judges requests of one kind.
#[derive(Debug, Default)]
struct Judge {
    /// Not judged yet.
    pending: Requests,
    during: Duration,
    /// Tasks worked in that time.
    was_pressed: bool,
    usual: Option<Usual>,
    /// What it was at rest.
    at_rest: Option<Usual>,
    /// Whether guests have such requests.
    is_active: bool,
}

impl Judge {
    /// Whether the requests suffer, if there is enough to tell.
    fn look(&mut self, seen: &Requests, during: Duration, tasks: Tasks) -> Option<bool> {
        self.pending.count += seen.count;
        self.pending.nanos = self.pending.nanos.saturating_add(seen.nanos);
        self.pending.slow += seen.slow;
        self.during += during;
        self.was_pressed |= tasks == Tasks::Work;
        let is_late = self.is_late(seen);
        if self.pending.count < MIN_JUDGED && self.during < IDLE_AFTER {
            self.is_active |= is_late;
            return is_late.then_some(true);
        }
        let judged = std::mem::take(&mut self.pending);
        let during = std::mem::take(&mut self.during);
        let was_pressed = std::mem::take(&mut self.was_pressed);
        // Few requests that take all of the time are no sign of idleness: who waits for each of them has no
        // more.
        let is_busy = u128::from(judged.nanos) * 100 >= during.as_nanos() * BUSY_PERCENT;
        let is_judged = judged.count >= MIN_JUDGED || (judged.count > 0 && is_busy);
        self.is_active = is_judged || is_late;
        self.is_active.then(|| (is_judged && self.judge(&judged, was_pressed)) || is_late)
    }

    /// Whether what is under way should have been done long ago.
    fn is_late(&self, seen: &Requests) -> bool {
        let usual_nanos = self.usual.map_or(0, |usual| usual.mean_nanos);
        seen.waiting > 0
            && seen.waiting_nanos / seen.waiting > usual_nanos.saturating_mul(LATE_TIMES).max(LATE_NANOS)
    }

    /// Of one request at least.
    fn judge(&mut self, seen: &Requests, was_pressed: bool) -> bool {
        let now = Usual::of(seen);
        let suffers = self.usual.is_some_and(|usual| {
            now.mean_nanos > usual.mean_nanos * LONGER_PERCENT / 100 + LONGER_NANOS
                || now.slow_permille > usual.slow_permille + SLOW_PERMILLE
        });
        if was_pressed {
            if let (Some(usual), Some(at_rest)) = (self.usual, self.at_rest) {
                self.usual = Some(usual.towards(now, FORGET_PERCENT, 1).bounded(at_rest));
            }
        } else {
            let learned =
                self.at_rest.map_or(now, |before| before.towards(now, LEARN_PERCENT, SLOW_PERMILLE));
            (self.usual, self.at_rest) = (Some(learned), Some(learned));
        }
        suffers
    }

    /// Requests were seen of which nobody knows yet whether they are as usual.
    fn wants_rest(&self) -> bool {
        self.is_active && self.usual.is_none()
    }
}

/// Sets the share.
#[derive(Debug, Default)]
pub(super) struct Governor {
    data: Judge,
    flushes: Judge,
    /// For how long nothing was done that is under way.
    stalled: Duration,
    /// For how long the share has been the least.
    rested: Duration,
    /// Whether tasks had more than the least share for longer than a look.
    has_pressed: bool,
    /// None while guests are idle.
    share_permille: Option<u32>,
}

impl Governor {
    /// Whether guests are at work.
    pub(super) fn sees_guests(&self) -> bool {
        self.share_permille.is_some()
    }

    /// What tasks did since the look before.
    fn tasks(&self) -> Tasks {
        match self.share_permille {
            Some(MIN_PERMILLE) if !self.has_pressed => Tasks::Begin,
            Some(MIN_PERMILLE) if self.rested >= REST => Tasks::Rest,
            _ => Tasks::Work,
        }
    }

    /// The share from now on, in thousandths.
    pub(super) fn look(&mut self, seen: &Seen) -> u32 {
        let tasks = self.tasks();
        let judged = [
            self.data.look(&seen.data, seen.during, tasks),
            self.flushes.look(&seen.flushes, seen.during, tasks),
        ];
        self.stalled = if seen.is_stalled { self.stalled + seen.during } else { Duration::ZERO };
        let is_stuck = self.stalled >= IDLE_AFTER;
        if is_stuck {
            // The next step down is only taken after as long again, but the guests do not count as idle
            // meanwhile.
            self.stalled = Duration::from_nanos(1);
        }
        let before = self.share_permille;
        let share = before.unwrap_or(FIRST_PERMILLE);
        if is_stuck || judged.contains(&Some(true)) {
            self.share_permille = Some((share / 2).max(MIN_PERMILLE));
        } else if self.data.wants_rest() || self.flushes.wants_rest() {
            self.share_permille = Some(MIN_PERMILLE);
        } else if judged.contains(&Some(false)) {
            // Where it was only waited to see what is usual, tasks begin now.
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
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(50);

    fn seen(requests: u64, micros_each: u64, slow: u64) -> Seen {
        Seen { data: took(requests, micros_each, slow), during: LOOK, ..Seen::default() }
    }

    fn took(count: u64, micros_each: u64, slow: u64) -> Requests {
        Requests { count, nanos: count * micros_each * 1000, slow, ..Requests::default() }
    }

    #[test]
    fn without_requests_tasks_have_all_of_the_time() {
        let mut governor = Governor::default();
        for _ in 0..100 {
            assert_eq!(governor.look(&seen(0, 0, 0)), ALL_PERMILLE);
        }
        // A few now and then are no guest at work.
        for _ in 0..100 {
            assert_eq!(governor.look(&seen(1, 500, 0)), ALL_PERMILLE);
        }
    }

    #[test]
    fn guests_that_do_not_suffer_leave_all_of_it_in_the_end() {
        let mut governor = Governor::default();
        let first = governor.look(&seen(100, 20, 0));
        assert_eq!(first, MIN_PERMILLE, "first of all it is looked what is usual");
        let mut last = first;
        for _ in 0..50 {
            let share = governor.look(&seen(100, 20, 0));
            assert!(share >= last);
            last = share;
        }
        assert_eq!(last, ALL_PERMILLE);
    }

    #[test]
    fn requests_that_take_longer_take_the_share_down_and_it_comes_back() {
        for bad in [seen(100, 200, 0), seen(100, 20, 2)] {
            let mut governor = Governor::default();
            (0..50).for_each(|_| {
                governor.look(&seen(100, 20, 0));
            });
            assert_eq!(governor.look(&bad), ALL_PERMILLE / 2);
            assert_eq!(governor.look(&bad), ALL_PERMILLE / 4);
            (0..10).for_each(|_| {
                governor.look(&bad);
            });
            assert_eq!(governor.look(&bad), MIN_PERMILLE, "it does not come to rest altogether");
            let shares: Vec<u32> = (0..60).map(|_| governor.look(&seen(100, 20, 0))).collect();
            assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
        }
    }

    #[test]
    fn other_work_of_the_guest_becomes_usual() {
        let mut governor = Governor::default();
        (0..50).for_each(|_| {
            governor.look(&seen(100, 20, 0));
        });
        // It writes megabytes now, which take as long whatever the tasks do.
        let shares: Vec<u32> = (0..600).map(|_| governor.look(&seen(100, 2_000, 3))).collect();
        assert_eq!(shares.iter().min(), Some(&MIN_PERMILLE));
        assert_eq!(shares.last(), Some(&ALL_PERMILLE));
    }

    /// Against a model: from three tenths of the time on, requests take four times as long, also for a while
    /// after tasks have held back, as long as a disk writes out what it was given.
    #[test]
    fn what_tasks_do_to_guests_does_not_become_usual() {
        for lag in [0, 20, 35] {
            let mut governor = Governor::default();
            let (mut share, mut pressed_until, mut late, mut shares) = (FIRST_PERMILLE, 0, 0, Vec::new());
            // Ten minutes.
            for look in 0..12_000 {
                if share > 300 {
                    pressed_until = look + 1 + lag;
                }
                let suffers = look < pressed_until;
                late += u64::from(suffers && look >= 6_000);
                share = governor.look(&seen(100, if suffers { 80 } else { 20 }, 0));
                shares.push(share);
            }
            let last = &shares[6_000..];
            assert!(last.iter().all(|share| *share <= 300 + STEP_PERMILLE), "{lag}: {:?}", last.iter().max());
            assert!(last.iter().any(|share| *share > 200), "{lag}: it tries again");
            assert!(late < 6_000 * (2 + lag) / (14 + lag), "{lag}: {late} of 6000");
        }
    }

    #[test]
    fn noise_does_not_take_the_share_away() {
        let mut governor = Governor::default();
        let mut number = 1u64;
        let mut shares = Vec::new();
        for _ in 0..2_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // 80 to 120 µs, and now and then a slow one.
            shares.push(u64::from(governor.look(&seen(
                100,
                80 + (number >> 33) % 40,
                u64::from((number >> 40).is_multiple_of(64)),
            ))));
        }
        let settled = shares[200..].iter().sum::<u64>() / shares[200..].len() as u64;
        assert!(settled > 700, "{settled}");
    }

    /// A guest keeps 32 requests under way, and none of them comes back, or only one now and then.
    #[test]
    fn requests_under_way_that_should_be_done_take_the_share_down_at_once() {
        for comes_back in [0, 1] {
            let mut governor = Governor::default();
            (0..50).for_each(|_| {
                governor.look(&Seen {
                    data: Requests { waiting: 32, waiting_nanos: 32 * 10_000, ..took(100, 20, 0) },
                    ..seen(0, 0, 0)
                });
            });
            let shares: Vec<u32> = (0..10)
                .map(|look| {
                    let waiting_nanos = 31 * look * LOOK.as_nanos() as u64;
                    let done = took(comes_back, 40_000 * look, comes_back);
                    governor.look(&Seen {
                        data: Requests { waiting: 31, waiting_nanos, ..done },
                        during: LOOK,
                        ..Seen::default()
                    })
                })
                .collect();
            assert_eq!(shares[..4], [1000, 1000, 500, 250], "{shares:?}");
            assert!(shares[8] <= 2 * MIN_PERMILLE && governor.sees_guests(), "{shares:?}");
        }
        // Those of a guest whose requests take as long whatever tasks do are not late.
        let mut governor = Governor::default();
        let slow = Requests { waiting: 32, waiting_nanos: 32 * 60_000_000, ..took(27, 60_000, 27) };
        let shares: Vec<u32> =
            (0..300).map(|_| governor.look(&Seen { data: slow, during: LOOK, ..Seen::default() })).collect();
        assert_eq!(shares.last(), Some(&ALL_PERMILLE), "{shares:?}");
    }

    #[test]
    fn a_guest_that_goes_gives_the_time_back_at_once() {
        let mut governor = Governor::default();
        (0..20).for_each(|n| {
            governor.look(&seen(100, if n < 5 { 20 } else { 900 }, 0));
        });
        assert_eq!(governor.look(&seen(100, 900, 0)), MIN_PERMILLE);
        assert!(governor.sees_guests());
        let looks = (0..20).take_while(|_| governor.look(&seen(0, 0, 0)) < ALL_PERMILLE).count();
        assert!(looks <= 10 && !governor.sees_guests(), "{looks}");
    }

    /// Against a model: each request takes 20 µs, and 10 more for each tenth of the time that tasks work
    /// beyond three.
    #[test]
    fn it_settles_where_guests_begin_to_suffer() {
        let mut governor = Governor::default();
        let mut share = FIRST_PERMILLE;
        let mut shares = Vec::new();
        for _ in 0..2_000 {
            let micros = 20 + u64::from(share.saturating_sub(300)) / 10;
            share = governor.look(&seen(100, micros, 0));
            shares.push(u64::from(share));
        }
        let settled = shares[200..].iter().sum::<u64>() / shares[200..].len() as u64;
        assert!((200..600).contains(&settled), "{settled}");
        assert!(shares[200..].iter().all(|share| *share < 900));
    }

    /// Against a model of a disk: a guest that sends the next request when the one before is done, each of
    /// which takes 8 ms, and up to 30 ms the more tasks work beyond three tenths of the time. It has fewer
    /// requests the more it suffers.
    #[test]
    fn a_guest_that_waits_for_each_request_is_not_taken_for_idle() {
        for is_flush in [false, true] {
            let mut governor = Governor::default();
            let (mut share, mut left_micros, mut shares) = (FIRST_PERMILLE, 0, Vec::new());
            for look in 0..3_000 {
                // At first, as if tasks had all of the time: so it was when the guest was taken for idle.
                let working = if (200..300).contains(&look) { ALL_PERMILLE } else { share };
                let micros_each = 8_000 + u64::from(working.saturating_sub(300)) * 32;
                let micros = left_micros + LOOK.as_micros() as u64;
                left_micros = micros % micros_each;
                let count = micros / micros_each;
                let requests = took(count, micros_each, count);
                let (data, flushes) =
                    if is_flush { (Requests::default(), requests) } else { (requests, Requests::default()) };
                share = governor.look(&Seen { data, flushes, is_stalled: count == 0, during: LOOK });
                shares.push(u64::from(share));
                assert!(look < 20 || governor.sees_guests(), "{look}: {share}");
            }
            assert!(shares[250..300].iter().all(|share| *share < 200), "{:?}", &shares[200..300]);
            let settled = shares[300..].iter().sum::<u64>() / shares[300..].len() as u64;
            assert!((100..700).contains(&settled), "{settled}");
            assert!(shares[300..].iter().all(|share| *share < 950), "{:?}", shares.iter().max());
        }
    }

    #[test]
    fn requests_that_do_not_come_back_take_the_share_down() {
        let at_work = || {
            let mut governor = Governor::default();
            (0..50).for_each(|_| {
                governor.look(&seen(100, 20, 0));
            });
            governor
        };
        let mut governor = at_work();
        let stalled = Seen { is_stalled: true, during: LOOK, ..Seen::default() };
        let shares: Vec<u32> = (0..80).map(|_| governor.look(&stalled)).collect();
        assert!(shares.is_sorted_by(|one, next| one >= next) && governor.sees_guests(), "{shares:?}");
        assert_eq!((shares[8], shares[10], shares.last()), (1000, 500, Some(&MIN_PERMILLE)));
        // Where nothing told of the stall, the request tells of it at its end.
        let mut governor = at_work();
        (0..40).for_each(|_| {
            governor.look(&seen(0, 0, 0));
        });
        assert!(!governor.sees_guests());
        (0..10).for_each(|look| {
            governor.look(&seen(u64::from(look == 0), 2_000_000, 1));
        });
        assert_eq!(governor.look(&seen(0, 0, 0)), FIRST_PERMILLE / 2);
    }

    #[test]
    fn a_flush_now_and_then_is_not_compared_with_writes() {
        let mut governor = Governor::default();
        let shares: Vec<u32> = (0..300)
            .map(|look| {
                let flushes = took(u64::from(look % 20 == 7) * 2, 5_000, 2);
                governor.look(&Seen { flushes, ..seen(100, 20, 0) })
            })
            .collect();
        assert!(shares.is_sorted() && shares.last() == Some(&ALL_PERMILLE), "{shares:?}");
        // Many that take longer than they did count.
        let shares: Vec<u32> = (0..100)
            .map(|_| governor.look(&Seen { flushes: took(20, 1_000, 0), ..seen(100, 20, 0) }))
            .collect();
        assert_eq!(
            (shares[0], shares[99]),
            (MIN_PERMILLE, ALL_PERMILLE),
            "nobody knew what is usual: {shares:?}"
        );
        let share = governor.look(&Seen { flushes: took(20, 4_000, 20), ..seen(100, 20, 0) });
        assert_eq!(share, ALL_PERMILLE / 2);
    }
}
