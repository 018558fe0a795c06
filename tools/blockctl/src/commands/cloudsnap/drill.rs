//! `blockctl cloudsnap drill`

use crate::{
    cloudsnap_ref::SnapRef,
    commands::{
        arguments::{CredentialArg, WaitArg, WideArg, parse_task},
        costs,
        limits::BudgetArgs,
        protection::span,
        schedules::drills::{self, DrillSchedulesCommand},
    },
    failure::{EXIT_DONE, Exit, Failure},
    output::Context,
    table::{Facts, Table, Width, counted, or_dash, short_uuid},
    times::parse_seconds,
    wait::{report_group_start, report_start},
};
use blockd_api::{
    ApiError, ByteSize, CredentialRef, ErrorCode, GroupName, List, ProbeName, VolumeRef,
    cloudsnaps::CloudSnapshotId,
    drills::{Drill, DrillOutcome, ListDrills, StartDrill, StartGroupDrill},
    format_time, operations,
};
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;

pub const RUN_HELP: &str = "\
A drill opens a cloud snapshot as a lazy restore would, finds its filesystems, replays journals in memory, \
checks the metadata of ext2, ext3 and ext4, and reads a random sample of files. Nothing is written \
except its proof. Times, bytes and requests are those of a real recovery. With --probe, a command of the daemon's configuration ([drill_probes.NAME]) then uses a writable clone, which is removed: it starts a database on it, for example. A probe that fails fails the drill. A filesystem that an earlier drill of the volume found must still be there: after a change of the layout on purpose, give --accept-layout once. With --group, one probe uses the clones of all volumes.

Examples:
  blockctl cloudsnap drill run db
  blockctl cs drill run db@latest web@latest --wait
  blockctl cs drill run --group shop --cred-id offsite --wait
  blockctl cs drill run db@latest --dry-run
  blockctl cs drill run --group shop --dry-run
  blockctl cs drill run db@latest --max-requests 2000
  blockctl cs drill run ID --files 500 --seed 7 --timeout 10m
  blockctl cs drill run db@latest --probe postgresql --wait
  blockctl cs drill run --group shop --probe postgresql-wal --wait";

pub const LIST_HELP: &str = "\
FIRST-BYTE and MOUNTED are the measured times to the first byte and to opened filesystems (RTO), RPO is the age of the \
cloud snapshot at the drill.

Examples:
  blockctl cloudsnap drill list
  blockctl cs drill list db
  blockctl -j cs drill list db --max 10";

pub const INSPECT_HELP: &str = "\
Shows the steps, their times and findings, and earlier drills of the volume.

Examples:
  blockctl cloudsnap drill inspect TASK
  blockctl -j cs drill inspect TASK";

/// Maximum number of earlier drills that `inspect` shows.
const MAX_EARLIER: usize = 10;

/// Subcommands of `cloudsnap drill`.
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Test a restore of cloud snapshots
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// List drills and their measured times
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List(ListArgs),
    /// Show a drill and the trend of its volume
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Manage schedules of drills
    #[command(subcommand)]
    Schedules(DrillSchedulesCommand),
}

/// `cloudsnap drill run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Cloud snapshots: id, id prefix, name, VOLUME (its newest one) or VOLUME@TIME
    #[arg(value_name = "ID")]
    snaps: Vec<SnapRef>,
    /// All volumes of this group, at its newest point in time at the location
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["snaps", "max_requests", "max_egress", "max_cost"])]
    group: Option<GroupName>,
    /// Number of files to read in full [default: 32]
    #[arg(long, value_name = "N")]
    files: Option<u32>,
    /// Seed of the sample of files, to repeat it [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Time after which the drill ends without a result [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<u32>,
    /// Run this probe of the daemon's configuration at the end
    #[arg(long, value_name = "NAME")]
    probe: Option<ProbeName>,
    /// Accept that filesystems of earlier drills are missing
    #[arg(long)]
    accept_layout: bool,
    /// Estimate requests, bytes and costs, and run nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Budget of each drill.
    #[command(flatten)]
    budget: BudgetArgs,
    /// Credential option.
    #[command(flatten)]
    credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    wait: WaitArg,
}

/// `cloudsnap drill list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only drills of this volume, by its id, or by its name now or at backup time
    #[arg(value_name = "VOLUME")]
    volume: Option<VolumeRef>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max: Option<u32>,
    /// Width option.
    #[command(flatten)]
    width: WideArg,
}

/// `cloudsnap drill inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Drill, by the id of its task or a prefix of it
    #[arg(value_name = "TASK", value_parser = parse_task)]
    drill: String,
}

/// Drill, and earlier ones of its volume.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InspectedDrill {
    /// Drill.
    #[serde(flatten)]
    drill: Drill,
    /// Earlier drills of the volume, newest first.
    earlier: Vec<Drill>,
}

/// Parses a timeout in seconds.
pub fn parse_timeout(text: &str) -> Result<u32, String> {
    match parse_seconds(text)? {
        0 => Err("expected at least 1s".to_owned()),
        seconds => u32::try_from(seconds).map_err(|_| "expected at most 136 years".to_owned()),
    }
}

pub async fn run(context: &Context<'_>, command: DrillCommand) -> Exit {
    match command {
        DrillCommand::Run(args) => start(context, args).await,
        DrillCommand::List(args) => list(context, args).await,
        DrillCommand::Inspect(args) => inspect(context, args).await,
        DrillCommand::Schedules(command) => drills::run(context, command).await,
    }
}

async fn start(context: &Context<'_>, args: RunArgs) -> Exit {
    if let Some(group) = args.group.clone() {
        return start_group(context, group, args).await;
    }
    if args.snaps.is_empty() {
        return Err(Failure::usage("give cloud snapshots or volumes, or a group with --group"));
    }
    let mut ids = Vec::new();
    for snap in &args.snaps {
        ids.push(resolve(context, snap, args.credential.cred_id.as_ref()).await?);
    }
    let (mut tasks, mut lines, mut all, mut estimated) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for id in ids {
        let request = StartDrill {
            cloud_snapshot_id: id,
            credential: args.credential.cred_id.clone(),
            files: args.files,
            seed: args.seed,
            timeout_seconds: args.timeout,
            probe: args.probe.clone(),
            accept_layout: args.accept_layout,
            limits: args.budget.limits(),
        };
        if args.dry_run {
            estimated.extend(context.client.call(operations::ESTIMATE_DRILL, &request).await?.items);
            continue;
        }
        let started = context.client.call(operations::START_DRILL, &request).await?;
        let line = format!("Restore drill of {id} started successfully with id: {}", started.task_id);
        if args.snaps.len() == 1 {
            return report_start(context, started.task_id, &started, &line, args.wait.report()).await;
        }
        tasks.push(started.task_id);
        lines.push(line);
        all.push(started);
    }
    if args.dry_run {
        return costs::report(context.output, &List::from(estimated));
    }
    report_group_start(context, tasks, &List::from(all), &lines, args.wait.report()).await
}

/// Resolves a cloud snapshot; the name of a volume stands for its newest one. A drill proves one cloud
/// snapshot at one location: a reference to several is refused.
async fn resolve(
    context: &Context<'_>,
    snap: &SnapRef,
    cred_id: Option<&CredentialRef>,
) -> Result<CloudSnapshotId, Failure> {
    let found = snap.resolve_at_default(context, cred_id).await;
    let Some(newest) = snap.newest().filter(|_| snap.whole().is_none()) else { return found };
    let of_volume = newest.resolve_at_default(context, cred_id).await;
    match (found, of_volume) {
        (Ok(id), Ok(of_volume)) if id != of_volume => Err(Failure::usage(format!(
            "{snap} is the name of a cloud snapshot, {id}, and of a volume, whose newest one is {of_volume}"
        ))
        .with_hint(format!("give one of these ids, or {newest} for the newest one of the volume"))),
        (Err(error), Err(of_volume)) if is_unknown(&error) && !is_unknown(&of_volume) => Err(of_volume),
        (Err(error), of_volume) if is_unknown(&error) => of_volume.map_err(|_| error),
        (found, _) => found,
    }
}

fn is_unknown(error: &Failure) -> bool {
    [ErrorCode::CloudsnapNotFound, ErrorCode::VolumeNotFound].iter().any(|code| error.code() == code.as_str())
}

/// Starts the drills of a group, which fail together: any failure decides the exit status.
async fn start_group(context: &Context<'_>, group: GroupName, args: RunArgs) -> Exit {
    let request = StartGroupDrill {
        group: group.clone(),
        credential: args.credential.cred_id,
        files: args.files,
        seed: args.seed,
        timeout_seconds: args.timeout,
        probe: args.probe,
        accept_layout: args.accept_layout,
    };
    if args.dry_run {
        let estimated = context.client.call(operations::ESTIMATE_GROUP_DRILL, &request).await?;
        return costs::report(context.output, &estimated);
    }
    let started = context.client.call(operations::START_GROUP_DRILL, &request).await?;
    let count = counted(started.list.items.len() as u64, "volume");
    let mut lines = vec![format!(
        "Restore drill of group {group} started successfully with groupID:{} ({count})",
        started.group_id
    )];
    let members = &started.list.items;
    lines.extend(members.iter().map(|one| format!("  {}: {}", one.volume_name, one.task_id)));
    let tasks = members.iter().map(|one| one.task_id).collect();
    let wait = args.wait.report();
    let exit = report_group_start(context, tasks, &started, &lines, wait).await?;
    if wait.is_some() && !context.output.is_json() {
        let result = if exit == EXIT_DONE { "passed" } else { "failed" };
        context.output.line(format!("Restore drill of group {group} {result} ({count})"))?;
    }
    Ok(exit)
}

async fn list(context: &Context<'_>, args: ListArgs) -> Exit {
    let query = ListDrills { volume: args.volume, id_prefix: None, max: args.max };
    let drills = context.client.call(operations::LIST_DRILLS, &query).await?;
    if let (true, Some(volume)) = (drills.items.is_empty(), &query.volume) {
        context.client.call_at(operations::GET_VOLUME, volume, &()).await?;
    }
    context.output.list(&drills, "drills", || table(&drills.items, args.width.width()))
}

fn result(drill: &Drill) -> &'static str {
    match (drill.passed, &drill.unchecked) {
        (false, _) => "failed",
        (true, None) => "passed",
        (true, Some(_)) => "passed, not checked",
    }
}

/// Formats a measured time.
fn measured(millis: Option<u64>) -> String {
    or_dash(millis.map(|millis| match millis {
        0 => "<1 ms".to_owned(),
        1..10_000 => format!("{millis} ms"),
        _ => format!("{} s", millis / 1000),
    }))
}

fn table(drills: &[Drill], width: Width) -> Table {
    let columns = Table::list(drills, width)
        .narrow("ID", |drill| short_uuid(drill.drill_id))
        .wide("ID", |drill| drill.drill_id)
        .both("VOLUME", |drill| &drill.volume_name)
        .both("ENDED", |drill| width.time(drill.ended_at))
        .both("RESULT", result)
        .both("FIRST-BYTE", |drill| measured(drill.first_byte_millis))
        .both("MOUNTED", |drill| measured(drill.mounted_millis))
        .both("FETCHED", |drill| ByteSize::from_bytes(drill.fetched_bytes))
        .both("RPO", |drill| span(drill.ended_at.duration_since(drill.created_at)))
        .wide("LOCATION", |drill| or_dash(drill.credential_name.as_ref()))
        .wide("PROBED", |drill| measured(drill.probed_millis))
        .wide("REQUESTS", |drill| drill.requests)
        .wide("CLOUD-SNAP-ID", |drill| drill.cloud_snapshot_id)
        .wide("HOST", |drill| &drill.host);
    columns.fit("VOLUME")
}

async fn inspect(context: &Context<'_>, args: InspectArgs) -> Exit {
    let drills = context.client.call(operations::LIST_DRILLS, &ListDrills::default()).await?.items;
    let mut found = drills.iter().filter(|drill| drill.drill_id.to_string().starts_with(&args.drill));
    let drill = match (found.next(), found.next()) {
        (Some(drill), None) => drill.clone(),
        (None, _) => {
            let message = format!("no drill has an id that begins with {}", args.drill);
            let error = ApiError::new(ErrorCode::TaskNotFound, message);
            return Err(error.with_hint("`blockctl cloudsnap drill list` shows the drills").into());
        }
        (Some(_), Some(_)) => {
            let message = format!("several drills have an id that begins with {}", args.drill);
            return Err(Failure::usage(message).with_hint("give a longer prefix"));
        }
    };
    let of = |drill: &Drill| (drill.cloud_snapshot_id.cluster, drill.cloud_snapshot_id.volume);
    let earlier = drills.into_iter().filter(|one| of(one) == of(&drill) && one.ended_at < drill.ended_at);
    let inspected = InspectedDrill { earlier: earlier.take(MAX_EARLIER).collect(), drill };
    context.output.describe(&inspected, || facts(&inspected))
}

fn facts(InspectedDrill { drill, earlier }: &InspectedDrill) -> Facts {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let mut facts = Facts::default();
    facts
        .add("Drill", drill.drill_id)
        .add("Cloud snapshot", drill.cloud_snapshot_id)
        .add("Source volume", &drill.volume_name)
        .add(
            "Result",
            drill.unchecked.iter().fold(result(drill).to_owned(), |text, why| format!("{text}: {why}")),
        )
        .add("Ended", format_time(drill.ended_at))
        .add("Host", format!("{}, blockd {}", drill.host, drill.version))
        .add("RPO", span(drill.ended_at.duration_since(drill.created_at)))
        .add("First byte", measured(drill.first_byte_millis))
        .add("Mounted", measured(drill.mounted_millis))
        .add("Probed", measured(drill.probed_millis))
        .add("Fetched", format!("{} in {}", size(drill.fetched_bytes), counted(drill.requests, "request")))
        .add(
            "Sample",
            format!("{}, {}, seed {}", counted(drill.files, "file"), size(drill.files_bytes), drill.seed),
        );
    for (nth, filesystem) in drill.filesystems.iter().enumerate() {
        facts.add(if nth == 0 { "Filesystems" } else { "" }, filesystem);
    }
    for (nth, step) in drill.steps.iter().enumerate() {
        let note = if step.note.is_empty() { String::new() } else { format!(": {}", step.note) };
        let outcome = match step.outcome {
            DrillOutcome::Passed => format!("{} after {}", step.outcome, measured(Some(step.elapsed_millis))),
            DrillOutcome::Failed | DrillOutcome::Skipped => step.outcome.to_string(),
        };
        facts.add(if nth == 0 { "Steps" } else { "" }, format!("{:<11}{outcome}{note}", step.stage));
    }
    for (nth, finding) in drill.findings.iter().enumerate() {
        facts.add(if nth == 0 { "Findings" } else { "" }, finding);
    }
    let unlisted = drill.findings_total.saturating_sub(drill.findings.len() as u64);
    if unlisted > 0 {
        facts.add("", format!("and {unlisted} more"));
    }
    for (nth, one) in earlier.iter().enumerate() {
        let text = format!(
            "{} {}, first byte {}, mounted {}, {} fetched",
            format_time(one.ended_at),
            result(one),
            measured(one.first_byte_millis),
            measured(one.mounted_millis),
            size(one.fetched_bytes)
        );
        facts.add(if nth == 0 { "Earlier drills" } else { "" }, text);
    }
    facts
}
