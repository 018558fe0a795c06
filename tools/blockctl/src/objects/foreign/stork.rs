//! Kinds of Stork.

use super::native::{MAPPING, Selection};
use crate::objects::{
    Kind, NAMESPACE,
    document::{Document, Problem},
    policy::BLOCKS,
};
use serde_json::{Map, Value, json};

pub const GROUP: &str = "stork.libopenstorage.org";

pub fn backup(document: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    Selection::take(document, "spec.namespaces", "spec.selectors")?.set(&mut native, "spec");
    Ok(vec![native])
}

pub fn schedule(document: &mut Document, mut native: Document, name: &str) -> Result<Vec<Document>, Problem> {
    set_reclaim(document, &mut native);
    let (namespaces, labels) = ("spec.template.spec.namespaces", "spec.template.spec.selectors");
    Ok(Selection::take(document, namespaces, labels)?.each(native, name, "spec.template.spec"))
}

/// Sets the fate of the backups of a schedule: they outlive it unless its own policy deletes them, and those
/// of a template that retains them outlive their retention, too.
fn set_reclaim(document: &mut Document, native: &mut Document) {
    const OWN: &str = "spec.reclaimPolicy";
    const OF_BACKUPS: &str = "spec.template.spec.reclaimPolicy";
    match native.get(OF_BACKUPS).and_then(Value::as_str) {
        Some("Delete") => native.set_default(OWN, "Retain".into(), OWN),
        Some("Retain") => {
            let Some(location) = native.get("spec.template.spec.backupLocation").cloned() else { return };
            let retain = json!([{ "backupLocation": location, "retain": "all" }]);
            native.set("spec.retainAt", retain, OF_BACKUPS);
            document.warn(
                OF_BACKUPS,
                "no backup of the schedule expires; with `Delete`, its policy sets their number",
            );
        }
        _ => {}
    }
}

/// A mapping selects the namespaces that it names; an empty one selects all.
pub fn restore(_: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    native.set_default(MAPPING, json!({}), MAPPING);
    let mapped = native.get(MAPPING).and_then(Value::as_object);
    let selectors: Vec<Value> =
        mapped.into_iter().flat_map(Map::keys).map(|namespace| json!({ NAMESPACE: namespace })).collect();
    if !selectors.is_empty() {
        native.set("spec.selectors", selectors.into(), MAPPING);
    }
    Ok(vec![native])
}

/// Takes the known fields of a policy; clusters have more.
pub fn policy(document: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    native.set_default("policy", json!({}), "policy");
    for (block, _) in BLOCKS {
        let path = format!("policy.{block}");
        if document.get(&path).is_some_and(Value::is_array) {
            document.move_all(&mut native, &path);
        }
        for field in ["intervalMinutes", "day", "date", "time", "expression", "retain", "timeZone"] {
            document.move_all(&mut native, &format!("{path}.{field}"));
        }
    }
    Ok(vec![native])
}

/// Takes the rules and the location of snapshots from annotations, and from options of a group. Returns true
/// for cloud snapshots.
fn take_options(document: &mut Document, native: &mut Document, spec: &str) -> Result<bool, Problem> {
    const TYPE: &str = "portworx/snapshot-type";
    const CREDENTIAL: &str = "portworx/cloud-cred-id";
    let (mut is_cloud, mut annotations) = (false, Map::new());
    // Without a location, its path is beside the type.
    let (mut location, mut credential) = (None, String::new());
    for path in ["metadata.annotations", "spec.options"] {
        let Some(Value::Object(mut given)) = document.remove(path) else { continue };
        match given.remove(TYPE).as_ref().and_then(Value::as_str) {
            Some("cloud") => (is_cloud, credential) = (true, format!("{path}.{CREDENTIAL}")),
            None | Some("local") => {}
            Some(_) => {
                return Err(document.problem(&format!("{path}.{TYPE}"), "`local` or `cloud` is expected"));
            }
        }
        if location.is_none()
            && let Some(name) = given.remove(CREDENTIAL)
        {
            location = Some((name, format!("{path}.{CREDENTIAL}")));
        }
        for (annotation, field) in
            [("stork.rule/pre-snapshot", "preExecRule"), ("stork.rule/post-snapshot", "postExecRule")]
        {
            if let Some(rule) = given.remove(annotation) {
                native.set(&format!("{spec}.{field}"), rule, &format!("{path}.{annotation}"));
            }
        }
        if path == "spec.options" {
            given.keys().for_each(|key| document.ignore(&format!("{path}.{key}")));
        } else {
            annotations = given;
        }
    }
    if is_cloud || spec != "spec" {
        native.set("metadata.annotations", annotations.into(), "metadata.annotations");
    } else {
        annotations.keys().for_each(|key| document.ignore(&format!("metadata.annotations.{key}")));
    }
    for field in ["preExecRule", "postExecRule"] {
        document.move_all(native, &format!("spec.{field}>{spec}.{field}"));
    }
    let field = format!("{spec}.backupLocation");
    match location {
        Some((name, path)) if is_cloud => native.set(&field, name, &path),
        Some((_, path)) => document.ignore(&path),
        None if is_cloud => native.set_origin(&field, &credential),
        None => {}
    }
    Ok(is_cloud)
}

/// Makes a local snapshot, or a backup of one of the type `cloud`.
pub fn snapshot(document: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    if take_options(document, &mut native, "spec")? {
        native.set("kind", json!(Kind::VolumeBackup), "kind");
    }
    Ok(vec![native])
}

pub fn snapshot_schedule(
    document: &mut Document,
    mut native: Document,
    _: &str,
) -> Result<Vec<Document>, Problem> {
    if !take_options(document, &mut native, "spec.template.spec")? {
        native.set("spec.localSnapshots", json!({}), "spec.template.spec");
    }
    Ok(vec![native])
}
