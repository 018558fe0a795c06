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
    let size = ByteSize::from_bytes;
    Table::list(volumes, width)
        .wide("ID", |volume| volume.volume_id)
        .both("NAME", |volume| &volume.name)
        .both("SIZE", |volume| size(volume.size_bytes))
        // Shared bytes count for each volume that has them.
        .both("USED", |volume| size(volume.allocated_bytes + volume.shared_bytes))
        .both("DIRTY", |volume| size(volume.dirty_bytes))
        .both("SNAPS|SNAPSHOTS", |volume| volume.snapshot_count)
        .both("DEVICE", |volume| or_dash(volume.attachment.as_ref().and_then(|attachment| attachment.device)))
        .wide("GROUP", |volume| or_dash(volume.group.as_ref()))
        .wide("LABELS", |volume| or_dash((!volume.labels.is_empty()).then_some(&volume.labels)))
        .both("STATUS", status)
        .fit_with_text("NAME")
}
