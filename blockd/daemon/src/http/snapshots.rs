//! Snapshots.

use super::{
    Body, HandlerResult, Input, Named, Reply,
    caller::Caller,
    detached,
    rules::{hide_commands, may_run},
};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    Deleted, SnapshotRef, VolumeRef,
    roles::Role,
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, DeleteSnapshot, DiffSnapshots, GroupSnapshot, ListSnapshots,
        MarkSnapshot, RestoreSnapshot, Snapshot, SnapshotDiff, SnapshotList, SnapshotRestored,
    },
};
use std::sync::Arc;

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<CreateSnapshot>,
) -> HandlerResult<Snapshot> {
    may_run(&caller, &request.hooks)?;
    let Reply(mut made) = detached(async move { core.create_snapshot(&volume, request).await }).await?;
    hide_commands(&caller, made.quiesce.as_mut());
    Ok(Reply(made))
}

pub(super) async fn create_group(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Body(request): Body<CreateGroupSnapshot>,
) -> HandlerResult<GroupSnapshot> {
    may_run(&caller, &request.hooks)?;
    let Reply(mut made) = detached(async move { core.create_group_snapshot(request).await }).await?;
    made.snapshots.iter_mut().for_each(|snapshot| hide_commands(&caller, snapshot.quiesce.as_mut()));
    Ok(Reply(made))
}

fn shown(caller: &Caller, mut snapshot: Snapshot) -> Snapshot {
    hide_commands(caller, snapshot.quiesce.as_mut());
    snapshot
}

pub(super) async fn inspect(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(snapshot): Named<SnapshotRef>,
) -> HandlerResult<Snapshot> {
    Ok(Reply(shown(&caller, core.inspect_snapshot(&snapshot).await?)))
}

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Input(query): Input<ListSnapshots>,
) -> HandlerResult<SnapshotList> {
    let mut list = core.list_snapshots(&query).await?;
    list.snapshots = list.snapshots.into_iter().map(|snapshot| shown(&caller, snapshot)).collect();
    Ok(Reply(list))
}

pub(super) async fn diff(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Input(query): Input<DiffSnapshots>,
) -> HandlerResult<SnapshotDiff> {
    Ok(Reply(core.diff_snapshots(&volume, &query).await?))
}

pub(super) async fn restore(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<RestoreSnapshot>,
) -> HandlerResult<SnapshotRestored> {
    detached(async move {
        let volume = core.whole_volume(&volume)?;
        let request = RestoreSnapshot { snapshot: core.whole_snapshot(&request.snapshot).await?, ..request };
        core.restore_snapshot(&volume, &request).await
    })
    .await
}

pub(super) async fn delete(
    State(core): State<Arc<Core>>,
    Named(snapshot): Named<SnapshotRef>,
    Input(query): Input<DeleteSnapshot>,
) -> HandlerResult<Deleted> {
    detached(async move { core.delete_snapshot(&core.whole_snapshot(&snapshot).await?, query.force).await })
        .await
}

pub(super) async fn mark(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(snapshot): Named<SnapshotRef>,
    Body(request): Body<MarkSnapshot>,
) -> HandlerResult<Snapshot> {
    if !request.pinned {
        // An expiry date causes a deletion.
        caller.needs(Role::Admin, "taking a pin back")?;
    }
    let Reply(marked) = detached(async move { core.pin_snapshot(&snapshot, request.pinned).await }).await?;
    Ok(Reply(shown(&caller, marked)))
}
