//! `blockctl snapshot …`

use super::{Context, counted, or_dash};
use crate::{
    cli::snapshot::{DiffArgs, RestoreArgs, SnapshotCommand},
    failure::{EXIT_DONE, Failure},
    table::Table,
};
use blockd_api::{
    ByteSize, format_time,
    snapshots::{CreateSnapshot, DiffSnapshots, ListSnapshots, RestoreSnapshot},
};

pub async fn run(context: &Context<'_>, command: SnapshotCommand) -> Result<u8, Failure> {
    let Context { client, output } = context;
    match command {
        SnapshotCommand::Create(args) => {
            let snapshot = client.create_snapshot(&args.volume, &CreateSnapshot { name: args.name }).await?;
            match output.is_json() {
                true => output.document(&snapshot),
                false => output.line(format!(
                    "Snapshot successfully created: {} ({}@{}, writes held back for {} µs)",
                    snapshot.id, snapshot.volume, snapshot.name, snapshot.freeze_stall_micros
                )),
            }?;
        }
        SnapshotCommand::List(args) => {
            let list = client.list_snapshots(&ListSnapshots { volume: args.volume }).await?;
            if output.is_json() {
                output.document(&list.snapshots)?;
                return Ok(EXIT_DONE);
            }
            let mut table = Table::new(&[
                "ID",
                "VOLUME",
                "NAME",
                "CREATED-TIME",
                "DIRTY",
                "EXCLUSIVE",
                "SHARED",
                "FREEZE",
                "STATUS",
            ]);
            for snapshot in &list.snapshots {
                table.row([
                    snapshot.id.to_string(),
                    snapshot.volume.to_string(),
                    snapshot.name.to_string(),
                    format_time(snapshot.created),
                    ByteSize::from_bytes(snapshot.dirty_bytes).to_string(),
                    or_dash(snapshot.exclusive_bytes.map(ByteSize::from_bytes)),
                    or_dash(snapshot.shared_bytes.map(ByteSize::from_bytes)),
                    format!("{} µs", snapshot.freeze_stall_micros),
                    snapshot.state.to_string(),
                ]);
            }
            output.table(&table)?;
        }
        SnapshotCommand::Diff(args) => diff(context, args).await?,
        SnapshotCommand::Restore(args) => restore(context, args).await?,
        SnapshotCommand::Delete(args) => {
            let deleted = client.delete_snapshot(&args.snapshot).await?;
            match output.is_json() {
                true => output.document(&deleted),
                false => output.line(format!("Snapshot {} successfully deleted.", deleted.name)),
            }?;
        }
    }
    Ok(EXIT_DONE)
}

async fn diff(context: &Context<'_>, args: DiffArgs) -> Result<(), Failure> {
    let (from, to) = (args.from.of(&args.volume), args.to.of_or_now(&args.volume));
    let mut query = DiffSnapshots { from, to, offset_bytes: None };
    let mut diff = context.client.diff_snapshots(&args.volume, &query).await?;
    // A reply has a bound; what is asked between two snapshots is the same however often.
    while let Some(offset_bytes) = diff.next_offset_bytes {
        query.offset_bytes = Some(offset_bytes);
        let mut next = context.client.diff_snapshots(&args.volume, &query).await?;
        diff.extents.append(&mut next.extents);
        diff.next_offset_bytes = next.next_offset_bytes;
    }
    if context.output.is_json() {
        return context.output.document(&diff);
    }
    let mut table = Table::new(&["OFFSET", "LENGTH", "KIND"]);
    for extent in &diff.extents {
        table.row([
            extent.offset_bytes.to_string(),
            extent.length_bytes.to_string(),
            extent.kind.to_string(),
        ]);
    }
    context.output.table(&table)?;
    context.output.note(format!(
        "{}: {} of data, {} of zeroes",
        counted(diff.extents.len() as u64, "extent"),
        ByteSize::from_bytes(diff.data_bytes),
        ByteSize::from_bytes(diff.zero_bytes)
    ));
    Ok(())
}

async fn restore(context: &Context<'_>, args: RestoreArgs) -> Result<(), Failure> {
    let request = RestoreSnapshot { snapshot: args.snapshot.of(&args.volume), discard: args.discard };
    let restored = context.client.restore_snapshot(&args.volume, &request).await?;
    if context.output.is_json() {
        return context.output.document(&restored);
    }
    let kept = restored
        .kept
        .map_or_else(String::new, |kept| format!("; what it was before is {}@{}", kept.volume, kept.name));
    context.output.line(format!(
        "Volume {} successfully restored to snapshot {} ({} changed back{kept}).",
        restored.volume,
        restored.snapshot,
        ByteSize::from_bytes(restored.changed_bytes)
    ))
}
