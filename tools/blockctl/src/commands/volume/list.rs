//! `blockctl volume list`

use super::{args::ListArgs, state::status};
use crate::{
    commands::{
        filters::NamePattern,
        list_filter::{LabelOption, Listed, Sort},
    },
    failure::Exit,
    output::Context,
    table::{Table, Width, or_dash},
};
use blockd_api::{
    ByteSize, operations,
    volumes::{ListVolumes, Volume},
};
use jiff::Timestamp;
use std::cmp::Ordering;

impl Listed for Volume {
    const NAME_HELP: &'static str = "Only volumes of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::OfQuery("Only volumes with all these labels");
    const SORTS: &'static [Sort] = &[Sort::Name, Sort::Size, Sort::Used, Sort::Created];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.name.as_str())
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.created_at)
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        let used = |one: &Self| one.allocated_bytes + one.shared_bytes;
        match sort {
            Sort::Size => self.size_bytes.cmp(&other.size_bytes),
            Sort::Used => used(self).cmp(&used(other)),
            Sort::Created => self.created_at.cmp(&other.created_at),
            // The order of the daemon.
            _ => Ordering::Equal,
        }
    }
}

pub async fn list(context: &Context<'_>, args: ListArgs) -> Exit {
    let query = ListVolumes { label: args.filter.label.clone(), group: args.group };
    let mut list = context.client.call(operations::LIST_VOLUMES, &query).await?;
    args.filter.apply(context, &mut list.items, None).await?;
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
