//! Schedules: a policy or rules of their own, and a backup as their template.

use super::{
    backup::{Backup, ReclaimPolicy, SCHEDULE_RECLAIM_POLICY},
    document::{FieldError, Spec},
    policy::Rules,
    values::{Retain, one_or_many, parse_ttl},
};
use blockd_api::{
    CredentialName, CredentialRef, Labels, ObjectName,
    schedules::{CreateSchedule, PolicyName, Priority, RetainAt, Rule, Schedule, UpdateSchedule},
};
use blockd_schedule::{Jitter, Retention};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::iter::successors;
use uuid::Uuid;

/// Backups that a schedule without a policy and without `retain` keeps.
const DEFAULT_RETAIN: u32 = 7;
/// Maximum number of backups that a time to live is converted to.
const MAX_RETAINED: u32 = 10_000;

/// Retention in one location.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LocationRetain {
    backup_location: CredentialName,
    retain: Retain,
}

/// Local snapshots of a schedule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LocalSnapshots {
    /// By default that of the policy of the call or the daemon, or a default number.
    retain: Option<Retain>,
}

/// Object of the template.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TemplateObject {
    spec: Backup,
}

/// Schedule of backups.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScheduleSpec {
    schedule_policy_name: Option<PolicyName>,
    #[serde(default, skip_serializing_if = "Rules::is_empty")]
    schedule: Rules,
    #[serde(default)]
    suspend: bool,
    /// Unset if the policy sets it.
    retain: Option<Retain>,
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    retain_at: Vec<LocationRetain>,
    local_snapshots: Option<LocalSnapshots>,
    /// Maximum start delay, in seconds; by default a tenth of the interval, at most 30 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jitter_seconds: Option<u32>,
    #[serde(default)]
    priority: Priority,
    /// Fate of the backups after the schedule; by default that of the template.
    pub reclaim_policy: Option<ReclaimPolicy>,
    template: TemplateObject,
    /// Effect of the time to live of the template, if it has one.
    #[serde(skip)]
    pub ttl_warning: Option<String>,
}

impl ScheduleSpec {
    /// Converts a schedule of the daemon; `None` if it refers to a missing volume or location.
    pub fn of(schedule: &Schedule, location: impl Fn(&Uuid) -> Option<CredentialName>) -> Option<Self> {
        let volume = match &schedule.selector.volume_id {
            Some(_) => vec![schedule.selector.volume_name.clone()?],
            None => Vec::new(),
        };
        let retain_at = schedule.retain_at.iter().map(|at| {
            let backup_location = location(&at.credential_id)?;
            Some(LocationRetain { backup_location, retain: Retain(at.retain.clone()) })
        });
        let mut retain_at = retain_at.collect::<Option<Vec<_>>>()?;
        retain_at.sort_by(|one, other| one.backup_location.cmp(&other.backup_location));
        let spec = Backup {
            backup_location: schedule.credential_ids.iter().map(location).collect::<Option<_>>()?,
            volume,
            group: schedule.selector.group.clone(),
            selectors: schedule.selector.label.clone().into_iter().collect(),
            all_volumes: schedule.selector.all,
            full: schedule.full,
            reupload: schedule.reupload,
            compression: schedule.compression,
            pre_exec_rule: schedule.rule_name.clone(),
            post_exec_rule: schedule.rule_name.clone(),
            reclaim_policy: ReclaimPolicy::of(&schedule.labels),
            labels: schedule.labels.clone(),
            ..Backup::default()
        };
        let has_own_retain = schedule.policy_name.is_none() || schedule.retain != Retention::default();
        Some(Self {
            schedule_policy_name: schedule.policy_name.clone(),
            schedule: Rules::of(&schedule.rules),
            suspend: schedule.paused,
            retain: has_own_retain.then(|| Retain(schedule.retain.clone())),
            retain_at,
            local_snapshots: schedule
                .local
                .clone()
                .map(|retain| LocalSnapshots { retain: Some(Retain(retain)) }),
            jitter_seconds: schedule.jitter_seconds.map(|jitter| jitter.max_s),
            priority: schedule.priority,
            reclaim_policy: ReclaimPolicy::labelled(&schedule.labels, SCHEDULE_RECLAIM_POLICY),
            template: TemplateObject { spec },
            ttl_warning: None,
        })
    }

    /// Returns the template of the backups.
    pub fn backup(&self) -> &Backup {
        &self.template.spec
    }

    /// Returns the template of the backups.
    pub fn backup_mut(&mut self) -> &mut Backup {
        &mut self.template.spec
    }

    /// Returns the reclaim policies of the schedule and of its backups.
    pub fn reclaim_policies(&self) -> [Option<ReclaimPolicy>; 2] {
        [self.reclaim_policy, self.backup().reclaim_policy]
    }

    /// Returns true if it makes local snapshots.
    pub fn is_local(&self) -> bool {
        self.local_snapshots.is_some()
    }

    /// Returns the name of the policy.
    pub fn policy(&self) -> Option<&PolicyName> {
        self.schedule_policy_name.as_ref()
    }

    /// Converts the time to live of the template to the retention of the schedule, if that has none, and
    /// returns a warning.
    fn convert_ttl(&mut self) -> Option<String> {
        let ttl = self.template.spec.ttl.take()?;
        let makes_backups = !self.is_local() || !self.template.spec.backup_location.is_empty();
        let has_retain = self.retain.is_some() || self.schedule.0.iter().any(|rule| rule.retain.is_some());
        Some(match &self.schedule_policy_name {
            _ if !makes_backups => {
                "ignored: the retention of local snapshots is `localSnapshots.retain`".to_owned()
            }
            Some(policy) => format!("ignored: SchedulePolicy/{policy} and `retain` set the retention"),
            None if has_retain => "ignored: `retain` sets the retention".to_owned(),
            None => {
                let kept = runs_within(&self.schedule.0, parse_ttl(&ttl).ok()?);
                self.retain = Some(Retain::last(kept));
                format!("{ttl} is kept as the newest {kept} backups")
            }
        })
    }

    /// Sets the retention of local snapshots, if none is given, to that of the rules of the policy.
    pub fn complete_local(&mut self, rules: impl Fn(&PolicyName) -> Option<Vec<Rule>>) {
        let rules = self.schedule_policy_name.as_ref().and_then(rules).unwrap_or_default();
        let count: u32 =
            rules.iter().filter_map(|rule| rule.retain.as_ref()).map(|retain| retain.keep_last).sum();
        if let Some(local) = &mut self.local_snapshots {
            local.retain.get_or_insert_with(|| Retain::last(if count == 0 { DEFAULT_RETAIN } else { count }));
        }
    }

    /// Returns the request that creates the schedule.
    pub fn request(&self, name: &ObjectName) -> CreateSchedule {
        let backup = self.backup();
        let retain_at = self.retain_at.iter().map(|at| RetainAt {
            credential: CredentialRef::Name(at.backup_location.clone()),
            retain: at.retain.0.clone(),
        });
        CreateSchedule {
            name: Some(name.clone()),
            selector: backup.selector(),
            credentials: backup.credentials().collect(),
            rules: self.schedule.0.clone(),
            policy_name: self.schedule_policy_name.clone(),
            retain: self.retain.clone().unwrap_or_default().0,
            local: self.local_snapshots.as_ref().map(|local| local.retain.clone().unwrap_or_default().0),
            retain_at: retain_at.collect(),
            full: backup.full,
            reupload: backup.reupload,
            compression: backup.compression,
            jitter_seconds: self.jitter_seconds.map(|max_s| Jitter { max_s }),
            priority: self.priority,
            rule_name: backup.rule(),
            labels: backup.labels.clone(),
            drill: None,
            paused: self.suspend,
        }
    }
}

/// Returns the reclaim policies of a schedule and of its backups in its labels.
pub fn stored_reclaim_policies(labels: &Labels) -> [Option<ReclaimPolicy>; 2] {
    [ReclaimPolicy::labelled(labels, SCHEDULE_RECLAIM_POLICY), ReclaimPolicy::of(labels)]
}

/// Returns the number of runs in a time, at least one: the same at each conversion.
fn runs_within(rules: &[Rule], time_s: u64) -> u32 {
    let span = SignedDuration::from_secs(i64::try_from(time_s).unwrap_or(i64::MAX));
    let end = Timestamp::UNIX_EPOCH.checked_add(span).unwrap_or(Timestamp::MAX);
    let runs = |rule: &Rule| {
        let when = rule.when.clone();
        let first = when.next_after(Timestamp::UNIX_EPOCH);
        successors(first, move |time| when.next_after(*time)).take_while(|time| *time <= end)
    };
    let all = rules.iter().flat_map(runs).zip(1..=MAX_RETAINED);
    all.last().map_or(1, |(_, count)| count)
}

impl Spec for ScheduleSpec {
    fn check(&mut self, _: &str) -> Result<(), FieldError> {
        let refused = |path: &str, message: String| Err((path.to_owned(), message));
        let template = self.template.spec.check_template();
        template.map_err(|message| ("template.spec".to_owned(), message))?;
        self.ttl_warning = self.convert_ttl();
        if self.schedule_policy_name.is_none() {
            if self.schedule.is_empty() {
                let message = "`schedulePolicyName` or `schedule` is expected";
                return refused("schedulePolicyName", message.to_owned());
            }
            self.retain.get_or_insert_with(|| Retain::last(DEFAULT_RETAIN));
        }
        let Backup { volume, selectors, backup_location: locations, .. } = &self.template.spec;
        if volume.len() > 1 || selectors.len() > 1 {
            return refused("template.spec", "a schedule has one volume, group or set of labels".to_owned());
        }
        for (index, LocationRetain { backup_location, .. }) in self.retain_at.iter().enumerate() {
            let path = format!("retainAt[{index}].backupLocation");
            if !locations.contains(backup_location) {
                return refused(&path, format!("this schedule makes no backups in {backup_location}"));
            }
            if self.retain_at[..index].iter().any(|earlier| earlier.backup_location == *backup_location) {
                return refused(&path, format!("{backup_location} is listed twice"));
            }
        }
        self.retain_at.sort_by(|one, other| one.backup_location.cmp(&other.backup_location));
        // All backups are kept by default.
        if self.schedule_policy_name.is_some() && self.retain == Some(Retain::default()) {
            self.retain = None;
        }
        Ok(())
    }
}

/// Returns the request that changes one schedule to another. Equal fields are omitted, so that their runs are
/// unaffected.
pub fn update(current: &CreateSchedule, wanted: CreateSchedule) -> UpdateSchedule {
    fn changed<T: PartialEq>(current: &T, wanted: T) -> Option<T> {
        (*current != wanted).then_some(wanted)
    }
    UpdateSchedule {
        rules: changed(&current.rules, wanted.rules),
        policy_name: changed(&current.policy_name, wanted.policy_name).flatten(),
        retain: changed(&current.retain, wanted.retain),
        local: changed(&current.local, wanted.local),
        retain_at: changed(&current.retain_at, wanted.retain_at),
        full: changed(&current.full, wanted.full),
        reupload: changed(&current.reupload, wanted.reupload),
        compression: changed(&current.compression, wanted.compression),
        jitter_seconds: changed(&current.jitter_seconds, wanted.jitter_seconds),
        priority: changed(&current.priority, wanted.priority),
        rule_name: changed(&current.rule_name, wanted.rule_name),
        labels: changed(&current.labels, wanted.labels),
        drill: changed(&current.drill, wanted.drill).flatten(),
        paused: changed(&current.paused, wanted.paused),
    }
}

/// Returns the paths of the fields that differ and cannot be changed.
pub fn fixed(current: &CreateSchedule, wanted: &CreateSchedule) -> Vec<&'static str> {
    let fields = [
        ("spec.template.spec.backupLocation", current.credentials != wanted.credentials),
        ("spec.template.spec.volume", current.selector != wanted.selector),
        ("spec.schedulePolicyName", current.policy_name.is_some() && wanted.policy_name.is_none()),
    ];
    fields.into_iter().filter_map(|(path, is_changed)| is_changed.then_some(path)).collect()
}
