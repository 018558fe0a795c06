//! States of the runs of schedules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// State of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Waiting.
    Queued,
    /// The backup or drill is running.
    Active,
    /// The backup failed for a cause that may pass, and resumes.
    Retrying,
    /// The backup or drill is complete.
    Done,
    /// The backup or drill failed.
    Failed,
    /// Skipped, with a reason.
    Skipped,
    /// Its backup was deleted by retention.
    Expired,
}

impl RunState {
    /// All values.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Active, Self::Retrying, Self::Done, Self::Failed, Self::Skipped, Self::Expired];

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Active => "active",
            Self::Retrying => "retrying",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
