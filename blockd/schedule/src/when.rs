//! Text forms of recurrences.

use crate::{
    ScheduleError,
    calendar::{Calendar, Days},
    cron,
    fields::{self, DAY, WEEKDAYS},
    on_calendar,
    weeks::Weeks,
};
use std::{fmt, str::FromStr};

/// Maximum interval of a periodic schedule: a year, in minutes.
pub const MAX_PERIOD_MINUTES: u32 = 366 * 24 * 60;

/// Time of day, to the minute. Its text is `HH:MM`; `10:14PM` is accepted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay {
    hour: i8,
    minute: i8,
}

impl TimeOfDay {
    /// Creates a time; `None` if invalid.
    pub fn new(hour: u8, minute: u8) -> Option<Self> {
        let (hour, minute) = (i8::try_from(hour).ok()?, i8::try_from(minute).ok()?);
        (hour < 24 && minute < 60).then_some(Self { hour, minute })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl FromStr for TimeOfDay {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let wrong = || ScheduleError::part("time", text, "HH:MM from 00:00 to 23:59, or 12:00AM to 11:59PM");
        let upper = text.to_ascii_uppercase();
        let (clock, afternoon) = match (upper.strip_suffix("AM"), upper.strip_suffix("PM")) {
            (Some(clock), _) => (clock.trim_end(), Some(false)),
            (_, Some(clock)) => (clock.trim_end(), Some(true)),
            _ => (upper.as_str(), None),
        };
        let (hour, minute) = clock.split_once(':').ok_or_else(wrong)?;
        let number = |text: &str| {
            let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u8>().ok()).flatten().ok_or_else(wrong)
        };
        if minute.len() != 2 {
            return Err(wrong());
        }
        let (hour, minute) = (number(hour)?, number(minute)?);
        let hour = match afternoon {
            None => hour,
            Some(_) if !(1..=12).contains(&hour) => return Err(wrong()),
            Some(afternoon) => hour % 12 + if afternoon { 12 } else { 0 },
        };
        Self::new(hour, minute).ok_or_else(wrong)
    }
}

/// Recurrence without a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Interval in minutes, counted from 1970-01-01 00:00 UTC in every time zone: `periodic 60` is every full
    /// hour.
    Periodic {
        /// 1 to [`MAX_PERIOD_MINUTES`].
        minutes: u32,
    },
    /// Daily.
    Daily {
        /// Time of day.
        time: TimeOfDay,
    },
    /// Weekly.
    Weekly {
        /// Weekday; Monday is 0.
        weekday: u8,
        /// Time of day.
        time: TimeOfDay,
        /// Weeks with a run.
        weeks: Weeks,
    },
    /// Monthly; the last day of shorter months.
    Monthly {
        /// Day, 1 to 31.
        day: u8,
        /// Time of day.
        time: TimeOfDay,
    },
    /// Cron expression.
    Cron(Named),
    /// Expression of systemd's `OnCalendar=`.
    OnCalendar(Named),
}

/// Expression and its calendar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    text: String,
    calendar: Calendar,
}

impl When {
    /// Text forms of all kinds, for messages.
    pub const FORMS: &str = "periodic MINUTES, daily HH:MM, weekly WEEKDAY@HH:MM[/WEEKS], monthly DAY@HH:MM, cron EXPRESSION, calendar EXPRESSION";

    /// Parses an interval in minutes.
    ///
    /// # Errors
    /// 0, or more than [`MAX_PERIOD_MINUTES`].
    pub fn periodic(text: &str) -> Result<Self, ScheduleError> {
        let expected = || format!("minutes from 1 to {MAX_PERIOD_MINUTES}, such as 60");
        let wrong = || ScheduleError::part("interval", text, expected());
        let digits = text.trim();
        let digits = digits.strip_suffix("min").or_else(|| digits.strip_suffix('m')).unwrap_or(digits).trim();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let minutes = digits.parse().map_err(|_| wrong())?;
        if !(1..=MAX_PERIOD_MINUTES).contains(&minutes) {
            return Err(wrong());
        }
        Ok(Self::Periodic { minutes })
    }

    /// Parses a daily time, `hh:mm` or `@hh:mm`.
    ///
    /// # Errors
    /// Not a time.
    pub fn daily(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        Ok(Self::Daily { time: text.strip_prefix('@').unwrap_or(text).parse()? })
    }

    /// Parses a weekly time, `weekday@hh:mm`, optionally with the [weeks](Weeks): `weekday@hh:mm/2` is every
    /// second week, `weekday@hh:mm/2+1` the other ones.
    ///
    /// # Errors
    /// Not a weekday, time and weeks.
    pub fn weekly(text: &str) -> Result<Self, ScheduleError> {
        let expected = "weekday@hh:mm, such as sunday@03:00, or sunday@03:00/2 for every second week";
        let (day, time) =
            text.trim().split_once('@').ok_or_else(|| ScheduleError::part("day and time", text, expected))?;
        let (time, weeks) = match time.split_once('/') {
            Some((time, weeks)) => (time, weeks.parse()?),
            None => (time, Weeks::EVERY),
        };
        let weekday = fields::weekday(day.trim())
            .ok_or_else(|| ScheduleError::part("weekday", day, "Monday to Sunday, or Mon to Sun"))?;
        Ok(Self::Weekly { weekday, time: time.trim().parse()?, weeks })
    }

    /// Parses a monthly time, `day@hh:mm`.
    ///
    /// # Errors
    /// Not a day and time.
    pub fn monthly(text: &str) -> Result<Self, ScheduleError> {
        let expected = "day@hh:mm, such as 1@03:00";
        let (day, time) =
            text.trim().split_once('@').ok_or_else(|| ScheduleError::part("day and time", text, expected))?;
        let day = DAY.number(day.trim()).ok_or_else(|| {
            ScheduleError::part("day of the month", day, "1 to 31; the last day in shorter months")
        })?;
        Ok(Self::Monthly { day, time: time.trim().parse()? })
    }

    /// Parses a cron expression: `minute hour day month weekday`.
    ///
    /// # Errors
    /// Invalid, or a time that never occurs.
    pub fn cron(text: &str) -> Result<Self, ScheduleError> {
        let calendar = cron::parse(text)?;
        Ok(Self::Cron(Named { text: normal(text), calendar }))
    }

    /// Parses an expression of systemd's `OnCalendar=` without a time zone.
    ///
    /// # Errors
    /// Invalid, or a time that never occurs.
    pub fn on_calendar(text: &str) -> Result<Self, ScheduleError> {
        let calendar = on_calendar::parse(text)?;
        Ok(Self::OnCalendar(Named { text: normal(text), calendar }))
    }

    /// Returns the calendar; `None` for an interval.
    pub(crate) fn calendar(&self) -> Option<Calendar> {
        Some(match self {
            Self::Periodic { .. } => return None,
            Self::Daily { time } => Calendar::daily(time.hour, time.minute),
            Self::Weekly { weekday, time, weeks } => {
                Calendar { weekdays: 1 << weekday, weeks: *weeks, ..Calendar::daily(time.hour, time.minute) }
            }
            Self::Monthly { day, time } => {
                Calendar { days: Days::AtMost(*day), ..Calendar::daily(time.hour, time.minute) }
            }
            Self::Cron(named) | Self::OnCalendar(named) => named.calendar.clone(),
        })
    }
}

/// Normalises spaces.
fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Periodic { minutes } => write!(f, "periodic {minutes}min"),
            Self::Daily { time } => write!(f, "daily @{time}"),
            Self::Weekly { weekday, time, weeks } => {
                let name = WEEKDAYS.get(usize::from(*weekday)).copied().unwrap_or("Monday");
                write!(f, "weekly {name}@{time}{weeks}")
            }
            Self::Monthly { day, time } => write!(f, "monthly {day}@{time}"),
            Self::Cron(named) => write!(f, "cron {}", named.text),
            Self::OnCalendar(named) => write!(f, "calendar {}", named.text),
        }
    }
}

impl FromStr for When {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ScheduleError::Empty { what: "schedule", expected: Self::FORMS });
        }
        let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match kind.to_ascii_lowercase().as_str() {
            "periodic" | "every" | "interval" => Self::periodic(rest),
            "daily" => Self::daily(rest),
            "weekly" => Self::weekly(rest),
            "monthly" => Self::monthly(rest),
            "cron" => Self::cron(rest),
            "calendar" | "oncalendar" => Self::on_calendar(rest),
            _ => Err(ScheduleError::UnknownKind { given: kind.to_owned(), expected: Self::FORMS }),
        }
    }
}
