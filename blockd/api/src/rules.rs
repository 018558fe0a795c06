//! Rules: named quiesce options for volumes, groups and schedules.
//!
//! Options of a request take precedence over the rule of its schedule, and that over the rules of the
//! volumes: each has its own, or that of its group. In a freeze of several volumes, each rule runs once.

use crate::{GroupName, Labels, RuleName, VolumeName, VolumeRef, quiesce::Quiesce};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Body of `POST /v1/rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateRule {
    /// Name.
    pub name: RuleName,
    /// Quiesce options.
    pub quiesce: Quiesce,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Body of `PATCH /v1/rules/{rule}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateRule {
    /// New quiesce options; they replace all.
    pub quiesce: Quiesce,
    /// New labels; they replace all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

/// Body of `POST /v1/rules/{rule}/assign` and `unassign`: one target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleTarget {
    /// Volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRef>,
    /// Group, including later members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.volume, &self.group) {
            (Some(volume), _) => write!(f, "volume {volume}"),
            (None, Some(group)) => write!(f, "group {group}"),
            (None, None) => f.write_str("nothing"),
        }
    }
}

/// Rule and its assignments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookRule {
    /// Name.
    pub name: RuleName,
    /// Quiesce options.
    pub quiesce: Quiesce,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Volumes with this rule.
    #[serde(default)]
    pub volume_names: Vec<VolumeName>,
    /// Groups with this rule.
    #[serde(default)]
    pub groups: Vec<GroupName>,
    /// Schedules with this rule.
    #[serde(default)]
    pub schedule_ids: Vec<Uuid>,
    /// Reason why its commands cannot run, as found at the daemon's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
