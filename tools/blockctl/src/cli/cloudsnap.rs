//! `blockctl cloudsnap …`

use super::schedules::{HistoryArgs, SchedulesCommand};
use super::{
    backup_group::{BACKUP_GROUP_HELP, BackupGroupArgs},
    care::{
        GC_HELP, GcArgs, LIMIT_HELP, LimitArgs, RESUME_HELP, ResumeArgs, STOP_HELP, StopArgs, VERIFY_HELP,
        VerifyArgs,
    },
    files,
    lazy::{CLONE_HELP, CloneArgs, LazyArgs, NewLabelsArgs},
    limits::TaskLimitArgs,
    marks::{EXPIRE_HELP, ExpireArgs, KeepArgs, PIN_HELP, PinArgs, UNPIN_HELP},
    rules::RestArgs,
};
use crate::snap::SnapRef;
use blockd_api::{
    CredentialRef, LabelSelector, VolumeName, VolumeRef,
    cloudsnaps::{CloudsnapId, CloudsnapStatus},
};
use clap::{
    Args, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use uuid::Uuid;

const BACKUP_HELP: &str = "\
The first backup of a volume to a place is full, those after it are incremental, and every 7th is \
full again (a setting of blockd). The backup runs in blockd and survives its restart; the id that \
is printed is its task. Around the freeze, and never beside the upload, it does what --pre-command, \
--post-command and --freeze-fs say, or else what --rule says, or else the rule of the volume \
(`rule create --help`).

Examples:
  blockctl cloudsnap backup db
  blockctl cloudsnap backup db --full --cred-id nas --wait
  blockctl cloudsnap backup db --cred-id nas --cred-id offsite --wait
  blockctl cloudsnap backup db --limit-upload 10MiB
  blockctl cloudsnap backup db --expires 30d
  blockctl cloudsnap backup db --pre-command 'hold begin' --post-command 'hold end' --freeze-fs
  blockctl -j cs backup --volume db --wait";

const LIST_HELP: &str = "\
Examples:
  blockctl cloudsnap list
  blockctl cs list --src db --max 3
  blockctl cs list --label app=web
  blockctl -j cs list --cloudsnap-id ID";

const INSPECT_HELP: &str = "\
Examples:
  blockctl cloudsnap inspect ID
  blockctl -j cs inspect --snap ID";

const STATUS_HELP: &str = "\
While a task is under way, RATE is what it has processed in a second until now, and ETA how long the rest takes at that. \
Why a task failed is said of those that ended within the last hour, the newest three of them, and with --name of any.

Examples:
  blockctl cloudsnap status
  blockctl cs status --active
  blockctl cs status --max 10
  blockctl cs status --name 3f4f0a67-e12a-4d35-81ad-985657757352
  blockctl cs status 3f4f --wait
  blockctl cs status --watch";

const RESTORE_HELP: &str = "\
The restore makes a new volume with the size and the labels of the old one; it is served when \
the restore is done. Schedules by labels mean it from then on, as they mean the old one: --label and --no-labels give it \
others. The beginning of an id is enough. With --lazy it is served, and can be written, at once: what is read is fetched first, \
the rest in the background, and this blockd does not delete the cloud snapshot until that is done; one on \
another host with the same bucket knows nothing of it.

Examples:
  blockctl cloudsnap restore --snap ID --volume db-restored
  blockctl cs restore -s ID -v db-restored --cred-id nas --wait
  blockctl cs restore -s ID -v db-restored --no-labels
  blockctl cs restore -s ID -v db-now --lazy --on-store-loss error
  blockctl cs restore -s ID --in-place db --wait";

const DELETE_HELP: &str = "\
No cloud snapshot needs another one to exist: any of them can be deleted, and the data that \
others share stays. One that is pinned, or whose manifest is damaged, is only deleted with --force, and none that a \
clone, a lazy volume or a task of this host needs, also a task that can be resumed. What volumes of other hosts need is not known here: they could not read it any more.

Examples:
  blockctl cloudsnap delete --snap ID
  blockctl cs delete --snap ID --cred-id nas --wait
  blockctl cs delete --snap ID --force";

const HISTORY_HELP: &str = "\
Examples:
  blockctl cloudsnap history
  blockctl cs history --src db --max 20
  blockctl -j cs history";

/// What to do with cloud snapshots.
#[derive(Debug, Subcommand)]
pub enum CloudsnapCommand {
    /// Backup a volume to cloud
    #[command(after_help = BACKUP_HELP)]
    Backup(Box<BackupArgs>),
    /// Backup several volumes to cloud from one instant
    #[command(visible_alias = "bg", after_help = BACKUP_GROUP_HELP)]
    BackupGroup(Box<BackupGroupArgs>),
    /// List snapshots in cloud
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(Box<ListArgs>),
    /// Show all about a snapshot in cloud
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Report status of backups, restores and deletes
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Restore a snapshot in cloud to a new volume
    #[command(visible_alias = "r", after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
    /// Make a volume that fetches what is read of a snapshot in cloud
    #[command(after_help = CLONE_HELP)]
    Clone(CloneArgs),
    /// Delete a snapshot from the cloud. This is not reversible
    #[command(after_help = DELETE_HELP)]
    Delete(DeleteArgs),
    /// Stop an active backup, restore, delete or verify
    #[command(after_help = STOP_HELP)]
    Stop(StopArgs),
    /// Take up a task again that was stopped or failed
    #[command(after_help = RESUME_HELP)]
    Resume(ResumeArgs),
    /// Limit what a task moves in a second, while it runs
    #[command(after_help = LIMIT_HELP)]
    Limit(LimitArgs),
    /// Keep a snapshot in cloud whatever rules and dates say
    #[command(after_help = PIN_HELP)]
    Pin(PinArgs),
    /// Take that back
    #[command(after_help = UNPIN_HELP)]
    Unpin(PinArgs),
    /// Set the date on which a snapshot in cloud is to be deleted
    #[command(after_help = EXPIRE_HELP)]
    Expire(ExpireArgs),
    /// Prove that snapshots in cloud can be read
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Delete what abandoned backups left in cloud
    #[command(after_help = GC_HELP)]
    Gc(GcArgs),
    /// List the files inside a snapshot in cloud
    #[command(after_help = files::CATALOG_HELP)]
    Catalog(files::CatalogArgs),
    /// Write files inside a snapshot in cloud to stdout
    #[command(after_help = files::CAT_HELP)]
    Cat(files::CatArgs),
    /// Copy files and directories out of a snapshot in cloud
    #[command(after_help = files::CP_HELP)]
    Cp(files::CpArgs),
    /// Say what differs between two snapshots in cloud
    #[command(after_help = files::DIFF_HELP)]
    Diff(files::DiffFilesArgs),
    /// Manage schedules for cloud-snaps
    #[command(subcommand, visible_alias = "sched")]
    Schedules(SchedulesCommand),
    /// The same as `credentials`
    #[command(subcommand, hide = true)]
    Credentials(super::credentials::CredentialsCommand),
    /// Show what schedules did: runs, what they made, what was left out and why
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
}

/// `cloudsnap backup`
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Name or id of the volume
    #[arg(value_name = "VOLUME", required_unless_present = "volume", conflicts_with = "volume")]
    source: Option<VolumeRef>,
    /// The same as a flag
    #[arg(short, long, value_name = "VOLUME")]
    volume: Option<VolumeRef>,
    /// Force a full backup
    #[arg(short, long)]
    pub full: bool,
    /// Name or UUID of the credentials; may be left out when there is one. Several times: the same point in time to each
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// How long it stays.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// What the task may move.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
    /// What is done around the freeze.
    #[command(flatten)]
    pub rest: RestArgs,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArg,
}

impl BackupArgs {
    /// The volume, however it was given; the parser sees to it that there is one.
    pub fn volume(&self) -> Option<&VolumeRef> {
        self.source.as_ref().or(self.volume.as_ref())
    }
}

/// `cloudsnap list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// List those of all clusters: the default
    #[arg(short, long, conflicts_with = "cluster")]
    pub all: bool,
    /// List those of this volume only, by the name or id it had
    #[arg(short, long, value_name = "VOLUME")]
    pub src: Option<VolumeRef>,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// List those of this cluster only
    #[arg(short, long, value_name = "UUID")]
    pub cluster: Option<Uuid>,
    /// List those in this state; Done without it. Those that were stopped are Failed as well
    #[arg(short = 't', long, ignore_case = true, value_parser = status_parser())]
    pub status: Option<CloudsnapStatus>,
    /// List those whose volume had all these labels
    #[arg(long, value_name = "K=V,…")]
    pub label: Option<LabelSelector>,
    /// List this one only
    #[arg(short = 'i', long, value_name = "ID")]
    pub cloudsnap_id: Option<SnapRef>,
    /// List the newest so many only
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
}

/// `cloudsnap inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Id of the cloud snapshot
    #[arg(value_name = "ID", required_unless_present = "snap", conflicts_with = "snap")]
    id: Option<SnapRef>,
    /// The same as a flag
    #[arg(short, long, value_name = "ID", alias = "cloudsnap-id", short_alias = 'i')]
    snap: Option<SnapRef>,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
}

impl InspectArgs {
    /// The id, however it was given; the parser sees to it that there is one.
    pub fn id(&self) -> Option<&SnapRef> {
        self.id.as_ref().or(self.snap.as_ref())
    }
}

/// `cloudsnap status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this task, by its id or the beginning of it
    #[arg(value_name = "TASK", conflicts_with = "name", value_parser = parse_task)]
    task: Option<String>,
    /// The same as a flag
    #[arg(short, long, value_name = "TASK", value_parser = parse_task)]
    name: Option<String>,
    /// Only those that run or wait
    #[arg(long, conflicts_with_all = ["task", "name"])]
    pub active: bool,
    /// The newest so many only
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Show it again and again, until no task is under way
    #[arg(long, conflicts_with = "wait")]
    pub watch: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArg,
}

impl StatusArgs {
    /// The task, however it was given.
    pub fn name(&self) -> Option<&str> {
        self.task.as_deref().or(self.name.as_deref())
    }
}

/// `cloudsnap restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Id of the cloud snapshot, or the beginning of it
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// Name of the volume to be made; blockd chooses one without it
    #[arg(short, long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// Go on past what is damaged: it reads as zeroes, and is listed
    #[arg(long)]
    pub skip_damaged: bool,
    /// Its labels.
    #[command(flatten)]
    pub labels: NewLabelsArgs,
    /// How it goes on.
    #[command(flatten)]
    pub how: LazyArgs,
    /// What the task may move.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// `cloudsnap delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: CloudsnapId,
    /// Delete it also if it is pinned or damaged
    #[arg(short, long)]
    pub force: bool,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// Which credentials to use.
#[derive(Debug, Args)]
pub struct CredentialArg {
    /// Name or UUID of the credentials; may be left out when there is one, or when one of them has the cloud snapshot
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Option<CredentialRef>,
}

/// Whether to wait for the task.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArg {
    /// Wait for the task, show its progress, and exit as it ends
    #[arg(long)]
    pub wait: bool,
}

fn status_parser() -> impl TypedValueParser<Value = CloudsnapStatus> {
    // Those that were stopped or given up are listed with those that failed.
    const FAILED_TOO: [&str; 2] = ["stopped", "aborted"];
    let values = CloudsnapStatus::ALL.map(|status| {
        let value = PossibleValue::new(status.as_str());
        if status == CloudsnapStatus::Failed { value.aliases(FAILED_TOO) } else { value }
    });
    PossibleValuesParser::new(values).map(|text| {
        if FAILED_TOO.iter().any(|alias| alias.eq_ignore_ascii_case(&text)) {
            return CloudsnapStatus::Failed;
        }
        // The parser before lets nothing else through, in whatever case.
        let same = |status: &CloudsnapStatus| status.as_str().eq_ignore_ascii_case(&text);
        CloudsnapStatus::ALL.into_iter().find(same).unwrap_or_default()
    })
}

pub(super) fn parse_task(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let hex = |c: char| c.is_ascii_hexdigit() || c == '-';
    match (1..=36).contains(&text.len()) && text.chars().all(hex) {
        true => Ok(text),
        false => {
            Err("expected the id of a task, or the beginning of one, as `cloudsnap status` shows it"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, tests::parse};

    const ID: &str = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr";

    fn cloudsnap(line: &str) -> CloudsnapCommand {
        match parse(&line.replace("ID", ID)).map(|Cli { command, .. }| command) {
            Ok(Command::Cloudsnap(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn backup_takes_its_volume_both_ways() {
        for line in [
            "cloudsnap backup vol --full --cred-id nas",
            "cs backup --volume vol -f --cr nas",
            "cs backup -v vol --cred-id=nas -f",
            "cs backup -fv vol --cr=nas",
        ] {
            let CloudsnapCommand::Backup(args) = cloudsnap(line) else { panic!("{line}") };
            assert_eq!(args.volume().unwrap().to_string(), "vol", "{line}");
            assert!(args.full && args.cred_id[0].to_string() == "nas" && !args.wait.wait);
        }
        for line in ["cs backup", "cs backup vol --volume vol", "cs backup a b"] {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn list_has_its_short_flags() {
        let line = "cs l -s vol -c 2e4d4b67-95d7-481e-aec5-14223ac55170 -t Failed -i ID -x 3 --label a=b";
        let CloudsnapCommand::List(args) = cloudsnap(line) else { panic!() };
        assert_eq!(args.status, Some(CloudsnapStatus::Failed));
        for word in ["stopped", "Aborted", "failed"] {
            let CloudsnapCommand::List(args) = cloudsnap(&format!("cs l -t {word}")) else { panic!() };
            assert_eq!(args.status, Some(CloudsnapStatus::Failed), "{word}");
        }
        assert_eq!((args.max, args.cloudsnap_id.unwrap().to_string().as_str()), (Some(3), ID));
        assert!(args.src.is_some() && args.cluster.is_some() && args.label.is_some());
        for line in [
            "cs list -x 0",
            "cs list --all --cluster 2e4d4b67-95d7-481e-aec5-14223ac55170",
            "cs list -t gone",
            "cs list -i 7",
        ] {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn the_rest_is_taken_as_people_type_it() {
        assert!(
            matches!(cloudsnap("cs r -s ID -v new --wait"), CloudsnapCommand::Restore(args) if args.wait.wait)
        );
        assert!(
            matches!(cloudsnap("cs restore --snap ID"), CloudsnapCommand::Restore(args) if args.volume.is_none())
        );
        assert!(matches!(cloudsnap("cloudsnap delete --snap ID --wait"), CloudsnapCommand::Delete(_)));
        for line in ["cs inspect ID", "cs inspect -s ID", "cs inspect -i ID", "cs inspect --cloudsnap-id ID"]
        {
            assert!(
                matches!(cloudsnap(line), CloudsnapCommand::Inspect(args) if args.id().is_some()),
                "{line}"
            );
        }
        assert!(matches!(cloudsnap("cs status --watch"), CloudsnapCommand::Status(args) if args.watch));
        assert!(matches!(cloudsnap("cs credentials list"), CloudsnapCommand::Credentials(_)));
        assert!(
            matches!(cloudsnap("cs status -n 3F4F"), CloudsnapCommand::Status(args) if args.name() == Some("3f4f"))
        );
        assert!(
            matches!(cloudsnap("cs status 3F4F --wait"), CloudsnapCommand::Status(args) if args.name() == Some("3f4f"))
        );
        let CloudsnapCommand::Restore(args) = cloudsnap("cs r -s ID -v new --lazy --on-store-loss error")
        else {
            panic!()
        };
        assert!(args.how.lazy && args.how.on_store_loss.is_some_and(|how| how.as_str() == "error"));
        let CloudsnapCommand::Restore(args) = cloudsnap("cs r -s ID --in-place db --discard") else {
            panic!()
        };
        assert!(args.how.discard && args.how.in_place.unwrap().to_string() == "db");
        assert!(matches!(cloudsnap("cs clone -s ID -v new"), CloudsnapCommand::Clone(_)));
        for line in [
            "cs r -s ID --on-store-loss stall",
            "cs r -s ID --lazy --on-store-loss maybe",
            "cs r -s ID --in-place db --lazy",
            "cs r -s ID --in-place db -v new",
            "cs r -s ID --discard",
            "cs status --watch --wait -n 3f",
            "cs status 3f -n 3f",
            "cs status nonsense",
        ] {
            assert_eq!(parse(&line.replace("ID", ID)).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in
            ["cs restore", "cs delete", "cs restore -s nonsense", "cs status -n nonsense", "cs inspect"]
        {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
