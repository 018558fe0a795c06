//! `blockctl get`, `describe` and `diff`

use super::{
    args::{DescribeArgs, DiffArgs, Format, GetArgs},
    plan::{Plan, plan},
    record::{show_warnings, warn},
    resources::{Found, ResourceSet, Scope, columns, missing},
};
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    objects::{Kind, Object, read_all, yaml},
    output::Context,
    table::Table,
};
use blockd_api::{List, cloudsnaps::CloudSnapshotId};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Returns the objects of a kind, or of a name.
async fn found(context: &Context<'_>, kind: Kind, name: Option<&str>) -> Result<Vec<Found>, Failure> {
    let id = name.and_then(|name| name.parse::<CloudSnapshotId>().ok());
    let mut found = ResourceSet::load_kind(context, kind, &Scope { locations: None, id }).await?.of(kind);
    if let Some(name) = name {
        found.retain(|one| one.name == name || (id.is_some() && one.status["cloudSnapshotId"] == name));
        if found.is_empty() {
            return Err(missing(kind, name));
        }
    }
    Ok(found)
}

/// `get`
pub async fn get(context: &Context<'_>, args: GetArgs) -> Exit {
    let found = found(context, args.kind, args.name.as_deref()).await?;
    let (output, documents) = (context.output, found.iter().map(Found::document).collect::<Vec<_>>());
    if output.is_json() || args.output == Format::Json {
        return match (&args.name, documents.as_slice()) {
            (Some(_), [one]) => output.document(one),
            _ => output.document(&List::from(documents)),
        };
    }
    if args.output == Format::Table {
        let mut table = Table::new(columns(args.kind).split('|'));
        found.into_iter().for_each(|one| table.row([one.name].into_iter().chain(one.cells)));
        return output.table(&table);
    }
    // A listing of all can be applied.
    let rest = if args.name.is_some() { "" } else { ", and is left out" };
    let (mut texts, mut names) = (Vec::new(), BTreeSet::new());
    for (one, document) in found.iter().zip(&documents) {
        let why = if one.has_no_name() {
            Some("has no name: it cannot be applied")
        } else if args.name.is_none() && !names.insert(&one.name) {
            Some("is a duplicate: only one object of a name can be applied")
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
    output.raw(texts.join("---\n").as_bytes())
}

/// `describe`
pub async fn describe(context: &Context<'_>, args: DescribeArgs) -> Exit {
    let found = found(context, args.kind, Some(&args.name)).await?;
    let documents: Vec<Value> = found.iter().map(Found::document).collect();
    context
        .output
        .text(&List::from(documents.clone()), || documents.iter().map(yaml).collect::<Vec<_>>().join("---\n"))
}

/// `diff`
pub async fn diff(context: &Context<'_>, args: DiffArgs) -> Exit {
    let objects = read_all(&args.from.file)?;
    warn(context, &objects);
    let resources = ResourceSet::load_for(context, &objects, None).await?;
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
        context.output.document(&List::from(documents))?;
    }
    Ok(if differs { EXIT_FAILED } else { EXIT_DONE })
}

/// Writes a plan as text.
fn show(context: &Context<'_>, object: &Object, planned: &Plan) -> Result<(), Failure> {
    let output = context.output;
    match planned {
        Plan::Unchanged => {}
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
        output.note(format!("error: {}", error.message));
    }
    Ok(())
}
