//! Resource of the daemon in the form of an object.

use super::{args::kind_and_name, status::Names};
use crate::{
    backup_names::{short_name, without_host},
    objects::{self, Kind},
};
use blockd_api::{ByteSize, Labels, ObjectName, cloudsnaps::CloudSnapshotId, format_duration};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// Resource in the form of an object.
#[derive(Debug)]
pub struct Found {
    pub kind: Kind,
    /// Name, or id without a name.
    pub name: String,
    /// Short name for tables.
    pub shown: String,
    /// Name with the host that made it: backups of several hosts can have one name.
    pub with_host: Option<String>,
    /// Cluster of this host.
    pub cluster: Option<Uuid>,
    pub body: Value,
    pub status: Value,
    /// Labels, with annotations.
    pub labels: Labels,
    /// It is a backup of another host.
    pub is_of_other_host: bool,
    /// Reason why it cannot be applied.
    pub obstacle: Option<&'static str>,
    /// Tasks that made it.
    pub tasks: Vec<Uuid>,
    /// Volumes.
    pub volumes: BTreeSet<String>,
    /// Namespaces of its volumes.
    pub namespaces: BTreeSet<String>,
}

impl Found {
    /// Creates an object without tasks and volumes.
    pub fn new(kind: Kind, name: String, body: Value, status: Value) -> Self {
        Self {
            kind,
            shown: name.clone(),
            name,
            with_host: None,
            cluster: None,
            body,
            status,
            labels: Labels::default(),
            is_of_other_host: false,
            obstacle: None,
            tasks: Vec::new(),
            volumes: BTreeSet::new(),
            namespaces: BTreeSet::new(),
        }
    }

    /// Returns the document with its status.
    pub fn document(&self) -> Value {
        let mut document = self.view();
        document["status"] = self.status.clone();
        document
    }

    /// Returns the document without its status.
    pub fn view(&self) -> Value {
        objects::document(self.kind, &self.name, &self.labels, &self.body)
    }

    /// Returns the reason why the document cannot be applied.
    pub fn unappliable(&self) -> Option<&'static str> {
        let is_schedule = matches!(self.kind, Kind::VolumeBackupSchedule | Kind::RestoreDrill);
        let is_uuid = is_schedule && Uuid::try_parse(&self.name).is_ok();
        if is_uuid || self.name.parse::<ObjectName>().is_err() {
            return Some("has no name: it cannot be applied");
        }
        if self.obstacle.is_some() {
            return self.obstacle;
        }
        let is_made = matches!(self.kind, Kind::VolumeRestore | Kind::VolumeClone);
        (is_made && self.volumes.len() > 1).then_some("has several volumes: only its own file can be applied")
    }

    /// Returns the names that select it, those for scripts first: its name, the name with its host, and the
    /// ids of its cloud snapshots, or of the tasks of those that are not done.
    fn names(&self) -> impl Iterator<Item = &str> {
        let members = self.status["volumes"].as_array().into_iter().flatten();
        let ids =
            members.filter_map(|one| one["cloudSnapshotId"].as_str().or_else(|| one["taskId"].as_str()));
        std::iter::once(self.name.as_str())
            .chain(self.with_host.as_deref())
            .chain(ids)
            .chain(std::iter::once(self.shown.as_str()))
    }

    /// Returns true if a name selects it.
    pub fn is_named(&self, name: &str) -> bool {
        let name = match kind_and_name(name) {
            Some((kind, name)) if kind == self.kind => name,
            Some(_) => return false,
            None => name,
        };
        let of_host = self.cluster.and_then(|cluster| without_host(name, cluster));
        self.names().any(|one| one == name)
            || of_host.is_some_and(|rest| rest == self.name || rest == short_name(&self.name))
    }

    /// Returns true if one of its volumes is in a namespace.
    pub fn is_in(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// Returns the cells of a table.
    pub fn cells(&self, is_wide: bool) -> impl Iterator<Item = String> {
        // A complete id has the host.
        let is_id = self.name.parse::<CloudSnapshotId>().is_ok();
        let of_host = self.with_host.as_ref().filter(|_| self.is_of_other_host && !is_id);
        let name = if is_wide { of_host.unwrap_or(&self.name) } else { &self.shown };
        let document = self.document();
        let columns = self.kind.columns(is_wide);
        std::iter::once(name.clone()).chain(columns.map(move |(_, paths)| cell(&document, paths, is_wide)))
    }
}

/// Names of objects and the number of objects that each one selects.
pub struct NameCounts<'a>(HashMap<(Kind, &'a str), usize>);

impl<'a> NameCounts<'a> {
    /// Counts the names of all objects of some kinds.
    pub fn of(all: &'a [Found]) -> Self {
        let mut counts = HashMap::new();
        for one in all {
            for name in one.names().collect::<BTreeSet<_>>() {
                *counts.entry((one.kind, name)).or_default() += 1;
            }
        }
        Self(counts)
    }

    /// Returns the first name of an object that selects no other one.
    pub fn unique(&self, one: &'a Found) -> &'a str {
        one.names().find(|name| self.0.get(&(one.kind, *name)) == Some(&1)).unwrap_or(&one.name)
    }
}

/// Greatest width of several values in a narrow table.
const MAX_VALUES_WIDTH: usize = 24;

/// Returns the values at paths separated by `/`: each once, of lists those of their items. Of several long
/// ones, a narrow table has the first and the number of the others.
fn cell(document: &Value, paths: &str, is_wide: bool) -> String {
    let words_at = |path: &str| {
        let mut words = BTreeSet::new();
        collect(document, path, path, &mut words);
        let words: Vec<String> = words.into_iter().collect();
        match (words.join(","), words.as_slice()) {
            (all, [first, others @ ..])
                if !is_wide && !others.is_empty() && all.chars().count() > MAX_VALUES_WIDTH =>
            {
                format!("{first},+{}", others.len())
            }
            (all, _) => all,
        }
    };
    let parts: Vec<String> = paths.split('/').map(words_at).filter(|words| !words.is_empty()).collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join("/") }
}

/// Adds the values at the rest of a path. The name of the field has the unit.
fn collect(value: &Value, path: &str, rest: &str, words: &mut BTreeSet<String>) {
    if let Value::Array(items) = value {
        return items.iter().for_each(|item| collect(item, path, rest, words));
    }
    if !rest.is_empty() {
        let (first, rest) = rest.split_once('.').unwrap_or((rest, ""));
        return value.get(first).into_iter().for_each(|inner| collect(inner, path, rest, words));
    }
    words.extend(match value {
        Value::Null => None,
        Value::String(text) if path.ends_with("At") => text.parse().ok().map(short_time),
        Value::String(text) => Some(first_command(text).to_owned()),
        Value::Number(number) if path.ends_with("Seconds") => number.as_f64().map(short_duration),
        Value::Number(number) if path.ends_with("Bytes") => {
            number.as_u64().map(|len_bytes| ByteSize::from_bytes(len_bytes).to_string())
        }
        other => Some(other.to_string()),
    });
}

/// Returns the first line of a text; of a script, the first command.
fn first_command(text: &str) -> &str {
    let is_command = |line: &&str| {
        let line = line.trim();
        !(line.is_empty() || line.starts_with('#') || line.starts_with("set -"))
    };
    text.lines().find(is_command).or_else(|| text.lines().next()).unwrap_or_default()
}

/// Formats a time for tables, in UTC.
fn short_time(time: Timestamp) -> String {
    time.strftime("%d %b %y %H:%M").to_string()
}

/// Formats a duration for tables, to the second if it is longer than a minute.
fn short_duration(seconds: f64) -> String {
    format_duration(if seconds < 60.0 { (seconds * 10.0).round() / 10.0 } else { seconds.round() })
}

/// Returns the only name, or all.
pub fn one_or_all(names: &BTreeSet<String>) -> Names {
    match names.first() {
        Some(only) if names.len() == 1 => Names::One(only.clone()),
        _ => Names::Several(names.iter().cloned().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cell_of_a_script_is_its_first_command() {
        for (text, shown) in [
            ("#!/bin/sh\nset -eu\n\n  # hold\npsql -c CHECKPOINT\nsync\n", "psql -c CHECKPOINT"),
            ("fsfreeze -f /db", "fsfreeze -f /db"),
            ("#!/bin/sh\n", "#!/bin/sh"),
        ] {
            assert_eq!(cell(&json!({ "pre": text }), "pre", false), shown);
        }
    }

    #[test]
    fn narrow_cells_have_the_first_of_several_long_values() {
        let of = |names: &[&str]| json!({ "volumes": names.iter().map(|name| json!({ "of": name })).collect::<Vec<_>>() });
        let long = of(&["database@clone-1", "journal@clone-1", "log@clone-1"]);
        assert_eq!(cell(&long, "volumes.of", false), "database@clone-1,+2");
        assert_eq!(cell(&long, "volumes.of", true), "database@clone-1,journal@clone-1,log@clone-1");
        assert_eq!(cell(&of(&["a@clone-1", "b@clone-1"]), "volumes.of", false), "a@clone-1,b@clone-1");
        assert_eq!(cell(&of(&["a-very-long-name-of-a-volume@clone-1"]), "volumes.of", false).len(), 36);
    }
}
