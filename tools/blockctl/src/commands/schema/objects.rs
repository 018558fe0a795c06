//! Schemas of declarative objects, of the results of commands on them, and of their differences.

#![allow(dead_code, reason = "the types describe documents that are built as JSON values")]

use crate::{
    commands::{credentials::settings::is_secret, objects::FieldChange},
    objects::{
        Kind, Retain,
        hook::Hook,
        location_table::{ENCRYPTED, FIELDS, SECRET, SYNC, UNREPORTED},
        policy::{BLOCKS, Rules},
        schedule::ScheduleSpec,
    },
};
use blockd_api::{
    Labels, List, SnapshotId, SnapshotName, VolumeId, VolumeName,
    cloudsnaps::{CloudSnapshotId, CloudsnapStatus, Verification},
    events::Severity,
    schedules::RunState,
    tasks::BackupType,
};
use blockd_schedule::Zone;
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, marker::PhantomData};
use uuid::Uuid;

/// List that is written as its value if it has one.
pub struct OneOrMany<T>(PhantomData<T>);

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

impl JsonSchema for Retain {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Retain".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let count = json!({ "type": "integer", "minimum": 0 });
        let periods = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];
        let mut fields: Map<String, Value> =
            periods.iter().map(|name| ((*name).to_owned(), count.clone())).collect();
        fields.insert("all".to_owned(), json!({ "type": "boolean" }));
        fields.insert("timeZone".to_owned(), generator.subschema_for::<Zone>().into());
        json_schema!({
            "description": "A number of backups, `all`, or numbers by period",
            "anyOf": [count, { "const": "all" }, { "type": "object", "properties": fields }]
        })
    }
}

impl JsonSchema for Rules {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Rules".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (zone, retain) = (generator.subschema_for::<Zone>(), generator.subschema_for::<Retain>());
        let text = json!({ "type": ["string", "integer"] });
        let block = |fields: &[&str]| {
            let mut properties: Map<String, Value> =
                fields.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
            properties.insert("retain".to_owned(), json!(retain));
            properties.insert("timeZone".to_owned(), json!(zone));
            let one = json!({ "type": "object", "properties": properties, "required": fields });
            json!({ "anyOf": [one, { "type": "array", "items": one }] })
        };
        let mut blocks: Map<String, Value> =
            BLOCKS.iter().map(|(name, fields)| ((*name).to_owned(), block(fields))).collect();
        blocks.insert("timeZone".to_owned(), json!(zone));
        json_schema!({ "type": "object", "properties": blocks })
    }
}

/// Backup location; secrets are references.
struct Location;

impl JsonSchema for Location {
    fn schema_name() -> Cow<'static, str> {
        "Location".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        const FLAGS: [&str; 4] = [ENCRYPTED, "use-iam", "s3-disable-ssl", "disable-path-style"];
        let mut properties = Map::new();
        let written = FIELDS
            .iter()
            .filter(|(setting, ..)| *setting != SECRET && *setting != SYNC)
            .filter(|(setting, ..)| UNREPORTED.split_whitespace().all(|one| one != *setting));
        for (setting, path, _) in written {
            let value = match () {
                () if is_secret(setting) => {
                    json!({ "type": "object", "properties": { "from": { "type": "string" } }, "required": ["from"] })
                }
                () if FLAGS.contains(setting) => json!({ "type": "boolean" }),
                () => json!({ "type": "string" }),
            };
            match path.split_once('.') {
                None => properties.insert((*path).to_owned(), value),
                Some((section, name)) => {
                    let section = properties
                        .entry(section)
                        .or_insert_with(|| json!({ "type": "object", "properties": {} }));
                    section["properties"][name] = value;
                    None
                }
            };
        }
        json_schema!({ "type": "object", "properties": properties, "required": ["type", "path"] })
    }
}

/// Returns the schema of a content that is written without its unset fields.
fn without_unset<T: JsonSchema>(_: &mut SchemaGenerator) -> Schema {
    fn relax(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if fields.contains_key("properties") {
                    fields.remove("required");
                }
                // Of input only: a later version may write more fields.
                if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
                    fields.remove("additionalProperties");
                }
                fields.values_mut().for_each(relax);
            }
            Value::Array(items) => items.iter_mut().for_each(relax),
            _ => {}
        }
    }
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    relax(&mut schema);
    Schema::try_from(schema).unwrap_or_default()
}

/// Object with its state, as `get` and `describe` write it.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectDocument {
    /// Version of the format of objects: `blockd/v1`.
    api_version: String,
    /// Metadata.
    metadata: Metadata,
    /// Content and state by kind.
    #[serde(flatten)]
    content: Content,
    /// Newest runs of a described schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<Vec<RunSummary>>,
    /// Newest events of a described object.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<EventSummary>>,
}

/// Metadata of an object.
#[derive(JsonSchema)]
struct Metadata {
    /// Name, or id without a name.
    name: String,
    /// Labels of a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Labels>,
}

/// Content and state of an object.
#[derive(JsonSchema)]
#[serde(tag = "kind")]
enum Content {
    BackupLocation {
        location: Location,
        status: LocationStatus,
    },
    SchedulePolicy {
        policy: Rules,
        status: PolicyStatus,
    },
    Rule {
        #[schemars(schema_with = "without_unset::<Hook>")]
        spec: Hook,
        status: RuleStatus,
    },
    VolumeSnapshot {
        spec: SnapshotSpec,
        status: SnapshotStatus,
    },
    VolumeBackup {
        spec: BackupSpec,
        status: BackupStatus,
    },
    VolumeBackupSchedule {
        /// Null if its volume was deleted.
        #[schemars(schema_with = "schedule_spec")]
        spec: (),
        status: ScheduleStatus,
    },
    VolumeRestore {
        spec: RestoreSpec,
        status: RestoreStatus,
    },
    VolumeClone {
        spec: CloneSpec,
        status: CloneStatus,
    },
}

fn schedule_spec(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [without_unset::<ScheduleSpec>(generator), { "type": "null" }] })
}

/// State of a backup location.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct LocationStatus {
    credential_id: Uuid,
    created_at: Timestamp,
    /// Kind of the keys or identity.
    authentication: Option<String>,
    create_if_absent: bool,
    write_bytes_per_second: Option<u64>,
}

/// State of a policy.
#[derive(JsonSchema)]
struct PolicyStatus {}

/// State of a rule.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RuleStatus {
    /// Schedules that use it.
    schedule_ids: Vec<Uuid>,
    /// Problem that prevents its use.
    problem: Option<String>,
}

/// Local snapshot of one or several volumes.
#[derive(JsonSchema)]
struct SnapshotSpec {
    volume: OneOrMany<VolumeName>,
}

/// State of a local snapshot.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SnapshotStatus {
    created_at: Timestamp,
    volumes: Vec<SnapshotMember>,
}

/// Local snapshot of a volume.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SnapshotMember {
    volume_name: VolumeName,
    snapshot_id: SnapshotId,
}

/// Backup of one or several volumes.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct BackupSpec {
    backup_location: String,
    /// Volumes at the time of the backup.
    volume: OneOrMany<String>,
}

/// State of a backup.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct BackupStatus {
    /// `Initial`, `Volumes` or `Final`.
    stage: String,
    /// State in the words of custom resources, such as `Successful`.
    status: String,
    created_at: Timestamp,
    /// Cluster of the host that made it.
    cluster_id: Option<Uuid>,
    /// Cloud snapshot of a backup of one volume.
    cloud_snapshot_id: Option<CloudSnapshotId>,
    /// Cause of a failure.
    reason: Option<String>,
    volumes: Vec<BackupMember>,
    conditions: Vec<Condition>,
}

/// Backup of a volume: stored, or its task.
#[derive(JsonSchema)]
#[serde(untagged)]
enum BackupMember {
    #[serde(rename_all = "camelCase")]
    Stored {
        volume_name: String,
        cloud_snapshot_id: CloudSnapshotId,
        status: CloudsnapStatus,
        created_at: Timestamp,
        backup_type: BackupType,
        size_bytes: u64,
        stored_bytes: u64,
        verification: Option<Verification>,
    },
    #[serde(rename_all = "camelCase")]
    Task {
        volume_name: Option<VolumeName>,
        task_id: Uuid,
        status: String,
        started_at: Timestamp,
        reason: Option<String>,
    },
}

/// State of a schedule.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ScheduleStatus {
    schedule_id: Uuid,
    created_at: Timestamp,
    next_run_at: Option<Timestamp>,
    last_run_at: Option<Timestamp>,
    /// `active` or `paused`.
    state: String,
    /// Retention, in words.
    kept: String,
    conditions: Vec<Condition>,
}

/// Restore into a volume.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RestoreSpec {
    backup_location: String,
    cloud_snapshot_id: Option<String>,
    destination_volume: VolumeName,
}

/// State of a restore.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RestoreStatus {
    /// `Initial`, `Volumes` or `Final`.
    stage: String,
    /// State in the words of custom resources, such as `Successful`.
    status: String,
    task_id: Uuid,
    started_at: Timestamp,
    completed_at: Option<Timestamp>,
    cloud_snapshot_id: Option<String>,
    /// Cause of a failure.
    reason: Option<String>,
    conditions: Vec<Condition>,
}

/// Volume cloned from a snapshot.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CloneSpec {
    source_volume: VolumeName,
    snapshot: SnapshotName,
    destination_volume: VolumeName,
}

/// State of a cloned volume.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CloneStatus {
    stage: String,
    status: String,
    volume_id: VolumeId,
    created_at: Timestamp,
}

/// Condition of an object.
#[derive(JsonSchema)]
struct Condition {
    /// `Complete`, `Succeeded`, `Active` or `Covering`.
    #[serde(rename = "type")]
    kind: String,
    status: bool,
    /// State in the words of custom resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Cause of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Option<String>>,
}

/// Run of a schedule.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RunSummary {
    started_at: Timestamp,
    volume_name: Option<VolumeName>,
    state: RunState,
    cloud_snapshot_id: Option<CloudSnapshotId>,
    reason: Option<String>,
}

/// Event of an object.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct EventSummary {
    occurred_at: Timestamp,
    severity: Severity,
    kind: String,
    message: String,
}

/// Results of `apply` and `delete`, and the error of the first object that failed.
#[derive(JsonSchema)]
pub struct ObjectResults {
    #[serde(flatten)]
    list: List<ObjectResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<crate::failure::FailureBody>,
}

/// Result of an object.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ObjectResult {
    kind: Kind,
    name: String,
    /// Such as `created`, `configured`, `unchanged`, `started`, `deleted`, `failed` or `not tried`.
    result: String,
    /// Warnings about fields of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<String>>,
    /// Started tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_ids: Option<Vec<Uuid>>,
    /// States of the tasks at their end, with `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    states: Option<Vec<String>>,
    /// Object that must be complete first.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
}

/// Difference between an object of a file and its resource.
#[derive(JsonSchema)]
pub struct ObjectDifference {
    kind: Kind,
    name: String,
    /// Result that `apply` would have.
    result: String,
    /// Differing fields.
    changes: Vec<FieldChange>,
    /// Reason why it cannot be applied.
    reason: Option<String>,
    /// Warnings about fields of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<String>>,
}
