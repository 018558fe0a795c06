//! `blockctl cloudsnap schedules …`, `cloudsnap history` and `sched-policy …`

use super::retention_args::{KeepAt, LocalArgs, PriorityArg, RetainArgs, TimeArgs};
use crate::{
    commands::{
        arguments::{WaitArg, WideArg, parse_schedule},
        list_filter::ListFilter,
    },
    confirm::YesArg,
};
use blockd_api::{
    Compression, CredentialRef, GroupName, LabelSelector, ObjectName, RuleName, VolumeRef,
    schedules::{Policy, PolicyName, Run, RunState, Schedule},
};
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};

const CREATE_HELP: &str = "\
Runs missed while the daemon was down or the host was suspended are made up for by one run. \
Backups of a volume never overlap; a run whose predecessor is active is skipped, with a note in \
`cloudsnap history`. The newest --max backups are kept, and the last restorable one always.

With --local-keep-… (--keep-local N for the newest N), a local snapshot of each freeze stays on this \
host under its own retention; \
without --cred-id, only local snapshots are made. Backups of a deleted schedule stay. Backups of a \
time that was removed from the schedule or its policy follow the retention that this time had; \
`schedules retention` shows it.

Examples:
  blockctl cloudsnap schedules create db --daily 21:00 --max 15 --cred-id nas
  blockctl cs sched create db --periodic 60 --local-keep-last 24 --local-keep-daily 3 --cred-id nas --max 14
  blockctl cs sched create db --daily 21:00 --cred-id nas --cred-id offsite --keep-at offsite:monthly=12
  blockctl cs sched create db --periodic 15 --local-keep-last 96
  blockctl cs sched create db --name biweekly --weekly sunday@03:00/2
  blockctl cs sched create --label app=web --periodic 60 --monthly 1@03:00 --time-zone Europe/Berlin
  blockctl cs sched create --all --daily 02:00 --max 14
  blockctl cs sched create --group shop --cron '30 2 * * 1-5' --keep-daily 7 --keep-weekly 4
  blockctl cs sched create --group pg --daily 02:15 --rule pg
  blockctl cs sched create -v db --policy gold --cred-id nas --cred-id offsite --paused";

const UPDATE_HELP: &str = "\
Given times replace all times of the schedule.

Examples:
  blockctl cloudsnap schedules update nightly --max 30
  blockctl cs sched update --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1 --daily 22:00";

const POLICY_HELP: &str = "\
The number after the comma (a semicolon in expressions) is the number of kept backups of this \
rule. Without it, they count with the others of the schedule (--max).

Examples:
  blockctl sched-policy create gold --periodic 60,24 --daily 22:14,7 --weekly Thursday@22:13,5 --monthly 14@20:05,12
  blockctl sched-policy create nights --cron '30 2 * * 1,3;10'";

const POLICY_UPDATE_HELP: &str = "\
Given times replace those of their kind (--daily the daily ones); rules of other kinds stay. A time \
without a number of kept backups has the retention of the times that it replaces, if they \
have the same.

Examples:
  blockctl sched-policy update gold --daily 23:00
  blockctl sched-policy update gold --weekly Sunday@03:00,8
  blockctl sched-policy update gold --replace --daily 23:00,7";

pub const HISTORY_HELP: &str = "\
Examples:
  blockctl cloudsnap history
  blockctl cs history --src db --max 20
  blockctl cs history --status failed --since 7d
  blockctl cs history --name 'night*' --label app=web --sort volume
  blockctl cs history -o wide
  blockctl -j cs history";

/// Subcommands of `cloudsnap schedules`.
#[derive(Debug, Subcommand)]
pub enum SchedulesCommand {
    /// Create a backup schedule
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(Box<CreateArgs>),
    /// List backup schedules
    #[command(
        visible_alias = "l",
        after_help = "Examples:\n  blockctl cloudsnap schedules list\n  blockctl cs sched list --volume db --sort next\n  blockctl cs sched list -o wide\n  blockctl -j cs sched list"
    )]
    List(ListArgs),
    /// Change a backup schedule
    #[command(after_help = UPDATE_HELP)]
    Update(Box<UpdateArgs>),
    /// Pause a schedule
    #[command(after_help = "Examples:\n  blockctl cloudsnap schedules pause nightly")]
    Pause(ScheduleArg),
    /// Resume a schedule; skipped runs are not made up for
    #[command(after_help = "Examples:\n  blockctl cloudsnap schedules resume nightly")]
    Resume(ScheduleArg),
    /// Run a schedule now
    #[command(
        after_help = "Examples:\n  blockctl cloudsnap schedules run-now nightly\n  blockctl cs sched run-now 0785 --wait"
    )]
    RunNow(RunNowArgs),
    /// Show what retention keeps and deletes, and why
    #[command(
        visible_alias = "dry-run",
        after_help = "Examples:\n  blockctl cloudsnap schedules retention nightly"
    )]
    Retention(ScheduleArg),
    /// Delete a backup schedule; its backups stay
    #[command(
        visible_alias = "d",
        after_help = "Examples:\n  blockctl cloudsnap schedules delete nightly",
        mut_arg("schedule", |schedule| schedule.help("Schedule: name or complete UUID"))
    )]
    Delete(DeleteArgs),
}

/// Subcommands of `sched-policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Create a schedule policy
    #[command(visible_alias = "c", after_help = POLICY_HELP)]
    Create(PolicyArgs),
    /// List the schedule policies
    #[command(
        visible_alias = "l",
        after_help = "Examples:\n  blockctl sched-policy list\n  blockctl sched-policy list --name 'gold*'"
    )]
    List(ListFilter<Policy>),
    /// Show a schedule policy
    #[command(after_help = "Examples:\n  blockctl sched-policy inspect gold")]
    Inspect(PolicyNameArg),
    /// Change the rules of a schedule policy
    #[command(visible_alias = "u", after_help = POLICY_UPDATE_HELP)]
    Update(UpdatePolicyArgs),
    /// Delete an unused schedule policy
    #[command(visible_alias = "d", after_help = "Examples:\n  blockctl sched-policy delete gold")]
    Delete(DeletePolicyArgs),
}

/// Volumes, locations and times of a new schedule.
#[derive(Debug, Args)]
pub struct ScheduledArgs {
    /// Name or id of a volume, or the name of a group
    #[arg(value_name = "VOLUME|GROUP", required_unless_present_any = ["volume", "group", "label", "all"], conflicts_with_all = ["volume", "group", "label", "all"])]
    pub target: Option<VolumeRef>,
    /// Name or id of a volume
    #[arg(short, long, value_name = "VOLUME", conflicts_with_all = ["group", "label", "all"])]
    pub volume: Option<VolumeRef>,
    /// Unique name of the schedule
    #[arg(short, long, value_name = "NAME")]
    pub name: Option<ObjectName>,
    /// Volumes of this group at each run, frozen together
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["label", "all"])]
    pub group: Option<GroupName>,
    /// Volumes with these labels at each run, frozen separately
    #[arg(long, value_name = "K=V,…", conflicts_with = "all")]
    pub label: Option<LabelSelector>,
    /// All volumes at each run, frozen separately
    #[arg(long)]
    pub all: bool,
    /// Name or UUID of the credential; repeat for several; optional if there is one
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Times.
    #[command(flatten)]
    pub times: TimeArgs,
    /// Schedule policy whose rules apply too
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<PolicyName>,
}

/// `schedules create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Volumes, locations and times.
    #[command(flatten)]
    pub scheduled: ScheduledArgs,
    /// Retention.
    #[command(flatten)]
    pub retain: RetainArgs,
    /// Retention of one location, such as offsite:last=30,monthly=12 or offsite:30
    #[arg(long, value_name = "CREDENTIALS:RETENTION")]
    pub keep_at: Vec<KeepAt>,
    /// Retention of local snapshots.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Always make full backups
    #[arg(short, long)]
    pub full: bool,
    /// Store all data again in each full backup
    #[arg(long, requires = "full")]
    pub reupload: bool,
    /// Compression: auto, none, lz4 or zstd:1 to zstd:19 [default: that of each location]
    #[arg(long, value_name = "COMPRESSION")]
    pub compression: Option<Compression>,
    /// Maximum start delay in seconds, constant for a schedule, at most half of the interval; 0 for none
    /// [default: a tenth of the interval, at most 1800]
    #[arg(long, value_name = "SECONDS")]
    pub jitter: Option<u32>,
    /// Priority of runs
    #[arg(long, value_enum, default_value_t = PriorityArg::Normal)]
    pub priority: PriorityArg,
    /// Use this rule instead of the volumes' rules
    #[arg(long, value_name = "RULE")]
    pub rule: Option<RuleName>,
    /// Create it paused
    #[arg(long)]
    pub paused: bool,
}

/// `schedules update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Target.
    #[command(flatten)]
    pub target: ScheduleArg,
    /// Times.
    #[command(flatten)]
    pub times: TimeArgs,
    /// Another schedule policy
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<PolicyName>,
    /// Retention.
    #[command(flatten)]
    pub retain: RetainArgs,
    /// Retention of one location; the others follow the schedule
    #[arg(long, value_name = "CREDENTIALS:RETENTION")]
    pub keep_at: Vec<KeepAt>,
    /// Retention of local snapshots.
    #[command(flatten)]
    pub local: LocalArgs,
    /// Stop making local snapshots; existing ones stay
    #[arg(long, conflicts_with_all = ["local_keep_last", "local_keep_hourly", "local_keep_daily", "local_keep_weekly", "local_keep_monthly", "local_keep_yearly", "local_keep_all"])]
    pub no_local: bool,
    /// Always make full backups
    #[arg(short, long, value_name = "BOOL")]
    pub full: Option<bool>,
    /// Store all data again in each full backup
    #[arg(long, value_name = "BOOL")]
    pub reupload: Option<bool>,
    /// Compression: auto, none, lz4 or zstd:1 to zstd:19
    #[arg(long, value_name = "COMPRESSION")]
    pub compression: Option<Compression>,
    /// Use the compression of each location
    #[arg(long, conflicts_with = "compression")]
    pub location_compression: bool,
    /// Maximum start delay in seconds, at most half of the interval
    #[arg(long, value_name = "SECONDS")]
    pub jitter: Option<u32>,
    /// Priority of runs
    #[arg(long, value_enum)]
    pub priority: Option<PriorityArg>,
    /// Use this rule instead of the volumes' rules
    #[arg(long, value_name = "RULE")]
    pub rule: Option<RuleName>,
    /// Use the volumes' rules
    #[arg(long, conflicts_with = "rule")]
    pub no_rule: bool,
}

/// `schedules list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only schedules of this volume, by name or id
    #[arg(short, long, value_name = "VOLUME")]
    pub volume: Option<VolumeRef>,
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<Schedule>,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

/// Schedule argument.
#[derive(Clone, Debug, Args)]
pub struct ScheduleArg {
    /// Schedule: name, UUID or a prefix of the UUID
    #[arg(value_parser = parse_schedule)]
    pub schedule: String,
}

/// `schedules delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Target.
    #[command(flatten)]
    pub target: ScheduleArg,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// `schedules run-now`
#[derive(Debug, Args)]
pub struct RunNowArgs {
    /// Target.
    #[command(flatten)]
    pub target: ScheduleArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// `cloudsnap history`
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only runs of this volume
    #[arg(short, long, visible_alias = "volume", value_name = "VOLUME")]
    pub src: Option<VolumeRef>,
    /// Only runs of this schedule, by name, UUID or a prefix of the UUID; it may be deleted
    #[arg(short, long, value_name = "SCHEDULE", value_parser = parse_schedule)]
    pub uuid: Option<String>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Only runs in this state
    #[arg(short = 't', long, value_name = "STATE", ignore_case = true, value_parser = run_state_parser())]
    pub status: Option<RunState>,
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<Run>,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

fn run_state_parser() -> impl TypedValueParser<Value = RunState> {
    PossibleValuesParser::new(RunState::ALL.map(RunState::as_str)).map(|text| {
        // The parser has accepted only these values, upper or lower case.
        let same = |state: &RunState| state.as_str().eq_ignore_ascii_case(&text);
        RunState::ALL.into_iter().find(same).unwrap_or(RunState::Failed)
    })
}

/// Policy arguments.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Name of the policy
    #[arg(value_name = "POLICY")]
    pub name: PolicyName,
    /// Times.
    #[command(flatten)]
    pub times: TimeArgs,
}

/// `sched-policy update`
#[derive(Debug, Args)]
pub struct UpdatePolicyArgs {
    /// Policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Remove all other rules of the policy
    #[arg(long)]
    pub replace: bool,
}

/// Policy name argument.
#[derive(Debug, Args)]
pub struct PolicyNameArg {
    /// Name of the policy
    #[arg(value_name = "POLICY")]
    pub name: PolicyName,
}

/// `sched-policy delete`
#[derive(Debug, Args)]
pub struct DeletePolicyArgs {
    /// Policy.
    #[command(flatten)]
    pub policy: PolicyNameArg,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}
