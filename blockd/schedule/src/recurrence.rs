//! Recurrence in a time zone, and its next time.
//!
//! Daylight-saving changes are handled as in cron: a schedule with fixed hours runs once a day, after a gap,
//! and only the first time in a repeated hour. An hourly schedule follows elapsed time: skipped hours add no
//! runs, repeated hours run twice.

use crate::{ScheduleError, When, Zone, calendar::Calendar};
use jiff::{
    SignedDuration, Timestamp,
    civil::DateTime,
    tz::{Offset, TimeZone},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Maximum number of clock changes per search: more than any zone has within the search horizon.
const MAX_SEGMENTS: usize = 512;
const SECONDS_PER_MINUTE: i64 = 60;

/// Recurrence in a time zone. Its text is that of [`When`], followed by the zone unless that is UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recurrence {
    /// Recurrence.
    pub when: When,
    /// Time zone of the hours. Periodic schedules ignore it.
    pub zone: Zone,
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Recurrence {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Recurrence".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Recurrence of the runs, followed by the time zone unless it is UTC",
            "type": "string",
            "examples": EXAMPLES
        })
    }
}

/// One example of each kind.
#[cfg(feature = "schema")]
const EXAMPLES: [&str; 6] = [
    "periodic 60min",
    "daily @21:00",
    "weekly Thursday@22:13 Europe/Berlin",
    "monthly 14@20:05",
    "cron 30 2 * * 1-5",
    "calendar Mon..Fri *-*-* 02:30",
];

/// Period without clock changes.
struct Segment {
    /// Start; `None` if unbounded.
    begin: Option<Timestamp>,
    /// End; `None` if unbounded.
    end: Option<Timestamp>,
    offset: Offset,
}

impl Recurrence {
    /// Creates a recurrence in UTC.
    pub fn utc(when: When) -> Self {
        Self { when, zone: Zone::utc() }
    }

    /// Parses a systemd calendar expression; `zone` applies unless the expression ends with one.
    ///
    /// # Errors
    /// The expression is invalid.
    pub fn on_calendar(text: &str, zone: &Zone) -> Result<Self, ScheduleError> {
        let (expression, own) = split_zone(text)?;
        Ok(Self { when: When::on_calendar(expression)?, zone: own.unwrap_or_else(|| zone.clone()) })
    }

    /// Returns the zone at the end of a calendar expression, if any.
    ///
    /// # Errors
    /// The zone is unknown.
    pub fn zone_of(text: &str) -> Result<Option<Zone>, ScheduleError> {
        Ok(split_zone(text)?.1)
    }

    /// Returns the first scheduled time after `after`; `None` if there is none.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match self.when.calendar() {
            Some(calendar) => next_of_calendar(&calendar, self.zone.time_zone(), after),
            None => self.next_of_period(after),
        }
    }

    fn next_of_period(&self, after: Timestamp) -> Option<Timestamp> {
        let When::Periodic { minutes } = &self.when else { return None };
        let period_s = i64::from((*minutes).max(1)) * SECONDS_PER_MINUTE;
        let number = after.as_second().div_euclid(period_s).checked_add(1)?;
        let next = Timestamp::from_second(number.checked_mul(period_s)?).ok()?;
        // Before 1970 seconds are rounded towards zero, so this may be the instant itself.
        if next > after { Some(next) } else { Timestamp::from_second(next.as_second() + period_s).ok() }
    }

    /// Returns the last scheduled time up to `until`, if there is one after `since`.
    pub fn last_until(&self, since: Timestamp, until: Timestamp) -> Option<Timestamp> {
        const HOUR_S: i64 = 3_600;
        let mut reach_s = HOUR_S;
        loop {
            let from = until.as_second().checked_sub(reach_s).and_then(|at| Timestamp::from_second(at).ok());
            let from = from.filter(|from| *from > since).unwrap_or(since);
            if let Some(mut found) = self.next_after(from).filter(|found| *found <= until) {
                // Few steps: the previous window, a twelfth of this one, contained no run.
                while let Some(next) = self.next_after(found).filter(|next| *next <= until) {
                    found = next;
                }
                return Some(found);
            }
            if from <= since {
                return None;
            }
            reach_s = reach_s.saturating_mul(12);
        }
    }
}

/// Splits a text and the zone at its end.
fn split_zone(text: &str) -> Result<(&str, Option<Zone>), ScheduleError> {
    match text.trim().rsplit_once(char::is_whitespace) {
        Some((when, zone)) if Zone::is_meant_by(zone) => Ok((when, Some(zone.parse()?))),
        _ => Ok((text, None)),
    }
}

fn local(offset: Offset, at: Timestamp) -> DateTime {
    offset.to_datetime(at)
}

fn segments(zone: &TimeZone, from: Timestamp) -> impl Iterator<Item = Segment> + '_ {
    // A transition at `from` itself starts the first segment.
    let just_after = from.checked_add(SignedDuration::from_nanos(1)).unwrap_or(from);
    let begin = zone.preceding(just_after).next().map(|transition| transition.timestamp());
    let mut begin = Some(begin);
    let mut following = zone.following(from);
    let mut offset = zone.to_offset(from);
    std::iter::from_fn(move || {
        let start = begin.take()?;
        let next = following.next();
        let end = next.as_ref().map(jiff::tz::TimeZoneTransition::timestamp);
        let segment = Segment { begin: start, end, offset };
        if let Some(next) = next {
            offset = next.offset();
            begin = Some(end);
        }
        Some(segment)
    })
    .take(MAX_SEGMENTS)
}

fn next_of_calendar(calendar: &Calendar, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    let first =
        Timestamp::from_second(after.as_second().div_euclid(SECONDS_PER_MINUTE) * SECONDS_PER_MINUTE).ok()?;
    let first = if first > after { first } else { first.checked_add(SignedDuration::from_mins(1)).ok()? };
    let by_clock = !calendar.every_hour();
    for segment in segments(zone, first) {
        let start = segment.begin.filter(|begin| *begin > first).unwrap_or(first);
        let mut from = local(segment.offset, start);
        if by_clock && let Some(begin) = segment.begin {
            let before = begin
                .checked_sub(SignedDuration::from_nanos(1))
                .map_or(segment.offset, |at| zone.to_offset(at));
            let (ended, began) = (local(before, begin), local(segment.offset, begin));
            if ended < began
                && begin >= first
                && calendar.first_from(ended).is_some_and(|left_out| left_out < began)
            {
                return Some(begin);
            }
            // Times of a repeated hour already occurred.
            from = from.max(ended);
        }
        let found = calendar.first_from(from)?;
        let at = segment.offset.to_timestamp(found).ok()?;
        if segment.end.is_none_or(|end| at < end) {
            return Some(at);
        }
    }
    None
}

impl fmt::Display for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.when)?;
        if self.zone != Zone::utc() {
            write!(f, " {}", self.zone)?;
        }
        Ok(())
    }
}

impl FromStr for Recurrence {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let (when, zone) = split_zone(text)?;
        Ok(Self { when: when.trim().parse()?, zone: zone.unwrap_or_else(Zone::utc) })
    }
}

impl TryFrom<String> for Recurrence {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        text.parse()
    }
}

impl From<Recurrence> for String {
    fn from(recurrence: Recurrence) -> Self {
        recurrence.to_string()
    }
}

#[cfg(test)]
#[path = "recurrence_tests.rs"]
mod tests;
