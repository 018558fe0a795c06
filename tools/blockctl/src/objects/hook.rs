//! Rules: hooks around snapshots, and the volumes and groups they are assigned to.

use super::values::some_list;
use crate::cli::volume::parse_seconds;
use blockd_api::{
    GroupName, VolumeName,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_S, OnFailure, Quiesce},
    rules::HookRule,
};
use serde::{Deserialize, Serialize};

/// Rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "HookSpec", into = "HookSpec")]
pub struct Hook {
    /// Hooks.
    pub quiesce: Quiesce,
    /// Volumes with this rule; unset leaves the assignment alone.
    pub volumes: Option<Vec<VolumeName>>,
    /// Groups with this rule; unset leaves the assignment alone.
    pub groups: Option<Vec<GroupName>>,
}

/// Rule as it is written.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HookSpec {
    pre_command: Option<String>,
    post_command: Option<String>,
    user: Option<String>,
    timeout: Option<String>,
    freeze_fs: bool,
    on_failure: OnFailure,
    #[serde(deserialize_with = "some_list")]
    volumes: Option<Vec<VolumeName>>,
    #[serde(deserialize_with = "some_list")]
    groups: Option<Vec<GroupName>>,
}

impl Hook {
    /// Converts a rule of the daemon.
    pub fn of(rule: &HookRule) -> Self {
        let (volumes, groups) = (Some(rule.volumes.clone()), Some(rule.groups.clone()));
        Self { quiesce: rule.quiesce.clone(), volumes, groups }.normalized()
    }

    fn normalized(mut self) -> Self {
        if let Some(volumes) = &mut self.volumes {
            volumes.sort_unstable();
            volumes.dedup();
        }
        if let Some(groups) = &mut self.groups {
            groups.sort_unstable();
            groups.dedup();
        }
        self.quiesce.command_timeout_s.get_or_insert(DEFAULT_COMMAND_TIMEOUT_S);
        self
    }
}

impl TryFrom<HookSpec> for Hook {
    type Error = String;

    fn try_from(spec: HookSpec) -> Result<Self, String> {
        let quiesce = Quiesce {
            freeze_fs: spec.freeze_fs,
            pre_command: spec.pre_command,
            post_command: spec.post_command,
            command_timeout_s: spec.timeout.as_deref().map(parse_seconds).transpose()?,
            user: spec.user,
            on_failure: spec.on_failure,
        };
        quiesce.check()?;
        if quiesce.is_nothing() {
            return Err("`preCommand`, `postCommand` or `freezeFs` is required".to_owned());
        }
        Ok(Self { quiesce, volumes: spec.volumes, groups: spec.groups }.normalized())
    }
}

impl From<Hook> for HookSpec {
    fn from(hook: Hook) -> Self {
        let timeout_s = hook.quiesce.command_timeout_s.unwrap_or(DEFAULT_COMMAND_TIMEOUT_S);
        Self {
            pre_command: hook.quiesce.pre_command,
            post_command: hook.quiesce.post_command,
            user: hook.quiesce.user,
            timeout: Some(format!("{timeout_s}s")),
            freeze_fs: hook.quiesce.freeze_fs,
            on_failure: hook.quiesce.on_failure,
            volumes: hook.volumes,
            groups: hook.groups,
        }
    }
}
