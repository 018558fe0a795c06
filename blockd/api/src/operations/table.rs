//! Table of the operations of the control API.
//!
//! Each operation has one row, from which router, client, OpenAPI document and required role follow. A row
//! has the form `"summary" NAME: (path parameter, query or body) -> reply = method(role, pattern)`. A new row
//! needs a handler of its types in `blockd/daemon/src/http`.

use super::{Operation, OperationInfo};
use crate::{
    CredentialRef, Deleted, ErrorCode, List, RuleName, SnapshotRef, VolumeRef,
    activity::Activity,
    anomalies::{AcknowledgeAnomaly, BackupAnomaly, ListAnomalies},
    attachments::{AttachVolume, Attachment, DetachVolume, Detached},
    browse::{
        BrowseMount, FileList, FileRanges, HandMount, ListFileRanges, ListFiles, ReadFile, UnmountBrowse,
        Unmounted,
    },
    cloudsnaps::{
        CloudsnapDetail, CloudsnapList, CloudsnapMark, CollectGarbage, DeleteStarted, GarbageCollected,
        GroupBackupStarted, InspectCloudsnap, ListCloudsnaps, MarkCloudsnap, RestoreStarted, StartBackup,
        StartDelete, StartGroupBackup, StartRepair, StartRestore, StartVerify,
    },
    costs::CostEstimate,
    credential_update::UpdateCredential,
    credentials::{CreateCredential, Credential, CredentialLimits, CredentialRekeyed, RekeyCredential},
    drills::{Drill, GroupDrillStarted, ListDrills, StartDrill, StartGroupDrill},
    events::{Event, ListEvents},
    lazy::{LazyRestored, StartInPlace, StartLazyRestore},
    roles::Role,
    rules::{CreateRule, HookRule, RuleTarget, UpdateRule},
    schedules::{
        CreateSchedule, JudgedSnapshot, ListRuns, Policy, PolicyName, Run, RunSchedule, Schedule,
        ScheduleList, UpdatePolicy, UpdateSchedule,
    },
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, DeleteSnapshot, DiffSnapshots, GroupSnapshot, ListSnapshots,
        MarkSnapshot, RestoreSnapshot, Snapshot, SnapshotDiff, SnapshotRestored,
    },
    status::Status,
    tasks::{ListTasks, StartScrub, StopTask, Task, TaskLimits, TaskStarted, WaitTask},
    volumes::{CloneVolume, CreateVolume, DeleteVolume, ListVolumes, UpdateVolume, Volume, VolumeCheck},
};
use bytes::Bytes;
use std::time::Duration;
use uuid::Uuid;

use ErrorCode::{
    AnomalyNotFound, BucketMissing, BudgetExhausted, CloudsnapDamaged, CloudsnapInUse, CloudsnapNotDone,
    CloudsnapNotFound, CloudsnapOfOtherHost, CloudsnapPinned, CredentialExists, CredentialInUse,
    CredentialNotFound, CredentialRequired, DeviceFailed, DeviceInUse, FileNotFound, MountNotFound,
    NbdModuleMissing, NoFiles, NoSpace, NotPermitted, PassphraseRequired, PolicyExists, PolicyInUse,
    PolicyNotFound, QuiesceFailed, RepositoryNotEncrypted, RuleExists, RuleInUse, RuleNotFound,
    ScheduleExists, ScheduleNotFound, SecretUnavailable, SecretUnreachable, SnapshotExists, SnapshotInUse,
    SnapshotNotFound, SnapshotPinned, StoreFailed, StoreFull, StoreTimeout, StoreUnauthorized,
    StoreUnreachable, TaskEnded, TaskNotFound, VolumeAttached, VolumeExists, VolumeFailed, VolumeInUse,
    VolumeNotAttached, VolumeNotFound, VolumeNotReady, WriteKeyRefused, WrongPassphrase,
};
use Role::{Admin, Operator, ReadOnly};

/// Timeout of a freeze with its hooks.
const FREEZE: Duration = Duration::from_secs(1800);
/// Timeout of a detach, during which the kernel writes dirty pages back.
const DETACH: Duration = Duration::from_secs(600);
/// Timeout of a rollback, during which the daemon copies changed extents.
const ROLLBACK: Duration = Duration::from_secs(24 * 3600);
/// Timeout of an estimate of several volumes, or of one that may read all blocks. It ends with its client.
const ESTIMATE: Duration = Duration::from_secs(24 * 3600);
/// Timeout of a call that sends store requests, with their retries.
const STORE_CALL: Duration = Duration::from_secs(900);

// Common errors of related operations.
const A_VOLUME: &[ErrorCode] = &[VolumeNotFound];
const AN_OPEN_VOLUME: &[ErrorCode] = &[VolumeNotFound, VolumeNotReady, VolumeFailed, VolumeInUse];
const A_FREE_VOLUME: &[ErrorCode] = &[VolumeInUse, VolumeAttached];
const A_NEW_VOLUME: &[ErrorCode] = &[VolumeExists];
const A_DEVICE: &[ErrorCode] =
    &[VolumeAttached, VolumeNotAttached, DeviceInUse, DeviceFailed, NbdModuleMissing, NotPermitted];
const A_SNAPSHOT: &[ErrorCode] = &[SnapshotNotFound, VolumeNotFound];
const A_FREEZE: &[ErrorCode] = &[SnapshotExists, SnapshotInUse, QuiesceFailed, NotPermitted];
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
    WriteKeyRefused,
];
const A_CLOUDSNAP: &[ErrorCode] = &[CloudsnapNotFound, CloudsnapNotDone];
const A_PROBE: &[ErrorCode] = &[NbdModuleMissing, DeviceFailed];
const FILES: &[ErrorCode] = &[FileNotFound, NoFiles, CloudsnapInUse];
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
    "Show the daemon's status"
    GET_STATUS: ((), ()) -> Status = get(ReadOnly, "/v1/status");
    "Get the OpenAPI document"
    GET_OPENAPI: ((), ()) -> serde_json::Value = get_foreign_json(ReadOnly, "/v1/openapi.json");
    "List events"
    LIST_EVENTS: ((), ListEvents) -> List<Event> = get(ReadOnly, "/v1/events").waits(|query| query.wait_millis);
    "List anomalies of backups"
    LIST_ANOMALIES: ((), ListAnomalies) -> List<BackupAnomaly> = get(ReadOnly, "/v1/anomalies");
    // An acknowledgement lets backups expire.
    "Acknowledge an anomaly"
    ACKNOWLEDGE_ANOMALY: (Uuid, AcknowledgeAnomaly) -> BackupAnomaly = post(Admin, "/v1/anomalies/{anomaly}/acknowledge")
        .errors(&[&[AnomalyNotFound]]);
    "Show the activity of volumes and tasks"
    GET_ACTIVITY: ((), ()) -> Activity = get(ReadOnly, "/v1/activity");
    "Get metrics in Prometheus' text format"
    GET_METRICS: ((), ()) -> String = get_text(ReadOnly, "/metrics");
    "Check liveness"
    GET_LIVENESS: ((), ()) -> String = get_text(ReadOnly, "/healthz");
    "Check readiness"
    GET_READINESS: ((), ()) -> String = get_text(ReadOnly, "/readyz").errors(&[&[NoSpace]]);
    "List volumes"
    LIST_VOLUMES: ((), ListVolumes) -> List<Volume> = get(ReadOnly, "/v1/volumes");
    "Create a volume"
    CREATE_VOLUME: ((), CreateVolume) -> Volume = post(Operator, "/v1/volumes").errors(&[A_NEW_VOLUME]);
    "Inspect a volume"
    GET_VOLUME: (VolumeRef, ()) -> Volume = get(ReadOnly, "/v1/volumes/{volume}").errors(&[A_VOLUME]);
    "Grow a volume; other changes need an admin"
    UPDATE_VOLUME: (VolumeRef, UpdateVolume) -> Volume = patch(Operator, "/v1/volumes/{volume}")
        .errors(&[AN_OPEN_VOLUME, A_FREE_VOLUME, A_NEW_VOLUME, &[SnapshotInUse]]);
    "Delete a volume and its local snapshots"
    DELETE_VOLUME: (VolumeRef, DeleteVolume) -> Deleted = delete(Admin, "/v1/volumes/{volume}")
        .errors(&[A_VOLUME, A_FREE_VOLUME, &[SnapshotInUse, SnapshotPinned, VolumeNotReady]]);
    "Attach a volume as a kernel device"
    ATTACH_VOLUME: (VolumeRef, AttachVolume) -> Attachment = post(Operator, "/v1/volumes/{volume}/attach")
        .errors(&[AN_OPEN_VOLUME, A_DEVICE]);
    "Detach a volume's device; force needs an admin"
    DETACH_VOLUME: (VolumeRef, DetachVolume) -> Detached = post(Operator, "/v1/volumes/{volume}/detach")
        .timeout(DETACH).errors(&[A_VOLUME, A_DEVICE]);
    "Create a local snapshot"
    CREATE_SNAPSHOT: (VolumeRef, CreateSnapshot) -> Snapshot =
        post(Operator, "/v1/volumes/{volume}/snapshots")
        .timeout(FREEZE).errors(&[AN_OPEN_VOLUME, A_FREEZE, A_RULE]);
    "Check the metadata of a volume"
    CHECK_VOLUME: (VolumeRef, ()) -> VolumeCheck = post(Operator, "/v1/volumes/{volume}/check")
        .timeout(STORE_CALL).errors(&[AN_OPEN_VOLUME]);
    "Clone a volume from a snapshot"
    CLONE_VOLUME: (VolumeRef, CloneVolume) -> Volume = post(Operator, "/v1/volumes/{volume}/clone")
        .errors(&[AN_OPEN_VOLUME, A_NEW_VOLUME, A_SNAPSHOT]);
    "Compare a snapshot with another snapshot or with the volume"
    DIFF_SNAPSHOTS: (VolumeRef, DiffSnapshots) -> SnapshotDiff = get(ReadOnly, "/v1/volumes/{volume}/diff")
        .errors(&[AN_OPEN_VOLUME, A_SNAPSHOT]);
    "Roll a volume back to a snapshot"
    RESTORE_SNAPSHOT: (VolumeRef, RestoreSnapshot) -> SnapshotRestored =
        post(Admin, "/v1/volumes/{volume}/rollback")
        .timeout(ROLLBACK)
        .errors(&[AN_OPEN_VOLUME, A_FREE_VOLUME, A_SNAPSHOT, &[SnapshotExists, SnapshotInUse]]);
    "List local snapshots"
    LIST_SNAPSHOTS: ((), ListSnapshots) -> List<Snapshot> = get(ReadOnly, "/v1/snapshots").errors(&[A_VOLUME]);
    "Create local snapshots of several volumes at one point in time"
    CREATE_GROUP_SNAPSHOT: ((), CreateGroupSnapshot) -> GroupSnapshot = post(Operator, "/v1/snapshots/group")
        .timeout(FREEZE).errors(&[AN_OPEN_VOLUME, A_FREEZE, A_RULE]);
    "Inspect a local snapshot"
    GET_SNAPSHOT: (SnapshotRef, ()) -> Snapshot = get(ReadOnly, "/v1/snapshots/{snapshot}")
        .errors(&[A_SNAPSHOT]);
    "Pin or unpin a local snapshot; unpinning needs an admin"
    MARK_SNAPSHOT: (SnapshotRef, MarkSnapshot) -> Snapshot = patch(Operator, "/v1/snapshots/{snapshot}")
        .errors(&[A_SNAPSHOT]);
    "Delete a local snapshot"
    DELETE_SNAPSHOT: (SnapshotRef, DeleteSnapshot) -> Deleted = delete(Admin, "/v1/snapshots/{snapshot}")
        .errors(&[A_SNAPSHOT, AN_OPEN_VOLUME, &[SnapshotInUse, SnapshotPinned]]);
    "List credentials, without their secrets"
    LIST_CREDENTIALS: ((), ()) -> List<Credential> = get(ReadOnly, "/v1/credentials");
    "Create a credential after verifying its store"
    CREATE_CREDENTIAL: ((), CreateCredential) -> Credential = post(Admin, "/v1/credentials")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialExists]]);
    "Inspect a credential, without its secrets"
    GET_CREDENTIAL: (CredentialRef, ()) -> Credential = get(ReadOnly, "/v1/credentials/{credential}")
        .errors(&[A_CREDENTIAL]);
    "Rotate the secrets of a credential after verifying them; its location stays"
    UPDATE_CREDENTIAL: (CredentialRef, UpdateCredential) -> Credential =
        patch(Admin, "/v1/credentials/{credential}")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialInUse]]);
    "Delete a credential"
    DELETE_CREDENTIAL: (CredentialRef, ()) -> Deleted = delete(Admin, "/v1/credentials/{credential}")
        .errors(&[A_CREDENTIAL, &[CredentialInUse]]);
    "Validate a credential against its store"
    VALIDATE_CREDENTIAL: (CredentialRef, ()) -> Credential =
        post(Operator, "/v1/credentials/{credential}/validate")
        .timeout(STORE_CALL).errors(&[A_STORE]);
    "Change the passphrase or the data key"
    REKEY_CREDENTIAL: (CredentialRef, RekeyCredential) -> CredentialRekeyed =
        post(Admin, "/v1/credentials/{credential}/rekey")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialInUse]]);
    "Use a credential for requests that name none"
    SET_DEFAULT_CREDENTIAL: (CredentialRef, ()) -> Credential =
        post(Admin, "/v1/credentials/{credential}/default")
        .errors(&[A_CREDENTIAL]);
    "Set the bandwidth limits of a credential"
    LIMIT_CREDENTIAL: (CredentialRef, CredentialLimits) -> Credential =
        post(Admin, "/v1/credentials/{credential}/limits")
        .errors(&[A_CREDENTIAL]);
    "List cloud snapshots"
    LIST_CLOUDSNAPS: ((), ListCloudsnaps) -> CloudsnapList = get(ReadOnly, "/v1/cloudsnaps")
        .timeout(STORE_CALL).errors(&[A_STORE]);
    "Back up a volume; an expiry date or a bandwidth limit needs an admin"
    START_BACKUP: ((), StartBackup) -> List<TaskStarted> = post(Operator, "/v1/cloudsnaps/backup")
        .timeout(STORE_CALL)
        .errors(&[AN_OPEN_VOLUME, A_SNAPSHOT, A_STORE, A_RULE, &[SnapshotExists]]);
    "Estimate the costs of a backup"
    ESTIMATE_BACKUP: ((), StartBackup) -> List<CostEstimate> = post(Operator, "/v1/cloudsnaps/backup/estimate")
        .timeout(ESTIMATE).errors(&[AN_OPEN_VOLUME, A_SNAPSHOT, A_STORE, A_RULE, &[SnapshotExists]]);
    "Back up several volumes at one point in time; an expiry date or a bandwidth limit needs an admin"
    START_GROUP_BACKUP: ((), StartGroupBackup) -> GroupBackupStarted =
        post(Operator, "/v1/cloudsnaps/backup-group")
        .timeout(STORE_CALL)
        .errors(&[AN_OPEN_VOLUME, A_SNAPSHOT, A_STORE, A_RULE, &[SnapshotExists]]);
    "Estimate the costs of the backups of several volumes"
    ESTIMATE_GROUP_BACKUP: ((), StartGroupBackup) -> List<CostEstimate> =
        post(Operator, "/v1/cloudsnaps/backup-group/estimate")
        .timeout(ESTIMATE)
        .errors(&[AN_OPEN_VOLUME, A_SNAPSHOT, A_STORE, A_RULE, &[SnapshotExists]]);
    "Inspect a cloud snapshot"
    INSPECT_CLOUDSNAP: ((), InspectCloudsnap) -> CloudsnapDetail = get(ReadOnly, "/v1/cloudsnaps/inspect")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP]);
    "Restore a cloud snapshot into a new volume; a bandwidth limit needs an admin"
    START_RESTORE: ((), StartRestore) -> RestoreStarted = post(Operator, "/v1/cloudsnaps/restore")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[CloudsnapInUse]]);
    "Estimate the costs of a restore into a new volume"
    ESTIMATE_RESTORE: ((), StartRestore) -> List<CostEstimate> =
        post(Operator, "/v1/cloudsnaps/restore/estimate")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[CloudsnapInUse]]);
    "Create a lazy volume from a cloud snapshot"
    START_LAZY_RESTORE: ((), StartLazyRestore) -> LazyRestored = post(Operator, "/v1/cloudsnaps/restore-lazy")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_NEW_VOLUME, &[CloudsnapInUse]]);
    "Roll a volume back to a cloud snapshot"
    START_IN_PLACE: ((), StartInPlace) -> RestoreStarted = post(Admin, "/v1/cloudsnaps/restore-in-place")
        .timeout(STORE_CALL)
        .errors(&[A_STORE, A_CLOUDSNAP, AN_OPEN_VOLUME, A_FREE_VOLUME, &[CloudsnapInUse]]);
    "Estimate the costs of an in-place restore"
    ESTIMATE_IN_PLACE: ((), StartInPlace) -> List<CostEstimate> =
        post(Admin, "/v1/cloudsnaps/restore-in-place/estimate")
        .timeout(STORE_CALL)
        .errors(&[
            A_STORE, A_CLOUDSNAP, AN_OPEN_VOLUME, A_FREE_VOLUME, A_SNAPSHOT, &[CloudsnapInUse, SnapshotExists],
        ]);
    "Delete a cloud snapshot"
    START_DELETE: ((), StartDelete) -> DeleteStarted = post(Admin, "/v1/cloudsnaps/delete")
        .timeout(STORE_CALL)
        .errors(&[A_STORE, A_CLOUDSNAP, &[CloudsnapInUse, CloudsnapPinned, CloudsnapOfOtherHost]]);
    "Pin, unpin or expire a cloud snapshot; unpinning and expiry need an admin"
    MARK_CLOUDSNAP: ((), MarkCloudsnap) -> CloudsnapMark = post(Operator, "/v1/cloudsnaps/mark")
        .timeout(STORE_CALL)
        .errors(&[A_STORE, A_CLOUDSNAP, &[CloudsnapInUse, CloudsnapPinned, CloudsnapOfOtherHost]]);
    "Verify a cloud snapshot"
    START_VERIFY: ((), StartVerify) -> TaskStarted = post(Operator, "/v1/cloudsnaps/verify")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP]);
    "Repair a damaged cloud snapshot"
    START_REPAIR: ((), StartRepair) -> TaskStarted = post(Operator, "/v1/cloudsnaps/repair")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, &[CloudsnapInUse]]);
    "Test a restore of a cloud snapshot; a bandwidth limit needs an admin"
    START_DRILL: ((), StartDrill) -> TaskStarted = post(Operator, "/v1/drills")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_PROBE]);
    "Estimate the costs of a restore drill"
    ESTIMATE_DRILL: ((), StartDrill) -> List<CostEstimate> = post(Operator, "/v1/drills/estimate")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, A_PROBE]);
    "Test a restore of all volumes of a group at one point in time"
    START_GROUP_DRILL: ((), StartGroupDrill) -> GroupDrillStarted = post(Operator, "/v1/group-drills")
        .timeout(STORE_CALL).errors(&[A_VOLUME, A_STORE, A_CLOUDSNAP, A_PROBE, &[VolumeInUse]]);
    "Estimate the costs of the restore drills of a group"
    ESTIMATE_GROUP_DRILL: ((), StartGroupDrill) -> List<CostEstimate> =
        post(Operator, "/v1/group-drills/estimate")
        .timeout(ESTIMATE).errors(&[A_VOLUME, A_STORE, A_CLOUDSNAP, A_PROBE, &[VolumeInUse]]);
    "List restore drills"
    LIST_DRILLS: ((), ListDrills) -> List<Drill> = get(ReadOnly, "/v1/drills");
    "Scrub the local data of volumes"
    START_SCRUB: ((), StartScrub) -> TaskStarted = post(Operator, "/v1/scrub").errors(&[AN_OPEN_VOLUME]);
    "Collect garbage in a store"
    COLLECT_GARBAGE: ((), CollectGarbage) -> GarbageCollected = post(Admin, "/v1/cloudsnaps/gc")
        .timeout(STORE_CALL).errors(&[A_STORE, &[CredentialInUse, BudgetExhausted]]);
    "List files inside a cloud snapshot"
    LIST_FILES: ((), ListFiles) -> FileList = get(Operator, "/v1/cloudsnaps/files")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, FILES]);
    "Read a byte range of a file inside a cloud snapshot"
    READ_FILE: ((), ReadFile) -> Bytes = get_bytes(Operator, "/v1/cloudsnaps/file")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, FILES]);
    "List data ranges of a file inside a cloud snapshot"
    LIST_FILE_RANGES: ((), ListFileRanges) -> FileRanges = get(Operator, "/v1/cloudsnaps/file/ranges")
        .timeout(STORE_CALL).errors(&[A_STORE, A_CLOUDSNAP, FILES]);
    "List mounts of snapshots"
    LIST_MOUNTS: ((), ()) -> List<BrowseMount> = get(ReadOnly, "/v1/browse/mounts");
    "Serve a mount of the caller, whose descriptor comes with the request; unix sockets only"
    HAND_MOUNT: ((), HandMount) -> BrowseMount = post(Operator, "/v1/browse/handed")
        .timeout(STORE_CALL).errors(&[A_STORE]);
    "Unmount snapshots"
    UNMOUNT: ((), UnmountBrowse) -> Unmounted = post(Admin, "/v1/browse/unmount")
        .errors(&[&[MountNotFound, DeviceInUse, NotPermitted]]);
    "List schedules of backups"
    LIST_SCHEDULES: ((), ()) -> ScheduleList = get(ReadOnly, "/v1/schedules");
    "List schedules of drills"
    LIST_DRILL_SCHEDULES: ((), ()) -> ScheduleList = get(ReadOnly, "/v1/drill-schedules");
    "Create a schedule"
    CREATE_SCHEDULE: ((), CreateSchedule) -> Schedule = post(Admin, "/v1/schedules")
        .errors(&[A_VOLUME, A_POLICY, A_RULE, A_CREDENTIAL, &[CredentialRequired, ScheduleExists]]);
    "Inspect a schedule"
    GET_SCHEDULE: (Uuid, ()) -> Schedule = get(ReadOnly, "/v1/schedules/{schedule}").errors(&[A_SCHEDULE]);
    "Change, pause or resume a schedule"
    UPDATE_SCHEDULE: (Uuid, UpdateSchedule) -> Schedule = patch(Admin, "/v1/schedules/{schedule}")
        .errors(&[A_SCHEDULE, A_POLICY, A_RULE, A_CREDENTIAL]);
    "Delete a schedule"
    DELETE_SCHEDULE: (Uuid, ()) -> Deleted = delete(Admin, "/v1/schedules/{schedule}").errors(&[A_SCHEDULE]);
    // Its retention can delete older backups.
    "Run a schedule now"
    RUN_SCHEDULE: (Uuid, RunSchedule) -> List<Run> = post(Admin, "/v1/schedules/{schedule}/run").errors(&[A_SCHEDULE]);
    "Show the backups that a schedule's retention keeps and deletes"
    PLAN_RETENTION: (Uuid, ()) -> List<JudgedSnapshot> = get(ReadOnly, "/v1/schedules/{schedule}/retention")
        .errors(&[A_SCHEDULE]);
    "List runs of schedules"
    LIST_RUNS: ((), ListRuns) -> List<Run> = get(ReadOnly, "/v1/schedule-runs").errors(&[A_VOLUME]);
    "List schedule policies"
    LIST_POLICIES: ((), ()) -> List<Policy> = get(ReadOnly, "/v1/sched-policies");
    "Create a schedule policy"
    CREATE_POLICY: ((), Policy) -> Policy = post(Admin, "/v1/sched-policies").errors(&[&[PolicyExists]]);
    "Inspect a schedule policy"
    GET_POLICY: (PolicyName, ()) -> Policy = get(ReadOnly, "/v1/sched-policies/{policy}").errors(&[A_POLICY]);
    "Change a schedule policy"
    UPDATE_POLICY: (PolicyName, UpdatePolicy) -> Policy = patch(Admin, "/v1/sched-policies/{policy}")
        .errors(&[A_POLICY]);
    "Delete a schedule policy"
    DELETE_POLICY: (PolicyName, ()) -> Deleted = delete(Admin, "/v1/sched-policies/{policy}")
        .errors(&[A_POLICY, &[PolicyInUse]]);
    // Commands can contain secrets.
    "List rules"
    LIST_RULES: ((), ()) -> List<HookRule> = get(Admin, "/v1/rules");
    "Create a rule with hooks around freezes"
    CREATE_RULE: ((), CreateRule) -> HookRule = post(Admin, "/v1/rules").errors(&[&[RuleExists]]);
    "Inspect a rule"
    GET_RULE: (RuleName, ()) -> HookRule = get(Admin, "/v1/rules/{rule}").errors(&[A_RULE]);
    "Change a rule"
    UPDATE_RULE: (RuleName, UpdateRule) -> HookRule = patch(Admin, "/v1/rules/{rule}").errors(&[A_RULE]);
    "Delete a rule"
    DELETE_RULE: (RuleName, ()) -> Deleted = delete(Admin, "/v1/rules/{rule}")
        .errors(&[A_RULE, &[RuleInUse]]);
    "Assign a rule to a volume or a group"
    ASSIGN_RULE: (RuleName, RuleTarget) -> HookRule = post(Admin, "/v1/rules/{rule}/assign")
        .errors(&[A_RULE, A_VOLUME]);
    "Remove a rule from a volume or a group"
    UNASSIGN_RULE: (RuleName, RuleTarget) -> HookRule = post(Admin, "/v1/rules/{rule}/unassign")
        .errors(&[A_RULE, A_VOLUME]);
    "List tasks"
    LIST_TASKS: ((), ListTasks) -> List<Task> = get(ReadOnly, "/v1/tasks");
    "Inspect a task, now or after its next change"
    GET_TASK: (Uuid, WaitTask) -> Task = get(ReadOnly, "/v1/tasks/{task}")
        .waits(|query: &WaitTask| query.wait_millis).errors(&[A_TASK]);
    "Stop a task of the caller; tasks of others need an admin"
    STOP_TASK: (Uuid, StopTask) -> Task = post(Operator, "/v1/tasks/{task}/stop")
        .timeout(STORE_CALL).errors(&[A_TASK, &[TaskEnded]]);
    // A slow task occupies a slot that others wait for.
    "Set the bandwidth limits of a task"
    LIMIT_TASK: (Uuid, TaskLimits) -> Task = post(Admin, "/v1/tasks/{task}/limit")
        .errors(&[A_TASK, &[TaskEnded]]);
    "Resume a task; deletions and in-place restores need an admin"
    RESUME_TASK: (Uuid, ()) -> Task = post(Operator, "/v1/tasks/{task}/resume")
        .errors(&[A_TASK, A_STORE, AN_OPEN_VOLUME, &[TaskEnded, CloudsnapInUse, CloudsnapPinned]]);
}
