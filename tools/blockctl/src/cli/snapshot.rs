//! `blockctl snapshot …`

use blockd_api::{
    GroupName, GroupRef, LabelSelector, SnapshotName, SnapshotRef, VolumeRef, quiesce::Quiesce,
};
use clap::{Args, Subcommand};

const CREATE_HELP: &str = "\
Commands are run by blockd, as its user, with /bin/sh. They find BLOCKD_VOLUMES \
and BLOCKD_SNAPSHOT in their environment, and the one after it BLOCKD_TAKEN: \
yes or no. If the command before fails or takes too long, there is no snapshot. \
The command after runs in any case. --freeze-fs freezes what is mounted from \
the volume's device on this host, for as long as the barrier takes.

Examples:
  blockctl snapshot create db
  blockctl snapshot create db --name before-upgrade
  blockctl snapshot create db --freeze-fs
  blockctl snapshot create db --pre-command 'systemctl stop shop' --post-command 'systemctl start shop'";

const CREATE_GROUP_HELP: &str = "\
The volumes are frozen at one instant: for any two writes to any of them, if \
the first was answered before the second was issued and the second is in the \
snapshots, so is the first. All of them get their snapshot, or none does.

--freeze-fs and the commands are those of `snapshot create`.

Examples:
  blockctl snapshot create-group --group shop
  blockctl snapshot create-group --label app=shop --name before-upgrade
  blockctl snapshot create-group --volumes db,wal --freeze-fs";

const LIST_HELP: &str = "\
With --group: those that were taken together of that group of volumes, or at \
the one time that has this id.

Examples:
  blockctl snapshot list
  blockctl snapshot list db
  blockctl snapshot list --group shop
  blockctl snapshot list --group 3b1de846-1078-40e6-ac1a-2e66ef3986d1";

const INSPECT_HELP: &str = "\
Examples:
  blockctl snapshot inspect db@before-upgrade
  blockctl -j snapshot inspect 725134927222077463";

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
    /// Freeze several volumes at one instant
    #[command(visible_alias = "cg", after_help = CREATE_GROUP_HELP)]
    CreateGroup(CreateGroupArgs),
    /// List snapshots
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(ListArgs),
    /// Show all about a snapshot
    #[command(visible_alias = "i", after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
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
    /// What is to be done around it.
    #[command(flatten)]
    pub quiesce: QuiesceArgs,
}

/// Bringing applications and filesystems to rest.
#[derive(Debug, Args)]
pub struct QuiesceArgs {
    /// Freeze the filesystems that are mounted from the device
    #[arg(long)]
    pub freeze_fs: bool,
    /// Command to run before
    #[arg(long, value_name = "COMMAND")]
    pub pre_command: Option<String>,
    /// Command to run after, whatever fails
    #[arg(long, value_name = "COMMAND")]
    pub post_command: Option<String>,
    /// How long each command may take, 1s to 10m [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = super::volume::parse_seconds)]
    pub command_timeout: Option<u64>,
}

impl From<QuiesceArgs> for Quiesce {
    fn from(args: QuiesceArgs) -> Self {
        Self {
            freeze_fs: args.freeze_fs,
            pre_command: args.pre_command,
            post_command: args.post_command,
            command_timeout_s: args.command_timeout,
        }
    }
}

/// `snapshot create-group`
#[derive(Debug, Args)]
#[group(id = "members", required = true, multiple = false, args = ["group", "label", "volumes"])]
pub struct CreateGroupArgs {
    /// All volumes of this group
    #[arg(short, long)]
    pub group: Option<GroupName>,
    /// All volumes that have all these labels
    #[arg(short, long, value_name = "K=V,…")]
    pub label: Option<LabelSelector>,
    /// These volumes, by their names or ids
    #[arg(short, long, value_name = "VOLUME,…", value_delimiter = ',')]
    pub volumes: Vec<VolumeRef>,
    /// Name of each of the snapshots; snap-TIME without it
    #[arg(short, long)]
    pub name: Option<SnapshotName>,
    /// What is to be done around them.
    #[command(flatten)]
    pub quiesce: QuiesceArgs,
}

/// `snapshot inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Id of the snapshot, or VOLUME@NAME
    pub snapshot: SnapshotRef,
}

/// `snapshot list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this volume, by its name or id
    pub volume: Option<VolumeRef>,
    /// Only those that were taken together of this group, or at the time with this id
    #[arg(short, long, value_name = "GROUP|ID")]
    pub group: Option<GroupRef>,
}

/// `snapshot delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the snapshot, or VOLUME@NAME
    pub snapshot: SnapshotRef,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, tests::parse};

    fn snapshot(line: &str) -> SnapshotCommand {
        match parse(line).map(|Cli { command, .. }| command) {
            Ok(Command::Snapshot(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn members_are_chosen_in_exactly_one_way() {
        let group = |line| match snapshot(line) {
            SnapshotCommand::CreateGroup(args) => args,
            other => panic!("{other:?}"),
        };
        let args = group("snapshot create-group --volumes a,b,7 --name monday");
        assert_eq!(args.volumes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b", "7"]);
        assert_eq!(group("snap cg --group shop").group.unwrap().as_str(), "shop");
        assert_eq!(group("snapshot create-group -l a=b,c=d").label.unwrap().to_string(), "a=b,c=d");
        for (line, part) in [
            ("snapshot create-group", "--group"),
            ("snapshot create-group --group a --volumes b", "cannot be used with"),
            ("snapshot create-group --volumes a,", "is empty"),
            ("snapshot create-group --group 3b1de846-1078-40e6-ac1a-2e66ef3986d1", "looks like an id"),
            ("snapshot create-group --label x", "expected key=value"),
        ] {
            let error = parse(line).map(drop).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(part), "{line}: {error}");
        }
    }
}
