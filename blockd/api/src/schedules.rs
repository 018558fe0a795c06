//! Schedules of backups, the policies that several of them share, and what they did.

use crate::{
    CredentialRef, GroupName, LabelSelector, NameError, ObjectName, RuleName, SnapshotId, SnapshotName,
    VolumeId, VolumeName, VolumeRef, cloudsnaps::CloudsnapId,
};
use blockd_schedule::{Jitter, Recurrence, Retention, Verdict};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The most rules that a schedule or a policy has.
pub const MAX_RULES: usize = 16;
/// The most places that one schedule backs up to.
pub const MAX_TARGETS: usize = 8;
/// The most runs that one reply tells of.
pub const MAX_HISTORY: u32 = 10_000;

/// The name of a policy, by the rules of all names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyName(SnapshotName);

impl PolicyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for PolicyName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> Self {
        name.as_str().to_owned()
    }
}

/// When runs are, and how many of what they made is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// When.
    pub when: Recurrence,
    /// How many backups of this rule are kept; without it they count with all others of the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<Retention>,
}

/// Which volumes a schedule is for: one of these is set. A group and labels are looked up at each run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// One volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRef>,
    /// All volumes of a group, each for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// All volumes that have all these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
}

/// Which of several runs that wait goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// After all others.
    Low,
    /// In between.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Priority {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is kept in one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetainAt {
    /// The place, one of the schedule's.
    pub cred_id: CredentialRef,
    /// How many backups are kept there, whatever the schedule and its rules say for the others.
    pub retain: Retention,
}

/// Body of `POST /v1/schedules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSchedule {
    /// What it is called; no other schedule may have the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Which volumes.
    pub selector: Selector,
    /// Where to; may be left out when there is one credential. With `local`, leaving it out means that there
    /// are local snapshots only.
    #[serde(default)]
    pub cred_ids: Vec<CredentialRef>,
    /// Local snapshots are kept as well, of the same freezes, and so many of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Retention>,
    /// Places that keep other backups than the schedule says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_at: Vec<RetainAt>,
    /// When; beside those of the policy.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// A policy whose rules hold as well, as they are at the time.
    #[serde(default)]
    pub policy: Option<PolicyName>,
    /// How many backups are kept of those whose rule does not say it.
    #[serde(default)]
    pub retain: Retention,
    /// Every backup is full.
    #[serde(default)]
    pub full: bool,
    /// How much later than its time a run may begin.
    #[serde(default)]
    pub jitter_seconds: Jitter,
    /// Which runs go first.
    #[serde(default)]
    pub priority: Priority,
    /// A rule that is followed around its freezes, in place of those of the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// No runs, until it is resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// Body of `PATCH /v1/schedules/{schedule}`: what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateSchedule {
    /// Other rules. What they would have done before is not caught up on.
    #[serde(default)]
    pub rules: Option<Vec<Rule>>,
    /// Another policy.
    #[serde(default)]
    pub policy: Option<PolicyName>,
    /// Keep other backups.
    #[serde(default)]
    pub retain: Option<Retention>,
    /// Keep other local snapshots; `null`: make none, and keep those that are there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::volumes::given")]
    pub local: Option<Option<Retention>>,
    /// Keep other backups in some places, in place of all that was said of places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_at: Option<Vec<RetainAt>>,
    /// Every backup is full, or not any more.
    #[serde(default)]
    pub full: Option<bool>,
    /// Another bound of the delay.
    #[serde(default)]
    pub jitter_seconds: Option<Jitter>,
    /// Another priority.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// Another rule around its freezes; `null`: none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::volumes::given")]
    pub rule: Option<Option<RuleName>>,
    /// No runs, or runs again; what was left out while paused is not caught up on.
    #[serde(default)]
    pub paused: Option<bool>,
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Its id.
    pub uuid: Uuid,
    /// What it is called, if somebody gave it a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Which volumes.
    pub selector: Selector,
    /// Where to.
    pub credentials: Vec<Uuid>,
    /// So many local snapshots are kept; `None`: none are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Retention>,
    /// Places that keep other backups than the schedule says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_at: Vec<RetainAt>,
    /// How each of its copies stands: the local one first, then that of each place.
    #[serde(default)]
    pub copies: Vec<CopyState>,
    /// When, without the rules of the policy.
    pub rules: Vec<Rule>,
    /// The policy.
    pub policy: Option<PolicyName>,
    /// How many backups are kept of those whose rule does not say it.
    pub retain: Retention,
    /// Every backup is full.
    pub full: bool,
    /// How much later than its time a run may begin.
    pub jitter_seconds: Jitter,
    /// Which runs go first.
    pub priority: Priority,
    /// A rule that is followed around its freezes, in place of those of the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// There are no runs for now.
    pub paused: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When the next run begins; none if it is paused or has come to its end.
    pub next_run: Option<Timestamp>,
    /// The last run that was begun.
    pub last_run: Option<Timestamp>,
    /// Since when its next run should have begun, if that is minutes ago: something keeps the scheduler from
    /// its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overdue_since: Option<Timestamp>,
    /// There is no volume that it chooses: nothing is protected by it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_volume: bool,
    /// What whoever made or changed it should know; only in answers to that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When its runs are, as one text.
    pub schedule: String,
}

/// How one of the copies that a schedule makes stands, of all its volumes together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyState {
    /// Where it is; `None`: on this host, as local snapshots.
    pub credential: Option<Uuid>,
    /// What is kept of it, but for what rules have retentions of their own for.
    pub retain: Retention,
    /// How many there are.
    pub kept: u64,
    /// The point in time of the newest.
    pub newest: Option<Timestamp>,
    /// How its last run is.
    pub last_state: Option<RunState>,
}

/// Reply to `GET /v1/schedules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleList {
    /// The schedules, oldest first.
    pub schedules: Vec<Schedule>,
    /// Those that this host cannot read. They make no backups, and nothing of theirs is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<UnreadableSchedule>,
}

/// A schedule that the daemon cannot read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnreadableSchedule {
    /// Its id, by which it can be deleted.
    pub uuid: String,
    /// What is wrong with it.
    pub error: String,
}

/// How a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It waits for its turn.
    Queued,
    /// Its backup is under way.
    Active,
    /// Its backup is in the store.
    Done,
    /// Its backup failed.
    Failed,
    /// It was left out; the reason says why.
    Skipped,
    /// What it made was deleted, as the retention says.
    Expired,
}

impl RunState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Active, Self::Done, Self::Failed, Self::Skipped, Self::Expired];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Active => "active",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A run of a schedule for one volume and one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its number; later ones have greater ones.
    pub id: u64,
    /// The schedule.
    pub schedule: Uuid,
    /// The rule by which it came; none for one that was asked for.
    pub rule: Option<Recurrence>,
    /// The instant that the schedule means.
    pub nominal: Timestamp,
    /// When it was begun.
    pub started: Timestamp,
    /// How many earlier runs were missed, for which this one stands as well.
    pub missed: u32,
    /// The volume; none if the schedule found no volume.
    pub volume_id: Option<VolumeId>,
    /// Its name.
    pub volume: Option<VolumeName>,
    /// Where to; none for a local snapshot.
    pub credential: Option<Uuid>,
    /// It makes a local snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// That snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// How it is.
    pub state: RunState,
    /// Its task, once there is one.
    pub task: Option<Uuid>,
    /// What it made.
    pub cloudsnap: Option<CloudsnapId>,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Why it failed or was left out; of one that is done, what failed of the rules around its freeze.
    pub reason: Option<String>,
}

/// Query of `GET /v1/schedule-runs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListRuns {
    /// Only of this schedule.
    #[serde(default)]
    pub schedule: Option<Uuid>,
    /// Only of schedules whose ids begin like this, those that are gone included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule_prefix: Option<String>,
    /// Only of this volume.
    #[serde(default)]
    pub volume: Option<VolumeRef>,
    /// The newest so many, at most [`MAX_HISTORY`]; 100 without it.
    #[serde(default)]
    pub max: Option<u32>,
}

/// Reply to `GET /v1/schedule-runs`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunList {
    /// The runs.
    pub runs: Vec<Run>,
}

/// What the retention says of one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// The run that made it.
    pub run: u64,
    /// The backup.
    pub cloudsnap: CloudsnapId,
    /// The volume.
    pub volume: Option<VolumeName>,
    /// Where it is.
    pub credential: Uuid,
    /// Its point in time.
    pub created: Timestamp,
    /// What becomes of it, and why.
    pub verdict: Verdict,
    /// The rule that made it, if that is gone: the retention that it had then holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_rule: Option<String>,
}

/// What the retention says of one local snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgedSnapshot {
    /// The run that made it.
    pub run: u64,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its name.
    pub name: Option<SnapshotName>,
    /// The volume.
    pub volume: Option<VolumeName>,
    /// Its point in time.
    pub created: Timestamp,
    /// What becomes of it, and why.
    pub verdict: Verdict,
}

/// Reply to `GET /v1/schedules/{schedule}/retention`: what is kept and what would be deleted now. Nothing is
/// changed. Of a schedule that is gone, what it made is told of as well: all of it stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetentionPlan {
    /// Each backup that the schedule made and that is there still.
    pub cloudsnaps: Vec<Judged>,
    /// Each local snapshot of it.
    #[serde(default)]
    pub snapshots: Vec<JudgedSnapshot>,
}

/// Body of `POST /v1/sched-policies`, and a policy as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Body of `PATCH /v1/sched-policies/{policy}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatePolicy {
    /// Other rules, for all schedules that use it.
    pub rules: Vec<Rule>,
}

/// Reply to `GET /v1/sched-policies`, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyList {
    /// The policies.
    pub policies: Vec<Policy>,
}

impl crate::Client {
    /// Makes a schedule.
    pub async fn create_schedule(&self, request: &CreateSchedule) -> Result<Schedule, crate::ClientError> {
        self.post(crate::paths::SCHEDULES, request, crate::client::CALL_TIMEOUT).await
    }

    /// The schedules.
    pub async fn list_schedules(&self) -> Result<ScheduleList, crate::ClientError> {
        self.get(crate::paths::SCHEDULES, crate::client::CALL_TIMEOUT).await
    }

    /// Changes a schedule.
    pub async fn update_schedule(
        &self,
        schedule: Uuid,
        request: &UpdateSchedule,
    ) -> Result<Schedule, crate::ClientError> {
        let address = crate::paths::schedule(schedule);
        self.send(hyper::Method::PATCH, &address, request, crate::client::CALL_TIMEOUT).await
    }

    /// Deletes a schedule; what it made stays.
    pub async fn delete_schedule(&self, schedule: Uuid) -> Result<crate::Deleted, crate::ClientError> {
        self.delete(&crate::paths::schedule(schedule)).await
    }

    /// Runs a schedule now.
    pub async fn run_schedule(&self, schedule: Uuid) -> Result<RunList, crate::ClientError> {
        let nothing = serde_json::json!({});
        self.post(&crate::paths::schedule_run(schedule), &nothing, crate::client::CALL_TIMEOUT).await
    }

    /// What a schedule's retention keeps and would delete.
    pub async fn plan_retention(&self, schedule: Uuid) -> Result<RetentionPlan, crate::ClientError> {
        self.get(&crate::paths::schedule_retention(schedule), crate::client::CALL_TIMEOUT).await
    }

    /// What schedules did.
    pub async fn list_runs(&self, query: &ListRuns) -> Result<RunList, crate::ClientError> {
        self.query(crate::paths::SCHEDULE_HISTORY, query, crate::client::CALL_TIMEOUT).await
    }

    /// Makes a policy.
    pub async fn create_policy(&self, request: &Policy) -> Result<Policy, crate::ClientError> {
        self.post(crate::paths::POLICIES, request, crate::client::CALL_TIMEOUT).await
    }

    /// The policies.
    pub async fn list_policies(&self) -> Result<PolicyList, crate::ClientError> {
        self.get(crate::paths::POLICIES, crate::client::CALL_TIMEOUT).await
    }

    /// One policy.
    pub async fn policy(&self, name: &PolicyName) -> Result<Policy, crate::ClientError> {
        self.get(&crate::paths::policy(name), crate::client::CALL_TIMEOUT).await
    }

    /// Gives a policy other rules.
    pub async fn update_policy(
        &self,
        name: &PolicyName,
        request: &UpdatePolicy,
    ) -> Result<Policy, crate::ClientError> {
        self.send(hyper::Method::PATCH, &crate::paths::policy(name), request, crate::client::CALL_TIMEOUT)
            .await
    }

    /// Deletes a policy that no schedule uses.
    pub async fn delete_policy(&self, name: &PolicyName) -> Result<crate::Deleted, crate::ClientError> {
        self.delete(&crate::paths::policy(name)).await
    }
}
