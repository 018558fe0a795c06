//! Decision about due runs.
//!
//! The only stored state is one instant, up to which all runs are handled. A caller that stores this instant
//! together with the run neither loses nor repeats a run, and any number of missed runs becomes one.

use crate::{Recurrence, When};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Tolerance for a clock that is set back, in seconds: no run is repeated within it. A clock that is set back
/// further restarts the schedule at the new time.
pub const CLOCK_BACK_TOLERANCE_S: i64 = 3_600;
/// Maximum counted number of missed runs.
pub const MAX_MISSED_COUNTED: u32 = 1_000;

/// Maximum start delay of a run, which spreads schedules of the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Jitter {
    /// Maximum, in seconds; 0 for no delay.
    pub max_s: u32,
}

/// Maximum of the default jitter, in seconds.
const MAX_DEFAULT_JITTER_S: u32 = 1_800;

impl Jitter {
    /// Returns the jitter of schedules without their own: a tenth of the interval, at most 30 minutes. None
    /// for cron and calendar expressions, whose users expect exactly these times.
    pub fn default_of(recurrence: &Recurrence) -> Self {
        let max_s = match &recurrence.when {
            When::Periodic { minutes } => minutes.saturating_mul(60) / 10,
            When::Daily { .. } | When::Weekly { .. } | When::Monthly { .. } => MAX_DEFAULT_JITTER_S,
            When::Cron(_) | When::OnCalendar(_) => 0,
        };
        Self { max_s: max_s.min(MAX_DEFAULT_JITTER_S) }
    }

    /// Returns the delay of a schedule: constant for an id, in seconds, at most the maximum.
    pub fn delay_s(self, schedule_id: u128) -> u32 {
        (mixed(schedule_id) % (u64::from(self.max_s) + 1)) as u32
    }
}

/// Returns a number that spreads ids which differ in few bits: one round of splitmix64 over both halves.
pub(crate) const fn mixed(id: u128) -> u64 {
    let mut state = (id as u64) ^ ((id >> 64) as u64).rotate_left(32);
    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Decision of [`tick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tick {
    /// Nothing is due.
    Wait {
        /// Time of the next run, including its jitter.
        due: Timestamp,
    },
    /// A run is due.
    Run {
        /// Scheduled time: the last one that has passed.
        nominal: Timestamp,
        /// Number of missed runs that it makes up for, at most [`MAX_MISSED_COUNTED`].
        missed: u32,
        /// Lateness, in seconds.
        late_s: i64,
        /// Instant up to which all runs are handled once this run is accepted.
        processed_until: Timestamp,
    },
    /// The clock was set back beyond the tolerance.
    ClockSetBack {
        /// New instant up to which all runs are handled.
        processed_until: Timestamp,
    },
    /// No run will ever be due again.
    Never,
}

/// Decides at `now` for a schedule whose runs up to `processed_until` are handled and start `delay_s`
/// seconds after their time.
pub fn tick(recurrence: &Recurrence, processed_until: Timestamp, delay_s: u32, now: Timestamp) -> Tick {
    let delay = SignedDuration::from_secs(delay_s.into());
    let due_until = now.checked_sub(delay).unwrap_or(Timestamp::MIN);
    if processed_until.as_second().saturating_sub(now.as_second()) > CLOCK_BACK_TOLERANCE_S {
        return Tick::ClockSetBack { processed_until: due_until };
    }
    let Some(first) = recurrence.next_after(processed_until) else {
        return Tick::Never;
    };
    if first > due_until {
        return Tick::Wait { due: first.checked_add(delay).unwrap_or(Timestamp::MAX) };
    }
    let nominal = recurrence.last_until(processed_until, due_until).unwrap_or(first);
    let mut missed = 0;
    let mut at = first;
    while at < nominal && missed < MAX_MISSED_COUNTED {
        missed += 1;
        match recurrence.next_after(at) {
            Some(next) => at = next,
            None => break,
        }
    }
    let late_s = due_until.as_second().saturating_sub(nominal.as_second());
    Tick::Run { nominal, missed, late_s, processed_until: nominal }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(text: &str) -> Recurrence {
        text.parse().unwrap()
    }

    #[test]
    fn missed_runs_become_one_run() {
        let daily = schedule("daily @03:00");
        let slept = tick(&daily, at("2026-01-01T03:00:00Z"), 0, at("2026-01-11T12:00:00Z"));
        let nominal = at("2026-01-11T03:00:00Z");
        assert_eq!(slept, Tick::Run { nominal, missed: 9, late_s: 9 * 3600, processed_until: nominal });
        let then = tick(&daily, nominal, 0, at("2026-01-11T12:00:01Z"));
        assert_eq!(then, Tick::Wait { due: at("2026-01-12T03:00:00Z") });
        let years = tick(&schedule("periodic 1"), at("2020-01-01T00:00:00Z"), 0, at("2026-01-01T00:00:30Z"));
        assert!(
            matches!(years, Tick::Run { nominal, missed: MAX_MISSED_COUNTED, late_s: 30, .. } if nominal == at("2026-01-01T00:00:00Z"))
        );
    }

    #[test]
    fn clock_set_back_from_future_resumes_backups() {
        let daily = schedule("daily @03:00");
        let back = tick(&daily, at("2038-01-19T03:00:00Z"), 0, at("2026-01-11T12:00:00Z"));
        assert_eq!(back, Tick::ClockSetBack { processed_until: at("2026-01-11T12:00:00Z") });
        // A step of NTP repeats no run.
        let step = tick(&daily, at("2026-01-11T03:00:00Z"), 0, at("2026-01-11T02:59:50Z"));
        assert_eq!(step, Tick::Wait { due: at("2026-01-12T03:00:00Z") });
    }

    #[test]
    fn schedules_end() {
        let once = schedule("calendar 2026-01-02 03:00");
        assert!(matches!(
            tick(&once, at("2026-01-01T00:00:00Z"), 0, at("2026-01-03T00:00:00Z")),
            Tick::Run { .. }
        ));
        assert_eq!(tick(&once, at("2026-01-02T03:00:00Z"), 0, at("2026-01-03T00:00:00Z")), Tick::Never);
    }

    #[test]
    fn jitter_is_bounded_spread_and_always_the_same() {
        let jitter = Jitter { max_s: 59 };
        let delays: Vec<u32> = (0..1_000_u128).map(|id| jitter.delay_s(id)).collect();
        assert!(delays.iter().all(|delay| *delay < 60));
        let different: std::collections::BTreeSet<_> = delays.iter().collect();
        assert_eq!(different.len(), 60);
        assert_eq!(delays[7], jitter.delay_s(7));
        assert_eq!(Jitter::default().delay_s(u128::MAX), 0);
        assert!(Jitter { max_s: u32::MAX }.delay_s(1) > 0);
    }

    #[test]
    fn default_jitter_is_a_tenth_of_the_interval() {
        for (text, max_s) in [
            ("periodic 1", 6),
            ("periodic 60", 360),
            ("periodic 1440", 1800),
            ("daily @03:00 Europe/Berlin", 1800),
            ("weekly Sunday@03:00", 1800),
            ("monthly 31@03:00", 1800),
            ("cron 30 2 * * *", 0),
            ("calendar *-*-* 02:30", 0),
        ] {
            assert_eq!(Jitter::default_of(&schedule(text)), Jitter { max_s }, "{text}");
        }
    }

    fn schedules() -> impl Strategy<Value = Recurrence> {
        prop::sample::select(vec![
            "periodic 1",
            "periodic 7",
            "periodic 60",
            "daily @02:30 Europe/Berlin",
            "daily @02:00 America/New_York",
            "weekly Sunday@01:30 Australia/Lord_Howe",
            "monthly 31@23:59",
            "cron */20 * * * * Europe/Berlin",
            "calendar Mon..Fri *-*-* 02,14:15 America/Sao_Paulo",
        ])
        .prop_map(schedule)
    }

    proptest! {
        /// For any gaps between calls: each scheduled time is covered by exactly one run, none runs early,
        /// and none is lost.
        #[test]
        fn runs_are_neither_lost_nor_doubled(
            schedule in schedules(),
            start in 1_700_000_000_i64..1_900_000_000,
            delay_s in 0_u32..900,
            gaps in prop::collection::vec(prop_oneof![1_i64..120, 60_i64..7_200, 3_600_i64..200_000], 1..60),
        ) {
            let mut now = Timestamp::from_second(start).unwrap();
            let mut until = now;
            let mut covered = 0;
            for gap in gaps {
                now = Timestamp::from_second(now.as_second() + gap).unwrap();
                let due_until = Timestamp::from_second(now.as_second() - i64::from(delay_s)).unwrap();
                // Scheduled times since the watermark.
                let mut waiting = Vec::new();
                let mut next = schedule.next_after(until);
                while let Some(at) = next.filter(|at| *at <= due_until) {
                    waiting.push(at);
                    next = schedule.next_after(at);
                }
                match tick(&schedule, until, delay_s, now) {
                    Tick::Run { nominal, missed, late_s, processed_until } => {
                        prop_assert_eq!(Some(&nominal), waiting.last());
                        let expected = (waiting.len() - 1).min(MAX_MISSED_COUNTED as usize);
                        prop_assert_eq!(missed as usize, expected);
                        prop_assert_eq!(late_s, due_until.as_second() - nominal.as_second());
                        covered += waiting.len();
                        until = processed_until;
                    }
                    Tick::Wait { due } => {
                        prop_assert!(waiting.is_empty(), "{waiting:?}");
                        prop_assert!(due > now);
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let mut named = 0;
            let mut next = schedule.next_after(Timestamp::from_second(start).unwrap());
            while let Some(at) = next.filter(|at| *at <= until) {
                named += 1;
                next = schedule.next_after(at);
            }
            prop_assert_eq!(covered, named);
        }
    }
}
