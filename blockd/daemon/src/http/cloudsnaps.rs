//! Cloud snapshots.

use super::{
    caller::Caller,
    replies::Failure,
    routes::{OperationCall, Routes, detached},
    rules::may_run,
};
use blockd_api::{
    List,
    cloudsnaps::{
        BackupOptions, CloudsnapMark, GroupBackupStarted, MarkCloudsnap, RestoreStarted, StartBackup,
        StartGroupBackup, StartRestore,
    },
    costs::CostEstimate,
    drills::StartDrill,
    lazy::StartInPlace,
    operations,
    quiesce::HookOptions,
    roles::Role,
    tasks::{TaskLimits, TaskStarted},
};
use jiff::Timestamp;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_CLOUDSNAPS, async |call| {
            call.engine.cloud_snapshots.list_cloudsnaps(&call.input).await
        })
        .on(operations::INSPECT_CLOUDSNAP, async |call| {
            call.engine.cloud_snapshots.inspect_cloudsnap(&call.input).await
        })
        .on(operations::START_BACKUP, backup)
        .on(operations::ESTIMATE_BACKUP, estimate_backup)
        .on(operations::START_GROUP_BACKUP, backup_group)
        .on(operations::ESTIMATE_GROUP_BACKUP, estimate_group)
        .on(operations::START_RESTORE, restore)
        .on(operations::ESTIMATE_RESTORE, estimate_restore)
        .detached(operations::START_LAZY_RESTORE, async |call| {
            call.engine.restores.start_lazy_restore(&call.input).await
        })
        .detached(operations::START_IN_PLACE, async |call| {
            let volume = call.engine.names.whole_volume(&call.input.volume)?;
            call.engine.restores.start_in_place(&StartInPlace { volume, ..call.input }).await
        })
        .detached(operations::ESTIMATE_IN_PLACE, async |call| {
            let volume = call.engine.names.whole_volume(&call.input.volume)?;
            call.engine.restores.estimate_in_place(&StartInPlace { volume, ..call.input }).await
        })
        .detached(operations::START_DELETE, async |call| {
            call.engine.deletions.start_delete(&call.input).await
        })
        .on(operations::MARK_CLOUDSNAP, mark)
        .detached(operations::START_VERIFY, async |call| {
            call.engine.maintenance.start_verify(&call.input).await
        })
        .detached(operations::START_REPAIR, async |call| call.engine.repairs.start_repair(&call.input).await)
        .on(operations::START_DRILL, drill)
        .on(operations::ESTIMATE_DRILL, estimate_drill)
        .detached(operations::START_GROUP_DRILL, async |call| {
            call.engine.drills.start_group(&call.input).await
        })
        .detached(operations::ESTIMATE_GROUP_DRILL, async |call| {
            call.engine.drills.estimate_group(&call.input).await
        })
        .on(operations::LIST_DRILLS, async |call| call.engine.drills.list(&call.input).await.map(List::from))
        .detached(operations::COLLECT_GARBAGE, async |call| {
            call.engine.maintenance.collect_garbage(&call.input).await
        })
}

/// Refuses an expiry date, which causes a deletion.
fn may_expire(caller: &Caller, expires: Option<Timestamp>) -> Result<(), Failure> {
    match expires {
        Some(_) => caller.needs(Role::Admin, "setting an expiry date"),
        None => Ok(()),
    }
}

/// Refuses a bandwidth limit: a slow task occupies a slot of `task_concurrency` and its volume, so that
/// scheduled backups wait.
fn may_limit(caller: &Caller, limits: TaskLimits) -> Result<(), Failure> {
    match limits.has_bandwidth() {
        false => Ok(()),
        true => caller.needs(Role::Admin, "setting a bandwidth limit"),
    }
}

/// Refuses parts of a backup, or of its estimate, that only administrators may choose.
fn may_back_up(
    caller: &Caller,
    hooks: &HookOptions,
    options: &BackupOptions,
    limits: TaskLimits,
) -> Result<(), Failure> {
    may_run(caller, hooks)?;
    may_expire(caller, options.expires_at)?;
    may_limit(caller, limits)
}

async fn backup(call: OperationCall<(), StartBackup>) -> Result<List<TaskStarted>, Failure> {
    let OperationCall { engine, caller, input: request, .. } = call;
    may_back_up(&caller, &request.hooks, &request.options, request.limits)?;
    detached(async move { engine.backups.start_backup(&request).await }).await
}

async fn backup_group(call: OperationCall<(), StartGroupBackup>) -> Result<GroupBackupStarted, Failure> {
    let OperationCall { engine, caller, input: request, .. } = call;
    may_back_up(&caller, &request.hooks, &request.options, request.limits)?;
    detached(async move { engine.backups.start_group_backup(request).await }).await
}

async fn estimate_backup(call: OperationCall<(), StartBackup>) -> Result<List<CostEstimate>, Failure> {
    let OperationCall { engine, caller, input: request, .. } = call;
    may_back_up(&caller, &request.hooks, &request.options, request.limits)?;
    detached(async move { engine.backups.estimate(&request).await }).await
}

async fn estimate_group(call: OperationCall<(), StartGroupBackup>) -> Result<List<CostEstimate>, Failure> {
    let OperationCall { engine, caller, input: request, .. } = call;
    may_back_up(&caller, &request.hooks, &request.options, request.limits)?;
    detached(async move { engine.backups.estimate_group(request).await }).await
}

async fn restore(call: OperationCall<(), StartRestore>) -> Result<RestoreStarted, Failure> {
    may_limit(&call.caller, call.input.limits)?;
    detached(async move { call.engine.restores.start_restore(&call.input).await }).await
}

async fn estimate_restore(call: OperationCall<(), StartRestore>) -> Result<List<CostEstimate>, Failure> {
    may_limit(&call.caller, call.input.limits)?;
    detached(async move { call.engine.restores.estimate(&call.input).await }).await
}

async fn drill(call: OperationCall<(), StartDrill>) -> Result<TaskStarted, Failure> {
    // Drills run one at a time: a slow one delays all others.
    may_limit(&call.caller, call.input.limits)?;
    detached(async move { call.engine.drills.start(&call.input).await }).await
}

async fn estimate_drill(call: OperationCall<(), StartDrill>) -> Result<List<CostEstimate>, Failure> {
    may_limit(&call.caller, call.input.limits)?;
    detached(async move { call.engine.drills.estimate(&call.input).await }).await
}

async fn mark(call: OperationCall<(), MarkCloudsnap>) -> Result<CloudsnapMark, Failure> {
    let request = &call.input;
    if request.pinned != Some(true) || request.expires_at.is_some() || request.never_expires {
        // A removed pin or an expiry date permits a deletion.
        call.caller.needs(Role::Admin, "removing a pin, or setting an expiry date")?;
    }
    detached(async move { call.engine.deletions.mark_cloudsnap(&call.input).await }).await
}
