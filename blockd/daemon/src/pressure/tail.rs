//! Whether more than one of a hundred requests takes longer than 99 of them take while tasks rest.
//!
//! That is what guests notice: the mean hardly moves while one request of fifty waits for a disk. The time below which almost
//! all of them stay at rest is learned, as one of the finer buckets. From then on there is an account: each request earns the
//! hundredth part of a late one, each late one is paid from it, and while it is overdrawn tasks get no more. So over any longer time no more
//! than one of a hundred is late, however they are spread.

use crate::metrics::{FINE_BUCKETS, fine_bucket};

/// How many requests there were in each of the finer buckets.
pub(super) type Took = [u64; FINE_BUCKETS];

/// Requests in a thousand that may be late.
const LATE_PERMILLE: u64 = 10;
/// Of those that were seen at rest, so many in a thousand may be; what is between is for tasks.
const LATE_AT_REST_PERMILLE: u64 = 7;
/// Nothing that takes no longer than this is late, in nanoseconds.
const NEVER_LATE_NANOS: u64 = 32_000;
/// So many requests at rest say what is usual.
const LEARNED_FROM: u64 = 200;
/// So many requests are remembered; when there are more, all count for half.
const REMEMBERED: u64 = 20_000;
/// Late requests that may be saved up for, and that may be owed: few, because what was long ago helps or hurts nobody now.
const SAVED_MOST: i64 = 5;
const OWED_MOST: i64 = 10;

/// What the account says of some requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not more are late than may be.
    Fine,
    /// More were, and it is made up for.
    Waits,
    /// More are.
    Suffers,
}

/// The account of requests of one kind.
#[derive(Debug, Default)]
pub(super) struct Tail {
    at_rest: Took,
    at_work: Took,
    /// What is in a later bucket is late; none while too little is known.
    bound: Option<usize>,
    /// In thousandths of a late request.
    balance: i64,
}

fn sum(took: &Took) -> u64 {
    took.iter().sum()
}

fn add(to: &mut Took, took: &Took) {
    to.iter_mut().zip(took).for_each(|(to, took)| *to += took);
    if sum(to) > REMEMBERED {
        to.iter_mut().for_each(|count| *count /= 2);
    }
}

/// The last bucket that is not late, if these are the requests at rest.
fn bound_of(took: &Took) -> usize {
    let allowed = sum(took) * LATE_AT_REST_PERMILLE / 1000;
    let mut above = 0;
    let last = took.iter().rposition(|count| {
        above += count;
        above > allowed
    });
    last.unwrap_or(0).max(fine_bucket(NEVER_LATE_NANOS))
}

impl Tail {
    /// Whether more should be seen at rest before anything can be told.
    pub(super) fn knows_little(&self) -> bool {
        self.bound.is_none()
    }

    /// Takes what requests at rest are like for what is usual.
    pub(super) fn learn(&mut self, took: &Took) {
        add(&mut self.at_rest, took);
        if sum(&self.at_rest) >= LEARNED_FROM {
            self.bound = Some(bound_of(&self.at_rest));
        }
        self.at_work = Took::default();
        self.balance = 0;
    }

    /// Judges requests while tasks work.
    pub(super) fn judge(&mut self, took: &Took) -> Verdict {
        let Some(bound) = self.bound else { return Verdict::Fine };
        let late: u64 = took.iter().skip(bound + 1).sum();
        let change = i64::try_from(sum(took) * LATE_PERMILLE).unwrap_or(i64::MAX)
            - i64::try_from(late * 1000).unwrap_or(i64::MAX);
        let before = self.balance;
        self.balance = before.saturating_add(change).clamp(-OWED_MOST * 1000, SAVED_MOST * 1000);
        self.follow(took, bound);
        match self.balance < 0 {
            true if change < 0 => Verdict::Suffers,
            true => Verdict::Waits,
            false => Verdict::Fine,
        }
    }

    /// Beside tasks too, requests can only become faster than what is usual by themselves: then the bound follows, a bucket at a time.
    fn follow(&mut self, took: &Took, bound: usize) {
        add(&mut self.at_work, took);
        if sum(&self.at_work) < REMEMBERED / 2 {
            return;
        }
        if bound_of(&self.at_work) < bound {
            self.bound = Some(bound - 1);
            self.at_rest = self.at_work;
        }
        self.at_work = Took::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many requests of so many microseconds each.
    fn took(parts: &[(u64, u64)]) -> Took {
        let mut took = Took::default();
        parts.iter().for_each(|(count, micros)| took[fine_bucket(micros * 1_000)] += count);
        took
    }

    fn learned(parts: &[(u64, u64)]) -> Tail {
        let mut tail = Tail::default();
        assert!(tail.knows_little());
        tail.learn(&took(parts));
        assert!(!tail.knows_little());
        tail
    }

    #[test]
    fn one_of_a_hundred_may_be_late_and_two_may_not() {
        // What half a percent takes at rest is late; what 98.5 percent and one more take is not.
        let rest = [(985, 60), (10, 120), (5, 400)];
        let mut tail = learned(&rest);
        for _ in 0..1_000 {
            assert_eq!(tail.judge(&took(&[(980, 60), (10, 120), (10, 400)])), Verdict::Fine);
        }
        let mut looks = 0;
        while tail.judge(&took(&[(98, 60), (2, 400)])) == Verdict::Fine {
            looks += 1;
            assert!(looks < 10, "it is saved up for without end");
        }
        assert_eq!(tail.judge(&took(&[(98, 60), (2, 400)])), Verdict::Suffers);
        // It is made up for by as many that are not late, whatever was owed before.
        (0..100).for_each(|_| assert_eq!(tail.judge(&took(&[(100, 400)])), Verdict::Suffers));
        let mut verdicts = (0..10).map(|_| tail.judge(&took(&[(100, 60)])));
        assert!(verdicts.by_ref().take(9).all(|verdict| verdict == Verdict::Waits));
        assert_eq!(verdicts.next(), Some(Verdict::Fine));
    }

    #[test]
    fn half_as_long_again_is_late() {
        let mut tail = learned(&[(1_000, 100)]);
        assert_eq!(tail.judge(&took(&[(1_000, 127)])), Verdict::Fine);
        assert_eq!(tail.judge(&took(&[(100, 151)])), Verdict::Suffers);
        // Where everything is fast, nothing that is a little slower matters.
        let mut tail = learned(&[(1_000, 3)]);
        assert_eq!(tail.judge(&took(&[(1_000, 32)])), Verdict::Fine);
        assert_eq!(tail.judge(&took(&[(100, 33)])), Verdict::Suffers);
    }

    #[test]
    fn few_requests_say_nothing_yet() {
        let mut tail = Tail::default();
        tail.learn(&took(&[(LEARNED_FROM - 1, 60)]));
        assert!(tail.knows_little());
        assert_eq!(tail.judge(&took(&[(100, 1_000_000)])), Verdict::Fine);
        tail.learn(&took(&[(1, 60)]));
        assert_eq!(tail.judge(&took(&[(100, 1_000_000)])), Verdict::Suffers);
    }

    #[test]
    fn other_work_of_the_guest_is_learned_at_rest_and_faster_work_always() {
        let mut tail = learned(&[(REMEMBERED, 60)]);
        let slow = took(&[(100, 3_000)]);
        assert_eq!(tail.judge(&slow), Verdict::Suffers);
        (0..3).for_each(|_| tail.learn(&slow));
        assert_eq!(tail.judge(&slow), Verdict::Fine);
        let looks = (0..10_000).take_while(|_| {
            tail.judge(&took(&[(100, 60)])) == Verdict::Fine && tail.bound > Some(fine_bucket(96_000))
        });
        assert!((100..5_000).contains(&looks.count()), "{:?}", tail.bound);
    }
}
