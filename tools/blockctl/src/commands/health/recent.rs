//! Failures of the last day, from events without a later success.

use super::{HealthProblem, Known, is_kept};
use crate::table::short_uuid;
use blockd_api::{
    VolumeId, VolumeName,
    drills::DrillStage,
    events::{Event, Severity},
    tasks::{Task, TaskKind, TaskStage},
};
use jiff::{SignedDuration, Timestamp};

/// Maximum age of reported events, in hours.
const RECENT_H: i64 = 24;
/// Maximum number of reported events.
const MAX_EVENTS: usize = 5;

/// Returns the start of the reporting period.
pub(super) fn a_day_before(now: Timestamp) -> Timestamp {
    now.checked_sub(SignedDuration::from_hours(RECENT_H)).unwrap_or(Timestamp::MIN)
}

/// Returns true if an event is of a volume: by name only where there is no id, as a name moves to other
/// volumes.
fn is_of(event: &Event, id: Option<VolumeId>, name: Option<&VolumeName>) -> bool {
    match event.volume_id {
        Some(own) => id == Some(own),
        None => event.volume_name.as_ref() == name,
    }
}

/// Returns true if a problem of the daemon, an anomaly, a damaged cloud snapshot, a volume or the last reload
/// reports the state behind an event; it ends with that state.
fn is_state(known: &Known, event: &Event) -> bool {
    match event.kind.as_str() {
        "anomaly-found"
        | "clock-differs"
        | "clock-unknown"
        | "damage-found"
        | "volume-damaged"
        | "volume-degraded"
        | "data-directory-full"
        | "key-slot-damaged"
        | "lease-not-renewed"
        | "proof-too-old"
        | "reload-failed" => true,
        // The problem stays after a later drill of an older point in time, or without the probe.
        "drill-failed" => {
            let of = event.volume_name.as_ref().map(|name| format!(" failed on volume {name} "));
            let is_of = |cause: &str| of.as_deref().is_some_and(|of| cause.contains(of));
            let kind =
                event.failed_step.map(|step| if step == DrillStage::Probe { "probe" } else { "drill" });
            let mut problems = known.problems.iter();
            problems.any(|problem| kind == Some(&*problem.kind) && is_of(&problem.cause))
        }
        "backing-snapshot-deleted" => known.problems.iter().any(|problem| problem.kind == "backing-snapshot"),
        _ => false,
    }
}

/// Returns true if the operation of an error event succeeded later.
fn is_made_good(known: &Known, event: &Event) -> bool {
    let later = known.events.iter().filter(|other| other.event_id > event.event_id);
    let mut there = later.filter(|other| other.credential_name == event.credential_name);
    match event.kind.as_str() {
        "store-unreachable" => there.any(|other| other.kind.ends_with("-done")),
        "backing-snapshot-deleted" => {
            known.volumes.iter().all(|volume| event.volume_name.as_ref() != Some(&volume.name))
        }
        "write-key-refused" => there.any(|other| other.kind == "backup-done"),
        // The volume of a repeated restore is another one, perhaps of another name.
        "restore-failed" => {
            is_done_later(known, event, TaskKind::Restore, |task| {
                (task.volume_name.is_some() && task.volume_name == event.volume_name)
                    || (task.cloud_snapshot_id.is_some() && task.cloud_snapshot_id == event.cloud_snapshot_id)
            }) || there.any(|other| {
                other.kind == "delete-done"
                    && event.cloud_snapshot_id.is_some()
                    && other.cloud_snapshot_id == event.cloud_snapshot_id
            })
        }
        "drill-failed" => is_done_later(known, event, TaskKind::Drill, |task| {
            is_of(event, task.volume_id, task.volume_name.as_ref())
        }),
        // A later backup leaves the cloud snapshot damaged.
        "repair-failed" => {
            let of = event.cloud_snapshot_id.as_deref();
            let is_damaged = known.damaged.iter().any(|one| of == Some(&*one.cloud_snapshot_id.to_string()));
            !is_damaged
                || is_done_later(known, event, TaskKind::Repair, |task| {
                    of.is_some() && task.cloud_snapshot_id.as_deref() == of
                })
        }
        "scrub-failed" => is_done_later(known, event, TaskKind::Scrub, |task| {
            task.volume_id.is_none() || is_of(event, task.volume_id, task.volume_name.as_ref())
        }),
        kind if kind.ends_with("-failed") => is_done_later(known, event, TaskKind::Backup, |task| {
            is_of(event, task.volume_id, task.volume_name.as_ref())
        }),
        _ => false,
    }
}

/// Returns true if the same operation on the same object failed again later: the newest failure is reported.
fn is_repeated(known: &Known, event: &Event) -> bool {
    let object = |event: &Event| {
        let volume = event.volume_id.map_or_else(|| event.volume_name.clone().map(Err), |id| Some(Ok(id)));
        (event.kind.clone(), volume, event.credential_name.clone(), event.cloud_snapshot_id.clone())
    };
    event.task_id.is_some()
        && known.events.iter().any(|other| {
            other.event_id > event.event_id && other.task_id.is_some() && object(other) == object(event)
        })
}

/// Returns the message of an event, with the volume of a failed task that names only cloud snapshots.
fn cause_of(event: &Event) -> String {
    let is_of_task =
        matches!(&*event.kind, "drill-failed" | "repair-failed" | "scrub-failed" | "verify-failed");
    match event.volume_name.as_ref().filter(|name| is_of_task && !event.message.contains(name.as_str())) {
        Some(name) => format!("volume {name}: {}", event.message),
        None => event.message.clone(),
    }
}

/// Returns the next action for an event.
fn action_of(event: &Event) -> String {
    match (event.kind.as_str(), event.task_id) {
        ("drill-failed", Some(task)) => format!("blockctl cloudsnap drill inspect {}", short_uuid(task)),
        ("repair-failed" | "scrub-failed" | "verify-failed", Some(task)) => {
            format!("blockctl cloudsnap status --name {}", short_uuid(task))
        }
        _ => format!("blockctl events --errors (event {})", event.event_id),
    }
}

/// Returns true if a task of a kind that repeats the operation of an event was done later.
fn is_done_later(known: &Known, event: &Event, kind: TaskKind, repeats: impl Fn(&Task) -> bool) -> bool {
    known.tasks.iter().any(|task| {
        task.state.kind == kind
            && task.state.stage == TaskStage::Done
            && repeats(task)
            && task.completed_at.is_some_and(|completed| completed > event.occurred_at)
    })
}

/// Returns errors of the last day without a later success.
pub(super) fn recent(known: &Known, now: Timestamp) -> Vec<HealthProblem> {
    let since = a_day_before(now);
    let is_recent = |event: &&Event| event.severity == Severity::Error && event.occurred_at >= since;
    let events = known.events.iter().rev().filter(is_recent);
    // A task that can be resumed is a problem of its own.
    let is_of_kept =
        |event: &Event| known.tasks.iter().any(|task| is_kept(task) && event.task_id == Some(task.task_id));
    let is_settled = |event: &&Event| {
        is_state(known, event) || is_made_good(known, event) || is_repeated(known, event) || is_of_kept(event)
    };
    events
        .filter(|event| !is_settled(event))
        .take(MAX_EVENTS)
        .map(|event| HealthProblem::new("event", cause_of(event), action_of(event)))
        .collect()
}
