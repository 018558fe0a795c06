//! Objects of declarative configuration, in YAML or JSON.
//!
//! The daemon stores no objects: each is converted to and from the resources of its API.

pub mod backup;
mod document;
mod foreign;
pub mod hook;
pub mod location;
pub mod location_table;
pub mod policy;
mod reader;
mod resolve;
pub mod schedule;
mod secret;
mod values;
pub mod volumes;

use blockd_api::{Labels, ObjectName};
use document::{Document, Problem};
use schemars::JsonSchema;
use secret::SecretSet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt, path::Path, str::FromStr};

pub use foreign::NAMESPACE;
pub use reader::{ObjectSet, read_all};
pub use resolve::resolve;
pub use values::{Retain, view};

/// `apiVersion` of written objects.
pub const API_VERSION: &str = "blockd/v1";
/// Kind of an object; each depends at most on those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
pub enum Kind {
    /// Credential of a backup location.
    BackupLocation,
    /// Rules for several schedules.
    SchedulePolicy,
    /// Hooks around snapshots.
    Rule,
    /// Local snapshot, made once.
    VolumeSnapshot,
    /// Backup, made once.
    VolumeBackup,
    /// Schedule of backups.
    VolumeBackupSchedule,
    /// Volume restored from a backup, made once.
    VolumeRestore,
    /// Volume cloned from a snapshot, made once.
    VolumeClone,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::BackupLocation,
        Self::SchedulePolicy,
        Self::Rule,
        Self::VolumeSnapshot,
        Self::VolumeBackup,
        Self::VolumeBackupSchedule,
        Self::VolumeRestore,
        Self::VolumeClone,
    ];

    /// Returns the field of the content.
    const fn field(self) -> &'static str {
        match self {
            Self::BackupLocation => "location",
            Self::SchedulePolicy => "policy",
            _ => "spec",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Kind {
    type Err = String;

    /// Parses a kind, case-insensitive, its plural, its initials, or its name in another system.
    fn from_str(text: &str) -> Result<Self, String> {
        // Of `applicationbackup.stork.libopenstorage.org`, the group is dropped.
        let word = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let singular = match word.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => word.strip_suffix('s').unwrap_or(&word).to_owned(),
        };
        let words = [word.as_str(), singular.as_str()];
        let is_meant = |kind: &Self| {
            let name = kind.to_string();
            let initials: String = name.chars().filter(char::is_ascii_uppercase).collect();
            words.contains(&name.to_ascii_lowercase().as_str()) || initials.to_ascii_lowercase() == word
        };
        if let Some(kind) = Self::ALL.into_iter().find(is_meant) {
            return Ok(kind);
        }
        let other = OTHER_NAMES.iter().find(|(names, _)| names.split(' ').any(|name| words.contains(&name)));
        let kinds: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
        let (last, others) =
            kinds.split_last().map_or(("", kinds.as_slice()), |(last, rest)| (last.as_str(), rest));
        let unknown = || format!("unknown kind `{text}`: expected {} or {last}", others.join(", "));
        other.map(|(_, kind)| *kind).ok_or_else(unknown)
    }
}

/// Names of kinds in other systems.
const OTHER_NAMES: [(&str, Kind); 6] = [
    ("backupstoragelocation bsl", Kind::BackupLocation),
    ("groupvolumesnapshot gvs", Kind::VolumeSnapshot),
    ("applicationbackup backup snapshot", Kind::VolumeBackup),
    ("applicationbackupschedule volumesnapshotschedule schedule", Kind::VolumeBackupSchedule),
    ("applicationrestore restore", Kind::VolumeRestore),
    ("applicationclone", Kind::VolumeClone),
];

/// Content of an object by kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    Location(Box<location::Location>),
    Policy(policy::Rules),
    Rule(hook::Hook),
    Snapshot(Box<backup::Backup>),
    Backup(Box<backup::Backup>),
    Schedule(Box<schedule::ScheduleSpec>),
    Restore(volumes::Restore),
    Clone(volumes::VolumeClone),
}

/// Object of a file.
#[derive(Debug)]
pub struct Object {
    pub kind: Kind,
    pub name: ObjectName,
    /// File, for messages.
    pub file: String,
    /// First line.
    pub line: usize,
    /// Line and path of the field that selects the volumes, for messages.
    pub volumes_at: (usize, String),
    /// Warnings about fields.
    pub warnings: Vec<Problem>,
    /// An equal object of another document is the same one.
    is_derived: bool,
    pub body: Body,
}

impl Object {
    /// Returns the document with all defaults and without secrets: equal objects have equal documents.
    pub fn view(&self) -> Value {
        let labels = if let Body::Backup(backup) = &self.body { &backup.labels } else { &Labels::default() };
        document(self.kind, self.name.as_str(), labels, &view(&self.body))
    }

    /// Returns true for another object of the same kind and name.
    pub fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Returns an object as a document.
pub fn document(kind: Kind, name: &str, labels: &Labels, body: &Value) -> Value {
    let mut metadata = json!({ "name": name });
    if !labels.is_empty() {
        metadata["labels"] = json!(labels);
    }
    json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata, kind.field(): body })
}

/// Returns a document as YAML.
pub fn yaml(document: &Value) -> String {
    // JSON is YAML as well; the writer fails on no value of JSON.
    serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string())
}

/// Metadata.
#[derive(Deserialize)]
struct Metadata {
    name: ObjectName,
    /// Clusters add fields without a meaning here.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Takes the labels of a backup from its metadata.
fn backup_labels(document: &Document, metadata: &mut Map<String, Value>) -> Result<Labels, Problem> {
    let invalid = |error: String| document.problem("metadata.labels", error);
    let given = metadata.remove("labels").map(serde_json::from_value::<BTreeMap<String, String>>);
    let mut labels = given.transpose().map_err(|error| invalid(error.to_string()))?.unwrap_or_default();
    if let Some(Value::String(namespace)) = metadata.remove("namespace") {
        labels.entry(NAMESPACE.to_owned()).or_insert(namespace);
    }
    Labels::try_from(labels).map_err(|error| invalid(error.to_string()))
}

/// Takes an object from its document.
fn object(mut document: Document, file: &str, dir: &Path, secrets: &SecretSet) -> Result<Object, Problem> {
    let kind = document.take::<String>("kind")?;
    let kind: Kind = kind.parse().map_err(|error: String| document.problem("kind", error))?;
    document.is_foreign = document.take::<String>("apiVersion")? != API_VERSION;
    let Metadata { name, mut rest } = document.take("metadata")?;
    let labels = match kind {
        Kind::VolumeBackup => backup_labels(&document, &mut rest)?,
        _ => Labels::default(),
    };
    rest.keys().for_each(|key| document.ignore(&format!("metadata.{key}")));
    let (field, text) = (kind.field(), name.as_str());
    let selecting = ["selectors", "allVolumes", "group", "volume", "sourceNamespace", "sourceVolume"]
        .map(|name| format!("spec.{name}"));
    let selecting = selecting.iter().find(|path| document.get(path).is_some()).map_or("spec", String::as_str);
    let at = document.problem(selecting, "");
    let body = match kind {
        Kind::BackupLocation => {
            Body::Location(Box::new(location::Location::take(&mut document, dir, secrets)?))
        }
        Kind::SchedulePolicy => Body::Policy(document.spec(field, text)?),
        Kind::Rule => Body::Rule(document.spec(field, text)?),
        Kind::VolumeSnapshot => Body::Snapshot(Box::new(document.spec(field, text)?)),
        Kind::VolumeBackup => {
            let backup: backup::Backup = document.spec(field, text)?;
            Body::Backup(Box::new(backup::Backup { labels, ..backup }))
        }
        Kind::VolumeBackupSchedule => Body::Schedule(Box::new(document.spec(field, text)?)),
        Kind::VolumeRestore => Body::Restore(document.spec(field, text)?),
        Kind::VolumeClone => Body::Clone(document.spec(field, text)?),
    };
    if let Body::Schedule(schedule) = &body
        && schedule.backup().reclaim_policy == backup::ReclaimPolicy::Delete
    {
        let reason =
            "ignored: `retain` determines which backups are deleted; the other ones outlive the schedule";
        document.warn("spec.template.spec.reclaimPolicy", reason);
    }
    if document.is_foreign {
        document.ignore_rest();
    }
    // A cluster reports its state in `status`.
    if let Some(field) = document.rest().find(|field| *field != "status") {
        return Err(document.problem(field, "unknown field"));
    }
    let (line, is_derived) = (document.line, document.is_derived);
    let volumes_at = (at.line, at.path);
    let warnings = document.finish(&format!("{kind}/{name}"));
    Ok(Object { kind, name, file: file.to_owned(), line, volumes_at, warnings, is_derived, body })
}

#[cfg(test)]
mod tests;
