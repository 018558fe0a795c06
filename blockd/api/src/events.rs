//! Events of the daemon.

use crate::{VolumeId, VolumeName, drills::DrillStage};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Maximum number of events in a reply.
pub const MAX_EVENTS: u32 = 1_000;

/// Severity of an event.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Information.
    #[default]
    Info,
    /// Needs attention.
    Warning,
    /// Protection failed.
    Error,
}

impl Severity {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! event_kinds {
    ($($variant:ident, $word:literal, $message_id:literal, $meaning:literal;)*) => {
        /// Kind of event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind {
            $(#[doc = $meaning] $variant,)*
        }

        impl EventKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// Returns the `MESSAGE_ID` in the systemd journal; never changed nor reused.
            pub const fn message_id(self) -> Uuid {
                Uuid::from_u128(match self { $(Self::$variant => $message_id,)* })
            }

            /// Returns the meaning, in one line for the documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

event_kinds! {
    BackupDone, "backup-done", 0x7093a1b7_23a2_4469_bc3b_eaea9d45105f, "a backup was committed";
    BackupFailed, "backup-failed", 0xa803d1e7_3cfd_426d_9dc1_d0e8487c25e6, "a backup failed; the task has the cause";
    BackupStopped, "backup-stopped", 0xe6a5c176_f745_41c8_8911_29d0f6e6c274, "a backup was stopped on request";
    BackupRetrying, "backup-retrying", 0x2b7d90e5_84f1_4c36_9a0d_7e51c3f8b264, "a scheduled backup failed for a cause that may pass, and resumes; reported once for each run, in an outage once a day";
    RestoreDone, "restore-done", 0xfdeb8732_45de_4ac8_b32c_8204fd1ea054, "a restore or the hydration of a lazy volume is complete";
    RestoreFailed, "restore-failed", 0x6d13e23e_828a_45d8_bec2_184a27d42591, "a restore or a hydration failed";
    RestoreStopped, "restore-stopped", 0x659c8535_1fbb_4f92_87db_e91207c554fc, "a restore or a hydration was stopped on request";
    DeleteDone, "delete-done", 0x9ead4550_f589_4ca5_a56d_d9f8454e6020, "a cloud snapshot was deleted";
    DeleteFailed, "delete-failed", 0xb2f39bc7_1637_45d9_9ff7_fa8f36861b68, "the deletion of a cloud snapshot failed";
    DeleteStopped, "delete-stopped", 0xf7134c5a_a4a4_4e82_8386_46565faf41ea, "the deletion of a cloud snapshot was stopped on request";
    VerifyDone, "verify-done", 0x9575eb52_1c4c_4e70_bdeb_1f2affdaf7dc, "a verification found its cloud snapshots sound";
    VerifyFailed, "verify-failed", 0xf5cdc2cb_6585_4a68_a44f_516cfe0c4a1e, "a verification could not be completed";
    VerifyStopped, "verify-stopped", 0x5ee1d3aa_df9f_44ad_b0c7_5b75a84ea3b8, "a verification was stopped on request";
    DrillDone, "drill-done", 0xc52b6370_cef3_4ddd_bafd_ffb7718c1288, "a restore drill passed";
    DrillFailed, "drill-failed", 0xe1bb6a5f_47d3_4122_910a_8373030356a5, "a restore drill failed: the cloud snapshot could not be restored and used";
    DrillStopped, "drill-stopped", 0xdaee1fea_2da0_4ba8_b536_943dfbceb141, "a restore drill was stopped on request or reached its budget, or its cloud snapshot was deleted";
    StoreUnreachable, "store-unreachable", 0xfb2b319d_6047_4558_8fe8_7c226d461d80, "a task failed because its backup location cannot be reached";
    DamageFound, "damage-found", 0x13a74af3_b8b4_43a1_ba63_c49386546b34, "a cloud snapshot is damaged or incomplete";
    ScheduleMissed, "schedule-missed", 0xb71dd2e2_93c2_41b2_86b5_636794d308f2, "runs of a schedule were missed while the daemon did not run";
    RunSkipped, "run-skipped", 0x3d5c2fa8_5c61_47c8_9f00_1bc94891e358, "a run of a schedule was skipped";
    RunFailed, "run-failed", 0x21440a83_1569_4a96_bb1d_0f94508840e8, "a run of a schedule failed";
    RuleFailed, "rule-failed", 0xbb5ba90a_42af_443e_b69d_5275750a1470, "a hook or a filesystem freeze of a rule failed";
    DataDirectoryFull, "data-directory-full", 0xd059bfd8_4848_4882_9074_530ae0a48c53, "the data directory has little or no free space";
    VolumeDegraded, "volume-degraded", 0xd12cbf68_3e03_4512_8e97_b0e999d21350, "a volume failed or cannot be opened";
    WritesDiscarded, "writes-discarded", 0x3c9a5f0e_7d21_4b68_9f14_52e6ab80c7d3, "acknowledged writes of a volume may be lost";
    RetentionStopped, "retention-stopped", 0x8a417c2b_60f5_4d39_b7ce_1f93d2a5e604, "a retention policy deletes nothing, because a check failed";
    ClockDiffers, "clock-differs", 0x5d7be0a4_91c6_4f27_8a35_c2e8f1079b6d, "the clocks of this host and of a backup location differ";
    ClockUnknown, "clock-unknown", 0x07c43388_7a0c_42b6_8c04_6cf216629c05, "the clock of a backup location cannot be read";
    ReloadFailed, "reload-failed", 0xba8a2a1f_cb1d_42ad_8d32_33c7e23dc906, "a reload of the configuration failed; no setting was changed";
    WriteKeyRefused, "write-key-refused", 0x8c61f7a3_27d4_4b0e_9f83_60b5d21c4e7a, "backups to a credential are refused, because their data key is missing or not the newest";
    BackingSnapshotDeleted, "backing-snapshot-deleted", 0x0a58b1bc_9a90_47b6_a641_117fdeee6a7a, "the cloud snapshot behind a lazy volume does not exist any more";
    LeaseNotRenewed, "lease-not-renewed", 0xe28d40b5_6f3a_4c91_b7d2_95a0c84f1e37, "the lease of a lazy volume was not renewed for 3 days, or not stored within a day after its creation, so that other hosts may delete its cloud snapshot";
    ScrubDone, "scrub-done", 0x2f1c83d4_6a0e_4b57_9d3b_7e05c1a8f642, "a scrub found no damage that is not repaired";
    ScrubFailed, "scrub-failed", 0x9be4704f_13d8_4c2a_8f61_a07d5be2193c, "a scrub could not be completed, or left damage";
    ScrubStopped, "scrub-stopped", 0x64a9d01e_c57b_4e88_b2f0_35c8e6917da4, "a scrub was stopped on request";
    RepairDone, "repair-done", 0xb3f05d1c_7a86_4c39_92e4_58d1f60ae973, "a damaged cloud snapshot was repaired";
    RepairFailed, "repair-failed", 0x48c9e2a6_1f70_4d5b_ae83_c7092b64d1fe, "the repair of a damaged cloud snapshot failed, or blocks of it cannot be recovered";
    RepairStopped, "repair-stopped", 0xe51b7d94_c068_4a2f_8d39_04f6a25bc817, "the repair of a damaged cloud snapshot was stopped on request";
    VolumeDamaged, "volume-damaged", 0xd7306c5a_8e42_4f19_a6d4_0b91f3c7e258, "blocks of a volume are damaged on the disk of this host";
    VolumeRepaired, "volume-repaired", 0x3a85e2f7_490d_4cb6_8e1a_d62f7b50c913, "damaged blocks of a volume were repaired from cloud snapshots";
    KeySlotDamaged, "key-slot-damaged", 0x5d0b2c44_9a1e_4f6b_8a57_3c1f0e8b7d92, "a key slot of a backup location was missing or damaged";
    AnomalyFound, "anomaly-found", 0xcb6e84dc_d092_416e_bd36_9775e19f6ab4, "a backup has unusual changes, such as those of encryption or mass deletion";
    ProofTooOld, "proof-too-old", 0x9b1f5c86_3e2d_4a70_b6f8_41d07c95ae13, "no verification has read a backup of a volume for longer than `proof_max_age_days`";
    ProofDamaged, "proof-damaged", 0xd665d38a_d378_4f26_834b_e3a93b979f47, "a published proof is damaged, or one of this host is missing; this host publishes its own again";
}

impl EventKind {
    /// Returns the kind of a name; `None` for an unknown one.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == word)
    }
}

/// Event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Sequence number, ascending.
    pub event_id: u64,
    /// Time.
    pub occurred_at: Timestamp,
    /// Severity of an event.
    pub severity: Severity,
    /// Name of the [`EventKind`]; of another version, perhaps an unknown one.
    pub kind: String,
    /// Volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// Name of the volume at that time.
    pub volume_name: Option<VolumeName>,
    /// Credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<Uuid>,
    /// Name of the credential at that time.
    pub credential_name: Option<String>,
    /// Task.
    pub task_id: Option<Uuid>,
    /// Cloud snapshot that the task made, restored, deleted or verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud_snapshot_id: Option<String>,
    /// Step at which a drill failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<DrillStage>,
    /// Message.
    pub message: String,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListEvents {
    /// Only events after this number, oldest first; the newest by default.
    pub since: Option<u64>,
    /// Maximum number, up to [`MAX_EVENTS`]; 100 by default.
    pub max: Option<u32>,
    /// Time to wait for an event, at most [`crate::MAX_WAIT_MILLIS`].
    pub wait_millis: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn event_kinds_have_unique_names_and_ids() {
        let words: HashSet<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        let ids: HashSet<_> = EventKind::ALL.iter().map(|kind| kind.message_id()).collect();
        assert_eq!((words.len(), ids.len()), (EventKind::ALL.len(), EventKind::ALL.len()));
        assert!(EventKind::of("backup-done").is_some() && EventKind::of("backup").is_none());
    }

    #[test]
    fn event_kinds_are_all_documented() {
        let page = include_str!("../../../docs/monitoring.md");
        let row = |kind: &EventKind| format!("| `{}` | {} |\n", kind.as_str(), kind.meaning());
        let table: String = EventKind::ALL.iter().map(row).collect();
        assert!(page.contains(&table), "docs/monitoring.md must have this table of events:\n{table}");
    }
}
