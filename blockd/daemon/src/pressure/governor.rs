//! What share of the time tasks may work, from what guests' requests were like: no clock, no threads.
//!
//! The share is halved whenever requests take clearly longer than they usually do, and grows by small steps otherwise, as
//! flow control does. What is usual is the best that was seen lately. Without requests all of the time is the tasks'.

use std::time::Duration;

/// All of the time.
pub(crate) const ALL_PERMILLE: u32 = 1000;
/// The least share: a task gets on whatever guests do.
const LEAST_PERMILLE: u32 = 20;
/// The share with which tasks begin while guests are active, until it is known what is usual.
const FIRST_PERMILLE: u32 = 200;
/// What the share grows by after requests that were as usual.
const STEP_PERMILLE: u32 = 20;
/// Requests that are judged together, at least: single ones say little.
const JUDGED_LEAST: u64 = 20;
/// So long without that many requests, the guests count as idle.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// Requests may take so much longer than usual on average, in percent.
const LONGER_PERCENT: u64 = 150;
/// What does not count as longer in any case.
const LONGER_NANOS: u64 = 10_000;
/// Slow requests in a thousand that do not count.
const SLOW_PERMILLE: u64 = 5;
/// By how much the usual time grows with every judgement, in percent, so that other work of the guest becomes usual.
const FORGET_PERCENT: u64 = 1;

/// Guests' requests since the look before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// How many.
    pub(super) requests: u64,
    /// How long all of them took, and waited for a processor.
    pub(super) nanos: u64,
    /// How many took longer than a few milliseconds.
    pub(super) slow: u64,
    /// Since when.
    pub(super) during: Duration,
}

/// What is usual.
#[derive(Clone, Copy, Debug)]
struct Usual {
    mean_nanos: u64,
    slow_permille: u64,
}

/// Sets the share.
#[derive(Debug, Default)]
pub(super) struct Governor {
    /// Not judged yet.
    pending: Seen,
    usual: Option<Usual>,
    /// None while guests are idle.
    share_permille: Option<u32>,
}

impl Governor {
    /// Whether guests are at work.
    pub(super) fn sees_guests(&self) -> bool {
        self.share_permille.is_some()
    }

    /// The share from now on, in thousandths.
    pub(super) fn look(&mut self, seen: &Seen) -> u32 {
        self.pending.requests += seen.requests;
        self.pending.nanos += seen.nanos;
        self.pending.slow += seen.slow;
        self.pending.during += seen.during;
        if self.pending.requests >= JUDGED_LEAST {
            let judged = std::mem::take(&mut self.pending);
            self.judge(&judged);
        } else if self.pending.during >= IDLE_AFTER {
            self.pending = Seen::default();
            self.share_permille = None;
        }
        self.share_permille.unwrap_or(ALL_PERMILLE)
    }

    fn judge(&mut self, seen: &Seen) {
        let now =
            Usual { mean_nanos: seen.nanos / seen.requests, slow_permille: seen.slow * 1000 / seen.requests };
        let share = self.share_permille.unwrap_or(FIRST_PERMILLE);
        let suffers = self.usual.is_some_and(|usual| {
            now.mean_nanos > usual.mean_nanos * LONGER_PERCENT / 100 + LONGER_NANOS
                || now.slow_permille > usual.slow_permille + SLOW_PERMILLE
        });
        self.share_permille = Some(match suffers {
            true => (share / 2).max(LEAST_PERMILLE),
            false => (share + STEP_PERMILLE).min(ALL_PERMILLE),
        });
        let usual = self.usual.unwrap_or(now);
        self.usual = Some(Usual {
            mean_nanos: now.mean_nanos.min(usual.mean_nanos + usual.mean_nanos * FORGET_PERCENT / 100 + 1),
            slow_permille: now.slow_permille.min(usual.slow_permille + u64::from(suffers)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(requests: u64, micros_each: u64, slow: u64) -> Seen {
        Seen { requests, nanos: requests * micros_each * 1000, slow, during: Duration::from_millis(50) }
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
        assert!(first <= FIRST_PERMILLE + STEP_PERMILLE, "{first}: it begins low");
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
            assert_eq!(governor.look(&bad), LEAST_PERMILLE, "it does not come to rest altogether");
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
        assert_eq!(shares.iter().min(), Some(&LEAST_PERMILLE));
        assert_eq!(shares.last(), Some(&ALL_PERMILLE));
    }

    #[test]
    fn a_guest_that_goes_gives_the_time_back_at_once() {
        let mut governor = Governor::default();
        (0..20).for_each(|n| {
            governor.look(&seen(100, if n < 5 { 20 } else { 900 }, 0));
        });
        assert_eq!(governor.look(&seen(100, 900, 0)), LEAST_PERMILLE);
        assert!(governor.sees_guests());
        let looks = (0..20).take_while(|_| governor.look(&seen(0, 0, 0)) < ALL_PERMILLE).count();
        assert!(looks <= 10 && !governor.sees_guests(), "{looks}");
    }

    /// Against a model: each request takes 20 µs, and 10 more for each tenth of the time that tasks work beyond three.
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
}
