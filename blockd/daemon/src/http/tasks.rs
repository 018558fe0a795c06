//! Tasks.

use super::{
    caller::Caller,
    replies::Failure,
    routes::{OperationCall, Routes, detached},
    rules::hide_commands,
};
use blockd_api::{
    List, operations,
    roles::Role,
    tasks::{ListTasks, StopTask, Task},
};
use blockd_engine::engine::Engine;
use uuid::Uuid;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_TASKS, list)
        .on(operations::GET_TASK, async |call| -> Result<_, Failure> {
            Ok(shown(&call.caller, call.engine.tasks.task(call.path, &call.input).await?))
        })
        .on(operations::STOP_TASK, stop)
        .detached(operations::START_SCRUB, async |call| call.engine.scrubs.start_scrub(&call.input).await)
        .on(operations::RESUME_TASK, resume)
        .on(
            operations::LIMIT_TASK,
            async |OperationCall { engine, caller, path: task, input: limits, .. }| {
                Ok::<_, Failure>(shown(
                    &caller,
                    detached(async move { engine.runner.limit_task(task, limits).await }).await?,
                ))
            },
        )
}

async fn list(call: OperationCall<(), ListTasks>) -> Result<List<Task>, Failure> {
    let mut list = call.engine.tasks.list_tasks(&call.input).await?;
    list.items.iter_mut().for_each(|task| hide_commands(&call.caller, task.quiesce.as_mut()));
    Ok(list)
}

/// Hides fields that the caller must not see.
fn shown(caller: &Caller, mut task: Task) -> Task {
    hide_commands(caller, task.quiesce.as_mut());
    task
}

/// Refuses to resume a task that only admins can start. A task never changes its kind.
async fn may_resume(engine: &Engine, caller: &Caller, task: Uuid) -> Result<(), Failure> {
    if !caller.is_admin() && engine.runner.overwrites_or_deletes(task).await? {
        caller.needs(Role::Admin, "resuming deletions and in-place restores")?;
    }
    Ok(())
}

/// Refuses to stop or discard a task of another owner: an operator could prevent the backups of schedules.
async fn may_stop(engine: &Engine, caller: &Caller, task: Uuid) -> Result<(), Failure> {
    may_resume(engine, caller, task).await?;
    if !caller.is_admin() {
        let owner = engine.tasks.task_row(task).await?.owner;
        if !caller.owns(&owner) {
            caller.needs(Role::Admin, &format!("a task of {owner}"))?;
        }
    }
    Ok(())
}

async fn stop(call: OperationCall<Uuid, StopTask>) -> Result<Task, Failure> {
    let OperationCall { engine, caller, path: task, input: request, .. } = call;
    may_stop(&engine, &caller, task).await?;
    Ok(shown(&caller, detached(async move { engine.runner.stop_task(task, request).await }).await?))
}

async fn resume(call: OperationCall<Uuid, ()>) -> Result<Task, Failure> {
    let OperationCall { engine, caller, path: task, .. } = call;
    may_resume(&engine, &caller, task).await?;
    Ok(shown(&caller, detached(async move { engine.runner.resume_task(task).await }).await?))
}
