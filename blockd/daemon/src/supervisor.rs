//! Background loops of the daemon: started one by one, stopped together.

use futures::FutureExt;
use std::{panic::AssertUnwindSafe, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Owner of the background loops.
#[derive(Debug)]
pub(crate) struct Supervisor {
    stopping: CancellationToken,
    loops: Vec<(&'static str, JoinHandle<()>)>,
}

impl Supervisor {
    /// Creates a supervisor whose loops end after `stopping` is cancelled.
    pub(crate) fn new(stopping: CancellationToken) -> Self {
        Self { stopping, loops: Vec::new() }
    }

    /// Starts a loop that watches the stop itself, because it finishes its step or stores its state.
    pub(crate) fn start(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let guarded = async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!(name, "a background loop panicked and does not run until the next start");
            }
        };
        self.loops.push((name, tokio::spawn(guarded)));
    }

    /// Starts a loop that the stop drops wherever it waits.
    pub(crate) fn start_interruptible(
        &mut self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let stopping = self.stopping.clone();
        self.start(name, async move {
            tokio::select! {
                () = work => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// Waits for the end of all loops after the stop, and aborts those that run after the time limit.
    pub(crate) async fn stop(self, time_limit: Duration) {
        let deadline = tokio::time::Instant::now() + time_limit;
        for (name, mut task) in self.loops {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                tracing::warn!(name, "a background loop did not stop in time and was aborted");
                let _ = task.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    #[tokio::test(start_paused = true)]
    async fn stop_ends_all_loops_and_aborts_late_ones() {
        let stopping = CancellationToken::new();
        let mut supervisor = Supervisor::new(stopping.clone());
        let stored = Arc::new(AtomicBool::new(false));
        let (seen, stop) = (Arc::clone(&stored), stopping.clone());
        supervisor.start("late", pending());
        supervisor.start("panic", async { panic!("planned") });
        supervisor.start_interruptible("interruptible", pending());
        supervisor.start("stores", async move {
            stop.cancelled().await;
            seen.store(true, Ordering::SeqCst);
        });
        stopping.cancel();
        let began = tokio::time::Instant::now();
        supervisor.stop(Duration::from_secs(5)).await;
        assert!(stored.load(Ordering::SeqCst));
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
