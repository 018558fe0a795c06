//! Times and durations in arguments and objects: a date, a time, an age, or a number of seconds.

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

const EXPECTED: &str =
    "expected a time such as 2026-11-20T21:00 (UTC) or 2026-11-20, or an age such as 30m, 12h, 7d or 2w";

/// Period that a text names: a day, a minute, a second, or the moment of an age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// First moment.
    pub start: Timestamp,
    /// Last moment, inclusive.
    pub end: Timestamp,
}

impl std::str::FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, Timestamp::now()).ok_or_else(|| EXPECTED.to_owned())
    }
}

impl Period {
    fn parse(text: &str, now: Timestamp) -> Option<Self> {
        if let Some(age) = age(text) {
            let at = now.checked_sub(age).ok()?;
            return Some(Self { start: at, end: at });
        }
        let start = instant(text)?;
        let time = text.split_once(['T', 't', ' ']).map(|(_, time)| time);
        let time = time.map(|time| time.split(['Z', 'z', '+', '-']).next().unwrap_or_default());
        // The last nanosecond of the named unit: a time without seconds includes its minute.
        let unit = match time {
            None => SignedDuration::from_hours(24),
            Some(time) if time.contains('.') => SignedDuration::from_nanos(1),
            Some(time) if time.matches(':').count() < 2 => SignedDuration::from_mins(1),
            Some(_) => SignedDuration::from_secs(1),
        };
        let end = start.checked_add(unit).ok()?.checked_sub(SignedDuration::from_nanos(1)).ok()?;
        Some(Self { start, end })
    }
}

/// Parses a time with an offset, or one in UTC.
fn instant(text: &str) -> Option<Timestamp> {
    // Shorter forms of the standard have no separators, and read like numbers.
    if text.len() < "2026-11-20".len() || text.as_bytes().get(4) != Some(&b'-') {
        return None;
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    // The parser ignores the annotation of a time zone.
    if text.contains('[') {
        return None;
    }
    let local: civil::DateTime = text.parse().ok()?;
    local.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).ok()
}

/// Parses an age: a number of minutes, hours, days or weeks.
fn age(text: &str) -> Option<SignedDuration> {
    let units_min = [('m', 1), ('h', 60), ('d', 24 * 60), ('w', 7 * 24 * 60)];
    let (count, unit_min) =
        units_min.iter().find_map(|(unit, minutes)| Some((text.strip_suffix(*unit)?, *minutes)))?;
    // Longer than ten thousand years is a typing error.
    let count: u32 = count.parse().ok().filter(|count| *count <= 100_000_000)?;
    Some(SignedDuration::from_mins(i64::from(count) * unit_min))
}

/// Parses a duration into seconds: a number and s, m, h or d.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("invalid time {text:?}: expected a time such as 30s, 10m, 1h or 2d");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_s = match text.strip_prefix(digits).unwrap_or_default() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit_s).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_cover_their_unit() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (text, start, end) in [
            ("2026-11-20", "2026-11-20T00:00:00Z", "2026-11-20T23:59:59.999999999Z"),
            ("2026-11-20T21:00", "2026-11-20T21:00:00Z", "2026-11-20T21:00:59.999999999Z"),
            ("2026-11-20 21:00", "2026-11-20T21:00:00Z", "2026-11-20T21:00:59.999999999Z"),
            ("2026-11-20T21:00Z", "2026-11-20T21:00:00Z", "2026-11-20T21:00:59.999999999Z"),
            ("2026-11-20T21:00+02:00", "2026-11-20T19:00:00Z", "2026-11-20T19:00:59.999999999Z"),
            ("2026-11-20T21:00:07Z", "2026-11-20T21:00:07Z", "2026-11-20T21:00:07.999999999Z"),
            ("2026-11-20T21:00:07.5Z", "2026-11-20T21:00:07.5Z", "2026-11-20T21:00:07.5Z"),
            ("90m", "2026-11-22T10:30:00Z", "2026-11-22T10:30:00Z"),
            ("2w", "2026-11-08T12:00:00Z", "2026-11-08T12:00:00Z"),
        ] {
            let period = Period::parse(text, now).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (period.start.to_string(), period.end.to_string()),
                (start.into(), end.into()),
                "{text}"
            );
        }
        let zoned = "2026-11-25T22:30[Europe/Paris]";
        for bad in
            ["", "d", "1.5d", "-1d", "20261120", "yesterday", "2026-02-30", "999999999999d", "12:00", zoned]
        {
            assert!(Period::parse(bad, now).is_none(), "{bad}");
        }
    }
}
