//! `blockctl snapshot …`

use crate::{
    commands::{arguments::WideArg, list_filter::ListFilter, rules::HookArgs},
    confirm::YesArg,
    snapshot_ref::{ExportRef, LocalSnapshot},
};
use blockd_api::{
    GroupName, GroupRef, LabelSelector, NameError, SnapshotName, VolumeRef, snapshots::Snapshot,
};
use clap::{Args, Subcommand};

const CREATE_HELP: &str = "\
The daemon runs commands with /bin/sh, as its user unless --user is given. Their environment has \
BLOCKD_VOLUMES, BLOCKD_SNAPSHOT and more (`rule create --help`). If the pre-command fails or times \
out, no snapshot is taken. The post-command always runs. --freeze-fs freezes filesystems on the \
volume's device on this host around the write barrier, for at most 10 seconds: after that no \
snapshot is taken. Without these options, the rule of the volume or its group applies.

Examples:
  blockctl snapshot create db
  blockctl snapshot create db --name before-upgrade
  blockctl snapshot create db --freeze-fs
  blockctl snapshot create db --pre-command 'systemctl stop shop' --post-command 'systemctl start shop'
  blockctl snapshot create db --rule pg";

const CREATE_GROUP_HELP: &str = "\
The volumes are frozen behind one write barrier: for any two writes to any of them, if the first \
was acknowledged before the second was issued and the second is in the snapshots, so is the first. \
All of them get a snapshot, or none does.

--freeze-fs and the commands work as in `snapshot create`.

Examples:
  blockctl snapshot create-group --group shop
  blockctl snapshot create-group --label app=shop --name before-upgrade
  blockctl snapshot create-group db wal --freeze-fs";

const LIST_HELP: &str = "\
--group selects snapshots that were taken together, by the group's name or by the id of one group \
snapshot.

Examples:
  blockctl snapshot list
  blockctl snapshot list db
  blockctl snapshot list --since 24h --sort size
  blockctl snapshot list --label app=web --name 'before-*'
  blockctl snapshot list --group shop
  blockctl snapshot list --group 3b1de846-1078-40e6-ac1a-2e66ef3986d1";

const INSPECT_HELP: &str = "\
Examples:
  blockctl snapshot inspect db@before-upgrade
  blockctl -j snapshot inspect 725134927222077463";

const DIFF_HELP: &str = "\
Lists extents written, trimmed or zeroed from A to B, in blocks of 4 KiB, without reading data: a \
block overwritten with the same content counts as changed. `data` has data at B, `zero` reads as \
zeroes.

Examples:
  blockctl snapshot diff db monday tuesday
  blockctl snapshot diff db@monday
  blockctl snapshot diff db latest
  blockctl -j snapshot diff db monday now";

const RESTORE_HELP: &str = "\
The volume returns to the state of the snapshot; it keeps its size, and the part it grew by reads \
as zeroes. The current state is kept as a snapshot, before-restore-TIME, unless --discard is \
given. All other snapshots stay. The volume must be neither attached nor connected. Id prefixes \
are not accepted.

Examples:
  blockctl snapshot restore db@before-upgrade
  blockctl snapshot restore db before-upgrade
  blockctl snapshot restore db --snapshot 725134927222077463 --discard";

const DELETE_HELP: &str = "\
Id prefixes are not accepted; VOLUME@latest and VOLUME@TIME need --yes in scripts.

Examples:
  blockctl snapshot delete db@before-upgrade
  blockctl snapshot delete 725134927222077463
  blockctl snapshot delete db@golden --force";

const PIN_HELP: &str = "\
No schedule deletes a pinned snapshot; `snapshot delete` and `volume delete` need --force.

Examples:
  blockctl snapshot pin db@before-upgrade
  blockctl -j snapshot pin 725134927222077463";

const UNPIN_HELP: &str = "\
The retention of the schedule that made it applies again.

Examples:
  blockctl snapshot unpin db@before-upgrade";

/// Subcommands of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a volume
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// Take a snapshot of a consistency group
    #[command(visible_alias = "cg", after_help = CREATE_GROUP_HELP)]
    CreateGroup(CreateGroupArgs),
    /// List snapshots
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(ListArgs),
    /// Show a snapshot in detail
    #[command(visible_alias = "i", after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// List extents changed between two points
    #[command(after_help = DIFF_HELP)]
    Diff(DiffArgs),
    /// Roll a volume back to a snapshot
    #[command(visible_alias = "r", after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
    /// Pin a snapshot against retention
    #[command(after_help = PIN_HELP)]
    Pin(InspectArgs),
    /// Remove a pin
    #[command(after_help = UNPIN_HELP)]
    Unpin(InspectArgs),
    /// Delete a snapshot
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(DeleteArgs),
}

/// `snapshot create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name or id of the volume
    pub volume: VolumeRef,
    /// Name of the snapshot [default: snap-TIME]
    #[arg(short, long)]
    pub name: Option<SnapshotName>,
    /// Quiesce options.
    #[command(flatten)]
    pub hooks: HookArgs,
}

/// `snapshot create-group`
#[derive(Debug, Args)]
#[group(id = "members", required = true, multiple = false, args = ["group", "label", "volumes"])]
pub struct CreateGroupArgs {
    /// Volumes of this group
    #[arg(short, long)]
    pub group: Option<GroupName>,
    /// Volumes with all these labels
    #[arg(short, long, value_name = "K=V,…")]
    pub label: Option<LabelSelector>,
    /// Volumes, by name or id
    #[arg(value_name = "VOLUME,…", value_delimiter = ',')]
    pub volumes: Vec<VolumeRef>,
    /// Name of each snapshot [default: snap-TIME]
    #[arg(short, long)]
    pub name: Option<SnapshotName>,
    /// Quiesce options.
    #[command(flatten)]
    pub hooks: HookArgs,
}

/// `snapshot inspect`, `pin` and `unpin`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Id of the snapshot, VOLUME@NAME, VOLUME@latest or VOLUME@TIME
    pub snapshot: LocalSnapshot,
}

/// `snapshot list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only snapshots of this volume
    pub volume: Option<VolumeRef>,
    /// Only snapshots of this group, or with this group id
    #[arg(short, long, value_name = "GROUP|ID")]
    pub group: Option<GroupRef>,
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<Snapshot>,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

/// `snapshot diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Name or id of the volume, or its older snapshot
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    pub at: ExportRef,
    /// Name or id of the older snapshot, unless given before
    #[arg(value_name = "A")]
    pub from: Option<Point>,
    /// Name or id of the newer snapshot, or now [default: now]
    #[arg(value_name = "B")]
    pub to: Option<Point>,
}

/// `snapshot restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Name or id of the volume, its snapshot, or the id of a snapshot
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    pub at: ExportRef,
    /// Name or id of the snapshot, unless given before
    pub snapshot: Option<Point>,
    /// Discard the current content
    #[arg(long)]
    pub discard: bool,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// Point of a volume that is named separately: a snapshot, or now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// Name, `latest`, or time.
    Of(String),
    /// Snapshot id, or VOLUME@NAME.
    Full(LocalSnapshot),
}

impl Point {
    /// Returns true for the current content.
    pub fn is_now(&self) -> bool {
        matches!(self, Self::Of(text) if text == "now")
    }

    /// Returns the snapshot of this volume.
    ///
    /// # Errors
    /// The text is no name, which the parser refuses.
    pub fn of(&self, volume: &VolumeRef) -> Result<LocalSnapshot, NameError> {
        match self {
            Self::Of(text) => format!("{volume}@{text}").parse(),
            Self::Full(snapshot) => Ok(snapshot.clone()),
        }
    }
}

impl std::str::FromStr for Point {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_full =
            text.contains('@') || (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        if is_full {
            return text.parse().map(Self::Full);
        }
        format!("v@{text}").parse::<LocalSnapshot>().map(|_| Self::Of(text.to_owned()))
    }
}

/// `snapshot delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the snapshot, VOLUME@NAME, VOLUME@latest or VOLUME@TIME
    pub snapshot: LocalSnapshot,
    /// Delete a pinned snapshot
    #[arg(long)]
    pub force: bool,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}
