//! Plans of changes that make an object match its file.

use super::resources::{ResourceSet, backup_name};
use crate::objects::{
    Body, Kind, Object,
    access::{MovedField, is_access},
    backup::{Backup, Volumes},
    clone::{CLONED_FROM, VolumeClone},
    document,
    hook::Hook,
    location::Location,
    policy::Rules,
    restore::{Restore, Source},
    schedule::Scheduled,
    view,
};
use blockd_api::{
    ApiError, CredentialName, CredentialRef, DailyLimit, ErrorCode, GroupName, ObjectName, VolumeId,
    VolumeName,
    cloudsnaps::{CloudSnapshotId, Cloudsnap},
    credentials::CredentialLimits,
    rules::HookRule,
    tasks::{Task, TaskKind, TaskStage},
    volumes::{Volume, VolumeState},
};
use serde_json::Value;
use uuid::Uuid;

/// A field that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Returns the URI.
    pub path: String,
    /// Current value.
    pub is: Option<Value>,
    /// Wanted value.
    pub should: Option<Value>,
}

/// Plan of an object.
#[derive(Debug)]
pub enum Plan {
    /// Nothing.
    Unchanged,
    /// Nothing but to wait: these tasks are making it.
    Wait(Vec<Uuid>),
    /// Nothing now: what it is made of, which is named, is being made by these tasks.
    Await(String, Vec<Uuid>),
    /// Take up this task again, which ended before it was made.
    Resume(Uuid),
    /// Make it.
    Create,
    /// Change it so.
    Update(Vec<Change>),
    /// It cannot be made so.
    Refused(Vec<Change>, ApiError),
}

/// The fields that differ. With `said_only`, what is not said may be anything.
pub fn changes(is: &Value, should: &Value, said_only: bool) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", Some(is), Some(should), said_only, &mut found);
    found
}

fn compare(path: &str, is: Option<&Value>, should: Option<&Value>, said_only: bool, found: &mut Vec<Change>) {
    // Another prefix is another place, also one that is not said.
    if is == should || (said_only && should.is_none() && path != "location.prefix") {
        return;
    }
    // What is not limited is not said.
    if path.starts_with("location.limit") && is.is_none() && should.is_some_and(|should| should == "none") {
        return;
    }
    let (Some(Value::Object(has)), Some(Value::Object(wants))) = (is, should) else {
        found.push(Change { path: path.to_owned(), is: is.cloned(), should: should.cloned() });
        return;
    };
    let mut names: Vec<&String> = has.keys().chain(wants.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        compare(&path, has.get(name), wants.get(name), said_only, found);
    }
}

fn refused(object: &Object, code: ErrorCode, what: &str) -> ApiError {
    ApiError::new(code, format!("{object}: {what}"))
}

/// Returns the plan of an object.
pub fn plan(object: &Object, world: &ResourceSet) -> Plan {
    match &object.body {
        Body::Location(location) => plan_location(object, location, world),
        Body::Policy(rules) => plan_policy(object, rules, world),
        Body::Rule(hook) => plan_rule(object, hook, world),
        Body::Schedule(schedule) => plan_schedule(object, schedule, world),
        Body::Backup(backup) => plan_backup(object, backup, world),
        Body::Restore(restore) => plan_restore(object, restore, world),
        Body::Clone(clone) => plan_clone(object, clone, world),
    }
}

fn view_of(kind: Kind, name: &str, world: &ResourceSet) -> Option<Value> {
    world.of(kind).into_iter().find(|found| found.name == name).map(|found| found.view())
}

fn plan_location(object: &Object, location: &Location, world: &ResourceSet) -> Plan {
    let Some(is) = view_of(Kind::BackupLocation, object.name.as_str(), world) else { return Plan::Create };
    let mut changes = changes(&is, &object.view(), true);
    let credential = world.credentials.iter().find(|one| one.name.as_str() == object.name.as_str());
    let moved = credential.map(|one| location.moved(one)).unwrap_or_default();
    changes.extend(moved.into_iter().map(|MovedField { path, was }| Change {
        path: path.to_owned(),
        is: Some(was.into()),
        should: Some("kept on this host".into()),
    }));
    if changes.is_empty() {
        return Plan::Unchanged;
    }
    let fixed: Vec<&str> = changes
        .iter()
        .map(|change| change.path.as_str())
        .filter(|path| !path.starts_with("location.limit") && !is_access(path))
        .collect();
    if fixed.is_empty() {
        return Plan::Update(changes);
    }
    let what = format!(
        "{} cannot be changed, as backups lie where it says: give the other place another name, or delete this one first",
        fixed.join(", ")
    );
    let error = refused(object, ErrorCode::CredentialExists, &what);
    Plan::Refused(changes, error)
}

fn plan_policy(object: &Object, rules: &Rules, world: &ResourceSet) -> Plan {
    let Some(is) = world.policies.iter().find(|policy| policy.name.as_str() == object.name.as_str()) else {
        return Plan::Create;
    };
    if Rules::of(&is.rules) == *rules {
        return Plan::Unchanged;
    }
    let view = view_of(Kind::SchedulePolicy, object.name.as_str(), world).unwrap_or_default();
    Plan::Update(changes(&view, &object.view(), false))
}

fn plan_rule(object: &Object, should: &Hook, world: &ResourceSet) -> Plan {
    if let Some(error) = &world.rules_hidden {
        return Plan::Refused(Vec::new(), error.clone());
    }
    let rule = world.rule(object.name.as_str());
    if let Err(error) = check_targets(object, should, world) {
        return Plan::Refused(Vec::new(), error);
    }
    let Some(rule) = rule else { return Plan::Create };
    let is = Hook::of(rule);
    // Without a list, the assignments stay as they are.
    let is = Hook {
        volumes: is.volumes.filter(|_| should.volumes.is_some()),
        groups: is.groups.filter(|_| should.groups.is_some()),
        ..is
    };
    if is == *should {
        return Plan::Unchanged;
    }
    let document = |hook: &Hook| document(Kind::Rule, object.name.as_str(), &view(hook));
    Plan::Update(changes(&document(&is), &document(should), false))
}

/// Checks the targets of a rule: they exist, and none belongs to a rule outside of this call.
fn check_targets(object: &Object, should: &Hook, world: &ResourceSet) -> Result<(), ApiError> {
    for name in should.volumes.iter().flatten() {
        if world.volume(name).is_none() {
            return Err(refused(object, ErrorCode::VolumeNotFound, &format!("there is no volume {name}")));
        }
    }
    let lets_go = |rule: &HookRule, is_said: fn(&Hook) -> bool| {
        let is_it = |(name, hook): &(ObjectName, Hook)| name.as_str() == rule.name.as_str() && is_said(hook);
        rule.name.as_str() == object.name.as_str() || world.called.iter().any(is_it)
    };
    for rule in &world.rules {
        let wants_volume = |name: &&VolumeName| should.volumes.iter().flatten().any(|one| one == *name);
        let wants_group = |name: &&GroupName| should.groups.iter().flatten().any(|one| one == *name);
        let volume = rule.volumes.iter().find(wants_volume);
        let group = rule.groups.iter().find(wants_group);
        let what = match (volume, group) {
            (Some(volume), _) if !lets_go(rule, |hook| hook.volumes.is_some()) => ("volume", volume.as_str()),
            (_, Some(group)) if !lets_go(rule, |hook| hook.groups.is_some()) => ("group", group.as_str()),
            _ => continue,
        };
        let (kind, name) = what;
        let what = format!(
            "{kind} {name} has the rule {0} already: unassign that first (`blockctl rule unassign {0} --{kind} {name}`), or apply both together",
            rule.name
        );
        return Err(refused(object, ErrorCode::RuleInUse, &what));
    }
    Ok(())
}

fn plan_schedule(object: &Object, should: &Scheduled, world: &ResourceSet) -> Plan {
    let Some(one) = world.schedules.iter().find(|one| one.name.as_ref() == Some(&object.name)) else {
        return Plan::Create;
    };
    let view = view_of(Kind::VolumeBackupSchedule, object.name.as_str(), world).unwrap_or_default();
    let changes = changes(&view, &object.view(), false);
    let Some(is) = world.scheduled(one) else {
        let error =
            refused(object, ErrorCode::ScheduleExists, "its volume is gone: delete the schedule first");
        return Plan::Refused(changes, error);
    };
    let fixed = should.fixed(&is);
    if is == *should {
        Plan::Unchanged
    } else if fixed.is_empty() {
        Plan::Update(changes)
    } else {
        let what =
            format!("{} cannot be changed: delete the schedule first, its backups stay", fixed.join(", "));
        Plan::Refused(changes, refused(object, ErrorCode::ScheduleExists, &what))
    }
}

/// The cloud snapshots of a name in a place.
pub fn backups_named<'a>(
    world: &'a ResourceSet,
    name: &'a ObjectName,
    place: &'a CredentialName,
) -> impl Iterator<Item = &'a Cloudsnap> {
    let there = world.cloudsnaps.iter().flatten();
    there.filter(move |one| {
        backup_name(one) == name.as_str() && one.metadata.credential_name == place.as_str()
    })
}

/// The volumes that are meant, as they are now.
pub fn members<'a>(world: &'a ResourceSet, volumes: &'a Volumes) -> impl Iterator<Item = &'a Volume> {
    world.volumes.iter().filter(move |volume| match volumes {
        Volumes::One(name) => volume.name == *name,
        Volumes::Group(group) => volume.group.as_ref() == Some(group),
        Volumes::Label(label) => volume.labels.matches(label),
    })
}

/// Returns true if a volume with this id and name is selected.
fn is_of(world: &ResourceSet, volumes: &Volumes, id: Option<VolumeId>, name: &str) -> bool {
    let is_one = |volume: &Volume| id.map_or(volume.name.as_str() == name, |id| volume.id == id);
    if members(world, volumes).any(is_one) {
        return true;
    }
    // Of a volume that is gone the name is all that is known.
    matches!(volumes, Volumes::One(wanted) if wanted.as_str() == name && world.volume(wanted).is_none())
}

/// Returns true if a cloud snapshot belongs to a selected volume.
pub fn is_backup_of(world: &ResourceSet, volumes: &Volumes, one: &Cloudsnap) -> bool {
    is_of(world, volumes, Some(one.src_volume_id), &one.src_volume_name)
}

/// Returns true if a task backs up a selected volume.
pub fn is_task_of(world: &ResourceSet, volumes: &Volumes, task: &Task) -> bool {
    let id =
        task.source_volume.as_ref().and_then(|id| id.parse::<CloudSnapshotId>().ok()).map(|id| id.volume);
    is_of(world, volumes, id, task.volume.as_ref().map_or("", VolumeName::as_str))
}

/// Returns the selected volumes without a finished or running backup of this name.
pub fn not_backed_up<'a>(
    world: &'a ResourceSet,
    name: &'a ObjectName,
    backup: &'a Backup,
) -> impl Iterator<Item = &'a Volume> {
    members(world, &backup.volumes).filter(move |volume| {
        let alone = Volumes::One(volume.name.clone());
        !backups_named(world, name, &backup.location).any(|one| is_backup_of(world, &alone, one))
            && !under_way(world, name, &backup.location).any(|task| is_task_of(world, &alone, task))
    })
}

fn plan_backup(object: &Object, backup: &Backup, world: &ResourceSet) -> Plan {
    let there = || backups_named(world, &object.name, &backup.location);
    let being_made = || under_way(world, &object.name, &backup.location);
    if let Some(error) = unlisted(world, &backup.location) {
        return Plan::Refused(
            Vec::new(),
            ApiError { message: format!("{object}: {}", error.message), ..error },
        );
    }
    let is_there = there().any(|one| is_backup_of(world, &backup.volumes, one))
        || being_made().any(|task| is_task_of(world, &backup.volumes, task));
    if is_there && not_backed_up(world, &object.name, backup).next().is_none() {
        let is_meant = |task: &&Task| is_task_of(world, &backup.volumes, task);
        let tasks: Vec<Uuid> = being_made().filter(is_meant).map(|task| task.name).collect();
        return if tasks.is_empty() { Plan::Unchanged } else { Plan::Wait(tasks) };
    }
    if let Volumes::One(wanted) = &backup.volumes {
        let is_other = |name: &&str| *name != wanted.as_str();
        let tasks = being_made().filter_map(|task| task.volume.as_ref().map(VolumeName::as_str));
        let mut names = there().map(|one| one.src_volume_name.as_str()).chain(tasks);
        if let Some(other) = names.find(is_other) {
            let what =
                format!("there is a backup of this name of volume {other}: give this one another name");
            return Plan::Refused(Vec::new(), refused(object, ErrorCode::InvalidRequest, &what));
        }
    }
    Plan::Create
}

/// Returns the error of a location that could not be listed.
pub fn unlisted(world: &ResourceSet, location: &CredentialName) -> Option<ApiError> {
    let error = world.unlisted.get(location.as_str())?;
    let message = format!("BackupLocation/{location} cannot be listed: {}", error.message);
    Some(ApiError { message, ..error.clone() })
}

/// The tasks that make a backup of a name in a place now.
pub fn under_way<'a>(
    world: &'a ResourceSet,
    name: &'a ObjectName,
    place: &'a CredentialName,
) -> impl Iterator<Item = &'a Task> {
    world.tasks.iter().filter(move |task| {
        task.state.kind == TaskKind::Backup
            && !task.state.stage.is_over()
            && task.label.as_ref() == Some(name)
            && task.credential_name.as_ref() == Some(place)
    })
}

fn plan_restore(object: &Object, restore: &Restore, world: &ResourceSet) -> Plan {
    let target = restore.target();
    let Some(volume) = world.volumes.iter().find(|volume| volume.name.as_str() == target) else {
        let by_name = matches!(restore.source(), Some(Source::Backup(..)));
        return match unlisted(world, &restore.location).filter(|_| by_name) {
            Some(error) => Plan::Refused(
                Vec::new(),
                ApiError { message: format!("{object}: {}", error.message), ..error },
            ),
            None => awaited(restore, world).unwrap_or(Plan::Create),
        };
    };
    let of_target = |task: &&Task| {
        task.state.kind == TaskKind::Restore
            && task.volume.as_ref().is_some_and(|volume| volume.as_str() == target)
    };
    // The newest comes first. The task of an old restore may be gone.
    let task = world.tasks.iter().find(of_target);
    let was = task.and_then(|task| task.source_volume.clone());
    let wanted = source(restore, world).ok().map(|id| id.to_string());
    match (was, wanted) {
        (Some(was), Some(wanted)) if was != wanted => {
            let what = format!(
                "volume {target} is there already, and was restored from {was}: delete it first, or name another one in destinationVolume"
            );
            Plan::Refused(Vec::new(), refused(object, ErrorCode::VolumeExists, &what))
        }
        _ => task.map_or(Plan::Unchanged, |task| plan_restored(object, volume, task)),
    }
}

/// The backup that a restore needs, if it is only being made.
fn awaited(restore: &Restore, world: &ResourceSet) -> Option<Plan> {
    let Some(Source::Backup(name, volume)) = restore.source() else { return None };
    source(restore, world).err()?;
    let is_meant = |task: &&Task| volume.is_none() || task.volume.as_ref() == volume;
    let making = under_way(world, name, &restore.location).filter(is_meant);
    let tasks: Vec<Uuid> = making.map(|task| task.name).collect();
    (!tasks.is_empty()).then(|| Plan::Await(format!("VolumeBackup/{name}"), tasks))
}

/// Returns the plan for a volume with this restore task.
fn plan_restored(object: &Object, volume: &Volume, task: &Task) -> Plan {
    let is_whole = volume.state == VolumeState::Up && volume.hydration.is_none();
    match task.state.stage {
        TaskStage::Done => Plan::Unchanged,
        stage if !stage.is_over() => Plan::Wait(vec![task.name]),
        _ if is_whole => Plan::Unchanged,
        _ if task.resumable => Plan::Resume(task.name),
        _ => {
            let why = task.error.as_ref().map_or("it was stopped", |error| error.message.as_str());
            let what = format!("its restore cannot go on ({why}): delete volume {} first", volume.name);
            Plan::Refused(Vec::new(), refused(object, ErrorCode::VolumeFailed, &what))
        }
    }
}

/// The cloud snapshot that a restore means.
///
/// # Errors
/// There is none of the name, or there are several.
pub fn source(restore: &Restore, world: &ResourceSet) -> Result<CloudSnapshotId, ApiError> {
    let (name, volume) = match restore.source() {
        Some(Source::Cloudsnap(id)) => return Ok(id),
        Some(Source::Backup(name, volume)) => (name, volume),
        None => return Err(ApiError::new(ErrorCode::InvalidRequest, "the restore names no backup")),
    };
    let is_meant = |one: &&Cloudsnap| volume.is_none_or(|volume| one.src_volume_name == volume.as_str());
    let found: Vec<&Cloudsnap> = backups_named(world, name, &restore.location).filter(is_meant).collect();
    let missing = |what: String| Err(ApiError::new(ErrorCode::CloudsnapNotFound, what));
    match found.as_slice() {
        [one] => Ok(one.id),
        [] if under_way(world, name, &restore.location).next().is_some() => missing(format!(
            "VolumeBackup/{name} is not done yet: apply this again when it is, or with --wait"
        )),
        [] => missing(format!(
            "there is no VolumeBackup/{name} of this host in BackupLocation/{}: what another one stored is named by its cloudSnapID",
            restore.location
        )),
        several => {
            let what = format!(
                "VolumeBackup/{name} is there several times ({}): say which in sourceVolume, or with its cloudSnapID",
                listed(several)
            );
            Err(ApiError::new(ErrorCode::InvalidRequest, what))
        }
    }
}

/// Cloud snapshots in a message.
pub fn listed(several: &[&Cloudsnap]) -> String {
    let one = |one: &&Cloudsnap| {
        format!("{} of {} in {}", one.id, one.src_volume_name, one.metadata.credential_name)
    };
    several.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn plan_clone(object: &Object, clone: &VolumeClone, world: &ResourceSet) -> Plan {
    let target = clone.target();
    let Some(volume) = world.volumes.iter().find(|volume| volume.name.as_str() == target) else {
        return Plan::Create;
    };
    if volume.labels.as_map().get(CLONED_FROM).is_some_and(|origin| clone.is_of(origin)) {
        return Plan::Unchanged;
    }
    let of = clone.snapshot.as_ref().map_or_else(String::new, |snapshot| format!("@{snapshot}"));
    let what = format!(
        "volume {target} is there already, and is no clone of {}{of}: delete it first, or name another one in destinationVolume",
        clone.source
    );
    Plan::Refused(Vec::new(), refused(object, ErrorCode::VolumeExists, &what))
}

/// The limits that a location should have: what it says, and else what it has.
pub fn limits(
    world: &ResourceSet,
    name: &ObjectName,
    said: (Option<&DailyLimit>, Option<&DailyLimit>, Option<&String>),
) -> CredentialLimits {
    let Some(is) = world.credentials.iter().find(|one| one.name.as_str() == name.as_str()) else {
        return CredentialLimits::default();
    };
    let has = |otherwise_bytes_per_s, windows: &[blockd_api::LimitWindow]| DailyLimit {
        otherwise_bytes_per_s,
        windows: windows.to_vec(),
    };
    let (upload, download, time_zone) = said;
    CredentialLimits {
        upload: upload.cloned().unwrap_or_else(|| has(is.limit_upload_bytes_per_s, &is.limit_upload_windows)),
        download: download
            .cloned()
            .unwrap_or_else(|| has(is.limit_download_bytes_per_s, &is.limit_download_windows)),
        time_zone: time_zone.cloned().or_else(|| is.limit_time_zone.clone()),
    }
}

/// The name of a location; object names have the same rules.
///
/// # Errors
/// It is no name of a credential.
pub fn credential_name(name: &ObjectName) -> Result<CredentialName, ApiError> {
    Ok(name.as_str().parse::<CredentialName>()?)
}

/// The location as the daemon takes it.
pub fn place(name: &CredentialName) -> CredentialRef {
    CredentialRef::Name(name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_listed_by_path() {
        let is = json!({ "a": { "b": 1, "c": [1, 2], "d": 4 }, "e": 5 });
        let should = json!({ "a": { "b": 1, "c": [1, 3] }, "f": 6 });
        let told = |said_only| -> Vec<String> {
            changes(&is, &should, said_only).into_iter().map(|change| change.path).collect()
        };
        assert_eq!(told(false), ["a.c", "a.d", "e", "f"]);
        assert_eq!(told(true), ["a.c", "f"]);
        assert!(changes(&is, &is, false).is_empty());
    }
}
