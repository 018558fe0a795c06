//! Health: problems and their remedies.

mod recent;

use crate::{
    failure::Failure,
    output::Context,
    short_ids::ShortIds,
    table::{counted, short_uuid},
};
use blockd_api::{
    anomalies::{BackupAnomaly, describe},
    events::{Event, ListEvents},
    format_time, operations,
    schedules::{ListRuns, Run, RunState, Schedule, ScheduleList},
    status::{KnownDamage, LocationSpace, Problem, ReloadFailure, Status, WebhookStatus},
    tasks::{ListTasks, Task, TaskStage},
    volumes::{ListVolumes, Volume, VolumeState},
};
use jiff::Timestamp;
use recent::{a_day_before, recent};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// Maximum number of examined runs and events.
const LOOK_BACK: u32 = 1_000;
/// Kind of the problems of damaged cloud snapshots.
pub const DAMAGE: &str = "damage";
/// Maximum number of reported damaged cloud snapshots.
const MAX_DAMAGED: usize = 20;

/// Problem with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthProblem {
    /// Kind: one of the daemon's, `anomaly`, `damage`, `volume`, `attachment`, `reload`, `schedule`, `run`,
    /// `task`, `webhook`, `event` or `protection`.
    pub kind: String,
    /// Cause.
    pub cause: String,
    /// Next action.
    pub action: String,
}

impl HealthProblem {
    /// Creates a problem.
    pub fn new(kind: &str, cause: String, action: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), cause, action: action.into() }
    }
}

/// State of a daemon as needed for its health.
#[derive(Debug, Default)]
pub struct Known {
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Schedules of backups.
    pub schedules: ScheduleList,
    /// Schedules of drills.
    pub drill_schedules: ScheduleList,
    /// Runs, newest first.
    pub runs: Vec<Run>,
    /// Tasks, newest first.
    pub tasks: Vec<Task>,
    /// Events, oldest first.
    pub events: Vec<Event>,
    /// Webhooks.
    pub webhooks: Vec<WebhookStatus>,
    /// Failed reload of the configuration.
    pub reload_failure: Option<ReloadFailure>,
    /// Problems reported by the daemon.
    pub problems: Vec<Problem>,
    /// Backup locations.
    pub locations: Vec<LocationSpace>,
    /// Cloud snapshots that are known to be damaged.
    pub damaged: Vec<KnownDamage>,
    /// Anomalies without an acknowledgement.
    pub anomalies: Vec<BackupAnomaly>,
}

impl Known {
    /// Loads the state of the daemon, whose status is known.
    ///
    /// # Errors
    /// A call fails.
    pub async fn load(context: &Context<'_>, status: &Status) -> Result<Self, Failure> {
        let client = &context.client;
        let runs = ListRuns { max: Some(LOOK_BACK), ..ListRuns::default() };
        let events = ListEvents { max: Some(LOOK_BACK), ..ListEvents::default() };
        Ok(Self {
            volumes: client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items,
            schedules: client.call(operations::LIST_SCHEDULES, &()).await?,
            drill_schedules: client.call(operations::LIST_DRILL_SCHEDULES, &()).await?,
            runs: client.call(operations::LIST_RUNS, &runs).await?.items,
            tasks: client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items,
            events: client.call(operations::LIST_EVENTS, &events).await?.items,
            webhooks: status.webhooks.clone(),
            reload_failure: status.reload_failure.clone(),
            problems: status.problems.clone(),
            locations: status.locations.clone(),
            damaged: status.damaged_cloudsnaps.clone(),
            anomalies: status.anomalies.clone(),
        })
    }

    /// Returns the schedules of each kind, with the name of their work and their commands.
    fn schedules(&self) -> [(&ScheduleList, &'static str, &'static str); 2] {
        [
            (&self.schedules, "backup", "cloudsnap schedules"),
            (&self.drill_schedules, "drill", "cloudsnap drill schedules"),
        ]
    }

    /// Returns the name of a backup location.
    pub fn location(&self, credential: Uuid) -> Option<String> {
        let found = self.locations.iter().find(|one| one.credential_id == credential);
        found.map(|one| one.credential_name.clone())
    }
}

/// Returns all problems, the worst first.
pub fn problems(known: &Known, now: Timestamp) -> Vec<HealthProblem> {
    let lines = known
        .problems
        .iter()
        .map(|problem| HealthProblem::new(&problem.kind, problem.cause.clone(), problem.action.clone()));
    let mut found: Vec<HealthProblem> = lines.chain(anomalies(known)).chain(damaged(known)).collect();
    for volume in &known.volumes {
        let name = &volume.name;
        if volume.state == VolumeState::Failed {
            let reason = volume.state_reason.as_deref().unwrap_or("unknown cause");
            found.push(HealthProblem::new(
                "volume",
                format!("volume {name} is not served: {reason}"),
                format!("blockctl volume inspect {name}; a cloud snapshot of it can be restored under another name"),
            ));
        }
        let problem = volume.attachment.as_ref().and_then(|attachment| attachment.problem.as_ref());
        if let Some(problem) = problem {
            found.push(HealthProblem::new(
                "attachment",
                format!("volume {name} has no device: {problem}"),
                format!("blockctl volume attach {name}"),
            ));
        }
    }
    if let Some(failed) = &known.reload_failure {
        found.push(HealthProblem::new(
            "reload",
            format!(
                "the changed configuration is invalid, since {}: {}",
                format_time(failed.failed_at),
                failed.cause
            ),
            "check it with blockd --check-config, then systemctl reload blockd, or send it a SIGHUP",
        ));
    }
    for (schedules, work, command) in known.schedules() {
        found.extend(unreadable_schedules(schedules, work, command));
        found.extend(overdue_schedules(schedules, work));
        // Without any volume, a selector is not mistyped.
        if !known.volumes.is_empty() {
            found.extend(idle_schedules(schedules, command));
        }
    }
    found.extend(failed_runs(known));
    found.extend(kept_tasks(known));
    found.extend(failing_webhooks(known, now));
    found.extend(recent(known, now));
    found
}

/// Returns the damaged cloud snapshots.
fn damaged(known: &Known) -> impl Iterator<Item = HealthProblem> {
    let named = known.damaged.iter().take(MAX_DAMAGED).map(|one| {
        let of = one.volume_name.as_ref().map_or_else(String::new, |volume| format!(" of volume {volume}"));
        let cause = format!(
            "cloud snapshot {}{of} at {} is damaged: found by a {} verification on {} at {}",
            one.cloud_snapshot_id,
            one.credential_name,
            one.kind,
            one.host,
            format_time(one.found_at)
        );
        HealthProblem::new(DAMAGE, cause, one.action.clone())
    });
    let more = known.damaged.len().saturating_sub(MAX_DAMAGED);
    let more = (more > 0).then(|| {
        let cause = format!("damaged beside these: {}", counted(more as u64, "cloud snapshot"));
        HealthProblem::new(DAMAGE, cause, "blockctl -j status (damagedCloudsnaps)")
    });
    named.chain(more)
}

/// Returns the anomalies without an acknowledgement.
fn anomalies(known: &Known) -> impl Iterator<Item = HealthProblem> {
    // `anomaly list` shows those of deleted volumes.
    let is_there = |one: &&BackupAnomaly| known.volumes.iter().any(|other| other.volume_id == one.volume_id);
    // A complete id is longer than a line.
    let short = ShortIds::new(known.anomalies.iter().filter_map(|one| one.last_normal_cloud_snapshot_id));
    known.anomalies.iter().filter(is_there).map(move |one| {
        let changes: Vec<_> = one.findings.iter().map(describe).collect();
        let cause = format!(
            "unusual changes of volume {} at {}: {}",
            one.volume_name,
            format_time(one.detected_at),
            changes.join("; ")
        );
        let last = one.last_normal_cloud_snapshot_id.map(|id| short.of(&id));
        let last = last.map(|id| format!("the last normal backup is {id}; "));
        let action = format!(
            "check the volume; {}then blockctl anomaly acknowledge {}",
            last.unwrap_or_default(),
            short_uuid(one.anomaly_id)
        );
        HealthProblem::new("anomaly", cause, action)
    })
}

/// Returns the display name of a schedule.
fn called(schedule: &Schedule) -> String {
    schedule.name.as_ref().map_or_else(|| schedule.schedule_id.to_string(), ToString::to_string)
}

/// Returns unreadable schedules.
fn unreadable_schedules(
    schedules: &ScheduleList,
    work: &str,
    command: &str,
) -> impl Iterator<Item = HealthProblem> {
    schedules.unreadable.iter().map(move |schedule| {
        HealthProblem::new(
            "schedule",
            format!("schedule {} makes no {work}s: {}", schedule.schedule_id, schedule.cause),
            format!("blockctl {command} delete --uuid {}, then create it again", schedule.schedule_id),
        )
    })
}

/// Returns overdue schedules.
fn overdue_schedules(schedules: &ScheduleList, work: &str) -> impl Iterator<Item = HealthProblem> {
    schedules.list.items.iter().filter_map(move |schedule| {
        let since = format_time(schedule.overdue_at?);
        Some(HealthProblem::new(
            "schedule",
            format!("schedule {} is overdue since {since}: it makes no {work}s", called(schedule)),
            "see the log of blockd for the cause",
        ))
    })
}

/// Returns schedules that select no volume, for example because of a mistyped label.
fn idle_schedules(schedules: &ScheduleList, command: &str) -> impl Iterator<Item = HealthProblem> {
    schedules.list.items.iter().filter(|schedule| schedule.without_volume).map(move |schedule| {
        HealthProblem::new(
            "schedule",
            format!("schedule {} selects no volume", called(schedule)),
            format!(
                "check its volumes with blockctl {command} list; to change them, blockctl {command} delete --uuid {}, then create it again",
                schedule.schedule_id
            ),
        )
    })
}

/// Returns failures of the newest run of each schedule, volume and location.
fn failed_runs(known: &Known) -> Vec<HealthProblem> {
    let (mut seen, mut found) = (Vec::new(), Vec::new());
    for run in &known.runs {
        let of = (run.schedule_id, run.volume_id, run.credential_id);
        // A skipped run says nothing about earlier ones.
        let tells = !matches!(run.state, RunState::Queued | RunState::Active | RunState::Skipped);
        if !tells || seen.contains(&of) {
            continue;
        }
        seen.push(of);
        let schedule = known.schedules().into_iter().find_map(|(schedules, work, command)| {
            let mut schedules = schedules.list.items.iter();
            let schedule = schedules.find(|schedule| schedule.schedule_id == run.schedule_id)?;
            Some((schedule, work, command))
        });
        let outcome = match (run.state, run.retry_at) {
            (RunState::Retrying, Some(at)) => format!("failed, and resumes at {}", format_time(at)),
            (RunState::Retrying, None) => "failed, and resumes after the pause of its schedule".to_owned(),
            (RunState::Failed, _) => "failed".to_owned(),
            _ => continue,
        };
        if let Some((schedule, work, command)) = schedule {
            let volume = run
                .volume_name
                .as_ref()
                .map_or_else(|| "no volume".to_owned(), |name| format!("volume {name}"));
            let reason = run.reason.as_deref().unwrap_or("unknown cause");
            found.push(HealthProblem::new(
                "run",
                format!("the newest scheduled {work} of {volume} {outcome}: {reason}"),
                format!(
                    "blockctl cloudsnap history --uuid {0}; again with blockctl {command} run-now {0}",
                    called(schedule)
                ),
            ));
        }
    }
    found
}

/// Returns true for a task that has ended and can be resumed.
fn is_kept(task: &Task) -> bool {
    task.resumable && task.state.stage.is_over()
}

/// Returns tasks that can be resumed.
fn kept_tasks(known: &Known) -> Vec<HealthProblem> {
    // The daemon resumes them itself.
    let retrying: Vec<_> = known.runs.iter().filter(|run| run.state == RunState::Retrying).collect();
    let is_retrying = |task: &Task| retrying.iter().any(|run| run.task_id == Some(task.task_id));
    let kept = known.tasks.iter().filter(|task| is_kept(task) && !is_retrying(task));
    kept.map(|task| {
        let of = task.volume_name.as_ref().map_or_else(String::new, |volume| format!(" of volume {volume}"));
        let how = if task.state.stage == TaskStage::Stopped { "was stopped" } else { "failed" };
        let cause = task.error.as_ref().map_or_else(String::new, |error| format!(": {}", error.message));
        HealthProblem::new(
            "task",
            format!("{}{of} {how}, and can be resumed{cause}", task.state.kind),
            task.ways_to_end(),
        )
    })
    .collect()
}

/// Webhooks with failing or missed deliveries.
fn failing_webhooks(known: &Known, now: Timestamp) -> impl Iterator<Item = HealthProblem> {
    known.webhooks.iter().filter_map(move |hook| {
        let (name, origin) = (&hook.name, &hook.origin);
        if let (Some(since), Some(error)) = (hook.first_failed_at, &hook.error) {
            let waiting = counted(hook.waiting, "event");
            return Some(HealthProblem::new(
                "webhook",
                format!(
                    "webhook {name} has been failing since {}: {error}; {waiting} waiting",
                    format_time(since)
                ),
                format!("check the receiver at {origin}; deliveries are retried automatically"),
            ));
        }
        let undelivered = hook.undelivered;
        // Reported until a later delivery, or for a day.
        let is_news = hook.last_undelivered_at.is_none_or(|at| {
            at >= a_day_before(now) && hook.last_delivered_at.is_none_or(|delivered| delivered < at)
        });
        (undelivered > 0 && is_news).then(|| {
            HealthProblem::new(
                "webhook",
                format!("{} not delivered to webhook {name}", counted(undelivered, "event")),
                format!("see blockd's log for the reason and `blockctl events` for the events (webhook at {origin})"),
            )
        })
    })
}

#[cfg(test)]
mod tests;
