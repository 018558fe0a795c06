//! Events of the daemon.

use crate::{VolumeId, VolumeName};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Maximum number of events in a reply.
pub const MAX_EVENTS: u32 = 1_000;

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Information.
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

/// Kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKind {
    /// Name.
    pub word: &'static str,
    /// `MESSAGE_ID` in the systemd journal; never changed nor reused.
    pub message_id: Uuid,
}

impl EventKind {
    const fn new(word: &'static str, message_id: u128) -> Self {
        Self { word, message_id: Uuid::from_u128(message_id) }
    }

    /// Returns the kind of a name.
    pub fn of(word: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.word == word)
    }
}

/// All kinds of events.
pub const KINDS: &[EventKind] = &[
    EventKind::new("backup-done", 0x7093a1b7_23a2_4469_bc3b_eaea9d45105f),
    EventKind::new("backup-failed", 0xa803d1e7_3cfd_426d_9dc1_d0e8487c25e6),
    EventKind::new("backup-stopped", 0xe6a5c176_f745_41c8_8911_29d0f6e6c274),
    EventKind::new("restore-done", 0xfdeb8732_45de_4ac8_b32c_8204fd1ea054),
    EventKind::new("restore-failed", 0x6d13e23e_828a_45d8_bec2_184a27d42591),
    EventKind::new("restore-stopped", 0x659c8535_1fbb_4f92_87db_e91207c554fc),
    EventKind::new("delete-done", 0x9ead4550_f589_4ca5_a56d_d9f8454e6020),
    EventKind::new("delete-failed", 0xb2f39bc7_1637_45d9_9ff7_fa8f36861b68),
    EventKind::new("delete-stopped", 0xf7134c5a_a4a4_4e82_8386_46565faf41ea),
    EventKind::new("verify-done", 0x9575eb52_1c4c_4e70_bdeb_1f2affdaf7dc),
    EventKind::new("verify-failed", 0xf5cdc2cb_6585_4a68_a44f_516cfe0c4a1e),
    EventKind::new("verify-stopped", 0x5ee1d3aa_df9f_44ad_b0c7_5b75a84ea3b8),
    EventKind::new("store-unreachable", 0xfb2b319d_6047_4558_8fe8_7c226d461d80),
    EventKind::new("damage-found", 0x13a74af3_b8b4_43a1_ba63_c49386546b34),
    EventKind::new("schedule-missed", 0xb71dd2e2_93c2_41b2_86b5_636794d308f2),
    EventKind::new("run-skipped", 0x3d5c2fa8_5c61_47c8_9f00_1bc94891e358),
    EventKind::new("run-failed", 0x21440a83_1569_4a96_bb1d_0f94508840e8),
    EventKind::new("rule-failed", 0xbb5ba90a_42af_443e_b69d_5275750a1470),
    EventKind::new("data-directory-full", 0xd059bfd8_4848_4882_9074_530ae0a48c53),
    EventKind::new("volume-degraded", 0xd12cbf68_3e03_4512_8e97_b0e999d21350),
    EventKind::new("writes-discarded", 0x3c9a5f0e_7d21_4b68_9f14_52e6ab80c7d3),
    EventKind::new("retention-stopped", 0x8a417c2b_60f5_4d39_b7ce_1f93d2a5e604),
    EventKind::new("clock-differs", 0x5d7be0a4_91c6_4f27_8a35_c2e8f1079b6d),
    EventKind::new("clock-unknown", 0x07c43388_7a0c_42b6_8c04_6cf216629c05),
    EventKind::new("reload-failed", 0xba8a2a1f_cb1d_42ad_8d32_33c7e23dc906),
    EventKind::new("write-key-refused", 0x8c61f7a3_27d4_4b0e_9f83_60b5d21c4e7a),
    EventKind::new("key-slot-damaged", 0x5d0b2c44_9a1e_4f6b_8a57_3c1f0e8b7d92),
];

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
    /// Kind: one of [`KINDS`].
    pub kind: String,
    /// Volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// Name of the volume at that time.
    pub volume_name: Option<VolumeName>,
    /// Credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<Uuid>,
    /// Name of the credential at that time.
    pub credential_name: Option<String>,
    /// Task.
    pub task_id: Option<Uuid>,
    /// Cloud snapshot that the task made, restored, deleted or verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_snapshot_id: Option<String>,
    /// Message.
    pub message: String,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListEvents {
    /// Only events after this number, oldest first; the newest by default.
    #[serde(default)]
    pub since: Option<u64>,
    /// Maximum number, up to [`MAX_EVENTS`]; 100 by default.
    #[serde(default)]
    pub max: Option<u32>,
    /// Time to wait for an event, at most [`crate::MAX_WAIT_MILLIS`].
    #[serde(default)]
    pub wait_millis: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn event_kinds_have_unique_names_and_ids() {
        let words: HashSet<_> = KINDS.iter().map(|kind| kind.word).collect();
        let ids: HashSet<_> = KINDS.iter().map(|kind| kind.message_id).collect();
        assert_eq!((words.len(), ids.len()), (KINDS.len(), KINDS.len()));
        assert!(EventKind::of("backup-done").is_some() && EventKind::of("backup").is_none());
    }
}
