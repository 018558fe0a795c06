//! Objects of declarative configuration, in YAML or JSON.
//!
//! The daemon stores no objects: each is converted to and from the resources of its API.

pub mod access;
pub mod backup;
pub mod clone;
mod document;
mod foreign;
pub mod hook;
pub mod location;
pub mod policy;
pub mod restore;
pub mod schedule;
mod values;

use crate::failure::Failure;
use blockd_api::ObjectName;
use document::Document;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fmt,
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

/// Kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// All kinds; each depends at most on those before it.
    pub const ALL: [Self; 7] = [
        Self::BackupLocation,
        Self::SchedulePolicy,
        Self::Rule,
        Self::VolumeBackup,
        Self::VolumeBackupSchedule,
        Self::VolumeRestore,
        Self::VolumeClone,
    ];

    /// Returns the kind as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BackupLocation => "BackupLocation",
            Self::SchedulePolicy => "SchedulePolicy",
            Self::Rule => "Rule",
            Self::VolumeBackup => "VolumeBackup",
            Self::VolumeBackupSchedule => "VolumeBackupSchedule",
            Self::VolumeRestore => "VolumeRestore",
            Self::VolumeClone => "VolumeClone",
        }
    }

    /// Returns the field of the content.
    const fn field(self) -> &'static str {
        match self {
            Self::BackupLocation => "location",
            Self::SchedulePolicy => "policy",
            _ => "spec",
        }
    }

    const fn short(self) -> &'static str {
        match self {
            Self::BackupLocation => "bl",
            Self::SchedulePolicy => "sp",
            Self::Rule => "r",
            Self::VolumeBackup => "vb",
            Self::VolumeBackupSchedule => "vbs",
            Self::VolumeRestore => "vr",
            Self::VolumeClone => "vc",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Unknown kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown kind `{0}`: expected BackupLocation, SchedulePolicy, Rule, VolumeBackup, VolumeBackupSchedule, VolumeRestore or VolumeClone"
)]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Parses a kind, case-insensitive, its plural, or its initials.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let word = text.to_ascii_lowercase();
        let singular = match word.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => word.strip_suffix('s').unwrap_or(&word).to_owned(),
        };
        let is_meant = |kind: &Self| {
            let name = kind.as_str().to_ascii_lowercase();
            name == word || name == singular || kind.short() == word
        };
        Self::ALL.into_iter().find(is_meant).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Content of an object by kind.
#[derive(Debug)]
pub enum Body {
    /// Backup location.
    Location(Box<location::Location>),
    /// Schedule policy.
    Policy(policy::Rules),
    /// Rule.
    Rule(hook::Hook),
    /// Backup.
    Backup(backup::Backup),
    /// Schedule.
    Schedule(Box<schedule::Scheduled>),
    /// Restore.
    Restore(restore::Restore),
    /// Clone.
    Clone(clone::VolumeClone),
}

/// Problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1 on.
    pub line: usize,
    /// Path in the object, such as `policy.daily.retain`.
    pub path: String,
    /// Cause.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Object of a file.
#[derive(Debug)]
pub struct Object {
    /// Name.
    pub name: ObjectName,
    /// File, for messages.
    pub file: String,
    /// First line.
    pub line: usize,
    /// Ignored fields.
    pub warnings: Vec<Problem>,
    /// Content.
    pub body: Body,
}

impl Object {
    /// Returns the kind.
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::Location(_) => Kind::BackupLocation,
            Body::Policy(_) => Kind::SchedulePolicy,
            Body::Rule(_) => Kind::Rule,
            Body::Backup(_) => Kind::VolumeBackup,
            Body::Schedule(_) => Kind::VolumeBackupSchedule,
            Body::Restore(_) => Kind::VolumeRestore,
            Body::Clone(_) => Kind::VolumeClone,
        }
    }

    /// Returns the document with all defaults and without secrets: equal objects have equal documents.
    pub fn view(&self) -> Value {
        let body = match &self.body {
            Body::Location(location) => view(&location.spec),
            Body::Policy(rules) => view(rules),
            Body::Rule(hook) => view(hook),
            Body::Backup(backup) => view(backup),
            Body::Schedule(schedule) => view(schedule),
            Body::Restore(restore) => view(restore),
            Body::Clone(clone) => view(clone),
        };
        document(self.kind(), self.name.as_str(), &body)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind(), self.name)
    }
}

/// Returns an object as a document.
pub fn document(kind: Kind, name: &str, body: &Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": kind.as_str(), "metadata": { "name": name }, kind.field(): body })
}

/// Returns a document as YAML.
pub fn yaml(document: &Value) -> String {
    // JSON is YAML as well; the writer fails on no value of JSON.
    serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string())
}

/// Reads the objects of a file, or of stdin for `-`.
///
/// # Errors
/// The file cannot be read, or an object is invalid; the message has the first problem of each object.
pub fn read(path: &Path) -> Result<Vec<Object>, Failure> {
    let is_stdin = path.as_os_str() == "-";
    let shown = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let opened = if is_stdin { Ok(Box::new(io::stdin().lock()) as Box<dyn Read>) } else { open(path) };
    let mut text = String::new();
    let read = opened.and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
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

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    Ok(Box::new(std::fs::File::open(path)?))
}

/// Parses the objects of a text.
///
/// # Errors
/// The first problem of each object.
pub fn parse(text: &str, file: &str, dir: &Path) -> Result<Vec<Object>, Vec<Problem>> {
    let documents = document::documents(text).map_err(|problem| vec![problem])?;
    let (mut objects, mut problems): (Vec<Object>, Vec<Problem>) = (Vec::new(), Vec::new());
    for document in documents {
        match object(document, file, dir) {
            Ok(object) => {
                let is_same = |other: &&Object| other.kind() == object.kind() && other.name == object.name;
                if let Some(other) = objects.iter().find(is_same) {
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
    if let Some(message) = foreign::instead_of(&kind) {
        return Err(document.problem("kind", message));
    }
    let kind: Kind =
        kind.parse().map_err(|error: UnknownKind| document.problem("kind", error.to_string()))?;
    let version = document.take::<String>("apiVersion")?;
    if !KNOWN_VERSIONS.contains(&version.as_str()) {
        return Err(
            document.problem("apiVersion", format!("unknown version {version:?}: write {API_VERSION}"))
        );
    }
    let name = document.take::<Metadata>("metadata")?.name;
    // The state that a cluster reported.
    document.fields.remove("status");
    let mut warnings = Vec::new();
    let body = body(kind, &name, &mut document, dir, &mut warnings)?;
    if let Some(field) = document.fields.keys().next() {
        return Err(document.problem(field, "unknown field"));
    }
    Ok(Object { name, file: file.to_owned(), line: document.line, warnings, body })
}

fn body(
    kind: Kind,
    name: &ObjectName,
    document: &mut Document,
    dir: &Path,
    warnings: &mut Vec<Problem>,
) -> Result<Body, Problem> {
    let field = kind.field();
    let at = |document: &Document, (path, message): (&str, String)| {
        document.problem(&format!("{field}.{path}"), message)
    };
    let mut ignored = |document: &Document, path: &str, reason: &str| {
        warnings.push(document.problem(&format!("spec.{path}"), format!("this is ignored: {reason}")));
    };
    Ok(match kind {
        Kind::BackupLocation => {
            let (field, spec) = if document.fields.contains_key("spec") {
                let storage: location::StorageSpec = document.take("spec")?;
                for (path, reason) in storage.ignored() {
                    ignored(document, path, reason);
                }
                ("spec", storage.into_location().map_err(|message| document.problem("spec", message))?)
            } else {
                (field, document.take(field)?)
            };
            let location =
                location::Location::new(spec, dir).map_err(|message| document.problem(field, message))?;
            Body::Location(Box::new(location))
        }
        Kind::SchedulePolicy => {
            let rules: policy::Rules = document.take(field)?;
            if rules.is_empty() {
                let message = "give interval, daily, weekly, monthly, cron or calendar";
                return Err(document.problem(field, message));
            }
            Body::Policy(rules)
        }
        Kind::Rule => Body::Rule(document.take(field)?),
        Kind::VolumeBackup => Body::Backup(document.take(field)?),
        Kind::VolumeBackupSchedule => {
            let mut schedule: schedule::Scheduled = document.take(field)?;
            schedule.check().map_err(|(path, message)| at(document, (&path, message)))?;
            if schedule.backup().reclaim_policy == backup::ReclaimPolicy::Delete {
                let reason = "`retain` says which backups are deleted from the store, always; those that are kept outlive the schedule";
                ignored(document, "template.spec.reclaimPolicy", reason);
            }
            Body::Schedule(Box::new(schedule))
        }
        Kind::VolumeRestore => {
            let mut restore: restore::Restore = document.take(field)?;
            restore.check(name).map_err(|error| at(document, error))?;
            Body::Restore(restore)
        }
        Kind::VolumeClone => {
            let mut clone: clone::VolumeClone = document.take(field)?;
            clone.check(name).map_err(|error| at(document, error))?;
            Body::Clone(clone)
        }
    })
}

#[cfg(test)]
mod tests;
