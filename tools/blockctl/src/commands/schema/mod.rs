//! `blockctl schema`: schemas of the documents that commands print.

pub mod objects;

use super::{
    bundle::{Bundle, BundleWritten},
    cloudsnap::{drill::InspectedDrill, pxctl::PxctlCloudsnap, retire::VolumeDeletions},
    context::ListedContext,
    doctor::Diagnosis,
    events::TaskLog,
    files::{CatalogDocument, DiffDocument, copied::Copied},
    init::Initialized,
    objects::{record::ObjectResults, status::ObjectDifference},
    secrets::LoginDocument,
    status::Health,
    top::rates::ActivityRates,
    volume::{ExportUri, Inspected},
};
use crate::{
    failure::{Exit, Failure, FailureDocument},
    output::Output,
    table::Table,
};
use blockd_api::{
    Deleted, List, SCHEMA_VERSION,
    anomalies::BackupAnomaly,
    attachments::{Attachment, Detached},
    browse::{BrowseMount, Unmounted},
    cloudsnaps::{
        CloudsnapDetail, CloudsnapList, CloudsnapMark, GarbageCollected, GroupBackupStarted, RestoreStarted,
    },
    costs::CostEstimate,
    credentials::{Credential, CredentialRekeyed},
    drills::{Drill, GroupDrillStarted},
    events::Event,
    lazy::LazyRestored,
    rules::HookRule,
    schedules::{JudgedSnapshot, Policy, Run, Schedule, ScheduleList},
    snapshots::{GroupSnapshot, Snapshot, SnapshotDiff, SnapshotRestored},
    tasks::{Task, TaskStarted},
    volumes::{Volume, VolumeCheck},
};
use clap::{Args, Command};
use objects::ObjectDocument;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub const SCHEMA_HELP: &str = "\
The schemas are JSON Schema 2020-12. Later versions may add fields to documents with the same schemaVersion.

Examples:
  blockctl schema
  blockctl schema volume list
  blockctl -j schema";

/// `schema`
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Command whose document is described [default: list the commands]
    #[arg(value_name = "COMMAND", num_args = 0..)]
    command: Vec<String>,
}

/// Document of `schema` without a command.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CommandSchema {
    /// Command.
    command: &'static str,
    /// Schema of its documents.
    schema: Map<String, Value>,
}

/// Documents in any form.
type Any = Map<String, Value>;

/// Generator of a document's schema.
type Generate = fn(&mut SchemaGenerator) -> Schema;

const fn of<T: JsonSchema>() -> Generate {
    SchemaGenerator::subschema_for::<T>
}

/// Documents of each command, besides that of a failure.
const DOCUMENTS: &[(&str, &[Generate])] = &[
    ("anomaly acknowledge", &[of::<List<BackupAnomaly>>()]),
    ("anomaly list", &[of::<List<BackupAnomaly>>()]),
    ("apply", &[of::<ObjectResults>()]),
    ("browse list", &[of::<List<BrowseMount>>()]),
    ("browse mount", &[of::<BrowseMount>()]),
    ("browse umount", &[of::<Unmounted>()]),
    ("cloudsnap backup", &[of::<List<TaskStarted>>(), of::<List<Task>>(), of::<List<CostEstimate>>()]),
    ("cloudsnap backup-group", &[of::<GroupBackupStarted>(), of::<List<Task>>(), of::<List<CostEstimate>>()]),
    ("cloudsnap catalog", &[of::<CatalogDocument<'static>>()]),
    ("cloudsnap clone", &[of::<LazyRestored>()]),
    ("cloudsnap cp", &[of::<Copied>()]),
    ("cloudsnap delete", &[of::<TaskStarted>(), of::<Task>(), of::<VolumeDeletions>()]),
    ("cloudsnap diff", &[of::<DiffDocument>()]),
    ("cloudsnap drill inspect", &[of::<InspectedDrill>()]),
    ("cloudsnap drill list", &[of::<List<Drill>>()]),
    (
        "cloudsnap drill run",
        &[
            of::<TaskStarted>(),
            of::<Task>(),
            of::<List<TaskStarted>>(),
            of::<List<Task>>(),
            of::<GroupDrillStarted>(),
            of::<List<CostEstimate>>(),
        ],
    ),
    ("cloudsnap drill schedules create", &[of::<Schedule>()]),
    ("cloudsnap drill schedules delete", &[of::<Deleted>()]),
    ("cloudsnap drill schedules list", &[of::<ScheduleList>()]),
    ("cloudsnap drill schedules pause", &[of::<Schedule>()]),
    ("cloudsnap drill schedules resume", &[of::<Schedule>()]),
    ("cloudsnap drill schedules run-now", &[of::<List<Run>>()]),
    ("cloudsnap drill schedules update", &[of::<Schedule>()]),
    ("cloudsnap expire", &[of::<CloudsnapMark>()]),
    ("cloudsnap gc", &[of::<GarbageCollected>(), of::<List<GarbageCollected>>()]),
    ("cloudsnap history", &[of::<List<Run>>()]),
    ("cloudsnap inspect", &[of::<CloudsnapDetail>()]),
    ("cloudsnap limit", &[of::<Task>()]),
    ("cloudsnap list", &[of::<CloudsnapList>(), of::<Vec<PxctlCloudsnap>>()]),
    ("cloudsnap pin", &[of::<CloudsnapMark>()]),
    ("cloudsnap repair", &[of::<TaskStarted>(), of::<Task>()]),
    (
        "cloudsnap restore",
        &[of::<RestoreStarted>(), of::<LazyRestored>(), of::<Task>(), of::<List<CostEstimate>>()],
    ),
    ("cloudsnap resume", &[of::<Task>()]),
    ("cloudsnap schedules create", &[of::<Schedule>()]),
    ("cloudsnap schedules delete", &[of::<Deleted>()]),
    ("cloudsnap schedules list", &[of::<ScheduleList>()]),
    ("cloudsnap schedules pause", &[of::<Schedule>()]),
    ("cloudsnap schedules resume", &[of::<Schedule>()]),
    ("cloudsnap schedules retention", &[of::<List<JudgedSnapshot>>()]),
    ("cloudsnap schedules run-now", &[of::<List<Run>>()]),
    ("cloudsnap schedules update", &[of::<Schedule>()]),
    ("cloudsnap status", &[of::<List<Task>>(), of::<Task>()]),
    ("cloudsnap stop", &[of::<Task>(), of::<List<Task>>()]),
    ("cloudsnap unpin", &[of::<CloudsnapMark>()]),
    ("cloudsnap verify", &[of::<TaskStarted>(), of::<Task>(), of::<List<TaskStarted>>(), of::<List<Task>>()]),
    ("completions", &[of::<Any>()]),
    ("context create", &[of::<List<ListedContext>>()]),
    ("context delete", &[of::<List<ListedContext>>()]),
    ("context list", &[of::<List<ListedContext>>()]),
    ("context set", &[of::<List<ListedContext>>()]),
    ("context unset", &[of::<List<ListedContext>>()]),
    ("credentials create", &[of::<Credential>()]),
    ("credentials delete", &[of::<Deleted>()]),
    ("credentials inspect", &[of::<Credential>()]),
    ("credentials limit", &[of::<Credential>()]),
    ("credentials list", &[of::<List<Credential>>()]),
    ("credentials rekey", &[of::<CredentialRekeyed>()]),
    ("credentials set-default", &[of::<Credential>()]),
    ("credentials update", &[of::<Credential>()]),
    ("credentials validate", &[of::<Credential>()]),
    ("delete", &[of::<ObjectResults>()]),
    ("describe", &[of::<List<ObjectDocument>>()]),
    ("diff", &[of::<List<ObjectDifference>>()]),
    ("doctor", &[of::<Diagnosis>()]),
    ("events", &[of::<List<Event>>(), of::<Event>()]),
    ("get", &[of::<List<ObjectDocument>>(), of::<ObjectDocument>()]),
    ("init", &[of::<Initialized>()]),
    ("logs", &[of::<TaskLog>()]),
    ("man", &[of::<List<String>>(), of::<Any>()]),
    ("rule assign", &[of::<HookRule>()]),
    ("rule create", &[of::<HookRule>()]),
    ("rule delete", &[of::<Deleted>()]),
    ("rule inspect", &[of::<HookRule>()]),
    ("rule list", &[of::<List<HookRule>>()]),
    ("rule unassign", &[of::<HookRule>()]),
    ("rule update", &[of::<HookRule>()]),
    ("sched-policy create", &[of::<Policy>()]),
    ("sched-policy delete", &[of::<Deleted>()]),
    ("sched-policy inspect", &[of::<Policy>()]),
    ("sched-policy list", &[of::<List<Policy>>()]),
    ("sched-policy update", &[of::<Policy>()]),
    ("schema", &[of::<List<CommandSchema>>(), of::<Any>()]),
    ("secrets", &[of::<LoginDocument<'static>>()]),
    ("snapshot create", &[of::<Snapshot>()]),
    ("snapshot create-group", &[of::<GroupSnapshot>()]),
    ("snapshot delete", &[of::<Deleted>()]),
    ("snapshot diff", &[of::<SnapshotDiff>()]),
    ("snapshot inspect", &[of::<Snapshot>()]),
    ("snapshot list", &[of::<List<Snapshot>>()]),
    ("snapshot pin", &[of::<Snapshot>()]),
    ("snapshot restore", &[of::<SnapshotRestored>()]),
    ("snapshot unpin", &[of::<Snapshot>()]),
    ("status", &[of::<Health>()]),
    ("support-bundle", &[of::<Bundle>(), of::<BundleWritten>()]),
    ("top", &[of::<ActivityRates>()]),
    ("volume attach", &[of::<Attachment>()]),
    ("volume check", &[of::<VolumeCheck>()]),
    ("volume clone", &[of::<Volume>()]),
    ("volume create", &[of::<Volume>()]),
    ("volume delete", &[of::<Deleted>()]),
    ("volume detach", &[of::<Detached>()]),
    ("volume inspect", &[of::<Inspected<'static>>()]),
    ("volume list", &[of::<List<Volume>>()]),
    ("volume rename", &[of::<Volume>()]),
    ("volume resize", &[of::<Volume>()]),
    ("volume scrub", &[of::<TaskStarted>(), of::<Task>()]),
    ("volume update", &[of::<Volume>()]),
    ("volume uri", &[of::<ExportUri>()]),
];

/// Returns the commands that have a schema.
pub fn commands() -> impl Iterator<Item = &'static str> {
    DOCUMENTS.iter().map(|(command, _)| *command)
}

/// Adds the version to the schema of a document. Lists in the form of pxctl have none.
fn versioned(schema: &Schema, schemas: &SchemaGenerator) -> Value {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.rsplit('/').next());
    let resolved = target.and_then(|name| schemas.definitions().get(name)).unwrap_or(schema.as_value());
    let mut document = resolved.clone();
    if document["type"] == "object" {
        document["properties"]["schemaVersion"] = json!({ "const": SCHEMA_VERSION });
        let required = document.as_object_mut().map(|schema| schema.entry("required").or_insert(json!([])));
        required
            .and_then(Value::as_array_mut)
            .into_iter()
            .for_each(|names| names.push("schemaVersion".into()));
    }
    document
}

/// Returns the schema of a command's documents.
fn schema_of(documents: &[Generate]) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let dialect = settings.meta_schema.clone();
    let mut schemas = settings.into_generator();
    let failure = [of::<FailureDocument>()];
    let all = documents.iter().chain(&failure).map(|generate| {
        let schema = generate(&mut schemas);
        versioned(&schema, &schemas)
    });
    let any_of: Vec<Value> = all.collect();
    Map::from_iter([
        ("$schema".to_owned(), json!(dialect)),
        ("anyOf".to_owned(), any_of.into()),
        ("$defs".to_owned(), Value::Object(schemas.take_definitions(true))),
    ])
}

/// Returns the canonical words of a command; arguments after it are ignored.
fn canonical(root: &Command, words: &[String]) -> String {
    let (mut command, mut path) = (root, Vec::new());
    for word in words {
        let Some(found) = command.find_subcommand(word) else { break };
        path.push(found.get_name().to_owned());
        command = found;
    }
    path.join(" ")
}

/// Runs `schema`; `root` is the parser of all commands.
pub fn run(output: &Output, args: &SchemaArgs, root: &Command) -> Exit {
    if args.command.is_empty() {
        let list: List<CommandSchema> = DOCUMENTS
            .iter()
            .map(|(command, documents)| CommandSchema { command, schema: schema_of(documents) })
            .collect();
        return output.show(&list, || {
            Table::of("COMMAND", DOCUMENTS.iter().map(|(command, _)| [(*command).to_owned()]))
        });
    }
    let wanted = canonical(root, &args.command);
    let Some((_, documents)) = DOCUMENTS.iter().find(|(command, _)| *command == wanted) else {
        let given = args.command.join(" ");
        return Err(Failure::usage(format!("no command {given:?} prints a document"))
            .with_hint("list the commands with `blockctl schema`"));
    };
    output.foreign_document(&schema_of(documents))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn commands_with_documents_have_a_schema() {
        fn leaves(command: &Command, path: &str, found: &mut BTreeSet<String>) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name()).trim().to_owned();
                match sub.has_subcommands() {
                    true => leaves(sub, &path, found),
                    false => {
                        found.insert(path);
                    }
                }
            }
        }
        let (mut commands, mut listed) = (BTreeSet::new(), BTreeSet::new());
        let root = crate::cli::command();
        leaves(&root, "", &mut commands);
        // It writes the content of files.
        commands.remove("cloudsnap cat");
        // Hidden; scripts for pxctl call it.
        commands.insert("secrets".to_owned());
        listed.extend(DOCUMENTS.iter().map(|(command, _)| (*command).to_owned()));
        assert_eq!(listed, commands);
        assert_eq!(
            canonical(&root, &["cs".to_owned(), "bg".to_owned(), "--x".to_owned()]),
            "cloudsnap backup-group"
        );
    }
}
