//! Snapshots.

use super::{Answer, Asked, Body, Failure, Named, Reply, caller::Caller, detached};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    Deleted, SnapshotRef, VolumeRef,
    quiesce::Quiesce,
    roles::Role,
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, DiffSnapshots, GroupSnapshot, ListSnapshots, RestoreSnapshot,
        Snapshot, SnapshotDiff, SnapshotList, SnapshotRestored,
    },
};
use std::sync::Arc;

/// Commands run as the user of the daemon, which is root more often than not.
fn may_run(caller: &Caller, quiesce: &Quiesce) -> Result<(), Failure> {
    if quiesce.pre_command.is_some() || quiesce.post_command.is_some() {
        caller.needs(Role::Admin, "a command before or after a snapshot")?;
    }
    Ok(())
}

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<CreateSnapshot>,
) -> Answer<Snapshot> {
    may_run(&caller, &request.quiesce)?;
    detached(async move { core.create_snapshot(&volume, request).await }).await
}

pub(super) async fn create_group(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Body(request): Body<CreateGroupSnapshot>,
) -> Answer<GroupSnapshot> {
    may_run(&caller, &request.quiesce)?;
    detached(async move { core.create_group_snapshot(request).await }).await
}

/// What commands are and say may hold secrets, so only those see it who may have them run.
fn shown(caller: &Caller, mut snapshot: Snapshot) -> Snapshot {
    if let Some(report) = snapshot.quiesce.as_mut().filter(|_| !caller.is_admin()) {
        report.hide_commands();
    }
    snapshot
}

pub(super) async fn inspect(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(snapshot): Named<SnapshotRef>,
) -> Answer<Snapshot> {
    Ok(Reply(shown(&caller, core.inspect_snapshot(&snapshot).await?)))
}

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Asked(query): Asked<ListSnapshots>,
) -> Answer<SnapshotList> {
    let mut list = core.list_snapshots(&query).await?;
    list.snapshots = list.snapshots.into_iter().map(|snapshot| shown(&caller, snapshot)).collect();
    Ok(Reply(list))
}

pub(super) async fn diff(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Asked(query): Asked<DiffSnapshots>,
) -> Answer<SnapshotDiff> {
    Ok(Reply(core.diff_snapshots(&volume, &query).await?))
}

pub(super) async fn restore(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<RestoreSnapshot>,
) -> Answer<SnapshotRestored> {
    detached(async move { core.restore_snapshot(&volume, &request).await }).await
}

pub(super) async fn delete(
    State(core): State<Arc<Core>>,
    Named(snapshot): Named<SnapshotRef>,
) -> Answer<Deleted> {
    detached(async move { core.delete_snapshot(&snapshot).await }).await
}
