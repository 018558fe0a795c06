//! Cloud snapshots: back up, list, inspect, restore, delete.
//!
//! The entries of a list keep the field names that scripts of such tools know (`ID`, `SrcVolumeID`, …);
//! everything in `Metadata` is text.

use crate::{
    ApiError, CredentialRef, GroupName, LabelSelector, Labels, ObjectName, RuleName, SnapshotId, VolumeId,
    VolumeName, VolumeRef,
    quiesce::Quiesce,
    tasks::{BackupType, TaskLimits},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Id of a cloud snapshot: `<cluster>/<volume>-<snapshot>`, and `-incr` if it is incremental.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloudsnapId {
    /// The cluster that made it.
    pub cluster: Uuid,
    /// The volume that it was made of.
    pub volume: VolumeId,
    /// The snapshot that it was made of.
    pub snapshot: SnapshotId,
    /// Whether it is incremental.
    pub incremental: bool,
}

/// A text that is no id of a cloud snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not the id of a cloud snapshot: expected <cluster uuid>/<volume id>-<snapshot id>[-incr], as `cloudsnap list` shows it"
)]
pub struct BadCloudsnapId {
    /// The text as it was given.
    pub given: String,
}

impl fmt::Display for CloudsnapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.incremental { "-incr" } else { "" };
        write!(f, "{}/{}-{}{suffix}", self.cluster, self.volume, self.snapshot)
    }
}

impl FromStr for CloudsnapId {
    type Err = BadCloudsnapId;
    fn from_str(text: &str) -> Result<Self, BadCloudsnapId> {
        let parse = || {
            let (cluster, rest) = text.split_once('/')?;
            let (ids, incremental) = match rest.strip_suffix("-incr") {
                Some(ids) => (ids, true),
                None => (rest, false),
            };
            let (volume, snapshot) = ids.split_once('-')?;
            let id = Self {
                cluster: Uuid::try_parse(cluster).ok()?,
                volume: volume.parse().ok()?,
                snapshot: snapshot.parse().ok()?,
                incremental,
            };
            // One id has one text: other forms of a UUID are refused.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| BadCloudsnapId { given: text.to_owned() })
    }
}

impl TryFrom<String> for CloudsnapId {
    type Error = BadCloudsnapId;
    fn try_from(text: String) -> Result<Self, BadCloudsnapId> {
        text.parse()
    }
}

impl From<CloudsnapId> for String {
    fn from(id: CloudsnapId) -> Self {
        id.to_string()
    }
}

impl From<BadCloudsnapId> for ApiError {
    fn from(error: BadCloudsnapId) -> Self {
        Self::new(crate::ErrorCode::InvalidRequest, error.to_string())
    }
}

/// Body of `POST /v1/cloudsnaps/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartBackup {
    /// The volume to back up.
    pub volume: VolumeRef,
    /// Make it a full one.
    #[serde(default)]
    pub full: bool,
    /// Where to; may be left out when there is one credential.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Where to besides: the same point in time, read once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<CredentialRef>,
    /// What each task may move.
    #[serde(default)]
    pub limits: TaskLimits,
    /// What it is called: [`CloudsnapMetadata::snapshot_name`] and [`crate::tasks::Task::label`] of what it
    /// makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// No rule deletes what it makes: see [`MarkCloudsnap::pinned`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// When that expires: see [`MarkCloudsnap::expires`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What is to be done around the freeze, in place of what rules say.
    #[serde(default, skip_serializing_if = "Quiesce::is_nothing")]
    pub quiesce: Quiesce,
    /// A rule that is followed, in place of those of the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// No rule is followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rule: bool,
}

impl StartBackup {
    /// A backup of a volume to the only place there is, full or not as its turn is, as fast as it can.
    pub fn of(volume: VolumeRef) -> Self {
        Self {
            volume,
            full: false,
            cred_id: None,
            also: Vec::new(),
            limits: TaskLimits::default(),
            name: None,
            pinned: false,
            expires: None,
            quiesce: Quiesce::default(),
            rule: None,
            no_rule: false,
        }
    }
}

/// Reply to `POST /v1/cloudsnaps/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStarted {
    /// The task, of the first place.
    pub task: Uuid,
    /// The tasks of the places besides, in the order in which they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Uuid>,
}

/// Body of `POST /v1/cloudsnaps/backup-group`: which volumes, chosen in exactly one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartGroupBackup {
    /// All volumes of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// All volumes that have all these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// These volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRef>,
    /// Make full ones.
    #[serde(default)]
    pub full: bool,
    /// Where to; may be left out when there is one credential.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Where to besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<CredentialRef>,
    /// What each task may move.
    #[serde(default)]
    pub limits: TaskLimits,
    /// What it is called: [`CloudsnapMetadata::snapshot_name`] and [`crate::tasks::Task::label`] of what it
    /// makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// No rule deletes what it makes: see [`MarkCloudsnap::pinned`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// When that expires: see [`MarkCloudsnap::expires`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What is to be done around the freeze, in place of what rules say.
    #[serde(default, skip_serializing_if = "Quiesce::is_nothing")]
    pub quiesce: Quiesce,
    /// A rule that is followed, in place of those of the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// No rule is followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rule: bool,
}

/// Reply to `POST /v1/cloudsnaps/backup-group`. All volumes are frozen at one instant, or no backup is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupBackupStarted {
    /// The id of the instant.
    pub group_id: Uuid,
    /// The volumes, by name.
    pub members: Vec<MemberStarted>,
}

/// The backups of one volume of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStarted {
    /// The volume.
    pub volume_id: VolumeId,
    /// Its name.
    pub volume: VolumeName,
    /// Its tasks, one for each place, in the order in which the places were asked for.
    pub tasks: Vec<Uuid>,
}

/// Query of `GET /v1/cloudsnaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListCloudsnaps {
    /// Only under this credential; all of them otherwise.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Only of this volume, which need not exist any more: its name or id as the backup has it.
    #[serde(default)]
    pub src: Option<VolumeRef>,
    /// Only of this cluster; of all clusters otherwise.
    #[serde(default)]
    pub cluster: Option<Uuid>,
    /// Of all clusters, as without `cluster`: what a host lists that was just set up to bring another one's
    /// volumes back.
    #[serde(default)]
    pub all: bool,
    /// Only those in this state; [`CloudsnapStatus::Done`] otherwise.
    #[serde(default)]
    pub status: Option<CloudsnapStatus>,
    /// Only of volumes that had all these labels.
    #[serde(default)]
    pub label: Option<LabelSelector>,
    /// Only this one, of whatever cluster.
    #[serde(default)]
    pub cloudsnap_id: Option<CloudsnapId>,
    /// Only the newest so many.
    #[serde(default)]
    pub max: Option<u32>,
}

/// State of a cloud snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum CloudsnapStatus {
    /// It is committed and can be restored.
    #[default]
    Done,
    /// A backup of this daemon is making it.
    Active,
    /// A backup of this daemon failed to make it; nothing of it counts.
    Failed,
    /// Its manifest cannot be read.
    Damaged,
}

impl CloudsnapStatus {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Done, Self::Active, Self::Failed, Self::Damaged];

    /// The state as it is written in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Active => "Active",
            Self::Failed => "Failed",
            Self::Damaged => "Damaged",
        }
    }
}

impl fmt::Display for CloudsnapStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Reply to `GET /v1/cloudsnaps`, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapList {
    /// The entries that could be read.
    pub cloudsnaps: Vec<Cloudsnap>,
    /// The entries that could not, whatever state was asked for.
    pub damaged: Vec<DamagedCloudsnap>,
    /// Stores that could not be asked, when several were.
    pub failed_credentials: Vec<FailedCredential>,
    /// How many entries there are without `max`.
    pub total: u64,
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub struct Cloudsnap {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: CloudsnapId,
    /// Id of the volume that it was made of.
    #[serde(rename = "SrcVolumeID")]
    pub src_volume_id: VolumeId,
    /// Name that the volume had.
    pub src_volume_name: String,
    /// The point in time that it holds.
    pub timestamp: Timestamp,
    /// All else, as text.
    pub metadata: CloudsnapMetadata,
    /// Its state.
    pub status: CloudsnapStatus,
}

/// What else an entry says; every value is JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapMetadata {
    /// What asked for it: `Manual`.
    pub cloudsnap_type: String,
    /// Compression: `lz4`.
    pub compression: String,
    /// Bytes of the volume that this backup carries, before compression.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub size_bytes: u64,
    /// When the backup began; see [`crate::format_time`].
    pub starttime: String,
    /// As the entry's status.
    pub status: CloudsnapStatus,
    /// When the backup ended; see [`crate::format_time`].
    pub updatetime: String,
    /// Version of the cloud format, such as `V1.00`.
    pub version: String,
    /// JSON in text; see [`volume_spec_json`].
    pub volume: String,
    /// Name that the volume had.
    pub volumename: String,
    /// Full or incremental.
    pub backup_type: BackupType,
    /// UUID of the credential that it was found under.
    pub credential: Uuid,
    /// Name of that credential.
    pub credential_name: String,
    /// `true` if it is encrypted.
    #[serde(with = "boolean")]
    #[schemars(with = "String", regex(pattern = "^(true|false)$"))]
    pub encrypted: bool,
    /// Bytes that it has in the store.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub stored_bytes: u64,
    /// Bytes that were dirty when it was made.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub dirty_bytes: u64,
    /// For how long the freeze held writes back, in microseconds.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub freeze_stall_micros: u64,
    /// What the backup was called, or else a name that the daemon made for its snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_name: Option<String>,
    /// `true` if somebody said on this host that it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// Until when it stays in any case, and from when on by no rule, as somebody said on this host; see
    /// [`crate::format_time`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// When this host verified it last; see [`crate::format_time`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<String>,
    /// How thoroughly: `quick`, `frames` or `deep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_depth: Option<String>,
    /// What that found: `Sound` or `Damaged`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_result: Option<String>,
}

/// The text of [`CloudsnapMetadata::volume`]: `{"DevSpec":{"size":…,"block_size":4096,"volume_labels":{…}}}`.
pub fn volume_spec_json(size_bytes: u64, labels: &Labels) -> String {
    let block_size = blockd_extent::BLOCK_SIZE_BYTES;
    let spec = serde_json::json!({ "size": size_bytes, "block_size": block_size, "volume_labels": labels });
    serde_json::json!({ "DevSpec": spec }).to_string()
}

/// An entry whose manifest could not be read: it is not Done, and cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamagedCloudsnap {
    /// What stands in the place of the id, which need not be one.
    pub id: String,
    /// UUID of the credential that it was found under.
    pub credential: Uuid,
    /// What is wrong with it, in one line.
    pub reason: String,
}

/// A store that could not be asked for its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedCredential {
    /// UUID of the credential.
    pub credential: Uuid,
    /// Its name.
    pub name: String,
    /// Why it could not be asked.
    pub error: ApiError,
}

/// Query of `GET /v1/cloudsnaps/inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InspectCloudsnap {
    /// The cloud snapshot.
    pub id: CloudsnapId,
    /// Where it is; all credentials are tried otherwise.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Reply to `GET /v1/cloudsnaps/inspect`: the entry of the list, and all that its manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloudsnapDetail {
    /// The entry of the list.
    #[serde(flatten)]
    pub entry: Cloudsnap,
    /// What the manifest says.
    #[serde(rename = "Detail")]
    pub detail: ManifestDetail,
}

/// What a manifest says beyond the entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDetail {
    /// Size of the volume in bytes.
    pub volume_size_bytes: u64,
    /// Labels of the volume.
    pub labels: Labels,
    /// Name of the snapshot that it was made of.
    pub snapshot_name: String,
    /// Objects that hold its own data.
    pub packs: u64,
    /// Blocks of data that it carries, of 4 KiB.
    pub data_blocks: u64,
    /// Blocks that it says are zero, of 4 KiB.
    pub zero_blocks: u64,
    /// The cloud snapshots whose data it shares, newest first; none of them need exist any more.
    pub chain: Vec<CloudsnapId>,
    /// Bytes in the store of all that a restore needs.
    pub chain_stored_bytes: u64,
}

/// Body of `POST /v1/cloudsnaps/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartRestore {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// Name of the new volume; the daemon makes one otherwise.
    #[serde(default)]
    pub volume: Option<VolumeName>,
    /// Go on past what is damaged: it reads as zeroes, and the task lists it.
    #[serde(default)]
    pub skip_damaged: bool,
    /// Where it is; any place that has it otherwise.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// What the task may move.
    #[serde(default)]
    pub limits: TaskLimits,
    /// The labels of the new volume; those that the old one had otherwise, and with them its part in
    /// schedules by labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

impl StartRestore {
    /// A restore of a cloud snapshot in the only place there is, to a volume that the daemon names, as fast
    /// as it can.
    pub fn of(snap: CloudsnapId) -> Self {
        Self {
            snap,
            volume: None,
            skip_damaged: false,
            cred_id: None,
            limits: TaskLimits::default(),
            labels: None,
        }
    }
}

/// Reply to `POST /v1/cloudsnaps/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStarted {
    /// The task.
    pub task: Uuid,
    /// Id of the new volume.
    pub volume_id: VolumeId,
    /// Name of the new volume.
    pub volume: VolumeName,
    /// The schedules that mean the new volume by its labels, by their names, or by their ids where they have
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<String>,
}

/// Body of `POST /v1/cloudsnaps/delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartDelete {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// Where it is; may be left out when it is in one place only.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Also if it is pinned, or its manifest is damaged: then only its own data goes. A date on which it
    /// expires keeps nobody from deleting it before by hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl StartDelete {
    /// The deletion of a cloud snapshot in the only place there is, unless it is pinned.
    pub fn of(snap: CloudsnapId) -> Self {
        Self { snap, cred_id: None, force: false }
    }

    /// The same under a credential.
    #[must_use]
    pub fn under(self, credential: Uuid) -> Self {
        Self { cred_id: Some(CredentialRef::Id(credential)), ..self }
    }
}

/// Body of `POST /v1/cloudsnaps/mark`: how long a cloud snapshot stays. What is left out stays as it is. This
/// host keeps it: its own retention goes by it, another host's knows nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkCloudsnap {
    /// The cloud snapshot.
    pub snap: CloudsnapId,
    /// Where it is; all credentials are tried otherwise.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Whether it stays until this is taken back, whatever rules and dates say. It can be deleted by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
    /// Until when it stays in any case. From then on no rule keeps it, and it is deleted; but never the last
    /// good one of its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// It does not expire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_expires: bool,
}

/// Reply to `POST /v1/cloudsnaps/mark`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapMark {
    /// The cloud snapshot.
    pub id: CloudsnapId,
    /// Whether it stays whatever rules and dates say.
    pub pinned: bool,
    /// When it expires.
    pub expires: Option<Timestamp>,
}

/// How thoroughly cloud snapshots are proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VerifyDepth {
    /// Manifests open, and their objects are there with the right lengths.
    Quick,
    /// All that is stored opens.
    #[default]
    Frames,
    /// All content is brought back, to nowhere, and compared with the volume where that is unchanged, and
    /// with what was recorded the last time.
    Deep,
}

/// Body of `POST /v1/cloudsnaps/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartVerify {
    /// The cloud snapshot; all under the credential otherwise.
    #[serde(default)]
    pub snap: Option<CloudsnapId>,
    /// How thoroughly.
    #[serde(default)]
    pub depth: VerifyDepth,
    /// Where it is; may be left out when there is one credential.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Body of `POST /v1/cloudsnaps/gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollectGarbage {
    /// Only say what would be deleted.
    #[serde(default)]
    pub dry_run: bool,
    /// Where; may be left out when there is one credential.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Reply to `POST /v1/cloudsnaps/gc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GarbageCollected {
    /// Whether nothing was deleted, because only the answer was wanted.
    pub dry_run: bool,
    /// What abandoned backups left and was deleted, or would be.
    pub garbage: Vec<Leftover>,
    /// What no cloud snapshot needs, and is too young to be sure that none will.
    pub young: Vec<Leftover>,
    /// The manifests that cannot be read, a line for each: while there is one, no backup's leftovers are
    /// deleted.
    pub unknown: Vec<String>,
    /// Files or segments of uploads that did not end and were removed, or would be.
    pub unfinished: u64,
    /// Objects deleted.
    pub objects_deleted: u64,
}

/// What a backup left that was not completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// The cloud snapshot that it was to become, `-incr` or not.
    pub cloudsnap: String,
    /// How many objects there are.
    pub objects: u64,
    /// How long they are together.
    pub len_bytes: u64,
    /// When the first of them was stored; `None` if the store does not tell.
    pub since: Option<Timestamp>,
    /// From when on it is deleted; `None` if the store does not tell how old it is.
    pub deleted_from: Option<Timestamp>,
}

macro_rules! as_json_text {
    ($(#[$doc:meta])* $module:ident, $type:ty) => {
        $(#[$doc])*
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            pub fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(value)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_json_text! {
    /// A number as decimal text.
    decimal, u64
}

as_json_text! {
    /// A truth value as text.
    boolean, bool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for text in [
            "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-619248560586769719",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-951325819047337066-incr",
        ] {
            assert_eq!(text.parse::<CloudsnapId>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "2e4d4b67-95d7-481e-aec5-14223ac55170",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/1",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2-3",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/01-2",
            "2e4d4b6795d7481eaec514223ac55170/1-2",
            "2E4D4B67-95D7-481E-AEC5-14223AC55170/1-2",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2-incr-incr",
            "../1-2",
        ] {
            assert!(bad.parse::<CloudsnapId>().is_err(), "{bad:?} was taken");
        }
    }

    fn entry() -> Cloudsnap {
        let id: CloudsnapId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap();
        Cloudsnap {
            id,
            src_volume_id: id.volume,
            src_volume_name: "vol".into(),
            timestamp: "2019-10-24T19:02:08Z".parse().unwrap(),
            metadata: CloudsnapMetadata {
                cloudsnap_type: "Manual".into(),
                compression: "lz4".into(),
                size_bytes: 2_152_751_104,
                starttime: "Thu, 24 Oct 2019 19:02:08 UTC".into(),
                status: CloudsnapStatus::Done,
                updatetime: "Thu, 24 Oct 2019 19:06:12 UTC".into(),
                version: "V1.00".into(),
                volume: volume_spec_json(1 << 30, &"a=b".parse().unwrap()),
                volumename: "vol".into(),
                backup_type: BackupType::Incremental,
                credential: Uuid::nil(),
                credential_name: "nas".into(),
                encrypted: true,
                stored_bytes: 7,
                dirty_bytes: 8,
                freeze_stall_micros: 9,
                snapshot_name: None,
                pinned: None,
                expires: None,
                verified: None,
                verify_depth: None,
                verify_result: None,
            },
            status: CloudsnapStatus::Done,
        }
    }

    #[test]
    fn an_entry_has_the_fields_that_scripts_know() {
        let json = serde_json::to_value(entry()).unwrap();
        for key in ["ID", "SrcVolumeID", "SrcVolumeName", "Timestamp", "Metadata", "Status"] {
            assert!(json.get(key).is_some(), "{key} is missing in {json}");
        }
        assert_eq!(json["Timestamp"], "2019-10-24T19:02:08Z");
        assert_eq!(json["SrcVolumeID"], "59");
        let metadata = json["Metadata"].as_object().unwrap();
        assert!(metadata.values().all(serde_json::Value::is_string), "{metadata:?}");
        assert_eq!(metadata["sizeBytes"], "2152751104");
        let spec: serde_json::Value = serde_json::from_str(metadata["volume"].as_str().unwrap()).unwrap();
        assert_eq!(spec["DevSpec"]["size"], 1 << 30);
        assert_eq!(spec["DevSpec"]["block_size"], 4096);
        assert_eq!(spec["DevSpec"]["volume_labels"]["a"], "b");
        assert_eq!(serde_json::from_value::<Cloudsnap>(json).unwrap(), entry());
    }

    #[test]
    fn a_detail_is_an_entry_with_more() {
        let detail = ManifestDetail {
            volume_size_bytes: 1 << 30,
            labels: Labels::default(),
            snapshot_name: "s".into(),
            packs: 1,
            data_blocks: 2,
            zero_blocks: 3,
            chain: vec![entry().id],
            chain_stored_bytes: 4,
        };
        let detail = CloudsnapDetail { entry: entry(), detail };
        let json = serde_json::to_value(&detail).unwrap();
        assert_eq!((&json["Status"], &json["Detail"]["packs"]), (&"Done".into(), &1.into()));
        assert_eq!(serde_json::from_value::<CloudsnapDetail>(json).unwrap(), detail);
    }
}
