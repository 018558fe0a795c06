//! Schedules, their policies and their runs.

use super::{Body, HandlerResult, Input, Named, Reply, detached};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    Deleted,
    schedules::{
        CreateSchedule, ListRuns, Policy, PolicyList, PolicyName, RetentionPlan, RunList, Schedule,
        ScheduleList, UpdatePolicy, UpdateSchedule,
    },
};
use std::sync::Arc;
use uuid::Uuid;

type Shared = State<Arc<Core>>;

pub(super) async fn list(State(core): Shared) -> HandlerResult<ScheduleList> {
    Ok(Reply(core.list_schedules().await?))
}

pub(super) async fn create(
    State(core): Shared,
    Body(request): Body<CreateSchedule>,
) -> HandlerResult<Schedule> {
    detached(async move { core.create_schedule(request).await }).await
}

pub(super) async fn inspect(State(core): Shared, Named(schedule): Named<Uuid>) -> HandlerResult<Schedule> {
    Ok(Reply(core.schedule(schedule).await?))
}

pub(super) async fn update(
    State(core): Shared,
    Named(schedule): Named<Uuid>,
    Body(request): Body<UpdateSchedule>,
) -> HandlerResult<Schedule> {
    detached(async move { core.update_schedule(schedule, request).await }).await
}

pub(super) async fn delete(State(core): Shared, Named(schedule): Named<Uuid>) -> HandlerResult<Deleted> {
    detached(async move { core.delete_schedule(schedule).await }).await
}

pub(super) async fn run(State(core): Shared, Named(schedule): Named<Uuid>) -> HandlerResult<RunList> {
    detached(async move { core.run_schedule(schedule).await }).await
}

pub(super) async fn retention(
    State(core): Shared,
    Named(schedule): Named<Uuid>,
) -> HandlerResult<RetentionPlan> {
    Ok(Reply(core.plan_retention(schedule).await?))
}

pub(super) async fn history(State(core): Shared, Input(query): Input<ListRuns>) -> HandlerResult<RunList> {
    Ok(Reply(core.list_runs(query).await?))
}

pub(super) async fn policies(State(core): Shared) -> HandlerResult<PolicyList> {
    Ok(Reply(core.list_policies().await?))
}

pub(super) async fn create_policy(State(core): Shared, Body(request): Body<Policy>) -> HandlerResult<Policy> {
    detached(async move { core.create_policy(request).await }).await
}

pub(super) async fn policy(State(core): Shared, Named(name): Named<PolicyName>) -> HandlerResult<Policy> {
    Ok(Reply(core.policy(name).await?))
}

pub(super) async fn update_policy(
    State(core): Shared,
    Named(name): Named<PolicyName>,
    Body(request): Body<UpdatePolicy>,
) -> HandlerResult<Policy> {
    detached(async move { core.update_policy(name, request).await }).await
}

pub(super) async fn delete_policy(
    State(core): Shared,
    Named(name): Named<PolicyName>,
) -> HandlerResult<Deleted> {
    detached(async move { core.delete_policy(name).await }).await
}
