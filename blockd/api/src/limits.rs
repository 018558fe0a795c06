//! Bandwidth limits by time of day: `20MiB@08:00-18:00,100MiB`.

use crate::{ByteSize, SizeError, text::as_text};
use jiff::civil::Time;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Maximum number of windows of a limit.
pub const MAX_LIMIT_WINDOWS: usize = 24;
/// Text of no limit.
pub const NO_LIMIT: &str = "none";

/// Invalid limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The rate is not a size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The window is not two times.
    #[error("invalid time of day {given:?}: expected FROM-UNTIL, such as 08:00-18:00 or 22:00-06:00")]
    NotAWindow {
        /// Given text.
        given: String,
    },
    /// Two limits without a window.
    #[error("{given:?} has two limits without a time of day: give one at most")]
    Twice {
        /// Given text.
        given: String,
    },
    /// Too many windows.
    #[error("{given} windows are too many: give {MAX_LIMIT_WINDOWS} at most")]
    TooMany {
        /// Given number.
        given: usize,
    },
}

/// Daily window and its limit. It may extend over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LimitWindow {
    /// First minute since midnight.
    from_minute: u16,
    /// Minute after the last one; equal to the first for the whole day.
    until_minute: u16,
    bytes_per_s: u64,
}

impl LimitWindow {
    /// Returns the limit in bytes per second.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    fn holds(&self, time: Time) -> bool {
        let minute = minute_of(time);
        match self.from_minute < self.until_minute {
            true => (self.from_minute..self.until_minute).contains(&minute),
            false => minute >= self.from_minute || minute < self.until_minute,
        }
    }
}

fn minute_of(time: Time) -> u16 {
    u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs())
}

fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, most: u16| {
        let is_plain = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse::<u16>().ok()).flatten().filter(|number| *number <= most)
    };
    match (number(hour, 24)?, number(minute, 59)?) {
        (24, 0) => Some(0),
        (24, _) => None,
        (hour, minute) => Some(hour * 60 + minute),
    }
}

impl FromStr for LimitWindow {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let not_a_window = || LimitError::NotAWindow { given: text.to_owned() };
        let (size, times) = text.split_once('@').ok_or_else(not_a_window)?;
        let (from, until) = times.split_once('-').ok_or_else(not_a_window)?;
        Ok(Self {
            from_minute: parse_minute(from.trim()).ok_or_else(not_a_window)?,
            until_minute: parse_minute(until.trim()).ok_or_else(not_a_window)?,
            bytes_per_s: size.parse::<ByteSize>()?.as_bytes(),
        })
    }
}

impl fmt::Display for LimitWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = ByteSize::from_bytes(self.bytes_per_s).to_exact_string();
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{size}@{}-{}", clock(self.from_minute), clock(self.until_minute))
    }
}

as_text!(LimitWindow);

/// Bandwidth limit by time of day: the first matching window, or the general limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DailyLimit {
    /// Limit outside of all windows; `None` is unlimited.
    pub otherwise_bytes_per_s: Option<u64>,
    /// Windows.
    pub windows: Vec<LimitWindow>,
}

impl DailyLimit {
    /// Returns the limit at a local time of day. An hour repeated by a daylight-saving change is limited
    /// twice.
    pub fn bytes_per_s_at(&self, time: Time) -> Option<u64> {
        let window = self.windows.iter().find(|window| window.holds(time));
        window.map(LimitWindow::bytes_per_s).or(self.otherwise_bytes_per_s)
    }

    /// Returns the lowest limit.
    pub fn lowest_bytes_per_s(&self) -> Option<u64> {
        let windows = self.windows.iter().map(LimitWindow::bytes_per_s);
        windows.chain(self.otherwise_bytes_per_s).min()
    }

    /// Returns true if nothing is limited at any time.
    pub fn is_none(&self) -> bool {
        self.windows.is_empty() && self.otherwise_bytes_per_s.is_none()
    }
}

impl FromStr for DailyLimit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let mut limit = Self::default();
        if text.trim().eq_ignore_ascii_case(NO_LIMIT) {
            return Ok(limit);
        }
        for part in text.split(',').map(str::trim) {
            if part.contains('@') {
                limit.windows.push(part.parse()?);
            } else if limit.otherwise_bytes_per_s.replace(part.parse::<ByteSize>()?.as_bytes()).is_some() {
                return Err(LimitError::Twice { given: text.to_owned() });
            }
        }
        match limit.windows.len() {
            given if given > MAX_LIMIT_WINDOWS => Err(LimitError::TooMany { given }),
            _ => Ok(limit),
        }
    }
}

impl fmt::Display for DailyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let otherwise = self.otherwise_bytes_per_s.map(|bytes| ByteSize::from_bytes(bytes).to_exact_string());
        let parts: Vec<_> = self.windows.iter().map(LimitWindow::to_string).chain(otherwise).collect();
        if parts.is_empty() {
            return f.write_str(NO_LIMIT);
        }
        f.write_str(&parts.join(","))
    }
}

as_text!(DailyLimit);

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::time;

    fn limit(text: &str) -> DailyLimit {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn none_is_no_limit() {
        assert!(limit("none").is_none() && limit(" None ").is_none());
        assert_eq!(DailyLimit::default().to_string(), "none");
        assert!("none,1M".parse::<DailyLimit>().is_err());
    }

    #[test]
    fn first_matching_window_decides() {
        let by_day = limit("20M@08:00-18:00,5M@12:00-20:00,100MiB");
        for (hour, minute, mib) in
            [(7, 59, 100), (8, 0, 20), (12, 0, 20), (17, 59, 20), (18, 0, 5), (19, 59, 5), (20, 0, 100)]
        {
            assert_eq!(by_day.bytes_per_s_at(time(hour, minute, 59, 0)), Some(mib << 20), "{hour}:{minute}");
        }
        let over_midnight = limit("1M@22:00-06:00");
        for (hour, limited) in [(21, false), (22, true), (0, true), (5, true), (6, false), (12, false)] {
            assert_eq!(over_midnight.bytes_per_s_at(time(hour, 0, 0, 0)).is_some(), limited, "{hour}");
        }
        for whole in ["1M@00:00-24:00", "1M@7:30-07:30"] {
            for hour in 0..24 {
                assert_eq!(
                    limit(whole).bytes_per_s_at(time(hour, 30, 0, 0)),
                    Some(1 << 20),
                    "{whole} {hour}"
                );
            }
        }
        let plain = limit("7M");
        assert_eq!(plain.bytes_per_s_at(time(3, 0, 0, 0)), Some(7 << 20));
        assert_eq!((by_day.lowest_bytes_per_s(), plain.lowest_bytes_per_s()), (Some(5 << 20), Some(7 << 20)));
        assert!(DailyLimit::default().is_none() && !plain.is_none() && !over_midnight.is_none());
    }

    #[test]
    fn displayed_limit_parses_back() {
        for (given, shown) in [
            ("20M@8:00-18:00, 100MiB", "20MiB@08:00-18:00,100MiB"),
            ("100MiB,20M@08:00-24:00", "20MiB@08:00-00:00,100MiB"),
            ("1500", "1500"),
        ] {
            assert_eq!(limit(given).to_string(), shown);
            assert_eq!(limit(shown), limit(given));
            let json = serde_json::to_string(&limit(given)).unwrap();
            assert_eq!(json, format!("\"{shown}\""));
            assert_eq!(serde_json::from_str::<DailyLimit>(&json).unwrap(), limit(given));
        }
    }

    #[test]
    fn invalid_limit_is_refused_with_expected_form() {
        for bad in [
            "20M@",
            "20M@8-18",
            "20M@08:00",
            "20M@25:00-26:00",
            "20M@24:30-1:00",
            "1M@08:60-09:00",
            "1M@-1:00-2:00",
        ] {
            let error = bad.parse::<DailyLimit>().unwrap_err().to_string();
            assert!(error.contains("08:00-18:00"), "{bad}: {error}");
        }
        for (bad, word) in
            [("", "size"), ("x@08:00-09:00", "size"), ("1M,2M", "two limits"), ("1M@08:00-09:00,", "size")]
        {
            let error = bad.parse::<DailyLimit>().unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
        let many = ["1M@08:00-09:00"; MAX_LIMIT_WINDOWS + 1].join(",");
        assert!(many.parse::<DailyLimit>().unwrap_err().to_string().contains("too many"));
    }
}
