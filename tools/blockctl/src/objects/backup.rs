//! Backups: objects of their own, and templates of schedules.

use super::{
    document::{FieldError, Spec},
    values::{one_as_value, one_or_many, one_or_many_schema, parse_ttl, selectors},
};
use blockd_api::{
    Compression, CredentialName, CredentialRef, GroupName, LabelSelector, Labels, ObjectName, RuleName,
    VolumeName, VolumeRef,
    cloudsnaps::{BackupOptions, StartGroupBackup},
    quiesce::HookOptions,
    schedules::Selector,
};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Label of backups with the reclaim policy of their object.
pub const RECLAIM_POLICY: &str = "reclaim-policy";
/// Label of schedules, and so of their backups, with the reclaim policy of the schedule.
pub const SCHEDULE_RECLAIM_POLICY: &str = "schedule-reclaim-policy";

/// Fate of backups whose object or schedule is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// The backups stay.
    Retain,
    /// The backups are deleted.
    Delete,
}

impl ReclaimPolicy {
    /// Returns the policy of backups in their labels or those of their schedule.
    pub fn of(labels: &Labels) -> Option<Self> {
        Self::labelled(labels, RECLAIM_POLICY)
    }

    /// Returns the policy in a label of a backup or schedule.
    pub fn labelled(labels: &Labels, key: &str) -> Option<Self> {
        let text = labels.as_map().get(key)?;
        [Self::Retain, Self::Delete].into_iter().find(|policy| policy.to_string() == *text)
    }
}

impl fmt::Display for ReclaimPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Backup, local snapshot, or template of the backups of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backup {
    /// Backup locations; one, except for schedules.
    #[serde(
        deserialize_with = "one_or_many",
        serialize_with = "one_as_value",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "one_or_many_schema::<CredentialName>")]
    pub backup_location: Vec<CredentialName>,
    /// Volumes.
    #[serde(
        deserialize_with = "one_or_many",
        serialize_with = "one_as_value",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "one_or_many_schema::<VolumeName>")]
    pub volume: Vec<VolumeName>,
    pub group: Option<GroupName>,
    #[serde(with = "selectors", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "one_or_many_schema::<Labels>")]
    pub selectors: Vec<LabelSelector>,
    /// All volumes; those of each run of a schedule.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all_volumes: bool,
    /// Volumes if no volume has the name.
    #[serde(skip_serializing)]
    pub or_selectors: Option<Labels>,
    /// Full backups.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Full backups that store all data again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reupload: bool,
    /// Compression; by default that of the location.
    pub compression: Option<Compression>,
    pub(super) pre_exec_rule: Option<RuleName>,
    pub(super) post_exec_rule: Option<RuleName>,
    /// Time after which the backups expire, such as `720h`.
    #[serde(skip_serializing)]
    pub(super) ttl: Option<String>,
    /// Fate of the backups after the object; they stay by default.
    pub reclaim_policy: Option<ReclaimPolicy>,
    /// Labels of the backups, from the metadata, with the reclaim policy.
    #[serde(skip)]
    pub labels: Labels,
}

impl Backup {
    /// Checks the volumes and the rule.
    pub fn check_template(&mut self) -> Result<(), String> {
        if let Some(ttl) = &self.ttl {
            parse_ttl(ttl).map_err(|error| format!("ttl: {error}"))?;
        }
        let (has_volume, has_labels) = (!self.volume.is_empty(), !self.selectors.is_empty());
        let given = [has_volume, self.group.is_some(), has_labels, self.all_volumes];
        if given.into_iter().filter(|is_given| *is_given).count() != 1 {
            return Err("one of `volume`, `group`, `selectors` and `allVolumes` is expected".to_owned());
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

    /// Returns the volumes of a schedule, which has one selector.
    pub fn selector(&self) -> Selector {
        let volume = self.volume.first().cloned().map(VolumeRef::Name);
        let (group, label) = (self.group.clone(), self.selectors.first().cloned());
        Selector { volume, group, label, all: self.all_volumes }
    }

    /// Returns the rule with the hooks.
    pub fn rule(&self) -> Option<RuleName> {
        self.pre_exec_rule.clone()
    }

    /// Returns the hooks of a request.
    pub fn hooks(&self) -> HookOptions {
        HookOptions { rule_name: self.rule(), ..HookOptions::default() }
    }

    /// Returns the time to live.
    pub fn ttl(&self) -> Option<SignedDuration> {
        let ttl_s = self.ttl.as_deref().and_then(|ttl| parse_ttl(ttl).ok());
        ttl_s.and_then(|ttl_s| i64::try_from(ttl_s).ok()).map(SignedDuration::from_secs)
    }

    /// Returns the request of a backup that begins now.
    pub fn request(&self, name: &ObjectName) -> StartGroupBackup {
        let options = BackupOptions {
            full: self.full,
            reupload: self.reupload,
            compression: self.compression,
            name: Some(name.clone()),
            labels: self.labels.clone(),
            expires_at: self.ttl().and_then(|ttl| Timestamp::now().checked_add(ttl).ok()),
            ..BackupOptions::default()
        };
        let (volumes, label) = match self.selectors.as_slice() {
            [one] => (Vec::new(), Some(one.clone())),
            _ => (self.volume.iter().cloned().map(VolumeRef::Name).collect(), None),
        };
        StartGroupBackup {
            volumes,
            group: self.group.clone(),
            label,
            credentials: self.credentials().collect(),
            options,
            hooks: self.hooks(),
            ..StartGroupBackup::default()
        }
    }
}

impl Spec for Backup {
    fn check(&mut self, _: &str) -> Result<(), FieldError> {
        self.check_template().map_err(|message| (String::new(), message))?;
        if self.ttl() == Some(SignedDuration::ZERO) {
            return Err(("ttl".to_owned(), "a time above zero is expected".to_owned()));
        }
        match self.backup_location.len() {
            0 | 1 => Ok(()),
            _ => Err((String::new(), "one `backupLocation` is expected".to_owned())),
        }
    }
}
