//! Local times of a schedule, as sets of minutes, hours, days, months and years.
//!
//! Time zones and daylight-saving changes are handled in `recurrence`.

use crate::{
    fields::{HOUR, MINUTE, MONTH},
    weeks::Weeks,
};
use jiff::civil::{Date, DateTime, Time, date};

/// Search horizon: every existing date occurs within these years, also 29 February on a given weekday around
/// a year such as 2100, which is no leap year.
const HORIZON_YEARS: i16 = 48;
/// Years allowed in expressions.
pub(crate) const YEARS: std::ops::RangeInclusive<i16> = 1970..=2199;
/// All days of the week.
pub(crate) const ANY_WEEKDAY: u8 = 0x7f;
/// Any hour.
const ANY_HOUR: u32 = 0xff_ffff;

/// Days of a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Days {
    /// Day numbers.
    Numbered(u32),
    /// Days counted from the end; 1 is the last.
    FromTheEnd(u32),
    /// One day number; the last day of shorter months.
    AtMost(u8),
}

/// Set of local minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Calendar {
    pub(crate) minutes: u64,
    pub(crate) hours: u32,
    pub(crate) days: Days,
    pub(crate) months: u16,
    /// Monday is bit 0.
    pub(crate) weekdays: u8,
    /// Sorted; empty means any.
    pub(crate) years: Vec<i16>,
    /// A day matches if its number or its weekday matches, as in cron when both are given.
    pub(crate) day_or_weekday: bool,
    /// Weeks with matching days.
    pub(crate) weeks: Weeks,
}

impl Calendar {
    /// Creates a daily time.
    pub(crate) fn daily(hour: i8, minute: i8) -> Self {
        Self {
            minutes: 1 << minute,
            hours: 1 << hour,
            days: Days::Numbered(u32::MAX),
            months: u16::try_from(MONTH.all()).unwrap_or(u16::MAX),
            weekdays: ANY_WEEKDAY,
            years: Vec::new(),
            day_or_weekday: false,
            weeks: Weeks::EVERY,
        }
    }

    /// Returns true if it recurs in every hour, so elapsed time matters instead of the wall clock.
    pub(crate) fn every_hour(&self) -> bool {
        self.hours & ANY_HOUR == ANY_HOUR
    }

    fn has_date(&self, date: Date) -> bool {
        let number = u32::from(date.day().unsigned_abs());
        let length = u32::from(date.days_in_month().unsigned_abs());
        let day = match self.days {
            Days::Numbered(days) => days & 1 << number != 0,
            Days::FromTheEnd(days) => days & 1 << (length - number + 1) != 0,
            Days::AtMost(day) => number == u32::from(day).min(length),
        };
        let weekday = self.weekdays & 1 << date.weekday().to_monday_zero_offset() != 0;
        let matches = if self.day_or_weekday { day || weekday } else { day && weekday };
        matches && self.weeks.contain(date)
    }

    /// Returns the first matching minute of a day, not before `from`.
    fn time_from(&self, from: Time) -> Option<Time> {
        let (hour, minute) = (from.hour(), from.minute());
        let minutes = self.minutes & MINUTE.all();
        let hours = u64::from(self.hours) & HOUR.all();
        let later_minutes = minutes & (u64::MAX << minute);
        let (hour, minute) = if hours & 1 << hour != 0 && later_minutes != 0 {
            (u32::from(hour.unsigned_abs()), later_minutes.trailing_zeros())
        } else {
            let later_hours = hours & (u64::MAX << hour) & !(1 << hour);
            if later_hours == 0 || minutes == 0 {
                return None;
            }
            (later_hours.trailing_zeros(), minutes.trailing_zeros())
        };
        Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok()
    }

    /// Returns the first matching minute not before `from`, rounded up to a minute.
    pub(crate) fn first_from(&self, from: DateTime) -> Option<DateTime> {
        let from = if from.second() == 0 && from.subsec_nanosecond() == 0 {
            from
        } else {
            let whole = from.with().second(0).subsec_nanosecond(0).build().ok()?;
            whole.checked_add(jiff::Span::new().minutes(1)).ok()?
        };
        let last_year = match self.years.last() {
            Some(last) => *last,
            None => from.year().saturating_add(HORIZON_YEARS),
        };
        let mut day = from.date();
        let mut earliest = from.time();
        while day.year() <= last_year {
            if !self.years.is_empty() && self.years.binary_search(&day.year()).is_err() {
                day = date(day.year().checked_add(1)?, 1, 1);
            } else if self.months & 1 << day.month() == 0 {
                day = day.last_of_month().tomorrow().ok()?;
            } else {
                if self.has_date(day)
                    && let Some(time) = self.time_from(earliest)
                {
                    return Some(day.to_datetime(time));
                }
                day = day.tomorrow().ok()?;
            }
            earliest = Time::midnight();
        }
        None
    }

    /// Returns true if any minute matches.
    pub(crate) fn can_occur(&self) -> bool {
        let first = self.years.first().copied().unwrap_or(2000);
        self.first_from(date(first, 1, 1).at(0, 0, 0, 0)).is_some()
    }
}
