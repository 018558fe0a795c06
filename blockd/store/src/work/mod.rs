//! Execution of CPU and disk work of backups, restores and verifications.

mod workers;

pub use workers::{Lost, Workers};

use std::{
    cell::Cell,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// File with the calling thread's run time and its wait for a CPU.
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

thread_local! {
    /// Total wait of the thread at the last call.
    static WAITED_NANOS: Cell<u64> = const { Cell::new(0) };
}

/// Wait for a CPU from which a low-priority thread counts as starved: the next work item then runs on a
/// normal thread.
const STARVED_FROM: Duration = Duration::from_secs(2);

/// Switch between normal threads and low-priority ones that yield to other work.
#[derive(Debug, Default)]
pub struct Yielding {
    is_on: AtomicBool,
    is_starved: AtomicBool,
}

impl Yielding {
    /// Sets whether work yields from now on.
    pub fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Relaxed);
    }

    /// Returns true if work yields.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// Returns true if the next work item yields. On a fully loaded machine some items do not, so that a task
    /// makes progress.
    fn applies_to_next(&self) -> bool {
        self.is_on() && !self.is_starved.swap(false, Relaxed)
    }

    /// Records the wait of a low-priority thread for a CPU.
    fn note_wait(&self, waited: Duration) {
        if waited >= STARVED_FROM {
            self.is_starved.store(true, Relaxed);
        }
    }
}

/// Threads that run work items. By default the runtime's blocking threads.
#[derive(Clone, Debug, Default)]
pub struct Work {
    low_priority: Option<(Workers, Arc<Yielding>)>,
}

impl Work {
    /// Creates work that runs on `workers` while `yielding` is on.
    pub fn yielding(workers: Workers, yielding: Arc<Yielding>) -> Self {
        Self { low_priority: Some((workers, yielding)) }
    }

    /// Returns true if guests are active and work yields to them.
    pub fn yields(&self) -> bool {
        self.low_priority.as_ref().is_some_and(|(_, yielding)| yielding.is_on())
    }

    /// Runs a work item.
    ///
    /// # Errors
    /// The work panicked, or the threads have ended.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
        match self.run_yielding(work).await {
            Ok(done) => done,
            Err(work) => tokio::task::spawn_blocking(work).await.map_err(|_| Lost::Panicked),
        }
    }

    /// Runs a work item on a low-priority thread, or returns it if it does not yield.
    pub(crate) async fn run_yielding<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Result<Result<T, Lost>, F> {
        let Some((workers, yielding)) = &self.low_priority else { return Err(work) };
        if !yielding.applies_to_next() {
            return Err(work);
        }
        // Uses the wait for a CPU, not the duration, which includes disk I/O.
        let done = workers.run(move || (work(), waited_for_cpu())).await;
        Ok(done.map(|(done, waited)| {
            yielding.note_wait(waited);
            done
        }))
    }
}

/// Returns the calling thread's wait for a CPU since the last call, including the time before its work. Zero
/// if the kernel does not report it.
fn waited_for_cpu() -> Duration {
    let waited = fs::read_to_string(SCHEDSTAT).ok().and_then(|text| waited_nanos(&text)).unwrap_or(0);
    Duration::from_nanos(waited.saturating_sub(WAITED_NANOS.replace(waited)))
}

/// Returns the second number of a schedstat line.
fn waited_nanos(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{thread, time::Instant};

    #[test]
    fn starved_work_does_not_yield_once() {
        let yielding = Yielding::default();
        assert!(!yielding.applies_to_next());
        yielding.set(true);
        yielding.note_wait(STARVED_FROM - Duration::from_millis(1));
        assert!(yielding.applies_to_next() && yielding.applies_to_next());
        yielding.note_wait(STARVED_FROM);
        assert!(!yielding.applies_to_next());
        assert!(yielding.applies_to_next());
        yielding.set(false);
        assert!(!yielding.applies_to_next());
    }

    #[tokio::test]
    async fn work_item_runs_on_a_low_priority_thread_only_while_yielding() {
        let yielding = Arc::<Yielding>::default();
        let workers = Workers::start("yielding", 1, || {}).unwrap();
        let work = Work::yielding(workers, yielding.clone());
        let thread_name = || thread::current().name().map(str::to_owned);
        for is_on in [false, true, false] {
            yielding.set(is_on);
            let is_low = work.run(thread_name).await.unwrap().as_deref() == Some("yielding");
            assert_eq!(is_low, is_on);
        }
    }

    #[test]
    fn waiting_for_a_processor_is_reported() {
        assert_eq!(waited_nanos("17 42 3\n"), Some(42));
        assert_eq!(waited_nanos(""), None);
        let is_over = AtomicBool::new(false);
        let spin = || {
            while !is_over.load(Relaxed) {
                std::hint::spin_loop();
            }
        };
        // More threads than processors want to run.
        let threads = thread::available_parallelism().unwrap().get() + 1;
        let waited = thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(spin)));
            let began = Instant::now();
            waited_for_cpu();
            let mut waited = Duration::ZERO;
            while waited < Duration::from_millis(20) && began.elapsed() < Duration::from_secs(120) {
                waited += waited_for_cpu();
            }
            is_over.store(true, Relaxed);
            waited
        });
        assert!(waited >= Duration::from_millis(20), "{waited:?}");
    }
}
