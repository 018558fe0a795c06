//! Completion of objects by what the daemon and the other objects have.

use super::{
    backup::Backup,
    document::Document,
    kind::Kind,
    object::{Body, Object},
};
use blockd_api::{
    ApiError, CredentialName, ErrorCode, LabelSelector,
    credentials::Credential,
    schedules::{Policy, PolicyName},
    volumes::Volume,
};
use std::collections::BTreeSet;

/// Location of objects that name none, if there is one of this name and no other one is the default.
const DEFAULT_LOCATION: &str = "default";

/// Names of the locations.
struct Locations {
    names: BTreeSet<String>,
    /// Location of objects that name none, if it exists.
    default: String,
}

/// Sets what objects leave open: the location, volumes by label, and the retention of local snapshots.
/// Existing backups and schedules keep their location, also if another one is the default now.
///
/// # Errors
/// A location must be named, because there are none or several.
pub fn resolve(
    objects: &mut [Object],
    volumes: &[Volume],
    credentials: &[Credential],
    policies: &[Policy],
    existing: impl Fn(Kind, &str) -> Vec<CredentialName>,
) -> Result<(), ApiError> {
    let mut locations: BTreeSet<String> = credentials.iter().map(|one| one.name.to_string()).collect();
    let of_files = objects.iter().filter(|one| one.kind == Kind::BackupLocation);
    locations.extend(of_files.map(|one| one.name.to_string()));
    let is_default = |one: &&Object| matches!(&one.body, Body::Location(location) if location.is_default());
    let default = objects.iter().find(is_default).map(|one| one.name.to_string());
    let of_daemon = || credentials.iter().find(|one| one.is_default).map(|one| one.name.to_string());
    let default = default.or_else(of_daemon).unwrap_or_else(|| DEFAULT_LOCATION.to_owned());
    let locations = Locations { names: locations, default };
    let of_files = objects.iter().filter_map(|one| match &one.body {
        Body::Policy(rules) => Some(Policy {
            name: one.name.as_str().parse().ok()?,
            rules: rules.0.clone(),
            labels: one.labels.clone(),
        }),
        _ => None,
    });
    let policies: Vec<Policy> = of_files.chain(policies.iter().cloned()).collect();
    for object in objects {
        match &mut object.body {
            Body::Rule(hook) if !hook.selectors.is_empty() => {
                let is_meant = |volume: &&Volume| hook.selectors.iter().any(|one| volume.labels.matches(one));
                let found = volumes.iter().filter(is_meant).map(|volume| volume.name.clone());
                hook.volumes.get_or_insert_default().extend(found);
            }
            Body::Snapshot(backup) => choose_volumes(backup, volumes),
            Body::Backup(backup) => {
                choose_volumes(backup, volumes);
                let kept = existing(object.kind, object.name.as_str());
                // It is in one location.
                let one = kept.iter().position(|one| one.as_str() == locations.default).unwrap_or_default();
                let kept = kept.into_iter().skip(one).take(1).collect();
                choose_locations(&object.document, "spec.backupLocation", backup, &locations, kept)?;
            }
            Body::Schedule(schedule) => {
                let rules = |name: &PolicyName| {
                    policies.iter().find(|one| one.name == *name).map(|one| one.rules.clone())
                };
                schedule.complete_local(rules);
                if !schedule.is_local() {
                    let path = "spec.template.spec.backupLocation";
                    let kept = existing(object.kind, object.name.as_str());
                    choose_locations(&object.document, path, schedule.backup_mut(), &locations, kept)?;
                }
            }
            Body::Drill(drill) => {
                let kept = existing(object.kind, object.name.as_str());
                let mut selection = drill.selection();
                let path = "spec.backupLocation";
                choose_locations(&object.document, path, &mut selection, &locations, kept)?;
                drill.backup_location = selection.backup_location;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Selects volumes by label if no volume has the name.
fn choose_volumes(backup: &mut Backup, volumes: &[Volume]) {
    let Some(labels) = backup.or_selectors.clone() else { return };
    let Ok(selector) = labels.to_string().parse::<LabelSelector>() else { return };
    let is_named = volumes.iter().any(|volume| backup.volume.contains(&volume.name));
    if !is_named && volumes.iter().any(|volume| volume.labels.matches(&selector)) {
        backup.volume.clear();
        backup.selectors = vec![selector];
    }
}

/// Sets the locations: those that the existing object has, the only one, or the default.
fn choose_locations(
    document: &Document,
    path: &str,
    backup: &mut Backup,
    Locations { names, default }: &Locations,
    kept: Vec<CredentialName>,
) -> Result<(), ApiError> {
    if !backup.backup_location.is_empty() {
        return Ok(());
    }
    if !kept.is_empty() {
        backup.backup_location = kept;
        return Ok(());
    }
    let only = names.first().filter(|_| names.len() == 1);
    let chosen: Option<CredentialName> =
        only.or_else(|| names.get(default)).and_then(|name| name.parse().ok());
    if chosen.is_none() {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let all = match names.is_empty() {
            true => "there is no location".to_owned(),
            false => format!("name one of {}", names.join(", ")),
        };
        let message = document.at(path, format!("missing: {all}"));
        return Err(ApiError::new(ErrorCode::CredentialNotFound, message));
    }
    backup.backup_location.extend(chosen);
    Ok(())
}
