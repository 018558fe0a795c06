//! Execution of CPU and disk work of backups, restores and verifications.

mod pace;
mod workers;

pub use pace::Pace;
pub use workers::{Lost, Workers};

use std::{
    cell::Cell,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

/// File with the calling thread's run time and its wait for a processor.
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

thread_local! {
    /// Total wait of the thread at the last call.
    static WAITED_NANOS: Cell<u64> = const { Cell::new(0) };
}

/// Threads of the work and its share of time. By default the runtime's blocking threads, without a limit.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Threads of a low priority, for the times when the pace says that work makes way.
    pub yielding: Option<Workers>,
    /// Time share and priority.
    pub pace: Option<Arc<Pace>>,
}

impl Work {
    /// The threads for the next piece, if it is to make way.
    fn yielding(&self) -> Option<(&Workers, &Pace)> {
        let (workers, pace) = (self.yielding.as_ref()?, self.pace.as_deref()?);
        pace.makes_way().then_some((workers, pace))
    }

    /// Runs a work item, and rests as the pace requires: the permit of the next item is held until then.
    ///
    /// # Errors
    /// The work panicked, or the threads have ended.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
        // Without the time in the queue.
        let timed = move || {
            let began = Instant::now();
            (work(), began.elapsed())
        };
        let (done, took) = match self.yielding() {
            Some((workers, pace)) => make_way(workers, pace, timed).await?,
            None => tokio::task::spawn_blocking(timed).await.map_err(|_| Lost::Panicked)?,
        };
        if let Some(pace) = &self.pace {
            pace.rest(took).await;
        }
        Ok(done)
    }

    /// Has a piece of work done by threads that make way, if it is to, and gives it back otherwise. It does
    /// not rest.
    pub(crate) async fn make_way<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Result<Result<T, Lost>, F> {
        let Some((workers, pace)) = self.yielding() else { return Err(work) };
        Ok(make_way(workers, pace, work).await)
    }
}

/// Notes how long the thread waited for a processor, not how long the piece took: that may have been for a
/// disk.
async fn make_way<T: Send + 'static>(
    workers: &Workers,
    pace: &Pace,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let (done, waited) = workers.run(move || (work(), waited_for_processor())).await?;
    pace.note_made_way(waited);
    Ok(done)
}

/// Returns the calling thread's wait for a processor since the last call, including the time before its work.
/// Zero if the kernel does not report it.
fn waited_for_processor() -> Duration {
    let waited = fs::read_to_string(SCHEDSTAT).ok().and_then(|text| waited_nanos(&text)).unwrap_or(0);
    Duration::from_nanos(waited.saturating_sub(WAITED_NANOS.replace(waited)))
}

/// The second number.
fn waited_nanos(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    #[tokio::test]
    async fn waiting_for_a_disk_or_queue_yields_as_before() {
        let pace = Arc::<Pace>::default();
        pace.set_making_way(true);
        let work =
            Work { yielding: Some(Workers::start("test", 1, || {}).unwrap()), pace: Some(pace.clone()) };
        // As a disk does: longer in all than what counts as hardly a processor, one in the queue behind the
        // other.
        let slow = || work.make_way(|| thread::sleep(Duration::from_millis(1_100)));
        let mut tries = 0;
        loop {
            let (one, other) = futures::join!(slow(), slow());
            assert!(matches!((one, other), (Ok(Ok(())), Ok(Ok(())))));
            if pace.makes_way() {
                break;
            }
            // On a busy machine one thread may have waited.
            tries += 1;
            assert!(tries < 20, "no thread waited for a processor");
        }
    }

    #[test]
    fn waiting_for_a_processor_is_reported() {
        assert_eq!(waited_nanos("17 42 3\n"), Some(42));
        assert_eq!(waited_nanos(""), None);
        let is_over = AtomicBool::new(false);
        let spin = || {
            while !is_over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        // More threads than processors want to run.
        let threads = thread::available_parallelism().unwrap().get() + 1;
        let waited = thread::scope(|scope| {
            (0..threads).for_each(|_| drop(scope.spawn(spin)));
            let began = Instant::now();
            waited_for_processor();
            let mut waited = Duration::ZERO;
            while waited < Duration::from_millis(20) && began.elapsed() < Duration::from_secs(120) {
                waited += waited_for_processor();
            }
            is_over.store(true, Ordering::Relaxed);
            waited
        });
        assert!(waited >= Duration::from_millis(20), "{waited:?}");
    }
}
