//! Resources of the daemon, and their form as objects.

use crate::{
    commands::schedules::kept,
    failure::Failure,
    objects::{
        self, Body, Kind, Object, hook::Hook, location::view_of, policy::Rules, schedule::ScheduleSpec, view,
        volumes::CLONED_FROM,
    },
    output::Context,
};
use blockd_api::{
    ApiError, ClientError, CredentialName, CredentialRef, ErrorCode, ObjectName, VolumeName, VolumeRef,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, ListCloudsnaps},
    credentials::Credential,
    format_time, operations,
    rules::HookRule,
    schedules::{Policy, Schedule},
    tasks::{ListTasks, Task, TaskKind, TaskStage},
    volumes::{ListVolumes, Volume},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Resource in the form of an object.
#[derive(Debug)]
pub struct Found {
    pub kind: Kind,
    /// Name, or id without a name.
    pub name: String,
    pub body: Value,
    pub status: Value,
    /// Table cells after the name.
    pub cells: Vec<String>,
}

impl Found {
    /// Returns the document with its status.
    pub fn document(&self) -> Value {
        let mut document = self.view();
        document["status"] = self.status.clone();
        document
    }

    /// Returns the document without its status.
    pub fn view(&self) -> Value {
        objects::document(self.kind, &self.name, &self.body)
    }

    /// Returns true without a name that can be applied.
    pub fn has_no_name(&self) -> bool {
        let is_uuid = self.kind == Kind::VolumeBackupSchedule && Uuid::try_parse(&self.name).is_ok();
        is_uuid || self.name.parse::<ObjectName>().is_err()
    }
}

/// Returns the columns of a table.
pub fn columns(kind: Kind) -> &'static str {
    match kind {
        Kind::BackupLocation => "NAME|TYPE|PATH|ENCRYPTED|UUID",
        Kind::SchedulePolicy => "NAME|SCHEDULE",
        Kind::Rule => "NAME|PRE-COMMAND|POST-COMMAND|FREEZE-FS|USER|ON-FAILURE|OF",
        Kind::VolumeBackup => "NAME|VOLUME|LOCATION|CREATED|STATUS",
        Kind::VolumeBackupSchedule => "NAME|OF|LOCATION|SCHEDULE|NEXT-RUN|STATUS",
        Kind::VolumeRestore => "NAME|CLOUD-SNAP-ID|LOCATION|STATUS",
        Kind::VolumeClone => "NAME|OF|STATUS",
    }
}

/// Returns the error of an object that does not exist.
pub fn missing(kind: Kind, name: &str) -> Failure {
    let code = match kind {
        Kind::BackupLocation => ErrorCode::CredentialNotFound,
        Kind::SchedulePolicy => ErrorCode::PolicyNotFound,
        Kind::Rule => ErrorCode::RuleNotFound,
        Kind::VolumeBackup => ErrorCode::CloudsnapNotFound,
        Kind::VolumeBackupSchedule => ErrorCode::ScheduleNotFound,
        Kind::VolumeRestore | Kind::VolumeClone => ErrorCode::VolumeNotFound,
    };
    ApiError::new(code, format!("there is no {kind}/{name}")).into()
}

/// Resources of the daemon.
#[derive(Debug, Default)]
pub struct ResourceSet {
    pub credentials: Vec<Credential>,
    pub policies: Vec<Policy>,
    pub rules: Vec<HookRule>,
    /// Error if rules are hidden: they are for admins only.
    pub rules_hidden: Option<ApiError>,
    pub schedules: Vec<Schedule>,
    pub volumes: Vec<Volume>,
    pub tasks: Vec<Task>,
    /// Backups of this daemon, once for each location; those of other hosts only by [`Scope::id`].
    pub cloudsnaps: Option<Vec<Cloudsnap>>,
    /// Rules of the files of this command.
    pub file_rules: Vec<(ObjectName, Hook)>,
    /// Locations that cannot be listed, and the errors.
    pub unlisted: BTreeMap<String, ApiError>,
}

/// Scope of a listing.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only these locations; all of them otherwise.
    pub locations: Option<Vec<CredentialName>>,
    /// This cloud snapshot of any host; otherwise all of this daemon.
    pub id: Option<CloudSnapshotId>,
}

impl ResourceSet {
    /// Loads the resources that objects need. Cloud snapshots that are given are not listed again.
    pub async fn load_for(
        context: &Context<'_>,
        objects: &[Object],
        cloudsnaps: Option<Vec<Cloudsnap>>,
    ) -> Result<Self, Failure> {
        let mut resources = Self { cloudsnaps, ..Self::load(context).await? };
        let (mut locations, mut needs_stores) = (Vec::new(), false);
        for object in objects {
            match &object.body {
                Body::Rule(hook) => resources.file_rules.push((object.name.clone(), hook.clone())),
                Body::Backup(backup) => locations.extend(backup.location().cloned()),
                Body::Restore(restore) => locations.push(restore.location.clone()),
                _ => {}
            }
            needs_stores |= matches!(object.body, Body::Backup(_) | Body::Restore(_));
        }
        if needs_stores {
            resources.load_stores(context, &Scope { locations: Some(locations), id: None }).await?;
        }
        Ok(resources)
    }

    /// Loads the resources of a kind.
    pub async fn load_kind(context: &Context<'_>, kind: Kind, scope: &Scope) -> Result<Self, Failure> {
        let mut resources = Self::load(context).await?;
        if kind == Kind::VolumeBackup {
            resources.load_stores(context, scope).await?;
        }
        resources.refuse_hidden(kind)?;
        Ok(resources)
    }

    /// Loads all resources without the content of stores.
    async fn load(context: &Context<'_>) -> Result<Self, Failure> {
        let client = &context.client;
        let (rules, rules_hidden) = match client.call(operations::LIST_RULES, &()).await {
            Ok(list) => (list.items, None),
            Err(ClientError::Api(error)) if error.code == ErrorCode::Forbidden => (Vec::new(), Some(error)),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            rules,
            rules_hidden,
            credentials: client.call(operations::LIST_CREDENTIALS, &()).await?.items,
            policies: client.call(operations::LIST_POLICIES, &()).await?.items,
            schedules: client.call(operations::LIST_SCHEDULES, &()).await?.list.items,
            volumes: client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items,
            tasks: client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items,
            ..Self::default()
        })
    }

    /// Loads the content of stores once; unreachable ones are reported.
    ///
    /// A name belongs to its host: backups of other hosts in the same location are not its objects.
    async fn load_stores(&mut self, context: &Context<'_>, scope: &Scope) -> Result<(), Failure> {
        if self.cloudsnaps.is_some() || self.credentials.is_empty() {
            return Ok(());
        }
        let own = match scope.id {
            Some(_) => None,
            None => Some(context.client.call(operations::GET_STATUS, &()).await?.cluster_id),
        };
        let mut found = Vec::new();
        for one in &self.credentials {
            if scope.locations.as_ref().is_some_and(|wanted| !wanted.contains(&one.name)) {
                continue;
            }
            // Separate requests for each credential: a listing of all shows a cloud snapshot once, even if
            // two credentials have it.
            let query = ListCloudsnaps {
                credential: Some(CredentialRef::Id(one.credential_id)),
                cluster_id: own,
                cloud_snapshot_id: scope.id,
                ..ListCloudsnaps::default()
            };
            match context.client.call(operations::LIST_CLOUDSNAPS, &query).await {
                Ok(list) => found.extend(list.list.items),
                Err(ClientError::Api(error)) => {
                    context.output.note(format!("warning: BackupLocation/{}: {}", one.name, error.message));
                    self.unlisted.insert(one.name.to_string(), error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.cloudsnaps = Some(found);
        Ok(())
    }

    /// Refuses a hidden kind.
    pub fn refuse_hidden(&self, kind: Kind) -> Result<(), Failure> {
        match &self.rules_hidden {
            Some(error) if kind == Kind::Rule => Err(error.clone().into()),
            _ => Ok(()),
        }
    }

    /// Returns the rule of a name.
    pub fn rule(&self, name: &str) -> Option<&HookRule> {
        self.rules.iter().find(|rule| rule.name.as_str() == name)
    }

    /// Returns the volume of a name.
    pub fn volume(&self, name: &VolumeName) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == *name)
    }

    /// Returns the credential of a location.
    pub fn credential(&self, name: &str) -> Option<&Credential> {
        self.credentials.iter().find(|one| one.name.as_str() == name)
    }

    /// Returns the schedule of a name.
    pub fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.schedules.iter().find(|one| schedule_name(one) == name)
    }

    /// Returns the objects of a kind.
    pub fn of(&self, kind: Kind) -> Vec<Found> {
        match kind {
            Kind::BackupLocation => self.credentials.iter().map(location).collect(),
            Kind::SchedulePolicy => self.policies.iter().map(policy).collect(),
            Kind::Rule => self.rules.iter().map(rule).collect(),
            Kind::VolumeBackup => self.backups(),
            Kind::VolumeBackupSchedule => self.schedules.iter().map(|one| self.found_schedule(one)).collect(),
            Kind::VolumeRestore => self.restores(),
            Kind::VolumeClone => self.volumes.iter().filter_map(clone).collect(),
        }
    }

    /// Returns the object of a kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<Found> {
        self.of(kind).into_iter().find(|found| found.name == name)
    }

    /// Converts a schedule; `None` if it refers to a missing volume or location.
    pub fn schedule_spec(&self, one: &Schedule) -> Option<ScheduleSpec> {
        let location = |wanted: &Uuid| -> Option<CredentialName> {
            self.credentials.iter().find(|one| one.credential_id == *wanted).map(|one| one.name.clone())
        };
        ScheduleSpec::of(one, location)
    }

    fn found_schedule(&self, one: &Schedule) -> Found {
        // The schedule of a deleted volume has no content that could be applied.
        let body = self.schedule_spec(one).map_or(Value::Null, |spec| view(&spec));
        let backup = &body["template"]["spec"];
        let volumes = ["volume", "group", "selectors"].into_iter().find_map(|name| backup.get(name));
        let state = if one.paused { "paused" } else { "active" };
        Found {
            kind: Kind::VolumeBackupSchedule,
            name: schedule_name(one),
            status: json!({
                "scheduleId": one.schedule_id, "createdAt": one.created_at, "nextRunAt": one.next_run_at,
                "lastRunAt": one.last_run_at,
                "state": state, "kept": kept(one, &self.policies)
            }),
            cells: vec![
                plain(volumes.unwrap_or(&Value::Null)),
                plain(&backup["backupLocation"]),
                one.schedule.clone(),
                one.next_run_at.map_or_else(|| "-".to_owned(), format_time),
                state.to_owned(),
            ],
            body,
        }
    }

    fn backups(&self) -> Vec<Found> {
        let mut found: Vec<Found> = self.cloudsnaps.iter().flatten().map(backup).collect();
        for task in self.tasks.iter().filter(|task| task.state.kind == TaskKind::Backup) {
            let Some(name) = &task.name else { continue };
            let is_same =
                |one: &Found| one.name == name.as_str() && one.status["taskId"] == json!(task.task_id);
            if task.state.stage == TaskStage::Done || found.iter().any(is_same) {
                continue;
            }
            let body = json!({ "backupLocation": task.credential_name, "volume": task.volume_name });
            let cells =
                vec![plain(&body["volume"]), plain(&body["backupLocation"]), format_time(task.started_at)];
            found.push(task_object(Kind::VolumeBackup, name.to_string(), task, body, cells));
        }
        found
    }

    fn restores(&self) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        // The newest comes first, and describes the volume.
        for task in self.tasks.iter().filter(|task| task.state.kind == TaskKind::Restore) {
            let Some(volume) = &task.volume_name else { continue };
            if found.iter().any(|one| one.name == volume.as_str()) {
                continue;
            }
            let body = json!({
                "backupLocation": task.credential_name, "cloudSnapshotId": task.cloud_snapshot_id, "destinationVolume": volume
            });
            let cells = vec![plain(&body["cloudSnapshotId"]), plain(&body["backupLocation"])];
            found.push(task_object(Kind::VolumeRestore, volume.to_string(), task, body, cells));
        }
        found
    }
}

/// Returns true if a reference is the one of this volume.
pub fn is_volume(volume: &Volume, wanted: &VolumeRef) -> bool {
    match wanted {
        VolumeRef::Id(id) => volume.volume_id == *id,
        VolumeRef::Name(name) => volume.name == *name,
    }
}

fn schedule_name(one: &Schedule) -> String {
    one.name.as_ref().map_or_else(|| one.schedule_id.to_string(), ToString::to_string)
}

/// Formats a value as one word of a table.
fn plain(value: &Value) -> String {
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

fn location(one: &Credential) -> Found {
    let body = view_of(one);
    let prefix = one.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
    Found {
        kind: Kind::BackupLocation,
        name: one.name.to_string(),
        status: json!({
            "credentialId": one.credential_id, "createdAt": one.created_at, "authentication": one.store.auth,
            "createIfAbsent": one.conditional_put, "writeBytesPerSecond": one.write_bytes_per_second
        }),
        cells: vec![
            one.store.provider.to_string(),
            plain(&body["path"]) + &prefix,
            one.encrypted.to_string(),
            one.credential_id.to_string(),
        ],
        body,
    }
}

fn policy(one: &Policy) -> Found {
    let whens: Vec<String> = one.rules.iter().map(|rule| rule.when.to_string()).collect();
    let (body, cells) = (view(&Rules::of(&one.rules)), vec![whens.join(", ")]);
    Found { kind: Kind::SchedulePolicy, name: one.name.to_string(), body, status: json!({}), cells }
}

fn rule(one: &HookRule) -> Found {
    let body = view(&Hook::of(one));
    let groups = one.groups.iter().map(|group| format!("group {group}"));
    let of: Vec<String> = one.volume_names.iter().map(ToString::to_string).chain(groups).collect();
    let cells = ["preCommand", "postCommand", "freezeFs", "user", "onFailure"].map(|name| plain(&body[name]));
    Found {
        kind: Kind::Rule,
        name: one.name.to_string(),
        status: json!({ "scheduleIds": one.schedule_ids, "problem": one.problem }),
        cells: cells.into_iter().chain([if of.is_empty() { "-".to_owned() } else { of.join(",") }]).collect(),
        body,
    }
}

/// Returns the name of a backup, or its id if the daemon generated the name.
pub fn backup_name(one: &Cloudsnap) -> String {
    let name = one.name.as_deref().unwrap_or_default();
    let is_made = name.strip_prefix("backup-").is_some_and(|rest| Uuid::try_parse(rest).is_ok());
    if name.is_empty() || is_made { one.cloud_snapshot_id.to_string() } else { name.to_owned() }
}

fn backup(one: &Cloudsnap) -> Found {
    let volume = &one.volume_name;
    Found {
        kind: Kind::VolumeBackup,
        name: backup_name(one),
        body: json!({ "backupLocation": one.credential_name, "volume": volume }),
        status: json!({
            "stage": "Final", "status": "Successful", "cloudSnapshotId": one.cloud_snapshot_id, "createdAt": one.created_at,
            "backupType": one.backup_type, "sizeBytes": one.size_bytes, "storedBytes": one.stored_bytes,
            "verification": one.verification
        }),
        cells: vec![
            volume.clone(),
            one.credential_name.clone(),
            format_time(one.created_at),
            "Successful".to_owned(),
        ],
    }
}

/// Returns the object that a task makes, with its stage and status in the words of the custom resources.
fn task_object(kind: Kind, name: String, task: &Task, body: Value, mut cells: Vec<String>) -> Found {
    let (stage, status) = match task.state.stage {
        TaskStage::Pending => ("Initial", "Pending"),
        TaskStage::Active => ("Volumes", "InProgress"),
        TaskStage::Done => ("Final", "Successful"),
        TaskStage::Stopped => ("Final", "Stopped"),
        TaskStage::Failed => ("Final", "Failed"),
    };
    cells.push(status.to_owned());
    let reason = task.error.as_ref().map(|error| error.message.as_str());
    let status = json!({
        "stage": stage, "status": status, "taskId": task.task_id, "startedAt": task.started_at,
        "completedAt": task.completed_at, "cloudSnapshotId": task.cloud_snapshot_id, "reason": reason
    });
    Found { kind, name, body, status, cells }
}

fn clone(volume: &Volume) -> Option<Found> {
    let origin = volume.labels.as_map().get(CLONED_FROM)?;
    let (source, snapshot) = origin.split_once('@')?;
    Some(Found {
        kind: Kind::VolumeClone,
        name: volume.name.to_string(),
        body: json!({ "sourceVolume": source, "snapshot": snapshot, "destinationVolume": volume.name }),
        status: json!({ "stage": "Final", "status": "Successful", "volumeId": volume.volume_id, "createdAt": volume.created_at }),
        cells: vec![origin.clone(), volume.state.to_string()],
    })
}
