//! The thread that gives devices other connections when some die while the daemon runs: one that timed out, one that an
//! earlier daemon's death closed only after its successor had started.

use super::{AttachError, Shared, driver::Watch};
use blockd_extent::VolumeId;
use blockd_nbd::kernel::KernelError;
use rustix::event::{EventfdFlags, eventfd};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// How long a failed attempt rests.
const RETRY: Duration = Duration::from_secs(1);
/// How long it is waited for news while nothing is to be done.
const IDLE: Duration = Duration::from_secs(3600);

/// The running thread; it ends with this value.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(shared: Arc<Shared>, watch: Box<dyn Watch>) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Socket { doing: "start the thread that listens", source };
        let wake = eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let (stop, wake) = (Arc::new(AtomicBool::new(false)), Arc::new(wake));
        let (seen, woken) = (Arc::clone(&stop), Arc::clone(&wake));
        let run = move || keep(&shared, watch, &seen, &woken);
        let thread = std::thread::Builder::new().name("blockd-links".into()).spawn(run).map_err(failed)?;
        Ok(Self { stop, wake, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&*self.wake, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "the thread that reconnects devices is not woken");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reconnects devices panicked");
        }
    }
}

fn keep(shared: &Shared, mut watch: Box<dyn Watch>, stop: &AtomicBool, wake: &OwnedFd) {
    let mut due = BTreeSet::new();
    loop {
        let patience = if due.is_empty() { IDLE } else { RETRY };
        let news = watch.wait(patience, wake.as_fd());
        if stop.load(Ordering::Acquire) {
            return;
        }
        match news {
            Ok(Some(devices)) => due.extend(volumes(shared, |device| devices.contains(&device))),
            Ok(None) => due.extend(volumes(shared, |_| true)),
            Err(error) => {
                tracing::error!(%error, "devices are not reconnected any more when a connection dies");
                return;
            }
        }
        due.retain(|volume| !reconnect(shared, *volume));
    }
}

fn volumes(shared: &Shared, wanted: impl Fn(u32) -> bool) -> Vec<VolumeId> {
    let held = shared.held.lock();
    let all = held.iter().filter(|(_, held)| held.row.device.is_some_and(&wanted));
    all.map(|(volume, _)| *volume).collect()
}

/// Whether nothing is left to be done for this volume.
fn reconnect(shared: &Shared, volume: VolumeId) -> bool {
    let Some(held) = shared.held.lock().get(&volume).cloned() else { return true };
    let Some(device) = held.device() else { return true };
    let result = shared
        .system
        .open_driver()
        .map_err(AttachError::from)
        .and_then(|mut kernel| shared.reconnect(&mut *kernel, &held, device));
    match result {
        Ok(()) => {
            tracing::info!(volume = %volume, name = %held.name, %device, "dead connections of the device replaced");
            true
        }
        Err(AttachError::Gone { .. }) => {
            tracing::debug!(volume = %volume, name = %held.name, %device, "the device was taken away");
            true
        }
        Err(error) => {
            tracing::warn!(volume = %volume, name = %held.name, %device, %error, "the device waits for a connection");
            false
        }
    }
}
