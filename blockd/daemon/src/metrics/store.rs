//! Metrics of store requests by credential, over all tasks.

use super::histogram::{Counted, Histogram};
use blockd_store::{Operation, RequestObserver, StoreErrorKind};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use uuid::Uuid;

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Put,
    Get,
    Delete,
    List,
    Multipart,
}

impl Request {
    pub(super) const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Delete, Self::List, Self::Multipart];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Multipart => "multipart",
        }
    }
}

impl From<Operation> for Request {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Put => Self::Put,
            Operation::Get | Operation::GetRange => Self::Get,
            Operation::Delete => Self::Delete,
            Operation::List => Self::List,
            Operation::MultipartStart
            | Operation::MultipartPut
            | Operation::MultipartComplete
            | Operation::MultipartAbort => Self::Multipart,
        }
    }
}

/// Counters of one store.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    times: [Histogram; Request::ALL.len()],
    failed: [AtomicU64; Request::ALL.len()],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Meter {
    /// Returns the durations of all attempts, including failed ones.
    pub(super) fn times(&self, request: Request) -> Counted {
        let mut counted = Counted::default();
        self.times[request as usize].add_to(&mut counted);
        counted
    }

    pub(super) fn failed(&self, request: Request) -> u64 {
        self.failed[request as usize].load(Relaxed)
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Relaxed)
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Relaxed)
    }
}

impl RequestObserver for Meter {
    fn started(&self, request: &blockd_store::Request<'_>) {
        self.sent_bytes.fetch_add(request.sent_bytes, Relaxed);
    }

    fn ended(
        &self,
        request: &blockd_store::Request<'_>,
        elapsed: Duration,
        outcome: Result<u64, StoreErrorKind>,
    ) {
        let kind = Request::from(request.operation) as usize;
        self.times[kind].note(elapsed);
        match outcome {
            Ok(received_bytes) => self.received_bytes.fetch_add(received_bytes, Relaxed),
            Err(error) if is_answer(error) => 0,
            Err(_) => self.failed[kind].fetch_add(1, Relaxed),
        };
    }
}

/// Returns true for errors that are regular responses, such as a missing object.
fn is_answer(kind: StoreErrorKind) -> bool {
    matches!(kind, StoreErrorKind::NotFound | StoreErrorKind::AlreadyExists)
}

/// Metrics of all stores, by credential.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<HashMap<Uuid, Arc<Meter>>>);

impl Meters {
    /// Returns the metrics of a credential, creating them if needed.
    pub(crate) fn of(&self, credential: Uuid) -> Arc<Meter> {
        Arc::clone(self.0.lock().entry(credential).or_default())
    }

    /// Returns the metrics of a credential if its store was used.
    pub(super) fn get(&self, credential: Uuid) -> Option<Arc<Meter>> {
        self.0.lock().get(&credential).cloned()
    }

    /// Drops the metrics of a deleted credential.
    pub(crate) fn forget(&self, credential: Uuid) {
        self.0.lock().remove(&credential);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_store::{
        MeterStore,
        testing::{Has, MemoryStore, object_store_suite},
    };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn metered_store_passes_the_store_suite() {
        let meter = Arc::<Meter>::default();
        let store = MeterStore::new(Arc::new(MemoryStore::default()), meter.clone());
        object_store_suite(Arc::new(store), Has { create_if_absent: true, parts: true }).await;
        assert!(meter.sent_bytes.load(Relaxed) > 100 << 20);
    }
}
