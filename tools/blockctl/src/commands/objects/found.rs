//! Resources of the daemon in the form of objects.

use super::{
    backup_groups::BackupGroup,
    resources::{ResourceSet, schedule_name},
};
use crate::{
    commands::schedules::kept,
    failure::Failure,
    objects::{
        self, Kind, NAMESPACE, hook::Hook, location::view_of, policy::Rules, view, volumes::CLONED_FROM,
    },
};
use blockd_api::{
    ApiError, ErrorCode, Labels, ObjectName, VolumeName,
    credentials::Credential,
    format_duration,
    rules::HookRule,
    schedules::{Policy, Schedule},
    snapshots::Snapshot,
    tasks::{Task, TaskKind, TaskStage},
    volumes::Volume,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Resource in the form of an object.
#[derive(Debug)]
pub struct Found {
    pub kind: Kind,
    /// Name, or id without a name.
    pub name: String,
    /// Short name for tables.
    pub shown: String,
    pub body: Value,
    pub status: Value,
    /// Table cells after the name; the wide ones last.
    pub cells: Vec<String>,
    /// Labels of a backup.
    pub labels: Labels,
    /// It is a backup of another host.
    pub is_of_other_host: bool,
    /// Tasks that made it.
    pub tasks: Vec<Uuid>,
    /// Volumes.
    pub volumes: BTreeSet<String>,
    /// Namespaces of its volumes; unknown for objects without volumes.
    pub namespaces: Option<BTreeSet<String>>,
}

impl Found {
    /// Creates an object without tasks and volumes.
    pub fn new(kind: Kind, name: String, body: Value, status: Value, cells: Vec<String>) -> Self {
        let shown = name.clone();
        Self {
            kind,
            name,
            shown,
            body,
            status,
            cells,
            labels: Labels::default(),
            is_of_other_host: false,
            tasks: Vec::new(),
            volumes: BTreeSet::new(),
            namespaces: None,
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

    /// Returns true without a name that can be applied.
    pub fn has_no_name(&self) -> bool {
        let is_uuid = self.kind == Kind::VolumeBackupSchedule && Uuid::try_parse(&self.name).is_ok();
        is_uuid || self.name.parse::<ObjectName>().is_err()
    }

    /// Returns true for the object of a name, short name, or id of a cloud snapshot.
    pub fn is_named(&self, name: &str) -> bool {
        let is_id = |one: &Value| one["cloudSnapshotId"] == name;
        self.name == name
            || self.shown == name
            || self.status["volumes"].as_array().is_some_and(|all| all.iter().any(is_id))
    }
}

/// Returns the columns of a table, and those that are wide only.
pub const fn columns(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::BackupLocation => ("NAME|TYPE|PATH|ENCRYPTED", "UUID"),
        Kind::SchedulePolicy => ("NAME|SCHEDULE", "RETAIN"),
        Kind::Rule => ("NAME|PRE-COMMAND|POST-COMMAND|OF", "FREEZE-FS|USER|ON-FAILURE"),
        Kind::VolumeSnapshot => ("NAME|VOLUMES|CREATED|STATUS", "OF"),
        Kind::VolumeBackup => (
            "NAME|STAGE|STATUS|VOLUMES|RESOURCES|CREATED|ELAPSED",
            "LOCATION|HOST|OF|TYPE|SIZE|CLOUD-SNAP-ID",
        ),
        Kind::VolumeBackupSchedule => ("NAME|OF|LOCATION|NEXT-RUN|STATUS", "SCHEDULE|LAST-RUN|KEPT"),
        Kind::VolumeRestore => {
            ("NAME|STAGE|STATUS|VOLUMES|RESOURCES|CREATED|ELAPSED", "LOCATION|CLOUD-SNAP-ID")
        }
        Kind::VolumeClone => ("NAME|OF|CREATED|STATUS", ""),
    }
}

/// Returns the error of an object that does not exist.
pub fn missing(kind: Kind, name: &str) -> Failure {
    let code = match kind {
        Kind::BackupLocation => ErrorCode::CredentialNotFound,
        Kind::SchedulePolicy => ErrorCode::PolicyNotFound,
        Kind::Rule => ErrorCode::RuleNotFound,
        Kind::VolumeSnapshot => ErrorCode::SnapshotNotFound,
        Kind::VolumeBackup => ErrorCode::CloudsnapNotFound,
        Kind::VolumeBackupSchedule => ErrorCode::ScheduleNotFound,
        Kind::VolumeRestore | Kind::VolumeClone => ErrorCode::VolumeNotFound,
    };
    ApiError::new(code, format!("there is no {kind}/{name}")).into()
}

/// Formats a time for tables, in UTC.
pub fn short_time(time: Timestamp) -> String {
    time.strftime("%d %b %y %H:%M").to_string()
}

/// Formats a duration for tables, to the second if it is longer than a minute.
pub fn short_duration(seconds: f64) -> String {
    format_duration(if seconds < 60.0 { (seconds * 10.0).round() / 10.0 } else { seconds.round() })
}

/// Formats a value as one word of a table.
pub fn plain(value: &Value) -> String {
    let joined = |words: Vec<String>| words.join(",");
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => joined(items.iter().map(plain).collect()),
        Value::Object(fields) => {
            joined(fields.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect())
        }
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

impl ResourceSet {
    /// Returns the objects of a kind.
    pub fn of(&self, kind: Kind) -> Vec<Found> {
        match kind {
            Kind::BackupLocation => self.credentials.iter().map(location).collect(),
            Kind::SchedulePolicy => self.policies.iter().map(policy).collect(),
            Kind::Rule => self.rules.iter().map(rule).collect(),
            Kind::VolumeSnapshot => self.snapshot_objects(),
            Kind::VolumeBackup => BackupGroup::all(self).iter().map(|group| group.found(self.own)).collect(),
            Kind::VolumeBackupSchedule => self.schedules.iter().map(|one| self.found_schedule(one)).collect(),
            Kind::VolumeRestore => self.restores(),
            Kind::VolumeClone => self.volumes.iter().filter_map(clone).collect(),
        }
    }

    /// Returns the object of a kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<Found> {
        self.of(kind).into_iter().find(|found| found.name == name)
    }

    /// Returns the namespaces of volumes.
    fn namespaces(&self, volumes: &BTreeSet<String>) -> BTreeSet<String> {
        let own = self.volumes.iter().filter(|volume| volumes.contains(volume.name.as_str()));
        own.filter_map(|volume| volume.labels.as_map().get(NAMESPACE)).cloned().collect()
    }

    fn found_schedule(&self, one: &Schedule) -> Found {
        // The schedule of a deleted volume has no content that could be applied.
        let spec = self.schedule_spec(one);
        let members = spec.as_ref().map(|spec| spec.backup().volumes());
        let volumes: BTreeSet<String> =
            members.iter().flat_map(|set| self.members(set)).map(|volume| volume.name.to_string()).collect();
        let body = spec.map_or(Value::Null, |spec| view(&spec));
        let backup = &body["template"]["spec"];
        let all = one.selector.all.then(|| json!("all volumes"));
        let of =
            ["volume", "group", "selectors"].into_iter().find_map(|name| backup.get(name)).or(all.as_ref());
        let state = if one.paused { "paused" } else { "active" };
        let kept = kept(one, &self.policies);
        let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), short_time);
        let status = json!({
            "scheduleId": one.schedule_id, "createdAt": one.created_at, "nextRunAt": one.next_run_at,
            "lastRunAt": one.last_run_at, "state": state, "kept": kept,
            "conditions": [
                { "type": "Active", "status": !one.paused },
                { "type": "Covering", "status": !one.without_volume }
            ]
        });
        let cells = vec![
            plain(of.unwrap_or(&Value::Null)),
            plain(&backup["backupLocation"]),
            time(one.next_run_at),
            state.to_owned(),
            one.schedule.clone(),
            time(one.last_run_at),
            kept,
        ];
        let namespaces = Some(self.namespaces(&volumes));
        let found = Found::new(Kind::VolumeBackupSchedule, schedule_name(one), body, status, cells);
        Found { volumes, namespaces, ..found }
    }

    fn restores(&self) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        // The newest comes first, and describes the volume.
        for task in self.tasks.iter().filter(|task| task.state.kind == TaskKind::Restore) {
            let Some(volume) = &task.volume_name else { continue };
            if found.iter().any(|one| one.name == volume.as_str()) {
                continue;
            }
            found.push(self.restore(volume, task));
        }
        found
    }

    fn restore(&self, volume: &VolumeName, task: &Task) -> Found {
        let (stage, status) = stage_of(task);
        let body = json!({
            "backupLocation": task.credential_name, "cloudSnapshotId": task.cloud_snapshot_id, "destinationVolume": volume
        });
        let reason = task.error.as_ref().map(|error| error.message.as_str());
        let is_done = task.state.stage == TaskStage::Done;
        let cells = vec![
            stage.to_owned(),
            status.to_owned(),
            format!("{}/1", u8::from(is_done)),
            "-".to_owned(),
            short_time(task.started_at),
            short_duration(task.elapsed_seconds),
            plain(&body["backupLocation"]),
            plain(&body["cloudSnapshotId"]),
        ];
        let conditions = conditions(task.state.stage.is_over(), is_done, status, reason);
        let status = json!({
            "stage": stage, "status": status, "taskId": task.task_id, "startedAt": task.started_at,
            "completedAt": task.completed_at, "cloudSnapshotId": task.cloud_snapshot_id, "reason": reason,
            "conditions": conditions
        });
        let volumes = BTreeSet::from([volume.to_string()]);
        let namespaces = Some(self.namespaces(&volumes));
        let found = Found::new(Kind::VolumeRestore, volume.to_string(), body, status, cells);
        Found { tasks: vec![task.task_id], volumes, namespaces, ..found }
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
        let member =
            |one: &&Snapshot| json!({ "volumeName": one.volume_name, "snapshotId": one.snapshot_id });
        let object = |(name, group): (&str, Vec<&Snapshot>)| {
            let volumes: BTreeSet<String> = group.iter().map(|one| one.volume_name.to_string()).collect();
            let of: Value = match volumes.first() {
                Some(only) if volumes.len() == 1 => only.as_str().into(),
                _ => json!(volumes),
            };
            let states: BTreeSet<String> = group.iter().map(|one| one.state.to_string()).collect();
            let created = group.iter().map(|one| one.created_at).min().unwrap_or_default();
            let cells = vec![
                volumes.len().to_string(),
                short_time(created),
                states.into_iter().collect::<Vec<_>>().join(","),
                plain(&of),
            ];
            let status = json!({
                "createdAt": created,
                "volumes": group.iter().map(member).collect::<Vec<_>>()
            });
            let body = json!({ "volume": of });
            let found = Found::new(Kind::VolumeSnapshot, name.to_owned(), body, status, cells);
            Found { namespaces: Some(self.namespaces(&volumes)), volumes, ..found }
        };
        groups.into_iter().map(object).collect()
    }
}

/// Returns the stage and status of a task in the words of custom resources.
pub fn stage_of(task: &Task) -> (&'static str, &'static str) {
    match task.state.stage {
        TaskStage::Pending => ("Initial", "Pending"),
        TaskStage::Active => ("Volumes", "InProgress"),
        TaskStage::Done => ("Final", "Successful"),
        TaskStage::Stopped => ("Final", "Stopped"),
        TaskStage::Failed => ("Final", "Failed"),
    }
}

/// Returns the conditions of an object that tasks make.
pub fn conditions(is_over: bool, is_done: bool, reason: &str, message: Option<&str>) -> Value {
    json!([
        { "type": "Complete", "status": is_over, "reason": reason },
        { "type": "Succeeded", "status": is_done, "reason": reason, "message": message }
    ])
}

fn location(one: &Credential) -> Found {
    let body = view_of(one);
    let prefix = one.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
    let status = json!({
        "credentialId": one.credential_id, "createdAt": one.created_at, "authentication": one.store.auth,
        "createIfAbsent": one.conditional_put, "writeBytesPerSecond": one.write_bytes_per_second
    });
    let cells = vec![
        one.store.provider.to_string(),
        plain(&body["path"]) + &prefix,
        one.encrypted.to_string(),
        one.credential_id.to_string(),
    ];
    Found::new(Kind::BackupLocation, one.name.to_string(), body, status, cells)
}

fn policy(one: &Policy) -> Found {
    let whens: Vec<String> = one.rules.iter().map(|rule| rule.when.to_string()).collect();
    let retains = one.rules.iter().filter_map(|rule| rule.retain.as_ref());
    let retains: Vec<String> = retains.map(ToString::to_string).collect();
    let cells = vec![whens.join(", "), if retains.is_empty() { "-".to_owned() } else { retains.join(", ") }];
    Found::new(Kind::SchedulePolicy, one.name.to_string(), view(&Rules::of(&one.rules)), json!({}), cells)
}

fn rule(one: &HookRule) -> Found {
    let body = view(&Hook::of(one));
    let groups = one.groups.iter().map(|group| format!("group {group}"));
    let of: Vec<String> = one.volume_names.iter().map(ToString::to_string).chain(groups).collect();
    let [pre, post, freeze, user, failure] =
        ["preCommand", "postCommand", "freezeFs", "user", "onFailure"].map(|name| plain(&body[name]));
    // Of a script, the first line.
    let [pre, post] = [pre, post].map(|text| text.lines().next().unwrap_or_default().to_owned());
    let of = if of.is_empty() { "-".to_owned() } else { of.join(",") };
    let status = json!({ "scheduleIds": one.schedule_ids, "problem": one.problem });
    Found::new(Kind::Rule, one.name.to_string(), body, status, vec![pre, post, of, freeze, user, failure])
}

fn clone(volume: &Volume) -> Option<Found> {
    let origin = volume.labels.as_map().get(CLONED_FROM)?;
    let (source, snapshot) = origin.split_once('@')?;
    let body = json!({ "sourceVolume": source, "snapshot": snapshot, "destinationVolume": volume.name });
    let status = json!({ "stage": "Final", "status": "Successful", "volumeId": volume.volume_id, "createdAt": volume.created_at });
    let cells = vec![origin.clone(), short_time(volume.created_at), volume.state.to_string()];
    let found = Found::new(Kind::VolumeClone, volume.name.to_string(), body, status, cells);
    let namespaces = volume.labels.as_map().get(NAMESPACE).cloned().into_iter().collect();
    Some(Found { volumes: BTreeSet::from([volume.name.to_string()]), namespaces: Some(namespaces), ..found })
}
