//! Backups: objects of their own, and templates of schedules.

use super::{
    document::{FieldError, Spec},
    values::{one_as_value, one_or_many, selectors},
};
use blockd_api::{
    CredentialName, CredentialRef, GroupName, LabelSelector, ObjectName, RuleName, VolumeName, VolumeRef,
    cloudsnaps::{BackupOptions, StartGroupBackup},
    quiesce::HookOptions,
    schedules::Selector,
};
use serde::{Deserialize, Serialize};

/// Fate of backups whose object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReclaimPolicy {
    /// The backups stay.
    #[default]
    Retain,
    /// The backups are deleted.
    Delete,
}

/// Backup, or template of the backups of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backup {
    /// Backup locations; one, except for schedules.
    #[serde(
        deserialize_with = "one_or_many",
        serialize_with = "one_as_value",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub backup_location: Vec<CredentialName>,
    /// Volume.
    pub volume: Option<VolumeName>,
    pub(super) group: Option<GroupName>,
    #[serde(with = "selectors")]
    pub(super) selectors: Option<LabelSelector>,
    /// All volumes, at each run of a schedule.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) all_volumes: bool,
    /// Full backups.
    pub full: bool,
    pub(super) pre_exec_rule: Option<RuleName>,
    pub(super) post_exec_rule: Option<RuleName>,
    /// Fate of the backups after the object.
    #[serde(skip_serializing)]
    pub reclaim_policy: ReclaimPolicy,
}

impl Backup {
    /// Checks the volumes and the rule.
    pub fn check_template(&mut self) -> Result<(), String> {
        let given = [self.volume.is_some(), self.group.is_some(), self.selectors.is_some(), self.all_volumes];
        if given.into_iter().filter(|is_given| *is_given).count() != 1 {
            let expected =
                "one of `volume`, `group`, `selectors` and, in a schedule, `allVolumes` is expected";
            return Err(expected.to_owned());
        }
        match (&self.pre_exec_rule, &self.post_exec_rule) {
            (Some(before), Some(after)) if before != after => {
                Err(format!("postExecRule: one rule has both hooks: name {before}, or omit the field"))
            }
            (before, after) => {
                let rule = before.as_ref().or(after.as_ref()).cloned();
                (self.pre_exec_rule, self.post_exec_rule) = (rule.clone(), rule);
                Ok(())
            }
        }
    }

    /// Returns the first location.
    pub fn location(&self) -> Option<&CredentialName> {
        self.backup_location.first()
    }

    /// Returns the locations of a request.
    pub fn credentials(&self) -> impl Iterator<Item = CredentialRef> {
        self.backup_location.iter().cloned().map(CredentialRef::Name)
    }

    /// Returns the volumes.
    pub fn selector(&self) -> Selector {
        let volume = self.volume.clone().map(VolumeRef::Name);
        Selector { volume, group: self.group.clone(), label: self.selectors.clone(), all: self.all_volumes }
    }

    /// Returns the rule with the hooks.
    pub fn rule(&self) -> Option<RuleName> {
        self.pre_exec_rule.clone()
    }

    /// Returns the request of the backup.
    pub fn request(&self, name: &ObjectName) -> StartGroupBackup {
        let Selector { volume, group, label, .. } = self.selector();
        StartGroupBackup {
            volumes: volume.into_iter().collect(),
            group,
            label,
            credentials: self.credentials().collect(),
            options: BackupOptions { full: self.full, name: Some(name.clone()), ..BackupOptions::default() },
            hooks: HookOptions { rule_name: self.rule(), ..HookOptions::default() },
            ..StartGroupBackup::default()
        }
    }
}

impl Spec for Backup {
    fn check(&mut self, _: &str) -> Result<(), FieldError> {
        self.check_template().map_err(|message| (String::new(), message))?;
        match self.backup_location.len() {
            _ if self.all_volumes => {
                Err(("allVolumes".to_owned(), "only a schedule selects all volumes".to_owned()))
            }
            1 => Ok(()),
            _ => Err((String::new(), "one `backupLocation` is expected".to_owned())),
        }
    }
}
