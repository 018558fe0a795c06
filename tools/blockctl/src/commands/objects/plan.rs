//! Plans of changes that make a resource match its object.

use super::resources::ResourceSet;
use crate::objects::{
    Body, Object,
    backup::Backup,
    hook::Hook,
    location_table::is_access,
    schedule::fixed,
    view,
    volumes::{CLONED_FROM, Restore, RestoreSource, VolumeClone},
};
use blockd_api::{
    ApiError, ErrorCode, VolumeName,
    tasks::{Task, TaskKind, TaskStage},
    volumes::{Volume, VolumeState},
};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// Result of an object that tasks are making.
pub const UNDER_WAY: &str = "under way";
/// Result of an object with an unfinished dependency.
const WAITING: &str = "waiting";
/// Result of an object whose task is resumed.
pub const RESUMED: &str = "resumed";

/// Difference of a field.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldChange {
    pub path: String,
    /// Current value.
    pub is: Option<Value>,
    /// Wanted value.
    pub should: Option<Value>,
}

/// Plan of an object.
#[derive(Debug)]
pub enum Plan {
    /// The resource matches.
    Unchanged,
    /// These tasks are making it.
    Wait(Vec<Uuid>),
    /// A named dependency is being made by these tasks.
    Await(String, Vec<Uuid>),
    /// Resume this task, which ended early.
    Resume(Uuid),
    /// Create the resource.
    Create,
    /// Change these fields.
    Update(Vec<FieldChange>),
    /// The changes are impossible.
    Refused(Vec<FieldChange>, ApiError),
}

impl Plan {
    /// Returns the result of the plan.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Wait(_) => UNDER_WAY,
            Self::Await(..) => WAITING,
            Self::Resume(_) => RESUMED,
            Self::Create => "created",
            Self::Update(_) => "configured",
            Self::Refused(..) => "refused",
        }
    }

    /// Returns the changes.
    pub fn changes(&self) -> &[FieldChange] {
        match self {
            Self::Update(changes) | Self::Refused(changes, _) => changes,
            _ => &[],
        }
    }

    fn refused(object: &Object, code: ErrorCode, cause: &str) -> Self {
        Self::Refused(Vec::new(), ApiError::new(code, format!("{object}: {cause}")))
    }
}

/// Returns the fields that differ. With `given_only`, fields that are not given may have any value.
pub fn changes(is: &Value, should: &Value, given_only: bool) -> Vec<FieldChange> {
    let mut found = Vec::new();
    compare("", Some(is), Some(should), given_only, &mut found);
    found
}

fn compare(
    path: &str,
    is: Option<&Value>,
    should: Option<&Value>,
    given_only: bool,
    found: &mut Vec<FieldChange>,
) {
    // Another or a missing prefix is another location.
    if is == should || (given_only && should.is_none() && path != "location.prefix") {
        return;
    }
    // The daemon does not report limits that are `none`.
    if path.starts_with("location.limit") && is.is_none() && should.is_some_and(|should| should == "none") {
        return;
    }
    let (Some(Value::Object(has)), Some(Value::Object(wants))) = (is, should) else {
        found.push(FieldChange { path: path.to_owned(), is: is.cloned(), should: should.cloned() });
        return;
    };
    let mut names: Vec<&String> = has.keys().chain(wants.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        compare(&path, has.get(name), wants.get(name), given_only, found);
    }
}

/// Returns the plan of an object.
pub fn plan(object: &Object, resources: &ResourceSet) -> Plan {
    match &object.body {
        Body::Backup(backup) => plan_backup(object, backup, resources),
        Body::Restore(restore) => plan_restore(object, restore, resources),
        Body::Clone(clone) => plan_clone(object, clone, resources),
        Body::Location(_) | Body::Policy(_) | Body::Rule(_) | Body::Schedule(_) => {
            plan_resource(object, resources).unwrap_or_else(|error| Plan::Refused(Vec::new(), error))
        }
    }
}

/// Compares a resource with its object.
fn plan_resource(object: &Object, resources: &ResourceSet) -> Result<Plan, ApiError> {
    let name = object.name.as_str();
    if let Body::Rule(hook) = &object.body {
        check_targets(object, hook, resources)?;
    }
    let Some(mut found) = resources.find(object.kind, name) else { return Ok(Plan::Create) };
    if let (Body::Rule(hook), Some(rule)) = (&object.body, resources.rule(name)) {
        // Without a list, the assignments stay as they are.
        let mut current = Hook::of(rule);
        current.volumes = current.volumes.filter(|_| hook.volumes.is_some());
        current.groups = current.groups.filter(|_| hook.groups.is_some());
        found.body = view(&current);
    }
    let is_location = matches!(object.body, Body::Location(_));
    let mut changes = changes(&found.view(), &object.view(), is_location);
    let refused = match &object.body {
        Body::Location(location) => {
            let moved = resources.credential(name).map(|one| location.moved(one)).unwrap_or_default();
            changes.extend(moved.into_iter().map(|(path, was)| FieldChange {
                path: path.to_owned(),
                is: Some(was.into()),
                should: Some("kept on this host".into()),
            }));
            let paths = changes.iter().map(|change| change.path.as_str());
            let fixed = paths.filter(|path| !path.starts_with("location.limit") && !is_access(path));
            let cause = "cannot be changed: give another location another name, or delete this one first";
            immutable(&fixed.collect::<Vec<_>>(), ErrorCode::CredentialExists, cause)
        }
        Body::Schedule(wanted) => {
            let current = resources.schedule(name).and_then(|one| resources.schedule_spec(one));
            let fixed = current.map(|spec| fixed(&spec.request(&object.name), &wanted.request(&object.name)));
            let gone = "its volume is gone: delete the schedule first".to_owned();
            let cause = "cannot be changed: delete the schedule first, its backups stay";
            match fixed {
                None => Some((ErrorCode::ScheduleExists, gone)),
                Some(fixed) => immutable(&fixed, ErrorCode::ScheduleExists, cause),
            }
        }
        _ => None,
    };
    Ok(match refused {
        Some((code, cause)) => Plan::Refused(changes, ApiError::new(code, format!("{object}: {cause}"))),
        None if changes.is_empty() => Plan::Unchanged,
        None => Plan::Update(changes),
    })
}

fn immutable(paths: &[&str], code: ErrorCode, cause: &str) -> Option<(ErrorCode, String)> {
    (!paths.is_empty()).then(|| (code, format!("{} {cause}", paths.join(", "))))
}

/// Checks the targets of a rule: they exist, and none belongs to a rule outside of the files.
fn check_targets(object: &Object, hook: &Hook, resources: &ResourceSet) -> Result<(), ApiError> {
    if let Some(error) = &resources.rules_hidden {
        return Err(error.clone());
    }
    let refused = |code, cause: String| Err(ApiError::new(code, format!("{object}: {cause}")));
    if let Some(name) = hook.volumes.iter().flatten().find(|name| resources.volume(name).is_none()) {
        return refused(ErrorCode::VolumeNotFound, format!("there is no volume {name}"));
    }
    for rule in resources.rules.iter().filter(|rule| rule.name.as_str() != object.name.as_str()) {
        let in_files = resources.file_rules.iter().find(|(name, _)| name.as_str() == rule.name.as_str());
        let in_files = in_files.map(|(_, hook)| hook.targets()).unwrap_or_default();
        let lists = Hook::of(rule).targets().into_iter().zip(hook.targets()).zip(in_files);
        // A rule in the files gives up its targets.
        for ((has, wanted), _) in lists.filter(|(_, in_files)| in_files.is_none()) {
            let wanted = wanted.unwrap_or_default();
            if let Some(target) = has.iter().flatten().find(|target| wanted.contains(target)) {
                let cause = format!(
                    "{target} has the rule {0} already: unassign that first (`blockctl rule unassign {0} --{target}`), or apply both together",
                    rule.name
                );
                return refused(ErrorCode::RuleInUse, cause);
            }
        }
    }
    Ok(())
}

fn plan_backup(object: &Object, backup: &Backup, resources: &ResourceSet) -> Plan {
    let (name, location, volumes) = (object.name.as_str(), backup.location(), backup.selector());
    if let Some(error) = resources.unlisted(&object.to_string(), location) {
        return Plan::Refused(Vec::new(), error);
    }
    let running = || resources.under_way(name, location);
    let stored = || resources.backups_named(name, location);
    let tasks: Vec<Uuid> =
        running().filter(|task| resources.is_task_of(&volumes, task)).map(|task| task.task_id).collect();
    let exists = !tasks.is_empty() || stored().any(|one| resources.is_backup_of(&volumes, one));
    if exists && resources.not_backed_up(name, backup).is_empty() {
        return if tasks.is_empty() { Plan::Unchanged } else { Plan::Wait(tasks) };
    }
    if let Some(wanted) = &backup.volume {
        let tasks = running().filter_map(|task| task.volume_name.as_ref().map(VolumeName::as_str));
        let mut names = stored().map(|one| one.volume_name.as_str()).chain(tasks);
        if let Some(other) = names.find(|name| *name != wanted.as_str()) {
            let cause =
                format!("there is a backup of this name of volume {other}: give this one another name");
            return Plan::refused(object, ErrorCode::InvalidRequest, &cause);
        }
    }
    Plan::Create
}

fn plan_restore(object: &Object, restore: &Restore, resources: &ResourceSet) -> Plan {
    let source = resources.source(restore);
    let target = restore.destination_volume.as_ref();
    let Some(volume) = target.and_then(|name| resources.volume(name)) else {
        let Some(RestoreSource::Backup(name, volume)) = restore.source() else { return Plan::Create };
        if let Some(error) = resources.unlisted(&object.to_string(), Some(&restore.location)) {
            return Plan::Refused(Vec::new(), error);
        }
        let is_meant = |task: &&Task| volume.is_none() || task.volume_name.as_ref() == volume;
        let running = resources.under_way(name.as_str(), Some(&restore.location)).filter(is_meant);
        let tasks: Vec<Uuid> = running.map(|task| task.task_id).collect();
        return match source.is_err() && !tasks.is_empty() {
            true => Plan::Await(format!("VolumeBackup/{name}"), tasks),
            false => Plan::Create,
        };
    };
    // The newest comes first. The task of an old restore may be missing.
    let task = resources
        .tasks
        .iter()
        .find(|task| task.state.kind == TaskKind::Restore && task.volume_name.as_ref() == target);
    let was = task.and_then(|task| task.cloud_snapshot_id.as_ref());
    if let (Some(was), Ok(wanted)) = (was, &source)
        && *was != wanted.to_string()
    {
        let cause = format!(
            "volume {} exists and was restored from {was}: delete it first, or name another one in destinationVolume",
            volume.name
        );
        return Plan::refused(object, ErrorCode::VolumeExists, &cause);
    }
    task.map_or(Plan::Unchanged, |task| plan_restored(object, volume, task))
}

/// Returns the plan for a volume with this restore task.
fn plan_restored(object: &Object, volume: &Volume, task: &Task) -> Plan {
    let is_whole = volume.state == VolumeState::Up && volume.hydration.is_none();
    match task.state.stage {
        TaskStage::Done => Plan::Unchanged,
        stage if !stage.is_over() => Plan::Wait(vec![task.task_id]),
        _ if is_whole => Plan::Unchanged,
        _ if task.resumable => Plan::Resume(task.task_id),
        _ => {
            let why = task.error.as_ref().map_or("it was stopped", |error| error.message.as_str());
            let cause = format!("its restore cannot go on ({why}): delete volume {} first", volume.name);
            Plan::refused(object, ErrorCode::VolumeFailed, &cause)
        }
    }
}

fn plan_clone(object: &Object, clone: &VolumeClone, resources: &ResourceSet) -> Plan {
    let Some(volume) = clone.destination_volume.as_ref().and_then(|name| resources.volume(name)) else {
        return Plan::Create;
    };
    if volume.labels.as_map().get(CLONED_FROM).is_some_and(|origin| clone.is_of(origin)) {
        return Plan::Unchanged;
    }
    let snapshot = clone.snapshot.as_ref().map(|snapshot| format!("@{snapshot}")).unwrap_or_default();
    let cause = format!(
        "volume {} exists and is not a clone of {}{snapshot}: delete it first, or name another one in destinationVolume",
        volume.name, clone.source
    );
    Plan::refused(object, ErrorCode::VolumeExists, &cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_listed_by_path() {
        let is = json!({ "a": { "b": 1, "c": [1, 2], "d": 4 }, "e": 5 });
        let should = json!({ "a": { "b": 1, "c": [1, 3] }, "f": 6 });
        let paths = |given_only| -> Vec<String> {
            changes(&is, &should, given_only).into_iter().map(|change| change.path).collect()
        };
        assert_eq!(paths(false), ["a.c", "a.d", "e", "f"]);
        assert_eq!(paths(true), ["a.c", "f"]);
        assert!(changes(&is, &is, false).is_empty());
    }
}
