//! Cron expressions: `minute hour day month weekday`.

use crate::{
    ScheduleError,
    calendar::{ANY_WEEKDAY, Calendar, Days},
    fields::{self, DAY, FieldKind, HOUR, MINUTE, MONTH},
    weeks::Weeks,
};

const EXPECTED: &str = "5 of them: minute hour day-of-month month day-of-week, such as 30 2 * * 1-5";
/// Sunday is 0 here, and 7 too.
const WEEKDAY: FieldKind = FieldKind {
    name: "day of the week",
    min: 0,
    max: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

/// Parses an expression or one of cron's nicknames.
pub(crate) fn parse(text: &str) -> Result<Calendar, ScheduleError> {
    let text = text.trim();
    let expression = match text.to_ascii_lowercase().as_str() {
        "" => return Err(ScheduleError::Empty { what: "cron expression", expected: EXPECTED }),
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        name if name.starts_with('@') => {
            let names = "@hourly, @daily, @weekly, @monthly or @yearly";
            return Err(ScheduleError::part("nickname", text, names));
        }
        _ => text,
    };
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields[..] else {
        return Err(ScheduleError::FieldCount {
            given: text.to_owned(),
            found: fields.len(),
            expected: EXPECTED,
        });
    };
    let weekdays = set(WEEKDAY, weekday)?;
    // Converts Sunday = 0 and 7 to Monday = 0.
    let sunday = u64::from(weekdays & 0b1000_0001 != 0) << 6;
    let weekdays = (weekdays >> 1 & 0x3f | sunday) as u8 & ANY_WEEKDAY;
    let calendar = Calendar {
        minutes: set(MINUTE, minute)?,
        hours: (set(HOUR, hour)? & HOUR.all()) as u32,
        days: Days::Numbered((set(DAY, day)? & DAY.all()) as u32),
        months: (set(MONTH, month)? & MONTH.all()) as u16,
        weekdays,
        years: Vec::new(),
        // As in Vixie cron: either field suffices, unless one starts with a star.
        day_or_weekday: !day.starts_with('*') && !weekday.starts_with('*'),
        weeks: Weeks::EVERY,
    };
    if calendar.can_occur() { Ok(calendar) } else { Err(ScheduleError::Never { given: text.to_owned() }) }
}

fn set(kind: FieldKind, text: &str) -> Result<u64, ScheduleError> {
    let wrong = |part: &str| kind.wrong(part, "lists 1,2, ranges 1-5, steps */2 or 1-9/2, or *");
    let mut numbers = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(fields::step(step).ok_or_else(|| wrong(part))?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (kind.min, kind.max),
            Some((first, last)) => {
                let number = |text| kind.number(text).ok_or_else(|| wrong(part));
                (number(first)?, number(last)?)
            }
            None => {
                let first = kind.number(range).ok_or_else(|| wrong(part))?;
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
