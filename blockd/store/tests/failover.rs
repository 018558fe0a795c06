//! Stores of several servers: which one serves a request, and what follows a silent one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

use blockd_store::{
    BlobStore, FailoverStore, MeterStore, Pieces, PutMode, Received, Request, RequestObserver, Response,
    RetryPolicy, RetryStore, StoreErrorKind, StoreFuture, TransferMemory, delete_objects, task_store,
};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

fn patient() -> RetryPolicy {
    RetryPolicy { attempts: 4, base_ms: 0, max_ms: 0, request_timeout_ms: 60_000 }
}

#[tokio::test]
async fn failover_stays_with_the_server_that_answers() {
    let content = Arc::new(MemoryStore::default());
    let servers = [(); 3].map(|()| Arc::new(FaultStore::new(content.clone())));
    let [first, second, third] = servers.each_ref().map(|server| server.clone() as Arc<dyn BlobStore>);
    let store = FailoverStore::new(first, vec![second, third], "three servers".into());
    let operations = || servers.each_ref().map(|server| server.operations());
    store.put("a", Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap();
    assert_eq!(operations(), [1, 0, 0]);
    servers[0].fail_all(Fault::BeforeApply);
    servers[1].fail_all(Fault::BeforeApply);
    assert_eq!(store.get("a", 10).await.unwrap(), "x");
    assert_eq!(store.get("a", 10).await.unwrap(), "x");
    assert_eq!(operations(), [2, 1, 2]);
    // Other errors are answers.
    assert_eq!(store.get("nothing", 10).await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(operations(), [2, 1, 3]);
    servers[2].fail_all(Fault::BeforeApply);
    assert_eq!(store.get("a", 10).await.unwrap_err().kind, StoreErrorKind::Unreachable);
    assert_eq!(operations(), [3, 2, 4]);
    servers[0].heal();
    assert_eq!(store.get("a", 10).await.unwrap(), "x");
}

/// Returns a store of two servers, the servers, and their common content.
fn two_servers() -> (FailoverStore, [Arc<FaultStore>; 2], Arc<MemoryStore>) {
    let content = Arc::new(MemoryStore::default());
    let servers = [(); 2].map(|()| Arc::new(FaultStore::new(content.clone())));
    // The timeout of the HTTP client.
    let brief = RetryPolicy { attempts: 1, base_ms: 0, max_ms: 0, request_timeout_ms: 20 };
    let timed = RetryStore::new(servers[0].clone(), brief);
    let store = FailoverStore::new(Arc::new(timed), vec![servers[1].clone()], "two servers".into());
    (store, servers, content)
}

#[tokio::test(start_paused = true)]
async fn failover_leaves_a_server_that_does_not_respond() {
    let (store, servers, content) = two_servers();
    content.insert("a", "x");
    servers[0].fail_all(Fault::Hang);
    assert_eq!(store.get("a", 10).await.unwrap(), "x");
    assert_eq!(store.list("").await.unwrap().len(), 1);
    assert_eq!(servers.each_ref().map(|server| server.operations()), [1, 2]);

    // A caller that stops to wait early changes nothing.
    let silent = Arc::new(FaultStore::new(content.clone()));
    silent.fail_all(Fault::Hang);
    let store = FailoverStore::new(silent.clone(), vec![servers[1].clone()], "two servers".into());
    for _ in 0..2 {
        let brief = tokio::time::timeout(Duration::from_secs(1), store.get("a", 10)).await;
        assert!(brief.is_err());
    }
    assert_eq!((silent.operations(), servers[1].operations()), (2, 2));
}

/// Store whose responses take 45 s.
struct SlowStore(Arc<MemoryStore>);

impl blockd_store::Middleware for SlowStore {
    fn describe(&self) -> &str {
        "slow"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(45)).await;
            ask(self.0.clone()).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn failover_waits_for_a_deletion_of_many_objects() {
    let content = Arc::new(MemoryStore::with_batches(1000));
    let keys: Vec<String> = (0..900).map(|number| format!("k{number}")).collect();
    keys.iter().for_each(|key| content.insert(key, "x"));
    let other = Arc::new(FaultStore::new(content.clone()));
    let slow = Arc::new(SlowStore(content.clone()));
    let store = FailoverStore::new(slow, vec![other.clone()], "two servers".into());
    let (store, requests) = task_store(Arc::new(store), RetryPolicy::default());
    assert_eq!(delete_objects(&*store, keys.into_iter()).await.unwrap(), 900);
    assert_eq!((requests.snapshot().delete, other.operations()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn failover_leaves_a_silent_server_with_any_timeout() {
    let content = Arc::new(MemoryStore::default());
    content.insert("a", "x");
    let silent = || {
        let servers = [(); 2].map(|()| Arc::new(FaultStore::new(content.clone())));
        servers[0].fail_all(Fault::Hang);
        FailoverStore::new(servers[0].clone(), vec![servers[1].clone()], "two servers".into())
    };
    // A listing may take minutes, but not until its first byte.
    let (store, _) = task_store(Arc::new(silent()), RetryPolicy { attempts: 1, ..RetryPolicy::default() });
    assert_eq!(store.list("").await.unwrap().len(), 1);
    // Attempts shorter than the silence count together.
    let brief = RetryPolicy { request_timeout_ms: 3_000, ..RetryPolicy::default() };
    let (store, requests) = task_store(Arc::new(silent()), brief);
    assert_eq!(store.get("a", 10).await.unwrap(), "x");
    assert!((3..=5).contains(&requests.snapshot().get), "{:?}", requests.snapshot());
}

#[tokio::test]
async fn pages_of_a_listing_come_from_one_server() {
    let contents = [(); 2].map(|()| Arc::new(MemoryStore::default()));
    // One more than a page.
    for number in 0..=10000 {
        contents[0].insert(&format!("k{number}"), "x");
    }
    let servers = contents.each_ref().map(|content| Arc::new(FaultStore::new(content.clone())));
    let store = FailoverStore::new(servers[0].clone(), vec![servers[1].clone()], "two servers".into());
    let next = store.list_page("", None).await.unwrap().next.unwrap();
    // Another request leaves the server.
    servers[0].fail_all(Fault::BeforeApply);
    assert_eq!(store.list_page("", None).await.unwrap().objects.len(), 0, "of the second server");
    servers[0].heal();
    assert_eq!(store.list_page("", Some(&next)).await.unwrap().objects.len(), 1);
    for position in ["2:0:x", "0:2:x", "0:x", "x"] {
        assert_eq!(store.list_page("", Some(position)).await.unwrap_err().kind, StoreErrorKind::Other);
    }
}

#[tokio::test(start_paused = true)]
async fn listing_begins_again_once_at_each_other_server() {
    for fault in [Fault::BeforeApply, Fault::Hang] {
        let content = Arc::new(MemoryStore::default());
        // One more than a page.
        (0..=10000).for_each(|number| content.insert(&format!("k{number}"), "x"));
        let servers = [(); 2].map(|()| Arc::new(FaultStore::new(content.clone())));
        let failover = FailoverStore::new(servers[0].clone(), vec![servers[1].clone()], "two servers".into());
        let (store, requests) = task_store(Arc::new(failover), patient());
        let operations = || servers.each_ref().map(|server| server.operations());
        servers[0].fail_from(1, fault);
        assert_eq!(store.list("").await.unwrap().len(), 10001);
        assert_eq!((operations(), requests.snapshot().list), ([2, 2], 3), "{fault:?}");
        // Both servers send the first page only.
        servers[0].heal();
        servers.iter().for_each(|server| server.fail_from(3, fault));
        assert!(store.list("").await.unwrap_err().kind.is_retryable());
        assert_eq!(operations(), [2 + 1 + 4, 2 + 1 + 1], "{fault:?}");
    }
}

/// Observer of the longest request.
#[derive(Default)]
struct Longest(Mutex<Duration>);

impl RequestObserver for Longest {
    fn started(&self, _: &Request<'_>) {}

    fn ended(&self, _: &Request<'_>, elapsed: Duration, _: Result<u64, StoreErrorKind>) {
        let mut longest = self.0.lock();
        *longest = elapsed.max(*longest);
    }
}

#[tokio::test(start_paused = true)]
async fn wait_for_memory_is_not_time_of_the_server() {
    let (content, longest) = (Arc::new(MemoryStore::default()), Arc::<Longest>::default());
    content.insert("a", "x");
    let first = Arc::new(MeterStore::new(content, longest.clone()));
    let second = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let servers = FailoverStore::new(first, vec![second.clone()], "two servers".into());
    let store = Arc::new(RetryStore::new(Arc::new(servers), patient()));
    let memory = TransferMemory::new(1 << 20);
    let in_use = memory.reserve(1 << 20).await;
    let pieces = || Pieces::new(memory.clone(), vec![1], |_, _| ());
    let waiting = tokio::spawn({
        let (store, pieces) = (store.clone(), pieces());
        async move { store.get_pieces("a", 0, &pieces).await }
    });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!waiting.is_finished());
    // Nor is it the silence of one whose request is cancelled.
    let second_read = pieces();
    let cancelled = tokio::time::timeout(Duration::from_secs(60), store.get_pieces("a", 0, &second_read));
    assert!(cancelled.await.is_err());
    drop(in_use);
    assert_eq!(waiting.await.unwrap().unwrap(), Received(1));
    assert_eq!(store.get("a", 1).await.unwrap(), "x");
    assert!(*longest.0.lock() < Duration::from_secs(1));
    assert_eq!(second.operations(), 0);
}

#[tokio::test]
async fn failover_repeats_no_writes() {
    let (store, servers, content) = two_servers();
    let operations = || servers.each_ref().map(|server| server.operations());
    servers[0].fail_all(Fault::AfterApply);
    let body = Bytes::from_static(b"x");
    let error = store.put("a", body.clone(), PutMode::CreateIfAbsent).await.unwrap_err();
    assert_eq!((error.kind, operations()), (StoreErrorKind::Unreachable, [1, 0]));
    // Another host deletes it, and the caller repeats the request.
    content.remove("a");
    store.put("a", body.clone(), PutMode::CreateIfAbsent).await.unwrap();
    assert_eq!(operations(), [1, 1]);
    servers[1].fail_all(Fault::BeforeApply);
    assert_eq!(store.multipart_start("b").await.unwrap_err().kind, StoreErrorKind::Unreachable);
    servers[0].heal();
    store.multipart_start("b").await.unwrap();

    // Each request is counted: the commit of a backup depends on it.
    servers[0].fail_all(Fault::AfterApply);
    servers[1].heal();
    let (store, requests) = task_store(Arc::new(store), patient());
    store.put("c", body, PutMode::Overwrite).await.unwrap();
    assert_eq!(requests.snapshot().put, 2);
}
