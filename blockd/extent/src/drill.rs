//! Steps of restore drills: words of the control API and of the cloud format.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Step of a restore drill, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DrillStage {
    /// Manifest and indexes were opened.
    Open,
    /// The first block was read.
    FirstByte,
    /// Partition table and filesystems were found.
    Layout,
    /// The filesystems were opened and their journals replayed.
    Mount,
    /// The metadata of the filesystems was compared.
    Check,
    /// A sample of the files was read in full.
    Files,
    /// The probe command used the clone.
    Probe,
}

impl DrillStage {
    /// All stages.
    pub const ALL: [Self; 7] =
        [Self::Open, Self::FirstByte, Self::Layout, Self::Mount, Self::Check, Self::Files, Self::Probe];

    /// Returns the word of reports, tables and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::FirstByte => "first-byte",
            Self::Layout => "layout",
            Self::Mount => "mount",
            Self::Check => "check",
            Self::Files => "files",
            Self::Probe => "probe",
        }
    }
}

impl fmt::Display for DrillStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Outcome of a step of a restore drill.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DrillOutcome {
    /// It succeeded.
    Passed,
    /// It failed.
    Failed,
    /// It was not made; the note has the reason.
    Skipped,
}

impl fmt::Display for DrillOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}
