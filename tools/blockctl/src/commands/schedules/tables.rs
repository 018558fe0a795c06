//! Tables of schedules, runs, retention verdicts and policies.

use super::args::ListArgs;
use crate::{
    commands::filters::VolumeFilter,
    failure::{Exit, Failure},
    hanging::cut,
    output::Context,
    short_ids::{ShortIds, ShortSnapshotIds},
    table::{Table, Width, or_dash, short_time, short_uuid},
};
use blockd_api::{
    credentials::Credential,
    operations,
    schedules::{
        CopyState, JudgedSnapshot, Policy, Rule, Run, RunState, Schedule, ScheduleList, SelectedVolumes,
    },
};
use blockd_schedule::Retention;
use uuid::Uuid;

/// Characters of the name of a local snapshot beside ids of cloud snapshots.
const SNAPSHOT_NAME_CHARS: usize = 16;

/// Names of schedules and backup locations.
pub struct Names {
    schedules: ScheduleList,
    credentials: Vec<Credential>,
}

impl Names {
    /// Returns the schedule with a name.
    pub fn schedule_named(&self, name: &str) -> Option<Uuid> {
        let is_named = |one: &&Schedule| one.name.as_ref().is_some_and(|own| own.as_str() == name);
        self.schedules.list.items.iter().find(is_named).map(|one| one.schedule_id)
    }

    pub async fn load(context: &Context<'_>) -> Result<Self, Failure> {
        Self::of(context, context.client.call(operations::LIST_SCHEDULES, &()).await?).await
    }

    pub(super) async fn of(context: &Context<'_>, schedules: ScheduleList) -> Result<Self, Failure> {
        let credentials = context.client.call(operations::LIST_CREDENTIALS, &()).await?.items;
        Ok(Self { schedules, credentials })
    }

    /// Returns the name of a location, or its short id if it was deleted; `None` is this host.
    fn location(&self, credential: Option<Uuid>) -> String {
        let Some(uuid) = credential else { return "local".to_owned() };
        let found = self.credentials.iter().find(|one| one.credential_id == uuid);
        found.map_or_else(|| short_uuid(uuid), |one| one.name.to_string())
    }

    /// Returns the locations of a schedule, separated by commas.
    pub(super) fn locations(&self, schedule: &Schedule) -> String {
        let local = schedule.local.is_some().then_some(None);
        let all = local.into_iter().chain(schedule.credential_ids.iter().copied().map(Some));
        let all: Vec<String> = all.map(|credential| self.location(credential)).collect();
        or_dash((!all.is_empty()).then(|| all.join(",")))
    }

    /// Formats each copy: number, own retention, and state of the last run unless done.
    fn copies(&self, schedule: &Schedule) -> String {
        let copy = |copy: &CopyState| {
            let is_own = copy.retain != schedule.retain;
            let of = if is_own { format!(" of {}", copy.retain) } else { String::new() };
            let state = copy.last_state.filter(|state| !matches!(state, RunState::Done | RunState::Expired));
            let state = state.map_or_else(String::new, |state| format!(" ({state})"));
            format!("{}: {}{of}{state}", self.location(copy.credential_id), copy.kept)
        };
        let all: Vec<String> = schedule.copies.iter().map(copy).collect();
        or_dash((!all.is_empty()).then(|| all.join(", ")))
    }
}

/// Returns the volumes of a schedule by name.
pub fn selected(selector: &SelectedVolumes) -> String {
    match selector {
        SelectedVolumes { volume_name: Some(name), .. } => name.to_string(),
        SelectedVolumes { volume_id: Some(id), .. } => id.to_string(),
        SelectedVolumes { group: Some(group), .. } => format!("group {group}"),
        SelectedVolumes { label: Some(label), .. } => format!("label {label}"),
        SelectedVolumes { all: true, .. } => "all volumes".to_owned(),
        _ => "-".to_owned(),
    }
}

/// Returns the name of a schedule, or its short id without one.
pub fn called(schedule: &Schedule) -> String {
    schedule.name.as_ref().map_or_else(|| short_uuid(schedule.schedule_id), ToString::to_string)
}

/// Returns the name of the schedule of a run, or its short id without one.
pub fn called_in(run: &Run) -> String {
    run.schedule_name.as_ref().map_or_else(|| short_uuid(run.schedule_id), ToString::to_string)
}

/// Formats a retention briefly.
fn shortly(retain: &Retention) -> String {
    let only_max =
        Retention { keep_last: retain.keep_last, zone: retain.zone.clone(), ..Retention::default() };
    if !retain.keeps_all() && *retain == only_max { retain.keep_last.to_string() } else { retain.to_string() }
}

/// Formats the retention of a schedule, or those of its policy's rules, each with `format`.
pub fn kept(schedule: &Schedule, policies: &[Policy], format: impl Fn(&Retention) -> String) -> String {
    let policy = policies.iter().find(|policy| Some(&policy.name) == schedule.policy_name.as_ref());
    let rules = policy.map_or(&[][..], |policy| policy.rules.as_slice()).iter().chain(&schedule.rules);
    let own: Vec<Option<&Retention>> = rules.map(|rule| rule.retain.as_ref()).collect();
    let says = format(&schedule.retain);
    if own.iter().all(Option::is_none) {
        return says;
    }
    // Rules without a retention use the schedule's.
    let each = own.iter().map(|retain| retain.map_or_else(|| says.clone(), &format));
    let by = if policy.is_some() { "by policy" } else { "by rule" };
    format!("{} {by}", each.collect::<Vec<_>>().join("/"))
}

/// `cloudsnap schedules list`
pub async fn list(context: &Context<'_>, args: &ListArgs) -> Exit {
    let volume = VolumeFilter::load(context, args.volume.as_ref()).await?;
    let is_wanted = |one: &Schedule| {
        let SelectedVolumes { volume_id, volume_name, .. } = &one.selector;
        volume.as_ref().is_none_or(|volume| volume.includes(*volume_id, volume_name.as_ref()))
    };
    let mut schedules = context.client.call(operations::LIST_SCHEDULES, &()).await?;
    schedules.list.items.retain(is_wanted);
    args.filter.apply(context, &mut schedules.list.items, None).await?;
    if context.output.is_json() {
        return context.output.document(&schedules);
    }
    let (width, names) = (args.width.width(), Names::of(context, schedules).await?);
    let needs_policies = names.schedules.list.items.iter().any(|one| one.policy_name.is_some());
    let policies = match needs_policies && width == Width::Wide {
        true => context.client.call(operations::LIST_POLICIES, &()).await?.items,
        false => Vec::new(),
    };
    context.output.list(&(), "schedules", || table(&names, &policies, width))
}

fn table(names: &Names, policies: &[Policy], width: Width) -> Table {
    let volume = |schedule: &Schedule| match schedule.selector.volume_id {
        Some(id) => id.to_string(),
        None => selected(&schedule.selector),
    };
    let mut table = Table::list(&names.schedules.list.items, width)
        .narrow("NAME", called)
        .narrow("VOLUMES", |schedule| selected(&schedule.selector))
        .wide("UUID", |schedule| schedule.schedule_id)
        .wide("VOLUMEID", volume)
        .wide("MAX-BACKUPS", |schedule| kept(schedule, policies, shortly))
        .wide("FULL", |schedule| match schedule.reupload {
            true => "reupload".to_owned(),
            false => schedule.full.to_string(),
        })
        .wide("COMPRESSION", |schedule| or_dash(schedule.compression))
        .wide("SCHEDULE", |schedule| &schedule.schedule)
        .narrow("LOCATIONS", |schedule| names.locations(schedule))
        .wide("NAME", |schedule| or_dash(schedule.name.as_ref()))
        .wide("VOLUMES", |schedule| selected(&schedule.selector))
        .wide("POLICY", |schedule| or_dash(schedule.policy_name.as_ref()))
        .both("NEXT-RUN", |schedule| or_dash(schedule.next_run_at.map(|at| width.time(at))))
        .wide("LAST-RUN", |schedule| or_dash(schedule.last_run_at.map(|at| width.time(at))))
        .wide("KEPT-AT", |schedule| names.copies(schedule))
        .both("STATUS", |schedule| if schedule.paused { "paused" } else { "active" })
        .narrow("SCHEDULE", |schedule| &schedule.schedule)
        .fit_with_text("NAME|VOLUMES|LOCATIONS");
    for schedule in &names.schedules.unreadable {
        let (id, cause) = (schedule.schedule_id.clone(), &schedule.cause);
        match width {
            Width::Narrow => table.partial_row(&[
                ("NAME", id),
                ("STATUS", "unreadable".to_owned()),
                ("SCHEDULE", cause.clone()),
            ]),
            Width::Wide => table.partial_row(&[("UUID", id), ("STATUS", format!("unreadable: {cause}"))]),
        }
    }
    table
}

/// `cloudsnap schedules retention`
pub async fn retention(context: &Context<'_>, uuid: &Uuid) -> Exit {
    let plan = context.client.call_at(operations::PLAN_RETENTION, uuid, &()).await?;
    let names = Names::load(context).await?;
    context.output.list(&plan, "backups", || {
        let short = ShortIds::new(plan.items.iter().filter_map(|judged| judged.cloud_snapshot_id));
        let name_of = |judged: &JudgedSnapshot| match judged.cloud_snapshot_id {
            Some(id) => short.of(&id),
            None => {
                or_dash(judged.snapshot_name.as_ref().map(|name| cut(name.as_str(), SNAPSHOT_NAME_CHARS)))
            }
        };
        let rows = plan.items.iter().map(|judged| {
            let gone = judged.former_rule.as_ref().map_or_else(String::new, |rule| {
                format!(" (by the retention of {rule}, removed from the schedule)")
            });
            [
                or_dash(judged.volume_name.as_ref()),
                name_of(judged),
                short_time(judged.created_at),
                names.location(judged.credential_id),
                format!("{}{gone}", judged.verdict),
            ]
        });
        Table::of("VOLUME|ID|CREATED|LOCATION|VERDICT", rows).fit("VOLUME|LOCATION").with_text()
    })
}

/// Formats runs of schedules.
pub fn history_table(runs: &[Run], names: &Names, width: Width) -> Table {
    let location = |run: &Run| {
        or_dash((run.local || run.credential_id.is_some()).then(|| names.location(run.credential_id)))
    };
    let short = ShortIds::new(runs.iter().filter_map(|run| run.cloud_snapshot_id));
    let local = ShortSnapshotIds::new(runs.iter().filter_map(|run| run.snapshot_id));
    let made = |run: &Run| match (width, run.cloud_snapshot_id, run.snapshot_id) {
        (Width::Narrow, Some(id), _) => short.of(&id),
        (Width::Narrow, None, Some(id)) => local.of(id),
        (Width::Wide, Some(id), _) => id.to_string(),
        (Width::Wide, None, id) => or_dash(id),
        // A drill makes nothing: its id is that of its task.
        (Width::Narrow, None, None) => or_dash(run.task_id.map(short_uuid)),
    };
    Table::list(runs, width)
        .wide("RUN", |run| run.run_id)
        .both("SCHEDULE", called_in)
        .wide("SCHEDULE-UUID", |run| run.schedule_id)
        .wide("RULE", |run| or_dash(run.when.as_ref()))
        .both("VOLUME", |run| or_dash(run.volume_name.as_ref()))
        .wide("SCHEDULED-TIME", |run| width.time(run.planned_at))
        .both("STARTED|STARTED-TIME", |run| width.time(run.started_at))
        .wide("MISSED", |run| run.missed)
        .both("STATUS", |run| run.state)
        .wide("CLOUD-SNAP-ID", made)
        .wide("TASK", |run| or_dash(run.task_id))
        .both("LOCATION", location)
        .narrow("ID", made)
        .both("REASON", |run| match run.retry_at {
            Some(at) => format!("resumes at {}: {}", width.time(at), or_dash(run.reason.as_ref())),
            None => or_dash(run.reason.as_ref()),
        })
        .fit_with_text("SCHEDULE|VOLUME|LOCATION")
}

/// Formats the rules of policies.
pub fn policy_table(policies: &[Policy]) -> Table {
    let rules = policies.iter().flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    let row = |(policy, rule): (&Policy, &Rule)| {
        [policy.name.to_string(), rule.when.to_string(), or_dash(rule.retain.as_ref())]
    };
    Table::of("NAME|SCHEDULE|RETAIN", rules.map(row)).fit("NAME|SCHEDULE|RETAIN")
}
