//! The background thread that merges layers which no snapshot keeps apart any more.
//!
//! One thread of low priority for all volumes; it sleeps until a snapshot was deleted, or for a minute if a merge failed.

use crate::registry::{EntryState, Registry, VolumeEntry};
use parking_lot::{Condvar, Mutex};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// After how long a merge that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Wakes and stops the thread.
#[derive(Debug, Default)]
pub struct Wake {
    wanted: Mutex<bool>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Wake {
    /// Something may be there to merge.
    pub fn wake(&self) {
        *self.wanted.lock() = true;
        self.changed.notify_one();
    }

    /// Waits until it is woken, and at most for this long.
    fn wait(&self, patience: Option<Duration>) {
        let mut wanted = self.wanted.lock();
        while !*wanted && !self.stop.load(Ordering::Relaxed) {
            match patience {
                None => self.changed.wait(&mut wanted),
                Some(patience) => {
                    if self.changed.wait_for(&mut wanted, patience).timed_out() {
                        break;
                    }
                }
            }
        }
        *wanted = false;
    }
}

/// The thread; stopped and joined when dropped.
#[derive(Debug)]
pub struct Merger {
    wake: Arc<Wake>,
    registry: Arc<Registry>,
    thread: Option<JoinHandle<()>>,
}

impl Merger {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn start(registry: Arc<Registry>, wake: Arc<Wake>) -> std::io::Result<Self> {
        let (thread_registry, thread_wake) = (Arc::clone(&registry), Arc::clone(&wake));
        let thread = std::thread::Builder::new()
            .name("merger".into())
            .spawn(move || run(&thread_registry, &thread_wake))?;
        wake.wake();
        Ok(Self { wake, registry, thread: Some(thread) })
    }
}

impl Drop for Merger {
    fn drop(&mut self) {
        self.wake.stop.store(true, Ordering::Relaxed);
        for entry in self.registry.all() {
            entry.stop_upkeep.store(true, Ordering::Relaxed);
        }
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the merging thread had panicked");
        }
    }
}

fn run(registry: &Registry, wake: &Wake) {
    // On Linux this lowers the calling thread only. Merging is never urgent.
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "merging runs at normal priority");
    }
    let mut patience = None;
    loop {
        wake.wait(patience);
        if wake.stop.load(Ordering::Relaxed) {
            return;
        }
        let failed = registry.all().iter().filter(|entry| !merge(entry, wake)).count();
        patience = (failed > 0).then_some(TRY_AGAIN);
    }
}

/// Merges what can be merged on a volume; false if that failed.
fn merge(entry: &VolumeEntry, wake: &Wake) -> bool {
    loop {
        // Taken anew for each pair, so that a delete need not wait for all of them.
        let _upkeep = entry.upkeep.lock();
        let EntryState::Up(volume) = entry.view().state else { return true };
        if wake.stop.load(Ordering::Relaxed) || entry.stop_upkeep.load(Ordering::Relaxed) {
            return true;
        }
        match volume.merge_next(&entry.stop_upkeep) {
            Ok(true) => tracing::debug!(volume = %entry.id, "merged two layers"),
            Ok(false) => return true,
            Err(error) => {
                tracing::warn!(volume = %entry.id, %error, "layers are not merged for now");
                return false;
            }
        }
    }
}
