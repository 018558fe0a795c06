//! Changes of schedules.

use super::{
    Of,
    args::{ScheduleArg, UpdateArgs},
    common_zone, find, refuse_unused_zone,
    retention_args::TimeArgs,
};
use crate::{
    failure::{Exit, Failure},
    output::Context,
    table::or_dash,
};
use blockd_api::{
    ApiError, ErrorCode, format_time, operations,
    schedules::{Rule, Schedule, UpdateSchedule},
};
use blockd_schedule::{Jitter, Retention, Zone};

pub(super) async fn update(context: &Context<'_>, args: UpdateArgs) -> Exit {
    let now = current(context, Of::Backups, &args.target).await?;
    let rules = updated_rules(&args.times, &now)?;
    let mut retain = args.retain.patch(&now.retain);
    let given = args.local.as_retain();
    let local = match &now.local {
        _ if args.no_local => Some(None),
        Some(now) => given.patch(now).map(Some),
        None => given.retention(&now.retain.zone).map(Some),
    };
    // A retention without numbers would keep everything.
    let all = |retain: &Option<Retention>| retain.as_ref().is_some_and(Retention::keeps_all);
    if (all(&retain) && !args.retain.keep_all) || (all(&local.clone().flatten()) && !given.keep_all) {
        return Err(Failure::usage(
            "this would remove the last retention number: give another one, or --keep-all (--local-keep-all)",
        ));
    }
    if let Some(zone) = &args.times.time_zone {
        if rules.is_empty() && now.rules.is_empty() {
            let local = local.clone().flatten().or_else(|| now.local.clone());
            let retain = retain.as_ref().unwrap_or(&now.retain);
            refuse_unused_zone(
                args.policy.as_ref().or(now.policy_name.as_ref()),
                &[Some(retain), local.as_ref()],
            )?;
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
        reupload: args.reupload,
        compression: if args.location_compression { Some(None) } else { args.compression.map(Some) },
        jitter_seconds: args.jitter.map(|max_s| Some(Jitter { max_s })),
        priority: args.priority.map(Into::into),
        rule_name: if args.no_rule { Some(None) } else { args.rule.map(Some) },
        labels: None,
        drill: None,
        paused: None,
    };
    if request == UpdateSchedule::default() {
        return Err(Failure::usage(
            "no changes given: give times, --policy, --max, --keep-…, --local-keep-…, --keep-at, --full, --reupload, --compression, --jitter, --priority or --rule",
        ));
    }
    updated(context, Of::Backups, &now, &request).await
}

/// Returns the schedule that an argument names.
pub(super) async fn current(
    context: &Context<'_>,
    of: Of,
    target: &ScheduleArg,
) -> Result<Schedule, Failure> {
    let uuid = find(context, of, &target.schedule).await?;
    let found = of.list(context).await?.list.items.into_iter().find(|schedule| schedule.schedule_id == uuid);
    found.ok_or_else(|| {
        let message = format!("schedule {uuid} does not exist or is unreadable");
        let hint = format!("`blockctl {} list` shows the schedules", of.command());
        ApiError::new(ErrorCode::ScheduleNotFound, message).with_hint(hint).into()
    })
}

/// Returns the new rules of a schedule, empty without a change.
pub(super) fn updated_rules(times: &TimeArgs, now: &Schedule) -> Result<Vec<Rule>, Failure> {
    let zone = times.time_zone.clone().or_else(|| common_zone(&now.rules));
    let rules = times.rules_in(&zone.unwrap_or_else(Zone::utc), false);
    let mut rules = rules.map_err(|error| Failure::usage(error.to_string()))?;
    if let Some(zone) = &times.time_zone
        && rules.is_empty()
        && now.rules.iter().any(|rule| rule.when.zone != *zone)
    {
        // A time zone alone moves the existing times.
        rules.clone_from(&now.rules);
        rules.iter_mut().for_each(|rule| rule.when.zone = zone.clone());
    }
    Ok(rules)
}

/// Changes a schedule.
pub(super) async fn updated(context: &Context<'_>, of: Of, now: &Schedule, request: &UpdateSchedule) -> Exit {
    let schedule = context.client.call_at(operations::UPDATE_SCHEDULE, &now.schedule_id, request).await?;
    let next = or_dash(schedule.next_run_at.map(format_time));
    context.output.tell(&schedule, || {
        format!("{} updated successfully: {} (next run {next})", of.title(), schedule.schedule)
    })
}
