//! Requests of restore drills.

use super::TaskRow;
use blockd_api::{ErrorCode, ProbeName, tasks::TaskKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Request of a restore drill.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillTask {
    /// Number of files of the sample.
    pub files: u32,
    /// Seed of the sample.
    pub seed: u32,
    /// Timeout, in seconds.
    pub timeout_s: u32,
    /// Drill of a group, which has one for each volume.
    pub group: Option<Uuid>,
    /// The other drills of the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<MemberDrill>,
    /// Probe of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeName>,
    /// Filesystems of earlier drills may be missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_layout: bool,
}

/// Drill of another volume of a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberDrill {
    /// Its id.
    pub id: Uuid,
    /// Name of the volume, unique in the group, or the id of a deleted one.
    pub volume: String,
}

impl TaskRow {
    /// Returns true for a drill that ended because its cloud snapshot was deleted.
    pub fn is_drill_of_deleted(&self) -> bool {
        let is_deletion = |code| code == ErrorCode::CloudsnapNotFound;
        self.kind() == TaskKind::Drill
            && self.detail.error.as_ref().is_some_and(|error| is_deletion(error.code))
    }
}
