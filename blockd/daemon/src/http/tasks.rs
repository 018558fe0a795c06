//! Tasks.

use super::{Answer, Asked, Named, Reply};
use crate::core::Core;
use axum::extract::State;
use blockd_api::tasks::{ListTasks, Task, TaskList, WaitTask};
use std::sync::Arc;
use uuid::Uuid;

pub(super) async fn list(State(core): State<Arc<Core>>, Asked(query): Asked<ListTasks>) -> Answer<TaskList> {
    Ok(Reply(core.list_tasks(&query).await?))
}

pub(super) async fn show(
    State(core): State<Arc<Core>>,
    Named(task): Named<Uuid>,
    Asked(wait): Asked<WaitTask>,
) -> Answer<Task> {
    Ok(Reply(core.task(task, &wait).await?))
}
