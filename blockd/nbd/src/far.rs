//! The requests of one connection that its device has taken along, until what they need is near; and whether anybody still
//! wants to know what becomes of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::worker::Job;

/// See the module. Shared by a connection and its requests; the connection bounds how many there are.
#[derive(Default)]
pub(crate) struct FarRequests {
    is_abandoned: AtomicBool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    waiting: HashMap<u64, Job>,
    next: u64,
    /// The client has gone: nothing waits any more.
    is_recalled: bool,
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct FarKey(u64);

impl FarRequests {
    /// Nobody wants to know what becomes of any request.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// Nobody wants to know from now on: what waits has ended.
    pub(crate) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.recall();
    }

    /// Nothing waits for what is far from now on: what does has ended.
    pub(crate) fn recall(&self) {
        let waiting = {
            let mut books = self.books.lock();
            books.is_recalled = true;
            std::mem::take(&mut books.waiting)
        };
        waiting.into_values().for_each(Job::end_unwanted);
    }

    pub(crate) fn is_recalled(&self) -> bool {
        self.books.lock().is_recalled
    }

    /// Keeps a request until somebody takes it back.
    pub(crate) fn keep(&self, job: Job) -> FarKey {
        let mut books = self.books.lock();
        let key = books.next;
        books.next += 1;
        books.waiting.insert(key, job);
        FarKey(key)
    }

    /// Takes a request back, unless somebody has.
    pub(crate) fn take(&self, key: FarKey) -> Option<Job> {
        self.books.lock().waiting.remove(&key.0)
    }
}
