//! Reconnect thread: replaces connections of devices that die while the daemon runs, such as one that timed
//! out, or one of an earlier daemon that was closed after its successor had started.

use crate::volumes::attachments::{AttachError, AttachmentTable, HeldVolume};
use blockd_api::with_sources;
use blockd_extent::VolumeId;
use blockd_nbd_kernel::{DriverSession, Watch};
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

/// Delay after the first failed attempt; doubled after each further one.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay between attempts.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Timeout of the wait for notifications while no attempt is scheduled.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Schedule of reconnect attempts for a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetrySchedule {
    since: Instant,
    next: Instant,
    delay: Duration,
}

impl RetrySchedule {
    /// Schedules the first attempt now.
    pub(crate) fn at(now: Instant) -> Self {
        Self { since: now, next: now, delay: FIRST_DELAY }
    }

    /// Returns the schedule after an attempt that failed now; `None` when the time limit has expired and the
    /// kernel has failed the waiting requests.
    fn after_failure(self, now: Instant, time_limit: Duration) -> Option<Self> {
        let next = now + self.delay;
        let delay = (self.delay * 2).min(MAX_DELAY);
        (next.duration_since(self.since) <= time_limit).then_some(Self { next, delay, ..self })
    }
}

/// Handle of the running thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct ReconnectThread {
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    /// Netlink family and group numbers at the time of the subscription.
    numbers: (u16, Option<u32>),
    thread: Option<JoinHandle<()>>,
}

impl ReconnectThread {
    pub(crate) fn start(
        shared: Arc<AttachmentTable>,
        kernel: &dyn DriverSession,
    ) -> Result<Self, AttachError> {
        let (watch, numbers) = (kernel.watch()?, kernel.family_ids());
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| AttachError::Thread(errno.into()))?;
        let (stop, wake) = (Arc::new(AtomicBool::new(false)), Arc::new(wake));
        let (seen, woken) = (Arc::clone(&stop), Arc::clone(&wake));
        let run = move || run(&shared, watch, &seen, &woken);
        let thread = std::thread::Builder::new()
            .name("blockd-links".into())
            .spawn(run)
            .map_err(AttachError::Thread)?;
        Ok(Self { stop, wake, numbers, thread: Some(thread) })
    }

    /// Returns true if the thread runs and the driver was not reloaded since its subscription.
    pub(crate) fn is_subscribed_to(&self, kernel: &dyn DriverSession) -> bool {
        self.numbers == kernel.family_ids() && !self.has_ended()
    }

    /// Returns true if the thread ended because its subscription failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Makes the thread process the due attempts at once.
    pub(crate) fn wake(&self) -> Result<(), Errno> {
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).map(|_| ())
    }
}

impl Drop for ReconnectThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.wake() {
            tracing::warn!(%error, "waking the reconnect thread failed");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the reconnect thread panicked");
        }
    }
}

fn run(shared: &AttachmentTable, mut watch: Box<dyn Watch>, stop: &AtomicBool, wake: &OwnedFd) {
    loop {
        let next = shared.due.lock().values().map(|due| due.next).min();
        let time_limit = next.map_or(IDLE_TIMEOUT, |next| next.saturating_duration_since(Instant::now()));
        let news = watch.wait(time_limit, wake.as_fd());
        if stop.load(Ordering::Acquire) {
            return;
        }
        // Resets the counter; an error means that it was zero already.
        let _ = rustix::io::read(wake, &mut [0; 8]);
        let dead = match news {
            Ok(Some(devices)) => volumes_of(shared, |device| devices.contains(&device)),
            Ok(None) => volumes_of(shared, |_| true),
            Err(error) => {
                let error = with_sources(&error);
                tracing::error!(
                    error,
                    "subscription to dead connections failed: devices are not reconnected until a volume is attached"
                );
                return;
            }
        };
        let now = Instant::now();
        let due: BTreeMap<_, _> = {
            let mut all = shared.due.lock();
            for volume in dead {
                all.insert(volume, RetrySchedule::at(now));
            }
            // Removed before the attempts, so that entries added during them stay.
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

/// Schedules the next attempt, or gives up after the time limit.
fn try_again(shared: &AttachmentTable, held: &HeldVolume, due: RetrySchedule) {
    let time_limit = Duration::from_secs(held.row.dead_timeout_s);
    let volume = held.row.volume;
    match due.after_failure(Instant::now(), time_limit) {
        Some(again) => {
            shared.due.lock().entry(volume).or_insert(again);
        }
        None => {
            tracing::error!(%volume, name = %held.name, "the device had no connection until its dead timeout and its users got I/O errors: detach and attach the volume");
        }
    }
}

fn volumes_of(shared: &AttachmentTable, wanted: impl Fn(u32) -> bool) -> Vec<VolumeId> {
    let held = shared.held.lock();
    let all = held.iter().filter(|(_, held)| held.row.device.is_some_and(&wanted));
    all.map(|(volume, _)| *volume).collect()
}

/// Reconnects a volume's device; returns the attachment if the attempt is to be repeated.
fn reconnect(shared: &AttachmentTable, volume: VolumeId) -> Result<(), HeldVolume> {
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
            tracing::debug!(volume = %volume, name = %held.name, %device, "the device was removed");
            Ok(())
        }
        Err(error) => {
            tracing::warn!(volume = %volume, name = %held.name, %device, %error, "reconnecting the device failed; retrying");
            Err(held)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::ErrorCode;

    #[test]
    fn failed_start_of_the_thread_is_no_netlink_error() {
        let error = AttachError::Thread(Errno::MFILE.into()).to_api();
        assert_eq!(error.code, ErrorCode::DeviceFailed);
        let expected = "start failed on the reconnect thread: Too many open files (os error 24)";
        assert_eq!(error.message, expected);
    }

    #[test]
    fn reconnect_attempts_back_off_and_end_at_the_dead_timeout() {
        let start = Instant::now();
        let mut due = RetrySchedule::at(start);
        let mut attempts = Vec::new();
        while let Some(next) = due.after_failure(due.next, Duration::from_secs(120)) {
            attempts.push((next.next - start).as_secs());
            due = next;
        }
        assert_eq!(attempts, [1, 3, 7, 15, 31, 61, 91]);
    }
}
