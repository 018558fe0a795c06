//! Tasks on the command line: an id, a unique prefix of it, the name of a backup or volume, or a cloud
//! snapshot.

use crate::{
    cloudsnap_ref::SnapRef, commands::arguments::parse_task, failure::Failure, output::Context,
    table::counted,
};
use blockd_api::{
    ApiError, ClientError, ErrorCode,
    cloudsnaps::CloudSnapshotId,
    first_names, operations,
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
fn named(mut all: Vec<Task>, name: &str) -> Vec<Task> {
    all.retain(|task| {
        task.name.as_ref().is_some_and(|own| own.as_str() == name)
            || task.volume_name.as_ref().is_some_and(|own| own.as_str() == name)
    });
    all
}

/// Returns all tasks, newest first.
async fn all(context: &Context<'_>) -> Result<Vec<Task>, Failure> {
    Ok(context.client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items)
}

/// Returns the tasks of this name, as [`named`], or else those of a cloud snapshot.
///
/// # Errors
/// There is none.
async fn by_name(context: &Context<'_>, name: &str) -> Result<Vec<Task>, Failure> {
    let tasks = all(context).await?;
    let found = named(tasks.clone(), name);
    if found.is_empty() { of_cloudsnap(context, name, tasks).await } else { Ok(found) }
}

/// Returns those of the tasks that are of a cloud snapshot, by its id, a prefix, its name or a point in time.
///
/// # Errors
/// There is none, no such cloud snapshot, or a location cannot be listed.
pub(super) async fn of_cloudsnap(
    context: &Context<'_>,
    name: &str,
    mut tasks: Vec<Task>,
) -> Result<Vec<Task>, Failure> {
    let no_task = |message: String, hint: String| -> Failure {
        ApiError::new(ErrorCode::TaskNotFound, message).with_hint(hint).into()
    };
    let unknown = || {
        no_task(
            format!(
                "no task has an id that begins with {name}, or is of a backup, cloud snapshot or volume of this name"
            ),
            "`blockctl cloudsnap status` shows the tasks".to_owned(),
        )
    };
    let snap: SnapRef = name.parse().map_err(|_| unknown())?;
    let ids = match snap.resolve_copies(context).await {
        Err(Failure::Client(ClientError::Api(error)))
            if error.code == ErrorCode::CloudsnapNotFound && matches!(snap, SnapRef::Text(_)) =>
        {
            return Err(unknown());
        }
        ids => ids?,
    };
    // A complete id may lack its `-incr`.
    let key = |id: &CloudSnapshotId| (id.cluster, id.volume, id.snapshot);
    tasks.retain(|task| {
        let of = task.cloud_snapshot_id.as_ref().and_then(|id| id.parse::<CloudSnapshotId>().ok());
        of.is_some_and(|of| ids.iter().any(|id| key(id) == key(&of)))
    });
    match tasks.is_empty() {
        true => Err(no_task(
            format!("this host has no task of cloud snapshot {}", first_names(ids.iter())),
            format!("`blockctl cloudsnap inspect {name}` describes it"),
        )),
        false => Ok(tasks),
    }
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
    if !tasks.is_empty() {
        return identified(context, name, tasks).await;
    }
    tasks = by_name(context, name).await?;
    match tasks.iter().any(&fits) {
        true => tasks.retain(fits),
        false => tasks.truncate(1),
    }
    match tasks.len() {
        1 => Ok((tasks, false)),
        count => Err(several(&tasks, &format!("{} are of {name}", counted(count as u64, "task")))
            .with_hint("name one by its id")),
    }
}

/// Checks that an id prefix selects one task, or all of one group; returns true for a group.
///
/// # Errors
/// It selects several, or is a name as well.
async fn identified(
    context: &Context<'_>,
    name: &str,
    tasks: Vec<Task>,
) -> Result<(Vec<Task>, bool), Failure> {
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
        let others: Vec<Task> = named(all(context).await?, name).into_iter().filter(is_new).collect();
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
    let (found, _) = tasks(context, name, fits).await?;
    only(found)
}

/// Refuses several tasks of a group.
fn only(mut found: Vec<Task>) -> Result<Task, Failure> {
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
    let found = by_id(context, name).await?;
    match found.is_empty() {
        true => Ok(by_name(context, name).await?.swap_remove(0)),
        false => only(identified(context, name, found).await?.0),
    }
}
