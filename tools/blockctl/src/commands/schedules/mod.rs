//! `blockctl cloudsnap schedules …`, `cloudsnap history` and `sched-policy …`

pub mod args;
pub mod drills;
mod listed;
pub mod retention_args;
mod tables;
mod update;

use crate::{
    commands::filters::volume_or_group,
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    table::{Width, or_dash},
    wait::follow,
};
use args::{
    CreateArgs, DeleteArgs, DeletePolicyArgs, HistoryArgs, PolicyArgs, PolicyCommand, RunNowArgs,
    ScheduleArg, ScheduledArgs, SchedulesCommand,
};
use blockd_api::{
    ApiError, ErrorCode, Labels, VolumeRef, first_names, format_time, operations,
    schedules::{
        CreateSchedule, ListRuns, MAX_HISTORY, Policy, PolicyName, Rule, Run, RunSchedule, RunState,
        Schedule, ScheduleList, Selector, UpdatePolicy, UpdateSchedule,
    },
};
use blockd_schedule::{Jitter, Retention, Zone};
use std::time::Duration;
use tables::{Names, history_table, policy_table};
pub use tables::{called, kept, selected};
use tokio::time::sleep;
use uuid::Uuid;

/// Default number of kept backups.
const DEFAULT_MAX: u32 = 7;
/// Maximum number of runs searched for the awaited one.
const MAX_RUNS: u32 = 1_000;
/// Poll interval of an awaited run.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Kind of the schedules that a command is about.
#[derive(Clone, Copy, Debug)]
enum Of {
    Backups,
    Drills,
}

impl Of {
    async fn list(self, context: &Context<'_>) -> Result<ScheduleList, Failure> {
        Ok(match self {
            Self::Backups => context.client.call(operations::LIST_SCHEDULES, &()).await?,
            Self::Drills => context.client.call(operations::LIST_DRILL_SCHEDULES, &()).await?,
        })
    }

    /// Returns its commands.
    const fn command(self) -> &'static str {
        match self {
            Self::Backups => "cloudsnap schedules",
            Self::Drills => "cloudsnap drill schedules",
        }
    }

    /// Returns the name in results.
    const fn title(self) -> &'static str {
        match self {
            Self::Backups => "Cloudsnap schedule",
            Self::Drills => "Drill schedule",
        }
    }
}

pub async fn run(context: &Context<'_>, command: SchedulesCommand) -> Exit {
    match command {
        SchedulesCommand::Create(args) => create(context, *args).await,
        SchedulesCommand::List(args) => tables::list(context, &args).await,
        SchedulesCommand::Update(args) => update::update(context, *args).await,
        SchedulesCommand::Pause(args) => pause(context, Of::Backups, &args, true).await,
        SchedulesCommand::Resume(args) => pause(context, Of::Backups, &args, false).await,
        SchedulesCommand::RunNow(args) => run_now(context, Of::Backups, &args).await,
        SchedulesCommand::Retention(args) => {
            tables::retention(context, &find(context, Of::Backups, &args.schedule).await?).await
        }
        SchedulesCommand::Delete(args) => delete(context, Of::Backups, &args).await,
    }
}

async fn create(context: &Context<'_>, args: CreateArgs) -> Exit {
    let scheduled = &args.scheduled;
    let rules = rules_of(scheduled)?;
    let default = match (&scheduled.policy, Retention::max(DEFAULT_MAX)) {
        // A policy has its own retention.
        (None, Ok(max)) => max,
        _ => Retention::default(),
    };
    let local = args.local.as_retain();
    let nothing = args.retain.nothing().map(|flag| format!("--{flag}"));
    if let Some(flag) = nothing.or_else(|| local.nothing().map(|flag| format!("--local-{flag}"))) {
        return Err(Failure::usage(format!(
            "{flag} 0 keeps nothing: give a number from 1 on, or omit the option"
        )));
    }
    let zone = scheduled.times.zone();
    let (local, retain) = (local.retention(&zone), args.retain.retention(&zone));
    if scheduled.times.time_zone.is_some() && rules.is_empty() {
        refuse_unused_zone(scheduled.policy.as_ref(), &[retain.as_ref(), local.as_ref()])?;
    }
    if local.is_some() && scheduled.cred_id.is_empty() && (retain.is_some() || args.full) {
        return Err(Failure::usage(
            "--max, --keep-… and --full are about backups, and without --cred-id there are local snapshots only: name a location",
        ));
    }
    let request = CreateSchedule {
        retain: retain.unwrap_or(default),
        local,
        retain_at: args.keep_at.into_iter().map(|keep| keep.0).collect(),
        full: args.full,
        reupload: args.reupload,
        compression: args.compression,
        jitter_seconds: args.jitter.map(|max_s| Jitter { max_s }),
        priority: args.priority.into(),
        rule_name: args.rule,
        paused: args.paused,
        ..scheduled_request(context, args.scheduled).await?
    };
    created(context, Of::Backups, &request).await
}

fn rules_of(args: &ScheduledArgs) -> Result<Vec<Rule>, Failure> {
    args.times.rules(false).map_err(|error| Failure::usage(error.to_string()))
}

/// Returns the request of a schedule with its volumes, locations and times.
async fn scheduled_request(context: &Context<'_>, args: ScheduledArgs) -> Result<CreateSchedule, Failure> {
    let rules = rules_of(&args)?;
    let (volume, group) = match args.target {
        Some(target) => volume_or_group(context, target).await?,
        None => (args.volume, args.group),
    };
    Ok(CreateSchedule {
        name: args.name,
        selector: Selector { volume, group, label: args.label, all: args.all },
        credentials: args.cred_id,
        rules,
        policy_name: args.policy,
        ..CreateSchedule::default()
    })
}

async fn created(context: &Context<'_>, of: Of, request: &CreateSchedule) -> Exit {
    let schedule = context.client.call(operations::CREATE_SCHEDULE, request).await?;
    context.output.warn(&schedule.warnings);
    let next = or_dash(schedule.next_run_at.map(format_time));
    let (title, id) = (of.title(), schedule.schedule_id);
    context.output.tell(&schedule, || format!("{title} created successfully, UUID:{id} (next run {next})"))
}

/// Refuses a time zone for a schedule that has only the times of a policy, if no retention uses it either.
fn refuse_unused_zone(policy: Option<&PolicyName>, retentions: &[Option<&Retention>]) -> Result<(), Failure> {
    let has_days = |retain: &Retention| {
        let zone = retain.zone.clone();
        *retain != Retention { keep_last: retain.keep_last, zone, ..Retention::default() }
    };
    match policy {
        Some(policy) if !retentions.iter().flatten().any(|retain| has_days(retain)) => {
            let message =
                format!("--time-zone has no effect: the times of policy {policy} have their own time zone");
            Err(Failure::usage(message).with_hint(format!(
                "omit it, or give the policy other times: blockctl sched-policy update {policy}"
            )))
        }
        _ => Ok(()),
    }
}

/// Resolves a schedule by its name, its UUID or a prefix of it.
async fn find(context: &Context<'_>, of: Of, wanted: &str) -> Result<Uuid, Failure> {
    match Uuid::parse_str(wanted) {
        Ok(uuid) => Ok(uuid),
        Err(_) => find_in(&of.list(context).await?.list.items, wanted),
    }
}

fn find_in(list: &[Schedule], wanted: &str) -> Result<Uuid, Failure> {
    let is_named = |one: &&Schedule| one.name.as_ref().is_some_and(|name| name.as_str() == wanted);
    if let Some(named) = list.iter().find(is_named) {
        return Ok(named.schedule_id);
    }
    let prefix = wanted.to_ascii_lowercase();
    let begins = |one: &&Schedule| one.schedule_id.to_string().starts_with(&prefix);
    let found: Vec<&Schedule> = list.iter().filter(begins).collect();
    let candidates = |all: &[&Schedule]| first_names(all.iter().map(|one| called(one)));
    match found[..] {
        [only] => Ok(only.schedule_id),
        [] => {
            let message = format!("there is no schedule with the name or UUID prefix {wanted}");
            let all: Vec<&Schedule> = list.iter().collect();
            let hint = match all.is_empty() {
                true => "there are no schedules; a deleted one needs its complete UUID".to_owned(),
                false => {
                    format!("the schedules are {}; a deleted one needs its complete UUID", candidates(&all))
                }
            };
            Err(ApiError::new(ErrorCode::ScheduleNotFound, message).with_hint(hint).into())
        }
        _ => Err(Failure::usage(format!("{} schedules have a UUID that begins with {wanted}", found.len()))
            .with_hint(format!("give a longer prefix or a name: {}", candidates(&found)))),
    }
}

/// Returns the common time zone of all rules.
fn common_zone(rules: &[Rule]) -> Option<Zone> {
    let (first, others) = rules.split_first()?;
    others.iter().all(|rule| rule.when.zone == first.when.zone).then(|| first.when.zone.clone())
}

async fn pause(context: &Context<'_>, of: Of, args: &ScheduleArg, paused: bool) -> Exit {
    let uuid = find(context, of, &args.schedule).await?;
    let request = UpdateSchedule { paused: Some(paused), ..UpdateSchedule::default() };
    let schedule = context.client.call_at(operations::UPDATE_SCHEDULE, &uuid, &request).await?;
    let done = if paused { "paused" } else { "resumed" };
    context.output.tell(&schedule, || format!("{} {done} successfully", of.title()))
}

async fn run_now(context: &Context<'_>, of: Of, args: &RunNowArgs) -> Exit {
    let uuid = find(context, of, &args.target.schedule).await?;
    let mut list = context.client.call_at(operations::RUN_SCHEDULE, &uuid, &RunSchedule::default()).await?;
    let mut exit = EXIT_DONE;
    if args.wait.wait {
        for run in &mut list.items {
            *run = ended(context, run.clone()).await?;
            if matches!(run.state, RunState::Failed | RunState::Skipped | RunState::Retrying) {
                exit = EXIT_FAILED;
            }
        }
    }
    let names = Names::load(context).await?;
    context.output.show(&list, || history_table(&list.items, &names, Width::Narrow))?;
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

async fn delete(context: &Context<'_>, of: Of, args: &DeleteArgs) -> Exit {
    let wanted = &args.target.schedule;
    let list = of.list(context).await?.list.items;
    let uuid = Uuid::parse_str(wanted).or_else(|_| find_in(&list, wanted))?;
    let found = list.iter().find(|one| one.schedule_id == uuid);
    let is_name = found.is_some_and(|one| one.name.as_ref().is_some_and(|name| name.as_str() == wanted));
    let schedule = found.map_or_else(
        // An unreadable one.
        || uuid.to_string(),
        |one| format!("{} ({})", called(one), selected(&one.selector)),
    );
    if !is_name && Uuid::parse_str(wanted).is_err() {
        return Err(Failure::usage(format!(
            "a deletion needs the name or the complete UUID of the schedule, not {wanted}"
        ))
        .with_hint(format!("schedule {schedule} has the UUID {uuid}")));
    }
    let rest = match of {
        Of::Backups => "its backups stay and are no longer expired",
        Of::Drills => "the results of its drills stay",
    };
    let consequence = format!("Schedule {schedule} with the UUID {uuid} is deleted; {rest}.");
    args.yes.confirm(context.output, &consequence)?;
    let deleted = context.client.call_at(operations::DELETE_SCHEDULE, &uuid, &()).await?;
    context.output.tell(&deleted, || format!("{} {schedule} deleted successfully", of.title()))
}

/// `cloudsnap history`
pub async fn history(context: &Context<'_>, args: HistoryArgs) -> Exit {
    let names = Names::load(context).await?;
    let is_prefix = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let schedule = match args.uuid.as_deref().map(|text| (text, names.schedule_named(text))) {
        Some((_, Some(named))) => Some(named),
        // The daemon knows the ids of deleted schedules.
        Some((text, None)) if !is_prefix(text) => Some(match find(context, Of::Drills, text).await {
            Ok(of_drills) => of_drills,
            Err(_) => find(context, Of::Backups, text).await?,
        }),
        _ => None,
    };
    // The name may have been that of a former volume.
    let (volume, name) = match args.src {
        Some(VolumeRef::Name(name)) => (None, Some(name)),
        id => (id, None),
    };
    let is_filtered = args.status.is_some() || args.filter.is_filtered() || name.is_some();
    let max = if is_filtered { Some(MAX_HISTORY) } else { args.max };
    let schedule_prefix = args.uuid.filter(|_| schedule.is_none());
    let query = ListRuns { schedule_id: schedule, schedule_id_prefix: schedule_prefix, volume, max };
    let mut list = context.client.call(operations::LIST_RUNS, &query).await?;
    if let Some(name) = name {
        let wanted = VolumeRef::Name(name.clone());
        let found = context.client.call_at(operations::GET_VOLUME, &wanted, &()).await;
        let id = found.as_ref().ok().map(|volume| volume.volume_id);
        let is_of =
            |run: &Run| run.volume_name.as_ref() == Some(&name) || (id.is_some() && run.volume_id == id);
        list.items.retain(is_of);
        if list.items.is_empty() {
            found?;
        }
    }
    list.items.retain(|run| args.status.is_none_or(|state| run.state == state));
    args.filter.apply(context, &mut list.items, args.max).await?;
    let width = args.width.width();
    context.output.list(&list, "runs", || history_table(&list.items, &names, width))
}

/// `sched-policy …`
pub async fn policy(context: &Context<'_>, command: PolicyCommand) -> Exit {
    match command {
        PolicyCommand::Create(args) => {
            let policy = context
                .client
                .call(
                    operations::CREATE_POLICY,
                    &Policy { rules: rules(&args)?, name: args.name, labels: Labels::default() },
                )
                .await?;
            context.output.tell(&policy, || format!("Schedule policy {} created successfully", policy.name))
        }
        PolicyCommand::Update(args) => {
            let (name, given) = (&args.policy.name, rules(&args.policy)?);
            let rules = match args.replace {
                true => given,
                false => {
                    let policy = context.client.call_at(operations::GET_POLICY, name, &()).await?;
                    merged(policy.rules, given)?
                }
            };
            let request = UpdatePolicy { rules, labels: None };
            let policy = context.client.call_at(operations::UPDATE_POLICY, name, &request).await?;
            if context.output.is_json() {
                return context.output.document(&policy);
            }
            context.output.line(format!("Schedule policy {} updated successfully", policy.name))?;
            context.output.table(&policy_table(std::slice::from_ref(&policy)))
        }
        PolicyCommand::List(filter) => {
            let mut list = context.client.call(operations::LIST_POLICIES, &()).await?;
            filter.apply(context, &mut list.items, None).await?;
            context.output.list(&list, "schedule policies", || policy_table(&list.items))
        }
        PolicyCommand::Inspect(args) => {
            let policy = context.client.call_at(operations::GET_POLICY, &args.name, &()).await?;
            context.output.show(&policy, || policy_table(std::slice::from_ref(&policy)))
        }
        PolicyCommand::Delete(args) => delete_policy(context, &args).await,
    }
}

async fn delete_policy(context: &Context<'_>, args: &DeletePolicyArgs) -> Exit {
    let name = &args.policy.name;
    if args.yes.must_ask() {
        let policy = context.client.call_at(operations::GET_POLICY, name, &()).await?;
        let rules: Vec<String> = policy.rules.iter().map(|rule| rule.when.to_string()).collect();
        let consequence = format!("Schedule policy {name} ({}) is deleted.", rules.join(", "));
        args.yes.confirm(context.output, &consequence)?;
    }
    let deleted = context.client.call_at(operations::DELETE_POLICY, name, &()).await?;
    context.output.tell(&deleted, || format!("Schedule policy {name} deleted successfully"))
}

fn rules(args: &PolicyArgs) -> Result<Vec<Rule>, Failure> {
    args.times.rules(true).map_err(|error| Failure::usage(error.to_string()))
}

/// Replaces the rules of the given kinds. A rule without retention takes that of the replaced ones.
///
/// # Errors
/// The replaced ones have different retentions.
fn merged(old: Vec<Rule>, given: Vec<Rule>) -> Result<Vec<Rule>, Failure> {
    let kind = |rule: &Rule| std::mem::discriminant(&rule.when.when);
    let replaced: Vec<_> = given.iter().map(kind).collect();
    let with_retention = |rule: Rule| {
        let mut same_kind = old.iter().filter(|old| kind(old) == kind(&rule));
        let Some(first) = same_kind.next().filter(|_| rule.retain.is_none()) else { return Ok(rule) };
        if same_kind.all(|other| other.retain == first.retain) {
            return Ok(Rule { retain: first.retain.clone(), ..rule });
        }
        Err(Failure::usage(format!("the rules that {} replaces have different retentions", rule.when))
            .with_hint("give the number to keep after the time, such as 21:00,7"))
    };
    let given = given.into_iter().map(with_retention).collect::<Result<Vec<_>, _>>()?;
    Ok(old.into_iter().filter(|rule| !replaced.contains(&kind(rule))).chain(given).collect())
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
        let kept = merged(old, rules(&[("daily @23:00", None)])).unwrap();
        assert_eq!(kept, rules(&[("weekly Sunday@03:00", Some(5)), ("daily @23:00", Some(7))]));

        let several = [("daily @09:00", Some(3)), ("daily @21:00", Some(7))];
        let error = merged(rules(&several), rules(&[("daily @23:00", None)])).unwrap_err();
        assert!(error.to_string().contains("daily @23:00 replaces have different retentions"), "{error}");
        let given = [("daily @23:00", Some(9))];
        assert_eq!(merged(rules(&several), rules(&given)).unwrap(), rules(&given));
    }
}
