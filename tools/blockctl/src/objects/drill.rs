//! Schedules of restore drills: a policy or rules of their own, and the volumes with their locations.

use super::{
    backup::Backup,
    document::{FieldError, Spec},
    policy::Rules,
    values::{one_as_value, one_or_many, one_or_many_schema, selectors},
};
use blockd_api::{
    CredentialName, GroupName, LabelSelector, Labels, ObjectName, ProbeName, VolumeName,
    drills::DrillOptions,
    schedules::{CreateSchedule, PolicyName, Priority, Schedule},
};
use blockd_schedule::Jitter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Schedule of restore drills.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrillSpec {
    schedule_policy_name: Option<PolicyName>,
    #[serde(skip_serializing_if = "Rules::is_empty")]
    schedule: Rules,
    suspend: bool,
    /// Maximum start delay, in seconds; by default a tenth of the interval, at most 30 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    jitter_seconds: Option<u32>,
    priority: Priority,
    /// Backup locations whose backups are drilled.
    #[serde(
        deserialize_with = "one_or_many",
        serialize_with = "one_as_value",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(schema_with = "one_or_many_schema::<CredentialName>")]
    pub backup_location: Vec<CredentialName>,
    volume: Option<VolumeName>,
    /// Group, whose volumes are drilled at one point in time.
    group: Option<GroupName>,
    /// Labels of the volumes.
    #[serde(with = "selectors", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "one_or_many_schema::<Labels>")]
    selectors: Vec<LabelSelector>,
    /// All volumes of each run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all_volumes: bool,
    /// Files that each drill reads in full.
    files: Option<u32>,
    /// Time after which a drill ends without a result, in seconds.
    timeout_seconds: Option<u32>,
    /// Probe of the daemon's configuration that each drill runs.
    probe: Option<ProbeName>,
    /// Labels of the schedule, from the metadata.
    #[serde(skip)]
    pub labels: Labels,
}

impl DrillSpec {
    /// Converts a schedule of the daemon; `None` if it refers to a missing volume or location.
    pub fn of(schedule: &Schedule, location: impl Fn(&Uuid) -> Option<CredentialName>) -> Option<Self> {
        let options = schedule.drill.clone()?;
        let selector = &schedule.selector;
        if selector.volume_id.is_some() && selector.volume_name.is_none() {
            return None;
        }
        Some(Self {
            schedule_policy_name: schedule.policy_name.clone(),
            schedule: Rules::of(&schedule.rules),
            suspend: schedule.paused,
            jitter_seconds: schedule.jitter_seconds.map(|jitter| jitter.max_s),
            priority: schedule.priority,
            backup_location: schedule.credential_ids.iter().map(location).collect::<Option<_>>()?,
            volume: selector.volume_name.clone(),
            group: selector.group.clone(),
            selectors: selector.label.clone().into_iter().collect(),
            all_volumes: selector.all,
            files: options.files,
            timeout_seconds: options.timeout_seconds,
            probe: options.probe,
            labels: schedule.labels.clone(),
        })
    }

    /// Returns the name of the policy.
    pub fn policy(&self) -> Option<&PolicyName> {
        self.schedule_policy_name.as_ref()
    }

    /// Returns the volumes and locations in the form of those of a backup.
    pub fn selection(&self) -> Backup {
        Backup {
            backup_location: self.backup_location.clone(),
            volume: self.volume.iter().cloned().collect(),
            group: self.group.clone(),
            selectors: self.selectors.clone(),
            all_volumes: self.all_volumes,
            ..Backup::default()
        }
    }

    /// Returns the request that creates the schedule.
    pub fn request(&self, name: &ObjectName) -> CreateSchedule {
        let selection = self.selection();
        CreateSchedule {
            name: Some(name.clone()),
            selector: selection.selector(),
            credentials: selection.credentials().collect(),
            rules: self.schedule.0.clone(),
            policy_name: self.schedule_policy_name.clone(),
            jitter_seconds: self.jitter_seconds.map(|max_s| Jitter { max_s }),
            priority: self.priority,
            labels: self.labels.clone(),
            drill: Some(DrillOptions {
                files: self.files,
                timeout_seconds: self.timeout_seconds,
                probe: self.probe.clone(),
            }),
            paused: self.suspend,
            ..CreateSchedule::default()
        }
    }
}

impl Spec for DrillSpec {
    fn check(&mut self, _: &str) -> Result<(), FieldError> {
        self.selection().check_template().map_err(|message| (String::new(), message))?;
        if self.schedule_policy_name.is_none() && self.schedule.is_empty() {
            let message = "`schedulePolicyName` or `schedule` is expected";
            return Err(("schedulePolicyName".to_owned(), message.to_owned()));
        }
        if self.selectors.len() > 1 {
            return Err(("selectors".to_owned(), "a schedule has one set of labels".to_owned()));
        }
        Ok(())
    }
}
