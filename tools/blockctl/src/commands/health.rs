//! Health: problems and their remedies.

use crate::{failure::Failure, output::Context, table::counted};
use blockd_api::{
    VolumeId, VolumeName,
    events::{Event, ListEvents, Severity},
    format_time, operations,
    schedules::{ListRuns, Run, RunState, Schedule, ScheduleList},
    status::{Problem, ReloadFailure, Status, WebhookStatus},
    tasks::{ListTasks, Task, TaskKind, TaskStage},
    volumes::{ListVolumes, Volume, VolumeState},
};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;

/// Maximum number of examined runs and events.
const LOOK_BACK: u32 = 1_000;
/// Maximum age of reported events, in hours.
const RECENT_H: i64 = 24;
/// Maximum number of reported events.
const MAX_EVENTS: usize = 5;

/// Problem with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthProblem {
    /// Kind: one of the daemon's, `volume`, `attachment`, `reload`, `schedule`, `run`, `task`, `webhook`,
    /// `event` or `protection`.
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
    /// Schedules.
    pub schedules: ScheduleList,
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
            runs: client.call(operations::LIST_RUNS, &runs).await?.items,
            tasks: client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items,
            events: client.call(operations::LIST_EVENTS, &events).await?.items,
            webhooks: status.webhooks.clone(),
            reload_failure: status.reload_failure.clone(),
            problems: status.problems.clone(),
        })
    }
}

/// Returns all problems, the worst first.
pub fn problems(known: &Known, now: Timestamp) -> Vec<HealthProblem> {
    let lines = known
        .problems
        .iter()
        .map(|problem| HealthProblem::new(&problem.kind, problem.cause.clone(), problem.action.clone()));
    let mut found: Vec<HealthProblem> = lines.collect();
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
    for schedule in &known.schedules.unreadable {
        found.push(HealthProblem::new(
            "schedule",
            format!("schedule {} makes no backups: {}", schedule.schedule_id, schedule.cause),
            format!(
                "blockctl cloudsnap schedules delete --uuid {}, then create it again",
                schedule.schedule_id
            ),
        ));
    }
    found.extend(overdue_schedules(known));
    found.extend(idle_schedules(known));
    found.extend(failed_runs(known));
    found.extend(kept_tasks(known));
    found.extend(failing_webhooks(known, now));
    found.extend(recent(known, now));
    found
}

/// Returns the display name of a schedule.
fn called(schedule: &Schedule) -> String {
    schedule.name.as_ref().map_or_else(|| schedule.schedule_id.to_string(), ToString::to_string)
}

/// Returns overdue schedules.
fn overdue_schedules(known: &Known) -> impl Iterator<Item = HealthProblem> {
    known.schedules.list.items.iter().filter_map(|schedule| {
        let since = format_time(schedule.overdue_at?);
        Some(HealthProblem::new(
            "schedule",
            format!("schedule {} is overdue since {since}: it makes no backups", called(schedule)),
            "see the log of blockd for the cause",
        ))
    })
}

/// Returns schedules that protect no volume, for example because of a mistyped label.
fn idle_schedules(known: &Known) -> impl Iterator<Item = HealthProblem> {
    // Without any volume, a selector is not mistyped.
    let idle = known.schedules.list.items.iter().filter(|_| !known.volumes.is_empty());
    let idle = idle.filter(|schedule| schedule.without_volume);
    idle.map(|schedule| {
        let name = called(schedule);
        HealthProblem::new(
            "schedule",
            format!("schedule {name} selects no volume"),
            format!(
                "check its volumes with blockctl cloudsnap schedules list; to change them, blockctl cloudsnap schedules delete --uuid {}, then create it again",
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
        let tells = matches!(run.state, RunState::Done | RunState::Failed | RunState::Expired);
        if !tells || seen.contains(&of) {
            continue;
        }
        seen.push(of);
        let there = known.schedules.list.items.iter().any(|schedule| schedule.schedule_id == run.schedule_id);
        if run.state == RunState::Failed && there {
            let volume = run
                .volume_name
                .as_ref()
                .map_or_else(|| "no volume".to_owned(), |name| format!("volume {name}"));
            let reason = run.reason.as_deref().unwrap_or("unknown cause");
            found.push(HealthProblem::new(
                "run",
                format!("the newest scheduled backup of {volume} failed: {reason}"),
                format!(
                    "blockctl cloudsnap history --uuid {}; again with blockctl cloudsnap schedules run-now",
                    run.schedule_id
                ),
            ));
        }
    }
    found
}

/// Returns tasks that can be resumed.
fn kept_tasks(known: &Known) -> Vec<HealthProblem> {
    let kept = known.tasks.iter().filter(|task| task.resumable && task.state.stage.is_over());
    kept.map(|task| {
        let of = task.volume_name.as_ref().map_or_else(String::new, |volume| format!(" of volume {volume}"));
        let how = if task.state.stage == TaskStage::Stopped { "was stopped" } else { "failed" };
        HealthProblem::new(
            "task",
            format!("{}{of} {how}, and can be resumed", task.state.kind),
            format!("blockctl cloudsnap resume --name {}", task.task_id),
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

/// Returns the start of the reporting period.
fn a_day_before(now: Timestamp) -> Timestamp {
    now.checked_sub(SignedDuration::from_hours(RECENT_H)).unwrap_or(Timestamp::MIN)
}

/// Returns true if an event is of a volume: by name only where there is no id, as a name moves to other volumes.
fn is_of(event: &Event, id: Option<VolumeId>, name: Option<&VolumeName>) -> bool {
    match event.volume_id {
        Some(own) => id == Some(own),
        None => event.volume_name.as_ref() == name,
    }
}

/// Returns true if a problem of the daemon, a volume or the last reload reports the state behind an event; it
/// ends with that state.
fn is_state(known: &Known, event: &Event) -> bool {
    match event.kind.as_str() {
        "volume-degraded" => known.volumes.iter().any(|volume| {
            volume.state == VolumeState::Failed && is_of(event, Some(volume.volume_id), Some(&volume.name))
        }),
        "data-directory-full" | "key-slot-damaged" | "reload-failed" => true,
        "backing-snapshot-deleted" => known.problems.iter().any(|problem| problem.kind == "backing-snapshot"),
        _ => false,
    }
}

/// Returns true if the operation of an error event succeeded later.
fn is_made_good(known: &Known, event: &Event) -> bool {
    let later = known.events.iter().filter(|other| other.event_id > event.event_id);
    let mut there = later.filter(|other| other.credential_name == event.credential_name);
    let is_of_volume = |other: &Event| is_of(event, other.volume_id, other.volume_name.as_ref());
    match event.kind.as_str() {
        "store-unreachable" => there.any(|other| other.kind.ends_with("-done")),
        // The verification of all cloud snapshots has no volume.
        "damage-found" => there
            .any(|other| other.kind == "verify-done" && (other.volume_name.is_none() || is_of_volume(other))),
        "backing-snapshot-deleted" => {
            known.volumes.iter().all(|volume| event.volume_name.as_ref() != Some(&volume.name))
        }
        "write-key-refused" => there.any(|other| other.kind == "backup-done"),
        kind if kind.ends_with("-failed") => known.tasks.iter().any(|task| {
            task.state.kind == TaskKind::Backup
                && task.state.stage == TaskStage::Done
                && is_of(event, task.volume_id, task.volume_name.as_ref())
                && task.completed_at.is_some_and(|completed| completed > event.occurred_at)
        }),
        _ => false,
    }
}

/// Returns errors of the last day without a later success.
fn recent(known: &Known, now: Timestamp) -> Vec<HealthProblem> {
    let since = a_day_before(now);
    let is_recent = |event: &&Event| event.severity == Severity::Error && event.occurred_at >= since;
    let events = known.events.iter().rev().filter(is_recent);
    let events = events.filter(|event| !is_state(known, event) && !is_made_good(known, event));
    events
        .take(MAX_EVENTS)
        .map(|event| {
            HealthProblem::new(
                "event",
                event.message.clone(),
                format!("blockctl events --errors (event {})", event.event_id),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn known(parts: &Value) -> Known {
        fn part<T: serde::de::DeserializeOwned>(parts: &Value, name: &str) -> Vec<T> {
            let part = parts.get(name).cloned().unwrap_or_else(|| json!([]));
            serde_json::from_value(part).unwrap()
        }
        Known {
            volumes: part(parts, "volumes"),
            schedules: ScheduleList {
                list: part(parts, "schedules").into(),
                unreadable: part(parts, "unreadable"),
            },
            runs: part(parts, "runs"),
            tasks: part(parts, "tasks"),
            events: part(parts, "events"),
            webhooks: part(parts, "webhooks"),
            reload_failure: parts
                .get("reloadFailure")
                .map(|one| serde_json::from_value(one.clone()).unwrap()),
            problems: part(parts, "problems"),
        }
    }

    fn lines(parts: &Value) -> Vec<String> {
        problems(&known(parts), NOW.parse().unwrap()).into_iter().map(|one| one.cause).collect()
    }

    fn run(id: u64, state: &str) -> Value {
        json!({
            "runId": id, "scheduleId": "00000000-0000-0000-0000-000000000001", "when": null, "plannedAt": NOW, "startedAt": NOW,
            "missed": 0, "volumeId": "7", "volumeName": "db", "credentialId": null, "state": state, "taskId": null,
            "cloudSnapshotId": null, "completedAt": null, "reason": "the store is full"
        })
    }

    fn volume(name: &str, state: &str) -> Value {
        json!({
            "volumeId": "7", "name": name, "sizeBytes": 0, "labels": {}, "createdAt": NOW, "state": state, "stateReason": "its disk is gone",
            "uri": "", "connections": 0, "dirtyBytes": 0, "allocatedBytes": 0, "snapshotCount": 0, "layers": 0,
            "io": { "reads": 0, "writes": 0, "readBytes": 0, "writtenBytes": 0, "flushes": 0 }, "lastBackups": []
        })
    }

    fn event(id: u64, at: &str, kind: &str) -> Value {
        json!({
            "eventId": id, "occurredAt": at, "severity": "error", "kind": kind, "volumeName": "db", "credentialName": "nas", "taskId": null,
            "message": format!("{kind} {id}")
        })
    }

    #[test]
    fn empty_state_has_no_problems() {
        assert!(lines(&json!({})).is_empty());
    }

    #[test]
    fn newest_run_of_existing_schedules_counts() {
        let schedule = json!([{
            "scheduleId": "00000000-0000-0000-0000-000000000001", "selector": {}, "credentialIds": [], "rules": [], "policyName": null,
            "retain": {}, "full": false, "jitterSeconds": 0, "priority": "normal", "paused": false, "createdAt": NOW,
            "nextRunAt": null, "lastRunAt": null, "schedule": ""
        }]);
        let failed =
            json!({ "schedules": schedule, "runs": [run(3, "skipped"), run(2, "failed"), run(1, "done")] });
        assert_eq!(lines(&failed), ["the newest scheduled backup of volume db failed: the store is full"]);
        let good = json!({ "schedules": schedule, "runs": [run(2, "done"), run(1, "failed")] });
        assert!(lines(&good).is_empty());
        assert!(lines(&json!({ "runs": [run(1, "failed")] })).is_empty());

        let mut idle = good;
        idle["schedules"][0]["withoutVolume"] = json!(true);
        idle["schedules"][0]["name"] = json!("nightly");
        assert!(lines(&idle).is_empty(), "there is no volume yet");
        idle["volumes"] = json!([volume("db", "up")]);
        assert_eq!(lines(&idle), ["schedule nightly selects no volume"]);
        idle["schedules"][0]["withoutVolume"] = json!(false);
        idle["schedules"][0]["overdueAt"] = json!("2026-11-22T11:00:00Z");
        assert_eq!(
            lines(&idle),
            ["schedule nightly is overdue since Sun, 22 Nov 2026 11:00:00 UTC: it makes no backups"]
        );
        idle["problems"] = json!([{ "kind": "data-directory", "cause": "it is full", "action": "make room", "detectedAt": NOW }]);
        assert_eq!(lines(&idle).first().unwrap(), "it is full", "the worst comes first");
    }

    #[test]
    fn errors_of_the_last_day_are_listed_newest_first() {
        let events = json!({ "events": [
            event(1, "2026-11-21T11:59:00Z", "damage-found"),
            event(2, "2026-11-21T12:01:00Z", "store-unreachable"),
            event(3, "2026-11-22T11:00:00Z", "damage-found"),
        ] });
        assert_eq!(lines(&events), ["damage-found 3", "store-unreachable 2"]);
    }

    #[test]
    fn failure_is_made_good_by_the_same_volume_only() {
        let mut failed = event(1, "2026-11-22T11:00:00Z", "backup-failed");
        failed["volumeId"] = json!("7");
        for (volume, name, causes) in [("7", "renamed", 0), ("8", "db", 1)] {
            let done = json!([{
                "taskId": "00000000-0000-0000-0000-000000000001", "type": "backup", "cloudSnapshotId": null, "volumeId": volume,
                "volumeName": name, "state": "Backup-Done", "node": "host", "owner": { "kind": "daemon" },
                "credentialId": "00000000-0000-0000-0000-000000000002", "credentialName": "nas", "phase": "", "totalBytes": 0,
                "processedBytes": 0, "uploadedBytes": 0, "downloadedBytes": 0, "dirtyBytes": 0,
                "requests": { "put": 0, "get": 0, "list": 0, "delete": 0, "head": 0 }, "freezeStallMicros": null,
                "startedAt": NOW, "completedAt": NOW, "elapsedSeconds": 1.0, "backupType": null, "error": null, "resumed": 0, "version": 1
            }]);
            let found = lines(&json!({ "events": [failed], "tasks": done }));
            assert_eq!(found.len(), causes, "{name} {found:?}");
        }
    }

    #[test]
    fn error_event_ends_with_a_later_success() {
        let of = |id: u64, kind: &str, volume: Option<&str>, credential: &str| {
            let mut event = event(id, NOW, kind);
            (event["volumeName"], event["credentialName"]) = (json!(volume), json!(credential));
            event["severity"] = json!(if kind.ends_with("-done") { "info" } else { "error" });
            event
        };
        for (kind, later, ends) in [
            ("store-unreachable", of(2, "backup-done", Some("other"), "nas"), true),
            ("store-unreachable", of(2, "backup-done", Some("db"), "s3"), false),
            ("damage-found", of(2, "verify-done", None, "nas"), true),
            ("damage-found", of(2, "verify-done", Some("other"), "nas"), false),
            ("damage-found", of(2, "backup-done", Some("db"), "nas"), false),
            ("write-key-refused", of(2, "backup-done", Some("db"), "nas"), true),
        ] {
            let events = json!({ "events": [of(1, kind, Some("db"), "nas"), later] });
            assert_eq!(lines(&events).is_empty(), ends, "{events}");
        }
        let deleted = event(1, NOW, "backing-snapshot-deleted");
        for (name, reported) in [("db", 1), ("other", 0)] {
            let parts = json!({ "events": [deleted], "volumes": [volume(name, "up")] });
            assert_eq!(lines(&parts).len(), reported, "{name}");
        }
        // The daemon reports these states itself, until they end.
        let states = [event(1, NOW, "data-directory-full"), event(2, NOW, "key-slot-damaged")];
        assert!(lines(&json!({ "events": states })).is_empty());
    }

    #[test]
    fn volume_not_served_is_reported_once() {
        let mut degraded = event(1, NOW, "volume-degraded");
        let volume = json!([volume("db", "failed")]);
        let parts = json!({ "volumes": volume, "events": [degraded] });
        assert_eq!(lines(&parts), ["volume db is not served: its disk is gone"]);
        // A volume that is served again or gone has no other report.
        degraded["volumeName"] = json!("other");
        assert_eq!(lines(&json!({ "volumes": volume, "events": [degraded] })).len(), 2);
    }

    #[test]
    fn failed_reload_is_reported_until_success() {
        let events = json!([event(1, NOW, "reload-failed")]);
        assert!(lines(&json!({ "events": events })).is_empty());
        let parts = json!({ "events": events, "reloadFailure": { "failedAt": NOW, "cause": "no such key" } });
        let lines = lines(&parts);
        assert!(lines.len() == 1 && lines[0].ends_with(": no such key"), "{lines:?}");
    }

    #[test]
    fn failing_webhooks_and_undelivered_events_are_reported() {
        let hook = |since: Option<&str>, undelivered: u64| {
            json!({ "webhooks": [{
                "name": "ops", "origin": "https://h", "waiting": 2, "delivered": 1, "undelivered": undelivered,
                "lastDeliveredAt": null, "firstFailedAt": since, "error": since.map(|_| "no answer within 9 ms"),
            }] })
        };
        assert_eq!(
            lines(&hook(Some("2026-11-22T11:00:00Z"), 0)),
            [
                "webhook ops has been failing since Sun, 22 Nov 2026 11:00:00 UTC: no answer within 9 ms; 2 events waiting"
            ]
        );
        assert_eq!(lines(&hook(None, 3)), ["3 events not delivered to webhook ops"]);
        assert!(lines(&hook(None, 0)).is_empty());

        // Reported until a later delivery, or for a day.
        for (undelivered, delivered, is_told) in [
            ("2026-11-22T11:00:00Z", None, true),
            ("2026-11-22T11:00:00Z", Some("2026-11-22T10:59:00Z"), true),
            ("2026-11-22T11:00:00Z", Some("2026-11-22T11:01:00Z"), false),
            ("2026-11-21T11:59:00Z", None, false),
        ] {
            let mut passing = hook(None, 2);
            passing["webhooks"][0]["lastUndeliveredAt"] = json!(undelivered);
            passing["webhooks"][0]["lastDeliveredAt"] = json!(delivered);
            assert_eq!(lines(&passing).is_empty(), !is_told, "{undelivered} {delivered:?}");
        }
    }

    #[test]
    fn unreadable_secret_is_a_problem() {
        let parts = json!({ "unreadable": [{ "scheduleId": "x", "cause": "no such time zone" }] });
        assert_eq!(lines(&parts), ["schedule x makes no backups: no such time zone"]);
    }
}
