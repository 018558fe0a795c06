//! Kinds of Stork.

use super::{Converter, Selection, begin, take_metadata};
use crate::objects::{
    Kind,
    document::{Document, Problem},
};
use serde_json::{Value, json};

pub const GROUP: &str = "stork.libopenstorage.org";

/// Fields of a backup that are the same here.
const BACKUP_FIELDS: [&str; 6] =
    ["backupLocation", "reclaimPolicy", "preExecRule", "postExecRule", "full", "ttl"];

/// Returns the conversion of a kind that has another name or other fields here.
pub fn converter(kind: &str) -> Option<Converter> {
    Some(match kind {
        "ApplicationBackup" => backup,
        "ApplicationBackupSchedule" => schedule,
        "ApplicationRestore" => restore,
        "ApplicationClone" => clone,
        "VolumeSnapshotSchedule" => snapshot_schedule,
        "GroupVolumeSnapshot" => group_snapshot,
        "SchedulePolicy" => policy,
        _ => return None,
    })
}

fn backup(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin(document, Kind::VolumeBackup, name);
    for field in BACKUP_FIELDS {
        document.move_to(&mut native, &format!("spec.{field}"), &format!("spec.{field}"));
    }
    let namespace = document.get("metadata.namespace").cloned();
    let volumes = Selection::take(document, "spec.namespaces", "spec.selectors")?;
    take_metadata(document, &mut native, namespace);
    volumes.set(&mut native, "spec");
    Ok(vec![native])
}

fn schedule(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin(document, Kind::VolumeBackupSchedule, name);
    for field in ["schedulePolicyName", "suspend"] {
        document.move_to(&mut native, &format!("spec.{field}"), &format!("spec.{field}"));
    }
    for field in BACKUP_FIELDS {
        let path = format!("spec.template.spec.{field}");
        document.move_to(&mut native, &path, &path);
    }
    let (namespaces, labels) = ("spec.template.spec.namespaces", "spec.template.spec.selectors");
    let volumes = Selection::take(document, namespaces, labels)?;
    Ok(volumes.each(&native, name, "spec.template.spec"))
}

fn restore(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin(document, Kind::VolumeRestore, name);
    native.set("spec.namespaceMapping", json!({}), "spec.namespaceMapping");
    for field in ["backupName", "backupLocation", "namespaceMapping", "replacePolicy"] {
        document.move_to(&mut native, &format!("spec.{field}"), &format!("spec.{field}"));
    }
    Ok(vec![native])
}

fn clone(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin(document, Kind::VolumeClone, name);
    for field in ["sourceNamespace", "destinationNamespace"] {
        document.move_to(&mut native, &format!("spec.{field}"), &format!("spec.{field}"));
    }
    Ok(vec![native])
}

/// Takes the known fields of a policy; clusters have more.
fn policy(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin(document, Kind::SchedulePolicy, name);
    native.set("policy", json!({}), "policy");
    document.move_to(&mut native, "policy.timeZone", "policy.timeZone");
    for block in ["interval", "daily", "weekly", "monthly", "cron", "calendar"] {
        let path = format!("policy.{block}");
        if document.get(&path).is_some_and(Value::is_array) {
            document.move_to(&mut native, &path, &path);
        }
        for field in ["intervalMinutes", "day", "date", "time", "expression", "retain", "timeZone"] {
            let path = format!("{path}.{field}");
            document.move_to(&mut native, &path, &path);
        }
    }
    Ok(vec![native])
}

/// Takes the rules and the location of snapshots from annotations, and from options of a group. Returns true
/// for cloud snapshots.
fn take_options(document: &mut Document, native: &mut Document, spec: &str) -> Result<bool, Problem> {
    const TYPE: &str = "portworx/snapshot-type";
    const CREDENTIAL: &str = "portworx/cloud-cred-id";
    let (mut is_cloud, mut location) = (false, None);
    for path in ["metadata.annotations", "spec.options"] {
        let Some(Value::Object(mut given)) = document.remove(path) else { continue };
        match given.remove(TYPE).as_ref().and_then(Value::as_str) {
            Some("cloud") => is_cloud = true,
            None | Some("local") => {}
            Some(_) => {
                return Err(document.problem(&format!("{path}.{TYPE}"), "`local` or `cloud` is expected"));
            }
        }
        location = location.or_else(|| given.remove(CREDENTIAL));
        for (annotation, field) in
            [("stork.rule/pre-snapshot", "preExecRule"), ("stork.rule/post-snapshot", "postExecRule")]
        {
            if let Some(rule) = given.remove(annotation) {
                native.set(&format!("{spec}.{field}"), rule, &format!("{path}.{annotation}"));
            }
        }
        given.keys().for_each(|key| document.ignore(&format!("{path}.{key}")));
    }
    for field in ["preExecRule", "postExecRule"] {
        document.move_to(native, &format!("spec.{field}"), &format!("{spec}.{field}"));
    }
    let credential = format!("metadata.annotations.{CREDENTIAL}");
    match location {
        Some(location) if is_cloud => native.set(&format!("{spec}.backupLocation"), location, &credential),
        Some(_) => document.ignore(&credential),
        None => {}
    }
    Ok(is_cloud)
}

/// Begins a document of local snapshots or of backups.
fn begin_snapshot(document: &mut Document, name: &str) -> Result<Document, Problem> {
    let mut native = begin(document, Kind::VolumeSnapshot, name);
    if take_options(document, &mut native, "spec")? {
        native.set("kind", Kind::VolumeBackup.to_string().into(), "kind");
        let namespace = document.get("metadata.namespace").cloned();
        take_metadata(document, &mut native, namespace);
    }
    Ok(native)
}

/// Converts a snapshot of a claim, which is a volume of its name.
pub fn volume_snapshot(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin_snapshot(document, name)?;
    for claim in ["spec.persistentVolumeClaimName", "spec.source.persistentVolumeClaimName"] {
        document.move_to(&mut native, claim, "spec.volume");
    }
    Ok(vec![native])
}

fn group_snapshot(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin_snapshot(document, name)?;
    document.move_to(&mut native, "spec.pvcSelector.matchLabels", "spec.selectors");
    Ok(vec![native])
}

fn snapshot_schedule(document: &mut Document, name: &str) -> Result<Vec<Document>, Problem> {
    let mut native = begin(document, Kind::VolumeBackupSchedule, name);
    if !take_options(document, &mut native, "spec.template.spec")? {
        native.set("spec.localSnapshots", json!({}), "spec.template.spec");
    }
    for field in ["schedulePolicyName", "suspend"] {
        document.move_to(&mut native, &format!("spec.{field}"), &format!("spec.{field}"));
    }
    document.move_to(&mut native, "spec.reclaimPolicy", "spec.template.spec.reclaimPolicy");
    let claim = "spec.template.spec.persistentVolumeClaimName";
    document.move_to(&mut native, claim, "spec.template.spec.volume");
    Ok(vec![native])
}
