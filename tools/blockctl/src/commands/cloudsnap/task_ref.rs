//! Tasks on the command line: an id, a unique prefix of it, the name of a backup or volume, or a cloud
//! snapshot.

use crate::{
    cloudsnap_ref::SnapRef, commands::arguments::parse_task, failure::Failure, output::Context,
    table::counted,
};
use blockd_api::{
    ApiError, ClientError, ErrorCode, VolumeId,
    cloudsnaps::CloudSnapshotId,
    first_names, operations,
    tasks::{ListTasks, Task},
    volumes::ListVolumes,
};
use uuid::Uuid;

/// Returns the tasks with this id prefix, of their own or of their group.
async fn by_id(context: &Context<'_>, name: &str) -> Result<Vec<Task>, Failure> {
    let Ok(prefix) = parse_task(name) else { return Ok(Vec::new()) };
    let query = ListTasks { id_prefix: Some(prefix) };
    Ok(context.client.call(operations::LIST_TASKS, &query).await?.items)
}

/// Tasks of a name.
struct Named {
    /// Volume that has the name now.
    volume: Option<VolumeId>,
    /// Tasks of backups of the name, and of this volume, newest first.
    tasks: Vec<Task>,
    /// All other tasks, newest first.
    others: Vec<Task>,
}

/// Returns the tasks of backups of this name, and of the volume that has it. Names move between volumes: the
/// recorded name of a task counts only if no volume has it now.
async fn named(context: &Context<'_>, name: &str) -> Result<Named, Failure> {
    let volumes = context.client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items;
    let volume = volumes.iter().find(|volume| volume.name.as_str() == name).map(|volume| volume.volume_id);
    let all = context.client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items;
    let (tasks, others) = all.into_iter().partition(|task| {
        let is_of_volume = match (volume, task.volume_id) {
            (Some(volume), Some(own)) => volume == own,
            _ => task.volume_name.as_ref().is_some_and(|own| own.as_str() == name),
        };
        is_of_volume || task.name.as_ref().is_some_and(|own| own.as_str() == name)
    });
    Ok(Named { volume, tasks, others })
}

fn not_found(message: String, hint: &str) -> Failure {
    ApiError::new(ErrorCode::TaskNotFound, message).with_hint(hint).into()
}

/// Returns the cloud snapshots of an id, a prefix, a name or a point in time.
///
/// # Errors
/// There is no such cloud snapshot, or a location cannot be listed.
pub(super) async fn cloudsnaps(context: &Context<'_>, name: &str) -> Result<Vec<CloudSnapshotId>, Failure> {
    let unknown = || {
        let what = "is of a backup, cloud snapshot or volume of this name";
        not_found(
            format!("no task has an id that begins with {name}, or {what}"),
            "`blockctl cloudsnap status` shows the tasks",
        )
    };
    let snap: SnapRef = name.parse().map_err(|_| unknown())?;
    match snap.resolve_copies(context).await {
        Err(Failure::Client(ClientError::Api(error)))
            if error.code == ErrorCode::CloudsnapNotFound && matches!(snap, SnapRef::Text(_)) =>
        {
            Err(unknown())
        }
        ids => ids,
    }
}

/// Returns those of the tasks that are of cloud snapshots; `name` is the given name of these.
///
/// # Errors
/// There is none.
pub(super) fn of_cloudsnaps(
    name: &str,
    ids: &[CloudSnapshotId],
    mut tasks: Vec<Task>,
) -> Result<Vec<Task>, Failure> {
    // A complete id may lack its `-incr`.
    let key = |id: &CloudSnapshotId| (id.cluster, id.volume, id.snapshot);
    tasks.retain(|task| {
        let of = task.cloud_snapshot_id.as_ref().and_then(|id| id.parse::<CloudSnapshotId>().ok());
        of.is_some_and(|of| ids.iter().any(|id| key(id) == key(&of)))
    });
    match tasks.is_empty() {
        true => Err(not_found(
            format!("this host has no task of cloud snapshot {}", first_names(ids.iter())),
            &format!("`blockctl cloudsnap inspect {name}` describes it"),
        )),
        false => Ok(tasks),
    }
}

/// Returns true if the tasks of an id prefix are those of a group. A prefix that is also one of a task's own
/// id names that task.
fn is_group(tasks: &[Task], prefix: &str) -> bool {
    let group = tasks.first().and_then(|first| first.group_id);
    group.is_some_and(|group| group.to_string().starts_with(prefix))
        && tasks.iter().all(|task| task.group_id == group && !task.task_id.to_string().starts_with(prefix))
}

/// Tasks that a name or a prefix of an id may mean; at least one.
enum Candidates {
    /// Tasks of an id prefix, of their own or of their group.
    Identified(Vec<Task>),
    /// Tasks of a name, newest first.
    Named(Vec<Task>),
}

/// Returns the tasks of a name, or else those of an id prefix, or else those of a cloud snapshot. The name of
/// a volume comes first: a short one may look like an id.
///
/// # Errors
/// There are none, or tasks that fit have both an id of this prefix and this name.
async fn candidates(
    context: &Context<'_>,
    name: &str,
    fits: impl Fn(&Task) -> bool,
) -> Result<Candidates, Failure> {
    let identified = by_id(context, name).await?;
    if !identified.is_empty() && name.parse::<Uuid>().is_ok() {
        return Ok(Candidates::Identified(identified));
    }
    let Named { volume, tasks, others } = named(context, name).await?;
    if volume.is_some() || identified.is_empty() {
        return match (tasks.is_empty(), volume) {
            (false, _) => Ok(Candidates::Named(tasks)),
            (true, None) => {
                Ok(Candidates::Named(of_cloudsnaps(name, &cloudsnaps(context, name).await?, others)?))
            }
            (true, Some(_)) => Err(not_found(
                format!("no task is of volume {name}"),
                "`blockctl cloudsnap status` shows the tasks",
            )),
        };
    }
    let is_new = |task: &Task| identified.iter().all(|one| one.task_id != task.task_id);
    match [&identified, &tasks].map(|all| all.iter().any(&fits)) {
        [false, true] => Ok(Candidates::Named(tasks)),
        [is_id, is_name] if is_id == is_name && tasks.iter().any(is_new) => {
            let have = format!("several match: {name} begins an id, and is the name of a backup or volume");
            Err(several(&[identified, tasks].concat(), &have)
                .with_hint("name one by its id, or by a longer prefix of it"))
        }
        _ => Ok(Candidates::Identified(identified)),
    }
}

/// Resolves tasks by the name of a volume or backup, as the only task that fits, or if none does, as the
/// newest one; or by a prefix of the id of one, or of the group of all. Returns true for a group.
///
/// # Errors
/// None or several match.
pub async fn tasks(
    context: &Context<'_>,
    name: &str,
    fits: impl Fn(&Task) -> bool,
) -> Result<(Vec<Task>, bool), Failure> {
    let mut tasks = match candidates(context, name, &fits).await? {
        Candidates::Identified(tasks) => return by_prefix(tasks, name),
        Candidates::Named(tasks) => tasks,
    };
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

/// Returns the task of an id prefix, or those of a group.
///
/// # Errors
/// There are several, of no group or of different ones.
fn by_prefix(tasks: Vec<Task>, name: &str) -> Result<(Vec<Task>, bool), Failure> {
    let is_group = is_group(&tasks, &name.to_ascii_lowercase());
    if tasks.len() > 1 && !is_group {
        let count = counted(tasks.len() as u64, "task");
        let have = format!("{count} have an id, or the id of a group, that begins with {name}");
        return Err(several(&tasks, &have).with_hint("give a longer prefix"));
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
    only(tasks(context, name, fits).await?.0)
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
    only(match candidates(context, name, |_| true).await? {
        Candidates::Identified(tasks) => by_prefix(tasks, name)?.0,
        Candidates::Named(tasks) => tasks.into_iter().take(1).collect(),
    })
}
