//! Plans of objects.

use super::{
    clones::plan_clone,
    differences::refuse_lacking,
    plan::{Plan, changes},
    references::{VOLUME_LIST, no_label, no_volume},
    resources::ResourceSet,
    restore_plans::plan_restore,
    status::FieldChange,
};
use crate::objects::{
    Body, Kind, Object,
    backup::Backup,
    hook::Hook,
    location_table::{DEFAULT_MARK, LIMITS, METADATA, is_access},
    schedule::fixed,
    view,
};
use blockd_api::{ApiError, ErrorCode, VolumeName, rules::RuleTarget, schedules::CreateSchedule};
use uuid::Uuid;

/// Returns the plan of an object.
pub fn plan(object: &Object, resources: &ResourceSet) -> Plan {
    let planned = match &object.body {
        Body::Snapshot(backup) => plan_snapshot(object, backup, resources),
        Body::Backup(backup) => plan_backup(object, backup, resources),
        Body::Restore(restore) => plan_restore(object, restore, resources),
        Body::Clone(clone) => plan_clone(object, clone, resources),
        Body::Location(_) | Body::Policy(_) | Body::Rule(_) | Body::Schedule(_) | Body::Drill(_) => {
            plan_resource(object, resources).unwrap_or_else(|error| Plan::Refused(Vec::new(), error))
        }
    };
    let missing = match planned {
        Plan::Create | Plan::Update(_) | Plan::Refused(..) => resources.missing_reference(object),
        _ => None,
    };
    missing.map_or(planned, |error| Plan::Refused(Vec::new(), object.locate(error)))
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
    if object.is_derived {
        // Those of another document of the location.
        changes.retain(|change| !change.path.starts_with(METADATA));
    }
    let refused = match &object.body {
        Body::Location(location) => {
            let moved = resources.credential(name).map(|one| location.moved(one)).unwrap_or_default();
            changes.extend(moved.into_iter().map(|(path, was)| FieldChange {
                path: path.to_owned(),
                is: Some(was.into()),
                should: Some("kept on this host".into()),
            }));
            let paths = changes.iter().map(|change| change.path.as_str());
            let fixed = paths.filter(|path| {
                let begins = [LIMITS, METADATA].iter().any(|beginning| path.starts_with(beginning));
                !begins && *path != DEFAULT_MARK && !is_access(path)
            });
            let fixed: Vec<String> = fixed.map(|path| object.document.written(path)).collect();
            let fixed: Vec<&str> = fixed.iter().map(String::as_str).collect();
            // The name of a derived location follows from its fields.
            let cause = match object.is_derived {
                true => "cannot be changed: delete this location first, its backups stay",
                false => "cannot be changed: give another location another name, or delete this one first",
            };
            immutable(&fixed, ErrorCode::CredentialExists, cause)
        }
        Body::Schedule(wanted) => {
            let current = resources.schedule(name).and_then(|one| resources.schedule_spec(one));
            let current = current.map(|spec| spec.request(&object.name));
            fixed_schedule(object, current.as_ref(), &wanted.request(&object.name))
        }
        Body::Drill(wanted) => {
            let current = resources.drill(name).and_then(|one| resources.drill_spec(one));
            let current = current.map(|spec| spec.request(&object.name));
            fixed_schedule(object, current.as_ref(), &wanted.request(&object.name))
        }
        _ => None,
    };
    Ok(match refused {
        Some((code, cause)) => {
            let path = changes.first().map_or("", |change| change.path.as_str());
            let (file, line) = (&object.document.source.file, object.document.problem(path, "").line);
            let message = format!("{file}: line {line}: {object}: {cause}");
            Plan::Refused(changes, ApiError::new(code, message))
        }
        None if changes.is_empty() => Plan::Unchanged,
        None => Plan::Update(changes),
    })
}

/// Returns the refusal of a change of a schedule that cannot be made.
fn fixed_schedule(
    object: &Object,
    current: Option<&CreateSchedule>,
    wanted: &CreateSchedule,
) -> Option<(ErrorCode, String)> {
    let Some(current) = current else {
        return Some((ErrorCode::ScheduleExists, "its volume is gone: delete the schedule first".to_owned()));
    };
    let (cause, template) = match object.kind {
        Kind::RestoreDrill => ("its results stay", "template.spec."),
        _ => ("its backups stay", ""),
    };
    let paths: Vec<String> =
        fixed(current, wanted).iter().map(|path| path.replacen(template, "", 1)).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    immutable(
        &paths,
        ErrorCode::ScheduleExists,
        &format!("cannot be changed: delete the schedule first, {cause}"),
    )
}

fn immutable(paths: &[&str], code: ErrorCode, cause: &str) -> Option<(ErrorCode, String)> {
    (!paths.is_empty()).then(|| (code, format!("{} {cause}", paths.join(", "))))
}

/// Checks the targets of a rule: they exist, and no other rule has or gets one. A rule of the files gives up
/// those that it has and the files do not give it.
fn check_targets(object: &Object, hook: &Hook, resources: &ResourceSet) -> Result<(), ApiError> {
    if let Some(error) = &resources.rules_hidden {
        return Err(error.clone());
    }
    if let Some(name) = hook.volumes.iter().flatten().find(|name| resources.volume(name).is_none()) {
        let error = no_volume(name);
        return Err(ApiError { message: object.document.at("spec.volumes", error.message), ..error });
    }
    let wanted: Vec<RuleTarget> = hook.targets().into_iter().flatten().flatten().collect();
    let in_files = resources.file_rules.iter().filter(|(name, _)| *name != object.name);
    for (other, of_files) in in_files.clone() {
        if let Some(target) = of_files.targets().iter().flatten().flatten().find(|one| wanted.contains(one)) {
            let message =
                format!("{object}: {target} is one of {}/{other}, too: it has one rule", object.kind);
            return Err(ApiError::new(ErrorCode::RuleInUse, message).with_hint(one_rule_hint(object)));
        }
    }
    for rule in resources.rules.iter().filter(|rule| rule.name.as_str() != object.name.as_str()) {
        let of_files = in_files.clone().find(|(name, _)| name.as_str() == rule.name.as_str());
        let of_files = of_files.map(|(_, hook)| hook.targets()).unwrap_or_default();
        let kept =
            Hook::of(rule).targets().into_iter().zip(of_files).filter(|(_, of_files)| of_files.is_none());
        if let Some(target) = kept.flat_map(|(has, _)| has).flatten().find(|one| wanted.contains(one)) {
            let message = format!(
                "{object}: {target} has the rule {0} already: unassign that first (`blockctl rule unassign {0} --{target}`)",
                rule.name
            );
            return Err(ApiError::new(ErrorCode::RuleInUse, message).with_hint(one_rule_hint(object)));
        }
    }
    Ok(())
}

/// Returns the way to objects with several rules for one volume.
fn one_rule_hint(object: &Object) -> &'static str {
    match object.document.origin("spec.selectors") {
        Some(_) => {
            "name both rules in one object (`preExecRule`, `postExecRule`), or omit `podSelector` of one: it runs for the objects that name it"
        }
        None => "leave it out of one of the rules: objects that name a rule run it without an assignment",
    }
}

/// Returns the error of an object that selects no volume.
fn no_volumes(object: &Object, backup: &Backup) -> Plan {
    let cause = match (backup.selectors.as_slice(), &backup.group, backup.volume.as_slice()) {
        _ if backup.all_volumes => "there are no volumes".to_owned(),
        ([], Some(group), _) => {
            format!(
                "no volume is in group {group}; add one with `blockctl volume update VOLUME --group {group}`"
            )
        }
        ([], None, names) => {
            let names: Vec<&str> = names.iter().map(VolumeName::as_str).collect();
            let or = backup.or_selectors.as_ref().map(|labels| {
                format!(" and none with the label {labels}; set it with `blockctl volume update VOLUME --label +{labels}`")
            });
            format!("there is no volume {}{}", names.join(", "), or.unwrap_or_default())
        }
        (labels, ..) => {
            let labels: Vec<String> = labels.iter().map(|one| one.labels().to_string()).collect();
            no_label(&labels.join(" or "), &labels[0])
        }
    };
    let error = ApiError::new(ErrorCode::VolumeNotFound, cause).with_hint(VOLUME_LIST);
    Plan::Refused(Vec::new(), object.locate(error))
}

/// Returns the plan for a new backup or snapshot, which must not leave out a named volume.
fn plan_new(object: &Object, backup: &Backup, resources: &ResourceSet) -> Plan {
    let is_missing = |name: &&VolumeName| backup.or_selectors.is_none() && resources.volume(name).is_none();
    match backup.volume.iter().find(is_missing) {
        None => Plan::Create,
        Some(name) => Plan::Refused(Vec::new(), object.locate(no_volume(name))),
    }
}

fn plan_snapshot(object: &Object, backup: &Backup, resources: &ResourceSet) -> Plan {
    if resources.members(backup).next().is_none() {
        return no_volumes(object, backup);
    }
    match resources.snapshot_at(object.name.as_str()) {
        None => plan_new(object, backup, resources),
        Some(_) => plan_made(object, backup, resources),
    }
}

fn plan_backup(object: &Object, backup: &Backup, resources: &ResourceSet) -> Plan {
    let (name, location) = (object.name.as_str(), backup.location());
    if let Some(error) = resources.unlisted(&object.to_string(), location) {
        return Plan::Refused(Vec::new(), object.locate(error));
    }
    let running = resources.under_way(name, location).filter(|task| resources.is_task_of(backup, task));
    let running: Vec<Uuid> = running.map(|task| task.task_id).collect();
    let is_made = || resources.backups_named(name, location).any(|one| resources.is_backup_of(backup, one));
    if running.is_empty() && resources.members(backup).next().is_none() && !is_made() {
        return no_volumes(object, backup);
    }
    if resources.backed_up_at(name, location).is_none() {
        return plan_new(object, backup, resources);
    }
    let resumes = resources.resumable(name, backup);
    match plan_made(object, backup, resources) {
        Plan::Unchanged if !resumes.is_empty() => Plan::Resume { ended: resumes, running },
        Plan::Unchanged if !running.is_empty() => Plan::Wait(running),
        planned => planned,
    }
}

/// Returns the plan for a backup or snapshot whose name exists.
fn plan_made(object: &Object, backup: &Backup, resources: &ResourceSet) -> Plan {
    match refuse_lacking(object, backup, resources) {
        Ok(()) => Plan::Unchanged,
        Err(error) => Plan::Refused(Vec::new(), error),
    }
}
