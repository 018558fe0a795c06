//! Every n-th week.

use crate::ScheduleError;
use jiff::civil::{Date, date};
use std::{fmt, str::FromStr};

/// Maximum number of weeks between two runs: a year.
const MAX_WEEKS: u8 = 52;
/// Monday of the first week. Fixed, so that neither a restart nor a change of the schedule moves the weeks.
const FIRST_MONDAY: Date = date(1970, 1, 5);

/// Every n-th week from Monday to Sunday, counted from that of 1970-01-05. Its text is empty for every week,
/// and otherwise `/2`, or `/2+1` for the other weeks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weeks {
    every: u8,
    offset: u8,
}

impl Weeks {
    /// Every week.
    pub const EVERY: Self = Self { every: 1, offset: 0 };

    /// Returns true if the week of a date is one of them.
    pub(crate) fn contain(self, date: Date) -> bool {
        let Ok(since) = date.since(FIRST_MONDAY) else { return false };
        let week = i64::from(since.get_days()).div_euclid(7);
        week.rem_euclid(self.every.into()) == i64::from(self.offset)
    }
}

impl fmt::Display for Weeks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.every, self.offset) {
            (1, _) => Ok(()),
            (every, 0) => write!(f, "/{every}"),
            (every, offset) => write!(f, "/{every}+{offset}"),
        }
    }
}

impl FromStr for Weeks {
    type Err = ScheduleError;

    /// Parses `2` or `2+1`.
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let wrong = || {
            let expected = format!("a number from 1 to {MAX_WEEKS}, such as 2, or 2+1 for the other weeks");
            ScheduleError::part("weeks", text, expected)
        };
        let number = |text: &str| {
            let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u8>().ok()).flatten().ok_or_else(wrong)
        };
        let (every, offset) = text.trim().split_once('+').unwrap_or((text.trim(), "0"));
        let (every, offset) = (number(every)?, number(offset)?);
        match (1..=MAX_WEEKS).contains(&every) && offset < every {
            true => Ok(Self { every, offset }),
            false => Err(wrong()),
        }
    }
}
