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
pub mod schedule;
mod values;
pub mod volumes;

use crate::failure::Failure;
use blockd_api::ObjectName;
use document::{Document, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

pub use values::view;

/// `apiVersion` of written objects.
pub const API_VERSION: &str = "blockd/v1";
/// Accepted versions: ours, and those of systems whose fields have the same names.
const KNOWN_VERSIONS: [&str; 3] = [API_VERSION, "stork.libopenstorage.org/v1alpha1", "kubedb.com/v1alpha1"];
/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Kind of an object; each depends at most on those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// Credential of a backup location.
    BackupLocation,
    /// Rules for several schedules.
    SchedulePolicy,
    /// Hooks around snapshots.
    Rule,
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
    pub const ALL: [Self; 7] = [
        Self::BackupLocation,
        Self::SchedulePolicy,
        Self::Rule,
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

    /// Parses a kind, case-insensitive, its plural, or its initials.
    fn from_str(text: &str) -> Result<Self, String> {
        let word = text.to_ascii_lowercase();
        let singular = match word.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => word.strip_suffix('s').unwrap_or(&word).to_owned(),
        };
        let is_meant = |kind: &Self| {
            let name = kind.to_string();
            let initials: String = name.chars().filter(char::is_ascii_uppercase).collect();
            [&word, &singular].contains(&&name.to_ascii_lowercase()) || initials.to_ascii_lowercase() == word
        };
        let kinds = "BackupLocation, SchedulePolicy, Rule, VolumeBackup, VolumeBackupSchedule, VolumeRestore or VolumeClone";
        let unknown = || format!("unknown kind `{text}`: expected {kinds}");
        Self::ALL.into_iter().find(is_meant).ok_or_else(unknown)
    }
}

/// Content of an object by kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Body {
    Location(Box<location::Location>),
    Policy(policy::Rules),
    Rule(hook::Hook),
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
    /// Ignored fields.
    pub warnings: Vec<Problem>,
    pub body: Body,
}

impl Object {
    /// Returns the document with all defaults and without secrets: equal objects have equal documents.
    pub fn view(&self) -> Value {
        document(self.kind, self.name.as_str(), &view(&self.body))
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
pub fn document(kind: Kind, name: &str, body: &Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, kind.field(): body })
}

/// Returns a document as YAML.
pub fn yaml(document: &Value) -> String {
    // JSON is YAML as well; the writer fails on no value of JSON.
    serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string())
}

/// Reads the objects of a file, or of stdin for `-`.
pub fn read(path: &Path) -> Result<Vec<Object>, Failure> {
    let is_stdin = path.as_os_str() == "-";
    let shown = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let read = match is_stdin {
        true => io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::usage(format!("cannot read {shown}: {error}")))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::usage(format!("{shown} is longer than {MAX_FILE_BYTES} bytes")));
    }
    let dir =
        if is_stdin { PathBuf::from(".") } else { path.parent().map(Path::to_owned).unwrap_or_default() };
    parse(&text, &shown, &dir).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(format!("{shown}: {}", problems.join("; ")))
    })
}

/// Reads the objects of all files, each after those that it depends on.
pub fn read_all(files: &[PathBuf]) -> Result<Vec<Object>, Failure> {
    let mut all: Vec<Object> = Vec::new();
    for file in files {
        for object in read(file)? {
            if let Some(other) = all.iter().find(|other| other.is_same(&object)) {
                let message =
                    format!("{}: line {}: {object} is in {} already", object.file, object.line, other.file);
                return Err(Failure::usage(message));
            }
            all.push(object);
        }
    }
    refuse_two_rules(&all)?;
    all.sort_by_key(|object| object.kind);
    Ok(all)
}

/// Refuses a volume or group with two rules: it has one, and each would take it from the other.
fn refuse_two_rules(objects: &[Object]) -> Result<(), Failure> {
    let mut rules: BTreeMap<String, &Object> = BTreeMap::new();
    for object in objects {
        let Body::Rule(hook) = &object.body else { continue };
        for target in hook.targets().iter().flatten().flatten().map(ToString::to_string) {
            if let Some(other) = rules.insert(target.clone(), object) {
                let message = format!(
                    "{}: line {}: {target} cannot have {object}: it has {other} already, in {}, line {}",
                    object.file, object.line, other.file, other.line
                );
                return Err(Failure::usage(message));
            }
        }
    }
    Ok(())
}

/// Parses the objects of a text.
pub fn parse(text: &str, file: &str, dir: &Path) -> Result<Vec<Object>, Vec<Problem>> {
    let documents = document::documents(text).map_err(|problem| vec![problem])?;
    let (mut objects, mut problems): (Vec<Object>, Vec<Problem>) = (Vec::new(), Vec::new());
    for document in documents {
        match object(document, file, dir) {
            Ok(object) => {
                if let Some(other) = objects.iter().find(|other| other.is_same(&object)) {
                    let message = format!("{object} is in line {} already", other.line);
                    problems.push(Problem { line: object.line, path: "metadata.name".to_owned(), message });
                }
                objects.push(object);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if objects.is_empty() && problems.is_empty() {
        problems.push(Problem { line: 1, path: String::new(), message: "no objects".to_owned() });
    }
    if problems.is_empty() { Ok(objects) } else { Err(problems) }
}

/// Metadata. Clusters add fields without a meaning here.
#[derive(Deserialize)]
struct Metadata {
    name: ObjectName,
}

fn object(mut document: Document, file: &str, dir: &Path) -> Result<Object, Problem> {
    let kind = document.take::<String>("kind")?;
    if let Some(message) = foreign::replacement(&kind) {
        return Err(document.problem("kind", message));
    }
    let kind: Kind = kind.parse().map_err(|error: String| document.problem("kind", error))?;
    let version = document.take::<String>("apiVersion")?;
    if !KNOWN_VERSIONS.contains(&version.as_str()) {
        let message = format!("unknown version {version:?}: write {API_VERSION}");
        return Err(document.problem("apiVersion", message));
    }
    let name = document.take::<Metadata>("metadata")?.name;
    let (field, text) = (kind.field(), name.as_str());
    let body = match kind {
        Kind::BackupLocation => Body::Location(Box::new(location::Location::take(&mut document, dir)?)),
        Kind::SchedulePolicy => Body::Policy(document.spec(field, text)?),
        Kind::Rule => Body::Rule(document.spec(field, text)?),
        Kind::VolumeBackup => Body::Backup(Box::new(document.spec(field, text)?)),
        Kind::VolumeBackupSchedule => Body::Schedule(Box::new(document.spec(field, text)?)),
        Kind::VolumeRestore => Body::Restore(document.spec(field, text)?),
        Kind::VolumeClone => Body::Clone(document.spec(field, text)?),
    };
    if let Body::Schedule(schedule) = &body
        && schedule.backup().reclaim_policy == backup::ReclaimPolicy::Delete
    {
        let reason = "`retain` always determines which backups are deleted from the store; kept backups outlive the schedule";
        document.warn("spec.template.spec.reclaimPolicy", reason);
    }
    // A cluster reports its state in `status`.
    if let Some(field) = document.rest().find(|field| *field != "status") {
        return Err(document.problem(field, "unknown field"));
    }
    Ok(Object { kind, name, file: file.to_owned(), line: document.line, warnings: document.warnings, body })
}

#[cfg(test)]
mod tests;
