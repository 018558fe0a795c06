//! What share of the time tasks may work, from what guests' requests were like: no clock, no threads.
//!
//! The share is halved whenever requests take clearly longer than they usually do, on average or one in a hundred ([`Tail`]), and
//! grows by small steps otherwise, as flow control does. Without requests all of the time is the tasks'.
//!
//! What is usual is learned while tasks hardly work, and not from what they do to the guests: when requests suffer, the
//! share falls to its least, and what is still longer there after a while is the guest's own doing, or somebody else's. While
//! tasks work, the usual time only falls, or rises within a narrow bound, so that a single good moment does not count for ever.
//!
//! A guest that works in bursts which are shorter than that while would never be learned, and be taken for one that suffers in each of them: so from the
//! second such burst on the share stays the least also between them, for some seconds, and the times add up.

use super::tail::{Tail, Took, Verdict};
use std::time::Duration;

/// All of the time.
pub(crate) const ALL_PERMILLE: u32 = 1000;
/// The least share: a task gets on whatever guests do.
const LEAST_PERMILLE: u32 = 20;
/// The share with which tasks begin while guests are active, once it is known what is usual.
const FIRST_PERMILLE: u32 = 200;
/// What the share grows by after requests that were as usual.
const STEP_PERMILLE: u32 = 20;
/// Requests that are judged together, at least: single ones say little.
const JUDGED_LEAST: u64 = 20;
/// So long without that many requests, the guests count as idle, unless the few there were took much of that time.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// What part of the time is much, in percent.
const BUSY_PERCENT: u128 = 5;
/// Requests may take so much longer than usual on average, in percent.
const LONGER_PERCENT: u64 = 150;
/// What does not count as longer in any case.
const LONGER_NANOS: u64 = 10_000;
/// Before they did anything, tasks wait for as long as this to see what is usual.
const BEGIN_MOST: Duration = Duration::from_millis(500);
/// After so long at the least share, what tasks did before is out of the way: what is seen then is learned.
const REST: Duration = Duration::from_secs(2);
/// For so long it is learned then: the slowest one of a hundred is not known from a hundred.
const LEARN: Duration = Duration::from_secs(1);
/// How long the share stays the least after a burst that was too short to learn from, and after how many in a row.
const HOLD: Duration = Duration::from_secs(10);
const HOLDS_MOST: u32 = 3;
/// By how much the usual time grows at most with every judgement at rest, in percent.
const LEARN_PERCENT: u64 = 5;
/// The same while tasks work.
const FORGET_PERCENT: u64 = 1;
/// How far above what was seen at rest that may take it, in percent.
const FORGET_UP_TO_PERCENT: u64 = 125;
/// Requests that are under way count as late when they have been for so many times the usual time on average. A look finds long ones more
/// often than short ones, so what is usual is what looks at rest found.
const LATE_TIMES: u64 = 4;
/// But not before.
const LATE_NANOS: u64 = 50_000_000;
/// More than that is not usual, whatever a look at rest found: a disk that hung once would excuse all that follows.
const AGE_AT_REST_MOST_NANOS: u64 = 250_000_000;
/// What looks at rest found is forgotten by and by: about two thirds of it in so long.
const FORGET_AGE_IN: Duration = Duration::from_secs(60);

/// Guests' requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    /// How many.
    pub(super) count: u64,
    /// How long all of them took, and waited for a processor.
    pub(super) nanos: u64,
    /// How many took how long.
    pub(super) took: Took,
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

/// Goes towards what is seen now: down by a part of the way, so that a single good moment is not taken for all of them; up by
/// no more than some percent.
fn towards(before: u64, now: u64, up_percent: u64) -> u64 {
    match now < before {
        true => before - (before - now).div_ceil(4),
        false => now.min(before + before * up_percent / 100 + 1),
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
    /// How long a request usually takes on average.
    usual_nanos: Option<u64>,
    /// What it was at rest.
    at_rest_nanos: Option<u64>,
    tail: Tail,
    /// How long what is under way had been on average when it was looked at rest, at most; the longer ago, the less.
    age_at_rest_nanos: u64,
    /// The look before found that what is under way should have been done.
    was_late: bool,
    /// Whether guests have such requests.
    is_active: bool,
}

impl Judge {
    /// What is to be said of the requests, if there is enough to tell.
    fn look(&mut self, seen: &Requests, during: Duration, tasks: Tasks) -> Option<Verdict> {
        self.pending.count += seen.count;
        self.pending.nanos = self.pending.nanos.saturating_add(seen.nanos);
        self.pending.took.iter_mut().zip(&seen.took).for_each(|(pending, seen)| *pending += seen);
        self.during += during;
        self.was_pressed |= tasks == Tasks::Work;
        let is_late = self.is_late(seen, during, tasks);
        let late = is_late.then_some(Verdict::Suffers);
        if self.pending.count < JUDGED_LEAST && self.during < IDLE_AFTER {
            self.is_active |= is_late;
            return late;
        }
        let judged = std::mem::take(&mut self.pending);
        let during = std::mem::take(&mut self.during);
        let was_pressed = std::mem::take(&mut self.was_pressed);
        // Few requests that take all of the time are no sign of idleness: who waits for each of them has no more.
        let is_busy = u128::from(judged.nanos) * 100 >= during.as_nanos() * BUSY_PERCENT;
        let is_judged = judged.count >= JUDGED_LEAST || (judged.count > 0 && is_busy);
        self.is_active = is_judged || is_late;
        let verdict = is_judged.then(|| self.judge(&judged, was_pressed));
        late.or(verdict)
    }

    /// Whether what is under way should have been done long ago, two looks in a row: one may just have met a long one.
    fn is_late(&mut self, seen: &Requests, during: Duration, tasks: Tasks) -> bool {
        let age_nanos = seen.waiting_nanos.checked_div(seen.waiting).unwrap_or(0);
        let during = during.min(FORGET_AGE_IN);
        let forgotten_nanos =
            u128::from(self.age_at_rest_nanos) * during.as_nanos() / FORGET_AGE_IN.as_nanos();
        // No more than there is, as no more than the whole time passed.
        self.age_at_rest_nanos -= forgotten_nanos as u64;
        if tasks == Tasks::Rest && age_nanos > 0 {
            // Up at once, and down slowly: most looks meet nothing that is long.
            let before_nanos = self.age_at_rest_nanos - self.age_at_rest_nanos / 64;
            self.age_at_rest_nanos = age_nanos.min(AGE_AT_REST_MOST_NANOS).max(before_nanos);
        }
        let usual_nanos = self.usual_nanos.unwrap_or(0).max(self.age_at_rest_nanos);
        let is_late = age_nanos > usual_nanos.saturating_mul(LATE_TIMES).max(LATE_NANOS);
        std::mem::replace(&mut self.was_late, is_late) && is_late
    }

    /// Of one request at least.
    fn judge(&mut self, seen: &Requests, was_pressed: bool) -> Verdict {
        let now_nanos = seen.nanos / seen.count.max(1);
        let is_longer = self
            .usual_nanos
            .is_some_and(|usual_nanos| now_nanos > usual_nanos * LONGER_PERCENT / 100 + LONGER_NANOS);
        let tail = if was_pressed {
            if let (Some(usual_nanos), Some(at_rest_nanos)) = (self.usual_nanos, self.at_rest_nanos) {
                // Not so far above what was seen at rest that what tasks do becomes usual.
                let most_nanos = at_rest_nanos * FORGET_UP_TO_PERCENT / 100;
                self.usual_nanos = Some(towards(usual_nanos, now_nanos, FORGET_PERCENT).min(most_nanos));
            }
            self.tail.judge(&seen.took)
        } else {
            let learned_nanos =
                self.at_rest_nanos.map_or(now_nanos, |before| towards(before, now_nanos, LEARN_PERCENT));
            (self.usual_nanos, self.at_rest_nanos) = (Some(learned_nanos), Some(learned_nanos));
            self.tail.learn(&seen.took);
            Verdict::Fine
        };
        if is_longer { Verdict::Suffers } else { tail }
    }

    /// Requests were seen of which nobody knows yet whether they are as usual.
    fn wants_rest(&self) -> bool {
        self.is_active && self.usual_nanos.is_none()
    }

    /// The same of those few that take the longest.
    fn wants_more(&self) -> bool {
        self.is_active && self.tail.knows_little()
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
    /// For how long it has been so before tasks did anything.
    begun: Duration,
    /// Whether tasks had more than the least share for longer than a look.
    has_pressed: bool,
    /// Guests have gone idle in the middle of being learned, so many times in a row.
    untaught: u32,
    /// For how long they have been idle since, with the least share.
    held: Duration,
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
            Some(LEAST_PERMILLE) if !self.has_pressed => Tasks::Begin,
            Some(LEAST_PERMILLE) if self.rested >= REST => Tasks::Rest,
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
            // The next step down is only taken after as long again, but the guests do not count as idle meanwhile.
            self.stalled = Duration::from_nanos(1);
        }
        if tasks == Tasks::Begin {
            self.begun += seen.during;
        }
        let is_beginning = !self.has_pressed && self.begun < BEGIN_MOST;
        let is_learning = tasks == Tasks::Rest && self.rested < REST + LEARN;
        let has_learned = tasks == Tasks::Rest && judged.iter().any(Option::is_some);
        let before = self.share_permille;
        let share = before.unwrap_or(FIRST_PERMILLE);
        if is_stuck || judged.contains(&Some(Verdict::Suffers)) {
            self.share_permille = Some((share / 2).max(LEAST_PERMILLE));
        } else if self.data.wants_rest()
            || self.flushes.wants_rest()
            || (is_beginning && (self.data.wants_more() || self.flushes.wants_more()))
        {
            self.share_permille = Some(LEAST_PERMILLE);
        } else if judged.contains(&Some(Verdict::Waits)) || (is_learning && has_learned) {
            self.share_permille = Some(share);
        } else if judged.contains(&Some(Verdict::Fine)) {
            // Where it was only waited to see what is usual, tasks begin now.
            let least = if self.has_pressed { 0 } else { FIRST_PERMILLE };
            self.share_permille = Some((share + STEP_PERMILLE).clamp(least, ALL_PERMILLE));
        } else if !self.data.is_active && !self.flushes.is_active && self.stalled.is_zero() {
            self.idle(seen.during);
        }
        if judged.iter().any(Option::is_some) {
            self.held = Duration::ZERO;
        }
        if has_learned {
            self.untaught = 0;
        }
        let is_least = self.share_permille == Some(LEAST_PERMILLE);
        self.rested = if is_least && before == self.share_permille {
            self.rested + seen.during
        } else {
            Duration::ZERO
        };
        self.has_pressed |= self.share_permille != Some(LEAST_PERMILLE);
        self.share_permille.unwrap_or(ALL_PERMILLE)
    }

    /// Guests have no requests: tasks have all of the time, but between bursts of which nothing was learned yet.
    fn idle(&mut self, during: Duration) {
        let is_learning = self.has_pressed && self.share_permille == Some(LEAST_PERMILLE);
        if is_learning && self.held.is_zero() {
            self.untaught += 1;
        }
        self.held += during;
        if !(is_learning && (2..=HOLDS_MOST + 1).contains(&self.untaught) && self.held < HOLD) {
            self.share_permille = None;
        }
    }
}

#[cfg(test)]
mod tests;
