//! Sets of small numbers in fields of cron and calendar expressions.

use crate::ScheduleError;

/// Kind of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldKind {
    /// Name in messages.
    pub(crate) name: &'static str,
    /// Minimum.
    pub(crate) min: u8,
    /// Maximum.
    pub(crate) max: u8,
    /// Names of the numbers, starting at `min`.
    pub(crate) names: &'static [&'static str],
}

pub(crate) const MINUTE: FieldKind = FieldKind { name: "minute", min: 0, max: 59, names: &[] };
pub(crate) const HOUR: FieldKind = FieldKind { name: "hour", min: 0, max: 23, names: &[] };
pub(crate) const DAY: FieldKind = FieldKind { name: "day of the month", min: 1, max: 31, names: &[] };
pub(crate) const MONTH: FieldKind = FieldKind {
    name: "month",
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};

/// Weekdays in the order of their bits; Monday is 0.
pub(crate) const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl FieldKind {
    /// Returns all numbers of the field.
    pub(crate) fn all(self) -> u64 {
        (self.min..=self.max).fold(0, |set, number| set | 1 << number)
    }

    pub(crate) fn wrong(self, given: &str, example: &str) -> ScheduleError {
        let expected = format!("{} to {}, {example}", self.min, self.max);
        ScheduleError::part(self.name, given, expected)
    }

    /// Parses a number or name.
    pub(crate) fn number(self, text: &str) -> Option<u8> {
        if let Some(at) = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return u8::try_from(at).ok().map(|at| at + self.min);
        }
        let digits = !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse::<u8>().ok())??;
        (self.min..=self.max).contains(&number).then_some(number)
    }
}

/// Parses a weekday: its English name or the first three letters.
pub(crate) fn weekday(text: &str) -> Option<u8> {
    let is_it = |name: &str| name.eq_ignore_ascii_case(text) || name[..3].eq_ignore_ascii_case(text);
    WEEKDAYS.iter().position(|name| is_it(name)).and_then(|at| u8::try_from(at).ok())
}

/// Returns every `step`th number from `first` to `last`.
pub(crate) fn stepped(first: u8, last: u8, step: u8) -> u64 {
    (first..=last).step_by(usize::from(step.max(1))).fold(0, |set, number| set | 1 << number)
}

/// Parses a step of 1 or more.
pub(crate) fn step(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse::<u8>().ok())?.filter(|step| *step > 0)
}
