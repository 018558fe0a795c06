//! Tasks.

use super::{
    Body, Failure, HandlerResult, Input, Named, Reply, caller::Caller, detached, rules::hide_commands,
};
use crate::core::Core;
use axum::extract::State;
use blockd_api::roles::Role;
use blockd_api::tasks::{ListTasks, StopTask, Task, TaskLimits, TaskList, WaitTask};
use std::sync::Arc;
use uuid::Uuid;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Input(query): Input<ListTasks>,
) -> HandlerResult<TaskList> {
    let mut list = core.list_tasks(&query).await?;
    list.tasks.iter_mut().for_each(|task| hide_commands(&caller, task.quiesce.as_mut()));
    Ok(Reply(list))
}

/// Hides what the caller may not see.
fn shown(caller: &Caller, Reply(mut task): Reply<Task>) -> Reply<Task> {
    hide_commands(caller, task.quiesce.as_mut());
    Reply(task)
}

pub(super) async fn show(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(task): Named<Uuid>,
    Input(wait): Input<WaitTask>,
) -> HandlerResult<Task> {
    Ok(shown(&caller, Reply(core.task(task, &wait).await?)))
}

/// Refuses to resume a task that only admins can start. A task never changes its kind.
async fn may_resume(core: &Core, caller: &Caller, task: Uuid) -> Result<(), Failure> {
    if !caller.is_admin() && core.overwrites_or_deletes(task).await? {
        caller.needs(Role::Admin, "what deletes or goes back")?;
    }
    Ok(())
}

/// Refuses to stop or discard a task of another owner: an operator could prevent the backups of schedules.
async fn may_stop(core: &Core, caller: &Caller, task: Uuid) -> Result<(), Failure> {
    may_resume(core, caller, task).await?;
    if !caller.is_admin() {
        let owner = core.task_row(task).await?.owner;
        if !caller.owns(&owner) {
            caller.needs(Role::Admin, &format!("a task of {owner}"))?;
        }
    }
    Ok(())
}

pub(super) async fn stop(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(task): Named<Uuid>,
    Body(request): Body<StopTask>,
) -> HandlerResult<Task> {
    may_stop(&core, &caller, task).await?;
    Ok(shown(&caller, detached(async move { core.stop_task(task, request).await }).await?))
}

pub(super) async fn resume(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(task): Named<Uuid>,
) -> HandlerResult<Task> {
    may_resume(&core, &caller, task).await?;
    Ok(shown(&caller, detached(async move { core.resume_task(task).await }).await?))
}

pub(super) async fn limit(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(task): Named<Uuid>,
    Body(limits): Body<TaskLimits>,
) -> HandlerResult<Task> {
    Ok(shown(&caller, detached(async move { core.limit_task(task, limits).await }).await?))
}
