//! Cloud snapshots.

use super::{Body, Failure, HandlerResult, Input, Reply, caller::Caller, detached, rules::may_run};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    cloudsnaps::{
        BackupStarted, CloudsnapDetail, CloudsnapList, CloudsnapMark, CollectGarbage, GarbageCollected,
        GroupBackupStarted, InspectCloudsnap, ListCloudsnaps, MarkCloudsnap, RestoreStarted, StartBackup,
        StartDelete, StartGroupBackup, StartRestore, StartVerify,
    },
    lazy::{LazyRestored, StartInPlace, StartLazyRestore},
    roles::Role,
    tasks::{TaskLimits, TaskStarted},
};
use jiff::Timestamp;
use std::sync::Arc;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    Input(query): Input<ListCloudsnaps>,
) -> HandlerResult<CloudsnapList> {
    Ok(Reply(core.list_cloudsnaps(&query).await?))
}

pub(super) async fn inspect(
    State(core): State<Arc<Core>>,
    Input(query): Input<InspectCloudsnap>,
) -> HandlerResult<CloudsnapDetail> {
    Ok(Reply(core.inspect_cloudsnap(&query).await?))
}

/// Refuses an expiry date, which causes a deletion.
fn may_expire(caller: &Caller, expires: Option<Timestamp>) -> Result<(), Failure> {
    match expires {
        Some(_) => caller.needs(Role::Admin, "setting an expiry date"),
        None => Ok(()),
    }
}

/// Refuses a bandwidth limit: a slow task holds one of the places in `task_concurrency`, and its volume, for
/// which the backups of schedules wait.
fn may_limit(caller: &Caller, limits: TaskLimits) -> Result<(), Failure> {
    match limits == TaskLimits::default() {
        true => Ok(()),
        false => caller.needs(Role::Admin, "setting a bandwidth limit"),
    }
}

pub(super) async fn backup(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Body(request): Body<StartBackup>,
) -> HandlerResult<BackupStarted> {
    may_run(&caller, &request.hooks)?;
    may_expire(&caller, request.options.expires)?;
    may_limit(&caller, request.limits)?;
    detached(async move { core.start_backup(&request).await }).await
}

pub(super) async fn backup_group(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Body(request): Body<StartGroupBackup>,
) -> HandlerResult<GroupBackupStarted> {
    may_run(&caller, &request.hooks)?;
    may_expire(&caller, request.options.expires)?;
    may_limit(&caller, request.limits)?;
    detached(async move { core.start_group_backup(request).await }).await
}

pub(super) async fn restore(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Body(request): Body<StartRestore>,
) -> HandlerResult<RestoreStarted> {
    may_limit(&caller, request.limits)?;
    detached(async move { core.start_restore(&request).await }).await
}

pub(super) async fn restore_lazy(
    State(core): State<Arc<Core>>,
    Body(request): Body<StartLazyRestore>,
) -> HandlerResult<LazyRestored> {
    detached(async move { core.start_lazy_restore(&request).await }).await
}

pub(super) async fn restore_in_place(
    State(core): State<Arc<Core>>,
    Body(request): Body<StartInPlace>,
) -> HandlerResult<RestoreStarted> {
    detached(async move {
        let request = StartInPlace { volume: core.whole_volume(&request.volume)?, ..request };
        core.start_in_place(&request).await
    })
    .await
}

pub(super) async fn delete(
    State(core): State<Arc<Core>>,
    Body(request): Body<StartDelete>,
) -> HandlerResult<TaskStarted> {
    detached(async move { core.start_delete(&request).await }).await
}

pub(super) async fn mark(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Body(request): Body<MarkCloudsnap>,
) -> HandlerResult<CloudsnapMark> {
    if request.pinned != Some(true) || request.expires.is_some() || request.never_expires {
        // An expiry date causes a deletion.
        caller.needs(Role::Admin, "taking a pin back, or setting a date")?;
    }
    detached(async move { core.mark_cloudsnap(&request).await }).await
}

pub(super) async fn verify(
    State(core): State<Arc<Core>>,
    Body(request): Body<StartVerify>,
) -> HandlerResult<TaskStarted> {
    detached(async move { core.start_verify(&request).await }).await
}

pub(super) async fn collect_garbage(
    State(core): State<Arc<Core>>,
    Body(request): Body<CollectGarbage>,
) -> HandlerResult<GarbageCollected> {
    detached(async move { core.collect_garbage(&request).await }).await
}
