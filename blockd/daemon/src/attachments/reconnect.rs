//! The thread that gives devices other connections when some die while the daemon runs: one that timed out,
//! one that an earlier daemon's death closed only after its successor had started.

use super::{
    AttachError, Held, Shared,
    driver::{Conversation, Watch},
};
use blockd_extent::VolumeId;
use blockd_nbd::kernel::KernelError;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a failed attempt rests at first; twice as long after each further one.
const FIRST_REST: Duration = Duration::from_secs(1);
/// How long it rests at most.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How long it is waited for news while nothing is to be done.
const IDLE: Duration = Duration::from_secs(3600);

/// A device that is to be given connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    since: Instant,
    next: Instant,
    rest: Duration,
}

impl Due {
    /// From now on.
    pub(super) fn at(now: Instant) -> Self {
        Self { since: now, next: now, rest: FIRST_REST }
    }

    /// When to try again after an attempt that failed now; `None` when whoever waited has been given errors.
    fn after_failure(self, now: Instant, time_limit: Duration) -> Option<Self> {
        let next = now + self.rest;
        let rest = (self.rest * 2).min(LONGEST_REST);
        (next.duration_since(self.since) <= time_limit).then_some(Self { next, rest, ..self })
    }
}

/// The running thread; it ends with this value.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    /// What the driver called its news when it began to listen.
    numbers: (u16, Option<u32>),
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(shared: Arc<Shared>, kernel: &dyn Conversation) -> Result<Self, KernelError> {
        let (watch, numbers) = (kernel.watch()?, kernel.numbers());
        let failed = |source| KernelError::Socket { doing: "start the thread that listens", source };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let (stop, wake) = (Arc::new(AtomicBool::new(false)), Arc::new(wake));
        let (seen, woken) = (Arc::clone(&stop), Arc::clone(&wake));
        let run = move || keep(&shared, watch, &seen, &woken);
        let thread = std::thread::Builder::new().name("blockd-links".into()).spawn(run).map_err(failed)?;
        Ok(Self { stop, wake, numbers, thread: Some(thread) })
    }

    /// Whether it hears what this driver says: it runs, and the driver was not loaded anew since.
    pub(super) fn hears(&self, kernel: &dyn Conversation) -> bool {
        self.numbers == kernel.numbers() && !self.has_ended()
    }

    /// Whether its news failed.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Has it look at once at what is due.
    pub(super) fn wake(&self) -> Result<(), Errno> {
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).map(|_| ())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.wake() {
            tracing::warn!(%error, "the thread that reconnects devices is not woken");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reconnects devices panicked");
        }
    }
}

fn keep(shared: &Shared, mut watch: Box<dyn Watch>, stop: &AtomicBool, wake: &OwnedFd) {
    loop {
        let next = shared.due.lock().values().map(|due| due.next).min();
        let time_limit = next.map_or(IDLE, |next| next.saturating_duration_since(Instant::now()));
        let news = watch.wait(time_limit, wake.as_fd());
        if stop.load(Ordering::Acquire) {
            return;
        }
        // Only its arrival matters; that there was nothing to read is as good.
        let _ = rustix::io::read(wake, &mut [0; 8]);
        let dead = match news {
            Ok(Some(devices)) => volumes(shared, |device| devices.contains(&device)),
            Ok(None) => volumes(shared, |_| true),
            Err(error) => {
                tracing::error!(%error, "devices are not reconnected when a connection dies, until a volume is attached");
                return;
            }
        };
        let now = Instant::now();
        let due: BTreeMap<_, _> = {
            let mut all = shared.due.lock();
            for volume in dead {
                all.insert(volume, Due::at(now));
            }
            // Taken out before the attempts: what is noted anew during them stays.
            let (now_due, later) =
                std::mem::take(&mut *all).into_iter().partition(|(_, due)| due.next <= now);
            *all = later;
            now_due
        };
        for (volume, due) in due {
            if let Err(held) = reconnect(shared, volume) {
                try_again(shared, &held, due);
            }
        }
    }
}

/// Notes when a device is tried again, or that it is not.
fn try_again(shared: &Shared, held: &Held, due: Due) {
    let time_limit = Duration::from_secs(held.row.dead_timeout_s);
    let volume = held.row.volume;
    match due.after_failure(Instant::now(), time_limit) {
        Some(again) => {
            shared.due.lock().entry(volume).or_insert(again);
        }
        None => {
            tracing::error!(%volume, name = %held.name, "the device has had no connection for so long that its users got errors: detach and attach the volume");
        }
    }
}

fn volumes(shared: &Shared, wanted: impl Fn(u32) -> bool) -> Vec<VolumeId> {
    let held = shared.held.lock();
    let all = held.iter().filter(|(_, held)| held.row.device.is_some_and(&wanted));
    all.map(|(volume, _)| *volume).collect()
}

/// Gives a volume's device other connections; the attachment, if that is to be tried again.
fn reconnect(shared: &Shared, volume: VolumeId) -> Result<(), Held> {
    let Some(held) = shared.held.lock().get(&volume).cloned() else { return Ok(()) };
    let Some(device) = held.device() else { return Ok(()) };
    let result = shared
        .system
        .open_driver()
        .map_err(AttachError::from)
        .and_then(|mut kernel| shared.reconnect(&mut *kernel, &held, device));
    match result {
        Ok(()) => {
            tracing::info!(volume = %volume, name = %held.name, %device, "dead connections of the device replaced");
            if let Some(held) = shared.held.lock().get_mut(&volume) {
                held.problem = None;
            }
            Ok(())
        }
        Err(AttachError::Gone { .. }) => {
            tracing::debug!(volume = %volume, name = %held.name, %device, "the device was taken away");
            Ok(())
        }
        Err(error) => {
            tracing::warn!(volume = %volume, name = %held.name, %device, %error, "the device waits for a connection");
            Err(held)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_back_off_and_end_with_the_timeout() {
        let start = Instant::now();
        let mut due = Due::at(start);
        let mut attempts = Vec::new();
        while let Some(next) = due.after_failure(due.next, Duration::from_secs(120)) {
            attempts.push((next.next - start).as_secs());
            due = next;
        }
        assert_eq!(attempts, [1, 3, 7, 15, 31, 61, 91]);
    }
}
