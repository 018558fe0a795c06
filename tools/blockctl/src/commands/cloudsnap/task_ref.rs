//! Tasks on the command line: an id, a unique prefix of it, or the name of a backup or volume.

use crate::{commands::arguments::parse_task, failure::Failure, output::Context, table::counted};
use blockd_api::{
    ApiError, ErrorCode, first_names, operations,
    tasks::{ListTasks, Task},
};
use uuid::Uuid;

/// Returns the tasks with this id prefix, of their own or of their group.
async fn by_id(context: &Context<'_>, name: &str) -> Result<Vec<Task>, Failure> {
    let Ok(prefix) = parse_task(name) else { return Ok(Vec::new()) };
    let query = ListTasks { id_prefix: Some(prefix) };
    Ok(context.client.call(operations::LIST_TASKS, &query).await?.items)
}

/// Returns the tasks of backups or volumes of this name, newest first.
async fn named(context: &Context<'_>, name: &str) -> Result<Vec<Task>, Failure> {
    let mut all = context.client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items;
    all.retain(|task| {
        task.name.as_ref().is_some_and(|own| own.as_str() == name)
            || task.volume_name.as_ref().is_some_and(|own| own.as_str() == name)
    });
    Ok(all)
}

/// Returns the tasks of this name, as [`named`].
///
/// # Errors
/// There is none.
async fn by_name(context: &Context<'_>, name: &str) -> Result<Vec<Task>, Failure> {
    let all = named(context, name).await?;
    if !all.is_empty() {
        return Ok(all);
    }
    let message =
        format!("no task has an id that begins with {name}, or is of a backup or volume of this name");
    let hint = "`blockctl cloudsnap status` shows the tasks";
    Err(ApiError::new(ErrorCode::TaskNotFound, message).with_hint(hint).into())
}

/// Resolves tasks by a prefix of the id of one, or of the group of all, or by a name as the only task that
/// fits; if none does, as the newest one. Returns true for a group.
///
/// # Errors
/// None or several match.
pub async fn tasks(
    context: &Context<'_>,
    name: &str,
    fits: impl Fn(&Task) -> bool,
) -> Result<(Vec<Task>, bool), Failure> {
    let mut tasks = by_id(context, name).await?;
    if tasks.is_empty() {
        tasks = by_name(context, name).await?;
        match tasks.iter().any(&fits) {
            true => tasks.retain(fits),
            false => tasks.truncate(1),
        }
        return match tasks.len() {
            1 => Ok((tasks, false)),
            count => Err(several(&tasks, &format!("{} are of {name}", counted(count as u64, "task")))
                .with_hint("name one by its id")),
        };
    }
    let prefix = name.to_ascii_lowercase();
    let group = tasks.first().and_then(|first| first.group_id);
    // A prefix that is also one of a task's own id names that task.
    let is_group = group.is_some_and(|group| group.to_string().starts_with(&prefix))
        && tasks.iter().all(|task| task.group_id == group && !task.task_id.to_string().starts_with(&prefix));
    let count = tasks.len();
    if count > 1 && !is_group {
        let have = format!(
            "{} have an id, or the id of a group, that begins with {name}",
            counted(count as u64, "task")
        );
        return Err(several(&tasks, &have).with_hint("give a longer prefix"));
    }
    // A short name may look like an id: the task meant is unknown.
    if name.parse::<Uuid>().is_err() {
        let is_new = |task: &Task| tasks.iter().all(|one| one.task_id != task.task_id);
        let others: Vec<Task> = named(context, name).await?.into_iter().filter(is_new).collect();
        if !others.is_empty() {
            let all = [tasks, others].concat();
            let have = format!("several match: {name} begins an id, and is the name of a backup or volume");
            return Err(several(&all, &have).with_hint("name one by its id, or by a longer prefix of it"));
        }
    }
    Ok((tasks, is_group))
}

/// Reports several matches.
fn several(tasks: &[Task], message: &str) -> Failure {
    Failure::usage(format!("{message}: {}", first_names(tasks.iter().map(|task| task.task_id))))
}

/// Resolves one task, as [`tasks`].
///
/// # Errors
/// None or several match, also of a group.
pub async fn fitting_task(
    context: &Context<'_>,
    name: &str,
    fits: impl Fn(&Task) -> bool,
) -> Result<Task, Failure> {
    let (mut found, _) = tasks(context, name, fits).await?;
    match (found.pop(), found.is_empty()) {
        (Some(task), true) => Ok(task),
        (Some(last), false) => {
            let names: Vec<String> =
                found.iter().chain([&last]).map(|task| task.task_id.to_string()).collect();
            Err(Failure::usage(format!(
                "this is the id of a group: name one of its tasks: {}",
                names.join(", ")
            )))
        }
        (None, _) => Err(Failure::usage("name the task")),
    }
}

/// Resolves one task by its id prefix, or the newest of a name.
///
/// # Errors
/// As [`fitting_task`].
pub async fn newest_task(context: &Context<'_>, name: &str) -> Result<Task, Failure> {
    match by_id(context, name).await?.is_empty() {
        true => Ok(by_name(context, name).await?.swap_remove(0)),
        false => fitting_task(context, name, |_| true).await,
    }
}
