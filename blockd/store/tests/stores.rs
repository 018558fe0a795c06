//! Middleware, probes and directories, by the public interface, and the suites that any store must pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

use blockd_store::{
    Bandwidth, BlobStore, LimitStore, LocalStore, MeterStore, ObjectInfo, Operation, PutMode, ReloadStore,
    Request, Requests, Response, RetryPolicy, RetryStore, StoreErrorKind, StoreFuture, probe, task_store,
};
use blockd_testkit::store::{Fault, FaultStore, Has, MemoryStore, object_store_suite, store_suite};
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const ALL: Has = Has { create_if_absent: true, parts: true };
const REPLACES: Has = Has { create_if_absent: false, parts: true };

fn patient() -> RetryPolicy {
    RetryPolicy { attempts: 4, base_ms: 0, max_ms: 0, request_timeout_ms: 60_000 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_store_on_memory() {
    object_store_suite(Arc::new(MemoryStore::default()), ALL).await;
    object_store_suite(Arc::new(MemoryStore::ignoring_conditions()), REPLACES).await;
    object_store_suite(Arc::new(MemoryStore::refusing_conditions()), REPLACES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_store_on_a_directory_and_on_a_task_s_stack_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let local: Arc<dyn BlobStore> = Arc::new(LocalStore::open(dir.path()).unwrap());
    object_store_suite(local.clone(), ALL).await;
    let (counted, requests) = task_store(local, patient());
    let limited = Arc::new(LimitStore::new(counted, Arc::new(Bandwidth::new(Some(1 << 30), Some(1 << 30)))));
    object_store_suite(limited, ALL).await;
    let requests = requests.snapshot();
    assert!(requests.put > 40 && requests.get > 40 && requests.multipart > 10, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_store_on_retries_over_a_flaky_store() {
    // Without lost answers, which cannot be distinguished from another writer's success.
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    for operation in (2..5_000).step_by(7) {
        let kinds = [Fault::BeforeApply, Fault::ShortBody];
        faults.fail_at(operation, kinds[(operation / 7) as usize % 2]);
    }
    let (store, _) = task_store(faults, patient());
    object_store_suite(store, ALL).await;
}

#[tokio::test]
async fn local_store_passes_the_store_suite() {
    let dir = tempfile::tempdir().unwrap();
    store_suite(&LocalStore::open(dir.path()).unwrap()).await;
    assert!(probe(&LocalStore::open(dir.path()).unwrap()).await.unwrap().conditional_put);
    let listed = std::fs::read_dir(dir.path()).unwrap();
    let left: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.starts_with('.')), "left behind: {left:?}");
}

fn limited(up: Option<u64>, down: Option<u64>) -> LimitStore {
    LimitStore::new(Arc::new(MemoryStore::default()), Arc::new(Bandwidth::new(up, down)))
}

/// Runs requests; returns the time that they took.
async fn seconds_of(work: impl Future<Output = ()>) -> f64 {
    let began = Instant::now();
    work.await;
    began.elapsed().as_secs_f64()
}

async fn put(store: &LimitStore, len_bytes: usize) {
    store.put("a", Bytes::from(vec![1; len_bytes]), PutMode::Overwrite).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn limited_transfer_starts_with_cleared_bytes() {
    let store = limited(Some(1000), Some(10_000));
    // One small object, and the sum of parallel ones.
    for (count, expected) in [(1, 0.5), (2, 1.0), (20, 10.0)] {
        let took = seconds_of(async { drop(join_all((0..count).map(|_| put(&store, 500))).await) }).await;
        assert!((expected..expected + 0.1).contains(&took), "{count} bodies took {took} s");
    }
    let took = seconds_of(async {
        for _ in 0..10 {
            store.get("a", 1000).await.unwrap();
            store.get_range("a", 0, 500).await.unwrap();
        }
    });
    let took = took.await;
    assert!((0.9..1.1).contains(&took), "20 bodies of 500 bytes at 10000 bytes/s took {took} s");
    // Unused time is not saved up.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let took = seconds_of(put(&store, 500)).await;
    assert!((0.4..0.6).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn limited_requests_have_a_rate_of_any_kind() {
    let bandwidth = Arc::new(Bandwidth::of_requests(10));
    assert!(bandwidth.is_limited());
    let store = LimitStore::new(Arc::new(MemoryStore::default()), bandwidth);
    let took = seconds_of(async {
        for _ in 0..5 {
            put(&store, 1 << 20).await;
            store.list_page("", None).await.unwrap();
            store.get_range("a", 0, 1).await.unwrap();
        }
        drop(join_all((0..5).map(|_| store.get("a", 1 << 20))).await);
    });
    let took = took.await;
    assert!((1.8..2.1).contains(&took), "20 requests at 10/s took {took} s");
}

#[tokio::test(start_paused = true)]
async fn cancelled_transfer_delays_no_other() {
    let store = limited(Some(1000), None);
    let took = seconds_of(async {
        let huge = tokio::time::timeout(Duration::from_secs(5), put(&store, 100_000_000));
        let (cancelled, ()) = futures::join!(huge, put(&store, 1000));
        cancelled.unwrap_err();
    });
    let took = took.await;
    assert!((5.8..6.1).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn slow_task_takes_only_its_own_part_of_a_shared_limit() {
    let shared: Arc<dyn BlobStore> = Arc::new(limited(Some(2000), None));
    let task = |rate| LimitStore::new(Arc::clone(&shared), Arc::new(Bandwidth::new(rate, None)));
    let (slow, fast) = (task(Some(100)), task(None));
    // Parallel objects of the slow task, cancelled while they wait for its limit.
    let mut uploads = Box::pin(join_all((0..32).map(|_| put(&slow, 2000))));
    assert!(futures::poll!(&mut uploads).is_pending());
    for at_s in [0.0, 5.0, 25.0] {
        let upload = tokio::time::timeout(Duration::from_secs_f64(at_s), &mut uploads);
        upload.await.unwrap_err();
        let took = seconds_of(put(&fast, 2000)).await;
        assert!((0.8..2.1).contains(&took), "at {at_s} s: {took} s");
    }
    drop(uploads);
    let took = seconds_of(put(&fast, 2000)).await;
    assert!((0.8..1.1).contains(&took), "after the end of the slow task: {took} s");
}

#[tokio::test(start_paused = true)]
async fn changed_limit_applies_to_waiting_requests() {
    let bandwidth = Arc::new(Bandwidth::new(Some(10), None));
    let store = LimitStore::new(Arc::new(MemoryStore::default()), bandwidth.clone());
    let set_after_5_s = |bytes_per_s| {
        let bandwidth = Arc::clone(&bandwidth);
        async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            bandwidth.set(bytes_per_s, None);
        }
    };
    // At the old rate they would go after hours.
    for (rate, expected) in [(Some(10_000), 25.0), (None, 5.0)] {
        let (took, ()) = futures::join!(
            seconds_of(async {
                let ((), ()) = futures::join!(put(&store, 100_000), put(&store, 100_000));
            }),
            set_after_5_s(rate)
        );
        assert!((expected - 0.2..expected + 0.1).contains(&took), "{rate:?} {took} s");
        bandwidth.set(Some(10), None);
    }
    bandwidth.set(None, None);
    assert!(!bandwidth.is_limited());
    assert_eq!(seconds_of(put(&store, 100_000)).await, 0.0);
}

#[tokio::test(start_paused = true)]
async fn limit_of_a_limited_store_adds_to_its_limits() {
    for (inner, outer) in [(Some(1000), None), (None, Some(1000)), (Some(1000), Some(1100))] {
        let store = LimitStore::new(Arc::new(limited(None, inner)), Arc::new(Bandwidth::new(None, outer)));
        put(&store, 500).await;
        let took = seconds_of(async {
            for _ in 0..10 {
                store.get("a", 500).await.unwrap();
                store.get_range("a", 0, 500).await.unwrap();
            }
        });
        let took = took.await;
        assert!((9.8..10.1).contains(&took), "20 bodies of 500 bytes at 1000 bytes/s took {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn unlimited_rate_never_waits() {
    let began = Instant::now();
    store_suite(&limited(None, None)).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn meter_of_a_meter_adds_an_observer() {
    let memory: Arc<dyn BlobStore> = Arc::new(MemoryStore::default());
    let (all, of_task) = (Arc::<Requests>::default(), Arc::<Requests>::default());
    let metered: Arc<dyn BlobStore> = Arc::new(MeterStore::new(Arc::clone(&memory), all.clone()));
    let task = MeterStore::new(Arc::clone(&metered), of_task.clone());
    assert!(task.get("a", 10).await.is_err());
    assert!(metered.get("a", 10).await.is_err());
    assert_eq!((all.snapshot().get, of_task.snapshot().get), (2, 1));
}

/// Records requests: operation, key, and the lengths of both bodies.
#[derive(Default)]
struct Noting {
    inner: Arc<MemoryStore>,
    noted: Mutex<Vec<(Operation, String, u64, u64)>>,
}

impl blockd_store::Middleware for Noting {
    fn describe(&self) -> &str {
        "noting"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let answer = ask(self.inner.clone()).await;
            let received_bytes = answer.as_ref().map_or(0, Response::received_bytes);
            assert!(received_bytes <= request.wanted_bytes, "{request:?}");
            let noted = (request.operation, request.key.to_owned(), request.sent_bytes, received_bytes);
            self.noted.lock().push(noted);
            answer
        })
    }
}

#[tokio::test]
async fn layer_reports_the_description_of_its_store() {
    let store: Arc<Noting> = Arc::default();
    let asked: &dyn BlobStore = &*store;
    asked.put("a", Bytes::from_static(b"content"), PutMode::Overwrite).await.unwrap();
    assert_eq!(asked.get("a", 10).await.unwrap(), "content");
    assert_eq!(asked.get_range("a", 3, 2).await.unwrap(), "te");
    assert_eq!(asked.list("").await.unwrap().len(), 1);
    assert!(asked.delete("a").await.unwrap());
    let upload = asked.multipart_start("b").await.unwrap();
    let tag = asked.multipart_put("b", &upload, 0, Bytes::from_static(b"part")).await.unwrap();
    asked.multipart_complete("b", &upload, &[tag]).await.unwrap();
    let upload = asked.multipart_start("c").await.unwrap();
    asked.multipart_abort("c", &upload).await.unwrap();
    let expected = [
        (Operation::Put, "a", 7, 0),
        (Operation::Get, "a", 0, 7),
        (Operation::GetRange, "a", 0, 2),
        (Operation::List, "", 0, 0),
        (Operation::Delete, "a", 0, 0),
        (Operation::MultipartStart, "b", 0, 0),
        (Operation::MultipartPut, "b", 4, 0),
        (Operation::MultipartComplete, "b", 0, 0),
        (Operation::MultipartStart, "c", 0, 0),
        (Operation::MultipartAbort, "c", 0, 0),
    ];
    assert_eq!(*store.noted.lock(), expected.map(|(what, key, sent, got)| (what, key.to_owned(), sent, got)));
}

fn with(content: &'static str) -> Arc<dyn BlobStore> {
    let store = MemoryStore::default();
    store.insert("key", content.as_bytes());
    Arc::new(store)
}

#[tokio::test]
async fn next_request_uses_the_new_client() {
    let store = ReloadStore::new(with("old"), None);
    assert_eq!(store.get("key", 100).await.unwrap(), "old");
    store.renew(&ReloadStore::new(with("new"), None));
    assert_eq!(store.get("key", 100).await.unwrap(), "new");
}

/// Fake client whose requests start tasks, as those of connections do; its errors name their thread.
struct Starting;

impl blockd_store::Middleware for Starting {
    fn describe(&self) -> &str {
        "starting"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        _: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let thread = tokio::spawn(async { std::thread::current().name().unwrap().to_owned() });
            let error = request.failed(StoreErrorKind::Other, "store");
            Err(error.with_detail(thread.await.unwrap()))
        })
    }
}

#[test]
fn connections_belong_to_the_runtime_of_the_store() {
    let runtime = |name: &str| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name(name).build().unwrap()
    };
    let (owner, caller) = (runtime("owner"), runtime("caller"));
    let asked = |store: ReloadStore| caller.block_on(store.get("key", 100)).unwrap_err().to_string();
    let store = || ReloadStore::new(Arc::new(Starting), None);
    assert!(asked(store()).contains("caller"));
    let error = asked(store().with_runtime(owner.handle().clone()));
    assert!(error.contains("owner"), "{error}");
}

/// A store and the client that it gets at its next failure.
type Renewal = (Arc<ReloadStore>, Arc<dyn BlobStore>);

/// Fake store whose credentials are replaced and revoked during a request.
#[derive(Default)]
struct Revoked {
    asked: Mutex<u32>,
    renewed: Mutex<Option<Renewal>>,
}

impl blockd_store::Middleware for Revoked {
    fn describe(&self) -> &str {
        "revoked"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        _: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            *self.asked.lock() += 1;
            if let Some((store, with)) = self.renewed.lock().take() {
                store.renew(&ReloadStore::new(with, None));
            }
            Err(request.failed(StoreErrorKind::Unauthorized, "store"))
        })
    }
}

#[tokio::test]
async fn refused_request_is_retried_with_the_new_keys() {
    let old = Arc::new(Revoked::default());
    let store = Arc::new(ReloadStore::new(old.clone(), None));
    *old.renewed.lock() = Some((store.clone(), with("new")));
    assert_eq!(store.get("key", 100).await.unwrap(), "new");
    assert_eq!(*old.asked.lock(), 1);
    // A refusal with new keys is final.
    let (first, second) = (Arc::new(Revoked::default()), Arc::new(Revoked::default()));
    let store = Arc::new(ReloadStore::new(first.clone(), None));
    *first.renewed.lock() = Some((store.clone(), second.clone()));
    assert_eq!(store.get("key", 100).await.unwrap_err().kind, StoreErrorKind::Unauthorized);
    assert_eq!((*first.asked.lock(), *second.asked.lock()), (1, 1));
}

#[tokio::test]
async fn prefix_store_confines_all_requests() {
    let dir = tempfile::tempdir().unwrap();
    let full_key: Arc<dyn BlobStore> = Arc::new(LocalStore::open(dir.path()).unwrap());
    let part = |prefix| ReloadStore::new(Arc::clone(&full_key), Some(prefix));
    let (one, other) = (part("demo"), part("demo2/x"));
    let put = |store: &'static str| Bytes::from_static(store.as_bytes());
    one.put("a/k", put("one"), PutMode::CreateIfAbsent).await.unwrap();
    other.put("a/k", put("other"), PutMode::CreateIfAbsent).await.unwrap();
    let upload = one.multipart_start("a/big").await.unwrap();
    let tag = one.multipart_put("a/big", &upload, 0, put("parts")).await.unwrap();
    one.multipart_complete("a/big", &upload, &[tag]).await.unwrap();
    let upload = one.multipart_start("a/left").await.unwrap();
    one.multipart_put("a/left", &upload, 0, put("part")).await.unwrap();
    assert_eq!(other.remove_unfinished("", i64::MAX, false).await.unwrap(), 0);
    assert!(one.remove_unfinished("a/", i64::MAX, true).await.unwrap() > 0);
    one.multipart_abort("a/left", &upload).await.unwrap();
    let keys = |listed: Vec<ObjectInfo>| listed.into_iter().map(|info| info.key).collect::<Vec<_>>();
    assert_eq!(keys(full_key.list("").await.unwrap()), ["demo/a/big", "demo/a/k", "demo2/x/a/k"]);
    for prefix in ["", "a/"] {
        assert_eq!(keys(one.list(prefix).await.unwrap()), ["a/big", "a/k"]);
    }
    assert_eq!(one.get("a/k", 10).await.unwrap(), "one");
    assert_eq!(other.get_range("a/k", 1, 2).await.unwrap(), "th");
    assert!(one.describe().ends_with(", below demo"), "{}", one.describe());
    assert_eq!(one.get("../demo2/x/a/k", 10).await.unwrap_err().kind, StoreErrorKind::BadKey);
    assert!(one.delete("a/k").await.unwrap() && !one.delete("a/k").await.unwrap());
    assert_eq!(other.get("a/k", 10).await.unwrap(), "other");
}

fn quick(attempts: u32) -> RetryPolicy {
    RetryPolicy { attempts, base_ms: 0, max_ms: 0, request_timeout_ms: 20 }
}

#[tokio::test]
async fn attempts_are_counted_and_bounded() {
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let (store, requests) = task_store(faults.clone(), quick(3));
    faults.fail_all(Fault::BeforeApply);
    let error = store.put("a", Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unreachable);
    assert_eq!(requests.snapshot().put, 3);
    assert_eq!(requests.snapshot().bytes_up, 3);
    faults.heal();
    faults.fail_at(faults.operations(), Fault::BeforeApply);
    store.put("a", Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap();
    assert_eq!(requests.snapshot().put, 5);
}

#[tokio::test]
async fn permanent_errors_are_not_retried() {
    let (store, requests) = task_store(Arc::new(MemoryStore::default()), quick(5));
    assert_eq!(store.get("nothing", 10).await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(requests.snapshot().get, 1);
}

#[tokio::test(start_paused = true)]
async fn requested_retry_pause_is_kept_within_bounds() {
    for (asked_s, pause_s) in [(7, 7), (10_000, 300)] {
        let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
        faults.fail_at(0, Fault::RetryAfter(asked_s));
        let began = tokio::time::Instant::now();
        let store = RetryStore::new(faults, quick(2));
        store.put("a", Bytes::new(), PutMode::Overwrite).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), pause_s);
    }
}

#[tokio::test]
async fn attempt_without_an_answer_times_out() {
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let (store, requests) = task_store(faults.clone(), quick(2));
    faults.fail_all(Fault::Hang);
    assert_eq!(store.delete("a").await.unwrap_err().kind, StoreErrorKind::Timeout);
    assert_eq!(requests.snapshot().delete, 2);
}

#[tokio::test]
async fn probe_of_a_good_store_passes_and_leaves_no_objects() {
    let store = MemoryStore::default();
    assert!(probe(&store).await.unwrap().conditional_put);
    assert_eq!(store.list("").await.unwrap(), []);
}

#[tokio::test]
async fn probe_detects_a_store_without_conditional_put() {
    for store in [MemoryStore::ignoring_conditions(), MemoryStore::refusing_conditions()] {
        assert!(!probe(&store).await.unwrap().conditional_put);
        assert_eq!(store.list("").await.unwrap(), []);
    }
}

#[tokio::test]
async fn probe_names_the_failed_step() {
    for (operation, word) in
        [(0, "list"), (1, "store an object"), (2, "as it was stored"), (3, "range"), (4, "replace")]
    {
        let faults = FaultStore::new(Arc::new(MemoryStore::default()));
        faults.fail_at(operation, Fault::BeforeApply);
        let error = probe(&faults).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.is_retryable());
        assert_eq!(faults.list("").await.unwrap(), [], "left behind after failing to {word}");
    }
    let faults = FaultStore::new(Arc::new(MemoryStore::default()));
    faults.fail_at(2, Fault::FlipBit);
    let error = probe(&faults).await.unwrap_err();
    assert!(error.to_string().contains("other content was returned"), "{error}");
}
