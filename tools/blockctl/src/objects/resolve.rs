//! Completion of objects by what the daemon and the other objects have.

use super::{Body, Object, backup::Backup};
use blockd_api::{
    ApiError, CredentialName, ErrorCode, LabelSelector,
    credentials::Credential,
    schedules::{Policy, PolicyName},
    volumes::Volume,
};

/// Location of objects that name none, if there is one of this name.
const DEFAULT_LOCATION: &str = "default";

/// Sets what objects leave open: the location, volumes by label, and the retention of local snapshots.
///
/// # Errors
/// A location must be named, because there are none or several.
pub fn resolve(
    objects: &mut [Object],
    volumes: &[Volume],
    credentials: &[Credential],
    policies: &[Policy],
) -> Result<(), ApiError> {
    let mut locations: Vec<CredentialName> = credentials.iter().map(|one| one.name.clone()).collect();
    let mut policies: Vec<Policy> = policies.to_vec();
    for object in objects.iter() {
        let name = object.name.as_str();
        if let (Body::Location(_), Ok(location)) = (&object.body, name.parse()) {
            locations.push(location);
        }
        if let (Body::Policy(rules), Ok(name)) = (&object.body, name.parse()) {
            policies.insert(0, Policy { name, rules: rules.0.clone() });
        }
    }
    locations.sort();
    locations.dedup();
    for object in objects {
        let text = object.to_string();
        match &mut object.body {
            Body::Rule(hook) if !hook.selectors.is_empty() => {
                let is_meant = |volume: &&Volume| hook.selectors.iter().any(|one| volume.labels.matches(one));
                let found = volumes.iter().filter(is_meant).map(|volume| volume.name.clone());
                hook.volumes.get_or_insert_default().extend(found);
            }
            Body::Snapshot(backup) => choose_volumes(backup, volumes),
            Body::Backup(backup) => {
                choose_volumes(backup, volumes);
                choose_location(&text, "spec", backup, &locations)?;
            }
            Body::Schedule(schedule) => {
                let rules = |name: &PolicyName| {
                    policies.iter().find(|one| one.name == *name).map(|one| one.rules.clone())
                };
                schedule.complete_local(rules);
                if !schedule.is_local() {
                    choose_location(&text, "spec.template.spec", schedule.backup_mut(), &locations)?;
                }
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

fn choose_location(
    object: &str,
    spec: &str,
    backup: &mut Backup,
    locations: &[CredentialName],
) -> Result<(), ApiError> {
    if !backup.backup_location.is_empty() {
        return Ok(());
    }
    let default = locations.iter().find(|one| one.as_str() == DEFAULT_LOCATION);
    let only = if let [one] = locations { Some(one) } else { default };
    let Some(one) = only else {
        let names: Vec<String> = locations.iter().map(ToString::to_string).collect();
        let all = if names.is_empty() {
            "there is no location".to_owned()
        } else {
            format!("name one of {}", names.join(", "))
        };
        let message = format!("{object}: {spec}.backupLocation is missing: {all}");
        return Err(ApiError::new(ErrorCode::CredentialNotFound, message));
    };
    backup.backup_location = vec![one.clone()];
    Ok(())
}
