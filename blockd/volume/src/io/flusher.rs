//! Coalescing of concurrent flushes into one sync.
//!
//! A flush must be covered by a sync that *started* after the request. While a sync runs, further flushes
//! wait for the next one, which one of the waiting threads runs for all.

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    /// Number of started syncs.
    started: u64,
    /// Number of the last completed sync.
    completed: u64,
    running: bool,
    /// Number of the last failed sync.
    failed: u64,
}

#[derive(Default)]
pub(crate) struct Flusher {
    state: Mutex<State>,
    changed: Condvar,
}

/// Failure of the sync of another flush that covered this one.
pub(crate) struct SharedFailure;

impl Flusher {
    /// Runs `sync`, or waits for that of another caller. The inner result is that of an own run.
    pub(crate) fn flush<E>(
        &self,
        sync: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<(), E>, SharedFailure> {
        let mut state = self.state.lock();
        let needed = state.started + 1;
        loop {
            if state.completed >= needed {
                // After a later failure it is unknown whether this data reached the disk: report an error.
                return if state.failed >= needed { Err(SharedFailure) } else { Ok(Ok(())) };
            }
            if !state.running {
                break;
            }
            self.changed.wait(&mut state);
        }
        assert!(state.started == state.completed, "one sync runs at a time");
        state.running = true;
        state.started += 1;
        let number = state.started;
        drop(state);
        let mut running = RunningSync { flusher: self, number, succeeded: false };
        let result = sync();
        running.succeeded = result.is_ok();
        drop(running);
        Ok(result)
    }
}

/// Completes a sync on drop, so that a panic does not block the waiters forever.
struct RunningSync<'a> {
    flusher: &'a Flusher,
    number: u64,
    succeeded: bool,
}

impl Drop for RunningSync<'_> {
    fn drop(&mut self) {
        let mut state = self.flusher.state.lock();
        assert!(state.running && state.started == self.number, "a sync completes once");
        state.running = false;
        state.completed = self.number;
        if !self.succeeded {
            state.failed = self.number;
        }
        drop(state);
        self.flusher.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    };

    #[test]
    fn flush_is_covered_by_later_sync() {
        let flusher = Arc::new(Flusher::default());
        let clock = Arc::new(AtomicU64::new(0));
        let synced = Arc::new(AtomicU64::new(0));
        let syncs = Arc::new(AtomicU64::new(0));
        let start = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (flusher, clock, synced) = (flusher.clone(), clock.clone(), synced.clone());
                let (syncs, start) = (syncs.clone(), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    for _ in 0..500 {
                        let written = clock.fetch_add(1, Ordering::SeqCst) + 1;
                        let result = flusher.flush(|| {
                            syncs.fetch_add(1, Ordering::SeqCst);
                            let now = clock.load(Ordering::SeqCst);
                            std::thread::yield_now();
                            synced.fetch_max(now, Ordering::SeqCst);
                            Ok::<(), ()>(())
                        });
                        assert!(matches!(result, Ok(Ok(()))));
                        assert!(synced.load(Ordering::SeqCst) >= written);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(syncs.load(Ordering::SeqCst) < 4000, "no sync was shared");
    }
}
