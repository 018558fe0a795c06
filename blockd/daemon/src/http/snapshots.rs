//! Snapshots.

use super::{
    caller::Caller,
    replies::Failure,
    routes::{OperationCall, Routes, detached},
    rules::{hide_commands, may_run},
};
use blockd_api::{
    List, SnapshotRef, VolumeRef, operations,
    roles::Role,
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, GroupSnapshot, ListSnapshots, MarkSnapshot, RestoreSnapshot,
        Snapshot,
    },
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::CREATE_SNAPSHOT, create)
        .on(operations::CREATE_GROUP_SNAPSHOT, create_group)
        .on(operations::LIST_SNAPSHOTS, list)
        .on(operations::GET_SNAPSHOT, async |call| -> Result<_, Failure> {
            Ok(shown(&call.caller, call.engine.snapshots.inspect_snapshot(&call.path).await?))
        })
        .on(operations::MARK_SNAPSHOT, mark)
        .detached(operations::DELETE_SNAPSHOT, async |call| {
            let snapshot = call.engine.names.whole_snapshot(&call.path).await?;
            call.engine.snapshots.delete_snapshot(&snapshot, call.input.force).await
        })
        .on(operations::DIFF_SNAPSHOTS, async |call| {
            call.engine.snapshots.diff_snapshots(&call.path, &call.input).await
        })
        .detached(operations::RESTORE_SNAPSHOT, async |call| {
            let volume = call.engine.names.whole_volume(&call.path)?;
            let snapshot = call.engine.names.whole_snapshot(&call.input.snapshot).await?;
            call.engine.snapshots.restore_snapshot(&volume, &RestoreSnapshot { snapshot, ..call.input }).await
        })
}

async fn create(call: OperationCall<VolumeRef, CreateSnapshot>) -> Result<Snapshot, Failure> {
    let OperationCall { engine, caller, path: volume, input: request, .. } = call;
    may_run(&caller, &request.hooks)?;
    let made = detached(async move { engine.snapshots.create_snapshot(&volume, request).await }).await?;
    Ok(shown(&caller, made))
}

async fn create_group(call: OperationCall<(), CreateGroupSnapshot>) -> Result<GroupSnapshot, Failure> {
    let OperationCall { engine, caller, input: request, .. } = call;
    may_run(&caller, &request.hooks)?;
    let mut made = detached(async move { engine.snapshots.create_group_snapshot(request).await }).await?;
    made.list.items.iter_mut().for_each(|snapshot| hide_commands(&caller, snapshot.quiesce.as_mut()));
    Ok(made)
}

fn shown(caller: &Caller, mut snapshot: Snapshot) -> Snapshot {
    hide_commands(caller, snapshot.quiesce.as_mut());
    snapshot
}

async fn list(call: OperationCall<(), ListSnapshots>) -> Result<List<Snapshot>, Failure> {
    let mut list = call.engine.snapshots.list_snapshots(&call.input).await?;
    list.items.iter_mut().for_each(|snapshot| hide_commands(&call.caller, snapshot.quiesce.as_mut()));
    Ok(list)
}

async fn mark(call: OperationCall<SnapshotRef, MarkSnapshot>) -> Result<Snapshot, Failure> {
    let OperationCall { engine, caller, path: snapshot, input: request, .. } = call;
    if !request.pinned {
        // Retention may delete the snapshot then.
        caller.needs(Role::Admin, "removing a pin")?;
    }
    let marked =
        detached(async move { engine.snapshots.pin_snapshot(&snapshot, request.pinned).await }).await?;
    Ok(shown(&caller, marked))
}
