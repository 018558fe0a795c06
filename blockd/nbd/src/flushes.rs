//! Flushes that wait for a thread, by device.
//!
//! A flush takes as long as the disk needs, and covers everything that was answered before it began. So a device has one flush
//! under way at a time, of all its connections together; the ones that arrive meanwhile wait without a thread, and the
//! next one answers all of them. A flush is answered only by one that began after it arrived.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TryRecvError};
use parking_lot::Mutex;

use crate::device::{BlockDevice, ExportCatalog};
use crate::worker::{self, Job};

/// The devices whose flushes are one another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlushKey {
    /// Those with the same [`BlockDevice::flush_key`].
    Shared(u128),
    /// One device, by its address: the flushes that wait hold it.
    Own(usize),
}

impl FlushKey {
    fn of(device: &Arc<dyn BlockDevice>) -> Self {
        device.flush_key().map_or_else(|| Self::Own(Arc::as_ptr(device).cast::<()>() as usize), Self::Shared)
    }
}

/// An item for the threads that sync.
pub(crate) enum SyncItem {
    /// A request other than a flush.
    Job(Job),
    /// The flushes of this device that wait.
    Flushes(FlushKey),
}

/// The flushes that wait. Each belongs to a connection, which bounds how many it has.
#[derive(Default)]
pub(crate) struct Flushes {
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// There is an entry from the first flush on until no more wait when one ends.
    waiting: HashMap<FlushKey, Vec<Job>>,
    /// Devices for which flushes arrived while one was under way. The thread that adds one does not block before it has taken
    /// it or another thread has.
    again: VecDeque<FlushKey>,
}

impl Flushes {
    /// Has a flush wait; the item to be queued if it is the first one of its device.
    pub(crate) fn add(&self, device: &Arc<dyn BlockDevice>, job: Job) -> Option<SyncItem> {
        let key = FlushKey::of(device);
        let mut books = self.books.lock();
        let is_first = !books.waiting.contains_key(&key);
        books.waiting.entry(key).or_default().push(job);
        is_first.then_some(SyncItem::Flushes(key))
    }

    /// Flushes once for all that wait, and notes whether more arrived meanwhile.
    fn run(&self, key: FlushKey) {
        let jobs = self.books.lock().waiting.get_mut(&key).map(std::mem::take).unwrap_or_default();
        worker::flush_for_all(jobs);
        let mut books = self.books.lock();
        if books.waiting.get(&key).is_some_and(Vec::is_empty) {
            books.waiting.remove(&key);
        } else {
            books.again.push_back(key);
        }
    }

    fn take_again(&self) -> Option<FlushKey> {
        self.books.lock().again.pop_front()
    }
}

/// Serves requests that sync, until every sender is gone and the queue is empty.
pub(crate) fn serve(items: &Receiver<SyncItem>, flushes: &Flushes, catalog: &dyn ExportCatalog) {
    let mut was_again = false;
    loop {
        // In turn, so that neither keeps the other from the threads.
        let again = if was_again { None } else { flushes.take_again() };
        was_again = again.is_some();
        let item = match again {
            Some(key) => SyncItem::Flushes(key),
            None => match items.try_recv() {
                Ok(item) => item,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => match flushes.take_again() {
                    Some(key) => SyncItem::Flushes(key),
                    None => match items.recv() {
                        Ok(item) => item,
                        Err(_) => return,
                    },
                },
            },
        };
        match item {
            SyncItem::Job(job) => worker::serve(job, catalog),
            SyncItem::Flushes(key) => flushes.run(key),
        }
    }
}

/// The way to the threads that sync.
#[derive(Clone)]
pub(crate) struct SyncQueue {
    pub(crate) items: Sender<SyncItem>,
    pub(crate) flushes: Arc<Flushes>,
}

impl SyncQueue {
    /// Queues a request; `false` if the threads are gone.
    pub(crate) fn send(&self, job: Job) -> bool {
        let item = match job.flushed_device() {
            Some(device) => self.flushes.add(&device, job),
            None => Some(SyncItem::Job(job)),
        };
        item.is_none_or(|item| self.items.send(item).is_ok())
    }
}
