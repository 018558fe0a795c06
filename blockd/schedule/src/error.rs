//! Errors in the text of a schedule.

/// Invalid schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Empty text.
    #[error("the {what} is empty: give {expected}")]
    Empty {
        /// Missing part.
        what: &'static str,
        /// Expected text.
        expected: &'static str,
    },
    /// Unknown kind of schedule.
    #[error("unknown kind of schedule {given:?}: give one of {expected}")]
    UnknownKind {
        /// Given text.
        given: String,
        /// Expected text.
        expected: &'static str,
    },
    /// An invalid part.
    #[error("{given:?} cannot be the {part} of a schedule: give {expected}")]
    Part {
        /// Name of the part.
        part: &'static str,
        /// Given text of the part.
        given: String,
        /// Expected text.
        expected: String,
    },
    /// Wrong number of fields.
    #[error("{given:?} has {found} fields, and must have {expected}")]
    FieldCount {
        /// Expression.
        given: String,
        /// Number of fields found.
        found: usize,
        /// Expected fields.
        expected: &'static str,
    },
    /// Unknown time zone.
    #[error(
        "there is no time zone {given:?} on this host: give UTC or a name such as Europe/Berlin (`timedatectl list-timezones`, package tzdata)"
    )]
    UnknownZone {
        /// Given text.
        given: String,
    },
    /// A time that never occurs.
    #[error("{given:?} never comes: no date matches it")]
    Never {
        /// Expression.
        given: String,
    },
}

impl ScheduleError {
    /// Returns true if the same text can become valid: only a time zone can be added later.
    pub fn is_retryable(&self) -> bool {
        false
    }

    pub(crate) fn part(part: &'static str, given: &str, expected: impl Into<String>) -> Self {
        Self::Part { part, given: given.to_owned(), expected: expected.into() }
    }
}
