//! Schemas of declarative objects and of the results of commands on them.

#![allow(dead_code, reason = "documents are put together from JSON values")]

use crate::{
    commands::{
        credentials::settings::is_secret,
        objects::status::{
            BackupSpec, CloneSpec, CloneStatus, EventSummary, LocationStatus, PolicyStatus, RestoreSpec,
            RuleStatus, RunSummary, ScheduleStatus, SnapshotSpec, SnapshotStatus, TransferStatus,
        },
    },
    objects::{
        Retain,
        hook::Hook,
        location_table::{ENCRYPTED, FIELDS, SECRET, SYNC, UNREPORTED},
        policy::{BLOCKS, Rules},
        schedule::ScheduleSpec,
    },
};
use blockd_api::Labels;
use blockd_schedule::Zone;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, collections::BTreeMap, marker::PhantomData};

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
    /// Annotations of a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
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
        status: TransferStatus,
    },
    VolumeBackupSchedule {
        /// Null if its volume was deleted.
        #[schemars(schema_with = "schedule_spec")]
        spec: (),
        status: ScheduleStatus,
    },
    VolumeRestore {
        spec: RestoreSpec,
        status: TransferStatus,
    },
    VolumeClone {
        spec: CloneSpec,
        status: CloneStatus,
    },
}

fn schedule_spec(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [without_unset::<ScheduleSpec>(generator), { "type": "null" }] })
}
