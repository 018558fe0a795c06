//! Queues of the worker threads. That of the sync threads holds flushes by device and other requests that
//! sync.
//!
//! A flush covers everything that was answered before it started. So a device has one running flush for all
//! its connections; flushes that arrive meanwhile wait without a thread, and the next one answers all of
//! them. A flush is answered only by one that started after its arrival.

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
    /// Flushes, and requests with FUA.
    pub(crate) syncs: Arc<SyncQueue>,
    pub(crate) lookups: Sender<Job>,
    pub(crate) handshakes: Sender<Job>,
}

impl Queues {
    /// Passes a job to its threads, which outlive every sender.
    pub(crate) fn send(&self, job: Job) {
        let is_sent = match &job.work {
            Work::Request(request) if request.request.operation.syncs() => {
                self.syncs.send(job);
                true
            }
            Work::Request(_) => self.requests.send(job).is_ok(),
            Work::Lookup(..) => self.lookups.send(job).is_ok(),
            Work::Handshake(_) => self.handshakes.send(job).is_ok(),
        };
        if !is_sent {
            tracing::error!("the worker threads are gone");
        }
    }
}

/// Devices whose flushes are coalesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FlushKey {
    /// Devices with the same [`BlockDevice::flush_key`].
    Shared(u128),
    /// One device, by its address: waiting flushes hold it.
    Own(usize),
}

impl FlushKey {
    fn of(device: &Arc<dyn BlockDevice>) -> Self {
        device.flush_key().map_or_else(|| Self::Own(Arc::as_ptr(device).cast::<()>() as usize), Self::Shared)
    }
}

/// Item of the queue.
enum SyncItem {
    /// A request other than a flush.
    Job(Job),
    /// Waiting flushes of a device.
    Flushes(FlushKey),
}

/// Consumer side of the queue.
#[derive(Default)]
pub(crate) struct SyncItems {
    state: Mutex<FlushState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlushState {
    items: VecDeque<SyncItem>,
    /// Waiting flushes. An entry exists from the first flush until none waits at the end of one. Connections
    /// bound their number.
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

    /// Runs one flush for all waiting ones. Flushes that arrived meanwhile queue behind the other items.
    fn flush(&self, key: FlushKey) {
        let jobs = self.state.lock().waiting.get_mut(&key).map(std::mem::take).unwrap_or_default();
        assert!(!jobs.is_empty(), "a queued flush answers requests");
        worker::flush_for_all(jobs);
        let mut state = self.state.lock();
        assert!(state.waiting.contains_key(&key), "a running flush is listed until its end");
        if state.waiting.get(&key).is_some_and(Vec::is_empty) {
            state.waiting.remove(&key);
        } else {
            self.push(&mut state, SyncItem::Flushes(key));
        }
    }

    /// Serves requests that sync, until the queue is closed and empty.
    pub(crate) fn serve(&self, catalog: &dyn ExportCatalog) {
        while let Some(item) = self.next() {
            match item {
                SyncItem::Job(job) => worker::serve(job, catalog),
                SyncItem::Flushes(key) => self.flush(key),
            }
        }
    }
}

/// Producer side of the queue; closes it on drop.
#[derive(Default)]
pub(crate) struct SyncQueue(Arc<SyncItems>);

impl SyncQueue {
    pub(crate) fn items(&self) -> Arc<SyncItems> {
        Arc::clone(&self.0)
    }

    pub(crate) fn send(&self, job: Job) {
        let device = job.flushed_device();
        let mut state = self.0.state.lock();
        assert!(!state.is_closed, "the queue is closed by its producer");
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
