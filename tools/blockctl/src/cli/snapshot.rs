//! `blockctl snapshot …`

use blockd_api::{SnapshotName, SnapshotRef, VolumeRef};
use clap::{Args, Subcommand};

const CREATE_HELP: &str = "\
Examples:
  blockctl snapshot create db
  blockctl snapshot create db --name before-upgrade";

const LIST_HELP: &str = "\
Examples:
  blockctl snapshot list
  blockctl snapshot list db";

const DELETE_HELP: &str = "\
Examples:
  blockctl snapshot delete db@before-upgrade
  blockctl snapshot delete 725134927222077463";

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Freeze a volume as it is now
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// List snapshots
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(ListArgs),
    /// Delete a snapshot
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(DeleteArgs),
}

/// `snapshot create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Name of the snapshot; snap-TIME without it
    #[arg(short, long)]
    pub name: Option<SnapshotName>,
}

/// `snapshot list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this volume, by its name or id
    pub volume: Option<VolumeRef>,
}

/// `snapshot delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the snapshot, or VOLUME@NAME
    pub snapshot: SnapshotRef,
}
