//! `blockctl cloudsnap schedules …`, `cloudsnap history` and `sched-policy …`

pub mod args;
pub mod retention_args;

use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    table::{Table, or_dash},
    wait::follow,
};
use args::{
    CreateArgs, HistoryArgs, PolicyArgs, PolicyCommand, RunNowArgs, SchedulesCommand, UpdateArgs, UuidArg,
};
use blockd_api::{
    ApiError, ErrorCode,
    credentials::Credential,
    format_time, operations,
    schedules::{
        CopyState, CreateSchedule, ListRuns, Policy, Rule, Run, RunState, Schedule, SelectedVolumes,
        Selector, UpdatePolicy, UpdateSchedule,
    },
};
use blockd_schedule::{Jitter, Retention, Zone};
use std::time::Duration;
use tokio::time::sleep;
use uuid::Uuid;

/// Default number of kept backups.
const DEFAULT_MAX: u32 = 7;
/// Maximum number of runs searched for the awaited one.
const MAX_RUNS: u32 = 1_000;
/// Poll interval of an awaited run.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub async fn run(context: &Context<'_>, command: SchedulesCommand) -> Exit {
    match command {
        SchedulesCommand::Create(args) => create(context, *args).await,
        SchedulesCommand::List => list(context).await,
        SchedulesCommand::Update(args) => update(context, *args).await,
        SchedulesCommand::Pause(args) => pause(context, &args, true).await,
        SchedulesCommand::Resume(args) => pause(context, &args, false).await,
        SchedulesCommand::RunNow(args) => run_now(context, &args).await,
        SchedulesCommand::Retention(args) => retention(context, &args).await,
        SchedulesCommand::Delete(args) => delete(context, &args).await,
    }
}

async fn create(context: &Context<'_>, args: CreateArgs) -> Exit {
    let rules = args.times.rules(false).map_err(|error| Failure::usage(error.to_string()))?;
    let default = match (&args.policy, Retention::max(DEFAULT_MAX)) {
        // A policy has its own retention.
        (None, Ok(max)) => max,
        _ => Retention::default(),
    };
    let nothing = args.retain.nothing().map(|flag| format!("--{flag}"));
    if let Some(flag) = nothing.or_else(|| args.local.nothing().map(|flag| format!("--local-{flag}"))) {
        return Err(Failure::usage(format!(
            "{flag} 0 keeps nothing: give a number from 1 on, or omit the option"
        )));
    }
    let zone = args.times.zone();
    let (local, retain) = (args.local.retention(&zone), args.retain.retention(&zone));
    if local.is_some() && args.cred_id.is_empty() && (retain.is_some() || args.full) {
        return Err(Failure::usage(
            "--max, --keep-… and --full are about backups, and without --cred-id there are local snapshots only: name a location",
        ));
    }
    let request = CreateSchedule {
        name: args.name.clone(),
        selector: Selector { volume: args.volume(), group: args.group, label: args.label, all: args.all },
        credentials: args.cred_id,
        rules,
        policy_name: args.policy,
        retain: retain.unwrap_or(default),
        local,
        retain_at: args.keep_at.into_iter().map(|keep| keep.0).collect(),
        full: args.full,
        jitter_seconds: Jitter { max_s: args.jitter },
        priority: args.priority.into(),
        rule_name: args.rule,
        paused: args.paused,
    };
    let schedule = context.client.call(operations::CREATE_SCHEDULE, &request).await?;
    context.output.warn(&schedule.warnings);
    let next = or_dash(schedule.next_run_at.map(format_time));
    let line =
        format!("Cloudsnap schedule created successfully, UUID:{} (next run {next})", schedule.schedule_id);
    context.output.tell(&schedule, || line)
}

fn selector(selector: &SelectedVolumes) -> String {
    match selector {
        SelectedVolumes { volume_name: Some(name), .. } => name.to_string(),
        SelectedVolumes { volume_id: Some(id), .. } => id.to_string(),
        SelectedVolumes { group: Some(group), .. } => format!("group {group}"),
        SelectedVolumes { label: Some(label), .. } => format!("label {label}"),
        SelectedVolumes { all: true, .. } => "all volumes".to_owned(),
        _ => "-".to_owned(),
    }
}

/// Names of backup locations.
struct Places(Vec<Credential>);

impl Places {
    async fn load(context: &Context<'_>) -> Result<Self, Failure> {
        Ok(Self(context.client.call(operations::LIST_CREDENTIALS, &()).await?.items))
    }

    /// Returns the name of a location, or its id if it was deleted; `None` is this host.
    fn name(&self, credential: Option<Uuid>) -> String {
        let Some(uuid) = credential else { return "local".to_owned() };
        let found = self.0.iter().find(|one| one.credential_id == uuid);
        found.map_or_else(|| uuid.to_string(), |one| one.name.to_string())
    }
}

/// Formats each copy: number, own retention, and state of the last run unless done.
fn copies(schedule: &Schedule, places: &Places) -> String {
    let copy = |copy: &CopyState| {
        let is_own = copy.retain != schedule.retain;
        let of = if is_own { format!(" of {}", copy.retain) } else { String::new() };
        let state = copy.last_state.filter(|state| !matches!(state, RunState::Done | RunState::Expired));
        let state = state.map_or_else(String::new, |state| format!(" ({state})"));
        format!("{}: {}{of}{state}", places.name(copy.credential_id), copy.kept)
    };
    let all: Vec<String> = schedule.copies.iter().map(copy).collect();
    or_dash((!all.is_empty()).then(|| all.join(", ")))
}

/// Formats a retention briefly.
fn shortly(retain: &Retention) -> String {
    let only_max =
        Retention { keep_last: retain.keep_last, zone: retain.zone.clone(), ..Retention::default() };
    if !retain.keeps_all() && *retain == only_max { retain.keep_last.to_string() } else { retain.to_string() }
}

/// Formats the retention of a schedule, or those of its policy's rules.
pub fn kept(schedule: &Schedule, policies: &[Policy]) -> String {
    let policy = policies.iter().find(|policy| Some(&policy.name) == schedule.policy_name.as_ref());
    let rules = policy.map_or(&[][..], |policy| policy.rules.as_slice()).iter().chain(&schedule.rules);
    let own: Vec<Option<&Retention>> = rules.map(|rule| rule.retain.as_ref()).collect();
    let says = shortly(&schedule.retain);
    if own.iter().all(Option::is_none) {
        return says;
    }
    // Rules without a retention use the schedule's.
    let each = own.iter().map(|retain| retain.map_or_else(|| says.clone(), shortly));
    let by = if policy.is_some() { "by policy" } else { "by rule" };
    format!("{} {by}", each.collect::<Vec<_>>().join("/"))
}

async fn list(context: &Context<'_>) -> Exit {
    let list = context.client.call(operations::LIST_SCHEDULES, &()).await?;
    let places = Places::load(context).await?;
    let policies =
        match list.list.items.iter().any(|one| one.policy_name.is_some()) && !context.output.is_json() {
            true => context.client.call(operations::LIST_POLICIES, &()).await?.items,
            false => Vec::new(),
        };
    context.output.show(&list, || {
        let rows = list.list.items.iter().map(|schedule| {
            [
                schedule.schedule_id.to_string(),
                selector(&schedule.selector),
                kept(schedule, &policies),
                schedule.full.to_string(),
                schedule.schedule.clone(),
                or_dash(schedule.policy_name.as_ref()),
                or_dash(schedule.next_run_at.map(format_time)),
                or_dash(schedule.last_run_at.map(format_time)),
                if schedule.paused { "paused" } else { "active" }.to_owned(),
                copies(schedule, &places),
            ]
        });
        let unreadable = list.unreadable.iter().map(|schedule| {
            let mut row: [String; 10] = std::array::from_fn(|_| "-".to_owned());
            row[0].clone_from(&schedule.schedule_id);
            row[8] = format!("unreadable: {}", schedule.cause);
            row
        });
        Table::of(
            "UUID|VOLUMEID|MAX-BACKUPS|FULL|SCHEDULE|POLICY|NEXT-RUN|LAST-RUN|STATUS|COPIES",
            rows.chain(unreadable),
        )
    })
}

/// Resolves a schedule by its id prefix.
async fn find(context: &Context<'_>, wanted: &UuidArg) -> Result<Uuid, Failure> {
    if let Ok(uuid) = Uuid::parse_str(wanted.uuid()) {
        return Ok(uuid);
    }
    let list = context.client.call(operations::LIST_SCHEDULES, &()).await?;
    let begins = |schedule: &&Schedule| schedule.schedule_id.to_string().starts_with(wanted.uuid());
    let found: Vec<Uuid> =
        list.list.items.iter().filter(begins).map(|schedule| schedule.schedule_id).collect();
    match found[..] {
        [uuid] => Ok(uuid),
        [] => {
            let message = format!(
                "there is no schedule whose UUID begins with {} (for a deleted schedule give the complete UUID)",
                wanted.uuid()
            );
            Err(ApiError::new(ErrorCode::ScheduleNotFound, message).into())
        }
        _ => Err(Failure::usage(format!(
            "{} schedules have a UUID that begins with {}: give a longer prefix",
            found.len(),
            wanted.uuid()
        ))),
    }
}

/// Returns the common time zone of all rules.
fn common_zone(rules: &[Rule]) -> Option<Zone> {
    let (first, others) = rules.split_first()?;
    others.iter().all(|rule| rule.when.zone == first.when.zone).then(|| first.when.zone.clone())
}

async fn update(context: &Context<'_>, args: UpdateArgs) -> Exit {
    let uuid = find(context, &args.uuid).await?;
    let list = context.client.call(operations::LIST_SCHEDULES, &()).await?;
    let Some(now) = list.list.items.into_iter().find(|schedule| schedule.schedule_id == uuid) else {
        let message = format!("schedule {uuid} does not exist or is unreadable");
        return Err(ApiError::new(ErrorCode::ScheduleNotFound, message).into());
    };
    let zone = args.times.time_zone.clone().or_else(|| common_zone(&now.rules));
    let usage = |error: blockd_schedule::ScheduleError| Failure::usage(error.to_string());
    let mut rules = args.times.rules_in(&zone.unwrap_or_else(Zone::utc), false).map_err(usage)?;
    let mut retain = args.retain.patch(&now.retain);
    let local = match args.no_local {
        true => Some(None),
        false => args.local.patch(now.local.as_ref(), &now.retain.zone).map(Some),
    };
    // A retention without numbers would keep everything.
    let all = |retain: &Option<Retention>| retain.as_ref().is_some_and(Retention::keeps_all);
    if (all(&retain) && !args.retain.keep_all)
        || (all(&local.clone().flatten()) && !args.local.local_keep_all)
    {
        return Err(Failure::usage(
            "this would remove the last retention number: give another one, or --keep-all (--local-keep-all)",
        ));
    }
    if let Some(zone) = &args.times.time_zone {
        // A time zone alone moves the existing times.
        if rules.is_empty() && now.rules.iter().any(|rule| rule.when.zone != *zone) {
            rules = now.rules.clone();
            rules.iter_mut().for_each(|rule| rule.when.zone = zone.clone());
        }
        if now.retain.zone != *zone {
            retain = Some(Retention { zone: zone.clone(), ..retain.unwrap_or_else(|| now.retain.clone()) });
        }
    }
    let request = UpdateSchedule {
        rules: (!rules.is_empty()).then_some(rules),
        policy_name: args.policy,
        retain,
        local,
        retain_at: (!args.keep_at.is_empty()).then(|| args.keep_at.into_iter().map(|keep| keep.0).collect()),
        full: args.full,
        jitter_seconds: args.jitter.map(|max_s| Jitter { max_s }),
        priority: args.priority.map(Into::into),
        rule_name: if args.no_rule { Some(None) } else { args.rule.map(Some) },
        paused: None,
    };
    if request == UpdateSchedule::default() {
        return Err(Failure::usage(
            "no changes given: give times, --policy, --max, --keep-…, --local-keep-…, --keep-at, --full, --jitter, --priority or --rule",
        ));
    }
    let schedule = context.client.call_at(operations::UPDATE_SCHEDULE, &uuid, &request).await?;
    context.output.tell(&schedule, || "Cloudsnap schedule updated successfully")
}

async fn pause(context: &Context<'_>, args: &UuidArg, paused: bool) -> Exit {
    let uuid = find(context, args).await?;
    let request = UpdateSchedule { paused: Some(paused), ..UpdateSchedule::default() };
    let schedule = context.client.call_at(operations::UPDATE_SCHEDULE, &uuid, &request).await?;
    let done = if paused { "paused" } else { "resumed" };
    context.output.tell(&schedule, || format!("Cloudsnap schedule {done} successfully"))
}

async fn run_now(context: &Context<'_>, args: &RunNowArgs) -> Exit {
    let uuid = find(context, &args.uuid).await?;
    let mut list = context.client.call_at(operations::RUN_SCHEDULE, &uuid, &()).await?;
    let mut exit = EXIT_DONE;
    if args.wait.wait {
        for run in &mut list.items {
            *run = ended(context, run.clone()).await?;
            if matches!(run.state, RunState::Failed | RunState::Skipped) {
                exit = EXIT_FAILED;
            }
        }
    }
    let places = Places::load(context).await?;
    context.output.show(&list, || history_table(&list.items, &places))?;
    Ok(exit)
}

/// Waits for the end of a run.
pub async fn ended(context: &Context<'_>, mut run: Run) -> Result<Run, Failure> {
    while matches!(run.state, RunState::Queued | RunState::Active) {
        match run.task_id {
            Some(task) if run.state == RunState::Active => {
                follow(&context.client, task, context.output).await?;
            }
            _ => sleep(LOOK_AGAIN).await,
        }
        let query =
            ListRuns { schedule_id: Some(run.schedule_id), max: Some(MAX_RUNS), ..ListRuns::default() };
        let runs = context.client.call(operations::LIST_RUNS, &query).await?.items;
        let now = runs.into_iter().find(|one| one.run_id == run.run_id);
        let Some(now) = now else { break };
        if now.state == run.state && now.task_id.is_some() {
            // The task has ended; the run follows shortly.
            sleep(LOOK_AGAIN).await;
        }
        run = now;
    }
    Ok(run)
}

async fn delete(context: &Context<'_>, args: &UuidArg) -> Exit {
    let uuid = find(context, args).await?;
    let deleted = context.client.call_at(operations::DELETE_SCHEDULE, &uuid, &()).await?;
    context.output.tell(&deleted, || "Cloudsnap schedule deleted successfully")
}

async fn retention(context: &Context<'_>, args: &UuidArg) -> Exit {
    let uuid = find(context, args).await?;
    let plan = context.client.call_at(operations::PLAN_RETENTION, &uuid, &()).await?;
    let places = Places::load(context).await?;
    context.output.show(&plan, || {
        let snapshots = plan.snapshots.iter().map(|judged| {
            [
                or_dash(judged.snapshot_name.as_ref()),
                or_dash(judged.volume_name.as_ref()),
                format_time(judged.created_at),
                places.name(None),
                judged.verdict.to_string(),
            ]
        });
        let cloudsnaps = plan.cloud_snapshots.iter().map(|judged| {
            let gone = judged.former_rule.as_ref().map_or_else(String::new, |rule| {
                format!(" (by the retention of {rule}, removed from the schedule)")
            });
            [
                judged.cloud_snapshot_id.to_string(),
                or_dash(judged.volume_name.as_ref()),
                format_time(judged.created_at),
                places.name(Some(judged.credential_id)),
                format!("{}{gone}", judged.verdict),
            ]
        });
        Table::of("CLOUD-SNAP-ID|VOLUME|CREATED-TIME|COPY|VERDICT", snapshots.chain(cloudsnaps))
    })
}

fn history_table(runs: &[Run], places: &Places) -> Table {
    let rows = runs.iter().map(|run| {
        let made = run
            .cloud_snapshot_id
            .map(|id| id.to_string())
            .or_else(|| run.snapshot_id.map(|id| id.to_string()));
        let place = (run.local || run.credential_id.is_some()).then(|| places.name(run.credential_id));
        [
            run.run_id.to_string(),
            or_dash(run.when.as_ref()),
            or_dash(run.volume_name.as_ref()),
            format_time(run.planned_at),
            format_time(run.started_at),
            run.missed.to_string(),
            run.state.to_string(),
            or_dash(made),
            or_dash(place),
            or_dash(run.reason.as_ref()),
        ]
    });
    Table::of("RUN|SCHEDULE|VOLUME|SCHEDULED-TIME|STARTED-TIME|MISSED|STATUS|CLOUD-SNAP-ID|COPY|REASON", rows)
}

/// `cloudsnap history`
pub async fn history(context: &Context<'_>, args: HistoryArgs) -> Exit {
    let query =
        ListRuns { schedule_id: None, schedule_id_prefix: args.uuid, volume: args.src, max: args.max };
    let list = context.client.call(operations::LIST_RUNS, &query).await?;
    let places = Places::load(context).await?;
    context.output.show(&list, || history_table(&list.items, &places))
}

/// `sched-policy …`
pub async fn policy(context: &Context<'_>, command: PolicyCommand) -> Exit {
    match command {
        PolicyCommand::Create(args) => {
            let policy = context
                .client
                .call(operations::CREATE_POLICY, &Policy { rules: rules(&args)?, name: args.name })
                .await?;
            context.output.tell(&policy, || format!("Schedule policy {} created successfully", policy.name))
        }
        PolicyCommand::Update(args) => {
            let (name, given) = (&args.policy.name, rules(&args.policy)?);
            let rules = match args.replace {
                true => given,
                false => {
                    let policy = context.client.call_at(operations::GET_POLICY, name, &()).await?;
                    merged(policy.rules, given)
                }
            };
            let request = UpdatePolicy { rules };
            let policy = context.client.call_at(operations::UPDATE_POLICY, name, &request).await?;
            if context.output.is_json() {
                return context.output.document(&policy);
            }
            context.output.line(format!("Schedule policy {} updated successfully", policy.name))?;
            context.output.table(&policy_table(std::slice::from_ref(&policy)))
        }
        PolicyCommand::List => {
            let list = context.client.call(operations::LIST_POLICIES, &()).await?;
            context.output.show(&list, || policy_table(&list.items))
        }
        PolicyCommand::Inspect(args) => {
            let policy = context.client.call_at(operations::GET_POLICY, &args.name, &()).await?;
            context.output.show(&policy, || policy_table(std::slice::from_ref(&policy)))
        }
        PolicyCommand::Delete(args) => {
            let deleted = context.client.call_at(operations::DELETE_POLICY, &args.name, &()).await?;
            context.output.tell(&deleted, || format!("Schedule policy {} deleted successfully", args.name))
        }
    }
}

fn rules(args: &PolicyArgs) -> Result<Vec<Rule>, Failure> {
    args.times.rules(true).map_err(|error| Failure::usage(error.to_string()))
}

/// Replaces the rules of the given kinds. A rule without retention takes that of the replaced ones.
fn merged(old: Vec<Rule>, given: Vec<Rule>) -> Vec<Rule> {
    let kind = |rule: &Rule| std::mem::discriminant(&rule.when.when);
    let replaced: Vec<_> = given.iter().map(kind).collect();
    let given: Vec<Rule> = given
        .into_iter()
        .map(|rule| {
            let same_kind = old.iter().find(|old| kind(old) == kind(&rule));
            let retain = rule.retain.or_else(|| same_kind?.retain.clone());
            Rule { retain, ..rule }
        })
        .collect();
    old.into_iter().filter(|rule| !replaced.contains(&kind(rule))).chain(given).collect()
}

fn policy_table(policies: &[Policy]) -> Table {
    let rules = policies.iter().flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    let row = |(policy, rule): (&Policy, &Rule)| {
        [policy.name.to_string(), rule.when.to_string(), or_dash(rule.retain.as_ref())]
    };
    Table::of("NAME|SCHEDULE|RETAIN", rules.map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_update_replaces_rules_of_its_kinds_only() {
        let rules = |texts: &[(&str, Option<u32>)]| -> Vec<Rule> {
            let rule = |(when, keep): &(&str, Option<u32>)| Rule {
                when: when.parse().unwrap(),
                retain: keep.map(|keep| Retention::max(keep).unwrap()),
            };
            texts.iter().map(rule).collect()
        };
        let old = rules(&[("daily @21:00", Some(7)), ("weekly Sunday@03:00", Some(5))]);
        let merged = merged(old, rules(&[("daily @23:00", None)]));
        assert_eq!(merged, rules(&[("weekly Sunday@03:00", Some(5)), ("daily @23:00", Some(7))]));
    }
}
