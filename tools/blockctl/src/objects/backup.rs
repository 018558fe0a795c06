//! Backups: objects of their own, and templates of schedules.

use super::values::{one_or_many, selectors};
use blockd_api::{
    CredentialName, CredentialRef, GroupName, LabelSelector, ObjectName, RuleName, VolumeName, VolumeRef,
    cloudsnaps::StartGroupBackup,
};
use serde::{Deserialize, Serialize};

/// Volumes of a backup.
#[derive(Clone, Debug, PartialEq)]
pub enum Volumes {
    /// One volume.
    One(VolumeName),
    /// The members of a group.
    Group(GroupName),
    /// The volumes with these labels.
    Label(LabelSelector),
}

/// Fate of backups whose object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReclaimPolicy {
    /// The backups stay.
    #[default]
    Retain,
    /// The backups are deleted.
    Delete,
}

/// Template of the backups of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BackupSpec", into = "BackupSpec")]
pub struct Template {
    /// Backup locations.
    pub locations: Vec<CredentialName>,
    /// Volumes.
    pub volumes: Volumes,
    /// Full backups.
    pub full: bool,
    /// Rule with the hooks.
    pub rule: Option<RuleName>,
    /// Fate of the backups after the object.
    pub reclaim_policy: ReclaimPolicy,
}

/// Backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Template", into = "Template")]
pub struct Backup {
    /// Backup location.
    pub location: CredentialName,
    /// Volumes.
    pub volumes: Volumes,
    /// Full backup.
    pub full: bool,
    /// Rule with the hooks.
    pub rule: Option<RuleName>,
    /// Fate of the backups after the object.
    pub reclaim_policy: ReclaimPolicy,
}

/// Backup as it is written.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BackupSpec {
    #[serde(with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    backup_location: Vec<CredentialName>,
    volume: Option<VolumeName>,
    group: Option<GroupName>,
    #[serde(with = "selectors")]
    selectors: Option<LabelSelector>,
    full: bool,
    pre_exec_rule: Option<RuleName>,
    post_exec_rule: Option<RuleName>,
    #[serde(skip_serializing)]
    reclaim_policy: ReclaimPolicy,
}

impl TryFrom<BackupSpec> for Template {
    type Error = String;

    fn try_from(spec: BackupSpec) -> Result<Self, String> {
        let volumes = match (spec.volume, spec.group, spec.selectors) {
            (Some(volume), None, None) => Volumes::One(volume),
            (None, Some(group), None) => Volumes::Group(group),
            (None, None, Some(label)) => Volumes::Label(label),
            _ => return Err("one of `volume`, `group` and `selectors` is expected".to_owned()),
        };
        let rule = match (spec.pre_exec_rule, spec.post_exec_rule) {
            (Some(before), Some(after)) if before != after => {
                return Err(format!("postExecRule: a rule has both hooks: name {before}, or leave it out"));
            }
            (before, after) => before.or(after),
        };
        let (locations, full, reclaim_policy) = (spec.backup_location, spec.full, spec.reclaim_policy);
        Ok(Self { locations, volumes, full, rule, reclaim_policy })
    }
}

impl From<Template> for BackupSpec {
    fn from(template: Template) -> Self {
        let mut spec = Self {
            backup_location: template.locations,
            full: template.full,
            pre_exec_rule: template.rule.clone(),
            post_exec_rule: template.rule,
            ..Self::default()
        };
        match template.volumes {
            Volumes::One(volume) => spec.volume = Some(volume),
            Volumes::Group(group) => spec.group = Some(group),
            Volumes::Label(label) => spec.selectors = Some(label),
        }
        spec
    }
}

impl TryFrom<Template> for Backup {
    type Error = &'static str;

    fn try_from(template: Template) -> Result<Self, &'static str> {
        let Template { mut locations, volumes, full, rule, reclaim_policy } = template;
        match (locations.pop(), locations.is_empty()) {
            (Some(location), true) => Ok(Self { location, volumes, full, rule, reclaim_policy }),
            _ => Err("one `backupLocation` is expected"),
        }
    }
}

impl From<Backup> for Template {
    fn from(backup: Backup) -> Self {
        let Backup { location, volumes, full, rule, reclaim_policy } = backup;
        Self { locations: vec![location], volumes, full, rule, reclaim_policy }
    }
}

impl Backup {
    /// Returns the request of the backup.
    pub fn request(&self, name: &ObjectName) -> StartGroupBackup {
        let mut request = StartGroupBackup {
            full: self.full,
            cred_id: Some(CredentialRef::Name(self.location.clone())),
            name: Some(name.clone()),
            rule: self.rule.clone(),
            ..StartGroupBackup::default()
        };
        match &self.volumes {
            Volumes::One(volume) => request.volumes.push(VolumeRef::Name(volume.clone())),
            Volumes::Group(group) => request.group = Some(group.clone()),
            Volumes::Label(label) => request.label = Some(label.clone()),
        }
        request
    }
}
