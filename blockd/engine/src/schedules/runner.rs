//! Scheduler task: adds due runs, starts queued ones, and deletes what retention does not keep.

use crate::{
    backup::{BackupRequest, Backups, Member},
    cloud_snapshots::delete_requests::Deletions,
    drills::Drills,
    error::ServiceError,
    events::EventLog,
    health::{ComponentHealth, SCHEDULES},
    host::Host,
    quiesce::{Quiescer, rules::QuiesceRequest},
    repositories::Repositories,
    schedules::{
        judgement::{self, Judgement},
        requests::Schedules,
        resumption,
        retention_checks::{RetentionCheck, RetentionChecks},
        run_events::is_passing,
        transactions::{self, Batch, Ready},
        wake::Scheduler,
    },
    snapshots::Snapshots,
    tasks::{Tasks, runner::Runner},
    volumes::registry::Registry,
};
use blockd_api::{CredentialRef, ErrorCode, ObjectName, SnapshotName, VolumeRef, cloudsnaps::BackupOptions};
use blockd_catalog::{Db, DbError, LOCAL, RunRow, ScheduleRow, TaskRow};
use blockd_extent::VolumeId;
use futures::FutureExt;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Maximum time between two passes: clocks are set and hosts suspend without notice.
const MAX_WAIT_MS: u64 = 20_000;
/// Minimum time between two passes.
const MIN_WAIT_MS: u64 = 50;
/// First pause before a failed deletion is retried; doubled each time.
const FIRST_RETRY_PAUSE_S: u64 = 5;
/// Maximum pause.
const MAX_RETRY_PAUSE_S: u64 = 3_600;

/// Descriptions of the scheduler's steps.
const ADDING: &str = "adding due runs";
const STARTING: &str = "starting runs";
const DELETING_LOCAL: &str = "deleting surplus local snapshots";
const DELETING: &str = "deleting surplus cloud snapshots";

/// Returns the name of a schedule's snapshots of one point in time.
pub(super) fn snapshot_name(schedule: Uuid, now: Timestamp) -> Result<SnapshotName, ServiceError> {
    let of = schedule.simple().to_string();
    let of = of.get(..8).unwrap_or_default();
    Ok(format!("sched-{of}-{}", now.strftime("%Y%m%dT%H%M%S.%3fZ")).parse()?)
}

/// Runs the schedules and their retention.
pub struct ScheduleRunner {
    pub(crate) backups: Arc<Backups>,
    pub(crate) checks: Arc<RetentionChecks>,
    pub(crate) db: Arc<Db>,
    pub(crate) deletions: Arc<Deletions>,
    pub(crate) drills: Arc<Drills>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) quiescer: Arc<Quiescer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

/// Time of the next attempt of a deletion.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    pub(super) until: Instant,
    next_s: u64,
}

impl Default for Delay {
    fn default() -> Self {
        Self { until: Instant::now(), next_s: FIRST_RETRY_PAUSE_S }
    }
}

impl Delay {
    pub(super) fn lengthen(&mut self) {
        self.until = Instant::now() + Duration::from_secs(self.next_s);
        self.next_s = self.next_s.saturating_mul(2).min(MAX_RETRY_PAUSE_S);
    }
}

/// Times of the next attempts of failed deletions, by credential and cloud snapshot.
pub type Delays = HashMap<(Uuid, String), Delay>;

fn delay_key(judgement: &Judgement) -> (Uuid, String) {
    (judgement.credential, judgement.cloudsnap.to_string())
}

fn is_delayed(delays: &Delays, judgement: &Judgement) -> bool {
    delays.get(&delay_key(judgement)).is_some_and(|delay| delay.until > Instant::now())
}

/// Runs the scheduler until the daemon stops.
pub async fn run(schedule_runner: Arc<ScheduleRunner>) {
    // Deletions wait for stores; backups must not.
    tokio::join!(begin_runs(&schedule_runner), delete_runs(&schedule_runner));
}

/// Runs a pass until the daemon stops: each step is a transaction, and the next start does the rest. Returns
/// `None` for a failure, which is reported until a pass succeeds.
///
/// # Errors
/// The daemon stops.
async fn guarded<T>(
    schedule_runner: &ScheduleRunner,
    what: &'static str,
    pass: impl Future<Output = Result<T, ServiceError>>,
) -> Result<Option<T>, ServiceError> {
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(pass).catch_unwind() => outcome,
        () = schedule_runner.host.stopping.cancelled() => return Err(ServiceError::Stopping),
    };
    match outcome {
        Ok(Ok(value)) => {
            succeeded(schedule_runner, what);
            Ok(Some(value))
        }
        Ok(Err(ServiceError::Stopping)) => Err(ServiceError::Stopping),
        Ok(Err(error)) => {
            failed(schedule_runner, what, &error.to_string());
            Ok(None)
        }
        Err(_) => {
            failed(schedule_runner, what, "the scheduler panicked; see the log");
            Ok(None)
        }
    }
}

/// Reports a failed step of the scheduler while it lasts, and logs it once.
fn failed(schedule_runner: &ScheduleRunner, what: &'static str, error: &str) {
    let problem = format!("schedules: {what} failed: {error}");
    if schedule_runner.health.note(
        SCHEDULES,
        what,
        problem,
        "fix the cause; the scheduler retries several times a minute",
    ) {
        tracing::error!(what, %error, "scheduler pass failed; retrying");
    }
}

fn succeeded(schedule_runner: &ScheduleRunner, what: &'static str) {
    if schedule_runner.health.clear(SCHEDULES, what) {
        tracing::info!(what, "scheduler pass works again");
    }
}

async fn begin_runs(schedule_runner: &Arc<ScheduleRunner>) {
    while let Ok(outcome) =
        guarded(schedule_runner, ADDING, schedule_runner.scheduler_pass(Timestamp::now())).await
    {
        let wait_ms = match outcome.flatten() {
            Some(due) => {
                let until_ms = due.as_millisecond().saturating_sub(Timestamp::now().as_millisecond());
                u64::try_from(until_ms).unwrap_or(0).clamp(MIN_WAIT_MS, MAX_WAIT_MS)
            }
            None => MAX_WAIT_MS,
        };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
            () = schedule_runner.scheduler.wake.notified() => {}
            () = schedule_runner.host.stopping.cancelled() => return,
        }
    }
}

async fn delete_runs(schedule_runner: &Arc<ScheduleRunner>) {
    let mut delays = Delays::new();
    loop {
        // An unreachable store must not delay the deletion of local snapshots, and vice versa.
        let local = schedule_runner.delete_surplus_snapshots(Timestamp::now(), &mut delays);
        if guarded(schedule_runner, DELETING_LOCAL, local).await.is_err()
            || guarded(schedule_runner, DELETING, schedule_runner.delete_surplus(Timestamp::now, &mut delays))
                .await
                .is_err()
        {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(MAX_WAIT_MS)) => {}
            () = schedule_runner.scheduler.judge.notified() => {}
            () = schedule_runner.host.stopping.cancelled() => return,
        }
    }
}

/// Returns the volumes of runs, each with the repositories of its backups.
fn members_of(runs: &[RunRow]) -> Vec<Member> {
    let mut targets: BTreeMap<VolumeId, Vec<CredentialRef>> = BTreeMap::new();
    for run in runs {
        if let (Some(volume), Some(credential)) = (run.volume, run.credential) {
            targets.entry(volume).or_default().push(CredentialRef::Id(credential));
        }
    }
    let member =
        |(volume, credentials)| Member { volume: VolumeRef::Id(volume), credentials, snapshot: None };
    targets.into_iter().map(member).collect()
}

/// Returns the name of the backups of all volumes of a schedule at one scheduled time; `None` if it is too
/// long. That of a manual run has milliseconds: several of one second may each back up a small volume.
fn scheduled_name(schedule: &ObjectName, nominal: Timestamp) -> Option<ObjectName> {
    let is_whole = nominal.subsec_nanosecond() == 0;
    let format = if is_whole { "%Y%m%d%H%M%S" } else { "%Y%m%d%H%M%S%3f" };
    format!("{schedule}-{}", nominal.strftime(format)).parse().ok()
}

/// Records the tasks of started runs.
fn record_starts(tx: &rusqlite::Transaction<'_>, runs: &[RunRow], tasks: &[TaskRow]) -> Result<(), DbError> {
    runs.iter().try_for_each(|run| {
        if run.is_local() {
            let of_volume = |task: &&TaskRow| task.volume == run.volume;
            let Some(task) = tasks.iter().find(of_volume) else { return Ok(()) };
            let Some(snapshot) = task.snapshot else { return Ok(()) };
            return transactions::record_local_start(tx, run, snapshot, Some(task.id));
        }
        let is_its = |task: &&TaskRow| task.volume == run.volume && Some(task.credential) == run.credential;
        tasks.iter().find(is_its).map_or(Ok(()), |task| transactions::record_start(tx, run, task))
    })
}

impl ScheduleRunner {
    /// Runs one pass; returns the time of the next one.
    pub async fn scheduler_pass(self: &Arc<Self>, now: Timestamp) -> Result<Option<Timestamp>, ServiceError> {
        let (volumes, scheduler) = (self.schedules.candidates(), Arc::clone(&self.scheduler));
        let concurrency = self.host.settings.task_concurrency;
        let ((next, due, ready), given_up) = self
            .db
            .run(move |tx| -> Result<_, DbError> {
                resumption::with_given_up(tx, || {
                    scheduler.settle(tx, now)?;
                    let next = transactions::fire(tx, &volumes, now)?;
                    let (due, next_retry) = resumption::due(tx, now)?;
                    let next = [next, next_retry].into_iter().flatten().min();
                    Ok((next, due, transactions::ready(tx, concurrency)?))
                })
            })
            .await?;
        given_up.iter().for_each(|task| self.tasks.ended.note(task.kind(), task.state));
        let Ready { batches, mut free_slots } = ready;
        self.events.wake();
        // A run with an ended task may be surplus, as only `settle` knows.
        self.scheduler.judge.notify_one();
        self.resume_runs(due, &mut free_slots, now).await?;
        let mut failing = None;
        for batch in batches {
            // Without a free slot, which uploads to an unreachable store may hold for days, local snapshots
            // and drills continue.
            let batch = if free_slots == 0 { batch.without_upload() } else { Some(batch) };
            let Some(batch) = batch else { continue };
            let needs_upload = batch.needs_upload();
            let first = batch.runs.first().map(|run| (run.schedule, run.id));
            match self.begin_batch(batch, now).await {
                Ok(true) if needs_upload => free_slots -= 1,
                Ok(_) => {}
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                // The others must continue; these are retried in the next pass.
                Err(error) => {
                    tracing::debug!(?first, %error, "starting runs failed");
                    failing = Some(error);
                }
            }
        }
        match failing {
            Some(error) => failed(self, STARTING, &error.to_string()),
            None => succeeded(self, STARTING),
        }
        self.events.report_degraded_volumes(now).await?;
        Ok(next)
    }

    /// Starts the runs of a batch, or ends those that cannot start; returns true if they started.
    async fn begin_batch(self: &Arc<Self>, batch: Batch, now: Timestamp) -> Result<bool, ServiceError> {
        let known: HashSet<Uuid> =
            self.repositories.credential_rows().await?.iter().map(|row| row.uuid).collect();
        let is_known =
            |run: &RunRow| run.is_local() || run.credential.is_some_and(|uuid| known.contains(&uuid));
        let (runs, without_credential): (Vec<_>, Vec<_>) = batch.runs.into_iter().partition(is_known);
        if !without_credential.is_empty() {
            self.end_runs(without_credential, "its credential no longer exists".to_owned(), now).await?;
        }
        let Some(first) = runs.first().cloned() else { return Ok(false) };
        let of = first.schedule;
        let schedule = match self.db.run(move |tx| ScheduleRow::find(tx, of)).await {
            Err(error) if error.is_unreadable() => {
                let reason = format!("its schedule cannot be read: {error}");
                return self.end_runs(runs, reason, now).await.map(|()| false);
            }
            found => found?,
        };
        if let Some(options) = schedule.as_ref().and_then(|row| row.spec.drill.as_ref()) {
            return self.begin_drills(Batch { runs, ..batch }, options, now).await;
        }
        let (local, stored): (Vec<_>, Vec<_>) = runs.iter().cloned().partition(RunRow::is_local);
        if stored.is_empty() {
            let batch = Batch { runs: local, ..batch };
            return self.begin_local(batch, schedule, now).await.map(|()| true);
        }
        let members = members_of(&stored);
        let together = batch.is_group.then(Uuid::new_v4);
        let record_start = runs.clone();
        let keep_local = match local.is_empty() {
            true => None,
            false => Some(snapshot_name(of, now)?),
        };
        let spec = schedule.map(|row| row.spec);
        let name = spec.as_ref().and_then(|spec| scheduled_name(spec.name.as_ref()?, first.nominal));
        let spec =
            spec.map(|spec| (spec.rule, spec.labels, spec.compression, spec.reupload, spec.selector.group));
        let (scheduled, labels, compression, reupload, group) = spec.unwrap_or_default();
        let hooks = QuiesceRequest { scheduled, ..QuiesceRequest::default() };
        let asked = BackupRequest {
            options: BackupOptions {
                full: first.force_full,
                reupload: reupload && first.force_full,
                name,
                labels,
                compression,
                ..BackupOptions::default()
            },
            together,
            group,
            hooks,
            schedule: Some(of),
            keep_local,
            ..BackupRequest::default()
        };
        let started = self
            .backups
            .start_backups(&members, &asked, move |tx, tasks| record_starts(tx, &record_start, tasks));
        match started.await {
            Ok(tasks) => {
                tracing::info!(schedule = %first.schedule, run = first.id, tasks = tasks.len(), "run started");
                Ok(true)
            }
            // Runs without a store start separately, unless all wait.
            Err(error) if is_passing(&error) => self.not_started(runs, error, now).await.map(|()| false),
            Err(error) => self.not_started(stored, error, now).await.map(|()| false),
        }
    }

    /// Returns the retention decisions for all backups at a time.
    async fn judged(&self, now: Timestamp) -> Result<Vec<Judgement>, ServiceError> {
        let judged = self.db.run(move |tx| -> Result<_, DbError> {
            let mut judged = Vec::new();
            for schedule in ScheduleRow::all(tx)? {
                judged.extend(judgement::judge(tx, &schedule, now)?);
            }
            Ok(judged)
        });
        Ok(judged.await?)
    }

    /// Starts the deletions of surplus backups. A run counts as a backup until the end of the deletion, so
    /// that a failed one is judged and retried.
    pub async fn delete_surplus(
        self: &Arc<Self>,
        now: impl Fn() -> Timestamp,
        delays: &mut Delays,
    ) -> Result<(), ServiceError> {
        // The clock of this host may be wrong. This decision only selects the stores; the decision to delete
        // follows the comparison of clocks.
        let mut surplus = self.judged(now()).await?;
        surplus.retain(|judgement| judgement.verdict.is_delete());
        let wanted: HashSet<_> = surplus.iter().map(delay_key).collect();
        delays.retain(|of, _| of.0 == LOCAL || wanted.contains(of));
        surplus.retain(|judgement| !is_delayed(delays, judgement));
        let checked = self.check_clocks(&surplus, delays).await?;
        if checked.is_empty() {
            return Ok(());
        }
        let (mut surplus, kept): (Vec<_>, Vec<_>) =
            self.judged(now()).await?.into_iter().partition(|judgement| judgement.verdict.is_delete());
        surplus.retain(|judgement| checked.contains(&judgement.credential) && !is_delayed(delays, judgement));
        // Results of this pass: the kept backups of a volume in a location are complete.
        let mut whole: HashMap<(Uuid, Uuid, VolumeId), RetentionCheck> = HashMap::new();
        for judgement in surplus {
            let (id, credential) = (judgement.cloudsnap, judgement.credential);
            let of = (credential, id.cluster, id.volume);
            let attempt = async {
                let found = match whole.get(&of) {
                    Some(found) => *found,
                    None => self.checks.check_kept(credential, &id, &kept).await?,
                };
                whole.insert(of, found);
                match found {
                    RetentionCheck::Whole => {}
                    // The next pass evaluates it again without the missing backups.
                    RetentionCheck::Fewer => return Ok(None),
                    RetentionCheck::Doubtful => {
                        let what = "a backup that retention would keep may not be restorable";
                        return Err(ServiceError::refused(ErrorCode::CloudsnapDamaged, what));
                    }
                }
                self.host.failpoints.reached("surplus judged")?;
                self.deletions.start_judged_delete(&id, credential, judgement.mark).await.map(Some)
            };
            match attempt.await {
                Ok(None) => continue,
                Ok(Some(None)) => {
                    tracing::info!(cloudsnap = %id, "deletion skipped: pin or expiry date changed concurrently");
                }
                Ok(Some(Some(started))) => {
                    tracing::info!(cloudsnap = %id, task = %started.task_id, verdict = %judgement.verdict, "deletion by retention started");
                }
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) if error.to_api().code == ErrorCode::CloudsnapNotFound => {
                    match self.checks.expire_run_of_deleted(credential, id).await {
                        Ok(()) => {
                            tracing::info!(cloudsnap = %id, verdict = %judgement.verdict, "surplus backup is deleted already");
                            continue;
                        }
                        Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                        Err(error) => {
                            tracing::warn!(cloudsnap = %id, %error, "check of a missing backup failed");
                        }
                    }
                }
                // The store may be unreachable, or the backup in use.
                Err(error) => {
                    tracing::warn!(cloudsnap = %id, %error, "deleting a surplus backup failed; it is retried later");
                }
            }
            delays.entry(delay_key(&judgement)).or_default().lengthen();
        }
        self.host.failpoints.reached("surplus checked")
    }

    /// Compares the clock of this host with each store that has surplus backups; returns the credentials with
    /// matching clocks.
    async fn check_clocks(
        self: &Arc<Self>,
        surplus: &[Judgement],
        delays: &mut Delays,
    ) -> Result<HashSet<Uuid>, ServiceError> {
        let mut checked: HashSet<Uuid> = surplus.iter().map(|judgement| judgement.credential).collect();
        for credential in checked.clone() {
            match self.checks.check_clock_of(credential).await {
                Ok(()) => {}
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) => {
                    tracing::warn!(%credential, %error, "clock check failed: nothing is deleted under this credential for now");
                    checked.remove(&credential);
                    for judgement in surplus.iter().filter(|judgement| judgement.credential == credential) {
                        delays.entry(delay_key(judgement)).or_default().lengthen();
                    }
                }
            }
        }
        Ok(checked)
    }
}
