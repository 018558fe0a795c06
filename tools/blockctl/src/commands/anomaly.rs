//! `blockctl anomaly …`

use super::{
    arguments::WideArg,
    filters::NamePattern,
    list_filter::{LabelOption, ListFilter, Listed, Sort},
};
use crate::{
    confirm::YesArg,
    failure::{Exit, Failure},
    output::Context,
    short_ids::ShortIds,
    table::{Table, Width, or_dash, short_uuid},
};
use blockd_api::{
    ApiError, ByteSize, ErrorCode, LabelSelector, List, VolumeId, VolumeRef,
    anomalies::{AcknowledgeAnomaly, Anomaly, AnomalyKind, BackupAnomaly, ListAnomalies, describe},
    cloudsnaps::CloudSnapshotId,
    operations,
};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::{cmp::Ordering, collections::BTreeSet};

const LIST_HELP: &str = "\
An anomaly is a backup with unusual changes of its volume: data that turned incompressible, as by encryption in place \
(ransomware); far more changed data than usual at this time of the week; or a mass deletion of files (ext2, ext3, \
ext4). With the policy `protect`, the backup before it is pinned, and no backup or local snapshot of the volume \
expires until the anomaly is acknowledged. `blockctl volume update --anomaly-policy` changes the policy of a volume, \
the setting anomaly_policy that of the daemon.

Examples:
  blockctl anomaly list
  blockctl anomaly list db --all
  blockctl -j anomaly list";

const ACKNOWLEDGE_HELP: &str = "\
The backups of the volume expire again afterwards. After an attack, restore from the last normal backup first, or pin \
it: `blockctl cloudsnap pin`. With --usual, later changes of this size raise no anomaly for eight weeks.

Examples:
  blockctl anomaly acknowledge 3f4f0a67
  blockctl anomaly acknowledge db --usual";

/// Subcommands of `anomaly`.
#[derive(Debug, Subcommand)]
pub enum AnomalyCommand {
    /// List backups with unusual changes
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(ListArgs),
    /// Let the backups of a volume expire again
    #[command(visible_alias = "ack", after_help = ACKNOWLEDGE_HELP)]
    Acknowledge(AcknowledgeArgs),
}

/// `anomaly list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this volume, by name or id
    #[arg(value_name = "VOLUME")]
    pub volume: Option<VolumeRef>,
    /// Include acknowledged ones
    #[arg(short, long)]
    pub all: bool,
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<BackupAnomaly>,
    /// Width of the list.
    #[command(flatten)]
    pub width: WideArg,
}

/// `anomaly acknowledge`
#[derive(Debug, Args)]
pub struct AcknowledgeArgs {
    /// Anomaly, by an id prefix, or all of a volume
    #[arg(value_name = "ANOMALY|VOLUME")]
    pub target: String,
    /// Treat such changes as usual from now on
    #[arg(long)]
    pub usual: bool,
    /// Confirmation.
    #[command(flatten)]
    pub yes: YesArg,
}

impl Listed for BackupAnomaly {
    const NAME_HELP: &'static str = "Only those of volumes of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::OfVolume("Only those of volumes with all these labels");
    const SORTS: &'static [Sort] = &[Sort::Started, Sort::Name];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.volume_name.as_str())
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.detected_at)
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => self.volume_name.as_str().cmp(other.volume_name.as_str()),
            _ => other.detected_at.cmp(&self.detected_at),
        }
    }

    fn is_labelled(&self, _: &LabelSelector, volumes: &BTreeSet<VolumeId>) -> bool {
        volumes.contains(&self.volume_id)
    }
}

pub async fn run(context: &Context<'_>, command: AnomalyCommand) -> Exit {
    match command {
        AnomalyCommand::List(args) => list(context, args).await,
        AnomalyCommand::Acknowledge(args) => acknowledge(context, &args).await,
    }
}

async fn list(context: &Context<'_>, args: ListArgs) -> Exit {
    let query = ListAnomalies { volume: args.volume, all: args.all };
    let mut list = context.client.call(operations::LIST_ANOMALIES, &query).await?;
    args.filter.apply(context, &mut list.items, None).await?;
    context.output.list(&list, "anomalies", || table(&list.items, args.width.width()))
}

fn table(items: &[BackupAnomaly], width: Width) -> Table {
    let ids = ShortIds::new(items.iter().filter_map(|one| one.last_normal_cloud_snapshot_id));
    let shown = |id: &CloudSnapshotId| match width {
        Width::Narrow => ids.of(id),
        Width::Wide => id.to_string(),
    };
    Table::list(items, width)
        .both("ID", |one| match width {
            Width::Narrow => short_uuid(one.anomaly_id),
            Width::Wide => one.anomaly_id.to_string(),
        })
        .both("VOLUME", |one| &one.volume_name)
        .wide("LOCATION", |one| &one.credential_name)
        .both("DETECTED", |one| width.time(one.detected_at))
        .wide("BACKUP", |one| one.cloud_snapshot_id)
        .both("LAST-NORMAL", |one| or_dash(one.last_normal_cloud_snapshot_id.as_ref().map(shown)))
        .both("STATE", state)
        .wide("THRESHOLD", |one| one.findings.iter().map(threshold).collect::<Vec<_>>().join("; "))
        .both("CHANGES", |one| one.findings.iter().map(describe).collect::<Vec<_>>().join("; "))
        .fit_with_text("VOLUME")
}

/// Formats the value that the change exceeded.
fn threshold(finding: &Anomaly) -> String {
    match finding.kind {
        AnomalyKind::TurnedIncompressible | AnomalyKind::ChangeRate => {
            ByteSize::from_bytes(finding.threshold).to_string()
        }
        AnomalyKind::MassDeletion => format!("{} files", finding.threshold),
    }
}

/// Returns the state of an anomaly.
fn state(anomaly: &BackupAnomaly) -> &'static str {
    match (anomaly.acknowledged_at, anomaly.protecting) {
        (Some(_), _) => "acknowledged",
        (None, true) => "protecting",
        (None, false) => "open",
    }
}

async fn acknowledge(context: &Context<'_>, args: &AcknowledgeArgs) -> Exit {
    let open = context.client.call(operations::LIST_ANOMALIES, &ListAnomalies::default()).await?.items;
    let meant = selected(open, &args.target)?;
    let volumes: Vec<_> = meant.iter().map(|one| one.volume_name.as_str()).collect();
    args.yes.confirm(
        context.output,
        &format!("Backups of {} before and after the unusual changes expire again.", volumes.join(", ")),
    )?;
    let request = AcknowledgeAnomaly { usual: args.usual };
    let mut done = Vec::new();
    for anomaly in meant {
        let id = anomaly.anomaly_id;
        done.push(context.client.call_at(operations::ACKNOWLEDGE_ANOMALY, &id, &request).await?);
    }
    let list = List::from(done);
    context.output.tell(&list, || {
        let lines = list.items.iter().map(|one| {
            format!(
                "Anomaly {} of volume {} acknowledged successfully",
                short_uuid(one.anomaly_id),
                one.volume_name
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    })
}

/// Returns the anomaly of an id prefix, or all of a volume.
fn selected(open: Vec<BackupAnomaly>, which: &str) -> Result<Vec<BackupAnomaly>, Failure> {
    let is_of_volume =
        |one: &BackupAnomaly| one.volume_name.as_str() == which || one.volume_id.to_string() == which;
    let of_volume: Vec<_> = open.iter().filter(|one| is_of_volume(one)).cloned().collect();
    if !of_volume.is_empty() {
        return Ok(of_volume);
    }
    let prefix = which.to_ascii_lowercase();
    let meant: Vec<_> =
        open.into_iter().filter(|one| one.anomaly_id.to_string().starts_with(&prefix)).collect();
    match meant.len() {
        1 => Ok(meant),
        0 => {
            let message = format!("there is no open anomaly {which}, and none of a volume of this name");
            let hint = "blockctl anomaly list";
            Err(ApiError::new(ErrorCode::AnomalyNotFound, message).with_hint(hint).into())
        }
        count => Err(Failure::usage(format!(
            "{count} anomalies have ids that begin with {which}: give more characters"
        ))),
    }
}
