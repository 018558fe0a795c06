//! Protection of volumes: schedules, age of backups, and recovery point objectives.
//!
//! A schedule promises a backup at each of its times. The recovery point objective of a volume at a location
//! is met if its newest backup there is not older than the last scheduled time that is past its grace period.
//! The grace period is half of the schedule's interval, 5 minutes at least and 6 hours at most, and the
//! schedule's jitter: a backup may take as long.

use super::health::{HealthProblem, Known};
use crate::{
    failure::Failure,
    output::Context,
    table::{Table, or_dash, short_uuid},
};
use blockd_api::{
    EXCLUDED, ObjectName,
    cloudsnaps::LastProof,
    format_time, operations,
    schedules::{Policy, Rule, Schedule, SelectedVolumes},
    snapshots::{ListSnapshots, Snapshot, SnapshotState},
    volumes::Volume,
};
use blockd_schedule::Jitter;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

/// Kind of the problems.
const KIND: &str = "protection";
/// Location of local snapshots.
const LOCAL: &str = "local";
/// Limits of the grace period.
const GRACE: (SignedDuration, SignedDuration) = (SignedDuration::from_mins(5), SignedDuration::from_hours(6));

/// State of a recovery point objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The newest backup is recent enough.
    Met,
    /// The first backup is not due yet.
    Waiting,
    /// A backup is missing.
    Missed,
    /// The schedule is paused.
    Paused,
    /// Schedules make only local snapshots of the volume, no backups.
    LocalOnly,
    /// No schedule selects the volume.
    NoSchedule,
    /// The label `backup=none` excludes the volume.
    Excluded,
}

impl Objective {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Waiting => "waiting",
            Self::Missed => "missed",
            Self::Paused => "paused",
            Self::LocalOnly => "local only",
            Self::NoSchedule => "no schedule",
            Self::Excluded => "excluded",
        }
    }
}

/// Protection of a volume by a schedule at a location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Protection {
    /// Name of the volume.
    pub volume_name: String,
    /// Schedule.
    pub schedule_id: Option<Uuid>,
    /// Name of the schedule, if any.
    pub schedule_name: Option<ObjectName>,
    /// Location; `None` for local snapshots.
    pub credential_id: Option<Uuid>,
    /// Name of the location.
    pub credential_name: Option<String>,
    /// True for local snapshots.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Point in time of the newest backup, by any schedule or by hand.
    pub last_backup_at: Option<Timestamp>,
    /// Last proof that read a backup there and found it sound.
    pub last_proof: Option<LastProof>,
    /// Next run of the schedule.
    pub next_run_at: Option<Timestamp>,
    /// Scheduled time that the newest backup must cover.
    pub due_at: Option<Timestamp>,
    /// Recovery point objective.
    pub objective: Objective,
}

impl Protection {
    /// Returns the name of the schedule, or its short id without one.
    fn schedule(&self) -> Option<String> {
        let name = self.schedule_name.as_ref().map(ToString::to_string);
        name.or_else(|| self.schedule_id.map(short_uuid))
    }

    /// Returns the name of the location, or its short id without one; `local` for local snapshots.
    fn location(&self) -> Option<String> {
        let name = if self.local { Some(LOCAL.to_owned()) } else { self.credential_name.clone() };
        name.or_else(|| self.credential_id.map(short_uuid))
    }

    /// Loads the protection of each volume, from the state of the daemon.
    ///
    /// # Errors
    /// A call fails.
    pub async fn load(context: &Context<'_>, known: &Known, now: Timestamp) -> Result<Vec<Self>, Failure> {
        let schedules = &known.schedules.list.items;
        let policies = match schedules.iter().any(|schedule| schedule.policy_name.is_some()) {
            true => context.client.call(operations::LIST_POLICIES, &()).await?.items,
            false => Vec::new(),
        };
        let snapshots = match schedules.iter().any(|schedule| schedule.local.is_some()) {
            true => context.client.call(operations::LIST_SNAPSHOTS, &ListSnapshots::default()).await?.items,
            false => Vec::new(),
        };
        Ok(protections(known, &policies, &snapshots, now))
    }
}

/// Returns the protection of each volume, by volume, schedule and location.
fn protections(
    known: &Known,
    policies: &[Policy],
    snapshots: &[Snapshot],
    now: Timestamp,
) -> Vec<Protection> {
    let mut all = Vec::new();
    for volume in &known.volumes {
        let before = all.len();
        let ready = |one: &&Snapshot| one.volume_id == volume.volume_id && one.state == SnapshotState::Ready;
        let last_snapshot = snapshots.iter().filter(ready).map(|one| one.created_at).max();
        for schedule in
            known.schedules.list.items.iter().filter(|schedule| selects(&schedule.selector, volume))
        {
            let due = due_since(schedule, policies, volume, now);
            let is_local = schedule.local.is_some() || schedule.credential_ids.is_empty();
            let local = is_local.then_some(None);
            for credential in local.into_iter().chain(schedule.credential_ids.iter().copied().map(Some)) {
                let name = credential.and_then(|id| known.location(id));
                all.push(protection(volume, schedule, (credential, name), last_snapshot, due));
            }
        }
        let schedules = &all[before..];
        let unprotected = match schedules.iter().all(|one| one.local) {
            true if schedules.is_empty() && volume.labels.is_excluded() => Some(Objective::Excluded),
            true if schedules.is_empty() => Some(Objective::NoSchedule),
            true if !volume.labels.is_excluded() => Some(Objective::LocalOnly),
            _ => None,
        };
        if let Some(objective) = unprotected {
            all.push(Protection {
                volume_name: volume.name.to_string(),
                schedule_id: None,
                schedule_name: None,
                credential_id: None,
                credential_name: None,
                local: false,
                last_backup_at: volume.last_backups.iter().map(|backup| backup.created_at).max(),
                last_proof: last_proof(volume).cloned(),
                next_run_at: None,
                due_at: None,
                objective,
            });
        }
    }
    all
}

fn protection(
    volume: &Volume,
    schedule: &Schedule,
    (credential_id, credential_name): (Option<Uuid>, Option<String>),
    last_snapshot: Option<Timestamp>,
    due: Option<Timestamp>,
) -> Protection {
    let backup = volume.last_backups.iter().find(|backup| Some(backup.credential_id) == credential_id);
    let last_backup = match credential_id {
        Some(_) => backup.map(|backup| backup.created_at),
        None => last_snapshot,
    };
    let objective = match (last_backup, due) {
        _ if schedule.paused => Objective::Paused,
        (Some(last), Some(due)) if last < due => Objective::Missed,
        (None, Some(_)) => Objective::Missed,
        (None, None) => Objective::Waiting,
        (Some(_), _) => Objective::Met,
    };
    Protection {
        volume_name: volume.name.to_string(),
        schedule_id: Some(schedule.schedule_id),
        schedule_name: schedule.name.clone(),
        credential_id,
        credential_name,
        local: credential_id.is_none(),
        last_backup_at: last_backup,
        last_proof: backup.and_then(|backup| backup.last_proof.clone()),
        next_run_at: schedule.next_run_at,
        due_at: due,
        objective,
    }
}

/// Returns the last proof that found a backup of a volume sound, at any location.
pub fn last_proof(volume: &Volume) -> Option<&LastProof> {
    volume
        .last_backups
        .iter()
        .filter_map(|backup| backup.last_proof.as_ref())
        .max_by_key(|last| last.proven_at)
}

/// Formats age and kind of a proof: `3d full`.
pub fn proof_age(last: &LastProof, now: Timestamp) -> String {
    format!("{} {}", span(now.duration_since(last.proven_at)), last.kind)
}

/// Returns true if a schedule selects a volume.
fn selects(selector: &SelectedVolumes, volume: &Volume) -> bool {
    match selector {
        SelectedVolumes { volume_id: Some(id), .. } => *id == volume.volume_id,
        SelectedVolumes { group: Some(group), .. } => volume.group.as_ref() == Some(group),
        SelectedVolumes { label: Some(label), .. } => volume.labels.matches(label),
        SelectedVolumes { all, .. } => *all && !volume.labels.is_excluded(),
    }
}

/// Returns the last scheduled time past its grace period; `None` if there was none since the schedule and the
/// volume exist.
fn due_since(schedule: &Schedule, policies: &[Policy], volume: &Volume, now: Timestamp) -> Option<Timestamp> {
    let policy = policies.iter().find(|policy| Some(&policy.name) == schedule.policy_name.as_ref());
    let rules: Vec<&Rule> =
        schedule.rules.iter().chain(policy.iter().flat_map(|policy| &policy.rules)).collect();
    let interval = rules.iter().filter_map(|rule| {
        let next = rule.when.next_after(now)?;
        Some(rule.when.next_after(next)?.duration_since(next))
    });
    let (least, most) = GRACE;
    let grace = interval.min().map_or(most, |interval| (interval / 2).clamp(least, most));
    let default =
        || rules.iter().map(|rule| Jitter::default_of(&rule.when)).max_by_key(|jitter| jitter.max_s);
    let jitter = schedule.jitter_seconds.or_else(default).unwrap_or_default();
    let jitter = SignedDuration::from_secs(i64::from(jitter.max_s));
    let until = now.checked_sub(grace).ok()?.checked_sub(jitter).ok()?;
    let since = schedule.created_at.max(volume.created_at);
    if until <= since {
        return None;
    }
    rules.iter().filter_map(|rule| rule.when.last_until(since, until)).max()
}

/// Returns the missed objectives.
pub fn missed(all: &[Protection]) -> impl Iterator<Item = HealthProblem> {
    all.iter().filter(|one| one.objective == Objective::Missed).map(|one| {
        let (volume, location) = (&one.volume_name, or_dash(one.location()));
        let last = match one.last_backup_at {
            Some(at) => format!("the last backup of volume {volume} to {location} is of {}", format_time(at)),
            None if one.local => format!("volume {volume} has no local snapshot"),
            None => format!("volume {volume} has no backup at {location}"),
        };
        let schedule = or_dash(one.schedule());
        let due = or_dash(one.due_at.map(format_time));
        HealthProblem::new(
            KIND,
            format!("{last}; schedule {schedule} had to make one at {due}"),
            format!("blockctl cloudsnap history --src {volume}"),
        )
    })
}

/// Returns the volumes that no schedule backs up.
pub fn unprotected(all: &[Protection]) -> impl Iterator<Item = HealthProblem> {
    all.iter().filter_map(|one| {
        let (volume, (key, value)) = (&one.volume_name, EXCLUDED);
        let cause = match one.objective {
            Objective::NoSchedule => format!("no schedule selects volume {volume}"),
            Objective::LocalOnly => format!("volume {volume} has local snapshots only: no schedule backs it up"),
            _ => return None,
        };
        let action = format!(
            "blockctl cloudsnap schedules create {volume} --daily 21:00, or blockctl volume update {volume} --label {key}={value}"
        );
        Some(HealthProblem::new(KIND, cause, action))
    })
}

/// Formats the protection of all volumes.
pub fn table(all: &[Protection], now: Timestamp) -> Table {
    let ago = |at: Option<Timestamp>| or_dash(at.map(|at| span(now.duration_since(at))));
    Table::of(
        "VOLUME|SCHEDULE|LOCATION|BACKUP-AGE|LAST-PROOF|NEXT-RUN|RPO",
        all.iter().map(|one| {
            [
                one.volume_name.clone(),
                or_dash(one.schedule()),
                or_dash(one.location()),
                ago(one.last_backup_at),
                or_dash(one.last_proof.as_ref().map(|last| proof_age(last, now))),
                or_dash(one.next_run_at.map(|at| format!("in {}", span(at.duration_since(now))))),
                one.objective.as_str().to_owned(),
            ]
        }),
    )
    .fit("VOLUME|SCHEDULE|LOCATION")
}

/// Formats a span in its largest unit: `45m`, `3h`, `12d`.
pub fn span(length: SignedDuration) -> String {
    match length.as_secs().max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::schedules::ScheduleList;
    use blockd_schedule::Retention;
    use serde_json::{Value, json};

    const NOW: &str = "2026-11-22T12:00:00Z";
    const CREDENTIAL: &str = "00000000-0000-0000-0000-000000000007";

    fn volume(name: &str, labels: &Value, last: Option<&str>) -> Volume {
        let backups: Vec<Value> = last
            .iter()
            .map(|time| {
                json!({
                    "credentialId": CREDENTIAL, "credentialName": "nas", "cloudSnapshotId": "x", "createdAt": time,
                    "incrementalsSinceFull": 0
                })
            })
            .collect();
        serde_json::from_value(json!({
            "volumeId": "7", "name": name, "sizeBytes": 0, "labels": labels, "createdAt": "2026-11-01T00:00:00Z", "state": "up",
            "stateReason": null, "uri": "", "connections": 0, "dirtyBytes": 0, "allocatedBytes": 0, "snapshotCount": 0,
            "layers": 0, "io": { "reads": 0, "writes": 0, "readBytes": 0, "writtenBytes": 0, "flushes": 0 },
            "lastBackups": backups
        }))
        .unwrap()
    }

    fn schedule(when: &str, created: &str, paused: bool) -> Schedule {
        serde_json::from_value(json!({
            "scheduleId": "00000000-0000-0000-0000-000000000001", "name": "nightly", "selector": { "label": "app=db" },
            "credentialIds": [CREDENTIAL], "rules": [{ "when": when }], "policyName": null, "retain": {}, "full": false,
            "jitterSeconds": 0, "priority": "normal", "paused": paused, "createdAt": created, "nextRunAt": null,
            "lastRunAt": null, "schedule": when
        }))
        .unwrap()
    }

    fn known(volumes: &[Volume], schedules: &[Schedule]) -> Known {
        let location = json!({
            "credentialId": CREDENTIAL, "credentialName": "nas", "cloudSnapshotCount": 0, "storedBytes": 0, "listedAt": null
        });
        Known {
            volumes: volumes.to_vec(),
            schedules: ScheduleList { list: schedules.to_vec().into(), unreadable: Vec::new() },
            locations: vec![serde_json::from_value(location).unwrap()],
            ..Known::default()
        }
    }

    fn objective(when: &str, created: &str, last: Option<&str>) -> Objective {
        let volumes = [volume("db", &json!({ "app": "db" }), last)];
        let known = known(&volumes, &[schedule(when, created, false)]);
        let all = protections(&known, &[], &[], NOW.parse().unwrap());
        assert_eq!(all.len(), 1);
        all[0].objective
    }

    #[test]
    fn objective_follows_the_times_of_the_schedule() {
        const OLD: &str = "2026-11-01T00:00:00Z";
        for (when, created, last, expected) in [
            ("daily @21:00", OLD, Some("2026-11-21T21:00:01Z"), Objective::Met),
            ("daily @21:00", OLD, Some("2026-11-21T20:59:00Z"), Objective::Missed),
            // The time of 9:00 is within its grace period of six hours.
            ("daily @09:00", OLD, Some("2026-11-21T09:00:01Z"), Objective::Met),
            ("daily @05:59", OLD, Some("2026-11-21T09:00:01Z"), Objective::Missed),
            ("daily @21:00", OLD, None, Objective::Missed),
            ("daily @21:00", "2026-11-22T11:00:00Z", None, Objective::Waiting),
            ("daily @21:00", "2026-11-22T11:00:00Z", Some("2026-11-20T21:00:00Z"), Objective::Met),
        ] {
            assert_eq!(objective(when, created, last), expected, "{when} {last:?}");
        }
    }

    #[test]
    fn volumes_without_schedules_are_listed_and_can_be_excluded() {
        let volumes = [
            volume("db", &json!({ "app": "db" }), None),
            volume("log", &json!({}), None),
            volume("tmp", &json!({ "backup": "none" }), None),
        ];
        let paused = [schedule("daily @21:00", NOW, true)];
        let all = protections(&known(&volumes, &paused), &[], &[], NOW.parse().unwrap());
        let objectives: Vec<_> = all.iter().map(|one| one.objective).collect();
        assert_eq!(objectives, [Objective::Paused, Objective::NoSchedule, Objective::Excluded]);
        let found: Vec<_> = unprotected(&all).map(|problem| problem.cause).collect();
        assert_eq!(found, ["no schedule selects volume log"]);
        assert_eq!(missed(&all).count(), 0);
        let mut every = schedule("daily @21:00", NOW, true);
        every.selector = SelectedVolumes { all: true, ..SelectedVolumes::default() };
        let all = protections(&known(&volumes, &[every]), &[], &[], NOW.parse().unwrap());
        let objectives: Vec<_> = all.iter().map(|one| one.objective).collect();
        assert_eq!(objectives, [Objective::Paused, Objective::Paused, Objective::Excluded]);
    }

    #[test]
    fn local_snapshots_count_for_their_own_volume() {
        let mut volumes = [volume("db", &json!({}), None), volume("log", &json!({}), None)];
        volumes[1].volume_id = "8".parse().unwrap();
        let snapshot: Snapshot = serde_json::from_value(json!({
            "snapshotId": "1", "volumeName": "db", "volumeId": "7", "name": "sched-1", "createdAt": "2026-11-21T21:00:01Z",
            "epoch": 1, "freezeStallMicros": 1, "dirtyBytes": 0, "state": "ready", "export": "db@sched-1", "uri": ""
        }))
        .unwrap();
        let mut both = schedule("daily @21:00", "2026-11-01T00:00:00Z", false);
        both.selector = SelectedVolumes { all: true, ..SelectedVolumes::default() };
        both.local = Some(Retention::max(3).unwrap());
        let all = protections(&known(&volumes, &[both]), &[], &[snapshot], NOW.parse().unwrap());
        let rows: Vec<_> = all
            .iter()
            .map(|one| (one.volume_name.as_str(), one.location().unwrap(), one.objective))
            .collect();
        assert_eq!(
            rows,
            [
                ("db", LOCAL.to_owned(), Objective::Met),
                ("db", "nas".to_owned(), Objective::Missed),
                ("log", LOCAL.to_owned(), Objective::Missed),
                ("log", "nas".to_owned(), Objective::Missed),
            ]
        );
        assert!(missed(&all).any(|problem| problem.cause.starts_with("volume log has no local snapshot")));
    }

    #[test]
    fn volume_with_local_snapshots_only_is_not_backed_up() {
        let volumes = [volume("db", &json!({}), None)];
        let mut local = schedule("daily @21:00", NOW, false);
        local.selector =
            SelectedVolumes { volume_id: Some(volumes[0].volume_id), ..SelectedVolumes::default() };
        local.local = Some(Retention::max(3).unwrap());
        let mut both = local.clone();
        local.credential_ids.clear();
        let found = |volumes: &[Volume], schedules: &[Schedule]| {
            let all = protections(&known(volumes, schedules), &[], &[], NOW.parse().unwrap());
            unprotected(&all).map(|problem| problem.cause).collect::<Vec<_>>()
        };
        let cause = "volume db has local snapshots only: no schedule backs it up";
        assert_eq!(found(&volumes, std::slice::from_ref(&local)), [cause]);
        both.local = None;
        assert!(found(&volumes, &[local.clone(), both]).is_empty());
        assert!(found(&[volume("db", &json!({ "backup": "none" }), None)], &[local]).is_empty());
    }

    #[test]
    fn missed_objective_names_volume_location_and_time() {
        let volumes = [volume("db", &json!({ "app": "db" }), Some("2026-11-20T21:00:05Z"))];
        let known = known(&volumes, &[schedule("daily @21:00", "2026-11-01T00:00:00Z", false)]);
        let all = protections(&known, &[], &[], NOW.parse().unwrap());
        let found: Vec<_> = missed(&all).map(|problem| problem.cause).collect();
        assert_eq!(
            found,
            [
                "the last backup of volume db to nas is of Fri, 20 Nov 2026 21:00:05 UTC; schedule nightly had to make one at Sat, 21 Nov 2026 21:00:00 UTC"
            ]
        );
    }

    #[test]
    fn spans_are_shown_in_their_largest_unit() {
        for (seconds, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (200_000, "2d"), (-5, "0s")]
        {
            assert_eq!(span(SignedDuration::from_secs(seconds)), text);
        }
    }
}
