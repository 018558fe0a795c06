//! `blockctl snapshot …`

use blockd_api::{NameError, SnapshotName, SnapshotRef, VolumeRef};
use clap::{Args, Subcommand};

const CREATE_HELP: &str = "\
Examples:
  blockctl snapshot create db
  blockctl snapshot create db --name before-upgrade";

const LIST_HELP: &str = "\
Examples:
  blockctl snapshot list
  blockctl snapshot list db";

const DIFF_HELP: &str = "\
Lists what was written, trimmed or zeroed from A to B, in whole blocks of 4 KiB, \
without reading any data: a block that was overwritten with what it held counts \
as changed. `data` has data at B, `zero` reads as zeroes there.

Examples:
  blockctl snapshot diff db monday tuesday
  blockctl snapshot diff db monday
  blockctl -j snapshot diff db monday now";

const RESTORE_HELP: &str = "\
The volume becomes what it was at the snapshot; it keeps its size, and what it \
grew by since reads as zeroes. What it is now is kept as a snapshot, \
before-restore-TIME, unless --discard is given. All other snapshots stay. The \
volume must be neither attached nor connected to.

Examples:
  blockctl snapshot restore db --snapshot before-upgrade
  blockctl snapshot restore db --snapshot 725134927222077463 --discard";

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
    /// List what changed from a snapshot to another one, or to now
    #[command(after_help = DIFF_HELP)]
    Diff(DiffArgs),
    /// Roll a volume back to a snapshot
    #[command(visible_alias = "r", after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
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

/// `snapshot diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Name or id of the older snapshot
    #[arg(value_name = "A")]
    pub from: Point,
    /// Name or id of the newer snapshot, or now
    #[arg(value_name = "B", default_value = "now")]
    pub to: Point,
}

/// `snapshot restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Name or id of the snapshot
    #[arg(short, long)]
    pub snapshot: Point,
    /// Keep no snapshot of what the volume is now
    #[arg(long)]
    pub discard: bool,
}

/// A point of a volume that is named beside it: a snapshot, or now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// A snapshot by its name.
    Name(SnapshotName),
    /// A snapshot by its id or as VOLUME@NAME.
    Full(SnapshotRef),
}

impl Point {
    /// The snapshot of this volume that is meant.
    pub fn of(self, volume: &VolumeRef) -> SnapshotRef {
        match self {
            Self::Name(name) => SnapshotRef::Named { volume: volume.clone(), name },
            Self::Full(snapshot) => snapshot,
        }
    }

    /// The same where `now` is no snapshot but the volume as it is.
    pub fn of_or_now(self, volume: &VolumeRef) -> Option<SnapshotRef> {
        match self {
            Self::Name(name) if name.as_str() == "now" => None,
            other => Some(other.of(volume)),
        }
    }
}

impl std::str::FromStr for Point {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_full =
            text.contains('@') || (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        if is_full { text.parse().map(Self::Full) } else { text.parse().map(Self::Name) }
    }
}

/// `snapshot delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the snapshot, or VOLUME@NAME
    pub snapshot: SnapshotRef,
}
