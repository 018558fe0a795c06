//! What is wrong with the text of a schedule, and what would be right.

/// Why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Nothing was given.
    #[error("the {what} is empty: give {expected}")]
    Empty {
        /// What is missing.
        what: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// It begins with no kind of schedule.
    #[error("{given:?} is no kind of schedule: give one of {expected}")]
    UnknownKind {
        /// What was given.
        given: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A part of it is wrong.
    #[error("{given:?} cannot be the {part} of a schedule: give {expected}")]
    Part {
        /// Which part.
        part: &'static str,
        /// What was given for it.
        given: String,
        /// What would be right.
        expected: String,
    },
    /// It has another number of fields than it must have.
    #[error("{given:?} has {found} fields, and must have {expected}")]
    FieldCount {
        /// The expression.
        given: String,
        /// How many fields it has.
        found: usize,
        /// Which fields it must have.
        expected: &'static str,
    },
    /// No such time zone.
    #[error(
        "there is no time zone {given:?} on this host: give UTC or a name such as Europe/Berlin (`timedatectl list-timezones`, package tzdata)"
    )]
    UnknownZone {
        /// What was given.
        given: String,
    },
    /// It names a time that never comes.
    #[error("{given:?} never comes: no date is like that")]
    Never {
        /// The expression.
        given: String,
    },
}

impl ScheduleError {
    /// Whether the same text can be right later. Only a time zone may come to be.
    pub fn is_retryable(&self) -> bool {
        false
    }

    pub(crate) fn part(part: &'static str, given: &str, expected: impl Into<String>) -> Self {
        Self::Part { part, given: given.to_owned(), expected: expected.into() }
    }
}
