//! Paths of the control API, shared by both sides.
//!
//! The constants are route patterns (`{…}` is one segment); the functions build the percent-encoded path of a
//! resource.

use crate::uri::encode;
use std::fmt::Display;
use uuid::Uuid;

/// `GET`: [`crate::status::Status`].
pub const STATUS: &str = "/v1/status";
/// `GET`: the OpenAPI document, see [`crate::openapi`].
pub const OPENAPI: &str = "/v1/openapi.json";
/// `GET` with [`crate::events::ListEvents`]: [`crate::events::EventList`].
pub const EVENTS: &str = "/v1/events";
/// `GET`: [`crate::activity::Activity`].
pub const ACTIVITY: &str = "/v1/activity";
/// `GET`: metrics in Prometheus' text format, version 0.0.4.
pub const METRICS: &str = "/metrics";
/// `GET`: 200 if the daemon is alive.
pub const HEALTHZ: &str = "/healthz";
/// `GET`: 200 if the daemon is ready.
pub const READYZ: &str = "/readyz";
/// `GET` with [`crate::volumes::ListVolumes`]: [`crate::volumes::VolumeList`]; `POST` of
/// [`crate::volumes::CreateVolume`]: [`crate::volumes::Volume`].
pub const VOLUMES: &str = "/v1/volumes";
/// `GET`: [`crate::volumes::Volume`]; `PATCH` of [`crate::volumes::UpdateVolume`]:
/// [`crate::volumes::Volume`]; `DELETE`: [`crate::Deleted`]. `{volume}` is a [`crate::VolumeRef`].
pub const VOLUME: &str = "/v1/volumes/{volume}";
/// `POST` of [`crate::attachments::AttachVolume`]: [`crate::attachments::Attachment`].
pub const VOLUME_ATTACH: &str = "/v1/volumes/{volume}/attach";
/// `POST` of [`crate::attachments::DetachVolume`]: [`crate::attachments::Detached`].
pub const VOLUME_DETACH: &str = "/v1/volumes/{volume}/detach";
/// `POST` of [`crate::snapshots::CreateSnapshot`]: [`crate::snapshots::Snapshot`].
pub const VOLUME_SNAPSHOTS: &str = "/v1/volumes/{volume}/snapshots";
/// `POST` without a body: [`crate::volumes::VolumeCheck`].
pub const VOLUME_CHECK: &str = "/v1/volumes/{volume}/check";
/// `POST` of [`crate::volumes::CloneVolume`]: [`crate::volumes::Volume`].
pub const VOLUME_CLONE: &str = "/v1/volumes/{volume}/clone";
/// `GET` with [`crate::snapshots::DiffSnapshots`]: [`crate::snapshots::SnapshotDiff`].
pub const VOLUME_DIFF: &str = "/v1/volumes/{volume}/diff";
/// `POST` of [`crate::snapshots::RestoreSnapshot`]: [`crate::snapshots::SnapshotRestored`].
pub const VOLUME_ROLLBACK: &str = "/v1/volumes/{volume}/rollback";
/// `GET` with [`crate::snapshots::ListSnapshots`]: [`crate::snapshots::SnapshotList`].
pub const SNAPSHOTS: &str = "/v1/snapshots";
/// `POST` of [`crate::snapshots::CreateGroupSnapshot`]: [`crate::snapshots::GroupSnapshot`].
pub const SNAPSHOT_GROUP: &str = "/v1/snapshots/group";
/// `GET`: [`crate::snapshots::Snapshot`]; `DELETE`: [`crate::Deleted`]. `{snapshot}` is a
/// [`crate::SnapshotRef`].
pub const SNAPSHOT: &str = "/v1/snapshots/{snapshot}";
/// `GET`: [`crate::credentials::CredentialList`]; `POST` of [`crate::credentials::CreateCredential`]:
/// [`crate::credentials::Credential`].
pub const CREDENTIALS: &str = "/v1/credentials";
/// `GET`: [`crate::credentials::Credential`]; `PATCH` of [`crate::credential_update::UpdateCredential`]: the
/// same; `DELETE`: [`crate::Deleted`]. `{credential}` is a [`crate::CredentialRef`].
pub const CREDENTIAL: &str = "/v1/credentials/{credential}";
/// `POST` without a body: [`crate::credentials::Credential`].
pub const CREDENTIAL_VALIDATE: &str = "/v1/credentials/{credential}/validate";
/// `POST` of [`crate::credentials::RekeyCredential`]: [`crate::credentials::CredentialRekeyed`].
pub const CREDENTIAL_REKEY: &str = "/v1/credentials/{credential}/rekey";
/// `POST` of [`crate::credentials::CredentialLimits`]: [`crate::credentials::Credential`].
pub const CREDENTIAL_LIMITS: &str = "/v1/credentials/{credential}/limits";
/// `GET` with [`crate::cloudsnaps::ListCloudsnaps`]: [`crate::cloudsnaps::CloudsnapList`].
pub const CLOUDSNAPS: &str = "/v1/cloudsnaps";
/// `POST` of [`crate::cloudsnaps::StartGroupBackup`]: [`crate::cloudsnaps::GroupBackupStarted`].
pub const CLOUDSNAP_BACKUP_GROUP: &str = "/v1/cloudsnaps/backup-group";
/// `POST` of [`crate::cloudsnaps::StartBackup`]: [`crate::cloudsnaps::BackupStarted`].
pub const CLOUDSNAP_BACKUP: &str = "/v1/cloudsnaps/backup";
/// `GET` with [`crate::cloudsnaps::InspectCloudsnap`]: [`crate::cloudsnaps::CloudsnapDetail`].
pub const CLOUDSNAP_INSPECT: &str = "/v1/cloudsnaps/inspect";
/// `POST` of [`crate::cloudsnaps::StartRestore`]: [`crate::cloudsnaps::RestoreStarted`].
pub const CLOUDSNAP_RESTORE: &str = "/v1/cloudsnaps/restore";
/// `POST` of [`crate::lazy::StartLazyRestore`]: [`crate::lazy::LazyRestored`].
pub const CLOUDSNAP_RESTORE_LAZY: &str = "/v1/cloudsnaps/restore-lazy";
/// `POST` of [`crate::lazy::StartInPlace`]: [`crate::cloudsnaps::RestoreStarted`].
pub const CLOUDSNAP_RESTORE_IN_PLACE: &str = "/v1/cloudsnaps/restore-in-place";
/// `POST` of [`crate::cloudsnaps::StartDelete`]: [`crate::tasks::TaskStarted`].
pub const CLOUDSNAP_DELETE: &str = "/v1/cloudsnaps/delete";
/// `POST` of [`crate::cloudsnaps::MarkCloudsnap`]: [`crate::cloudsnaps::CloudsnapMark`].
pub const CLOUDSNAP_MARK: &str = "/v1/cloudsnaps/mark";
/// `POST` of [`crate::cloudsnaps::StartVerify`]: [`crate::tasks::TaskStarted`].
pub const CLOUDSNAP_VERIFY: &str = "/v1/cloudsnaps/verify";
/// `POST` of [`crate::cloudsnaps::CollectGarbage`]: [`crate::cloudsnaps::GarbageCollected`].
pub const CLOUDSNAP_GC: &str = "/v1/cloudsnaps/gc";
/// `GET` with [`crate::browse::ListFiles`]: [`crate::browse::FileList`].
pub const CLOUDSNAP_FILES: &str = "/v1/cloudsnaps/files";
/// `GET` with [`crate::browse::ReadFile`]: the bytes.
pub const CLOUDSNAP_FILE: &str = "/v1/cloudsnaps/file";
/// `GET` with [`crate::browse::ListFileRuns`]: [`crate::browse::FileRuns`].
pub const CLOUDSNAP_FILE_RUNS: &str = "/v1/cloudsnaps/file/runs";
/// `GET`: [`crate::browse::BrowseMountList`]; `POST` of [`crate::browse::MountBrowse`]:
/// [`crate::browse::BrowseMount`].
pub const BROWSE_MOUNTS: &str = "/v1/browse/mounts";
/// `POST` of [`crate::browse::HandMount`], with a descriptor: [`crate::browse::BrowseMount`].
pub const BROWSE_HANDED: &str = "/v1/browse/handed";
/// `POST` of [`crate::browse::UnmountBrowse`]: [`crate::browse::Unmounted`].
pub const BROWSE_UNMOUNT: &str = "/v1/browse/unmount";
/// `GET` with [`crate::tasks::ListTasks`]: [`crate::tasks::TaskList`].
pub const TASKS: &str = "/v1/tasks";
/// `GET` with [`crate::tasks::WaitTask`]: [`crate::tasks::Task`]. `{task}` is a UUID.
pub const TASK: &str = "/v1/tasks/{task}";
/// `POST` of [`crate::tasks::StopTask`]: [`crate::tasks::Task`].
pub const TASK_STOP: &str = "/v1/tasks/{task}/stop";
/// `POST` without a body: [`crate::tasks::Task`].
pub const TASK_RESUME: &str = "/v1/tasks/{task}/resume";
/// `POST` of [`crate::tasks::TaskLimits`]: [`crate::tasks::Task`].
pub const TASK_LIMIT: &str = "/v1/tasks/{task}/limit";

/// `GET`: [`crate::schedules::ScheduleList`]; `POST` of [`crate::schedules::CreateSchedule`]:
/// [`crate::schedules::Schedule`].
pub const SCHEDULES: &str = "/v1/schedules";
/// `GET`: [`crate::schedules::Schedule`]; `PATCH` of [`crate::schedules::UpdateSchedule`]: the same;
/// `DELETE`: [`crate::Deleted`]. `{schedule}` is a UUID.
pub const SCHEDULE: &str = "/v1/schedules/{schedule}";
/// `POST` without a body: [`crate::schedules::RunList`].
pub const SCHEDULE_RUN: &str = "/v1/schedules/{schedule}/run";
/// `GET`: [`crate::schedules::RetentionPlan`].
pub const SCHEDULE_RETENTION: &str = "/v1/schedules/{schedule}/retention";
/// `GET` with [`crate::schedules::ListRuns`]: [`crate::schedules::RunList`].
pub const SCHEDULE_HISTORY: &str = "/v1/schedule-runs";
/// `GET`: [`crate::schedules::PolicyList`]; `POST` of [`crate::schedules::Policy`]: the same.
pub const POLICIES: &str = "/v1/sched-policies";
/// `GET`: [`crate::schedules::Policy`]; `PATCH` of [`crate::schedules::UpdatePolicy`]: the same; `DELETE`:
/// [`crate::Deleted`]. `{policy}` is its name.
pub const POLICY: &str = "/v1/sched-policies/{policy}";

/// `GET`: [`crate::rules::RuleList`]; `POST` of [`crate::rules::CreateRule`]: [`crate::rules::HookRule`].
pub const RULES: &str = "/v1/rules";
/// `GET`: [`crate::rules::HookRule`]; `PATCH` of [`crate::rules::UpdateRule`]: the same; `DELETE`:
/// [`crate::Deleted`]. `{rule}` is its name.
pub const RULE: &str = "/v1/rules/{rule}";
/// `POST` of [`crate::rules::RuleTarget`]: [`crate::rules::HookRule`].
pub const RULE_ASSIGN: &str = "/v1/rules/{rule}/assign";
/// `POST` of [`crate::rules::RuleTarget`]: [`crate::rules::HookRule`].
pub const RULE_UNASSIGN: &str = "/v1/rules/{rule}/unassign";

fn fill(pattern: &str, placeholder: &str, value: impl Display) -> String {
    pattern.replace(placeholder, &encode(value.to_string().as_bytes(), b"@"))
}

/// Returns the path of a rule.
pub fn rule(rule: &crate::RuleName) -> String {
    fill(RULE, "{rule}", rule)
}

/// Returns the path for assigning a rule.
pub fn rule_assign(rule: &crate::RuleName) -> String {
    fill(RULE_ASSIGN, "{rule}", rule)
}

/// Returns the path for unassigning a rule.
pub fn rule_unassign(rule: &crate::RuleName) -> String {
    fill(RULE_UNASSIGN, "{rule}", rule)
}

/// Returns the path of a volume.
pub fn volume(volume: &crate::VolumeRef) -> String {
    fill(VOLUME, "{volume}", volume)
}

/// Returns the path for attaching a volume.
pub fn volume_attach(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_ATTACH, "{volume}", volume)
}

/// Returns the path for detaching a volume.
pub fn volume_detach(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_DETACH, "{volume}", volume)
}

/// Returns the path of a volume's snapshots.
pub fn volume_snapshots(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_SNAPSHOTS, "{volume}", volume)
}

/// Returns the path for checking a volume.
pub fn volume_check(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_CHECK, "{volume}", volume)
}

/// Returns the path for cloning a volume.
pub fn volume_clone(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_CLONE, "{volume}", volume)
}

/// Returns the path of a volume's differences.
pub fn volume_diff(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_DIFF, "{volume}", volume)
}

/// Returns the path for rolling a volume back.
pub fn volume_rollback(volume: &crate::VolumeRef) -> String {
    fill(VOLUME_ROLLBACK, "{volume}", volume)
}

/// Returns the path of a snapshot.
pub fn snapshot(snapshot: &crate::SnapshotRef) -> String {
    fill(SNAPSHOT, "{snapshot}", snapshot)
}

/// Returns the path of a credential.
pub fn credential(credential: &crate::CredentialRef) -> String {
    fill(CREDENTIAL, "{credential}", credential)
}

/// Returns the path for validating a credential.
pub fn credential_validate(credential: &crate::CredentialRef) -> String {
    fill(CREDENTIAL_VALIDATE, "{credential}", credential)
}

/// Returns the path for changing a credential's keys.
pub fn credential_rekey(credential: &crate::CredentialRef) -> String {
    fill(CREDENTIAL_REKEY, "{credential}", credential)
}

/// Returns the path of a credential's bandwidth limits.
pub fn credential_limits(credential: &crate::CredentialRef) -> String {
    fill(CREDENTIAL_LIMITS, "{credential}", credential)
}

/// Returns the path of a task.
pub fn task(task: Uuid) -> String {
    fill(TASK, "{task}", task)
}

/// Returns the path for stopping a task.
pub fn task_stop(task: Uuid) -> String {
    fill(TASK_STOP, "{task}", task)
}

/// Returns the path for resuming a task.
pub fn task_resume(task: Uuid) -> String {
    fill(TASK_RESUME, "{task}", task)
}

/// Returns the path of a task's bandwidth limits.
pub fn task_limit(task: Uuid) -> String {
    fill(TASK_LIMIT, "{task}", task)
}

/// Returns the path of a schedule.
pub fn schedule(schedule: Uuid) -> String {
    fill(SCHEDULE, "{schedule}", schedule)
}

/// Returns the path for running a schedule.
pub fn schedule_run(schedule: Uuid) -> String {
    fill(SCHEDULE_RUN, "{schedule}", schedule)
}

/// Returns the path of a schedule's retention plan.
pub fn schedule_retention(schedule: Uuid) -> String {
    fill(SCHEDULE_RETENTION, "{schedule}", schedule)
}

/// Returns the path of a policy.
pub fn policy(name: &crate::schedules::PolicyName) -> String {
    fill(POLICY, "{policy}", name)
}
