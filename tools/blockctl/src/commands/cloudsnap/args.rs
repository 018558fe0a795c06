//! `blockctl cloudsnap …`

use super::{
    backup_group::{BACKUP_GROUP_HELP, BackupGroupArgs},
    lazy::{CLONE_HELP, CloneArgs, LazyArgs, NewLabelsArgs},
    maintenance::{
        GC_HELP, GcArgs, LIMIT_HELP, LimitArgs, RESUME_HELP, ResumeArgs, STOP_HELP, StopArgs, VERIFY_HELP,
        VerifyArgs,
    },
    pins::{BackupOptionArgs, EXPIRE_HELP, ExpireArgs, PIN_HELP, PinArgs, UNPIN_HELP},
};
use crate::{
    cloudsnap_ref::SnapRef,
    commands::{
        credentials::args::CredentialsCommand,
        files::args as files,
        limits::TaskLimitArgs,
        rules::HookArgs,
        schedules::args::{HistoryArgs, SchedulesCommand},
    },
};
use blockd_api::{
    CredentialRef, LabelSelector, VolumeName, VolumeRef,
    cloudsnaps::{CloudSnapshotId, CloudsnapStatus},
};
use clap::{
    Args, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use uuid::Uuid;

const BACKUP_HELP: &str = "\
The first backup of a volume to a location is full, the following are incremental, and every 7th \
is full again (full_every in the configuration). The backup is a task of the daemon and survives \
its restart; its id is printed. Around the freeze, and never during the upload, the task runs \
--pre-command, --post-command and --freeze-fs, or --rule, or the rule of the volume (`rule create \
--help`).

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
For active tasks, RATE is the average since the start, and ETA the remaining time at that rate. \
The cause of a failure is shown for the newest three tasks that ended within the last hour, and \
with --name for any.

Examples:
  blockctl cloudsnap status
  blockctl cs status --active
  blockctl cs status --max 10
  blockctl cs status --name 3f4f0a67-e12a-4d35-81ad-985657757352
  blockctl cs status 3f4f --wait
  blockctl cs status --watch";

const RESTORE_HELP: &str = "\
The restore creates a volume with the size and labels of the original; it is served when the \
restore is done. Schedules by labels include it from then on; --label and --no-labels set other \
labels. An id prefix is accepted. With --lazy the volume is served and writable at once: reads are \
fetched first, the rest in the background, and this daemon does not delete the cloud snapshot \
until hydration is done; another host with the same bucket does not know of it.

Examples:
  blockctl cloudsnap restore --snap ID --volume db-restored
  blockctl cs restore -s ID -v db-restored --cred-id nas --wait
  blockctl cs restore -s ID -v db-restored --no-labels
  blockctl cs restore -s ID -v db-now --lazy --on-store-loss error
  blockctl cs restore -s ID --in-place db --wait";

const DELETE_HELP: &str = "\
No cloud snapshot depends on another one: any of them can be deleted, and shared data stays. A \
pinned one, or one whose manifest is damaged, needs --force. One that a clone, a lazy volume or a \
resumable task of this host needs is never deleted. Needs of other hosts are unknown here: their \
lazy volumes would fail to read.

Examples:
  blockctl cloudsnap delete --snap ID
  blockctl cs delete --snap ID --cred-id nas --wait
  blockctl cs delete --snap ID --force";

const HISTORY_HELP: &str = "\
Examples:
  blockctl cloudsnap history
  blockctl cs history --src db --max 20
  blockctl -j cs history";

/// Subcommands of `cloudsnap`.
#[derive(Debug, Subcommand)]
pub enum CloudsnapCommand {
    /// Back up a volume
    #[command(after_help = BACKUP_HELP)]
    Backup(Box<BackupArgs>),
    /// Back up a consistency group
    #[command(visible_alias = "bg", after_help = BACKUP_GROUP_HELP)]
    BackupGroup(Box<BackupGroupArgs>),
    /// List cloud snapshots
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(Box<ListArgs>),
    /// Show a cloud snapshot in detail
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Show tasks: backups, restores, deletes
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Restore a cloud snapshot
    #[command(visible_alias = "r", after_help = RESTORE_HELP)]
    Restore(RestoreArgs),
    /// Create a volume that fetches data on read
    #[command(after_help = CLONE_HELP)]
    Clone(CloneArgs),
    /// Delete a cloud snapshot permanently
    #[command(after_help = DELETE_HELP)]
    Delete(DeleteArgs),
    /// Stop a task
    #[command(after_help = STOP_HELP)]
    Stop(StopArgs),
    /// Resume a stopped or failed task
    #[command(after_help = RESUME_HELP)]
    Resume(ResumeArgs),
    /// Change the bandwidth limit of a running task
    #[command(after_help = LIMIT_HELP)]
    Limit(LimitArgs),
    /// Pin a cloud snapshot against retention and expiry
    #[command(after_help = PIN_HELP)]
    Pin(PinArgs),
    /// Unpin a cloud snapshot
    #[command(after_help = UNPIN_HELP)]
    Unpin(PinArgs),
    /// Set the expiry date of a cloud snapshot
    #[command(after_help = EXPIRE_HELP)]
    Expire(ExpireArgs),
    /// Verify cloud snapshots
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Delete orphaned objects of interrupted backups
    #[command(after_help = GC_HELP)]
    Gc(GcArgs),
    /// List files of a cloud snapshot
    #[command(after_help = files::CATALOG_HELP)]
    Catalog(files::CatalogArgs),
    /// Write files of a cloud snapshot to stdout
    #[command(after_help = files::CAT_HELP)]
    Cat(files::CatArgs),
    /// Copy files out of a cloud snapshot
    #[command(after_help = files::CP_HELP)]
    Cp(files::CpArgs),
    /// Compare two cloud snapshots
    #[command(after_help = files::DIFF_HELP)]
    Diff(files::DiffFilesArgs),
    /// Manage backup schedules
    #[command(subcommand, visible_alias = "sched")]
    Schedules(SchedulesCommand),
    /// Alias of `credentials`
    #[command(subcommand, hide = true)]
    Credentials(CredentialsCommand),
    /// List schedule runs and their results
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
}

/// `cloudsnap backup`
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Name or id of the volume
    #[arg(value_name = "VOLUME", required_unless_present = "volume", conflicts_with = "volume")]
    source: Option<VolumeRef>,
    /// The same, as an option
    #[arg(short, long, value_name = "VOLUME")]
    volume: Option<VolumeRef>,
    /// Options of the tasks.
    #[command(flatten)]
    pub start: StartArgs,
}

/// Options of a backup of any number of volumes.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Name or UUID of the credential; optional if there is one; repeat to back up the same point to several
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Options of each backup.
    #[command(flatten)]
    pub backup: BackupOptionArgs,
    /// Bandwidth limits.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
    /// Quiesce options.
    #[command(flatten)]
    pub hooks: HookArgs,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

impl BackupArgs {
    /// Returns the volume, from the argument or the option; the parser requires one.
    pub fn volume(&self) -> Option<&VolumeRef> {
        self.source.as_ref().or(self.volume.as_ref())
    }
}

/// `cloudsnap list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// List snapshots of all clusters (default)
    #[arg(short, long, conflicts_with = "cluster")]
    pub all: bool,
    /// Only snapshots of this volume, by its name or id at backup time
    #[arg(short, long, value_name = "VOLUME")]
    pub src: Option<VolumeRef>,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Only snapshots of this cluster
    #[arg(short, long, value_name = "UUID")]
    pub cluster: Option<Uuid>,
    /// Only snapshots in this state [default: Done]; stopped ones are Failed
    #[arg(short = 't', long, ignore_case = true, value_parser = status_parser())]
    pub status: Option<CloudsnapStatus>,
    /// Only snapshots whose volume had all these labels
    #[arg(long, value_name = "K=V,…")]
    pub label: Option<LabelSelector>,
    /// Only this snapshot
    #[arg(short = 'i', long, value_name = "ID")]
    pub cloudsnap_id: Option<SnapRef>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
}

/// `cloudsnap inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Id of the cloud snapshot
    #[arg(value_name = "ID", required_unless_present = "snap", conflicts_with = "snap")]
    id: Option<SnapRef>,
    /// The same, as an option
    #[arg(short, long, value_name = "ID", alias = "cloudsnap-id", short_alias = 'i')]
    snap: Option<SnapRef>,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

impl InspectArgs {
    /// Returns the id, from the argument or the option; the parser requires one.
    pub fn id(&self) -> Option<&SnapRef> {
        self.id.as_ref().or(self.snap.as_ref())
    }
}

/// `cloudsnap status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this task, by an id prefix
    #[arg(value_name = "TASK", conflicts_with = "name", value_parser = parse_task)]
    task: Option<String>,
    /// The same, as an option
    #[arg(short, long, value_name = "TASK", value_parser = parse_task)]
    name: Option<String>,
    /// Only active tasks
    #[arg(long, conflicts_with_all = ["task", "name"])]
    pub active: bool,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Refresh until no task is active
    #[arg(long, conflicts_with = "wait")]
    pub watch: bool,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

impl StatusArgs {
    /// Returns the task, from the argument or the option.
    pub fn name(&self) -> Option<&str> {
        self.task.as_deref().or(self.name.as_deref())
    }
}

/// `cloudsnap restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Id or id prefix of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// Name of the new volume [default: generated]
    #[arg(short, long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// Skip damaged extents; they read as zeroes and are listed
    #[arg(long)]
    pub skip_damaged: bool,
    /// Labels of the new volume.
    #[command(flatten)]
    pub labels: NewLabelsArgs,
    /// Restore mode.
    #[command(flatten)]
    pub how: LazyArgs,
    /// Bandwidth limits.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// `cloudsnap delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: CloudSnapshotId,
    /// Delete a pinned or damaged cloud snapshot
    #[arg(short, long)]
    pub force: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// Credential option.
#[derive(Debug, Args)]
pub struct CredentialArg {
    /// Name or UUID of the credential; optional if there is one, or if only one has the cloud snapshot
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Option<CredentialRef>,
}

/// Wait option.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArg {
    /// Wait for the task and show its progress
    #[arg(long)]
    pub wait: bool,
}

fn status_parser() -> impl TypedValueParser<Value = CloudsnapStatus> {
    // Stopped and discarded backups are listed with failed ones.
    const FAILED_TOO: [&str; 2] = ["stopped", "aborted"];
    let values = CloudsnapStatus::ALL.map(|status| {
        let value = PossibleValue::new(status.as_str());
        if status == CloudsnapStatus::Failed { value.aliases(FAILED_TOO) } else { value }
    });
    PossibleValuesParser::new(values).map(|text| {
        if FAILED_TOO.iter().any(|alias| alias.eq_ignore_ascii_case(&text)) {
            return CloudsnapStatus::Failed;
        }
        // The parser has accepted only these values, upper or lower case.
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
