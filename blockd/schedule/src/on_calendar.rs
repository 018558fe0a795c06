//! Calendar expressions of systemd's `OnCalendar=`: `Mon..Fri *-*-* 02:30`.
//!
//! Seconds may be given, but must be 0: runs start at whole minutes.

use crate::{
    ScheduleError,
    calendar::{ANY_WEEKDAY, Calendar, Days, YEARS},
    fields::{self, DAY, FieldKind, HOUR, MINUTE, MONTH},
};

const EXPECTED: &str = "[weekdays] [[year-]month-day] [hour:minute], such as Mon..Fri *-*-* 02:30";
const EXAMPLES: &str = "lists 1,2, ranges 1..5, repetitions 0/15, or *";

/// Parses an expression or one of systemd's shorthands.
pub(crate) fn parse(text: &str) -> Result<Calendar, ScheduleError> {
    let text = text.trim();
    let expression = match text.to_ascii_lowercase().as_str() {
        "" => return Err(ScheduleError::Empty { what: "calendar expression", expected: EXPECTED }),
        "minutely" => "*-*-* *:*",
        "hourly" => "*-*-* *:00",
        "daily" => "*-*-* 00:00",
        "weekly" => "Mon *-*-* 00:00",
        "monthly" => "*-*-01 00:00",
        "quarterly" => "*-01,04,07,10-01 00:00",
        "semiannually" => "*-01,07-01 00:00",
        "yearly" | "annually" => "*-01-01 00:00",
        _ => text,
    };
    let mut calendar = Calendar::daily(0, 0);
    let mut words = expression.split_whitespace().peekable();
    let mut found = 0;
    if let Some(word) = words.next_if(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())) {
        calendar.weekdays = weekdays(word)?;
        found += 1;
    }
    if let Some(word) = words.next_if(|word| !word.contains(':')) {
        date(word, &mut calendar)?;
        found += 1;
    }
    if let Some(word) = words.next_if(|word| word.contains(':')) {
        time(word, &mut calendar)?;
        found += 1;
    }
    if words.next().is_some() || found == 0 {
        let found = expression.split_whitespace().count();
        return Err(ScheduleError::FieldCount { given: text.to_owned(), found, expected: EXPECTED });
    }
    if calendar.can_occur() { Ok(calendar) } else { Err(ScheduleError::Never { given: text.to_owned() }) }
}

fn weekdays(text: &str) -> Result<u8, ScheduleError> {
    let wrong =
        |part: &str| ScheduleError::part("weekday", part, "Mon to Sun, lists Mon,Thu or ranges Mon..Fri");
    let mut set = 0;
    for part in text.trim_end_matches(',').split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let day = |text| fields::weekday(text).ok_or_else(|| wrong(part));
        let (first, last) = (day(first)?, day(last)?);
        if first > last {
            return Err(wrong(part));
        }
        set |= fields::stepped(first, last, 1);
    }
    Ok(set as u8 & ANY_WEEKDAY)
}

fn date(text: &str, calendar: &mut Calendar) -> Result<(), ScheduleError> {
    let wrong = || ScheduleError::part("date", text, "year-month-day or month-day, such as *-*-01 or 12-24");
    let (before, day, from_the_end) = match text.split_once('~') {
        Some((before, day)) => (before, day, true),
        None => text.rsplit_once('-').map(|(before, day)| (before, day, false)).ok_or_else(wrong)?,
    };
    let month = match before.rsplit_once('-') {
        Some((year, month)) => {
            calendar.years = years(year)?;
            month
        }
        None => before,
    };
    calendar.months = (set(MONTH, month)? & MONTH.all()) as u16;
    calendar.days = if from_the_end {
        Days::FromTheEnd((set_from_the_end(day)? & DAY.all()) as u32)
    } else {
        Days::Numbered((set(DAY, day)? & DAY.all()) as u32)
    };
    Ok(())
}

fn time(text: &str, calendar: &mut Calendar) -> Result<(), ScheduleError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute) = match parts[..] {
        [hour, minute] | [hour, minute, "0" | "00"] => (hour, minute),
        _ => return Err(ScheduleError::part("time", text, "hour:minute; seconds, if any, must be 00")),
    };
    calendar.hours = (set(HOUR, hour)? & HOUR.all()) as u32;
    calendar.minutes = set(MINUTE, minute)?;
    Ok(())
}

/// Parses a range with repetition: `1`, `1..5`, `1/2`, `1..9/2`, `*`, `*/2`.
fn set(kind: FieldKind, text: &str) -> Result<u64, ScheduleError> {
    let wrong = |part: &str| kind.wrong(part, EXAMPLES);
    let mut numbers = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(fields::step(step).ok_or_else(|| wrong(part))?)),
            None => (part, None),
        };
        let number = |text| kind.number(text).ok_or_else(|| wrong(part));
        let (first, last) = match range.split_once("..") {
            _ if range == "*" => (kind.min, kind.max),
            Some((first, last)) => (number(first)?, number(last)?),
            None => {
                let first = number(range)?;
                (first, if step.is_some() { kind.max } else { first })
            }
        };
        if first > last {
            return Err(wrong(part));
        }
        numbers |= fields::stepped(first, last, step.unwrap_or(1));
    }
    Ok(numbers)
}

/// Parses days counted from the end of the month; a repetition goes towards the end.
fn set_from_the_end(text: &str) -> Result<u64, ScheduleError> {
    let wrong = |part: &str| DAY.wrong(part, "counted from the end of the month: 1, 1,2 or 7/1");
    let mut numbers = 0;
    for part in text.split(',') {
        let (first, step) = match part.split_once('/') {
            Some((first, step)) => (first, Some(fields::step(step).ok_or_else(|| wrong(part))?)),
            None => (part, None),
        };
        let first = DAY.number(first).ok_or_else(|| wrong(part))?;
        numbers |= match step {
            Some(step) => (1..=first).rev().step_by(step.into()).fold(0, |set, number| set | 1 << number),
            None => 1 << first,
        };
    }
    Ok(numbers)
}

/// Parses years; an empty list means any.
fn years(text: &str) -> Result<Vec<i16>, ScheduleError> {
    if text == "*" {
        return Ok(Vec::new());
    }
    let wrong = |part: &str| {
        let expected = format!("{} to {}, {EXAMPLES}", YEARS.start(), YEARS.end());
        ScheduleError::part("year", part, expected)
    };
    let mut years = Vec::new();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(fields::step(step).ok_or_else(|| wrong(part))?)),
            None => (part, None),
        };
        let year = |text: &str| {
            let year = text.parse::<i16>().ok().filter(|year| YEARS.contains(year) && text.len() == 4);
            year.ok_or_else(|| wrong(part))
        };
        let (first, last) = match range.split_once("..") {
            Some((first, last)) => (year(first)?, year(last)?),
            None => {
                let first = year(range)?;
                (first, if step.is_some() { *YEARS.end() } else { first })
            }
        };
        if first > last {
            return Err(wrong(part));
        }
        years.extend((first..=last).step_by(step.unwrap_or(1).into()));
    }
    years.sort_unstable();
    years.dedup();
    Ok(years)
}
