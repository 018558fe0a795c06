//! Test suite of repositories over stores without an installation, and over a configured S3 server.
use blockd_store::{HttpOptions, LocalStore, RetryPolicy, probe, task_store};
use blockd_testkit::cloud::repository_suite;
use blockd_testkit::store::{
    Fault, FaultStore, Has, MemoryStore, deletion_suite, object_store_suite, store_suite,
};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_store() {
    repository_suite(Arc::new(MemoryStore::default()), Some("correct horse")).await;
    repository_suite(Arc::new(MemoryStore::default()), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_store() {
    for passphrase in [Some("correct horse"), None] {
        let dir = tempfile::tempdir().unwrap();
        repository_suite(Arc::new(LocalStore::open(dir.path()).unwrap()), passphrase).await;
    }
}

#[tokio::test]
async fn on_a_runtime_of_one_thread() {
    repository_suite(Arc::new(MemoryStore::ignoring_conditions()), None).await;
    repository_suite(Arc::new(MemoryStore::refusing_conditions()), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flaky_store_behind_retries_passes_the_suite() {
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    for operation in (2..5_000).step_by(7) {
        let kinds = [Fault::BeforeApply, Fault::AfterApply, Fault::ShortBody];
        faults.fail_at(operation, kinds[(operation / 7) as usize % 3]);
    }
    let policy = RetryPolicy { attempts: 4, base_ms: 0, max_ms: 0, request_timeout_ms: 60_000 };
    let (store, requests) = task_store(faults, policy);
    repository_suite(store, Some("correct horse")).await;
    assert!(requests.snapshot().total() > 100);
}

/// Runs if `BLOCKD_TEST_S3_ENDPOINT`, `_BUCKET`, `_ACCESS_KEY` and `_SECRET_KEY` name a server; the bucket
/// must be empty below `blockd/`, `suite/` and `integration/`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_server() {
    let setting = |name: &str| std::env::var(format!("BLOCKD_TEST_S3_{name}")).ok();
    let Some(endpoint) = setting("ENDPOINT") else {
        eprintln!("skipped: BLOCKD_TEST_S3_ENDPOINT is not set");
        return;
    };
    let required = |name: &str| setting(name).unwrap_or_else(|| panic!("BLOCKD_TEST_S3_{name} is not set"));
    let config = serde_json::json!({
        "type": "s3", "endpoint": endpoint, "disableSsl": true,
        "region": setting("REGION").unwrap_or_else(|| "us-east-1".into()), "bucket": required("BUCKET"),
        "accessKey": required("ACCESS_KEY"), "secretKey": required("SECRET_KEY"),
    });
    let opened = |config: serde_json::Value| {
        let config = serde_json::from_value(config).unwrap();
        blockd_store::open(&config, &HttpOptions::default(), None).unwrap()
    };
    let store = opened(config.clone());
    assert_eq!(deletion_suite(store.as_ref()).await, 300);
    store_suite(store.as_ref()).await;
    let capabilities = probe(store.as_ref()).await.unwrap();
    eprintln!("{capabilities:?}");
    let has = Has { create_if_absent: capabilities.conditional_put, parts: true };
    object_store_suite(store.clone(), has).await;
    repository_suite(store.clone(), Some("correct horse")).await;
    for object in store.list("blockd/").await.unwrap() {
        store.delete(&object.key).await.unwrap();
    }

    use blockd_store::StoreErrorKind as Kind;
    for (field, value, kind) in [
        ("secretKey", "wrong", Kind::Unauthorized),
        ("accessKey", "wrong", Kind::Unauthorized),
        ("bucket", "no-such-bucket-here", Kind::BucketMissing),
    ] {
        let mut config = config.clone();
        config[field] = value.into();
        let error = opened(config).list("blockd/keys/").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
}
