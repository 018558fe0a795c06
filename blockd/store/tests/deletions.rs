//! Deletions of many objects: number of requests, and failures of single objects.

use blockd_store::{
    DryStore, MeterStore, Requests, RetryPolicy, RetryStore, StoreErrorKind, delete_objects, task_store,
};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use std::sync::Arc;

struct Bench {
    memory: Arc<MemoryStore>,
    faults: Arc<FaultStore>,
    store: RetryStore,
    requests: Arc<Requests>,
}

fn key(number: usize) -> String {
    format!("a/{number:05}")
}

impl Bench {
    fn new(memory: MemoryStore, objects: usize) -> Self {
        let (memory, requests) = (Arc::new(memory), Arc::new(Requests::default()));
        (0..objects).for_each(|number| memory.insert(&key(number), "x"));
        let faults = Arc::new(FaultStore::new(memory.clone()));
        let metered = Arc::new(MeterStore::new(faults.clone(), requests.clone()));
        let policy = RetryPolicy { attempts: 3, base_ms: 1, ..RetryPolicy::default() };
        Self { memory, faults, store: RetryStore::new(metered, policy), requests }
    }

    /// Deletes objects; returns the number of those that existed and the number of requests.
    async fn delete(&self, objects: usize) -> (Result<u64, StoreErrorKind>, u64) {
        let deleted = delete_objects(&self.store, (0..objects).map(key)).await;
        (deleted.map_err(|error| error.kind), self.requests.snapshot().delete)
    }
}

#[tokio::test]
async fn deletion_has_as_few_requests_as_the_store_takes() {
    for (batch_keys, expected) in [(1000, 3), (256, 10), (0, 2500)] {
        let bench = Bench::new(MemoryStore::with_batches(batch_keys), 2400);
        // A dry run has the same requests.
        let dry = Arc::new(DryStore::new(bench.memory.clone(), batch_keys));
        let (dry, requests) = task_store(dry, RetryPolicy::default());
        assert_eq!(delete_objects(&*dry, (0..2500).map(key)).await.unwrap(), 2500);
        assert_eq!((requests.snapshot().delete, bench.memory.objects().len()), (expected, 2400));
        assert_eq!(bench.delete(2500).await, (Ok(2400), expected), "{batch_keys}");
        assert!(bench.memory.objects().is_empty());
    }
    // A single one needs no batch, and none no request.
    let bench = Bench::new(MemoryStore::with_batches(1000), 1);
    assert_eq!(bench.delete(1).await, (Ok(1), 1));
    assert_eq!(bench.delete(0).await, (Ok(0), 1));
}

#[tokio::test]
async fn failed_request_for_many_objects_is_repeated_once() {
    let bench = Bench::new(MemoryStore::with_batches(1000), 900);
    bench.faults.fail_at(0, Fault::RetryAfter(0));
    bench.faults.fail_at(1, Fault::AfterApply);
    // The lost response does not say what existed.
    assert_eq!(bench.delete(900).await, (Ok(0), 3));
    assert!(bench.memory.objects().is_empty());
}

#[tokio::test]
async fn throttled_store_gets_no_request_for_each_object() {
    // Throttled for a time: the request for many objects is repeated.
    let bench = Bench::new(MemoryStore::with_batches(1000), 900);
    (0..3).for_each(|attempt| bench.faults.fail_at(attempt, Fault::RetryAfter(0)));
    // Three attempts, a single object, and two requests for 500 and 399.
    assert_eq!(bench.delete(900).await, (Ok(900), 6));
    assert!(bench.memory.objects().is_empty());
    // A store that counts objects admits 125: once it refused 1000, 500 and 250, no request is for more.
    let bench = Bench::new(MemoryStore::with_batches(1000), 2000);
    (0..11).filter(|nth| nth % 4 < 3).for_each(|nth| bench.faults.fail_at(nth, Fault::RetryAfter(0)));
    assert_eq!(bench.delete(2000).await, (Ok(2000), 12 + 8 + 8));
    // Throttled for longer.
    let bench = Bench::new(MemoryStore::with_batches(1000), 900);
    bench.faults.fail_all(Fault::RetryAfter(0));
    assert_eq!(bench.delete(900).await, (Err(StoreErrorKind::Throttled), 6));
}

#[tokio::test]
async fn objects_that_fail_for_passing_causes_are_deleted_again() {
    let bench = Bench::new(MemoryStore::with_batches(1000), 900);
    for number in [0, 17, 899] {
        bench.memory.refuse_in_batch(&key(number), StoreErrorKind::Other);
    }
    assert_eq!(bench.delete(900).await, (Ok(900), 4));
    assert!(bench.memory.objects().is_empty());
}

#[tokio::test]
async fn refused_object_fails_the_deletion_after_the_others() {
    let bench = Bench::new(MemoryStore::with_batches(1000), 900);
    bench.memory.refuse_in_batch(&key(17), StoreErrorKind::Unauthorized);
    assert_eq!(bench.delete(900).await, (Err(StoreErrorKind::Unauthorized), 1));
    assert_eq!(bench.memory.objects().into_keys().collect::<Vec<_>>(), [key(17)]);
}

#[tokio::test]
async fn server_without_such_requests_gets_one_for_each_object() {
    let bench = Bench::new(MemoryStore::with_batches(1000), 1500);
    bench.faults.fail_at(0, Fault::Unauthorized);
    assert_eq!(bench.delete(1500).await, (Ok(1500), 1501));
    // An internal error at each attempt, between which single objects are deleted.
    let bench = Bench::new(MemoryStore::with_batches(1000), 1500);
    (0..19).filter(|nth| nth % 4 < 3).for_each(|nth| bench.faults.fail_at(nth, Fault::RetryAfter(0)));
    assert_eq!(bench.delete(1500).await, (Ok(1500), 1515));
    // A store that does not respond is not asked again for each object.
    let bench = Bench::new(MemoryStore::with_batches(1000), 1500);
    bench.faults.fail_all(Fault::BeforeApply);
    assert_eq!(bench.delete(1500).await, (Err(StoreErrorKind::Unreachable), 3));
}
