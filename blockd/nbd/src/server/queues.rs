//! Job queues of the worker threads. The sync queue holds pending flushes by device, and requests with FUA.
//!
//! A flush covers all writes answered before it starts. So a device runs one flush at a time for all its
//! connections. Flushes that arrive during its run wait without a thread, and the next run, which starts
//! after their arrival, answers them all.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crossbeam::channel::Sender;
use parking_lot::{Condvar, Mutex};

use crate::device::{BlockDevice, ExportCatalog};
use crate::server::worker::{self, Job, Work};

/// Queues of the worker threads.
#[derive(Clone)]
pub(crate) struct Queues {
    pub(crate) requests: Sender<Job>,
    /// Queue of flushes and requests with FUA.
    pub(crate) syncs: Arc<SyncQueue>,
    pub(crate) lookups: Sender<Job>,
    /// Queue of lookups that may wait for the network.
    pub(crate) remote_lookups: Sender<Job>,
    pub(crate) handshakes: Sender<Job>,
    pub(crate) catalog: Arc<dyn ExportCatalog>,
}

impl Queues {
    /// Queues a job for its threads, which outlive the senders.
    pub(crate) fn send(&self, job: Job) {
        let is_sent = match &job.work {
            Work::Request(request) if request.request.operation.syncs() => {
                self.syncs.send(job);
                true
            }
            Work::Request(_) => self.requests.send(job).is_ok(),
            Work::Lookup(lookup, _) if lookup.is_remote(&*self.catalog) => {
                self.remote_lookups.send(job).is_ok()
            }
            Work::Lookup(..) => self.lookups.send(job).is_ok(),
            Work::Handshake(_) => self.handshakes.send(job).is_ok(),
        };
        if !is_sent {
            tracing::error!("internal error: the worker threads have ended");
        }
    }
}

/// Key of devices whose flushes are coalesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FlushKey {
    /// Devices with the same [`BlockDevice::flush_key`].
    Shared(u128),
    /// One device, by its address, which is stable because waiting flushes hold the device.
    Own(usize),
}

impl FlushKey {
    fn of(device: &Arc<dyn BlockDevice>) -> Self {
        device.flush_key().map_or_else(|| Self::Own(Arc::as_ptr(device).cast::<()>() as usize), Self::Shared)
    }
}

/// Item of the queue.
enum SyncItem {
    /// A request with FUA.
    Job(Job),
    /// Waiting flushes of a device.
    Flushes(FlushKey),
}

/// Consumer side of the sync queue.
#[derive(Default)]
pub(crate) struct SyncItems {
    state: Mutex<FlushState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlushState {
    items: VecDeque<SyncItem>,
    /// Waiting flushes by key. An entry exists until a run ends without new flushes. The job limits of
    /// connections bound their number.
    waiting: HashMap<FlushKey, Vec<Job>>,
    /// The queue is closed.
    is_closed: bool,
}

impl SyncItems {
    fn push(&self, state: &mut FlushState, item: SyncItem) {
        state.items.push_back(item);
        self.changed.notify_one();
    }

    /// Returns the next item; `None` when the queue is closed and empty.
    fn next(&self) -> Option<SyncItem> {
        let mut state = self.state.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Some(item);
            }
            if state.is_closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Runs one flush for all waiting flushes of a key, and queues another run for those that arrived during
    /// it.
    fn flush(&self, key: FlushKey) {
        let jobs = self.state.lock().waiting.get_mut(&key).map(std::mem::take).unwrap_or_default();
        assert!(!jobs.is_empty(), "a queued run has waiting flushes");
        worker::flush_coalesced(jobs);
        let mut state = self.state.lock();
        assert!(state.waiting.contains_key(&key), "a running flush has an entry");
        if state.waiting.get(&key).is_some_and(Vec::is_empty) {
            state.waiting.remove(&key);
        } else {
            self.push(&mut state, SyncItem::Flushes(key));
        }
    }

    /// Executes items until the queue is closed and empty.
    pub(crate) fn serve(&self, catalog: &dyn ExportCatalog) {
        while let Some(item) = self.next() {
            match item {
                SyncItem::Job(job) => worker::serve(job, catalog),
                SyncItem::Flushes(key) => self.flush(key),
            }
        }
    }
}

/// Producer side of the sync queue; closes the queue on drop.
#[derive(Default)]
pub(crate) struct SyncQueue(Arc<SyncItems>);

impl SyncQueue {
    pub(crate) fn items(&self) -> Arc<SyncItems> {
        Arc::clone(&self.0)
    }

    pub(crate) fn send(&self, job: Job) {
        let device = job.flushed_device();
        let mut state = self.0.state.lock();
        assert!(!state.is_closed, "only the producer closes the queue");
        let Some(device) = device else { return self.0.push(&mut state, SyncItem::Job(job)) };
        let key = FlushKey::of(&device);
        let is_first = !state.waiting.contains_key(&key);
        state.waiting.entry(key).or_default().push(job);
        if is_first {
            self.0.push(&mut state, SyncItem::Flushes(key));
        }
        drop(state);
    }
}

impl Drop for SyncQueue {
    fn drop(&mut self) {
        self.0.state.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}
