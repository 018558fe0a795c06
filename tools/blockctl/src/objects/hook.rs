//! Rules: hooks around snapshots, and the volumes and groups they are assigned to.

use super::{
    document::{FieldError, Spec},
    values::{selectors, some_set},
};
use crate::times::parse_seconds;
use blockd_api::{
    GroupName, LabelSelector, VolumeName, VolumeRef,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_SECONDS, OnFailure, Quiesce},
    rules::{HookRule, RuleTarget},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    pre_command: Option<String>,
    post_command: Option<String>,
    user: Option<String>,
    timeout: Option<String>,
    freeze_fs: bool,
    on_failure: OnFailure,
    /// Volumes that get this rule in addition, by their labels when it is applied.
    #[serde(with = "selectors", skip_serializing)]
    #[schemars(with = "Vec<LabelSelector>")]
    pub selectors: Vec<LabelSelector>,
    /// Volumes with this rule; unset keeps the assignments.
    #[serde(deserialize_with = "some_set")]
    pub volumes: Option<BTreeSet<VolumeName>>,
    /// Groups with this rule; unset keeps the assignments.
    #[serde(deserialize_with = "some_set")]
    pub groups: Option<BTreeSet<GroupName>>,
}

impl Hook {
    /// Converts a rule of the daemon.
    pub fn of(rule: &HookRule) -> Self {
        let quiesce = rule.quiesce.clone();
        let timeout_s = quiesce.command_timeout_seconds.unwrap_or(DEFAULT_COMMAND_TIMEOUT_SECONDS);
        Self {
            pre_command: quiesce.pre_command,
            post_command: quiesce.post_command,
            user: quiesce.user,
            timeout: Some(format!("{timeout_s}s")),
            freeze_fs: quiesce.freeze_fs,
            selectors: Vec::new(),
            on_failure: quiesce.on_failure,
            volumes: Some(rule.volume_names.iter().cloned().collect()),
            groups: Some(rule.groups.iter().cloned().collect()),
        }
    }

    /// Returns the options of a request.
    pub fn quiesce(&self) -> Result<Quiesce, String> {
        Ok(Quiesce {
            freeze_fs: self.freeze_fs,
            pre_command: self.pre_command.clone(),
            post_command: self.post_command.clone(),
            command_timeout_seconds: self.timeout.as_deref().map(parse_seconds).transpose()?,
            user: self.user.clone(),
            on_failure: self.on_failure,
        })
    }

    /// Returns the volumes and groups with this rule, and those of a kind that is not listed as `None`.
    pub fn targets(&self) -> [Option<Vec<RuleTarget>>; 2] {
        let volume =
            |name: &VolumeName| RuleTarget { volume: Some(VolumeRef::Name(name.clone())), group: None };
        let group = |name: &GroupName| RuleTarget { volume: None, group: Some(name.clone()) };
        let volumes = self.volumes.as_ref().map(|names| names.iter().map(volume).collect());
        [volumes, self.groups.as_ref().map(|names| names.iter().map(group).collect())]
    }
}

impl Spec for Hook {
    fn check(&mut self, _: &str) -> Result<(), FieldError> {
        let checked = self.quiesce().and_then(|quiesce| {
            quiesce.check()?;
            if quiesce.is_nothing() {
                return Err("`preCommand`, `postCommand` or `freezeFs` is required".to_owned());
            }
            Ok(quiesce.command_timeout_seconds.unwrap_or(DEFAULT_COMMAND_TIMEOUT_SECONDS))
        });
        let timeout_s = checked.map_err(|message| (String::new(), message))?;
        self.timeout = Some(format!("{timeout_s}s"));
        Ok(())
    }
}
