//! `blockctl snapshot …`

pub mod args;

use super::{
    filters::NamePattern,
    list_filter::{LabelOption, Listed, Sort},
    rules,
};
use crate::{
    failure::{Exit, Failure},
    output::Context,
    progress::{Measured, Progress},
    snapshot_ref::{ExportRef, volume_of},
    table::{Facts, Table, Width, counted, micros, or_dash, short_uuid},
};
use args::{
    CreateArgs, CreateGroupArgs, DeleteArgs, DiffArgs, ListArgs, Point, RestoreArgs, SnapshotCommand,
};
use blockd_api::{
    ApiError, ByteSize, ClientError, ErrorCode, LabelSelector, SnapshotRef, VolumeId, VolumeRef, format_time,
    operations,
    quiesce::{QuiesceReport, QuiesceStep},
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, DeleteSnapshot, DiffSnapshots, ListSnapshots, MarkSnapshot,
        RestoreSnapshot, Snapshot,
    },
};
use jiff::Timestamp;
use std::{cmp::Ordering, collections::BTreeSet, time::Duration};

/// Delay before the progress of a rollback is shown.
const SHOW_AFTER: Duration = Duration::from_secs(1);
/// Interval of progress updates.
const SHOW_EVERY: Duration = Duration::from_millis(500);

pub async fn run(context: &Context<'_>, command: SnapshotCommand) -> Exit {
    match command {
        SnapshotCommand::Create(args) => create(context, args).await,
        SnapshotCommand::CreateGroup(args) => create_group(context, args).await,
        SnapshotCommand::List(args) => list(context, args).await,
        SnapshotCommand::Inspect(args) => inspect(context, &args.snapshot.resolve(context).await?).await,
        SnapshotCommand::Diff(args) => diff(context, args).await,
        SnapshotCommand::Restore(args) => restore(context, args).await,
        SnapshotCommand::Pin(args) => pin(context, &args.snapshot.resolve(context).await?, true).await,
        SnapshotCommand::Unpin(args) => pin(context, &args.snapshot.resolve(context).await?, false).await,
        SnapshotCommand::Delete(args) => delete(context, &args).await,
    }
}

async fn create(context: &Context<'_>, args: CreateArgs) -> Exit {
    let request = CreateSnapshot { name: args.name, hooks: args.hooks.options()? };
    let snapshot = context.client.call_at(operations::CREATE_SNAPSHOT, &args.volume, &request).await?;
    warn(context, snapshot.quiesce.as_ref());
    context.output.tell(&snapshot, || {
        format!(
            "Snapshot successfully created: {} ({}@{}, freeze {})",
            snapshot.snapshot_id,
            snapshot.volume_name,
            snapshot.name,
            micros(snapshot.freeze_stall_micros)
        )
    })
}

async fn create_group(context: &Context<'_>, args: CreateGroupArgs) -> Exit {
    let request = CreateGroupSnapshot {
        group: args.group,
        label: args.label,
        volumes: args.volumes,
        name: args.name,
        hooks: args.hooks.options()?,
    };
    let taken = context.client.call(operations::CREATE_GROUP_SNAPSHOT, &request).await?;
    warn(context, taken.list.items.first().and_then(|snapshot| snapshot.quiesce.as_ref()));
    if context.output.is_json() {
        return context.output.document(&taken);
    }
    context.output.line(format!(
        "Group snapshot successfully created with groupID:{} ({}, {}, freeze {})",
        taken.group.group_id,
        counted(taken.group.members, "volume"),
        taken.name,
        micros(taken.group.group_stall_micros)
    ))?;
    context.output.table(&table(&taken.list.items, Width::Narrow))
}

/// Prints failed quiesce steps of a snapshot that was taken anyway.
fn warn(context: &Context<'_>, report: Option<&QuiesceReport>) {
    for step in report.into_iter().flat_map(|QuiesceReport { steps }| steps) {
        if let Some(error) = &step.error {
            context.output.note(format!("warning: {} {}: {error}", step.kind, step.target));
        }
    }
}

impl Listed for Snapshot {
    const NAME_HELP: &'static str = "Only snapshots of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::OfVolume("Only snapshots of volumes with all these labels");
    const SORTS: &'static [Sort] = &[Sort::Volume, Sort::Created, Sort::Name, Sort::Size];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.name.as_str())
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.created_at)
    }

    fn is_labelled(&self, _label: &LabelSelector, volumes: &BTreeSet<VolumeId>) -> bool {
        volumes.contains(&self.volume_id)
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Created => self.created_at.cmp(&other.created_at),
            Sort::Name => self.name.cmp(&other.name),
            Sort::Size => self.exclusive_bytes.cmp(&other.exclusive_bytes),
            // The order of the daemon: by volume, oldest first.
            _ => Ordering::Equal,
        }
    }
}

async fn list(context: &Context<'_>, args: ListArgs) -> Exit {
    let query = ListSnapshots { volume: args.volume, group: args.group };
    let mut list = context.client.call(operations::LIST_SNAPSHOTS, &query).await?;
    args.filter.apply(context, &mut list.items, None).await?;
    let width = args.width.width();
    context.output.list(&list, "snapshots", || table(&list.items, width))
}

fn table(snapshots: &[Snapshot], width: Width) -> Table {
    let size = |bytes: Option<u64>| or_dash(bytes.map(ByteSize::from_bytes));
    let status = |snapshot: &Snapshot| match snapshot.pinned {
        true => format!("{} - pinned", snapshot.state),
        false => snapshot.state.to_string(),
    };
    Table::list(snapshots, width)
        .wide("ID", |snapshot| snapshot.snapshot_id)
        .both("VOLUME", |snapshot| &snapshot.volume_name)
        .both("NAME", |snapshot| &snapshot.name)
        .both("CREATED|CREATED-TIME", |snapshot| width.time(snapshot.created_at))
        .wide("DIRTY", |snapshot| ByteSize::from_bytes(snapshot.dirty_bytes))
        .both("EXCLUSIVE", |snapshot| size(snapshot.exclusive_bytes))
        .wide("SHARED", |snapshot| size(snapshot.shared_bytes))
        .wide("FREEZE", |snapshot| micros(snapshot.freeze_stall_micros))
        .wide("GROUP-SNAPSHOT", |snapshot| {
            or_dash(snapshot.taken_with.as_ref().map(|group| short_uuid(group.group_id)))
        })
        .both("STATUS", status)
        .fit("VOLUME|NAME")
}

async fn inspect(context: &Context<'_>, snapshot: &SnapshotRef) -> Exit {
    let snapshot = context.client.call_at(operations::GET_SNAPSHOT, snapshot, &()).await?;
    context.output.describe(&snapshot, || facts(&snapshot))
}

fn facts(snapshot: &Snapshot) -> Facts {
    let mut facts = Facts::default();
    facts
        .add("Snapshot", snapshot.snapshot_id)
        .add("Name", &snapshot.name)
        .add("Volume", format!("{} ({})", snapshot.volume_name, snapshot.volume_id))
        .add("Created", format_time(snapshot.created_at))
        .add("Status", snapshot.state)
        .add("Pinned", snapshot.pinned)
        .add("Epoch", snapshot.epoch)
        .add("Dirty", ByteSize::from_bytes(snapshot.dirty_bytes))
        .add("Exclusive", or_dash(snapshot.exclusive_bytes.map(ByteSize::from_bytes)))
        .add("Shared", or_dash(snapshot.shared_bytes.map(ByteSize::from_bytes)))
        .add("Freeze", micros(snapshot.freeze_stall_micros))
        .add("URI", &snapshot.uri);
    if let Some(group) = &snapshot.taken_with {
        facts
            .add("Group", or_dash(group.group.as_ref()))
            .add("Group snapshot", group.group_id)
            .add("Taken with", format!("{} in all", counted(group.members, "volume")))
            .add("Group freeze", micros(group.group_stall_micros));
    }
    for step in snapshot.quiesce.iter().flat_map(|QuiesceReport { steps }| steps) {
        facts.add(rules::step_name(step), step_text(step));
    }
    facts
}

fn step_text(step: &QuiesceStep) -> String {
    let status = step.exit_status.map_or_else(String::new, |status| format!(", exit status {status}"));
    let error = step.error.as_ref().map_or_else(String::new, |error| format!(", failed: {error}"));
    let rule = step.rule_name.as_ref().map_or_else(String::new, |rule| format!("rule {rule}, "));
    let said =
        step.output.as_deref().map(rules::one_line).map_or_else(String::new, |said| format!(": {said}"));
    format!("{} ({rule}{}{status}{error}){said}", step.target, micros(step.duration_micros))
}

async fn diff(context: &Context<'_>, args: DiffArgs) -> Exit {
    let (from, to) = match (&args.from, &args.to) {
        (from, None) if !matches!(args.at, ExportRef::Volume(_)) => (None, from),
        (from, to) => (from.as_ref(), to),
    };
    let (volume, from) = source(context, &args.at, from).await?;
    let to = match to.as_ref().filter(|to| !to.is_now()) {
        Some(to) => Some(to.of(&volume)?.resolve(context).await?),
        None => None,
    };
    let mut query = DiffSnapshots { from, to, offset_bytes: None };
    let mut diff = context.client.call_at(operations::DIFF_SNAPSHOTS, &volume, &query).await?;
    // Replies are paged; the difference of two snapshots does not change between requests.
    while let Some(offset_bytes) = diff.list.next {
        query.offset_bytes = Some(offset_bytes);
        let mut next = context.client.call_at(operations::DIFF_SNAPSHOTS, &volume, &query).await?;
        diff.list.items.append(&mut next.list.items);
        diff.list.next = next.list.next;
    }
    if context.output.is_json() {
        return context.output.document(&diff);
    }
    let rows = diff.list.items.iter().map(|extent| {
        [extent.offset_bytes.to_string(), extent.len_bytes.to_string(), extent.kind.to_string()]
    });
    let exit = context.output.table(&Table::of("OFFSET|LENGTH|KIND", rows));
    context.output.note(format!(
        "{}: {} of data, {} of zeroes",
        counted(diff.list.items.len() as u64, "extent"),
        ByteSize::from_bytes(diff.data_bytes),
        ByteSize::from_bytes(diff.zero_bytes)
    ));
    exit
}

/// Returns the volume and the snapshot of `VOLUME SNAPSHOT`, `VOLUME@SNAPSHOT`, or the id of a snapshot.
///
/// # Errors
/// The snapshot is missing, given twice, or does not exist.
async fn source(
    context: &Context<'_>,
    at: &ExportRef,
    point: Option<&Point>,
) -> Result<(VolumeRef, SnapshotRef), Failure> {
    let snapshot = match (at, point) {
        (ExportRef::Volume(volume), Some(point)) => {
            let snapshot = point.of(volume)?.resolve(context).await?;
            return Ok((volume.clone(), snapshot));
        }
        (ExportRef::Snapshot(snapshot), None) => snapshot.resolve(context).await?,
        (ExportRef::Snapshot(_), Some(_)) => {
            return Err(Failure::usage("the snapshot is given twice: by VOLUME@SNAPSHOT and separately"));
        }
        (ExportRef::Volume(VolumeRef::Id(id)), None) => id.to_string().parse()?,
        (ExportRef::Volume(volume), None) => {
            let hint = format!(
                "`blockctl snapshot list {volume}` shows the snapshots; {volume}@latest is the newest"
            );
            return Err(
                Failure::usage("name the snapshot: VOLUME@SNAPSHOT or VOLUME SNAPSHOT").with_hint(hint)
            );
        }
    };
    Ok((volume_of(context, &snapshot).await?, snapshot))
}

async fn restore(context: &Context<'_>, args: RestoreArgs) -> Exit {
    let given = args.snapshot.as_ref();
    let (volume, snapshot) = source(context, &args.at, given).await?;
    let request = RestoreSnapshot { snapshot, discard: args.discard };
    let fate = if args.discard { "discarded" } else { "kept as a snapshot" };
    let consequence =
        format!("Volume {} returns to snapshot {}; its current content is {fate}.", volume, request.snapshot);
    args.yes.confirm(context.output, &consequence)?;
    let restored =
        watched(context, &volume, context.client.call_at(operations::RESTORE_SNAPSHOT, &volume, &request))
            .await?;
    if context.output.is_json() {
        return context.output.document(&restored);
    }
    let kept = restored.kept_snapshot.map_or_else(String::new, |kept| {
        format!("; the previous state is {}@{}", kept.volume_name, kept.name)
    });
    context.output.line(format!(
        "Volume {} successfully restored to snapshot {} ({} rolled back{kept}).",
        restored.volume_name,
        restored.snapshot_name,
        ByteSize::from_bytes(restored.changed_bytes)
    ))
}

/// Waits for a rollback and shows its progress after a delay.
async fn watched<T>(
    context: &Context<'_>,
    volume: &VolumeRef,
    rollback: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let mut rollback = std::pin::pin!(rollback);
    let mut progress = Progress::new(context.output.is_json());
    let mut pause = SHOW_AFTER;
    let done = loop {
        if let Ok(done) = tokio::time::timeout(pause, &mut rollback).await {
            break done;
        }
        pause = SHOW_EVERY;
        // A failed progress request is ignored; the result matters.
        let asked =
            tokio::time::timeout(SHOW_AFTER, context.client.call_at(operations::GET_VOLUME, volume, &()));
        if let Some(now) = asked.await.ok().and_then(Result::ok).and_then(|volume| volume.rollback) {
            progress.show(&Measured {
                head: "Rolling back:".to_owned(),
                phase: "rolling back",
                done_bytes: now.done_bytes,
                total_bytes: now.total_bytes,
            });
        }
    };
    progress.finish();
    done
}

async fn pin(context: &Context<'_>, snapshot: &SnapshotRef, pinned: bool) -> Exit {
    let snapshot =
        context.client.call_at(operations::MARK_SNAPSHOT, snapshot, &MarkSnapshot { pinned }).await?;
    let what = if snapshot.pinned { "is pinned" } else { "is not pinned" };
    context.output.tell(&snapshot, || format!("Snapshot {}@{} {what}.", snapshot.volume_name, snapshot.name))
}

/// Refuses, before a question, a deletion that the daemon does only by force.
///
/// # Errors
/// One of the snapshots is pinned.
pub fn refuse_pinned(snapshots: &[Snapshot]) -> Result<(), Failure> {
    let Some(pinned) = snapshots.iter().find(|one| one.pinned) else { return Ok(()) };
    let message = format!("snapshot {}@{} is pinned", pinned.volume_name, pinned.name);
    let refused = ApiError::new(ErrorCode::SnapshotPinned, message);
    Err(refused.with_hint("unpin it, or delete by --force").into())
}

async fn delete(context: &Context<'_>, args: &DeleteArgs) -> Exit {
    let (snapshot, query) = (&args.snapshot.resolve(context).await?, DeleteSnapshot { force: args.force });
    if !args.snapshot.is_exactly(snapshot) && !args.yes.is_deliberate() {
        return Err(Failure::usage("without --yes, delete requires the id or the name of a snapshot"));
    }
    if args.yes.must_ask() {
        let found = context.client.call_at(operations::GET_SNAPSHOT, snapshot, &()).await?;
        if !args.force {
            refuse_pinned(std::slice::from_ref(&found))?;
        }
        let (volume, name, created) = (&found.volume_name, &found.name, format_time(found.created_at));
        let pinned = if found.pinned { ", which is pinned," } else { "" };
        let consequence = format!("Snapshot {volume}@{name}{pinned} of {created} is deleted permanently.");
        args.yes.confirm(context.output, &consequence)?;
    }
    let deleted = context.client.call_at(operations::DELETE_SNAPSHOT, snapshot, &query).await?;
    context
        .output
        .tell(&deleted, || format!("Snapshot {} successfully deleted.", or_dash(deleted.name.as_ref())))
}
