//! Volumes that are usable before they are restored, and volumes that go back to a cloud snapshot.

use crate::{
    CredentialRef, Labels, VolumeId, VolumeName, VolumeRef, cloudsnaps::CloudsnapId, tasks::TaskLimits,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// What becomes of reads of blocks that are not there yet while the store is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreLoss {
    /// They wait, up to a time that is set in the configuration, and fail then.
    #[default]
    Stall,
    /// They fail after a short time.
    Error,
}

impl StoreLoss {
    /// Both, as they are written.
    pub const ALL: [Self; 2] = [Self::Stall, Self::Error];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stall => "stall",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for StoreLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is none of [`StoreLoss::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither stall nor error")]
pub struct UnknownStoreLoss(String);

impl FromStr for StoreLoss {
    type Err = UnknownStoreLoss;

    fn from_str(text: &str) -> Result<Self, UnknownStoreLoss> {
        Self::ALL
            .into_iter()
            .find(|one| one.as_str() == text)
            .ok_or_else(|| UnknownStoreLoss(text.to_owned()))
    }
}

/// Body of `POST /v1/cloudsnaps/restore-lazy`: a new volume that is served at once and fetches what is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartLazyRestore {
    /// The cloud snapshot. It cannot be deleted as long as the volume needs it.
    pub snap: CloudsnapId,
    /// Name of the new volume; the daemon makes one otherwise.
    #[serde(default)]
    pub volume: Option<VolumeName>,
    /// Where it is; any place that has it otherwise.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Whether a task fetches the rest in the background. A copy for a test may do without for ever.
    #[serde(default = "yes")]
    pub hydrate: bool,
    /// What becomes of reads while the store is gone.
    #[serde(default)]
    pub on_store_loss: StoreLoss,
    /// The labels of the new volume; those that the old one had otherwise, and with them its part in
    /// schedules by labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

fn yes() -> bool {
    true
}

/// Reply to `POST /v1/cloudsnaps/restore-lazy`: the volume is there and served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LazyRestored {
    /// The task that fetches the rest, if one does.
    pub task: Option<Uuid>,
    /// Id of the new volume.
    pub volume_id: VolumeId,
    /// Name of the new volume.
    pub volume: VolumeName,
    /// The schedules that mean the new volume by its labels, by their names, or by their ids where they have
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<String>,
}

/// How much of a lazy volume is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hydration {
    /// The cloud snapshot that it begins as, and that it needs until all of it is there.
    pub cloudsnap: String,
    /// Where that is.
    pub credential: Uuid,
    /// Bytes that need not be fetched any more, zeroes included.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether a task fetches the rest.
    pub in_background: bool,
    /// What becomes of reads while the store is gone.
    pub on_store_loss: StoreLoss,
    /// Reads and writes that wait for the store now.
    pub waiting: u64,
}

/// Body of `POST /v1/cloudsnaps/restore-in-place`: a volume becomes again what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartInPlace {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// The volume, which nobody may use meanwhile.
    pub volume: VolumeRef,
    /// Where the snapshot is; any place that has it otherwise.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Do not keep what the volume was before as a snapshot.
    #[serde(default)]
    pub discard: bool,
    /// What the task may move.
    #[serde(default)]
    pub limits: TaskLimits,
}

/// A restore in place that is under way, or that ended before it was done; nobody may use the volume
/// meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoingBack {
    /// The task.
    pub task: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: String,
    /// Bytes of those that may differ which are done.
    pub done_bytes: u64,
    /// Bytes that may differ; 0 if that is not known yet.
    pub total_bytes: u64,
    /// Whether the task was stopped or failed: the volume is a mixture until it is resumed, or given up.
    pub in_part: bool,
}
