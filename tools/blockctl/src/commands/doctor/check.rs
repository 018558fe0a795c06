//! Checks and their results.

use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        })
    }
}

/// A check with its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Check {
    /// Subject.
    pub check: &'static str,
    /// Result.
    pub status: Verdict,
    /// Finding, in one line.
    pub detail: String,
    /// Next action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

impl Check {
    /// Creates a passed check.
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, status: Verdict::Ok, detail: detail.into(), action: None }
    }

    /// Creates a check with a warning.
    pub fn warning(check: &'static str, detail: impl Into<String>, action: impl Into<String>) -> Self {
        Self { check, status: Verdict::Warning, detail: detail.into(), action: Some(action.into()) }
    }

    /// Creates a failed check.
    pub fn failed(check: &'static str, detail: impl Into<String>, action: impl Into<String>) -> Self {
        Self { check, status: Verdict::Failed, detail: detail.into(), action: Some(action.into()) }
    }
}
