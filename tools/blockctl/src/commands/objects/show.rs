//! `blockctl get`, `describe` and `diff`

use super::{
    args::{FileArg, Format, GetArgs, Kinds, Selection, kind_and_name},
    differences::{Unchanged, differences},
    found::{Found, NameCounts},
    object_plans::plan,
    overlaps::refuse_overlaps,
    plan::Plan,
    record::{warn, warnings},
    resources::{ResourceSet, Scope},
    restores::{consequence, warnings_of_new},
    status::{EventSummary, ObjectDifference, RunSummary},
};
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure, next_action},
    objects::{Kind, Object, read_all, yaml},
    output::Context,
    table::Table,
};
use blockd_api::{
    ApiError, List,
    cloudsnaps::CloudSnapshotId,
    events::{Event, ListEvents, MAX_EVENTS},
    operations,
    schedules::{ListRuns, MAX_HISTORY, Run},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Maximum number of events, and of runs, of a described object.
const MAX_DESCRIBED: usize = 20;

/// Returns all objects of the kinds.
///
/// # Errors
/// No kind has one of the names.
async fn load(context: &Context<'_>, wanted: &Selection) -> Result<Vec<Found>, Failure> {
    let Selection { kinds: Kinds { kinds, .. }, names, .. } = wanted;
    let id = names.iter().find_map(|name| name.parse::<CloudSnapshotId>().ok());
    let scope = Scope { locations: None, id: id.filter(|_| names.len() == 1) };
    let resources = ResourceSet::load_kinds(context, kinds, &scope).await?;
    let all: Vec<Found> = kinds.iter().flat_map(|kind| resources.of(*kind)).collect();
    let missing = |name: &&String| !all.iter().any(|one| one.is_named(name));
    match names.iter().find(missing) {
        Some(name) => {
            let (kinds, name) = match kind_and_name(name) {
                Some((kind, name)) => (vec![kind], name),
                None => (kinds.clone(), name.as_str()),
            };
            // It may be a backup in a location that cannot be listed.
            if let Some(error) = resources.unlisted(&format!("VolumeBackup/{name}"), None) {
                return Err(error.into());
            }
            let error = missing_of(&kinds, name);
            let error = match name.contains(',') {
                true => error.with_hint("names are separated by spaces"),
                false => error,
            };
            Err(error.into())
        }
        None => Ok(all),
    }
}

/// Returns the error of a name that no object of the kinds has.
fn missing_of(kinds: &[Kind], name: &str) -> ApiError {
    let mut error = kinds[0].missing(name);
    if let [others @ .., last] = kinds
        && !others.is_empty()
    {
        let others = others.iter().map(Kind::to_string).collect::<Vec<_>>();
        error.message = format!("there is no {} or {last} of the name {name}", others.join(", "));
        error = error.with_hint(format!("`blockctl get {},{last}` lists those that exist", others.join(",")));
    }
    error
}

/// Returns the objects of the names and of the namespace.
fn selected<'a>(all: &'a [Found], wanted: &Selection) -> Vec<&'a Found> {
    let Selection { names, namespace, .. } = wanted;
    let is_named = |one: &&Found| names.is_empty() || names.iter().any(|name| one.is_named(name));
    let is_in = |one: &&Found| namespace.as_ref().is_none_or(|namespace| one.is_in(namespace));
    all.iter().filter(is_named).filter(is_in).collect()
}

/// `get`
pub async fn get(context: &Context<'_>, args: GetArgs) -> Exit {
    let GetArgs { objects, output: format } = args;
    let objects = objects.with_objects();
    let all = load(context, &objects).await?;
    let found = selected(&all, &objects);
    let Selection { kinds: Kinds { kinds, .. }, names, .. } = objects;
    let output = context.output;
    if output.is_json() || format == Format::Json {
        let documents = found.iter().map(|one| one.document()).collect::<Vec<_>>();
        return match (names.as_slice(), documents.as_slice()) {
            ([_], [one]) => output.document(one),
            _ => output.document(&List::from(documents)),
        };
    }
    match format {
        Format::Name => {
            let counts = NameCounts::of(&all);
            let lines = found.iter().map(|one| format!("{}/{}\n", one.kind, counts.unique(one)));
            output.raw(lines.collect::<String>().as_bytes())
        }
        Format::Yaml => write_yaml(context, &found, !names.is_empty()),
        _ => tables(context, &kinds, &found, format == Format::Wide),
    }
}

/// Writes a table of each kind. Several have their kind as the title of the names.
fn tables(context: &Context<'_>, kinds: &[Kind], found: &[&Found], is_wide: bool) -> Exit {
    let mut tables = Vec::new();
    for kind in kinds {
        let title = if kinds.len() > 1 { kind.text() } else { "NAME" };
        let columns: Vec<_> = std::iter::once((title, title)).chain(kind.columns(is_wide)).collect();
        let mut table = Table::new(columns.iter().map(|(title, _)| *title));
        let of_kind = found.iter().filter(|one| one.kind == *kind);
        of_kind.for_each(|one| table.row(one.cells(is_wide)));
        if table.is_empty() {
            continue;
        }
        if !is_wide {
            let cut = columns[1..].iter().filter(|(_, path)| !path.ends_with("At")).map(|(title, _)| *title);
            table = table.fit_but(&cut.collect::<Vec<_>>().join("|"), title);
        }
        tables.push(context.output.rendered(&table));
    }
    if let ([], [kind]) = (tables.as_slice(), kinds) {
        context.output.note(format!("no {kind}"));
    } else if tables.is_empty() {
        context.output.note("no objects");
    }
    context.output.raw(tables.join("\n").as_bytes())
}

/// Writes documents. A listing of all can be applied.
fn write_yaml(context: &Context<'_>, found: &[&Found], is_named: bool) -> Exit {
    let rest = if is_named { "" } else { ", and is left out" };
    let (mut texts, mut seen) = (Vec::new(), BTreeSet::new());
    for one in found {
        let mut is_duplicate = || !is_named && !seen.insert((one.kind, &one.name));
        let duplicate = "is a duplicate: only one object of a name can be applied";
        let why = one.unappliable().or_else(|| is_duplicate().then_some(duplicate));
        if let Some(why) = why {
            context.output.note(format!("warning: {}/{} {why}{rest}", one.kind, one.name));
        }
        if is_named || why.is_none() {
            texts.push(yaml(&one.document()));
        }
    }
    context.output.raw(texts.join("---\n").as_bytes())
}

/// `describe`
pub async fn describe(context: &Context<'_>, args: Selection) -> Exit {
    let args = args.with_objects();
    let all = load(context, &args).await?;
    let query = ListEvents { max: Some(MAX_EVENTS), ..ListEvents::default() };
    let events = context.client.call(operations::LIST_EVENTS, &query).await?.items;
    let mut documents = Vec::new();
    for one in selected(&all, &args) {
        let mut document = one.document();
        let runs = match one.kind {
            Kind::VolumeBackupSchedule | Kind::RestoreDrill => Some(runs(context, one).await?),
            _ => None,
        };
        let is_about = |event: &&Event| match &runs {
            Some(runs) => is_of_schedule(event, one, runs),
            None => is_about(event, one),
        };
        let newest = events.iter().rev().filter(is_about).take(MAX_DESCRIBED);
        if let Some(runs) = &runs {
            document["runs"] = runs.iter().take(MAX_DESCRIBED).map(summary).collect();
        }
        document["events"] = newest.map(event_value).collect();
        documents.push(document);
    }
    context.output.text(&List::from(documents.clone()), || {
        documents.into_iter().map(described).collect::<Vec<_>>().join("---\n")
    })
}

/// Returns a described object as YAML, with its runs and events at the end.
fn described(mut document: Value) -> String {
    let mut last = String::new();
    for field in ["runs", "events"] {
        if let Some(value) = document.as_object_mut().and_then(|fields| fields.remove(field)) {
            last += &yaml(&json!({ (field): value }));
        }
    }
    yaml(&document) + &last
}

/// Returns true for an event of an object: of its tasks or its location.
fn is_about(event: &Event, found: &Found) -> bool {
    let is_location =
        found.kind == Kind::BackupLocation && event.credential_name.as_deref() == Some(&found.name);
    let of_task = event.task_id.is_some_and(|task| found.tasks.contains(&task));
    // Other restores have the cloud snapshot of a restore, too.
    let is_stored = found.kind != Kind::VolumeRestore;
    let of_snapshot =
        is_stored && event.cloud_snapshot_id.as_ref().is_some_and(|id| found.status.to_string().contains(id));
    is_location || of_task || of_snapshot
}

/// Returns true for an event of a schedule: of its runs and their backups, or of a run that made none.
fn is_of_schedule(event: &Event, found: &Found, runs: &[Run]) -> bool {
    let is_made = |run: &Run| run.cloud_snapshot_id.map(|id| id.to_string()) == event.cloud_snapshot_id;
    match (event.task_id, &event.cloud_snapshot_id) {
        (None, None) => {
            let mut words = event.message.split([' ', ':']);
            words.any(|word| word == "schedule") && words.next() == Some(found.name.as_str())
        }
        (task, id) => {
            runs.iter().any(|run| (task.is_some() && run.task_id == task) || (id.is_some() && is_made(run)))
        }
    }
}

fn event_value(event: &Event) -> Value {
    let Event { occurred_at, severity, .. } = *event;
    json!(EventSummary { occurred_at, severity, kind: event.kind.clone(), message: event.message.clone() })
}

/// Returns the runs of a schedule, newest first.
async fn runs(context: &Context<'_>, found: &Found) -> Result<Vec<Run>, Failure> {
    let schedule_id: Option<Uuid> = serde_json::from_value(found.status["scheduleId"].clone()).ok();
    let query = ListRuns { schedule_id, max: Some(MAX_HISTORY), ..ListRuns::default() };
    Ok(context.client.call(operations::LIST_RUNS, &query).await?.items)
}

fn summary(run: &Run) -> Value {
    json!(RunSummary {
        started_at: run.started_at,
        volume_name: run.volume_name.clone(),
        state: run.state,
        cloud_snapshot_id: run.cloud_snapshot_id,
        reason: run.reason.clone(),
    })
}

/// `diff`
pub async fn diff(context: &Context<'_>, args: FileArg) -> Exit {
    let mut read = read_all(&args.file)?;
    warn(context, &read);
    let resources = ResourceSet::load_for(context, &mut read.objects).await?;
    refuse_overlaps(&read.objects, &resources)?;
    let objects = read.objects;
    let (mut documents, mut differs) = (Vec::new(), false);
    for object in &objects {
        let planned = plan(object, &resources);
        let Unchanged { warnings: mut more, lacks_volumes } = match planned {
            Plan::Unchanged | Plan::Update(_) => differences(object, &resources),
            Plan::Create => Unchanged { warnings: warnings_of_new(object, &resources), lacks_volumes: false },
            _ => Unchanged::default(),
        };
        more.extend(consequence(object, &resources).map(|one| one.text));
        differs |= match planned {
            Plan::Unchanged => lacks_volumes,
            Plan::Kept | Plan::Wait(_) => false,
            _ => true,
        };
        if !context.output.is_json() {
            context.output.warn(&more);
            show(context, object, &planned)?;
            continue;
        }
        let reason = match &planned {
            Plan::Refused(_, error) => Some(error.message.clone()),
            _ => None,
        };
        documents.push(ObjectDifference {
            kind: object.kind,
            name: object.name.to_string(),
            result: planned.result().to_owned(),
            changes: planned.changes().to_vec(),
            reason,
            warnings: [warnings(object), more].concat(),
        });
    }
    if context.output.is_json() {
        context.output.document(&List::from(documents))?;
    }
    Ok(if differs { EXIT_FAILED } else { EXIT_DONE })
}

/// Writes a plan as text.
fn show(context: &Context<'_>, object: &Object, planned: &Plan) -> Result<(), Failure> {
    let output = context.output;
    match planned {
        Plan::Unchanged | Plan::Kept => {}
        Plan::Create => {
            output.line(format!("+ {object}"))?;
            for line in yaml(&object.view()).lines() {
                output.line(format!("+   {line}"))?;
            }
        }
        Plan::Update(_) | Plan::Refused(..) => drop(output.line(format!("  {object}"))?),
        _ => drop(output.line(format!("  {object} {}", planned.result()))?),
    }
    for change in planned.changes() {
        for (sign, value) in [('-', &change.is), ('+', &change.should)] {
            if let Some(value) = value {
                output.line(format!("{sign}   {}: {value}", change.path))?;
            }
        }
    }
    if let Plan::Refused(_, error) = planned {
        output.error(&error.message, next_action(error).as_deref());
    }
    Ok(())
}
