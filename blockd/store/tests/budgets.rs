//! Budgets of tasks: bytes of failed and dropped requests, and reserved requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test panics")]

use blockd_store::{
    BlobStore, DryStore, HttpOptions, PutMode, RequestCounts, RetryPolicy, StoreErrorKind, open, task_store,
};
use blockd_testkit::store::{FakeHttpServer, HttpReply, MemoryStore};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const LEN: u64 = 1000;

/// Returns a bucket whose first answers are these and whose others are whole objects of 1000 bytes.
async fn bucket(first: Vec<HttpReply>) -> (FakeHttpServer, Arc<dyn BlobStore>) {
    let number = AtomicU32::new(0);
    let server = FakeHttpServer::start(move |_| {
        let at = number.fetch_add(1, Ordering::Relaxed) as usize;
        first.get(at).cloned().unwrap_or_else(object)
    });
    let server = server.await;
    let config = serde_json::json!({
        "type": "s3", "endpoint": server.url(), "region": "us-east-1", "bucket": "bkt",
        "disableSsl": true, "accessKey": "AKIAEXAMPLE", "secretKey": "k",
    });
    let store = open(&serde_json::from_value(config).unwrap(), &HttpOptions::default(), None).unwrap();
    (server, store)
}

fn object() -> HttpReply {
    HttpReply::status(206)
        .header("ETag", "\"e\"")
        .header("Last-Modified", "Fri, 01 Jan 2021 00:00:00 GMT")
        .header("Content-Range", format!("bytes 0-{}/{LEN}", LEN - 1))
        .body(vec![7; LEN as usize])
}

fn egress(max_bytes: u64) -> blockd_store::BudgetCheck {
    Arc::new(move |counts| (counts.bytes_down > max_bytes).then(|| format!("limit of {max_bytes} bytes")))
}

#[tokio::test]
async fn reads_that_fail_or_time_out_count_their_bytes() {
    let cut = HttpReply { cut_bytes: 100, ..object() };
    let stalled = HttpReply { stall: Duration::from_secs(60), ..object() };
    let (server, store) = bucket(vec![cut, stalled]).await;
    let policy = RetryPolicy { attempts: 3, base_ms: 0, max_ms: 0, request_timeout_ms: 500 };
    let (store, requests) = task_store(store, policy);
    let received = 900 + 999 + LEN;
    requests.set_budget(RequestCounts::default(), egress(received + LEN));
    store.get_range("k", 0, LEN).await.unwrap();
    assert_eq!((requests.snapshot().get, requests.snapshot().bytes_down), (3, received));
    // Of the limit exactly one read is left: no request keeps its reservation.
    store.get_range("k", 0, LEN).await.unwrap();
    let refused = store.get_range("k", 0, LEN).await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::BudgetExhausted);
    assert_eq!(server.seen().len(), 4);
}

fn puts(max: u64) -> blockd_store::BudgetCheck {
    Arc::new(move |counts| (counts.total() > max).then(|| format!("limit of {max} requests")))
}

#[tokio::test]
async fn reserved_requests_are_kept_for_the_end_of_a_task() {
    let (store, requests) = task_store(Arc::new(MemoryStore::default()), RetryPolicy::default());
    requests.set_budget(RequestCounts { put: 2, ..RequestCounts::default() }, puts(7));
    let put = async |key| store.put(key, Bytes::from_static(b"x"), PutMode::Overwrite).await;
    let last = |put| RequestCounts { put, ..RequestCounts::default() };
    let next = |put| Some(last(put));
    put("a").await.unwrap();
    let refused = requests.reserve(last(5), next(9)).unwrap_err();
    assert_eq!(refused, "limit of 7 requests; the task needs about 13 requests in all", "2 + 1 + 1 + 9");
    let reservation = requests.reserve(last(3), next(4)).unwrap();
    put("b").await.unwrap();
    let refused = put("c").await.unwrap_err();
    assert!(refused.to_string().contains("the task needs about 9 requests in all"), "{refused}");
    reservation.begin_closing(last(3), None).unwrap();
    // Repetitions of the last requests may exceed the budget.
    for key in ["c", "d", "e", "f"] {
        put(key).await.unwrap();
    }
    drop(reservation);
    assert_eq!(put("g").await.unwrap_err().kind, StoreErrorKind::BudgetExhausted, "the closing has ended");
}

#[tokio::test]
async fn removal_of_unfinished_uploads_is_not_counted() {
    let (store, requests) = task_store(Arc::new(MemoryStore::default()), RetryPolicy::default());
    requests.set_budget(RequestCounts::default(), puts(0));
    store.remove_unfinished("a/", 0, false).await.unwrap();
    let (dry, _) = task_store(Arc::new(DryStore::new(store, 1)), RetryPolicy::default());
    dry.remove_unfinished("a/", 0, false).await.unwrap();
    assert_eq!(requests.snapshot(), RequestCounts::default());
}
