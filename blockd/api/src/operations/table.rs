//! Table of the operations of the control API.
//!
//! An operation stands here once: router, client, OpenAPI document and required role follow from its row,
//! which reads `"summary" NAME: (path parameter, query or body) -> reply = method(role, pattern)`. A new row
//! needs a handler of its types in `blockd/daemon/src/http`.

use super::{Operation, OperationInfo};
use crate::{
    CredentialRef, Deleted, ErrorCode, RuleName, SnapshotRef, VolumeRef,
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
    roles::Role,
    rules::{CreateRule, HookRule, RuleList, RuleTarget, UpdateRule},
    schedules::{
        CreateSchedule, ListRuns, Policy, PolicyList, PolicyName, RetentionPlan, RunList, Schedule,
        ScheduleList, UpdatePolicy, UpdateSchedule,
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
use bytes::Bytes;
use std::time::Duration;
use uuid::Uuid;

use ErrorCode::{
    BucketMissing, CloudsnapDamaged, CloudsnapInUse, CloudsnapNotDone, CloudsnapNotFound, CloudsnapPinned,
    CredentialExists, CredentialInUse, CredentialNotFound, CredentialRequired, DeviceFailed, DeviceInUse,
    FileNotFound, MountNotFound, NbdModuleMissing, NoFiles, NoSpace, NotPermitted, PassphraseRequired,
    PolicyExists, PolicyInUse, PolicyNotFound, QuiesceFailed, RepositoryNotEncrypted, RuleExists, RuleInUse,
    RuleNotFound, ScheduleExists, ScheduleNotFound, SecretUnavailable, SecretUnreachable, SnapshotExists,
    SnapshotInUse, SnapshotNotFound, SnapshotPinned, StoreFailed, StoreFull, StoreTimeout, StoreUnauthorized,
    StoreUnreachable, TaskEnded, TaskNotFound, VolumeAttached, VolumeExists, VolumeFailed, VolumeInUse,
    VolumeNotAttached, VolumeNotFound, VolumeNotReady, WrongPassphrase,
};
use Role::{Admin, Operator, ReadOnly};

type JsonObject = serde_json::Map<String, serde_json::Value>;

/// Timeout of a freeze with its hooks.
const FREEZE: Duration = Duration::from_secs(1800);
/// Timeout of a detach, during which the kernel writes dirty pages back.
const DETACH: Duration = Duration::from_secs(600);
/// Timeout of a rollback, during which the daemon copies changed extents.
const ROLLBACK: Duration = Duration::from_secs(24 * 3600);
/// Timeout of a call that sends store requests, with their retries.
const STORE_CALL: Duration = Duration::from_secs(900);

// Common errors of related operations.
const A_VOLUME: &[ErrorCode] = &[VolumeNotFound];
const AN_OPEN_VOLUME: &[ErrorCode] = &[VolumeNotFound, VolumeNotReady, VolumeFailed];
const A_FREE_VOLUME: &[ErrorCode] = &[VolumeInUse, VolumeAttached];
const A_NEW_VOLUME: &[ErrorCode] = &[VolumeExists, NoSpace];
const A_DEVICE: &[ErrorCode] =
    &[VolumeAttached, VolumeNotAttached, DeviceInUse, DeviceFailed, NbdModuleMissing, NotPermitted];
const A_SNAPSHOT: &[ErrorCode] = &[SnapshotNotFound, VolumeNotFound];
const A_FREEZE: &[ErrorCode] = &[SnapshotExists, QuiesceFailed, NotPermitted, NoSpace];
const A_CREDENTIAL: &[ErrorCode] = &[CredentialNotFound];
const A_STORE: &[ErrorCode] = &[
    CredentialRequired,
    CredentialNotFound,
    SecretUnavailable,
    SecretUnreachable,
    NotPermitted,
    StoreUnreachable,
    StoreUnauthorized,
    BucketMissing,
    StoreFull,
    StoreTimeout,
    StoreFailed,
    WrongPassphrase,
    PassphraseRequired,
    RepositoryNotEncrypted,
    CloudsnapDamaged,
];
const A_CLOUDSNAP: &[ErrorCode] = &[CloudsnapNotFound, CloudsnapNotDone];
const FILES: &[ErrorCode] = &[FileNotFound, NoFiles];
const A_SCHEDULE: &[ErrorCode] = &[ScheduleNotFound];
const A_POLICY: &[ErrorCode] = &[PolicyNotFound];
const A_RULE: &[ErrorCode] = &[RuleNotFound];
const A_TASK: &[ErrorCode] = &[TaskNotFound];

macro_rules! operations {
    ($(
        $summary:literal
        $name:ident: ($path:ty, $input:ty) -> $reply:ty =
            $method:ident($role:expr, $pattern:literal)$(.$option:ident($value:expr))*;
    )+) => {
        $(
            #[doc = $summary]
            pub const $name: Operation<$path, $input, $reply> =
                Operation::$method($role, $pattern, $summary)$(.$option($value))*;
        )+

        /// All operations.
        pub const OPERATIONS: &[OperationInfo] = &[$($name.info),+];
    };
}

operations! {
    "What the daemon says of itself"
    GET_STATUS: ((), ()) -> Status = get(ReadOnly, "/v1/status");
    "This description"
    GET_OPENAPI: ((), ()) -> JsonObject = get(ReadOnly, "/v1/openapi.json");
    "What happened that people should know of"
    LIST_EVENTS: ((), ListEvents) -> EventList = get(ReadOnly, "/v1/events").waits(|query| query.wait_ms);
    "What volumes and tasks do at this moment"
    GET_ACTIVITY: ((), ()) -> Activity = get(ReadOnly, "/v1/activity");
    "Metrics in Prometheus' text format"
    GET_METRICS: ((), ()) -> String = get_text(ReadOnly, "/metrics");
    "Whether the daemon answers"
    GET_LIVENESS: ((), ()) -> String = get_text(ReadOnly, "/healthz");
    "Whether the daemon does its work"
    GET_READINESS: ((), ()) -> String = get_text(ReadOnly, "/readyz");
    "List volumes"
    LIST_VOLUMES: ((), ListVolumes) -> VolumeList = get(ReadOnly, "/v1/volumes");
    "Make a volume"
    CREATE_VOLUME: ((), CreateVolume) -> Volume = post(Operator, "/v1/volumes").errors(&[A_NEW_VOLUME]);
    "One volume"
    GET_VOLUME: (VolumeRef, ()) -> Volume = get(ReadOnly, "/v1/volumes/{volume}").errors(&[A_VOLUME]);
    "Let a volume grow; the rest of it is for admins"
    UPDATE_VOLUME: (VolumeRef, UpdateVolume) -> Volume = patch(Operator, "/v1/volumes/{volume}")
        .errors(&[AN_OPEN_VOLUME, A_FREE_VOLUME, &[NoSpace]]);
    "Delete a volume and its local snapshots"
    DELETE_VOLUME: (VolumeRef, DeleteVolume) -> Deleted = delete(Admin, "/v1/volumes/{volume}")
        .errors(&[A_VOLUME, A_FREE_VOLUME, &[SnapshotInUse, SnapshotPinned, VolumeNotReady]]);
    "Make a volume a device of the kernel"
    ATTACH_VOLUME: (VolumeRef, AttachVolume) -> Attachment = post(Operator, "/v1/volumes/{volume}/attach")
        .errors(&[AN_OPEN_VOLUME, A_DEVICE]);
    "Take a volume's device away; by force is for admins"
    DETACH_VOLUME: (VolumeRef, DetachVolume) -> Detached = post(Operator, "/v1/volumes/{volume}/detach")
        .timeout(DETACH).errors(&[A_VOLUME, A_DEVICE]);
    "Freeze a volume"
    CREATE_SNAPSHOT: (VolumeRef, CreateSnapshot) -> Snapshot =
        post(Operator, "/v1/volumes/{volume}/snapshots")
        .timeout(FREEZE).errors(&[AN_OPEN_VOLUME, A_FREEZE, A_RULE]);
    "Check everything of a volume but its data"
    CHECK_VOLUME: (VolumeRef, ()) -> VolumeCheck = post(Operator, "/v1/volumes/{volume}/check")
        .timeout(STORE_CALL).errors(&[AN_OPEN_VOLUME]);
    "Make a volume of another one's snapshot"
    CLONE_VOLUME: (VolumeRef, CloneVolume) -> Volume = post(Operator, "/v1/volumes/{volume}/clone")
        .errors(&[AN_OPEN_VOLUME, A_NEW_VOLUME, A_SNAPSHOT]);
    "What changed from a snapshot to another one, or to now"
    DIFF_SNAPSHOTS: (VolumeRef, DiffSnapshots) -> SnapshotDiff = get(ReadOnly, "/v1/volumes/{volume}/diff")
        .errors(&[AN_OPEN_VOLUME, A_SNAPSHOT]);
    "Roll a volume back to a snapshot"
    RESTORE_SNAPSHOT: (VolumeRef, RestoreSnapshot) -> SnapshotRestored =
        post(Admin, "/v1/volumes/{volume}/rollback")
        .timeout(ROLLBACK).errors(&[AN_OPEN_VOLUME, A_FREE_VOLUME, A_SNAPSHOT, &[NoSpace]]);
    "List local snapshots"
    LIST_SNAPSHOTS: ((), ListSnapshots) -> SnapshotList = get(ReadOnly, "/v1/snapshots").errors(&[A_VOLUME]);
    "Freeze several volumes at one instant"
    CREATE_GROUP_SNAPSHOT: ((), CreateGroupSnapshot) -> GroupSnapshot = post(Operator, "/v1/snapshots/group")
        .timeout(FREEZE).errors(&[AN_OPEN_VOLUME, A_FREEZE, A_RULE]);
    "One local snapshot"
    GET_SNAPSHOT: (SnapshotRef, ()) -> Snapshot = get(ReadOnly, "/v1/snapshots/{snapshot}")
        .errors(&[A_SNAPSHOT]);
    "Pin a local snapshot; to unpin it is for admins"
    MARK_SNAPSHOT: (SnapshotRef, MarkSnapshot) -> Snapshot = patch(Operator, "/v1/snapshots/{snapshot}")
        .errors(&[A_SNAPSHOT]);
    "Delete a local snapshot"
    DELETE_SNAPSHOT: (SnapshotRef, DeleteSnapshot) -> Deleted = delete(Admin, "/v1/snapshots/{snapshot}")
        .errors(&[A_SNAPSHOT, &[SnapshotInUse, SnapshotPinned, VolumeNotReady, VolumeFailed]]);
    "List credentials, without their secrets"
    LIST_CREDENTIALS: ((), ()) -> CredentialList = get(ReadOnly, "/v1/credentials");
    "Prove that a store works, and keep the way to it"
    CREATE_CREDENTIAL: ((), CreateCredential) -> Credential = post(Admin, "/v1/credentials")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialExists, NoSpace]]);
    "One credential, without its secrets"
    GET_CREDENTIAL: (CredentialRef, ()) -> Credential = get(ReadOnly, "/v1/credentials/{credential}")
        .errors(&[A_CREDENTIAL]);
    "Change what opens a store, once it is proven; never where it is"
    UPDATE_CREDENTIAL: (CredentialRef, UpdateCredential) -> Credential =
        patch(Admin, "/v1/credentials/{credential}")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialInUse]]);
    "Forget a credential"
    DELETE_CREDENTIAL: (CredentialRef, ()) -> Deleted = delete(Admin, "/v1/credentials/{credential}")
        .errors(&[A_CREDENTIAL, &[CredentialInUse]]);
    "Prove again that a store works"
    VALIDATE_CREDENTIAL: (CredentialRef, ()) -> Credential =
        post(Operator, "/v1/credentials/{credential}/validate")
        .timeout(STORE_CALL).errors(&[A_STORE]);
    "Change the passphrase or the data key"
    REKEY_CREDENTIAL: (CredentialRef, RekeyCredential) -> CredentialRekeyed =
        post(Admin, "/v1/credentials/{credential}/rekey")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialInUse]]);
    "Change how much may go to and from a store in a second"
    LIMIT_CREDENTIAL: (CredentialRef, CredentialLimits) -> Credential =
        post(Admin, "/v1/credentials/{credential}/limits")
        .errors(&[A_CREDENTIAL]);
    "List cloud snapshots"
    LIST_CLOUDSNAPS: ((), ListCloudsnaps) -> CloudsnapList = get(ReadOnly, "/v1/cloudsnaps")
        .timeout(STORE_CALL).errors(&[A_STORE]);
    "Back a volume up; with an expiry date or a bandwidth limit it is for admins"
    START_BACKUP: ((), StartBackup) -> BackupStarted = post(Operator, "/v1/cloudsnaps/backup")
        .timeout(STORE_CALL).errors(&[AN_OPEN_VOLUME, A_STORE, A_RULE, &[VolumeInUse, NoSpace]]);
    "Back several volumes up from one instant; with an expiry date or a bandwidth limit it is for admins"
    START_GROUP_BACKUP: ((), StartGroupBackup) -> GroupBackupStarted =
        post(Operator, "/v1/cloudsnaps/backup-group")
        .timeout(STORE_CALL).errors(&[AN_OPEN_VOLUME, A_STORE, A_RULE, &[VolumeInUse, NoSpace]]);
    "One cloud snapshot in full"
    INSPECT_CLOUDSNAP: ((), InspectCloudsnap) -> CloudsnapDetail = get(ReadOnly, "/v1/cloudsnaps/inspect")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP]);
    "Restore a cloud snapshot into a new volume; with a bandwidth limit it is for admins"
    START_RESTORE: ((), StartRestore) -> RestoreStarted = post(Operator, "/v1/cloudsnaps/restore")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[CloudsnapInUse]]);
    "Make a volume that fetches what is read"
    START_LAZY_RESTORE: ((), StartLazyRestore) -> LazyRestored = post(Operator, "/v1/cloudsnaps/restore-lazy")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[CloudsnapInUse]]);
    "Roll a volume back to a cloud snapshot"
    START_IN_PLACE: ((), StartInPlace) -> RestoreStarted = post(Admin, "/v1/cloudsnaps/restore-in-place")
        .timeout(STORE_CALL)
        .errors(&[A_STORE, A_CLOUDSNAP, AN_OPEN_VOLUME, A_FREE_VOLUME, &[CloudsnapInUse, NoSpace]]);
    "Delete a cloud snapshot"
    START_DELETE: ((), StartDelete) -> TaskStarted = post(Admin, "/v1/cloudsnaps/delete")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, &[CloudsnapInUse, CloudsnapPinned]]);
    "Pin a cloud snapshot; to unpin it, and to let it expire, is for admins"
    MARK_CLOUDSNAP: ((), MarkCloudsnap) -> CloudsnapMark = post(Operator, "/v1/cloudsnaps/mark")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, &[CloudsnapInUse]]);
    "Verify a cloud snapshot"
    START_VERIFY: ((), StartVerify) -> TaskStarted = post(Operator, "/v1/cloudsnaps/verify")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP]);
    "Delete what abandoned backups left in a store"
    COLLECT_GARBAGE: ((), CollectGarbage) -> GarbageCollected = post(Admin, "/v1/cloudsnaps/gc")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialInUse]]);
    "List files inside a cloud snapshot"
    LIST_FILES: ((), ListFiles) -> FileList = get(Operator, "/v1/cloudsnaps/files")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, FILES]);
    "A piece of a file inside a cloud snapshot"
    READ_FILE: ((), ReadFile) -> Bytes = get_bytes(Operator, "/v1/cloudsnaps/file")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, FILES]);
    "Where there is data in a file inside a cloud snapshot"
    LIST_FILE_RUNS: ((), ListFileRuns) -> FileRuns = get(Operator, "/v1/cloudsnaps/file/runs")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, FILES]);
    "List mounts of snapshots"
    LIST_MOUNTS: ((), ()) -> BrowseMountList = get(ReadOnly, "/v1/browse/mounts");
    "Mount snapshots as files on the daemon's host"
    MOUNT: ((), MountBrowse) -> BrowseMount = post(Admin, "/v1/browse/mounts")
        .timeout(STORE_CALL).errors(&[A_STORE, &[DeviceInUse]]);
    "Serve a mount that the caller made, whose descriptor comes with the request; over unix sockets only"
    HAND_MOUNT: ((), HandMount) -> BrowseMount = post(Operator, "/v1/browse/handed")
        .timeout(STORE_CALL).errors(&[A_STORE]);
    "Take a mount of snapshots away"
    UNMOUNT: ((), UnmountBrowse) -> Unmounted = post(Admin, "/v1/browse/unmount")
        .errors(&[&[MountNotFound, DeviceInUse, NotPermitted]]);
    "List schedules"
    LIST_SCHEDULES: ((), ()) -> ScheduleList = get(ReadOnly, "/v1/schedules");
    "Make a schedule"
    CREATE_SCHEDULE: ((), CreateSchedule) -> Schedule = post(Admin, "/v1/schedules")
        .errors(&[A_VOLUME, A_POLICY, A_RULE, A_CREDENTIAL, &[CredentialRequired, ScheduleExists]]);
    "One schedule"
    GET_SCHEDULE: (Uuid, ()) -> Schedule = get(ReadOnly, "/v1/schedules/{schedule}").errors(&[A_SCHEDULE]);
    "Change, pause or resume a schedule"
    UPDATE_SCHEDULE: (Uuid, UpdateSchedule) -> Schedule = patch(Admin, "/v1/schedules/{schedule}")
        .errors(&[A_SCHEDULE, A_POLICY, A_RULE]);
    "Delete a schedule"
    DELETE_SCHEDULE: (Uuid, ()) -> Deleted = delete(Admin, "/v1/schedules/{schedule}").errors(&[A_SCHEDULE]);
    // Its retention can delete older backups.
    "Run a schedule now"
    RUN_SCHEDULE: (Uuid, ()) -> RunList = post(Admin, "/v1/schedules/{schedule}/run").errors(&[A_SCHEDULE]);
    "What a schedule's retention keeps and deletes"
    PLAN_RETENTION: (Uuid, ()) -> RetentionPlan = get(ReadOnly, "/v1/schedules/{schedule}/retention")
        .errors(&[A_SCHEDULE]);
    "List the runs of schedules"
    LIST_RUNS: ((), ListRuns) -> RunList = get(ReadOnly, "/v1/schedule-runs").errors(&[A_VOLUME]);
    "List schedule policies"
    LIST_POLICIES: ((), ()) -> PolicyList = get(ReadOnly, "/v1/sched-policies");
    "Make a schedule policy"
    CREATE_POLICY: ((), Policy) -> Policy = post(Admin, "/v1/sched-policies").errors(&[&[PolicyExists]]);
    "One schedule policy"
    GET_POLICY: (PolicyName, ()) -> Policy = get(ReadOnly, "/v1/sched-policies/{policy}").errors(&[A_POLICY]);
    "Change a schedule policy"
    UPDATE_POLICY: (PolicyName, UpdatePolicy) -> Policy = patch(Admin, "/v1/sched-policies/{policy}")
        .errors(&[A_POLICY]);
    "Delete a schedule policy"
    DELETE_POLICY: (PolicyName, ()) -> Deleted = delete(Admin, "/v1/sched-policies/{policy}")
        .errors(&[A_POLICY, &[PolicyInUse]]);
    // Commands can contain secrets.
    "List rules"
    LIST_RULES: ((), ()) -> RuleList = get(Admin, "/v1/rules");
    "Make a rule: what is done around freezes"
    CREATE_RULE: ((), CreateRule) -> HookRule = post(Admin, "/v1/rules").errors(&[&[RuleExists]]);
    "One rule"
    GET_RULE: (RuleName, ()) -> HookRule = get(Admin, "/v1/rules/{rule}").errors(&[A_RULE]);
    "Change a rule"
    UPDATE_RULE: (RuleName, UpdateRule) -> HookRule = patch(Admin, "/v1/rules/{rule}").errors(&[A_RULE]);
    "Delete a rule"
    DELETE_RULE: (RuleName, ()) -> Deleted = delete(Admin, "/v1/rules/{rule}")
        .errors(&[A_RULE, &[RuleInUse]]);
    "Give a rule to a volume or a group"
    ASSIGN_RULE: (RuleName, RuleTarget) -> HookRule = post(Admin, "/v1/rules/{rule}/assign")
        .errors(&[A_RULE, A_VOLUME]);
    "Relieve a volume or a group of a rule"
    UNASSIGN_RULE: (RuleName, RuleTarget) -> HookRule = post(Admin, "/v1/rules/{rule}/unassign")
        .errors(&[A_RULE, A_VOLUME]);
    "List tasks"
    LIST_TASKS: ((), ListTasks) -> TaskList = get(ReadOnly, "/v1/tasks");
    "One task, now or when it has changed"
    GET_TASK: (Uuid, WaitTask) -> Task = get(ReadOnly, "/v1/tasks/{task}")
        .waits(|query: &WaitTask| query.wait_ms).errors(&[A_TASK]);
    "Stop a task of the caller; others are for admins"
    STOP_TASK: (Uuid, StopTask) -> Task = post(Operator, "/v1/tasks/{task}/stop")
        .timeout(STORE_CALL).errors(&[A_TASK, &[TaskEnded]]);
    // A slow task occupies a slot that others wait for.
    "Change how much a task may move in a second"
    LIMIT_TASK: (Uuid, TaskLimits) -> Task = post(Admin, "/v1/tasks/{task}/limit")
        .errors(&[A_TASK, &[TaskEnded]]);
    "Take a task up again; what deletes or goes back is for admins"
    RESUME_TASK: (Uuid, ()) -> Task = post(Operator, "/v1/tasks/{task}/resume")
        .errors(&[A_TASK, A_STORE, &[TaskEnded, VolumeInUse, VolumeNotFound, CloudsnapInUse]]);
}
