//! Schemas of declarative objects and of the results of commands on them.

use crate::{
    commands::{
        credentials::settings::is_secret,
        objects::status::{
            BackupSpec, CloneSpec, CloneStatus, EventSummary, LocationStatus, PolicyStatus, RestoreSpec,
            RuleStatus, RunSummary, ScheduleStatus, SnapshotSpec, SnapshotStatus, TransferStatus,
        },
    },
    objects::{
        API_VERSION, Kind,
        drill::DrillSpec,
        hook::Hook,
        location_table::{DEFAULT, ENCRYPTED, FIELDS, SECRET, SYNC, UNREPORTED},
        policy::Rules,
        schedule::ScheduleSpec,
    },
};
use blockd_api::Labels;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, collections::BTreeMap};

/// Returns the schema of a backup location; its secrets are references.
fn location() -> Schema {
    const FLAGS: [&str; 5] = [ENCRYPTED, DEFAULT, "use-iam", "s3-disable-ssl", "disable-path-style"];
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

/// Returns the schema of a content that is written without its unset fields.
fn without_unset<T: JsonSchema>() -> Schema {
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

/// Object with its state, as `get` and `describe` write it. Only its schema is needed.
pub enum ObjectDocument {}

impl JsonSchema for ObjectDocument {
    fn schema_name() -> Cow<'static, str> {
        "ObjectDocument".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let labels = generator.subschema_for::<Labels>();
        let annotations = generator.subschema_for::<BTreeMap<String, String>>();
        let metadata = json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "description": "Name, or id without a name" },
                "labels": { "allOf": [labels], "description": "Labels, with the namespace" },
                "annotations": { "allOf": [annotations], "description": "Annotations" }
            },
            "required": ["name"]
        });
        let runs = generator.subschema_for::<Vec<RunSummary>>();
        let events = generator.subschema_for::<Vec<EventSummary>>();
        let contents: Vec<Schema> = Kind::ALL.iter().map(|kind| content(*kind, generator)).collect();
        json_schema!({
            "description": "Object with its state",
            "type": "object",
            "properties": {
                "apiVersion": { "const": API_VERSION },
                "metadata": metadata,
                "runs": { "allOf": [runs], "description": "Newest runs of a described schedule" },
                "events": { "allOf": [events], "description": "Newest events of a described object" }
            },
            "required": ["apiVersion", "metadata"],
            "oneOf": contents
        })
    }
}

/// Returns the schema of the content and the state of an object of a kind.
fn content(kind: Kind, generator: &mut SchemaGenerator) -> Schema {
    let (content, status) = match kind {
        Kind::BackupLocation => (location(), generator.subschema_for::<LocationStatus>()),
        Kind::SchedulePolicy => {
            (generator.subschema_for::<Rules>(), generator.subschema_for::<PolicyStatus>())
        }
        Kind::Rule => (without_unset::<Hook>(), generator.subschema_for::<RuleStatus>()),
        Kind::VolumeSnapshot => {
            (generator.subschema_for::<SnapshotSpec>(), generator.subschema_for::<SnapshotStatus>())
        }
        Kind::VolumeBackup => {
            (generator.subschema_for::<BackupSpec>(), generator.subschema_for::<TransferStatus>())
        }
        Kind::VolumeBackupSchedule => {
            // Null if its volume was deleted.
            let spec = json_schema!({ "anyOf": [without_unset::<ScheduleSpec>(), { "type": "null" }] });
            (spec, generator.subschema_for::<ScheduleStatus>())
        }
        Kind::RestoreDrill => {
            let spec = json_schema!({ "anyOf": [without_unset::<DrillSpec>(), { "type": "null" }] });
            (spec, generator.subschema_for::<ScheduleStatus>())
        }
        Kind::VolumeRestore => {
            (generator.subschema_for::<RestoreSpec>(), generator.subschema_for::<TransferStatus>())
        }
        Kind::VolumeClone => {
            (generator.subschema_for::<CloneSpec>(), generator.subschema_for::<CloneStatus>())
        }
    };
    json_schema!({
        "type": "object",
        "properties": { "kind": { "type": "string", "const": kind.text() }, kind.field(): content, "status": status },
        "required": ["kind", kind.field(), "status"]
    })
}
