//! `blockctl cloudsnap drill schedules`

use super::{
    Of,
    args::{DeleteArgs, ListArgs, RunNowArgs, ScheduleArg, ScheduledArgs},
    created, delete, pause, refuse_unused_zone,
    retention_args::{PriorityArg, TimeArgs},
    run_now, scheduled_request,
    tables::{Names, called, selected},
    update::{current, updated, updated_rules},
};
use crate::{
    commands::{cloudsnap::drill::parse_timeout, filters::VolumeFilter},
    failure::{Exit, Failure},
    output::Context,
    table::{Table, or_dash},
};
use blockd_api::{
    ProbeName,
    drills::{DEFAULT_DRILL_FILES, DEFAULT_DRILL_TIMEOUT_S, DrillOptions},
    schedules::{CreateSchedule, PolicyName, RunState, Schedule, UpdateSchedule},
};
use blockd_schedule::Jitter;
use clap::{Args, Subcommand};
use std::collections::BTreeSet;

const CREATE_HELP: &str = "\
Each run drills the newest cloud snapshot of each volume at each location; for a group, those of its \
newest point in time. Times, policies and missed runs are those of backup schedules. A run whose predecessor \
is active is skipped, with a note in `cloudsnap history`.

Examples:
  blockctl cloudsnap drill schedules create db --weekly sunday@04:00
  blockctl cs drill schedules create --all --monthly 1@03:00 --time-zone Europe/Berlin --files 500
  blockctl cs drill schedules create shop --name shop-drills --daily 05:00 --cred-id offsite --timeout 20m
  blockctl cs drill schedules create db --daily 04:00 --probe postgresql";

const UPDATE_HELP: &str = "\
New times replace all old ones; a time zone alone moves them. Their past runs are not made up for.

Examples:
  blockctl cloudsnap drill schedules update shop-drills --daily 06:00
  blockctl cs drill schedules update shop-drills --time-zone Europe/Berlin --files 200 --timeout 2h";

/// Subcommands of `cloudsnap drill schedules`.
#[derive(Debug, Subcommand)]
pub enum DrillSchedulesCommand {
    /// Create a schedule of drills
    #[command(
        visible_alias = "c",
        after_help = CREATE_HELP,
        mut_arg("group", |arg| arg.help("Volumes of this group at each run, at one point in time")),
        mut_arg("label", |arg| arg.help("Volumes with these labels at each run")),
        mut_arg("all", |arg| arg.help("All volumes at each run"))
    )]
    Create(Box<CreateDrillsArgs>),
    /// List the schedules of drills
    #[command(visible_alias = "l", after_help = "Examples:\n  blockctl cloudsnap drill schedules list")]
    List(ListArgs),
    /// Change a schedule of drills
    #[command(after_help = UPDATE_HELP)]
    Update(Box<UpdateDrillsArgs>),
    /// Pause a schedule of drills
    #[command(after_help = "Examples:\n  blockctl cloudsnap drill schedules pause shop-drills")]
    Pause(ScheduleArg),
    /// Resume a schedule; skipped runs are not made up for
    #[command(after_help = "Examples:\n  blockctl cloudsnap drill schedules resume shop-drills")]
    Resume(ScheduleArg),
    /// Run a schedule of drills now
    #[command(after_help = "Examples:\n  blockctl cloudsnap drill schedules run-now shop-drills --wait")]
    RunNow(RunNowArgs),
    /// Delete a schedule of drills; their results stay
    #[command(
        visible_alias = "d",
        after_help = "Examples:\n  blockctl cloudsnap drill schedules delete shop-drills",
        mut_arg("schedule", |schedule| schedule.help("Schedule: name or complete UUID"))
    )]
    Delete(DeleteArgs),
}

/// `drill schedules create`
#[derive(Debug, Args)]
pub struct CreateDrillsArgs {
    /// Volumes, locations and times.
    #[command(flatten)]
    scheduled: ScheduledArgs,
    /// Number of files of each drill to read in full [default: 32]
    #[arg(long, value_name = "N")]
    files: Option<u32>,
    /// Time after which a drill ends without a result [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<u32>,
    /// Run this probe of the daemon's configuration in each drill
    #[arg(long, value_name = "NAME")]
    probe: Option<ProbeName>,
    /// Maximum start delay in seconds, constant for a schedule, at most half of the interval; 0 for none
    /// [default: a tenth of the interval, at most 1800]
    #[arg(long, value_name = "SECONDS")]
    jitter: Option<u32>,
    /// Priority of runs
    #[arg(long, value_enum, default_value_t = PriorityArg::Normal)]
    priority: PriorityArg,
    /// Create it paused
    #[arg(long)]
    paused: bool,
}

/// `drill schedules update`
#[derive(Debug, Args)]
pub struct UpdateDrillsArgs {
    /// Target.
    #[command(flatten)]
    target: ScheduleArg,
    /// Times.
    #[command(flatten)]
    times: TimeArgs,
    /// Another schedule policy
    #[arg(long, value_name = "POLICY")]
    policy: Option<PolicyName>,
    /// Number of files of each drill to read in full
    #[arg(long, value_name = "N")]
    files: Option<u32>,
    /// Time after which a drill ends without a result
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<u32>,
    /// Run this probe of the daemon's configuration in each drill
    #[arg(long, value_name = "NAME", conflicts_with = "no_probe")]
    probe: Option<ProbeName>,
    /// Run no probe
    #[arg(long)]
    no_probe: bool,
    /// Maximum start delay in seconds, at most half of the interval
    #[arg(long, value_name = "SECONDS")]
    jitter: Option<u32>,
    /// Priority of runs
    #[arg(long, value_enum)]
    priority: Option<PriorityArg>,
}

pub async fn run(context: &Context<'_>, command: DrillSchedulesCommand) -> Exit {
    match command {
        DrillSchedulesCommand::Create(args) => create(context, *args).await,
        DrillSchedulesCommand::List(args) => list(context, &args).await,
        DrillSchedulesCommand::Update(args) => update(context, *args).await,
        DrillSchedulesCommand::Pause(args) => pause(context, Of::Drills, &args, true).await,
        DrillSchedulesCommand::Resume(args) => pause(context, Of::Drills, &args, false).await,
        DrillSchedulesCommand::RunNow(args) => run_now(context, Of::Drills, &args).await,
        DrillSchedulesCommand::Delete(args) => delete(context, Of::Drills, &args).await,
    }
}

async fn create(context: &Context<'_>, args: CreateDrillsArgs) -> Exit {
    let request = CreateSchedule {
        jitter_seconds: args.jitter.map(|max_s| Jitter { max_s }),
        priority: args.priority.into(),
        paused: args.paused,
        drill: Some(DrillOptions {
            files: args.files,
            timeout_seconds: args.timeout,
            probe: args.probe.clone(),
        }),
        ..scheduled_request(context, args.scheduled).await?
    };
    created(context, Of::Drills, &request).await
}

async fn update(context: &Context<'_>, args: UpdateDrillsArgs) -> Exit {
    let now = current(context, Of::Drills, &args.target).await?;
    let rules = updated_rules(&args.times, &now)?;
    if args.times.time_zone.is_some() && rules.is_empty() && now.rules.is_empty() {
        refuse_unused_zone(args.policy.as_ref().or(now.policy_name.as_ref()), &[])?;
    }
    // The options replace all.
    let is_changed = args.files.is_some() || args.timeout.is_some() || args.probe.is_some() || args.no_probe;
    let drill = is_changed.then(|| {
        let before = now.drill.clone().unwrap_or_default();
        DrillOptions {
            files: args.files.or(before.files),
            timeout_seconds: args.timeout.or(before.timeout_seconds),
            probe: args.probe.or(before.probe).filter(|_| !args.no_probe),
        }
    });
    let request = UpdateSchedule {
        rules: (!rules.is_empty()).then_some(rules),
        policy_name: args.policy,
        jitter_seconds: args.jitter.map(|max_s| Some(Jitter { max_s })),
        priority: args.priority.map(Into::into),
        drill,
        ..UpdateSchedule::default()
    };
    if request == UpdateSchedule::default() {
        return Err(Failure::usage(
            "no changes given: give times, --policy, --files, --timeout, --probe, --no-probe, --jitter or --priority",
        ));
    }
    updated(context, Of::Drills, &now, &request).await
}

async fn list(context: &Context<'_>, args: &ListArgs) -> Exit {
    let volume = VolumeFilter::load(context, args.volume.as_ref()).await?;
    let is_wanted = |one: &Schedule| {
        let (id, name) = (one.selector.volume_id, one.selector.volume_name.as_ref());
        volume.as_ref().is_none_or(|volume| volume.includes(id, name))
    };
    let mut schedules = Of::Drills.list(context).await?;
    schedules.list.items.retain(is_wanted);
    args.filter.apply(context, &mut schedules.list.items, None).await?;
    if context.output.is_json() {
        return context.output.document(&schedules);
    }
    let (items, width) = (schedules.list.items.clone(), args.width.width());
    let names = Names::of(context, schedules).await?;
    context.output.list(&(), "schedules of drills", || {
        Table::list(&items, width)
            .both("NAME", called)
            .both("VOLUMES", |schedule| selected(&schedule.selector))
            .wide("UUID", |schedule| schedule.schedule_id)
            .both("LOCATIONS", |schedule| names.locations(schedule))
            .wide("POLICY", |schedule| or_dash(schedule.policy_name.as_ref()))
            .both("NEXT-RUN", |schedule| match schedule.paused {
                true => "paused".to_owned(),
                false => or_dash(schedule.next_run_at.map(|at| width.time(at))),
            })
            .both("LAST-RUN", |schedule| or_dash(schedule.last_run_at.map(|at| width.time(at))))
            .both("RESULT", last_result)
            .wide("STATUS", |schedule| if schedule.paused { "paused" } else { "active" })
            .wide("PROBE", |schedule| or_dash(options(schedule).and_then(|one| one.probe.as_ref())))
            .wide("FILES", |schedule| {
                options(schedule).and_then(|one| one.files).unwrap_or(DEFAULT_DRILL_FILES)
            })
            .wide("TIMEOUT", |schedule| {
                let timeout_s = options(schedule).and_then(|one| one.timeout_seconds);
                format!("{}s", timeout_s.unwrap_or(DEFAULT_DRILL_TIMEOUT_S))
            })
            .both("SCHEDULE", |schedule| &schedule.schedule)
            .fit_with_text("NAME|VOLUMES|LOCATIONS")
    })
}

/// Returns the results of the last runs, each once.
fn last_result(schedule: &Schedule) -> String {
    let result = |state: RunState| match state {
        RunState::Done => "passed".to_owned(),
        other => other.to_string(),
    };
    let all: BTreeSet<String> =
        schedule.copies.iter().filter_map(|copy| copy.last_state).map(result).collect();
    or_dash((!all.is_empty()).then(|| Vec::from_iter(all).join(", ")))
}

fn options(schedule: &Schedule) -> Option<&DrillOptions> {
    schedule.drill.as_ref()
}
