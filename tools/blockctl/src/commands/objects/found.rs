//! Resources of the daemon in the form of objects.

use super::{
    backup_groups::BackupGroup,
    resources::{ResourceSet, schedule_name},
    status::{
        Condition, LocationStatus, Names, PolicyStatus, RuleStatus, ScheduleStatus, SnapshotMember,
        SnapshotSpec, SnapshotStatus,
    },
};
use crate::{
    commands::schedules::{called, kept, selected},
    objects::{self, Kind, NAMESPACE, hook::Hook, location::view_of, policy::Rules, view},
};
use blockd_api::{
    ByteSize, Labels, ObjectName,
    credentials::Credential,
    format_duration,
    rules::HookRule,
    schedules::{Policy, Schedule, SelectedVolumes},
    snapshots::Snapshot,
    volumes::Volume,
};
use blockd_schedule::Retention;
use jiff::Timestamp;
use serde_json::{Value, json};
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
    pub body: Value,
    pub status: Value,
    /// Labels of backups.
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
        let (tasks, volumes, namespaces) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let (shown, labels, is_of_other_host, obstacle) = (name.clone(), Labels::default(), false, None);
        let with_host = None;
        Self {
            kind,
            name,
            shown,
            with_host,
            body,
            status,
            labels,
            is_of_other_host,
            obstacle,
            tasks,
            volumes,
            namespaces,
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
        let is_uuid = self.kind == Kind::VolumeBackupSchedule && Uuid::try_parse(&self.name).is_ok();
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
        self.names().any(|one| one == name)
    }

    /// Returns true if one of its volumes is in a namespace.
    pub fn is_in(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// Returns the cells of a table.
    pub fn cells(&self, is_wide: bool) -> impl Iterator<Item = String> {
        let name = if is_wide { &self.name } else { &self.shown };
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
        // Of a script, the first line.
        Value::String(text) => Some(text.lines().next().unwrap_or_default().to_owned()),
        Value::Number(number) if path.ends_with("Seconds") => number.as_f64().map(short_duration),
        Value::Number(number) if path.ends_with("Bytes") => {
            number.as_u64().map(|len_bytes| ByteSize::from_bytes(len_bytes).to_string())
        }
        other => Some(other.to_string()),
    });
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

impl ResourceSet {
    /// Returns the objects of a kind.
    pub fn of(&self, kind: Kind) -> Vec<Found> {
        let mut all: Vec<Found> = match kind {
            Kind::BackupLocation => self.credentials.iter().map(|one| self.location(one)).collect(),
            Kind::SchedulePolicy => self.policies.iter().map(|one| self.policy(one)).collect(),
            Kind::Rule => self.rules.iter().map(|one| self.found_rule(one)).collect(),
            Kind::VolumeSnapshot => self.snapshot_objects(),
            Kind::VolumeBackup => BackupGroup::all(self).iter().map(|group| group.found(self)).collect(),
            Kind::VolumeBackupSchedule => self.schedules.iter().map(|one| self.found_schedule(one)).collect(),
            Kind::VolumeRestore => self.restores(),
            Kind::VolumeClone => self.clones(),
        };
        for one in all.iter_mut().filter(|one| !one.is_of_other_host) {
            let volumes = self.volumes.iter().filter(|volume| one.volumes.contains(volume.name.as_str()));
            one.namespaces
                .extend(volumes.filter_map(|volume| volume.labels.as_map().get(NAMESPACE)).cloned());
        }
        all
    }

    /// Returns the object of a kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<Found> {
        self.of(kind).into_iter().find(|found| found.name == name)
    }

    /// Returns the names of volumes with a property, and of the volumes of schedules with one.
    fn users(
        &self,
        is_user: impl Fn(&Volume) -> bool,
        is_used_by: impl Fn(&Schedule) -> bool,
    ) -> BTreeSet<String> {
        let schedules = self.schedules.iter().filter(|one| is_used_by(one));
        let specs: Vec<_> = schedules.filter_map(|one| self.schedule_spec(one)).collect();
        let scheduled = specs.iter().flat_map(|spec| self.members(spec.backup()));
        let volumes = self.volumes.iter().filter(|volume| is_user(volume));
        volumes.chain(scheduled).map(|volume| volume.name.to_string()).collect()
    }

    fn location(&self, one: &Credential) -> Found {
        let status = json!(LocationStatus {
            credential_id: one.credential_id,
            created_at: one.created_at,
            authentication: one.store.auth.clone(),
            create_if_absent: one.conditional_put,
            write_bytes_per_second: one.write_bytes_per_second,
        });
        let has_backup =
            |volume: &Volume| volume.last_backups.iter().any(|last| last.credential_id == one.credential_id);
        let volumes = self.users(has_backup, |schedule| schedule.credential_ids.contains(&one.credential_id));
        let found = Found::new(Kind::BackupLocation, one.name.to_string(), view_of(one), status);
        Found { volumes, ..found }
    }

    fn policy(&self, one: &Policy) -> Found {
        let whens: Vec<String> = one.rules.iter().map(|rule| rule.when.to_string()).collect();
        let retains = one.rules.iter().filter_map(|rule| rule.retain.as_ref());
        let retains: Vec<String> = retains.map(ToString::to_string).collect();
        let retain = (!retains.is_empty()).then(|| retains.join(", "));
        let status = json!(PolicyStatus { schedule: whens.join(", "), retain });
        let volumes = self.users(|_| false, |schedule| schedule.policy_name.as_ref() == Some(&one.name));
        let body = view(&Rules::of(&one.rules));
        Found { volumes, ..Found::new(Kind::SchedulePolicy, one.name.to_string(), body, status) }
    }

    fn found_rule(&self, one: &HookRule) -> Found {
        let groups = one.groups.iter().map(|group| format!("group {group}"));
        let targets: Vec<String> = one.volume_names.iter().map(ToString::to_string).chain(groups).collect();
        let (schedule_ids, problem) = (one.schedule_ids.clone(), one.problem.clone());
        let status = json!(RuleStatus { schedule_ids, problem, assigned_to: targets });
        let is_target = |volume: &Volume| {
            one.volume_names.contains(&volume.name)
                || volume.group.as_ref().is_some_and(|group| one.groups.contains(group))
        };
        let volumes = self.users(is_target, |schedule| one.schedule_ids.contains(&schedule.schedule_id));
        Found { volumes, ..Found::new(Kind::Rule, one.name.to_string(), view(&Hook::of(one)), status) }
    }

    fn found_schedule(&self, one: &Schedule) -> Found {
        // The schedule of a deleted volume has no content that could be applied.
        let spec = self.schedule_spec(one);
        let members = spec.iter().flat_map(|spec| self.members(spec.backup()));
        let volumes = members.map(|volume| volume.name.to_string()).collect();
        let condition =
            |kind: &str, status| Condition { kind: kind.to_owned(), status, ..Condition::default() };
        let status = ScheduleStatus {
            schedule_id: one.schedule_id,
            created_at: one.created_at,
            next_run_at: one.next_run_at,
            last_run_at: one.last_run_at,
            state: if one.paused { "paused" } else { "active" }.to_owned(),
            selected: match &one.selector {
                SelectedVolumes { volume_name: None, volume_id: Some(id), .. } => format!("volume {id}"),
                selector => selected(selector),
            },
            schedule: one.schedule.clone(),
            kept: kept(one, &self.policies, Retention::to_string),
            conditions: vec![condition("Active", !one.paused), condition("Covering", !one.without_volume)],
        };
        let gone = "is of a volume or location that is gone: it cannot be applied";
        let obstacle = spec.is_none().then_some(gone);
        let body = spec.map_or(Value::Null, |spec| view(&spec));
        let found = Found::new(Kind::VolumeBackupSchedule, schedule_name(one), body, json!(status));
        Found { volumes, obstacle, shown: called(one), labels: one.labels.clone(), ..found }
    }

    /// Returns the local snapshots, those of one name together.
    fn snapshot_objects(&self) -> Vec<Found> {
        let mut groups: Vec<(&str, Vec<&Snapshot>)> = Vec::new();
        for one in &self.snapshots {
            match groups.iter_mut().find(|(name, _)| *name == one.name.as_str()) {
                Some((_, group)) => group.push(one),
                None => groups.push((one.name.as_str(), vec![one])),
            }
        }
        let member = |one: &&Snapshot| SnapshotMember {
            volume_name: one.volume_name.clone(),
            snapshot_id: one.snapshot_id,
            state: one.state,
        };
        let object = |(name, group): (&str, Vec<&Snapshot>)| {
            let volumes: BTreeSet<String> = group.iter().map(|one| one.volume_name.to_string()).collect();
            let status = json!(SnapshotStatus {
                created_at: group.iter().map(|one| one.created_at).min(),
                volume_count: volumes.len(),
                volumes: group.iter().map(member).collect(),
            });
            let body = json!(SnapshotSpec { volume: one_or_all(&volumes) });
            Found { volumes, ..Found::new(Kind::VolumeSnapshot, name.to_owned(), body, status) }
        };
        groups.into_iter().map(object).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
