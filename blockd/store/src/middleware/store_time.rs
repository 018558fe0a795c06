//! Time of a request at its store: without the waits for memory of its task.

use parking_lot::Mutex;
use std::{future::Future, pin::pin, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Minimum sleep of a timeout during a wait.
const MIN_SLEEP: Duration = Duration::from_millis(100);

tokio::task_local! {
    static WAITS: Arc<Mutex<Waits>>;
}

/// Waits of a request.
#[derive(Default)]
struct Waits {
    total: Duration,
    /// Start of the current one.
    since: Option<Instant>,
}

/// Guard of a wait.
struct Waiting(Arc<Mutex<Waits>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.0.lock();
        if let Some(since) = waits.since.take() {
            waits.total += since.elapsed();
        }
    }
}

/// Runs a wait of the running request that is not caused by its store.
pub(crate) async fn wait_locally<T>(work: impl Future<Output = T>) -> T {
    // Without a clock nothing counts.
    let _waiting = WAITS.try_with(Arc::clone).ok().map(|waits| {
        waits.lock().since = Some(Instant::now());
        Waiting(waits)
    });
    work.await
}

/// Clock of a request, shared by all layers that measure it.
#[derive(Clone)]
pub(super) struct StoreClock {
    waits: Arc<Mutex<Waits>>,
    start: Instant,
    /// Waits before the start.
    before: Duration,
}

impl StoreClock {
    /// Starts a clock.
    pub fn start() -> Self {
        let waits = WAITS.try_with(Arc::clone).unwrap_or_default();
        let before = waits.lock().total;
        Self { waits, start: Instant::now(), before }
    }

    /// Returns the time since the start without waits, and true during a wait.
    fn read(&self) -> (Duration, bool) {
        let waits = self.waits.lock();
        let current = waits.since.map(|since| since.elapsed());
        let waited = waits.total + current.unwrap_or_default() - self.before;
        (self.start.elapsed().saturating_sub(waited), current.is_some())
    }

    /// Returns the time since the start without waits.
    pub fn elapsed(&self) -> Duration {
        self.read().0
    }

    /// Runs work whose waits stop the clock.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        WAITS.scope(Arc::clone(&self.waits), work).await
    }

    /// Runs work like [`run`](Self::run); returns `None` if it takes longer than `limit`.
    pub async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(self.run(work));
        loop {
            let (elapsed, is_waiting) = self.read();
            let left = limit.saturating_sub(elapsed);
            if left.is_zero() && !is_waiting {
                return None;
            }
            let sleep = if is_waiting { left.max(MIN_SLEEP) } else { left };
            if let Ok(done) = tokio::time::timeout(sleep, &mut work).await {
                return Some(done);
            }
        }
    }
}
