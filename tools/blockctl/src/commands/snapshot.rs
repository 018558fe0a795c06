//! `blockctl snapshot …`

use super::Context;
use crate::{
    cli::snapshot::SnapshotCommand,
    failure::{EXIT_DONE, Failure},
    table::Table,
};
use blockd_api::{
    ByteSize, format_time,
    snapshots::{CreateSnapshot, ListSnapshots},
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
            let mut table =
                Table::new(&["ID", "VOLUME", "NAME", "CREATED-TIME", "DIRTY", "FREEZE", "STATUS"]);
            for snapshot in &list.snapshots {
                table.row([
                    snapshot.id.to_string(),
                    snapshot.volume.to_string(),
                    snapshot.name.to_string(),
                    format_time(snapshot.created),
                    ByteSize::from_bytes(snapshot.dirty_bytes).to_string(),
                    format!("{} µs", snapshot.freeze_stall_micros),
                    snapshot.state.to_string(),
                ]);
            }
            output.table(&table)?;
        }
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
