//! Check of the volumes that a start left closed.
//!
//! One thread of low priority opens each of them, which reads and verifies its metadata, and closes it again.
//! Damage, discarded writes and failed writebacks of the previous process are reported without a client, and
//! the memory of the block sets is that of one volume. Volumes with mergeable layers come first and stay
//! open.

use crate::{
    schedules::wake::Scheduler,
    volumes::{
        merger::Wake,
        registry::{CheckOutcome, EntryState, Registry, VolumeEntry},
    },
};
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

/// Handle of the thread, which is stopped and joined on drop.
#[derive(Debug)]
pub struct StartupCheck {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StartupCheck {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn start(
        registry: Arc<Registry>,
        merger: Arc<Wake>,
        scheduler: Arc<Scheduler>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("startup-check".into()).spawn(move || {
            let found = |outcome| match outcome {
                CheckOutcome::NotNeeded | CheckOutcome::Closed => {}
                CheckOutcome::Open => merger.wake(),
                // A pass reports failed volumes.
                CheckOutcome::Failed => scheduler.wake(),
            };
            run(&registry, &is_stopped, found);
            // Clients may have opened volumes before their check.
            merger.wake();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for StartupCheck {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("the check of closed volumes panicked");
        }
    }
}

fn run(registry: &Registry, stop: &AtomicBool, found: impl Fn(CheckOutcome)) {
    // On Linux this lowers the calling thread only.
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "lowering the priority of the check of closed volumes failed");
    }
    let is_closed = |entry: &Arc<VolumeEntry>| matches!(entry.view().state, EntryState::Closed(_));
    let mut entries: Vec<_> = registry.all().into_iter().filter(is_closed).collect();
    entries.sort_by_key(|entry| !may_merge(entry));
    let (count, started) = (entries.len(), Instant::now());
    for entry in entries {
        let began = Instant::now();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A panic must not leave the others unchecked.
        match std::panic::catch_unwind(AssertUnwindSafe(|| entry.check_closed())) {
            Ok(outcome) => found(outcome),
            Err(_) => {
                tracing::error!(volume = %entry.id, name = %entry.name, "the check of the volume panicked");
            }
        }
        // At most half of the time: the syncs of an open delay those of clients.
        std::thread::park_timeout(began.elapsed());
    }
    tracing::info!(volumes = count, check_ms = started.elapsed().as_millis(), "closed volumes checked");
}

fn may_merge(entry: &VolumeEntry) -> bool {
    matches!(entry.view().state, EntryState::Closed(closed) if closed.volume.may_merge())
}
