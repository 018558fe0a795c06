//! Coalescing of concurrent flushes into one sync.
//!
//! A flush must be covered by a sync that *started* after the request. While a sync runs, further flushes
//! wait for the next one, which one of them carries out for all.

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    /// Number of started syncs.
    begun: u64,
    /// Number of the last completed sync.
    ended: u64,
    running: bool,
    /// Number of the last failed sync.
    failed: u64,
}

#[derive(Default)]
pub(crate) struct Flusher {
    state: Mutex<State>,
    changed: Condvar,
}

/// The shared sync of another flush failed.
pub(crate) struct SharedFailure;

impl Flusher {
    /// Runs `sync`, or waits for another caller's run; the inner result is that of an own run.
    pub(crate) fn flush<E>(
        &self,
        sync: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<(), E>, SharedFailure> {
        let mut state = self.state.lock();
        let needed = state.begun + 1;
        loop {
            if state.ended >= needed {
                // After a later failure it is unknown whether this data reached the disk: report an error.
                return if state.failed >= needed { Err(SharedFailure) } else { Ok(Ok(())) };
            }
            if !state.running {
                break;
            }
            self.changed.wait(&mut state);
        }
        assert!(state.begun == state.ended, "one sync runs at a time");
        state.running = true;
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let mut end = End { flusher: self, number, succeeded: false };
        let result = sync();
        end.succeeded = result.is_ok();
        drop(end);
        Ok(result)
    }
}

/// Ends a sync, also on a panic, so that no waiter waits for ever.
struct End<'a> {
    flusher: &'a Flusher,
    number: u64,
    succeeded: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.flusher.state.lock();
        assert!(state.running && state.begun == self.number, "a sync ends once");
        state.running = false;
        state.ended = self.number;
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
        assert!(syncs.load(Ordering::SeqCst) < 4000, "nothing was shared");
    }
}
