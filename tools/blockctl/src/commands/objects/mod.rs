//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

mod apply;
mod delete;
mod erase;
mod plan;
mod record;
mod resources;

use super::Context;
use crate::{
    cli::objects::{DescribeArgs, DiffArgs, FileArg, Format, GetArgs},
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
    objects::{self, Body, Kind, Object, hook::Hook, yaml},
    table::Table,
};
use blockd_api::{ApiError, ClientError, ErrorCode, ObjectName, cloudsnaps::CloudSnapshotId};
use plan::{Change, Plan, plan};
use resources::{Found, ResourceSet, Scope, columns};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The result for what tasks are making already.
const UNDER_WAY: &str = "under way";
/// The result for what needs something that is not done yet.
const WAITING: &str = "waiting";
/// The result for what a task is made to go on with.
const RESUMED: &str = "resumed";

pub use apply::run as apply;
pub use delete::run as delete;

/// The objects in all files, in an order in which each needs at most those before it.
fn read(from: &FileArg) -> Result<Vec<Object>, Failure> {
    let mut all: Vec<Object> = Vec::new();
    for file in &from.file {
        for object in objects::read(file)? {
            let is_same = |other: &&Object| other.kind() == object.kind() && other.name == object.name;
            if let Some(other) = all.iter().find(is_same) {
                let message =
                    format!("{}: line {}: {object} is in {} already", object.file, object.line, other.file);
                return Err(Failure::usage(message));
            }
            all.push(object);
        }
    }
    refuse_two_rules(&all)?;
    all.sort_by_key(Object::kind);
    Ok(all)
}

/// Refuses a volume or a group that is to have two rules: it has one, and each would take it from the other.
fn refuse_two_rules(objects: &[Object]) -> Result<(), Failure> {
    let mut has: BTreeMap<String, &Object> = BTreeMap::new();
    for object in objects {
        let Body::Rule(hook) = &object.body else { continue };
        let volumes = hook.volumes.iter().flatten().map(|name| format!("volume {name}"));
        let groups = hook.groups.iter().flatten().map(|name| format!("group {name}"));
        for what in volumes.chain(groups) {
            if let Some(other) = has.insert(what.clone(), object) {
                let message = format!(
                    "{}: line {}: {what} cannot have {object}: it has {other} already, in {}, line {}",
                    object.file, object.line, other.file, other.line
                );
                return Err(Failure::usage(message));
            }
        }
    }
    Ok(())
}

/// Tells people what of objects is ignored.
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

/// Tells programs what of an object is ignored.
fn show_warnings(object: &Object, document: &mut Value) {
    let warnings: Vec<String> = object.warnings.iter().map(ToString::to_string).collect();
    if !warnings.is_empty() {
        document["warnings"] = json!(warnings);
    }
}

/// Returns true for kinds whose plan needs the content of stores.
fn about_stores(kind: Kind) -> bool {
    matches!(kind, Kind::VolumeBackup | Kind::VolumeRestore)
}

/// Loads the state that these objects need.
async fn world_for(context: &Context<'_>, objects: &[Object]) -> Result<ResourceSet, Failure> {
    let mut world = ResourceSet::load(context).await?;
    world.called = rules_of(objects);
    if objects.iter().any(|one| about_stores(one.kind())) {
        world.load_stores(context, &scope_of(objects)).await?;
    }
    Ok(world)
}

/// The rules among objects.
fn rules_of(objects: &[Object]) -> Vec<(ObjectName, Hook)> {
    let rule = |object: &Object| match &object.body {
        Body::Rule(hook) => Some((object.name.clone(), hook.clone())),
        _ => None,
    };
    objects.iter().filter_map(rule).collect()
}

/// Returns the stores that these objects need.
fn scope_of(objects: &[Object]) -> Scope {
    let location = |object: &Object| match &object.body {
        Body::Backup(backup) => Some(backup.location.clone()),
        Body::Restore(restore) => Some(restore.location.clone()),
        _ => None,
    };
    Scope { locations: Some(objects.iter().filter_map(location).collect()), id: None }
}

/// Loads the state that a kind needs.
async fn world_for_kind(context: &Context<'_>, kind: Kind, scope: &Scope) -> Result<ResourceSet, Failure> {
    let mut world = ResourceSet::load(context).await?;
    if kind == Kind::VolumeBackup {
        world.load_stores(context, scope).await?;
    }
    Ok(world)
}

fn api(error: ApiError) -> Failure {
    Failure::Client(ClientError::Api(error))
}

/// Returns the objects of a kind, or the one of a name.
async fn found(context: &Context<'_>, kind: Kind, name: Option<&str>) -> Result<Vec<Found>, Failure> {
    let id = name.and_then(|name| name.parse::<CloudSnapshotId>().ok());
    let world = world_for_kind(context, kind, &Scope { locations: None, id }).await?;
    world.refuse_hidden(kind)?;
    let mut found = world.of(kind);
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
        // A listing of all is meant to be applied.
        let (rest, mut texts, mut names) =
            (if args.name.is_some() { "" } else { ", and is left out" }, Vec::new(), BTreeSet::new());
        for one in &found {
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
                texts.push(yaml(&one.document()));
            }
        }
        output.raw(texts.join("---\n").as_bytes())?;
    } else {
        let mut table = Table::new(columns(args.kind));
        for one in found {
            let mut row = vec![one.name];
            row.extend(one.cells);
            table.row(row);
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
    let world = world_for(context, &objects).await?;
    let (mut documents, mut differs) = (Vec::new(), false);
    for object in &objects {
        let planned = plan(object, &world);
        let (result, changes, reason) = match &planned {
            Plan::Unchanged => ("unchanged", &[][..], None),
            Plan::Wait(_) => (UNDER_WAY, &[][..], None),
            Plan::Await(..) => (WAITING, &[][..], None),
            Plan::Resume(_) => (RESUMED, &[][..], None),
            Plan::Create => ("created", &[][..], None),
            Plan::Update(changes) => ("configured", changes.as_slice(), None),
            Plan::Refused(changes, error) => ("refused", changes.as_slice(), Some(&error.message)),
        };
        differs |= !matches!(planned, Plan::Unchanged | Plan::Wait(_));
        if context.output.is_json() {
            let changes: Vec<Value> = changes
                .iter()
                .map(|change| json!({ "path": change.path, "is": change.is, "should": change.should }))
                .collect();
            let mut document = json!({
                "kind": object.kind().as_str(), "name": object.name, "result": result, "changes": changes, "reason": reason
            });
            show_warnings(object, &mut document);
            documents.push(document);
            continue;
        }
        match &planned {
            Plan::Unchanged => {}
            Plan::Wait(_) | Plan::Await(..) | Plan::Resume(_) => {
                context.output.line(format!("  {object} {result}"))?;
            }
            Plan::Create => {
                context.output.line(format!("+ {object}"))?;
                for line in yaml(&object.view()).lines() {
                    context.output.line(format!("+   {line}"))?;
                }
            }
            Plan::Update(_) | Plan::Refused(..) => {
                context.output.line(format!("  {object}"))?;
                changes.iter().try_for_each(|change| show(context, change))?;
                if let Some(reason) = reason {
                    context.output.note(format!("error: {reason}"));
                }
            }
        }
    }
    if context.output.is_json() {
        context.output.document(&json!({ "objects": documents }))?;
    }
    Ok(if differs { EXIT_FAILED } else { EXIT_DONE })
}

fn show(context: &Context<'_>, change: &Change) -> Result<(), Failure> {
    for (sign, value) in [('-', &change.is), ('+', &change.should)] {
        if let Some(value) = value {
            context.output.line(format!("{sign}   {}: {value}", change.path))?;
        }
    }
    Ok(())
}
