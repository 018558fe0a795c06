//! Transactions of the scheduler: each step is one transaction, with the time as an argument.
//!
//! The cursor of a rule moves in the transaction that adds its runs, and a run gets its task in the one that
//! stores the task. So a daemon that is killed between them finds the remaining work at its next start.

use crate::schedules::{
    plausibility::shortest_s,
    resumption,
    run_events::{add_daily_run_event, add_run_event},
    selection::{Candidate, is_selected},
};
use blockd_api::{
    events::{EventKind, Severity},
    schedules::{Rule, RunState},
    tasks::TaskKind,
};
use blockd_catalog::{DbError, NewEvent, RunRow, ScheduleRow, TaskRow};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Recurrence, Retention, Tick, tick};
use jiff::{SignedDuration, Timestamp};
use rusqlite::Transaction;
use std::collections::HashSet;
use uuid::Uuid;

/// Delay after which a run is overdue: the scheduler runs several times a minute.
const OVERDUE_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// Cause of runs of a schedule.
struct Cause<'a> {
    rule: Option<&'a Rule>,
    /// Retention pool and its retention; `None` for the schedule's own.
    pool: Option<String>,
    retain: Option<Retention>,
    nominal: Timestamp,
    missed: u32,
}

/// Prefix of the retention pools of manual runs: they displace no backup of a scheduled time.
pub(crate) const MANUAL_POOL: &str = "manual ";

/// Returns the retention pool of a rule and its retention, if it has its own.
pub(crate) fn pool_of(rule: &Rule) -> Option<(String, Retention)> {
    rule.retain.clone().map(|retain| (rule.when.to_string(), retain))
}

/// Returns a run of a schedule without volume and credential.
fn template(schedule: &ScheduleRow, cause: &Cause<'_>, now: Timestamp) -> RunRow {
    RunRow {
        id: 0,
        schedule: schedule.uuid,
        rule: cause.rule.map(|rule| rule.when.clone()),
        nominal: cause.nominal,
        started: now,
        missed: cause.missed,
        priority: schedule.spec.priority,
        force_full: schedule.spec.full,
        volume: None,
        volume_name: None,
        credential: None,
        state: RunState::Queued,
        task: None,
        cloudsnap: None,
        completed: None,
        reason: None,
        pool: cause.pool.clone().unwrap_or_default(),
        retain: cause.retain.clone(),
        snapshot: None,
        retries: 0,
        retry_at: None,
    }
}

/// Ends a run that waited until the next one was due.
fn fail_waiting(tx: &Transaction<'_>, run: &RunRow, now: Timestamp) -> Result<(), DbError> {
    let why = run.reason.as_deref().unwrap_or_default();
    let reason = format!("it could not start before the next run was due: {why}");
    tracing::error!(schedule = %run.schedule, run = run.id, %reason, "the run failed");
    add_run_event(tx, run, RunState::Failed, &reason, now)?;
    end_queued(tx, run, RunState::Failed, reason, now).map(drop)
}

/// Returns true if a new run replaces an unfinished one, which waits: a run of the same rule, unless the
/// backup has transferred data, which would be lost. The run of another rule would leave that one without a
/// backup.
fn is_replaced(tx: &Transaction<'_>, earlier: &RunRow, rule: Option<&Recurrence>) -> Result<bool, DbError> {
    // A user asks for a new point in time now.
    let is_manual = rule.is_none();
    if !is_manual && earlier.rule.is_some() && earlier.rule.as_ref() != rule {
        return Ok(false);
    }
    match earlier.state {
        RunState::Queued => Ok(earlier.reason.is_some()),
        RunState::Retrying => {
            let task = earlier.task.map(|task| TaskRow::find(tx, task)).transpose()?.flatten();
            let has_progress = |task: TaskRow| task.detail.has_progress || task.detail.bytes_processed > 0;
            Ok(is_manual || !task.is_some_and(has_progress))
        }
        _ => Ok(false),
    }
}

/// Returns true if a new run is not even queued beside an unfinished one that it does not replace. A backup
/// that resumes may take days: runs of other rules wait for it, at most one of each. Those of a group do not,
/// as all its volumes would wait.
fn hinders(earlier: &RunRow, resumes: bool, rule: Option<&Recurrence>) -> bool {
    let waits = earlier.state == RunState::Queued || rule.is_some();
    !(resumes && waits && earlier.rule.as_ref() != rule)
}

/// Ends the unfinished runs that a new run of a rule replaces; returns the one that hinders it instead.
fn replace_earlier(
    tx: &Transaction<'_>,
    unfinished: Vec<RunRow>,
    (rule, is_group): (Option<&Recurrence>, bool),
    now: Timestamp,
) -> Result<Option<RunRow>, DbError> {
    let is_resumed = |run: &RunRow| run.state == RunState::Retrying || run.retries > 0;
    let resumes = !is_group && unfinished.iter().any(is_resumed);
    let mut replaced = Vec::new();
    for earlier in unfinished {
        if is_replaced(tx, &earlier, rule)? {
            replaced.push(earlier);
        } else if hinders(&earlier, resumes, rule) {
            return Ok(Some(earlier));
        }
    }
    for earlier in replaced {
        match earlier.state {
            RunState::Retrying => {
                let why = "its backup could not be resumed before the next run was due";
                resumption::give_up(tx, &earlier, why, now)?;
            }
            _ => fail_waiting(tx, &earlier, now)?,
        }
    }
    Ok(None)
}

/// Adds the runs of a schedule, one for each volume and location. A volume with an unfinished run is skipped,
/// unless the new run replaces that one, which fails, or waits for it.
fn add_runs(
    tx: &Transaction<'_>,
    schedule: &ScheduleRow,
    cause: &Cause<'_>,
    volumes: &[Candidate],
    now: Timestamp,
) -> Result<Vec<RunRow>, DbError> {
    let run = template(schedule, cause, now);
    let skipped = |run: RunRow, reason: String| RunRow {
        state: RunState::Skipped,
        completed: Some(now),
        reason: Some(reason),
        ..run
    };
    let mut runs = Vec::new();
    let meant = volumes.iter().filter(|volume| is_selected(&schedule.spec.selector, volume));
    for volume in meant {
        for credential in schedule.spec.locations() {
            let (id, name) = (Some(volume.id), Some(volume.name.clone()));
            let mut run =
                RunRow { volume: id, volume_name: name, credential: Some(credential), ..run.clone() };
            if run.is_local() {
                // They have their own retention.
                (run.pool, run.retain) = (String::new(), None);
            }
            let unfinished = RunRow::unfinished(tx, schedule.uuid, volume.id, credential)?;
            let of_rule = (cause.rule.map(|rule| &rule.when), schedule.spec.selector.group.is_some());
            runs.push(match replace_earlier(tx, unfinished, of_rule, now)? {
                Some(earlier) => {
                    skipped(run, format!("run {} has not ended: it is {}", earlier.id, earlier.state))
                }
                None => run,
            });
        }
    }
    // Reported once, not for each run of a schedule without volumes.
    if runs.is_empty() && (cause.rule.is_none() || !RunRow::matched_no_volume(tx, schedule.uuid)?) {
        runs.push(skipped(run, "the schedule selects no volume".into()));
    }
    let mut added = Vec::new();
    for mut run in runs {
        match run.insert(tx)? {
            Some(id) => {
                run.id = id;
                added.push(run);
            }
            None => {
                tracing::warn!(schedule = %run.schedule, nominal = %run.nominal, "run not added: one of the same time exists");
            }
        }
    }
    Ok(added)
}

/// Returns the time up to which the runs of a rule without a cursor are processed: of an existing schedule,
/// those whose delayed start is not over come.
fn first_cursor(schedule: &ScheduleRow, rule: &Recurrence, now: Timestamp) -> Timestamp {
    let delay = SignedDuration::from_secs(schedule.delay_s(rule).into());
    now.checked_sub(delay).unwrap_or(now).max(schedule.created).min(now)
}

/// Adds the runs that are due at `now`, and returns the time of the next pass.
pub fn fire(
    tx: &Transaction<'_>,
    volumes: &[Candidate],
    now: Timestamp,
) -> Result<Option<Timestamp>, DbError> {
    let mut next: Option<Timestamp> = None;
    let mut wake_at = |due: Timestamp| next = Some(next.map_or(due, |next| next.min(due)));
    for schedule in ScheduleRow::all(tx)?.iter().filter(|schedule| !schedule.paused) {
        for rule in schedule.rules(tx)? {
            let delay_s = schedule.delay_s(&rule.when);
            let Some(processed_until) = schedule.cursor(tx, &rule.when)? else {
                schedule.set_cursor(tx, &rule.when, first_cursor(schedule, &rule.when, now))?;
                wake_at(now);
                continue;
            };
            match tick(&rule.when, processed_until, delay_s, now) {
                Tick::Wait { due } => wake_at(due),
                Tick::Run { nominal, missed, late_s, processed_until } => {
                    if missed > 0 {
                        tracing::warn!(schedule = %schedule.uuid, rule = %rule.when, missed, late_s, "runs were missed: one run replaces them");
                        let message = format!(
                            "{missed} runs of schedule {} ({}) were missed: one run replaces them",
                            schedule.summary(),
                            rule.when
                        );
                        let event = EventKind::ScheduleMissed;
                        NewEvent::new(now, Severity::Warning, event, message).insert(tx)?;
                    }
                    let (pool, retain) = pool_of(&rule).unzip();
                    let cause = Cause { rule: Some(&rule), pool, retain, nominal, missed };
                    for run in add_runs(tx, schedule, &cause, volumes, now)? {
                        if let Some(reason) = &run.reason {
                            tracing::warn!(schedule = %schedule.uuid, run = run.id, %reason, "run skipped");
                            let of = (reason.as_str(), reason.as_str());
                            add_daily_run_event(tx, &run, RunState::Skipped, of, now)?;
                        }
                    }
                    schedule.set_cursor(tx, &rule.when, processed_until)?;
                    wake_at(now);
                }
                Tick::ClockSetBack { processed_until } => {
                    tracing::warn!(schedule = %schedule.uuid, rule = %rule.when, "clock was set back: the rule starts again from the current time");
                    RunRow::free_later(tx, schedule.uuid, &rule.when, now)?;
                    schedule.set_cursor(tx, &rule.when, processed_until)?;
                    wake_at(now);
                }
                _ => {}
            }
        }
    }
    Ok(next)
}

/// Returns the rule whose retention manual runs of a schedule without its own have: the most frequent one.
fn rule_of_manual_runs<'a>(schedule: &ScheduleRow, rules: &'a [Rule], now: Timestamp) -> Option<&'a Rule> {
    if !schedule.spec.retain.keeps_all() {
        return None;
    }
    let limited = rules.iter().filter(|rule| rule.retain.as_ref().is_some_and(|own| !own.keeps_all()));
    limited.min_by_key(|rule| shortest_s(&rule.when, now).unwrap_or(i64::MAX))
}

/// Adds manual runs. What they keep is decided now: a rule that is added later must not delete their backups.
pub fn run_now(
    tx: &Transaction<'_>,
    schedule: &ScheduleRow,
    volumes: &[Candidate],
    now: Timestamp,
) -> Result<Vec<RunRow>, DbError> {
    let rules = schedule.rules(tx)?;
    let (of_rule, retain) = rule_of_manual_runs(schedule, &rules, now).and_then(pool_of).unzip();
    let pool = Some(format!("{MANUAL_POOL}{}", of_rule.unwrap_or_default()));
    let cause = Cause { rule: None, pool, retain, nominal: now, missed: 0 };
    add_runs(tx, schedule, &cause, volumes, now)
}

/// Returns the start of the next run, including jitter.
pub fn next_run(
    tx: &Transaction<'_>,
    schedule: &ScheduleRow,
    now: Timestamp,
) -> Result<Option<Timestamp>, DbError> {
    if schedule.paused {
        return Ok(None);
    }
    let mut next: Option<Timestamp> = None;
    for rule in schedule.rules(tx)? {
        let delay_s = schedule.delay_s(&rule.when);
        let processed_until = schedule.cursor(tx, &rule.when)?;
        let processed_until = processed_until.unwrap_or_else(|| first_cursor(schedule, &rule.when, now));
        let due = match tick(&rule.when, processed_until, delay_s, now) {
            Tick::Wait { due } => due,
            Tick::Run { .. } | Tick::ClockSetBack { .. } => now,
            _ => continue,
        };
        next = Some(next.map_or(due, |next| next.min(due)));
    }
    Ok(next)
}

/// Returns the time since when the next run is overdue.
pub fn overdue_since(
    tx: &Transaction<'_>,
    schedule: &ScheduleRow,
    now: Timestamp,
) -> Result<Option<Timestamp>, DbError> {
    if schedule.paused {
        return Ok(None);
    }
    let mut since: Option<Timestamp> = None;
    for rule in schedule.rules(tx)? {
        let Some(processed_until) = schedule.cursor(tx, &rule.when)? else { continue };
        let Some(next) = rule.when.next_after(processed_until) else { continue };
        let delay = SignedDuration::from_secs(schedule.delay_s(&rule.when).into());
        let due = next.checked_add(delay).unwrap_or(Timestamp::MAX);
        if due.checked_add(OVERDUE_AFTER).is_ok_and(|late| late < now) {
            since = Some(since.map_or(due, |since| since.min(due)));
        }
    }
    Ok(since)
}

/// Runs that start together: all locations of a volume, and all volumes of a group, share one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Runs.
    pub runs: Vec<RunRow>,
    /// The runs belong to a group of volumes.
    pub is_group: bool,
    /// The runs are drills.
    pub is_drill: bool,
}

impl Batch {
    /// Returns true if a run has the same cause and starts with these.
    fn accepts(&self, run: &RunRow, is_group: bool) -> bool {
        self.runs.first().is_some_and(|first| {
            let cause = |run: &RunRow| (run.schedule, run.rule.clone(), run.nominal, run.started);
            cause(first) == cause(run) && (is_group || first.volume == run.volume)
        })
    }

    fn volumes(&self) -> HashSet<VolumeId> {
        self.runs.iter().filter_map(|run| run.volume).collect()
    }

    /// Returns false for local snapshots and drills only, which need no upload.
    pub fn needs_upload(&self) -> bool {
        !self.is_drill && !self.runs.iter().all(RunRow::is_local)
    }

    /// Returns the part that waits for no upload.
    pub fn without_upload(self) -> Option<Self> {
        let needs_none = |run: &RunRow| self.is_drill || run.is_local();
        let runs: Vec<RunRow> = self.runs.into_iter().filter(needs_none).collect();
        (!runs.is_empty()).then_some(Self { runs, ..self })
    }
}

/// Runs that may start now.
#[derive(Clone, Debug)]
pub struct Ready {
    /// All candidates, most urgent first; at most one batch per volume.
    pub batches: Vec<Batch>,
    /// Number of free slots. The choice is made later: some batches are refused at the start, and must not
    /// block others.
    pub free_slots: usize,
}

/// Returns the runs that may start now.
pub fn ready(tx: &Transaction<'_>, concurrency: usize) -> Result<Ready, DbError> {
    let is_group = |schedule: &ScheduleRow| schedule.spec.selector.group.is_some();
    let schedules = ScheduleRow::all(tx)?;
    let groups: HashSet<_> = schedules.iter().filter(|row| is_group(row)).map(|row| row.uuid).collect();
    let paused: HashSet<_> = schedules.iter().filter(|row| row.paused).map(|row| row.uuid).collect();
    let is_drill = |row: &&ScheduleRow| row.spec.drill.is_some();
    let of_drills: HashSet<_> = schedules.iter().filter(is_drill).map(|row| row.uuid).collect();
    let active: HashSet<_> = RunRow::in_state(tx, RunState::Active)?
        .iter()
        .filter(|run| !run.is_local() && run.cloudsnap.is_some())
        .map(|run| (run.schedule, run.volume))
        .collect();
    let mut busy: HashSet<VolumeId> = TaskRow::unfinished(tx)?
        .iter()
        .filter(|task| task.kind() == TaskKind::Backup)
        .filter_map(|task| task.volume)
        .collect();
    // The start of a later backup discards one that resumes.
    let is_paused = |run: &RunRow| run.rule.is_some() && paused.contains(&run.schedule);
    let retrying: HashSet<_> = RunRow::in_state(tx, RunState::Retrying)?
        .iter()
        .filter(|run| !is_paused(run))
        .map(|run| (run.volume, run.credential))
        .collect();
    // Manual runs start in place of a backup that resumes.
    let is_later = |run: &RunRow| {
        let is_backup = run.rule.is_some() && !of_drills.contains(&run.schedule);
        is_backup && retrying.contains(&(run.volume, run.credential))
    };
    let mut waiting: Vec<Batch> = Vec::new();
    for run in RunRow::in_state(tx, RunState::Queued)? {
        // Manual runs start also while paused.
        if is_paused(&run) {
            continue;
        }
        let is_group = groups.contains(&run.schedule);
        match waiting.iter_mut().find(|batch| batch.accepts(&run, is_group)) {
            Some(batch) => batch.runs.push(run),
            None => {
                let is_drill = of_drills.contains(&run.schedule);
                waiting.push(Batch { runs: vec![run], is_group, is_drill });
            }
        }
    }
    let mut batches = Vec::new();
    for mut batch in waiting {
        // The volumes of a location have one point in time.
        let held: HashSet<_> =
            batch.runs.iter().filter(|run| is_later(run)).map(|run| run.credential).collect();
        batch.runs.retain(|run| !held.contains(&run.credential));
        let volumes = batch.volumes();
        if volumes.is_empty() {
            continue;
        }
        let needs_upload = batch.needs_upload();
        if !needs_upload || volumes.is_disjoint(&busy) {
            batches.push(batch);
        } else {
            // Local snapshots do not wait for another upload.
            batches.extend(batch.without_upload());
        }
        if needs_upload {
            // Volumes of a waiting batch count as taken, so that it does not starve.
            busy.extend(volumes);
        }
    }
    Ok(Ready { batches, free_slots: concurrency.saturating_sub(active.len()) })
}

/// Records the task of a run in the transaction that stores the task. Fails if the run is no longer queued.
pub fn record_start(tx: &Transaction<'_>, run: &RunRow, task: &TaskRow) -> Result<(), DbError> {
    // A drill makes no cloud snapshot.
    let (id, cloudsnap) = (Some(task.id), task.spec.backup().map(|_| task.cloudsnap));
    let record_start = RunRow { state: RunState::Active, task: id, cloudsnap, reason: None, ..run.clone() };
    if record_start.update_queued(tx)? { Ok(()) } else { Err(DbError::NotWaiting(run.id)) }
}

/// Records the local snapshot of a run, with or without the task of a backup. Fails if the run is no longer
/// queued.
pub fn record_local_start(
    tx: &Transaction<'_>,
    run: &RunRow,
    snapshot: SnapshotId,
    task: Option<Uuid>,
) -> Result<(), DbError> {
    let snapshot = Some(snapshot);
    let record_start = RunRow { state: RunState::Active, task, snapshot, reason: None, ..run.clone() };
    if record_start.update_queued(tx)? { Ok(()) } else { Err(DbError::NotWaiting(run.id)) }
}

/// Records the cause of a wait.
pub fn waits(tx: &Transaction<'_>, run: &RunRow, reason: String) -> Result<(), DbError> {
    RunRow { reason: Some(reason), ..run.clone() }.update_queued(tx).map(drop)
}

/// Ends a queued run; returns false if it is no longer queued.
pub fn end_queued(
    tx: &Transaction<'_>,
    run: &RunRow,
    state: RunState,
    reason: String,
    now: Timestamp,
) -> Result<bool, DbError> {
    RunRow { state, completed: Some(now), reason: Some(reason), ..run.clone() }.update_queued(tx)
}
