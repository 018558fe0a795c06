//! `blockctl volume list`

use super::{
    args::{ListArgs, Sort},
    status,
};
use crate::{
    commands::filters::is_named,
    failure::Exit,
    output::Context,
    table::{Table, Width, or_dash},
};
use blockd_api::{
    ByteSize, operations,
    volumes::{ListVolumes, Volume},
};

pub async fn list(context: &Context<'_>, args: ListArgs) -> Exit {
    let query = ListVolumes { label: args.label, group: args.group };
    let mut list = context.client.call(operations::LIST_VOLUMES, &query).await?;
    let is_wanted =
        |one: &Volume| is_named(args.name.as_ref(), one.name.as_str()) && args.time.includes(one.created_at);
    list.items.retain(is_wanted);
    match args.sort {
        Sort::Name => {}
        Sort::Size => list.items.sort_by_key(|one| one.size_bytes),
        Sort::Used => list.items.sort_by_key(|one| one.allocated_bytes + one.shared_bytes),
        Sort::Created => list.items.sort_by_key(|one| one.created_at),
    }
    context.output.list(&list, "volumes", || table(&list.items, args.width.width()))
}

fn table(volumes: &[Volume], width: Width) -> Table {
    let size = |bytes| ByteSize::from_bytes(bytes).to_string();
    let columns = |volume: &Volume| {
        [
            volume.name.to_string(),
            size(volume.size_bytes),
            // Shared bytes count for each volume that has them.
            size(volume.allocated_bytes + volume.shared_bytes),
            size(volume.dirty_bytes),
            volume.snapshot_count.to_string(),
            or_dash(volume.attachment.as_ref().and_then(|attachment| attachment.device)),
        ]
    };
    match width {
        Width::Narrow => Table::of(
            "NAME|SIZE|USED|DIRTY|SNAPS|DEVICE|STATUS",
            volumes.iter().map(|volume| {
                let [name, size, used, dirty, snapshots, device] = columns(volume);
                [name, size, used, dirty, snapshots, device, status(volume)]
            }),
        )
        .fit("NAME")
        .with_text(),
        Width::Wide => Table::of(
            "ID|NAME|SIZE|USED|DIRTY|SNAPSHOTS|DEVICE|GROUP|LABELS|STATUS",
            volumes.iter().map(|volume| {
                let [name, size, used, dirty, snapshots, device] = columns(volume);
                let labels = (!volume.labels.is_empty()).then_some(&volume.labels);
                let group = or_dash(volume.group.as_ref());
                let id = volume.volume_id.to_string();
                [id, name, size, used, dirty, snapshots, device, group, or_dash(labels), status(volume)]
            }),
        ),
    }
}
