//! Documents of other systems: Stork, KubeDB and Velero.
//!
//! Each becomes documents of our kinds. A namespace becomes the label `namespace` of volumes.

mod kubedb;
mod native;
mod rules;
mod stork;
mod velero;

pub use rules::{ForeignRule, join};
pub use velero::{EXISTING_POLICY, UPDATE};

use super::{
    document::{Document, Problem},
    kind::{API_VERSION, Kind},
    secret::SecretDocument,
};
use native::begin;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// API groups of foreign documents; their versions have the same fields.
const GROUPS: [&str; 6] = [
    stork::GROUP,
    kubedb::GROUP,
    velero::GROUP,
    "volumesnapshot.external-storage.k8s.io",
    "snapshot.storage.k8s.io",
    // Secrets.
    "v1",
];

/// Document in our terms.
#[derive(Debug)]
pub enum Converted {
    /// Objects.
    Objects(Vec<Document>),
    /// Rule, whose role depends on the objects that name it.
    Rule(Box<ForeignRule>),
    /// Secret.
    Secret(Box<SecretDocument>),
}

/// End of a conversion: takes the other fields of the document.
type Finish = fn(&mut Document, Document, &str) -> Result<Vec<Document>, Problem>;

/// Conversions: API group, any without one; kind, kind of ours, moved fields as `FROM>TO` or one path for
/// both, and the end.
#[rustfmt::skip]
const CONVERSIONS: [(&str, &str, Kind, &str, Finish); 14] = [
    (stork::GROUP, "ApplicationBackup", Kind::VolumeBackup,
        "spec.backupLocation spec.reclaimPolicy spec.preExecRule spec.postExecRule spec.full spec.ttl", stork::backup),
    (stork::GROUP, "ApplicationBackupSchedule", Kind::VolumeBackupSchedule,
        "spec.schedulePolicyName spec.suspend spec.reclaimPolicy spec.template.spec.backupLocation \
        spec.template.spec.reclaimPolicy spec.template.spec.preExecRule spec.template.spec.postExecRule \
        spec.template.spec.full spec.template.spec.ttl",
        stork::schedule),
    (stork::GROUP, "ApplicationRestore", Kind::VolumeRestore,
        "spec.backupName spec.backupLocation spec.namespaceMapping spec.replacePolicy", stork::restore),
    (stork::GROUP, "ApplicationClone", Kind::VolumeClone, "spec.sourceNamespace spec.destinationNamespace", only),
    (stork::GROUP, "VolumeSnapshotSchedule", Kind::VolumeBackupSchedule,
        "spec.schedulePolicyName spec.suspend spec.reclaimPolicy>spec.template.spec.reclaimPolicy \
        spec.template.spec.persistentVolumeClaimName>spec.template.spec.volume", stork::snapshot_schedule),
    (stork::GROUP, "GroupVolumeSnapshot", Kind::VolumeSnapshot,
        "spec.pvcSelector.matchLabels>spec.selectors", stork::snapshot),
    // A claim is the volume of its name.
    ("", "VolumeSnapshot", Kind::VolumeSnapshot, "spec.persistentVolumeClaimName>spec.volume \
        spec.source.persistentVolumeClaimName>spec.volume", stork::snapshot),
    (stork::GROUP, "SchedulePolicy", Kind::SchedulePolicy, "policy.timeZone", stork::policy),
    (kubedb::GROUP, "Snapshot", Kind::VolumeBackup, "", kubedb::snapshot),
    // The storage section of a snapshot as a location.
    (kubedb::GROUP, "BackupLocation", Kind::BackupLocation, "", kubedb::location),
    (velero::GROUP, "Backup", Kind::VolumeBackup, "spec.storageLocation>spec.backupLocation spec.ttl", velero::backup),
    (velero::GROUP, "Schedule", Kind::VolumeBackupSchedule,
        "spec.template.storageLocation>spec.template.spec.backupLocation spec.paused>spec.suspend", velero::schedule),
    (velero::GROUP, "Restore", Kind::VolumeRestore, "spec.backupName spec.scheduleName spec.namespaceMapping", velero::restore),
    (velero::GROUP, "BackupStorageLocation", Kind::BackupLocation,
        "spec.objectStorage.bucket>location.path spec.objectStorage.prefix>location.prefix \
        spec.encryptionKey>location.encryptionKey spec.default>location.default", velero::location),
];

/// Tests a value.
type Test = fn(&Value) -> bool;

/// Fields of specs that select fewer volumes and have no equivalent, and the values that do.
const NARROWING: [(&str, Test); 13] = [
    ("excludedNamespaces", is_given),
    ("excludedResources", has_volumes),
    ("excludedNamespaceScopedResources", has_volumes),
    ("excludeResourceTypes", has_volumes),
    ("includeResources", is_given),
    ("includedNamespaceScopedResources", has_no_volumes),
    ("includedResources", has_no_volumes),
    ("labelSelector.matchExpressions", is_given),
    ("namespaceSelector", is_given),
    ("orLabelSelectors", is_given),
    ("pvcSelector.matchExpressions", is_given),
    ("resourceTypes", has_no_volumes),
    ("restorePVs", is_given),
];

fn is_given(value: &Value) -> bool {
    ![json!([]), json!({}), json!(true)].contains(value)
}

/// Returns true for a list of resources with volumes.
fn has_volumes(value: &Value) -> bool {
    let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    words
        .map(str::to_ascii_lowercase)
        .any(|word| ["*", "pv", "pvc"].contains(&word.as_str()) || word.starts_with("persistentvolume"))
}

/// Returns true for a list of other resources only.
fn has_no_volumes(value: &Value) -> bool {
    is_given(value) && !has_volumes(value)
}

/// Warns about fields that select fewer volumes and have no equivalent.
///
/// # Errors
/// Excluded volumes would be replaced.
fn widen(document: &mut Document, natives: &mut [Document]) -> Result<(), Problem> {
    for spec in ["spec", "spec.template", "spec.template.spec"] {
        for (field, narrows) in NARROWING {
            let path = format!("{spec}.{field}");
            if !document.get(&path).is_some_and(narrows) {
                continue;
            }
            if natives.iter().any(|one| one.get("spec.replacePolicy") == Some(&json!("Delete"))) {
                let message = "not supported: the volumes that it excludes would be replaced";
                return Err(document.problem(&path, message));
            }
            document.warn(&path, "not supported: the volumes that it excludes are selected, too");
            document.remove(&path);
            let problem =
                document.problem(&path, "not supported: the volumes that it excludes would be lost");
            natives.iter_mut().for_each(|one| one.wider = Some(problem.clone()));
        }
    }
    Ok(())
}

/// Checks that a document without a conversion is one of ours, perhaps of the group of another system.
fn check_ours(document: &Document, kind: &str, version: &str) -> Result<(), Problem> {
    if !document.has("kind") {
        return Err(document.problem("kind", "missing"));
    }
    let group = version.split('/').next().unwrap_or_default();
    let is_known = GROUPS.contains(&group);
    let is_ours = Kind::ALL.iter().any(|one| one.text() == kind);
    if version == API_VERSION || (is_known && is_ours) {
        return Ok(());
    }
    if is_known {
        let own: &[&str] = match group {
            stork::GROUP => &["BackupLocation", "Rule"],
            "v1" => &["Secret"],
            _ => &[],
        };
        let is_of = |of: &str| of == group || (of.is_empty() && group != "v1");
        let converted = CONVERSIONS.iter().filter(|(of, ..)| is_of(of)).map(|(_, theirs, ..)| *theirs);
        let kinds: BTreeSet<&str> = converted.chain(own.iter().copied()).collect();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
        return Err(document.problem("kind", format!("unknown kind `{kind}` of {group}: expected {kinds}")));
    }
    // An unknown kind is the first error.
    kind.parse::<Kind>().map_err(|error| document.problem("kind", error))?;
    if !document.has("apiVersion") {
        return Err(document.problem("apiVersion", "missing"));
    }
    Err(document.problem("apiVersion", format!("unknown version {version:?}: write {API_VERSION}")))
}

/// Converts a document; one of ours stays as it is.
pub fn convert(mut document: Document) -> Result<Converted, Problem> {
    let text = |path: &str| document.get(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (text("kind"), text("apiVersion"));
    let group = version.split('/').next().unwrap_or_default();
    let is_known = GROUPS.contains(&group);
    if (group, kind.as_str()) == ("v1", "Secret") {
        return Ok(Converted::Secret(Box::new(SecretDocument::take(document)?)));
    }
    if (group, kind.as_str()) == (stork::GROUP, "Rule") && rules::is_foreign(&document) {
        return Ok(Converted::Rule(Box::new(ForeignRule::take(document)?)));
    }
    let is_meant = |(of, theirs, ..): &&(&str, &str, Kind, &str, Finish)| {
        *theirs == kind && (*of == group || (of.is_empty() && is_known))
    };
    let Some((_, _, ours, moves, finish)) = CONVERSIONS.iter().find(is_meant) else {
        check_ours(&document, &kind, &version)?;
        return Ok(Converted::Objects(vec![document]));
    };
    let name = document.name()?;
    // The namespace of Velero's documents is that of its server, and a label of a backup hides that of its
    // volumes.
    let is_of_volumes = group != velero::GROUP || *ours == Kind::BackupLocation;
    let namespace = document.get("metadata.namespace").filter(|_| is_of_volumes).cloned();
    let mut native = begin(&document, *ours, &name);
    document.move_all(&mut native, moves);
    let mut natives = finish(&mut document, native, &name)?;
    widen(&mut document, &mut natives)?;
    let given = ["metadata.labels", "metadata.annotations"];
    let mut metadata = given.map(|path| (path, document.get(path).cloned())).to_vec();
    metadata.push(("metadata.namespace", namespace));
    let has_labels = |native: &&mut Document| {
        let kind = native.get("kind").and_then(Value::as_str).and_then(|kind| kind.parse().ok());
        // The labels of a snapshot are not those of its location, which several may have.
        !native.is_derived && kind.is_some_and(Kind::has_labels)
    };
    for native in natives.iter_mut().filter(has_labels) {
        for (path, value) in metadata.iter().filter_map(|(path, value)| Some((path, value.clone()?))) {
            document.remove(path);
            native.set(path, value, path);
        }
    }
    if let Some(problem) = document.misspelled() {
        return Err(problem);
    }
    let warnings = document.close(&format!("{kind}/{name}"));
    if let Some(first) = natives.first_mut() {
        first.inherited.extend(warnings);
    }
    Ok(Converted::Objects(natives))
}

/// Ends a conversion without other fields.
fn only(_: &mut Document, native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    Ok(vec![native])
}
