//! In-memory state of an unfinished task.

use crate::{costs::budget, repositories::limits::limited};
use blockd_api::{
    ApiError,
    costs::Prices,
    tasks::{TaskLimits, TaskStage},
};
use blockd_catalog::{TaskDetail, TaskRow};
use blockd_cloud::{CancelToken, Progress, Repository};
use blockd_store::{Bandwidth, RequestCounts, Requests};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::sync::watch;
use uuid::Uuid;

/// Counters of a run, and totals of earlier runs of the task.
struct RunCounters {
    progress: Arc<Progress>,
    /// The row has the phase and the bytes of `progress`, not its own ones.
    has_phases: bool,
    since: Instant,
    before_uploaded: u64,
    before_downloaded: u64,
    before_requests: RequestCounts,
}

struct LiveState {
    row: TaskRow,
    run: Option<RunCounters>,
}

/// Unfinished task.
pub struct LiveTask {
    /// Its id.
    pub id: Uuid,
    /// Cancellation, by a stop of the daemon or a user.
    pub cancel: CancelToken,
    /// Held by the thread that searches for the stored blocks of a backup.
    pub(crate) search: Arc<tokio::sync::Mutex<()>>,
    stop_wanted: AtomicBool,
    bandwidth: Arc<Bandwidth>,
    limits: Arc<Mutex<TaskLimits>>,
    /// Prices of the location.
    prices: Option<Prices>,
    state: Mutex<LiveState>,
    version: watch::Sender<u64>,
    over: watch::Sender<bool>,
}

impl std::fmt::Debug for LiveTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveTask").field("id", &self.id).finish_non_exhaustive()
    }
}

impl LiveState {
    /// Copies the run's counters to the row; returns true after a change.
    fn refresh(&mut self) -> bool {
        let Some(run) = &self.run else { return false };
        let now = run.progress.snapshot();
        let detail = &mut self.row.detail;
        let before = (detail.phase.clone(), detail.bytes_processed, detail.bytes_total, detail.requests);
        if run.has_phases {
            detail.phase = now.phase.to_string();
            detail.bytes_total = now.bytes_total;
            detail.bytes_processed = now.bytes_processed;
        }
        detail.bytes_uploaded = run.before_uploaded + now.bytes_uploaded;
        detail.bytes_downloaded = run.before_downloaded + now.bytes_downloaded;
        detail.requests = run.before_requests.plus(now.requests);
        before != (detail.phase.clone(), detail.bytes_processed, detail.bytes_total, detail.requests)
    }
}

impl LiveTask {
    /// Creates a task with this row; the prices are those of its location.
    pub fn new(row: TaskRow, prices: Option<Prices>) -> Self {
        let (version, _) = watch::channel(row.detail.version);
        Self {
            id: row.id,
            cancel: CancelToken::new(),
            search: Arc::default(),
            stop_wanted: AtomicBool::new(false),
            bandwidth: Arc::new(Bandwidth::new(
                row.detail.limits.limit_upload_bytes_per_second,
                row.detail.limits.limit_download_bytes_per_second,
            )),
            limits: Arc::new(Mutex::new(row.detail.limits)),
            prices,
            state: Mutex::new(LiveState { row, run: None }),
            version,
            over: watch::Sender::new(false),
        }
    }

    /// Returns the repository with the limits of the task; it counts requests in `requests`.
    pub fn limited(&self, repository: &Repository, requests: &Requests) -> Repository {
        let before = self.view().detail.requests;
        requests.set_budget(before, budget(Arc::clone(&self.limits), self.prices.clone()));
        limited(repository, Arc::clone(&self.bandwidth))
    }

    /// Changes the limits.
    pub fn set_limits(&self, limits: TaskLimits) {
        *self.limits.lock() = limits;
        self.bandwidth.set(limits.limit_upload_bytes_per_second, limits.limit_download_bytes_per_second);
        self.detail(|detail| detail.limits = limits);
    }

    /// Stops the task, unless its commit has started: then it completes.
    pub fn stop(&self) {
        self.stop_wanted.store(true, Ordering::SeqCst);
        self.cancel.stop_unless_committing();
    }

    /// Abandons the started commit: the task can be stopped again.
    pub fn abandon_commit(&self) {
        self.cancel.end_commit();
        if self.is_stop_wanted() {
            self.cancel.stop_unless_committing();
        }
    }

    /// Returns true after a stop by a user.
    pub fn is_stop_wanted(&self) -> bool {
        self.stop_wanted.load(Ordering::SeqCst)
    }

    /// Returns the current row.
    pub fn view(&self) -> TaskRow {
        let mut state = self.state.lock();
        state.refresh();
        state.row.clone()
    }

    fn bump(&self, state: &mut LiveState) {
        state.row.detail.version += 1;
        self.version.send_replace(state.row.detail.version);
    }

    /// Changes the row.
    pub fn update(&self, change: impl FnOnce(&mut TaskRow)) {
        let mut state = self.state.lock();
        change(&mut state.row);
        self.bump(&mut state);
    }

    /// Changes the detail of the row.
    pub fn detail(&self, change: impl FnOnce(&mut TaskDetail)) {
        self.update(|row| change(&mut row.detail));
    }

    /// Attaches the counters of a run.
    pub fn begin(&self, progress: Arc<Progress>) {
        self.attach(progress, true);
    }

    /// Attaches request counters, after those of earlier attempts, to a task that keeps its progress in its
    /// row.
    pub fn count(&self, requests: Arc<Requests>) {
        self.detach();
        self.attach(Arc::new(Progress::new(requests)), false);
    }

    fn attach(&self, progress: Arc<Progress>, has_phases: bool) {
        let mut state = self.state.lock();
        state.row.state = TaskStage::Active;
        let detail = &mut state.row.detail;
        detail.has_progress |= detail.bytes_processed > 0;
        let detail = &state.row.detail;
        state.run = Some(RunCounters {
            progress,
            has_phases,
            since: Instant::now(),
            before_uploaded: detail.bytes_uploaded,
            before_downloaded: detail.bytes_downloaded,
            before_requests: detail.requests,
        });
        state.refresh();
        self.bump(&mut state);
    }

    /// Returns the bytes uploaded by this run and its duration in seconds.
    pub fn upload(&self) -> (u64, f64) {
        let state = self.state.lock();
        state.run.as_ref().map_or((0, 0.0), |run| {
            (run.progress.snapshot().bytes_uploaded, run.since.elapsed().as_secs_f64())
        })
    }

    /// Updates the row from the counters; returns true after a change.
    pub fn refresh(&self) -> bool {
        let mut state = self.state.lock();
        let changed = state.refresh();
        if changed {
            self.bump(&mut state);
        }
        changed
    }

    /// Detaches the counters at the end of a run.
    pub fn detach(&self) {
        let mut state = self.state.lock();
        state.refresh();
        state.run = None;
    }

    /// Returns the final row, which is not visible yet.
    pub fn final_row(&self, state: TaskStage, error: Option<ApiError>) -> TaskRow {
        let mut row = self.view();
        row.state = state;
        if state == TaskStage::Done {
            row.detail.phase = "done".into();
        }
        row.detail.may_be_committed |= self.cancel.is_committing();
        row.detail.error = error;
        row.detail.completed = Some(Timestamp::now());
        row.detail.version += 1;
        row
    }

    /// Makes the row visible and ends the run.
    pub fn set_row(&self, row: TaskRow) {
        let mut state = self.state.lock();
        state.run = None;
        state.row = row;
    }

    /// Wakes the waiters of an ended task.
    pub fn end(&self) {
        let version = self.state.lock().row.detail.version;
        self.version.send_replace(version);
        self.over.send_replace(true);
    }

    /// Waits for the end of the task.
    pub async fn ended(&self) {
        let mut watched = self.over.subscribe();
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = watched.wait_for(|is_over| *is_over).await;
    }

    /// Waits until the version is above this one.
    pub async fn changed_since(&self, version: u64) {
        let mut watched = self.version.subscribe();
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = watched.wait_for(|now| *now > version).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::tasks::TaskOwner;
    use blockd_catalog::{DeleteTask, TaskSpec};
    use blockd_cloud::CloudSnapshotId;
    use blockd_extent::{SnapshotId, VolumeId};
    use std::time::Duration;

    fn task() -> LiveTask {
        let volume = VolumeId::from_u64(1);
        let cloudsnap = CloudSnapshotId {
            cluster: Uuid::from_u128(3),
            volume,
            snapshot: SnapshotId::from_u64(4),
            incremental: false,
        };
        let spec = TaskSpec::Delete(DeleteTask::default());
        LiveTask::new(TaskRow::new(spec, Uuid::from_u128(2), cloudsnap, TaskOwner::Daemon), None)
    }

    #[tokio::test]
    async fn task_end_wakes_its_waiters_only() {
        const TIMEOUT: Duration = Duration::from_secs(60);
        let live = task();
        let mut first = Box::pin(live.ended());
        assert!(futures::poll!(first.as_mut()).is_pending());
        live.detail(|detail| detail.bytes_total = 1);
        live.stop();
        assert!(futures::poll!(first.as_mut()).is_pending(), "it was only told to stop");
        // Ready only after a wake-up: no other poll follows.
        let woken = async { tokio::join!(first, async { live.end() }) };
        tokio::time::timeout(TIMEOUT, woken).await.expect("no waiter was woken");
        tokio::time::timeout(TIMEOUT, live.ended()).await.expect("it has ended before");
    }
}
