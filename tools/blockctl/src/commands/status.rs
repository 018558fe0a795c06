//! `blockctl status`

use super::{
    health::{HealthProblem, Known, problems},
    protection::{Protection, missed, table, unprotected},
    space::{VolumeSpace, location_table, volume_table},
};
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit},
    output::Context,
    table::{Facts, counted},
};
use blockd_api::{
    ByteSize, format_duration, operations,
    status::{Status, VerificationPlan},
};
use clap::Args;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// Document of `status`: the daemon's reply, with all problems in place of its own.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    #[serde(flatten)]
    status: Status,
    /// Problems, the worst first.
    problems: Vec<HealthProblem>,
    /// Protection of each volume, by schedule and location.
    protection: Vec<Protection>,
    /// Space of each volume on this host.
    volume_space: Vec<VolumeSpace>,
}

/// Help of `status`.
pub const STATUS_HELP: &str = "\
The table has a row for each volume, schedule and location: age of the newest backup, next run, and \
recovery point objective (RPO). LAST-PROOF is age and kind of \
the last verification by any host that read a backup there, in full or deep, and found it sound. The RPO is `met` if the newest backup is not older than the last time of \
the schedule, after a grace period of half of the interval (5 minutes to 6 hours); `waiting` before \
the first one is due; `missed` otherwise. A volume with the label backup=none needs no schedule.

USED is the space of a volume on this host. STORED is the space of a location for the cloud snapshots \
that the daemon knows without a request to the store: those of this host, and those of other hosts at \
the last complete listing (LISTED), by `cloudsnap list` or the daily garbage collection.

--check prints one line for each problem, also for volumes that no schedule backs up, and exits with 1 if \
there is one.

Examples:
  blockctl status
  blockctl status --check
  blockctl -j status";

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print problems only; exit with 1 if there is one
    #[arg(long)]
    pub check: bool,
}

pub async fn run(context: &Context<'_>, args: &StatusArgs) -> Exit {
    let client = &context.client;
    let status = client.call(operations::GET_STATUS, &()).await?;
    let known = Known::load(context, &status).await?;
    let now = Timestamp::now();
    let protections = Protection::load(context, &known, now).await?;
    let mut problems = problems(&known, now);
    problems.extend(missed(&protections));
    if args.check {
        problems.extend(unprotected(&protections));
    }
    let exit = if args.check && !problems.is_empty() { EXIT_FAILED } else { EXIT_DONE };
    let volume_space: Vec<VolumeSpace> = known.volumes.iter().map(VolumeSpace::of).collect();
    if context.output.is_json() {
        let status = Status { problems: Vec::new(), ..status };
        context.output.document(&Health { status, problems, protection: protections, volume_space })?;
        return Ok(exit);
    }
    if args.check {
        for problem in &problems {
            context.output.hanging("", &format!("{}: {}", problem.cause, problem.action), 2)?;
        }
        if problems.is_empty() {
            context.output.line("no problems")?;
        }
        return Ok(exit);
    }
    let mut facts = facts(&status);
    facts.add(
        "Health",
        match problems.len() {
            0 => "no problems".to_owned(),
            several => counted(several as u64, "problem"),
        },
    );
    context.output.facts(&facts)?;
    for problem in &problems {
        context.output.hanging("- ", &problem.cause, 2)?;
        context.output.hanging("    ", &problem.action, 4)?;
    }
    let tables =
        [table(&protections, now), volume_table(&volume_space), location_table(&status.locations, now)];
    for table in tables.iter().filter(|table| !table.is_empty()) {
        context.output.line("")?;
        context.output.table(table)?;
    }
    Ok(exit)
}

/// Formats the time in which the background verification reads everything.
pub fn reading_time(plan: &VerificationPlan) -> String {
    let of = || {
        format!(
            "{} of {}",
            counted(plan.pack_count, "pack"),
            counted(plan.cloud_snapshot_count, "known cloud snapshot")
        )
    };
    match (plan.bytes_per_day, plan.pack_count) {
        (0, _) => "off (verify_bytes_per_day is 0)".to_owned(),
        (_, 0) => "no packs to read".to_owned(),
        _ => format!("all {} within {}", of(), counted(plan.period_days, "day")),
    }
}

fn facts(status: &Status) -> Facts {
    let counts = &status.counts;
    let volumes = match counts.volumes_failed {
        0 => counts.volumes.to_string(),
        failed => format!("{} ({failed} failed)", counts.volumes),
    };
    let mut facts = Facts::default();
    facts
        .add("Version", &status.version)
        .add("Cluster", status.cluster_id)
        .add("Node", &status.node)
        .add("Data directory", status.data_dir.display());
    if let Some(space) = status.data_space {
        let (free, total) = (ByteSize::from_bytes(space.free_bytes), ByteSize::from_bytes(space.total_bytes));
        facts.add("Free space", format!("{free} of {total}"));
    }
    for uri in &status.nbd {
        facts.add("NBD", uri);
    }
    if let Some(control) = &status.control {
        facts.add("Control", format!("https://{control}"));
    }
    facts
        .add("Uptime", format_duration(status.uptime_seconds as f64))
        .add("Volumes", format!("{volumes}, {}", counted(counts.connections, "connection")))
        .add("Snapshots", counts.snapshots)
        .add("Credentials", counts.credentials)
        .add("Active tasks", counts.tasks_active);
    let verification = status.verification.as_ref().map(reading_time);
    facts.add("Verification", verification.unwrap_or_else(|| "not planned yet".to_owned()));
    for hook in &status.webhooks {
        facts.add(
            "Webhook",
            format!(
                "{} at {}: {} delivered, {} waiting",
                hook.name, hook.origin, hook.delivered, hook.waiting
            ),
        );
    }
    facts
}
