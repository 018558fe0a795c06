//! Restore drills: tests of a restore, with its measured cost.

use crate::{CredentialRef, GroupName, List, ProbeName, VolumeId, VolumeName, VolumeRef, tasks::TaskLimits};
use blockd_extent::CloudSnapshotId;
pub use blockd_extent::{DrillOutcome, DrillStage};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Number of files of a sample by default.
pub const DEFAULT_DRILL_FILES: u32 = 32;
/// Maximum number of files of a sample.
pub const MAX_DRILL_FILES: u32 = 10_000;
/// Timeout of a drill by default, in seconds.
pub const DEFAULT_DRILL_TIMEOUT_S: u32 = 3600;
/// Maximum number of drills in a reply.
pub const MAX_DRILLS: u32 = 1_000;

/// Body of `POST /v1/drills`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartDrill {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Credential; the first one whose location has the cloud snapshot by default.
    pub credential: Option<CredentialRef>,
    /// Number of files of the sample that are read in full, 1 to [`MAX_DRILL_FILES`];
    /// [`DEFAULT_DRILL_FILES`] by default.
    pub files: Option<u32>,
    /// Seed of the sample; random by default.
    pub seed: Option<u32>,
    /// Timeout, in seconds; [`DEFAULT_DRILL_TIMEOUT_S`] by default.
    pub timeout_seconds: Option<u32>,
    /// Probe of the daemon's configuration (`[drill_probes]`), which uses a writable clone of the cloud
    /// snapshot; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeName>,
    /// Accepts that filesystems of earlier drills are missing: the layout was changed on purpose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_layout: bool,
    /// Limits; the configured bandwidth limit of drills applies, too.
    #[serde(default, skip_serializing_if = "TaskLimits::is_unlimited")]
    pub limits: TaskLimits,
}

/// Body of `POST /v1/group-drills`: drills of all volumes of a group, of their newest point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartGroupDrill {
    /// Group.
    pub group: GroupName,
    /// Credential of the location; optional if there is one.
    pub credential: Option<CredentialRef>,
    /// Number of files of each sample: [`StartDrill::files`].
    pub files: Option<u32>,
    /// Seed of the samples: [`StartDrill::seed`].
    pub seed: Option<u32>,
    /// Timeout of each drill, in seconds: [`StartDrill::timeout_seconds`].
    pub timeout_seconds: Option<u32>,
    /// Probe, which uses writable clones of all cloud snapshots at once; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeName>,
    /// Accepts missing filesystems: [`StartDrill::accept_layout`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_layout: bool,
}

/// Reply to `POST /v1/group-drills`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupDrillStarted {
    /// Id of the drills of the group.
    pub group_id: Uuid,
    /// Drills by the name of their volume.
    #[serde(flatten)]
    pub list: List<MemberDrill>,
}

/// Drill of one volume of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberDrill {
    /// Name of the volume.
    pub volume_name: VolumeName,
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Task.
    pub task_id: Uuid,
}

/// Options of drills that a schedule starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrillOptions {
    /// Number of files of the sample: [`StartDrill::files`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u32>,
    /// Timeout, in seconds: [`StartDrill::timeout_seconds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Probe: [`StartDrill::probe`], or of a group, [`StartGroupDrill::probe`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeName>,
}

/// Query of `GET /v1/drills`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListDrills {
    /// Only drills of this volume: by its id or name, or its name at the backup.
    pub volume: Option<VolumeRef>,
    /// Only drills with this id prefix.
    pub id_prefix: Option<String>,
    /// Maximum number of drills, the newest; at most and by default [`MAX_DRILLS`].
    pub max: Option<u32>,
}

/// Step of a drill with its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrillStep {
    /// Step.
    #[serde(rename = "step")]
    pub stage: DrillStage,
    /// Outcome.
    pub outcome: DrillOutcome,
    /// Time from the start of the drill to the end of the step, in milliseconds.
    pub elapsed_millis: u64,
    /// Details; may be empty.
    pub note: String,
}

/// Result of a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drill {
    /// Id, the same as that of its task.
    pub drill_id: Uuid,
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Name of the source volume at the backup.
    pub volume_name: String,
    /// Source volume.
    pub volume_id: VolumeId,
    /// Credential of the location that was read.
    pub credential_id: Uuid,
    /// Its name; `None` if it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_name: Option<String>,
    /// Host that made it.
    pub host: String,
    /// Version of its blockd.
    pub version: String,
    /// Point in time of the cloud snapshot.
    pub created_at: Timestamp,
    /// End of the drill.
    pub ended_at: Timestamp,
    /// True if no step failed.
    pub passed: bool,
    /// Reason of a drill that passed without the check of a filesystem or a probe: it shows that blocks can
    /// be read, no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
    /// Age of the cloud snapshot at the end of the drill, in seconds: the data that a recovery would have
    /// lost (RPO).
    pub rpo_seconds: u64,
    /// Time to the first byte, in milliseconds; `None` if that step did not pass.
    pub first_byte_millis: Option<u64>,
    /// Time to the mounted filesystems, in milliseconds; `None` if that step did not pass.
    pub mounted_millis: Option<u64>,
    /// Time to the end of the probe, in milliseconds; `None` if that step did not pass.
    pub probed_millis: Option<u64>,
    /// Steps.
    pub steps: Vec<DrillStep>,
    /// Bytes fetched from the store.
    pub fetched_bytes: u64,
    /// Requests to the store.
    pub requests: u64,
    /// Filesystems, such as `an XFS filesystem on partition 1`.
    pub filesystems: Vec<String>,
    /// Seed of the sample of files.
    pub seed: u32,
    /// Files of the sample that were read in full.
    pub files: u64,
    /// Bytes of these files.
    pub files_bytes: u64,
    /// First findings.
    pub findings: Vec<String>,
    /// Number of findings, including unlisted ones.
    pub findings_total: u64,
}
