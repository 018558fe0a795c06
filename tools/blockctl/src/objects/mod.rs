//! Objects: what there is to be, written in files, and what there is, in the same form.
//!
//! An object is nothing that the daemon keeps: each is made of, and shown from, what its API has anyway.

pub mod access;
pub mod backup;
pub mod clone;
pub mod emit;
pub mod fields;
mod foreign;
pub mod hook;
pub mod location;
pub mod node;
pub mod restore;
pub mod rules;
pub mod schedule;

use crate::failure::Failure;
use blockd_api::ObjectName;
use fields::{Fields, Problem, Reading};
use node::Node;
use serde_json::{Value, json};
use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

/// What `apiVersion` says where blockctl writes it.
pub const API_VERSION: &str = "blockd/v1";
/// The versions that are read: ours, and those of the systems whose fields have the same names.
const KNOWN_VERSIONS: [&str; 3] = [API_VERSION, "stork.libopenstorage.org/v1alpha1", "kubedb.com/v1alpha1"];
/// The longest file of objects, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What clusters write into the metadata of what they keep, and show with it.
const KEPT_BY_CLUSTERS: [&str; 7] =
    ["creationTimestamp", "finalizers", "generation", "managedFields", "resourceVersion", "selfLink", "uid"];

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Where backups go: a credential.
    BackupLocation,
    /// When, for several schedules.
    SchedulePolicy,
    /// What is done around freezes.
    Rule,
    /// A backup, once.
    VolumeBackup,
    /// Backups by a schedule.
    VolumeBackupSchedule,
    /// A volume out of a backup, once.
    VolumeRestore,
    /// A volume out of another one's snapshot, once.
    VolumeClone,
}

impl Kind {
    /// All kinds; each needs at most those before it.
    pub const ALL: [Self; 7] = [
        Self::BackupLocation,
        Self::SchedulePolicy,
        Self::Rule,
        Self::VolumeBackup,
        Self::VolumeBackupSchedule,
        Self::VolumeRestore,
        Self::VolumeClone,
    ];

    /// As it is written in files.
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

/// A word that is no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no kind of object: there are BackupLocation, SchedulePolicy, Rule, VolumeBackup, VolumeBackupSchedule, VolumeRestore and VolumeClone"
)]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Understands a kind in any case, its plural, and its initials.
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

/// What of an object depends on its kind.
#[derive(Debug)]
pub enum Body {
    /// Of a backup location.
    Location(Box<location::Location>),
    /// Of a schedule policy.
    Policy(rules::Rules),
    /// Of a rule.
    Rule(hook::Hook),
    /// Of a backup.
    Backup(backup::Backup),
    /// Of a schedule.
    Schedule(Box<schedule::Scheduled>),
    /// Of a restore.
    Restore(restore::Restore),
    /// Of a clone.
    Clone(clone::Clone),
}

/// An object in a file.
#[derive(Debug)]
pub struct Object {
    /// What it is called.
    pub name: ObjectName,
    /// The file, for messages.
    pub file: String,
    /// The line that it begins in.
    pub line: usize,
    /// What of it means nothing here, and is ignored.
    pub warnings: Vec<Problem>,
    /// The rest.
    pub body: Body,
}

impl Object {
    /// What it is.
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

    /// It in full, with what is not said filled in and without secrets: two that mean the same are the same.
    pub fn view(&self) -> Value {
        let (field, body) = match &self.body {
            Body::Location(location) => ("location", location.view()),
            Body::Policy(rules) => ("policy", rules.view()),
            Body::Rule(hook) => ("spec", hook.view()),
            Body::Backup(backup) => ("spec", backup.view()),
            Body::Schedule(schedule) => ("spec", schedule.view()),
            Body::Restore(restore) => ("spec", restore.view(&self.name)),
            Body::Clone(clone) => ("spec", clone.view(&self.name)),
        };
        document(self.kind(), self.name.as_str(), field, &body)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind(), self.name)
    }
}

/// An object as a document.
pub fn document(kind: Kind, name: &str, field: &str, body: &Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": kind.as_str(), "metadata": { "name": name }, field: body })
}

/// Reads the objects in a file, `-` being stdin.
///
/// # Errors
/// It cannot be read, or something in it is wrong: everything that is, by line and path.
pub fn read(path: &Path) -> Result<Vec<Object>, Failure> {
    let stdin = path.as_os_str() == "-";
    let shown = if stdin { "stdin".to_owned() } else { path.display().to_string() };
    let opened = if stdin { Ok(Box::new(io::stdin().lock()) as Box<dyn Read>) } else { open(path) };
    let mut text = String::new();
    let read = opened.and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| Failure::usage(format!("cannot read {shown}: {error}")))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::usage(format!("{shown} is longer than {MAX_FILE_BYTES} bytes")));
    }
    let dir = if stdin { PathBuf::from(".") } else { path.parent().map(Path::to_owned).unwrap_or_default() };
    parse(&text, &shown, &dir).map_err(|problems| {
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(format!("{shown}: {}", told.join("; ")))
    })
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    Ok(Box::new(std::fs::File::open(path)?))
}

/// The objects in a text.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file: &str, dir: &Path) -> Result<Vec<Object>, Vec<Problem>> {
    let documents = node::documents(text)
        .map_err(|error| vec![Problem { line: error.line, path: String::new(), what: error.what }])?;
    let reading = Reading::new(dir);
    let mut objects: Vec<Object> = Vec::new();
    for node in &documents {
        let Some(object) = object(node, file, &reading) else { continue };
        let is_same = |other: &&Object| other.kind() == object.kind() && other.name == object.name;
        if let Some(other) = objects.iter().find(is_same) {
            reading.wrong(
                object.line,
                "metadata.name",
                format!("{object} is in line {} already", other.line),
            );
        }
        objects.push(object);
    }
    if documents.is_empty() {
        reading.wrong(1, "", "there is no object in it");
    }
    let problems = reading.problems();
    if problems.is_empty() { Ok(objects) } else { Err(problems) }
}

fn object(node: &Node, file: &str, reading: &Reading) -> Option<Object> {
    let mut fields = Fields::of(node, String::new(), reading)?;
    let line = node.line;
    let said = fields.peek("kind").and_then(|kind| match &kind.value {
        node::NodeValue::Scalar { text, .. } => foreign::instead_of(text).map(|told| (kind.line, told)),
        _ => None,
    });
    if let Some((line, told)) = said {
        // The rest is as that kind has it.
        reading.wrong(line, "kind", told);
        return None;
    }
    if let Some(version) =
        fields.required_text("apiVersion").filter(|one| !KNOWN_VERSIONS.contains(&one.as_str()))
    {
        fields.wrong(line, "apiVersion", format!("{version:?} is not known: write {API_VERSION}"));
    }
    let kind = fields.required::<Kind>("kind");
    let name = fields.fields("metadata").and_then(|mut metadata| {
        let name = metadata.required::<ObjectName>("name");
        // Those of clusters: they mean nothing here, and files that have them are read as they are.
        let _ = (metadata.node("namespace"), metadata.node("annotations"), metadata.node("labels"));
        for name in KEPT_BY_CLUSTERS {
            let _ = metadata.node(name);
        }
        metadata.finish();
        name
    });
    if !node_has(node, "metadata") {
        fields.missing("metadata");
    }
    // What was observed is no wish.
    let _ = fields.node("status");
    let body = match kind? {
        Kind::BackupLocation => location::read(&mut fields).map(Box::new).map(Body::Location),
        Kind::SchedulePolicy => rules::read_policy(&mut fields).map(Body::Policy),
        Kind::Rule => hook::read(&mut fields).map(Body::Rule),
        Kind::VolumeBackup => backup::read(&mut fields).map(Body::Backup),
        Kind::VolumeBackupSchedule => schedule::read(&mut fields).map(Box::new).map(Body::Schedule),
        Kind::VolumeRestore => restore::read(&mut fields).map(Body::Restore),
        Kind::VolumeClone => clone::read(&mut fields).map(Body::Clone),
    };
    fields.finish();
    let warnings = reading.take_warnings();
    Some(Object { name: name?, file: file.to_owned(), line, warnings, body: body? })
}

fn node_has(node: &Node, name: &str) -> bool {
    matches!(&node.value, node::NodeValue::Map(fields) if fields.iter().any(|(key, _)| key.name == name))
}

/// Takes the policy for what becomes of what an object made when the object goes; it stays, unless `Delete`
/// is allowed.
fn reclaim_policy(fields: &mut Fields<'_>, may_delete: bool) -> bool {
    let line = fields.peek("reclaimPolicy").map_or(fields.line, |node| node.line);
    match fields.text("reclaimPolicy").as_deref() {
        None | Some("Retain") => false,
        Some("Delete") if may_delete => true,
        Some("Delete") => {
            let path = format!("{}.reclaimPolicy", fields.path);
            fields.reading.ignored(line, &path, "`retain` says which backups are deleted from the store, always; those that are kept outlive the schedule");
            false
        }
        Some(other) => {
            fields.wrong(line, "reclaimPolicy", format!("{other:?} is neither Retain nor Delete"));
            false
        }
    }
}

/// Takes the rule around freezes. The custom resources name one before and one after; here a rule has both
/// commands.
fn exec_rule(fields: &mut Fields<'_>) -> Option<blockd_api::RuleName> {
    let line = fields.peek("postExecRule").map_or(fields.line, |node| node.line);
    let before: Option<blockd_api::RuleName> = fields.parsed("preExecRule");
    let after: Option<blockd_api::RuleName> = fields.parsed("postExecRule");
    if let (Some(before), Some(after)) = (&before, &after)
        && before != after
    {
        fields.wrong(
            line,
            "postExecRule",
            format!(
                "a rule has the command before and the one after: name {before} here as well, or nothing"
            ),
        );
    }
    before.or(after)
}

/// Adds the rule to what is shown.
fn show_rule(rule: Option<&blockd_api::RuleName>, view: &mut serde_json::Map<String, Value>) {
    if let Some(rule) = rule {
        view.insert("preExecRule".to_owned(), rule.as_str().into());
        view.insert("postExecRule".to_owned(), rule.as_str().into());
    }
}

/// Takes a selector of labels: fields, or `key=value` texts.
fn selectors(fields: &mut Fields<'_>) -> Option<blockd_api::LabelSelector> {
    let path =
        if fields.path.is_empty() { "selectors".to_owned() } else { format!("{}.selectors", fields.path) };
    let node = fields.node("selectors")?;
    let text = match &node.value {
        node::NodeValue::Scalar { text, .. } => text.clone(),
        node::NodeValue::Map(pairs) => {
            let pair = |(key, value): &(node::Key, Node)| match &value.value {
                node::NodeValue::Scalar { text, .. } => Some(format!("{}={text}", key.name)),
                _ => None,
            };
            match pairs.iter().map(pair).collect::<Option<Vec<_>>>() {
                Some(pairs) => pairs.join(","),
                None => {
                    fields.reading.wrong(node.line, &path, "labels are text");
                    return None;
                }
            }
        }
        _ => {
            fields.reading.wrong(node.line, &path, "labels are expected here");
            return None;
        }
    };
    let selector: Result<blockd_api::LabelSelector, _> = text.parse();
    match selector {
        Ok(selector) if selector.labels().is_empty() => {
            fields.reading.wrong(node.line, &path, "there are no labels in it");
            None
        }
        Ok(selector) => Some(selector),
        Err(error) => {
            fields.reading.wrong(node.line, &path, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests;
