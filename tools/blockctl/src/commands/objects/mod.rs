//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

mod apply;
pub mod args;
mod backups;
mod delete;
mod plan;
mod record;
mod resources;

use super::Context;
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
    objects::{self, Body, Kind, Object, hook::label, yaml},
    table::Table,
};
use args::{DescribeArgs, DiffArgs, FileArg, Format, GetArgs};
use blockd_api::{ApiError, ClientError, ErrorCode, NameError, ObjectName, cloudsnaps::CloudSnapshotId};
use plan::{Plan, plan};
use resources::{Found, ResourceSet, Scope, columns};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

/// Result of an object that tasks are making.
const UNDER_WAY: &str = "under way";
/// Result of an object with an unfinished dependency.
const WAITING: &str = "waiting";
/// Result of an object whose task is resumed.
const RESUMED: &str = "resumed";

pub use apply::run as apply;
pub use delete::run as delete;

/// Reads the objects of all files, each after those that it depends on.
fn read(from: &FileArg) -> Result<Vec<Object>, Failure> {
    let mut all: Vec<Object> = Vec::new();
    for file in &from.file {
        for object in objects::read(file)? {
            if let Some(other) = all.iter().find(|other| other.is_same(&object)) {
                let message =
                    format!("{}: line {}: {object} is in {} already", object.file, object.line, other.file);
                return Err(Failure::usage(message));
            }
            all.push(object);
        }
    }
    refuse_two_rules(&all)?;
    all.sort_by_key(|object| object.kind);
    Ok(all)
}

/// Refuses a volume or group with two rules: it has one, and each would take it from the other.
fn refuse_two_rules(objects: &[Object]) -> Result<(), Failure> {
    let mut rules: BTreeMap<String, &Object> = BTreeMap::new();
    for object in objects {
        let Body::Rule(hook) = &object.body else { continue };
        for target in hook.targets().iter().flatten().flatten().map(label) {
            if let Some(other) = rules.insert(target.clone(), object) {
                let message = format!(
                    "{}: line {}: {target} cannot have {object}: it has {other} already, in {}, line {}",
                    object.file, object.line, other.file, other.line
                );
                return Err(Failure::usage(message));
            }
        }
    }
    Ok(())
}

/// Prints the warnings of objects as text.
fn warn(context: &Context<'_>, objects: &[Object]) {
    if context.output.is_json() {
        return;
    }
    for object in objects {
        for warning in &object.warnings {
            context.output.note(format!("warning: {}: {warning}", object.file));
        }
    }
}

/// Adds the warnings of an object to its document.
fn show_warnings(object: &Object, document: &mut Value) {
    let warnings: Vec<String> = object.warnings.iter().map(ToString::to_string).collect();
    if !warnings.is_empty() {
        document["warnings"] = json!(warnings);
    }
}

/// Loads the resources that objects need.
async fn load(context: &Context<'_>, objects: &[Object]) -> Result<ResourceSet, Failure> {
    reload(context, objects, ResourceSet::default(), true).await
}

/// Loads the resources again; the content of stores only if it changed.
async fn reload(
    context: &Context<'_>,
    objects: &[Object],
    old: ResourceSet,
    is_stored: bool,
) -> Result<ResourceSet, Failure> {
    let mut resources = ResourceSet::load(context).await?;
    resources.cloudsnaps = old.cloudsnaps.filter(|_| !is_stored);
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
async fn load_kind(context: &Context<'_>, kind: Kind, scope: &Scope) -> Result<ResourceSet, Failure> {
    let mut resources = ResourceSet::load(context).await?;
    if kind == Kind::VolumeBackup {
        resources.load_stores(context, scope).await?;
    }
    resources.refuse_hidden(kind)?;
    Ok(resources)
}

fn api(error: ApiError) -> Failure {
    Failure::Client(ClientError::Api(error))
}

/// Converts the name of an object to that of its resource; both have the same rules.
fn parse_name<T: FromStr<Err = NameError>>(name: &ObjectName) -> Result<T, Failure> {
    name.as_str().parse().map_err(|error: NameError| Failure::usage(error.to_string()))
}

/// Returns the objects of a kind, or of a name.
async fn found(context: &Context<'_>, kind: Kind, name: Option<&str>) -> Result<Vec<Found>, Failure> {
    let id = name.and_then(|name| name.parse::<CloudSnapshotId>().ok());
    let mut found = load_kind(context, kind, &Scope { locations: None, id }).await?.of(kind);
    if let Some(name) = name {
        found.retain(|one| one.name == name || (id.is_some() && one.status["cloudSnapID"] == name));
        if found.is_empty() {
            return Err(api(missing(kind, name)));
        }
    }
    Ok(found)
}

fn missing(kind: Kind, name: &str) -> ApiError {
    let code = match kind {
        Kind::BackupLocation => ErrorCode::CredentialNotFound,
        Kind::SchedulePolicy => ErrorCode::PolicyNotFound,
        Kind::Rule => ErrorCode::RuleNotFound,
        Kind::VolumeBackup => ErrorCode::CloudsnapNotFound,
        Kind::VolumeBackupSchedule => ErrorCode::ScheduleNotFound,
        Kind::VolumeRestore | Kind::VolumeClone => ErrorCode::VolumeNotFound,
    };
    ApiError::new(code, format!("there is no {kind}/{name}"))
}

/// `get`
pub async fn get(context: &Context<'_>, args: GetArgs) -> Result<u8, Failure> {
    let found = found(context, args.kind, args.name.as_deref()).await?;
    let output = context.output;
    let documents: Vec<Value> = found.iter().map(Found::document).collect();
    if output.is_json() || args.output == Format::Json {
        match (&args.name, documents.as_slice()) {
            (Some(_), [one]) => output.document(one)?,
            _ => output.document(&json!({ "items": documents }))?,
        }
    } else if args.output == Format::Yaml {
        // A listing of all can be applied.
        let rest = if args.name.is_some() { "" } else { ", and is left out" };
        let (mut texts, mut names) = (Vec::new(), BTreeSet::new());
        for (one, document) in found.iter().zip(&documents) {
            let why = if one.has_no_name() {
                Some("has no name: it cannot be applied")
            } else if args.name.is_none() && !names.insert(&one.name) {
                Some("is there already: one of a name can be applied")
            } else {
                None
            };
            if let Some(why) = why {
                output.note(format!("warning: {}/{} {why}{rest}", one.kind, one.name));
            }
            if args.name.is_some() || why.is_none() {
                texts.push(yaml(document));
            }
        }
        output.raw(texts.join("---\n").as_bytes())?;
    } else {
        let mut table = Table::new(columns(args.kind).iter().copied());
        for one in found {
            table.row([one.name].into_iter().chain(one.cells));
        }
        output.table(&table)?;
    }
    Ok(EXIT_DONE)
}

/// `describe`
pub async fn describe(context: &Context<'_>, args: DescribeArgs) -> Result<u8, Failure> {
    let found = found(context, args.kind, Some(&args.name)).await?;
    let documents: Vec<Value> = found.iter().map(Found::document).collect();
    if context.output.is_json() {
        context.output.document(&json!({ "items": documents }))?;
    } else {
        let texts: Vec<String> = documents.iter().map(yaml).collect();
        context.output.raw(texts.join("---\n").as_bytes())?;
    }
    Ok(EXIT_DONE)
}

/// `diff`
pub async fn diff(context: &Context<'_>, args: DiffArgs) -> Result<u8, Failure> {
    let objects = read(&args.from)?;
    warn(context, &objects);
    let resources = load(context, &objects).await?;
    let (mut documents, mut differs) = (Vec::new(), false);
    for object in &objects {
        let planned = plan(object, &resources);
        differs |= !matches!(planned, Plan::Unchanged | Plan::Wait(_));
        if !context.output.is_json() {
            show(context, object, &planned)?;
            continue;
        }
        let reason = match &planned {
            Plan::Refused(_, error) => Some(&error.message),
            _ => None,
        };
        let mut document = json!({
            "kind": object.kind, "name": object.name, "result": planned.result(), "changes": planned.changes(),
            "reason": reason
        });
        show_warnings(object, &mut document);
        documents.push(document);
    }
    if context.output.is_json() {
        context.output.document(&json!({ "objects": documents }))?;
    }
    Ok(if differs { EXIT_FAILED } else { EXIT_DONE })
}

/// Writes a plan as text.
fn show(context: &Context<'_>, object: &Object, planned: &Plan) -> Result<(), Failure> {
    let output = context.output;
    match planned {
        Plan::Unchanged => return Ok(()),
        Plan::Wait(_) | Plan::Await(..) | Plan::Resume(_) => {
            output.line(format!("  {object} {}", planned.result()))?;
        }
        Plan::Create => {
            output.line(format!("+ {object}"))?;
            yaml(&object.view()).lines().try_for_each(|line| output.line(format!("+   {line}")))?;
        }
        Plan::Update(_) | Plan::Refused(..) => output.line(format!("  {object}"))?,
    }
    for change in planned.changes() {
        for (sign, value) in [('-', &change.is), ('+', &change.should)] {
            if let Some(value) = value {
                output.line(format!("{sign}   {}: {value}", change.path))?;
            }
        }
    }
    if let Plan::Refused(_, error) = planned {
        output.note(format!("error: {}", error.message));
    }
    Ok(())
}
