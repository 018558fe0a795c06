//! Metrics of store requests by credential, over all tasks.

use crate::metrics::histogram::{Counted, Histogram};
use blockd_store::{Request, RequestCounts, RequestKind, RequestObserver, Requests, StoreErrorKind};
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

/// Counters of one store.
#[derive(Debug, Default)]
pub struct Meter {
    requests: Requests,
    times: [Histogram; RequestKind::ALL.len()],
    failed: [AtomicU64; RequestKind::ALL.len()],
}

impl Meter {
    /// Returns the durations of all attempts, including failed ones.
    pub(crate) fn times(&self, kind: RequestKind) -> Counted {
        let mut counted = Counted::default();
        self.times[kind as usize].add_to(&mut counted);
        counted
    }

    pub(crate) fn failed(&self, kind: RequestKind) -> u64 {
        self.failed[kind as usize].load(Relaxed)
    }

    /// Returns the numbers of attempts and bytes.
    pub(crate) fn counts(&self) -> RequestCounts {
        self.requests.snapshot()
    }
}

impl RequestObserver for Meter {
    fn admit(&self, request: &Request<'_>) -> Result<(), String> {
        self.requests.admit(request)
    }

    fn started(&self, request: &Request<'_>) {
        self.requests.started(request);
    }

    fn ended(&self, request: &Request<'_>, elapsed: Duration, outcome: Result<u64, StoreErrorKind>) {
        self.requests.ended(request, elapsed, outcome);
        let kind = request.operation.kind() as usize;
        self.times[kind].note(elapsed);
        // These errors are regular responses, such as a missing object.
        if !matches!(outcome, Ok(_) | Err(StoreErrorKind::NotFound | StoreErrorKind::AlreadyExists)) {
            self.failed[kind].fetch_add(1, Relaxed);
        }
    }
}

/// Metrics of all stores, by credential.
#[derive(Debug, Default)]
pub struct Meters(Mutex<HashMap<Uuid, Arc<Meter>>>);

impl Meters {
    /// Returns the metrics of a credential, creating them if needed.
    pub fn of(&self, credential: Uuid) -> Arc<Meter> {
        Arc::clone(self.0.lock().entry(credential).or_default())
    }

    /// Returns the metrics of a credential if its store was used.
    pub(crate) fn get(&self, credential: Uuid) -> Option<Arc<Meter>> {
        self.0.lock().get(&credential).cloned()
    }

    /// Drops the metrics of a deleted credential.
    pub fn forget(&self, credential: Uuid) {
        self.0.lock().remove(&credential);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_store::MeterStore;
    use blockd_testkit::store::{Has, MemoryStore, object_store_suite};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn metered_store_passes_the_store_suite() {
        let meter = Arc::<Meter>::default();
        let store = MeterStore::new(Arc::new(MemoryStore::default()), meter.clone());
        object_store_suite(Arc::new(store), Has { create_if_absent: true, parts: true }).await;
        assert!(meter.counts().bytes_up > 100 << 20);
    }
}
