//! The task that looks at the schedules: adds runs that are due, begins those whose turn it is, and deletes
//! what is not kept any more.

use super::{
    engine::{self, Batch, Judgement, Ready},
    kept::Kept,
    local::snapshot_name,
};
use crate::{
    backups::{Asked, Member},
    core::Core,
    db::{DbError, LOCAL, NewEvent, RunRow, ScheduleRow, TaskRow},
    error::ServiceError,
    health::SCHEDULES,
    rules::AskedRest,
};
use blockd_api::{CredentialRef, ErrorCode, VolumeRef, events::Severity, schedules::RunState};
use blockd_extent::{SnapshotId, VolumeId};
use futures::FutureExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinHandle};
use uuid::Uuid;

/// The longest time between two looks: clocks are set, and hosts sleep, without anybody being told.
const MAX_WAIT_MS: u64 = 20_000;
/// The shortest time between two looks.
const MIN_WAIT_MS: u64 = 50;
/// After how long a deletion that did not succeed is tried again; twice as long each time.
const DELETE_AGAIN_S: u64 = 5;
/// The longest such time.
const MAX_DELETE_AGAIN_S: u64 = 3_600;

/// What the scheduler does, in words.
const ADDING: &str = "making runs that are due";
const BEGINNING: &str = "beginning runs";
const DELETING_LOCAL: &str = "deleting local snapshots that are not kept";
const DELETING: &str = "deleting cloud snapshots that are not kept";

/// Wakes the scheduler.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    wake: Notify,
    /// Wakes the deletions.
    judge: Notify,
    /// The local snapshots that are being taken, of runs without a backup.
    pub(super) freezing: Mutex<HashSet<SnapshotId>>,
}

/// When a deletion may be asked for again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delay {
    pub(super) until: Instant,
    next_s: u64,
}

impl Default for Delay {
    fn default() -> Self {
        Self { until: Instant::now(), next_s: DELETE_AGAIN_S }
    }
}

impl Delay {
    pub(super) fn lengthen(&mut self) {
        self.until = Instant::now() + Duration::from_secs(self.next_s);
        self.next_s = self.next_s.saturating_mul(2).min(MAX_DELETE_AGAIN_S);
    }
}

/// When the deletions that did not succeed may be asked for again, by credential and cloud snapshot.
pub(crate) type Delays = HashMap<(Uuid, String), Delay>;

fn delay_key(judgement: &Judgement) -> (Uuid, String) {
    (judgement.credential, judgement.cloudsnap.to_string())
}

fn is_delayed(delays: &Delays, judgement: &Judgement) -> bool {
    delays.get(&delay_key(judgement)).is_some_and(|delay| delay.until > Instant::now())
}

impl Scheduler {
    /// Something has changed: a schedule, or a task has ended.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
        self.judge.notify_one();
    }
}

/// Looks at the schedules until the daemon stops.
pub(crate) fn start(core: Arc<Core>) -> JoinHandle<()> {
    // Deletions wait for stores; backups must not wait for them.
    tokio::spawn(async move { tokio::join!(begin_runs(&core), delete_runs(&core)) }.map(drop))
}

/// Does a pass, and no more of it once the daemon stops: each step is a transaction, and what is left of it
/// is done after the next start. None if the daemon stops, or if the pass failed, which is told until one
/// succeeds.
async fn guarded<T>(
    core: &Core,
    what: &'static str,
    pass: impl Future<Output = Result<T, ServiceError>>,
) -> Result<Option<T>, ServiceError> {
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(pass).catch_unwind() => outcome,
        () = core.stopping.cancelled() => return Err(ServiceError::Stopping),
    };
    match outcome {
        Ok(Ok(value)) => {
            succeeded(core, what);
            Ok(Some(value))
        }
        Ok(Err(ServiceError::Stopping)) => Err(ServiceError::Stopping),
        Ok(Err(error)) => {
            failed(core, what, &error.to_string());
            Ok(None)
        }
        Err(_) => {
            failed(core, what, "a look at the schedules panicked; the log says where");
            Ok(None)
        }
    }
}

/// What of the schedules does not work is told while that is so, and logged once.
fn failed(core: &Core, what: &'static str, error: &str) {
    let told = format!("schedules: {what} fails: {error}");
    if core.health.note(SCHEDULES, what, told, "mend the cause; it is tried again several times a minute") {
        tracing::error!(what, %error, "the schedules could not be looked at; it is tried again and again");
    }
}

fn succeeded(core: &Core, what: &'static str) {
    if core.health.clear(SCHEDULES, what) {
        tracing::info!(what, "the schedules can be looked at again");
    }
}

async fn begin_runs(core: &Arc<Core>) {
    while let Ok(outcome) = guarded(core, ADDING, core.scheduler_pass(Timestamp::now())).await {
        let wait_ms = match outcome.flatten() {
            Some(due) => {
                let until_ms = due.as_millisecond().saturating_sub(Timestamp::now().as_millisecond());
                u64::try_from(until_ms).unwrap_or(0).clamp(MIN_WAIT_MS, MAX_WAIT_MS)
            }
            None => MAX_WAIT_MS,
        };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
            () = core.scheduler.wake.notified() => {}
            () = core.stopping.cancelled() => return,
        }
    }
}

async fn delete_runs(core: &Arc<Core>) {
    let mut delays = Delays::new();
    loop {
        // A store that is away must not keep local snapshots, nor the other way round.
        let local = core.delete_surplus_snapshots(Timestamp::now(), &mut delays);
        if guarded(core, DELETING_LOCAL, local).await.is_err()
            || guarded(core, DELETING, core.delete_surplus(Timestamp::now, &mut delays)).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(MAX_WAIT_MS)) => {}
            () = core.scheduler.judge.notified() => {}
            () = core.stopping.cancelled() => return,
        }
    }
}

impl Core {
    /// One look at the schedules; says when the next one is needed.
    pub(crate) async fn scheduler_pass(
        self: &Arc<Self>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, ServiceError> {
        let (volumes, freezing) = (self.candidates(), self.scheduler.freezing.lock().clone());
        let concurrency = self.config.task_concurrency;
        let (next, Ready { batches, mut places }) = self
            .db
            .run(move |tx| -> Result<_, DbError> {
                engine::settle(tx, &freezing, now)?;
                let next = engine::fire(tx, &volumes, now)?;
                Ok((next, engine::ready(tx, concurrency)?))
            })
            .await?;
        self.events.wake();
        // A run whose task has ended may be one too many, which only `settle` has noted.
        self.scheduler.judge.notify_one();
        let mut failing = None;
        for batch in batches {
            // Without a place, which uploads to a store that is away may hold for days, there are local
            // snapshots still.
            let batch = if places == 0 { batch.only_local() } else { Some(batch) };
            let Some(batch) = batch else { continue };
            let is_local = batch.is_local();
            let first = batch.runs.first().map(|run| (run.schedule, run.id));
            match self.begin_batch(batch, now).await {
                Ok(true) if !is_local => places -= 1,
                Ok(_) => {}
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                // The others must go on; these are tried again at the next look.
                Err(error) => {
                    tracing::debug!(?first, %error, "runs could not be begun");
                    failing = Some(error);
                }
            }
        }
        match failing {
            Some(error) => failed(self, BEGINNING, &error.to_string()),
            None => succeeded(self, BEGINNING),
        }
        self.tell_of_degraded_volumes(now).await?;
        Ok(next)
    }

    /// Begins runs from one instant, or ends those that cannot begin; says whether they have begun.
    async fn begin_batch(self: &Arc<Self>, batch: Batch, now: Timestamp) -> Result<bool, ServiceError> {
        let known: HashSet<Uuid> = self.credential_rows().await?.iter().map(|row| row.uuid).collect();
        let is_known =
            |run: &RunRow| run.is_local() || run.credential.is_some_and(|uuid| known.contains(&uuid));
        let (runs, homeless): (Vec<_>, Vec<_>) = batch.runs.into_iter().partition(is_known);
        if !homeless.is_empty() {
            self.end_runs(homeless, "its credential is not there any more".to_owned(), now).await?;
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
        let mut places: BTreeMap<VolumeId, Vec<CredentialRef>> = BTreeMap::new();
        let (local, stored): (Vec<_>, Vec<_>) = runs.iter().cloned().partition(RunRow::is_local);
        if stored.is_empty() {
            let batch = Batch { runs: local, is_group: batch.is_group };
            return self.begin_local(batch, schedule, now).await.map(|()| true);
        }
        for run in &stored {
            if let (Some(volume), Some(credential)) = (run.volume, run.credential) {
                places.entry(volume).or_default().push(CredentialRef::Id(credential));
            }
        }
        let member = |(volume, credentials)| Member { volume: VolumeRef::Id(volume), credentials };
        let members: Vec<Member> = places.into_iter().map(member).collect();
        let together = batch.is_group.then(Uuid::new_v4);
        let begun = runs.clone();
        let keep_local = match local.is_empty() {
            true => None,
            false => Some(snapshot_name(of, now)?),
        };
        let rest = AskedRest { scheduled: schedule.and_then(|row| row.spec.rule), ..AskedRest::default() };
        let asked = Asked {
            full: first.force_full,
            together,
            rest,
            schedule: Some(of),
            keep_local,
            ..Asked::default()
        };
        let started = self.start_backups(&members, &asked, move |tx, tasks| {
            begun.iter().try_for_each(|run| {
                if run.is_local() {
                    let of_volume = |task: &&TaskRow| task.volume == run.volume;
                    let Some(task) = tasks.iter().find(of_volume) else { return Ok(()) };
                    let Some(snapshot) = task.snapshot else { return Ok(()) };
                    return engine::begun_local(tx, run, snapshot, Some(task.id));
                }
                let is_its =
                    |task: &&TaskRow| task.volume == run.volume && Some(task.credential) == run.credential;
                tasks.iter().find(is_its).map_or(Ok(()), |task| engine::begun(tx, run, task))
            })
        });
        match started.await {
            Ok(tasks) => {
                tracing::info!(schedule = %first.schedule, run = first.id, tasks = tasks.len(), "run begun");
                Ok(true)
            }
            Err(ServiceError::Stopping) => Err(ServiceError::Stopping),
            // Somebody deleted the schedule meanwhile.
            Err(ServiceError::Db(DbError::NotQueued(run))) => {
                tracing::info!(schedule = %first.schedule, run, "the run does not wait any more");
                Ok(false)
            }
            // A backup that somebody asked for goes first; this one waits.
            Err(error) if error.to_api().code == ErrorCode::VolumeInUse || error.is_retryable() => {
                let reason = error.to_api().message;
                // It is tried at every look, and said once.
                if first.reason.as_ref() != Some(&reason) {
                    tracing::warn!(schedule = %first.schedule, run = first.id, %reason, "the run waits");
                }
                let waits = move |tx: &rusqlite::Transaction<'_>| {
                    runs.iter().try_for_each(|run| engine::waits(tx, run, reason.clone()))
                };
                self.db.run(waits).await?;
                Ok(false)
            }
            // Those that need no store are begun by themselves.
            Err(error) => self.end_runs(stored, error.to_api().message, now).await.map(|()| false),
        }
    }

    /// Ends runs that did not begin.
    pub(super) async fn end_runs(
        &self,
        runs: Vec<RunRow>,
        reason: String,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        for run in &runs {
            tracing::error!(schedule = %run.schedule, run = run.id, %reason, "the run failed");
        }
        let ended = move |tx: &rusqlite::Transaction<'_>| {
            runs.iter().try_for_each(|run| {
                if !engine::end_queued(tx, run, RunState::Failed, reason.clone(), now)? {
                    return Ok(());
                }
                let message = format!("a run of schedule {} failed: {reason}", run.schedule);
                let event = NewEvent::new(now, Severity::Error, "run-failed", message);
                NewEvent { volume: run.volume_name.clone(), ..event }.insert(tx)
            })
        };
        self.db.run(ended).await?;
        self.events.wake();
        Ok(())
    }

    /// What the retention of the schedules says of each backup at a time.
    async fn judged(&self, now: Timestamp) -> Result<Vec<Judgement>, ServiceError> {
        let judged = self.db.run(move |tx| -> Result<_, DbError> {
            let mut judged = Vec::new();
            for schedule in ScheduleRow::all(tx)? {
                judged.extend(engine::judge(tx, &schedule, now)?);
            }
            Ok(judged)
        });
        Ok(judged.await?)
    }

    /// Starts the deletion of what the retention of the schedules does not keep. The run counts as a backup
    /// until the deletion has ended, so that one which fails is judged, and tried, again.
    pub(crate) async fn delete_surplus(
        self: &Arc<Self>,
        now: impl Fn() -> Timestamp,
        delays: &mut Delays,
    ) -> Result<(), ServiceError> {
        // The clock of this host may be wrong. This judgement says in which stores something may be deleted;
        // the one by which it is deleted comes after the clocks were compared.
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
        // What was looked at in this pass: whether all that is kept of a volume in a place is there.
        let mut whole: HashMap<(Uuid, Uuid, VolumeId), Kept> = HashMap::new();
        for judgement in surplus {
            let (id, credential) = (judgement.cloudsnap, judgement.credential);
            let of = (credential, id.cluster, id.volume);
            let attempt = async {
                let found = match whole.get(&of) {
                    Some(found) => *found,
                    None => self.check_kept(credential, &id, &kept).await?,
                };
                whole.insert(of, found);
                match found {
                    Kept::Whole => {}
                    // It is judged again, without those that are gone.
                    Kept::Fewer => return Ok(None),
                    Kept::Doubtful => {
                        let what = "a backup that would be kept is not known to restore";
                        return Err(ServiceError::refused(ErrorCode::CloudsnapDamaged, what));
                    }
                }
                self.reached("surplus judged")?;
                self.start_judged_delete(&id, credential, judgement.mark).await.map(Some)
            };
            match attempt.await {
                Ok(None) => continue,
                Ok(Some(None)) => {
                    tracing::info!(cloudsnap = %id, "how long it stays was said anew meanwhile");
                }
                Ok(Some(Some(started))) => {
                    tracing::info!(cloudsnap = %id, task = %started.task, verdict = %judgement.verdict, "not kept any more");
                }
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) if error.to_api().code == ErrorCode::CloudsnapNotFound => {
                    match self.expire_run_of_gone(credential, id).await {
                        Ok(()) => {
                            tracing::info!(cloudsnap = %id, verdict = %judgement.verdict, "not kept any more, and gone already");
                            continue;
                        }
                        Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                        Err(error) => {
                            tracing::warn!(cloudsnap = %id, %error, "whether it is gone is not known");
                        }
                    }
                }
                // The store may be away, or the backup in use.
                Err(error) => tracing::warn!(cloudsnap = %id, %error, "not deleted yet"),
            }
            delays.entry(delay_key(&judgement)).or_default().lengthen();
        }
        self.reached("surplus looked at")
    }

    /// Compares the clock of this host with that of each store in which something is not kept any more;
    /// returns the credentials of those where it is right.
    async fn check_clocks(
        self: &Arc<Self>,
        surplus: &[Judgement],
        delays: &mut Delays,
    ) -> Result<HashSet<Uuid>, ServiceError> {
        let mut checked: HashSet<Uuid> = surplus.iter().map(|judgement| judgement.credential).collect();
        for credential in checked.clone() {
            let check = async {
                let (repository, _) = self.task_repository(credential).await?;
                // The directory of a disk that is not mounted takes no probe object.
                repository.prove_key_slot().await?;
                self.check_store_clock(&repository, credential).await
            };
            match check.await {
                Ok(()) => {}
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) => {
                    tracing::warn!(%credential, %error, "nothing is deleted there yet");
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
