//! Background thread that merges layers without a snapshot between them.
//!
//! One thread of low priority serves all volumes; it sleeps until layers may be mergeable, or for a minute if
//! a merge failed. On a full disk, a merge is retried with the space reserve released; the thread refills the
//! reserve as soon as there is space.

use crate::volumes::registry::{EntryState, Registry, VolumeEntry};
use blockd_volume::{Released, Reserve, VolumeErrorKind};
use parking_lot::{Condvar, Mutex};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Pause before a failed merge is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Interval of attempts to refill the space reserve.
const REFILL_EVERY: Duration = Duration::from_secs(1);

/// Polling interval for a stop of a throttled merge.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Wakes and stops the thread.
#[derive(Debug, Default)]
pub struct Wake {
    wanted: Mutex<bool>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Wake {
    /// Wakes the thread: layers may be mergeable.
    pub fn wake(&self) {
        *self.wanted.lock() = true;
        self.changed.notify_one();
    }

    /// Waits for a wake-up, up to the time limit; returns true if there was one.
    fn wait(&self, time_limit: Option<Duration>) -> bool {
        let mut wanted = self.wanted.lock();
        while !*wanted && !self.stop.load(Ordering::Relaxed) {
            match time_limit {
                None => self.changed.wait(&mut wanted),
                Some(time_limit) => {
                    if self.changed.wait_for(&mut wanted, time_limit).timed_out() {
                        break;
                    }
                }
            }
        }
        std::mem::take(&mut *wanted)
    }
}

/// Handle of the thread, which is stopped and joined on drop.
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
    pub fn start(
        registry: Arc<Registry>,
        wake: Arc<Wake>,
        reserve: Option<Arc<Reserve>>,
        limit_bytes_per_s: u64,
    ) -> std::io::Result<Self> {
        let (thread_registry, thread_wake) = (Arc::clone(&registry), Arc::clone(&wake));
        let thread = std::thread::Builder::new().name("merger".into()).spawn(move || {
            run(&thread_registry, &thread_wake, reserve.as_ref(), &Pace::new(limit_bytes_per_s));
        })?;
        wake.wake();
        Ok(Self { wake, registry, thread: Some(thread) })
    }
}

impl Drop for Merger {
    fn drop(&mut self) {
        self.wake.stop.store(true, Ordering::Relaxed);
        for entry in self.registry.all() {
            entry.stop_merges.store(true, Ordering::Relaxed);
        }
        self.wake.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the merge thread panicked");
        }
    }
}

/// Rate limiter in bytes per second.
struct Pace {
    limit_bytes_per_s: u64,
    /// Time from which the next copy may start.
    next: Mutex<Instant>,
}

impl Pace {
    fn new(limit_bytes_per_s: u64) -> Self {
        Self { limit_bytes_per_s, next: Mutex::new(Instant::now()) }
    }

    /// Waits until the bytes may be copied; returns false at once when `stop` is true.
    fn pass(&self, bytes: u64, stop: &dyn Fn() -> bool) -> bool {
        if self.limit_bytes_per_s == 0 || bytes == 0 {
            return !stop();
        }
        let mut next = self.next.lock();
        loop {
            let now = Instant::now();
            if stop() {
                return false;
            }
            if *next <= now {
                *next = now + Duration::from_secs_f64(bytes as f64 / self.limit_bytes_per_s as f64);
                return true;
            }
            std::thread::sleep(STOP_POLL.min(*next - now));
        }
    }
}

fn run(registry: &Registry, wake: &Wake, reserve: Option<&Arc<Reserve>>, pace: &Pace) {
    // On Linux this lowers the calling thread only. Merging is never urgent.
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "lowering the priority of the merge thread failed");
    }
    let mut time_limit = None;
    let mut try_again_at: Option<Instant> = None;
    loop {
        let is_woken = wake.wait(time_limit);
        if wake.stop.load(Ordering::Relaxed) {
            return;
        }
        if is_woken || try_again_at.is_some_and(|at| at <= Instant::now()) {
            let failed = merge_all(registry, wake, reserve, pace);
            try_again_at = failed.then(|| Instant::now() + RETRY_PAUSE);
        }
        let is_whole = reserve.is_none_or(|reserve| reserve.refill());
        let until_next = try_again_at.map(|at| at.saturating_duration_since(Instant::now()));
        time_limit = if is_whole { until_next } else { Some(REFILL_EVERY) };
    }
}

/// Merges layers of all volumes; returns true if a merge failed.
fn merge_all(registry: &Registry, wake: &Wake, reserve: Option<&Arc<Reserve>>, pace: &Pace) -> bool {
    // A merge may release a shared file, which makes layers of another volume mergeable. Each pass but the
    // last removes a layer, so the loop ends.
    let mut failed = true;
    let mut merged = true;
    // Held to the end: the next merge uses the space that one frees.
    let mut space = None;
    while merged && !wake.stop.load(Ordering::Relaxed) {
        (failed, merged) = (false, false);
        for entry in registry.all() {
            match merge(&entry, wake, reserve, &mut space, pace) {
                Merged::All { pairs } => merged |= pairs > 0,
                Merged::Failed => failed = true,
            }
        }
    }
    failed
}

/// Result of the merges of a volume.
enum Merged {
    /// No more layers can be merged now.
    All {
        /// Number of merged pairs of layers.
        pairs: u64,
    },
    /// A merge failed; a retry may succeed.
    Failed,
}

/// Merges layers of a volume.
fn merge(
    entry: &VolumeEntry,
    wake: &Wake,
    reserve: Option<&Arc<Reserve>>,
    space: &mut Option<Released>,
    pace: &Pace,
) -> Merged {
    let mut pairs = 0;
    loop {
        // Taken for each pair, so that a delete need not wait for all of them.
        let layer_changes = entry.layer_changes.lock();
        let EntryState::Up(volume) = entry.view().state else { return Merged::All { pairs } };
        if wake.stop.load(Ordering::Relaxed) || entry.stop_merges.load(Ordering::Relaxed) {
            return Merged::All { pairs };
        }
        let stop = || entry.stop_merges.load(Ordering::Relaxed);
        match volume.merge_next(&|bytes| pace.pass(bytes, &stop)) {
            Ok(true) => {
                tracing::debug!(volume = %entry.id, "merged two layers");
                pairs += 1;
                drop(layer_changes);
                blockd_volume::wait_for_removed_files();
            }
            Ok(false) => return Merged::All { pairs },
            Err(error) => {
                if error.kind() == VolumeErrorKind::NoSpace && space.is_none() {
                    *space = reserve.and_then(Reserve::release);
                    if space.is_some() {
                        tracing::info!(volume = %entry.id, "retrying a merge with the space reserve");
                        continue;
                    }
                }
                tracing::warn!(volume = %entry.id, %error, "merge failed; retrying later");
                return Merged::Failed;
            }
        }
    }
}
