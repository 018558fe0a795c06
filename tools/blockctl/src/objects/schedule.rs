//! Schedules: a policy or rules of their own, and a backup as their template.

use super::{
    backup::{ReclaimPolicy, Template, Volumes},
    policy::Rules,
    values::{Retain, one_or_many},
};
use blockd_api::{
    CredentialName, CredentialRef, ObjectName, VolumeName, VolumeRef,
    schedules::{CreateSchedule, PolicyName, Priority, RetainAt, Schedule, Selector, UpdateSchedule},
};
use blockd_schedule::{Jitter, Retention};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Backups that a schedule without a policy and without `retain` keeps.
const DEFAULT_RETAIN: u32 = 7;

/// Retention in one location.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LocationRetain {
    backup_location: CredentialName,
    retain: Retain,
}

/// Local snapshots of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalSnapshots {
    retain: Retain,
}

/// Object of the template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateObject {
    spec: Template,
}

/// Schedule of backups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scheduled {
    schedule_policy_name: Option<PolicyName>,
    #[serde(default, skip_serializing_if = "Rules::is_empty")]
    schedule: Rules,
    #[serde(default)]
    suspend: bool,
    /// Unset if the policy sets it.
    retain: Option<Retain>,
    #[serde(default, deserialize_with = "one_or_many::deserialize", skip_serializing_if = "Vec::is_empty")]
    retain_at: Vec<LocationRetain>,
    local_snapshots: Option<LocalSnapshots>,
    /// Maximum start delay, in seconds.
    #[serde(default)]
    jitter_seconds: u32,
    #[serde(default)]
    priority: Priority,
    template: TemplateObject,
}

impl Scheduled {
    /// Converts a schedule of the daemon; `None` if it refers to a missing volume or location.
    pub fn of(
        schedule: &Schedule,
        volume: impl Fn(&VolumeRef) -> Option<VolumeName>,
        location: impl Fn(&Uuid) -> Option<CredentialName>,
    ) -> Option<Self> {
        let volumes = match &schedule.selector {
            Selector { volume: Some(one), .. } => Volumes::One(volume(one)?),
            Selector { group: Some(group), .. } => Volumes::Group(group.clone()),
            Selector { label: Some(label), .. } => Volumes::Label(label.clone()),
            _ => return None,
        };
        let retain_at = schedule.retain_at.iter().map(|at| {
            let backup_location = match &at.cred_id {
                CredentialRef::Id(uuid) => location(uuid)?,
                CredentialRef::Name(name) => name.clone(),
            };
            Some(LocationRetain { backup_location, retain: Retain(at.retain.clone()) })
        });
        let mut retain_at = retain_at.collect::<Option<Vec<_>>>()?;
        retain_at.sort_by(|one, other| one.backup_location.cmp(&other.backup_location));
        let locations = schedule.credentials.iter().map(location).collect::<Option<_>>()?;
        let has_own_retain = schedule.policy.is_none() || schedule.retain != Retention::default();
        Some(Self {
            schedule_policy_name: schedule.policy.clone(),
            schedule: Rules::of(&schedule.rules),
            suspend: schedule.paused,
            retain: has_own_retain.then(|| Retain(schedule.retain.clone())),
            retain_at,
            local_snapshots: schedule.local.clone().map(|retain| LocalSnapshots { retain: Retain(retain) }),
            jitter_seconds: schedule.jitter_seconds.max_s,
            priority: schedule.priority,
            template: TemplateObject {
                spec: Template {
                    locations,
                    volumes,
                    full: schedule.full,
                    rule: schedule.rule.clone(),
                    reclaim_policy: ReclaimPolicy::Retain,
                },
            },
        })
    }

    /// Checks what the types do not, and sets defaults.
    ///
    /// # Errors
    /// Path and cause.
    pub fn check(&mut self) -> Result<(), (String, String)> {
        let refused = |path: String, message: &str| Err((path, message.to_owned()));
        if self.schedule_policy_name.is_none() {
            if self.schedule.is_empty() {
                return refused(
                    "schedulePolicyName".to_owned(),
                    "`schedulePolicyName` or `schedule` is expected",
                );
            }
            self.retain.get_or_insert_with(|| Retain::last(DEFAULT_RETAIN));
        }
        let backup = &self.template.spec;
        if backup.locations.is_empty() && self.local_snapshots.is_none() {
            return refused("template.spec.backupLocation".to_owned(), "missing field `backupLocation`");
        }
        for (index, at) in self.retain_at.iter().enumerate() {
            let path = format!("retainAt[{index}].backupLocation");
            let location = &at.backup_location;
            if !backup.locations.contains(location) {
                return refused(path, &format!("this schedule makes no backups in {location}"));
            }
            if self.retain_at[..index].iter().any(|earlier| earlier.backup_location == *location) {
                return refused(path, &format!("{location} is listed twice"));
            }
        }
        self.retain_at.sort_by(|one, other| one.backup_location.cmp(&other.backup_location));
        // All backups are kept by default.
        if self.schedule_policy_name.is_some() && self.retain == Some(Retain::default()) {
            self.retain = None;
        }
        Ok(())
    }

    /// Returns the template of the backups.
    pub fn backup(&self) -> &Template {
        &self.template.spec
    }

    fn retain(&self) -> Retention {
        self.retain.clone().unwrap_or_default().0
    }

    fn local(&self) -> Option<Retention> {
        self.local_snapshots.as_ref().map(|local| local.retain.0.clone())
    }

    fn retain_at(&self) -> Vec<RetainAt> {
        let at = |at: &LocationRetain| RetainAt {
            cred_id: CredentialRef::Name(at.backup_location.clone()),
            retain: at.retain.0.clone(),
        };
        self.retain_at.iter().map(at).collect()
    }

    /// Returns the request that creates the schedule.
    pub fn create(&self, name: &ObjectName) -> CreateSchedule {
        let backup = self.backup();
        let mut selector = Selector::default();
        match &backup.volumes {
            Volumes::One(volume) => selector.volume = Some(VolumeRef::Name(volume.clone())),
            Volumes::Group(group) => selector.group = Some(group.clone()),
            Volumes::Label(label) => selector.label = Some(label.clone()),
        }
        CreateSchedule {
            name: Some(name.clone()),
            selector,
            cred_ids: backup.locations.iter().cloned().map(CredentialRef::Name).collect(),
            rules: self.schedule.to_api(),
            policy: self.schedule_policy_name.clone(),
            retain: self.retain(),
            local: self.local(),
            retain_at: self.retain_at(),
            full: backup.full,
            jitter_seconds: Jitter { max_s: self.jitter_seconds },
            priority: self.priority,
            rule: backup.rule.clone(),
            paused: self.suspend,
        }
    }

    /// Returns the request that makes another schedule like this one. Equal fields are left out, so that
    /// their runs go on.
    pub fn update(&self, current: &Self) -> UpdateSchedule {
        fn changed<T: PartialEq>(current: &T, wanted: T) -> Option<T> {
            (*current != wanted).then_some(wanted)
        }
        let (backup, current_backup) = (self.backup(), current.backup());
        UpdateSchedule {
            rules: changed(&current.schedule.to_api(), self.schedule.to_api()),
            policy: changed(&current.schedule_policy_name, self.schedule_policy_name.clone()).flatten(),
            retain: changed(&current.retain(), self.retain()),
            local: changed(&current.local(), self.local()),
            retain_at: changed(&current.retain_at(), self.retain_at()),
            full: changed(&current_backup.full, backup.full),
            jitter_seconds: changed(&current.jitter_seconds, self.jitter_seconds)
                .map(|max_s| Jitter { max_s }),
            priority: changed(&current.priority, self.priority),
            rule: changed(&current_backup.rule, backup.rule.clone()),
            paused: changed(&current.suspend, self.suspend),
        }
    }

    /// Returns the paths of fields that cannot be changed.
    pub fn fixed(&self, current: &Self) -> Vec<&'static str> {
        let (backup, current_backup) = (self.backup(), current.backup());
        let fields = [
            ("spec.template.spec.backupLocation", current_backup.locations != backup.locations),
            ("spec.template.spec.volume", current_backup.volumes != backup.volumes),
            (
                "spec.schedulePolicyName",
                current.schedule_policy_name.is_some() && self.schedule_policy_name.is_none(),
            ),
        ];
        fields.into_iter().filter_map(|(path, is_changed)| is_changed.then_some(path)).collect()
    }
}
