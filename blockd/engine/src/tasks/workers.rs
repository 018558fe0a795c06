//! Priority of guests over tasks: while guests send requests, tasks run on few threads of the lowest
//! priority. While guests are idle, tasks use normal threads, because those hardly run on a busy host.
//!
//! Half of the cores stay free: not every kernel preempts the system calls of low-priority threads. Beside
//! backups, 4 KiB writes (`tools/bench guest --data 1G`, 2 cores) took 12 to 13 us at the median and 0.3 to
//! 0.6 ms at p99 with one thread, 41 to 43 us and 0.4 to 0.7 ms with six, at about the same rate of backups
//! (1.1 to 1.6 GiB/s). Throttling by guest latency had 12 to 59 us and 0.4 to 0.7 ms at a third of that rate.

use crate::{
    error::ServiceError,
    metrics::Operation,
    settings::TaskPriority,
    tasks::priority::{raise_nice, set_idle},
    volumes::registry::{EntryState, Registry},
};
use blockd_store::{Work, Workers, Yielding};
use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::{self, Handle, Runtime},
    sync::Notify,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Sampling interval of guest requests.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// Samples of the window in which requests are counted: 500 ms.
const WINDOW_SAMPLES: usize = 10;
/// Requests in a window from which guests are active: sporadic ones, such as the commits of an idle system's
/// journal, are not significant.
const MIN_ACTIVE_REQUESTS: u64 = 20;

/// Threads of tasks that move data, and the number of these tasks.
#[derive(Debug)]
pub struct TaskWorkers {
    work: Work,
    yielding: Option<Arc<Yielding>>,
    active: AtomicUsize,
    started: Notify,
    /// Runtime of the lowest priority; `None` if tasks have that of guests.
    background: Option<Background>,
    /// Runtime that created this, whose threads have the priority of guests.
    foreground: Option<Handle>,
}

/// Runtime whose threads have the lowest priority.
#[derive(Debug)]
struct Background(Option<Runtime>);

impl Background {
    fn start() -> io::Result<Self> {
        let mut threads = runtime::Builder::new_multi_thread();
        threads.worker_threads(1).thread_name("background").on_thread_start(set_idle).enable_all();
        Ok(Self(Some(threads.build()?)))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Asynchronous code must not wait for the threads of a runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl TaskWorkers {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(priority: TaskPriority, cpu_threads: usize) -> io::Result<Self> {
        let cores = match cpu_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let yielding = (priority == TaskPriority::Low).then(Arc::<Yielding>::default);
        let work = match &yielding {
            Some(yielding) => {
                let workers = Workers::start("task-work", (cores / 2).max(1), set_idle)?;
                Work::yielding(workers, Arc::clone(yielding))
            }
            None => Work::default(),
        };
        let background = yielding.as_ref().map(|_| Background::start()).transpose()?;
        let (active, started) = (AtomicUsize::new(0), Notify::new());
        Ok(Self { work, yielding, active, started, background, foreground: Handle::try_current().ok() })
    }

    /// Returns the threads of tasks.
    pub fn work(&self) -> Work {
        self.work.clone()
    }

    /// Returns the threads for writes to a local directory store. Each store has its own, so that one that
    /// hangs does not block others.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn writing(&self, threads: usize) -> io::Result<Work> {
        let Some(yielding) = &self.yielding else { return Ok(Work::default()) };
        Ok(Work::yielding(Workers::start("store-write", threads, raise_nice)?, Arc::clone(yielding)))
    }

    /// Runs work that no guest waits for with the lowest priority: also its futures and blocking calls, but
    /// not the catalog's. It is cancelled with the caller. It must not write much: a thread that gets no
    /// processor would delay others that need the journal of the filesystem. Threads inherit the priority of
    /// the one that starts them: those that other work may use belong to
    /// [`in_foreground`](Self::in_foreground).
    ///
    /// # Errors
    /// The work panicked.
    pub(crate) async fn in_background<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let background = self.background.as_ref().and_then(|background| background.0.as_ref());
        run_on(background.map(Runtime::handle), work).await
    }

    /// Runs work of a background task on the runtime that created this, such as the opening of a store, whose
    /// connections are shared. It is cancelled with the caller.
    ///
    /// # Errors
    /// The work panicked.
    pub(crate) async fn in_foreground<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ServiceError> {
        run_on(self.foreground.as_ref(), work).await
    }

    /// Returns true while guests send requests and tasks yield to them.
    pub fn are_guests_active(&self) -> bool {
        self.yielding.as_ref().is_some_and(|yielding| yielding.is_on())
    }

    /// Counts a task as moving data until the guard is dropped. Guests count as active until the first
    /// sample.
    pub fn begin(&self) -> ActiveTask<'_> {
        if self.active.fetch_add(1, Ordering::SeqCst) == 0
            && let Some(yielding) = &self.yielding
        {
            yielding.set(true);
        }
        self.started.notify_one();
        ActiveTask(self)
    }
}

/// Runs work on a runtime, by default on that of the caller.
async fn run_on<T: Send + 'static>(
    runtime: Option<&Handle>,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ServiceError> {
    let Some(runtime) = runtime else { return Ok(work.await) };
    let running = AbortOnDropHandle::new(runtime.spawn(work.in_current_span()));
    running.await.map_err(|error| ServiceError::Internal(error.to_string()))
}

/// Guard of a task that moves data.
pub struct ActiveTask<'a>(&'a TaskWorkers);

impl Drop for ActiveTask<'_> {
    fn drop(&mut self) {
        let before = self.0.active.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a task ended twice");
    }
}

/// Monitors guest requests while tasks move data, from counters that metrics maintain.
pub async fn run(workers: Arc<TaskWorkers>, registry: Arc<Registry>) {
    let Some(yielding) = &workers.yielding else { return };
    loop {
        workers.started.notified().await;
        let mut window = VecDeque::from([completed(&registry)]);
        let mut was_waiting = false;
        while workers.active.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            if window.len() > WINDOW_SAMPLES {
                window.pop_front();
            }
            window.push_back(completed(&registry));
            // A slow disk completes few requests.
            let is_waiting = has_requests_in_flight(&registry);
            let requests =
                window.back().zip(window.front()).map_or(0, |(last, first)| last.saturating_sub(*first));
            yielding.set(requests >= MIN_ACTIVE_REQUESTS || (is_waiting && was_waiting));
            was_waiting = is_waiting;
        }
        yielding.set(false);
    }
}

fn completed(registry: &Registry) -> u64 {
    sum_of_guests(registry, |traffic, operation| traffic.counted(operation).total())
}

fn has_requests_in_flight(registry: &Registry) -> bool {
    sum_of_guests(registry, |traffic, operation| traffic.in_flight(operation)) > 0
}

/// Sums a counter of all volumes with local data: requests of lazy volumes wait for tasks and stores.
fn sum_of_guests(registry: &Registry, counter: impl Fn(&crate::metrics::Traffic, Operation) -> u64) -> u64 {
    let is_local = |state: &EntryState| matches!(state, EntryState::Up(volume) if !volume.is_lazy());
    let entries = registry.all().into_iter().filter(|entry| is_local(&entry.view().state));
    entries.map(|entry| Operation::ALL.map(|kind| counter(&entry.traffic, kind)).iter().sum::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::registry::VolumeEntry;
    use blockd_catalog::{Db, DbError, VolumeRow};
    use blockd_extent::VolumeId;
    use blockd_volume::Volume;
    use futures::FutureExt;
    use std::{future::pending, time::Instant};
    use tokio::{sync::oneshot, task::spawn_blocking};

    /// Returns the scheduling policy of the calling thread: field 41 of its `stat` (proc_pid_stat(5)).
    fn policy() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, from_state) = stat.rsplit_once(") ").unwrap();
        from_state.split(' ').nth(38).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn background_work_is_idle_and_ends_with_its_caller() {
        let policies = || async { (policy(), spawn_blocking(policy).await.unwrap()) };
        let workers = |priority| TaskWorkers::new(priority, 1).unwrap();
        let (low, normal) = (workers(TaskPriority::Low), workers(TaskPriority::Normal));
        assert_eq!(low.in_background(policies()).await.unwrap(), (libc::SCHED_IDLE, libc::SCHED_IDLE));
        assert_eq!(normal.in_background(policies()).await.unwrap(), (policy(), policy()));
        let (running, ended) = oneshot::channel::<()>();
        let endless = async move {
            let _running = running;
            pending::<()>().await;
        };
        assert!(low.in_background(endless).now_or_never().is_none());
        assert!(ended.await.is_err(), "it is cancelled");
        assert!(low.in_background(async { panic!("on purpose") }).await.map(|(): ()| ()).is_err());
    }

    #[tokio::test]
    async fn background_work_starts_no_shared_thread() {
        let dir = tempfile::tempdir().unwrap();
        let db = Arc::new(Db::open(&dir.path().join("blockd.db")).unwrap());
        let low = Arc::new(TaskWorkers::new(TaskPriority::Low, 1).unwrap());
        let this = Arc::clone(&low);
        let policies = low.in_background(async move {
            let of_catalog = db.run(|_| Ok::<_, DbError>(policy())).await.unwrap();
            let of_thread = this.in_foreground(async { spawn_blocking(policy).await });
            (of_catalog, of_thread.await.unwrap().unwrap())
        });
        assert_eq!(policies.await.unwrap(), (policy(), policy()));
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_yield_only_while_guests_are_active() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(Registry::default());
        let id = VolumeId::from_u64(1);
        let row = VolumeRow::new(id, "one".parse().unwrap(), 1 << 20);
        let volume = Volume::create(&dir.path().join("1"), id, 1 << 20).unwrap();
        let entry = VolumeEntry::new(&row, EntryState::Up(volume));
        registry.insert(Arc::clone(&entry));
        let workers = Arc::new(TaskWorkers::new(TaskPriority::Low, 1).unwrap());
        let monitor = tokio::spawn(run(Arc::clone(&workers), Arc::clone(&registry)));
        let yields_after = async |samples: u32| {
            tokio::time::sleep(SAMPLE_INTERVAL * samples).await;
            workers.yielding.as_ref().unwrap().is_on()
        };
        let request = |count: u64| {
            (0..count).for_each(|_| entry.traffic.note(Operation::Write, Instant::now()));
        };
        request(MIN_ACTIVE_REQUESTS);
        assert!(!yields_after(1).await, "no task moves data");
        let active = workers.begin();
        assert!(workers.yielding.as_ref().unwrap().is_on(), "before the first sample");
        // Between two samples.
        tokio::time::sleep(SAMPLE_INTERVAL / 2).await;
        assert!(!yields_after(1).await, "no guest is active");
        request(MIN_ACTIVE_REQUESTS - 1);
        assert!(!yields_after(1).await, "sporadic requests");
        request(1);
        assert!(yields_after(1).await);
        assert!(!yields_after(WINDOW_SAMPLES as u32).await, "the guest is idle");
        let waiting = entry.traffic.begin(Operation::Flush);
        assert!(!yields_after(1).await);
        assert!(yields_after(1).await, "a slow request");
        drop(active);
        assert!(!yields_after(1).await);
        drop(waiting);
        monitor.abort();
    }
}
