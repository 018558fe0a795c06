//! Table of all operations of the control API, with the role that the daemon requires.

use crate::{
    Deleted, ErrorCode,
    activity::Activity,
    attachments::{AttachVolume, Attachment, DetachVolume, Detached},
    browse::{
        BrowseMount, BrowseMountList, FileList, FileRuns, HandMount, ListFileRuns, ListFiles, MountBrowse,
        ReadFile, UnmountBrowse, Unmounted,
    },
    cloudsnaps::{
        BackupStarted, CloudsnapDetail, CloudsnapList, CloudsnapMark, CollectGarbage, GarbageCollected,
        GroupBackupStarted, InspectCloudsnap, ListCloudsnaps, MarkCloudsnap, RestoreStarted, StartBackup,
        StartDelete, StartGroupBackup, StartRestore, StartVerify,
    },
    credential_update::UpdateCredential,
    credentials::{
        CreateCredential, Credential, CredentialLimits, CredentialList, CredentialRekeyed, RekeyCredential,
    },
    events::{EventList, ListEvents},
    lazy::{LazyRestored, StartInPlace, StartLazyRestore},
    paths,
    roles::Role,
    rules::{CreateRule, HookRule, RuleList, RuleTarget, UpdateRule},
    schedules::{
        CreateSchedule, ListRuns, Policy, PolicyList, RetentionPlan, RunList, Schedule, ScheduleList,
        UpdatePolicy, UpdateSchedule,
    },
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, DeleteSnapshot, DiffSnapshots, GroupSnapshot, ListSnapshots,
        MarkSnapshot, RestoreSnapshot, Snapshot, SnapshotDiff, SnapshotList, SnapshotRestored,
    },
    status::Status,
    tasks::{ListTasks, StopTask, Task, TaskLimits, TaskList, TaskStarted, WaitTask},
    volumes::{
        CloneVolume, CreateVolume, DeleteVolume, ListVolumes, UpdateVolume, Volume, VolumeCheck, VolumeList,
    },
};
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// HTTP method.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates or acts.
    Post,
    /// Changes.
    Patch,
    /// Deletes.
    Delete,
}

impl Method {
    /// Returns the method as written in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Generator of a type's schema.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Body of a successful reply.
#[derive(Clone, Copy, Debug)]
pub enum ReplyBody {
    /// JSON.
    Json(SchemaOf),
    /// Prometheus text.
    Metrics,
    /// A word with a line end.
    Text,
    /// Raw bytes.
    Bytes,
}

/// Operation of the control API.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Method.
    pub method: Method,
    /// Route pattern, one of [`paths`].
    pub path: &'static str,
    /// Minimum role.
    pub role: Role,
    /// Short description.
    pub summary: &'static str,
    /// Query type.
    pub query: Option<SchemaOf>,
    /// Body type.
    pub body: Option<SchemaOf>,
    /// Reply type.
    pub reply: ReplyBody,
    /// Specific errors, beside those of every operation.
    pub errors: &'static [&'static [ErrorCode]],
}

impl Operation {
    const fn of(method: Method, role: Role, path: &'static str, summary: &'static str) -> Self {
        Self { method, path, role, summary, query: None, body: None, reply: ReplyBody::Text, errors: &[] }
    }

    const fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    const fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    const fn reply<T: JsonSchema>(mut self) -> Self {
        self.reply = ReplyBody::Json(SchemaGenerator::subschema_for::<T>);
        self
    }

    const fn replies(mut self, body: ReplyBody) -> Self {
        self.reply = body;
        self
    }

    const fn errors(mut self, errors: &'static [&'static [ErrorCode]]) -> Self {
        self.errors = errors;
        self
    }
}

const fn get(role: Role, path: &'static str, summary: &'static str) -> Operation {
    Operation::of(Method::Get, role, path, summary)
}

const fn post(role: Role, path: &'static str, summary: &'static str) -> Operation {
    Operation::of(Method::Post, role, path, summary)
}

const fn patch(role: Role, path: &'static str, summary: &'static str) -> Operation {
    Operation::of(Method::Patch, role, path, summary)
}

const fn delete(role: Role, path: &'static str, summary: &'static str) -> Operation {
    Operation::of(Method::Delete, role, path, summary)
}

use Role::{Admin, Operator, ReadOnly};

/// Errors of every operation.
pub const ANY: &[ErrorCode] =
    &[ErrorCode::InvalidRequest, ErrorCode::Forbidden, ErrorCode::ShuttingDown, ErrorCode::Internal];

// Common errors of related operations.
const A_VOLUME: &[ErrorCode] = &[ErrorCode::VolumeNotFound];
const AN_OPEN_VOLUME: &[ErrorCode] =
    &[ErrorCode::VolumeNotFound, ErrorCode::VolumeNotReady, ErrorCode::VolumeFailed];
const A_FREE_VOLUME: &[ErrorCode] = &[ErrorCode::VolumeInUse, ErrorCode::VolumeAttached];
const A_NEW_VOLUME: &[ErrorCode] = &[ErrorCode::VolumeExists, ErrorCode::NoSpace];
const A_DEVICE: &[ErrorCode] = &[
    ErrorCode::VolumeAttached,
    ErrorCode::VolumeNotAttached,
    ErrorCode::DeviceInUse,
    ErrorCode::DeviceFailed,
    ErrorCode::NbdModuleMissing,
    ErrorCode::NotPermitted,
];
const A_SNAPSHOT: &[ErrorCode] = &[ErrorCode::SnapshotNotFound, ErrorCode::VolumeNotFound];
const A_FREEZE: &[ErrorCode] =
    &[ErrorCode::SnapshotExists, ErrorCode::QuiesceFailed, ErrorCode::NotPermitted, ErrorCode::NoSpace];
const A_CREDENTIAL: &[ErrorCode] = &[ErrorCode::CredentialNotFound];
const A_STORE: &[ErrorCode] = &[
    ErrorCode::CredentialRequired,
    ErrorCode::CredentialNotFound,
    ErrorCode::SecretUnavailable,
    ErrorCode::SecretUnreachable,
    ErrorCode::NotPermitted,
    ErrorCode::StoreUnreachable,
    ErrorCode::StoreUnauthorized,
    ErrorCode::BucketMissing,
    ErrorCode::StoreFull,
    ErrorCode::StoreTimeout,
    ErrorCode::StoreFailed,
    ErrorCode::WrongPassphrase,
    ErrorCode::PassphraseRequired,
    ErrorCode::RepositoryNotEncrypted,
    ErrorCode::CloudsnapDamaged,
];
const A_CLOUDSNAP: &[ErrorCode] = &[ErrorCode::CloudsnapNotFound, ErrorCode::CloudsnapNotDone];
const FILES: &[ErrorCode] = &[ErrorCode::FileNotFound, ErrorCode::NoFiles];
const A_SCHEDULE: &[ErrorCode] = &[ErrorCode::ScheduleNotFound];
const A_POLICY: &[ErrorCode] = &[ErrorCode::PolicyNotFound];
const A_RULE: &[ErrorCode] = &[ErrorCode::RuleNotFound];
const A_TASK: &[ErrorCode] = &[ErrorCode::TaskNotFound];

/// All operations.
pub const OPERATIONS: &[Operation] = &[
    get(ReadOnly, paths::STATUS, "What the daemon says of itself").reply::<Status>(),
    get(ReadOnly, paths::OPENAPI, "This description").reply::<serde_json::Map<String, serde_json::Value>>(),
    get(ReadOnly, paths::EVENTS, "What happened that people should know of")
        .query::<ListEvents>()
        .reply::<EventList>(),
    get(ReadOnly, paths::ACTIVITY, "What volumes and tasks do at this moment").reply::<Activity>(),
    get(ReadOnly, paths::METRICS, "Metrics in Prometheus' text format").replies(ReplyBody::Metrics),
    get(ReadOnly, paths::HEALTHZ, "Whether the daemon answers"),
    get(ReadOnly, paths::READYZ, "Whether the daemon does its work"),
    get(ReadOnly, paths::VOLUMES, "List volumes").query::<ListVolumes>().reply::<VolumeList>(),
    post(Operator, paths::VOLUMES, "Make a volume")
        .body::<CreateVolume>()
        .reply::<Volume>()
        .errors(&[A_NEW_VOLUME]),
    get(ReadOnly, paths::VOLUME, "One volume").reply::<Volume>().errors(&[A_VOLUME]),
    patch(Operator, paths::VOLUME, "Let a volume grow; the rest of it is for admins")
        .body::<UpdateVolume>()
        .reply::<Volume>()
        .errors(&[AN_OPEN_VOLUME, A_FREE_VOLUME, &[ErrorCode::NoSpace]]),
    delete(Admin, paths::VOLUME, "Delete a volume and its local snapshots")
        .query::<DeleteVolume>()
        .reply::<Deleted>()
        .errors(&[
            A_VOLUME,
            A_FREE_VOLUME,
            &[ErrorCode::SnapshotInUse, ErrorCode::SnapshotPinned, ErrorCode::VolumeNotReady],
        ]),
    post(Operator, paths::VOLUME_ATTACH, "Make a volume a device of the kernel")
        .body::<AttachVolume>()
        .reply::<Attachment>()
        .errors(&[AN_OPEN_VOLUME, A_DEVICE]),
    post(Operator, paths::VOLUME_DETACH, "Take a volume's device away; by force is for admins")
        .body::<DetachVolume>()
        .reply::<Detached>()
        .errors(&[A_VOLUME, A_DEVICE]),
    post(Operator, paths::VOLUME_SNAPSHOTS, "Freeze a volume")
        .body::<CreateSnapshot>()
        .reply::<Snapshot>()
        .errors(&[AN_OPEN_VOLUME, A_FREEZE, A_RULE]),
    post(Operator, paths::VOLUME_CHECK, "Check everything of a volume but its data")
        .reply::<VolumeCheck>()
        .errors(&[AN_OPEN_VOLUME]),
    post(Operator, paths::VOLUME_CLONE, "Make a volume of another one's snapshot")
        .body::<CloneVolume>()
        .reply::<Volume>()
        .errors(&[AN_OPEN_VOLUME, A_NEW_VOLUME, A_SNAPSHOT]),
    get(ReadOnly, paths::VOLUME_DIFF, "What changed from a snapshot to another one, or to now")
        .query::<DiffSnapshots>()
        .reply::<SnapshotDiff>()
        .errors(&[AN_OPEN_VOLUME, A_SNAPSHOT]),
    post(Admin, paths::VOLUME_ROLLBACK, "Roll a volume back to a snapshot")
        .body::<RestoreSnapshot>()
        .reply::<SnapshotRestored>()
        .errors(&[AN_OPEN_VOLUME, A_FREE_VOLUME, A_SNAPSHOT, &[ErrorCode::NoSpace]]),
    get(ReadOnly, paths::SNAPSHOTS, "List local snapshots")
        .query::<ListSnapshots>()
        .reply::<SnapshotList>()
        .errors(&[A_VOLUME]),
    post(Operator, paths::SNAPSHOT_GROUP, "Freeze several volumes at one instant")
        .body::<CreateGroupSnapshot>()
        .reply::<GroupSnapshot>()
        .errors(&[AN_OPEN_VOLUME, A_FREEZE, A_RULE]),
    get(ReadOnly, paths::SNAPSHOT, "One local snapshot").reply::<Snapshot>().errors(&[A_SNAPSHOT]),
    patch(Operator, paths::SNAPSHOT, "Pin a local snapshot; to unpin it is for admins")
        .body::<MarkSnapshot>()
        .reply::<Snapshot>()
        .errors(&[A_SNAPSHOT]),
    delete(Admin, paths::SNAPSHOT, "Delete a local snapshot")
        .query::<DeleteSnapshot>()
        .reply::<Deleted>()
        .errors(&[
            A_SNAPSHOT,
            &[
                ErrorCode::SnapshotInUse,
                ErrorCode::SnapshotPinned,
                ErrorCode::VolumeNotReady,
                ErrorCode::VolumeFailed,
            ],
        ]),
    get(ReadOnly, paths::CREDENTIALS, "List credentials, without their secrets").reply::<CredentialList>(),
    post(Admin, paths::CREDENTIALS, "Prove that a store works, and keep the way to it")
        .body::<CreateCredential>()
        .reply::<Credential>()
        .errors(&[A_STORE, &[ErrorCode::CredentialExists, ErrorCode::NoSpace]]),
    get(ReadOnly, paths::CREDENTIAL, "One credential, without its secrets")
        .reply::<Credential>()
        .errors(&[A_CREDENTIAL]),
    patch(Admin, paths::CREDENTIAL, "Change what opens a store, once it is proven; never where it is")
        .body::<UpdateCredential>()
        .reply::<Credential>()
        .errors(&[A_STORE, &[ErrorCode::CredentialInUse]]),
    delete(Admin, paths::CREDENTIAL, "Forget a credential")
        .reply::<Deleted>()
        .errors(&[A_CREDENTIAL, &[ErrorCode::CredentialInUse]]),
    post(Operator, paths::CREDENTIAL_VALIDATE, "Prove again that a store works")
        .reply::<Credential>()
        .errors(&[A_STORE]),
    post(Admin, paths::CREDENTIAL_REKEY, "Change the passphrase or the data key")
        .body::<RekeyCredential>()
        .reply::<CredentialRekeyed>()
        .errors(&[A_STORE, &[ErrorCode::CredentialInUse]]),
    post(Admin, paths::CREDENTIAL_LIMITS, "Change how much may go to and from a store in a second")
        .body::<CredentialLimits>()
        .reply::<Credential>()
        .errors(&[A_CREDENTIAL]),
    // These send requests to other systems.
    get(ReadOnly, paths::CLOUDSNAPS, "List cloud snapshots")
        .query::<ListCloudsnaps>()
        .reply::<CloudsnapList>()
        .errors(&[A_STORE]),
    post(
        Operator,
        paths::CLOUDSNAP_BACKUP,
        "Back a volume up; with an expiry date or a bandwidth limit it is for admins",
    )
    .body::<StartBackup>()
    .reply::<BackupStarted>()
    .errors(&[AN_OPEN_VOLUME, A_STORE, A_RULE, &[ErrorCode::VolumeInUse, ErrorCode::NoSpace]]),
    post(
        Operator,
        paths::CLOUDSNAP_BACKUP_GROUP,
        "Back several volumes up from one instant; with an expiry date or a bandwidth limit it is for admins",
    )
    .body::<StartGroupBackup>()
    .reply::<GroupBackupStarted>()
    .errors(&[AN_OPEN_VOLUME, A_STORE, A_RULE, &[ErrorCode::VolumeInUse, ErrorCode::NoSpace]]),
    get(ReadOnly, paths::CLOUDSNAP_INSPECT, "One cloud snapshot in full")
        .query::<InspectCloudsnap>()
        .reply::<CloudsnapDetail>()
        .errors(&[A_STORE, A_CLOUDSNAP]),
    post(
        Operator,
        paths::CLOUDSNAP_RESTORE,
        "Restore a cloud snapshot into a new volume; with a bandwidth limit it is for admins",
    )
    .body::<StartRestore>()
    .reply::<RestoreStarted>()
    .errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[ErrorCode::CloudsnapInUse]]),
    post(Operator, paths::CLOUDSNAP_RESTORE_LAZY, "Make a volume that fetches what is read")
        .body::<StartLazyRestore>()
        .reply::<LazyRestored>()
        .errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[ErrorCode::CloudsnapInUse]]),
    post(Admin, paths::CLOUDSNAP_RESTORE_IN_PLACE, "Roll a volume back to a cloud snapshot")
        .body::<StartInPlace>()
        .reply::<RestoreStarted>()
        .errors(&[
            A_STORE,
            A_CLOUDSNAP,
            AN_OPEN_VOLUME,
            A_FREE_VOLUME,
            &[ErrorCode::CloudsnapInUse, ErrorCode::NoSpace],
        ]),
    post(Admin, paths::CLOUDSNAP_DELETE, "Delete a cloud snapshot")
        .body::<StartDelete>()
        .reply::<TaskStarted>()
        .errors(&[A_STORE, A_CLOUDSNAP, &[ErrorCode::CloudsnapInUse, ErrorCode::CloudsnapPinned]]),
    post(
        Operator,
        paths::CLOUDSNAP_MARK,
        "Pin a cloud snapshot; to unpin it, and to let it expire, is for admins",
    )
    .body::<MarkCloudsnap>()
    .reply::<CloudsnapMark>()
    .errors(&[A_STORE, A_CLOUDSNAP, &[ErrorCode::CloudsnapInUse]]),
    post(Operator, paths::CLOUDSNAP_VERIFY, "Verify a cloud snapshot")
        .body::<StartVerify>()
        .reply::<TaskStarted>()
        .errors(&[A_STORE, A_CLOUDSNAP]),
    post(Admin, paths::CLOUDSNAP_GC, "Delete what abandoned backups left in a store")
        .body::<CollectGarbage>()
        .reply::<GarbageCollected>()
        .errors(&[A_STORE, &[ErrorCode::CredentialInUse]]),
    get(Operator, paths::CLOUDSNAP_FILES, "List files inside a cloud snapshot")
        .query::<ListFiles>()
        .reply::<FileList>()
        .errors(&[A_STORE, A_CLOUDSNAP, FILES]),
    get(Operator, paths::CLOUDSNAP_FILE, "A piece of a file inside a cloud snapshot")
        .query::<ReadFile>()
        .replies(ReplyBody::Bytes)
        .errors(&[A_STORE, A_CLOUDSNAP, FILES]),
    get(Operator, paths::CLOUDSNAP_FILE_RUNS, "Where there is data in a file inside a cloud snapshot")
        .query::<ListFileRuns>()
        .reply::<FileRuns>()
        .errors(&[A_STORE, A_CLOUDSNAP, FILES]),
    get(ReadOnly, paths::BROWSE_MOUNTS, "List mounts of snapshots").reply::<BrowseMountList>(),
    post(Admin, paths::BROWSE_MOUNTS, "Mount snapshots as files on the daemon's host")
        .body::<MountBrowse>()
        .reply::<BrowseMount>()
        .errors(&[A_STORE, &[ErrorCode::DeviceInUse]]),
    post(
        Operator,
        paths::BROWSE_HANDED,
        "Serve a mount that the caller made, whose descriptor comes with the request; over unix sockets only",
    )
    .body::<HandMount>()
    .reply::<BrowseMount>()
    .errors(&[A_STORE]),
    post(Admin, paths::BROWSE_UNMOUNT, "Take a mount of snapshots away")
        .body::<UnmountBrowse>()
        .reply::<Unmounted>()
        .errors(&[&[ErrorCode::MountNotFound, ErrorCode::DeviceInUse, ErrorCode::NotPermitted]]),
    get(ReadOnly, paths::SCHEDULES, "List schedules").reply::<ScheduleList>(),
    post(Admin, paths::SCHEDULES, "Make a schedule").body::<CreateSchedule>().reply::<Schedule>().errors(&[
        A_VOLUME,
        A_POLICY,
        A_RULE,
        A_CREDENTIAL,
        &[ErrorCode::CredentialRequired, ErrorCode::ScheduleExists],
    ]),
    get(ReadOnly, paths::SCHEDULE, "One schedule").reply::<Schedule>().errors(&[A_SCHEDULE]),
    patch(Admin, paths::SCHEDULE, "Change, pause or resume a schedule")
        .body::<UpdateSchedule>()
        .reply::<Schedule>()
        .errors(&[A_SCHEDULE, A_POLICY, A_RULE]),
    delete(Admin, paths::SCHEDULE, "Delete a schedule").reply::<Deleted>().errors(&[A_SCHEDULE]),
    // Its retention can delete older backups.
    post(Admin, paths::SCHEDULE_RUN, "Run a schedule now").reply::<RunList>().errors(&[A_SCHEDULE]),
    get(ReadOnly, paths::SCHEDULE_RETENTION, "What a schedule's retention keeps and deletes")
        .reply::<RetentionPlan>()
        .errors(&[A_SCHEDULE]),
    get(ReadOnly, paths::SCHEDULE_HISTORY, "List the runs of schedules")
        .query::<ListRuns>()
        .reply::<RunList>()
        .errors(&[A_VOLUME]),
    get(ReadOnly, paths::POLICIES, "List schedule policies").reply::<PolicyList>(),
    post(Admin, paths::POLICIES, "Make a schedule policy")
        .body::<Policy>()
        .reply::<Policy>()
        .errors(&[&[ErrorCode::PolicyExists]]),
    get(ReadOnly, paths::POLICY, "One schedule policy").reply::<Policy>().errors(&[A_POLICY]),
    patch(Admin, paths::POLICY, "Change a schedule policy")
        .body::<UpdatePolicy>()
        .reply::<Policy>()
        .errors(&[A_POLICY]),
    delete(Admin, paths::POLICY, "Delete a schedule policy")
        .reply::<Deleted>()
        .errors(&[A_POLICY, &[ErrorCode::PolicyInUse]]),
    // Commands can contain secrets.
    get(Admin, paths::RULES, "List rules").reply::<RuleList>(),
    post(Admin, paths::RULES, "Make a rule: what is done around freezes")
        .body::<CreateRule>()
        .reply::<HookRule>()
        .errors(&[&[ErrorCode::RuleExists]]),
    get(Admin, paths::RULE, "One rule").reply::<HookRule>().errors(&[A_RULE]),
    patch(Admin, paths::RULE, "Change a rule").body::<UpdateRule>().reply::<HookRule>().errors(&[A_RULE]),
    delete(Admin, paths::RULE, "Delete a rule").reply::<Deleted>().errors(&[A_RULE, &[ErrorCode::RuleInUse]]),
    post(Admin, paths::RULE_ASSIGN, "Give a rule to a volume or a group")
        .body::<RuleTarget>()
        .reply::<HookRule>()
        .errors(&[A_RULE, A_VOLUME]),
    post(Admin, paths::RULE_UNASSIGN, "Relieve a volume or a group of a rule")
        .body::<RuleTarget>()
        .reply::<HookRule>()
        .errors(&[A_RULE, A_VOLUME]),
    get(ReadOnly, paths::TASKS, "List tasks").query::<ListTasks>().reply::<TaskList>(),
    get(ReadOnly, paths::TASK, "One task, now or when it has changed")
        .query::<WaitTask>()
        .reply::<Task>()
        .errors(&[A_TASK]),
    post(Operator, paths::TASK_STOP, "Stop a task of the caller; others are for admins")
        .body::<StopTask>()
        .reply::<Task>()
        .errors(&[A_TASK, &[ErrorCode::TaskEnded]]),
    // A slow task occupies a slot that others wait for.
    post(Admin, paths::TASK_LIMIT, "Change how much a task may move in a second")
        .body::<TaskLimits>()
        .reply::<Task>()
        .errors(&[A_TASK, &[ErrorCode::TaskEnded]]),
    post(Operator, paths::TASK_RESUME, "Take a task up again; what deletes or goes back is for admins")
        .reply::<Task>()
        .errors(&[
            A_TASK,
            A_STORE,
            &[
                ErrorCode::TaskEnded,
                ErrorCode::VolumeInUse,
                ErrorCode::VolumeNotFound,
                ErrorCode::CloudsnapInUse,
            ],
        ]),
];

/// Returns the minimum role of a method at a route pattern; `None` if there is no such operation.
#[must_use]
pub fn role_for(method: &str, path: &str) -> Option<Role> {
    // HEAD needs the role of GET.
    let method = if method == "HEAD" { "GET" } else { method };
    OPERATIONS.iter().find(|one| one.method.as_str() == method && one.path == path).map(|one| one.role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Method::Get;
    use std::collections::HashSet;

    #[test]
    fn operations_of_operators_are_reviewed_for_deletions() {
        // Operators must not delete data, directly or indirectly. A new operation fails here until it has
        // been reviewed for that; if only some of its requests delete, the handler refuses those
        // (scenarios/roles.rs in the daemon).
        let deletes_nothing = [
            paths::BROWSE_HANDED,
            paths::CREDENTIAL_VALIDATE,
            paths::CLOUDSNAP_RESTORE,
            paths::CLOUDSNAP_RESTORE_LAZY,
            paths::CLOUDSNAP_VERIFY,
            paths::SNAPSHOT_GROUP,
            paths::TASK_RESUME,
            paths::VOLUMES,
            paths::VOLUME_ATTACH,
            paths::VOLUME_CHECK,
            paths::VOLUME_CLONE,
            paths::VOLUME_SNAPSHOTS,
        ];
        let refused_by_its_handler = [
            // An expiry date; kept backups of others.
            paths::CLOUDSNAP_BACKUP,
            paths::CLOUDSNAP_BACKUP_GROUP,
            paths::CLOUDSNAP_MARK,
            // Unpinning.
            paths::SNAPSHOT,
            // Tasks of others.
            paths::TASK_STOP,
            // Everything except growth; force.
            paths::VOLUME,
            paths::VOLUME_DETACH,
        ];
        let reviewed: HashSet<_> = deletes_nothing.into_iter().chain(refused_by_its_handler).collect();
        let changes = OPERATIONS.iter().filter(|one| one.role < Admin && one.method != Get);
        let open: HashSet<_> = changes.clone().map(|one| one.path).collect();
        assert_eq!(open, reviewed);
        assert!(changes.clone().all(|one| one.method != Method::Delete));
    }

    #[test]
    fn operations_are_unique_and_read_only_role_reads() {
        let mut seen = HashSet::new();
        for one in OPERATIONS {
            assert!(seen.insert((one.method, one.path)), "{one:?} is there twice");
            assert!(!one.summary.is_empty() && !one.summary.ends_with('.'), "{one:?}");
            assert!(one.role > ReadOnly || one.method == Get, "{one:?}");
        }
        assert_eq!(role_for("DELETE", paths::VOLUME), Some(Admin));
        assert_eq!(role_for("HEAD", paths::STATUS), Some(ReadOnly));
        assert_eq!(role_for("PUT", paths::VOLUME), None);
        // Content of volumes is for roles that may restore it.
        assert_eq!(role_for("GET", paths::CLOUDSNAP_FILE), Some(Operator));
    }
}
