//! Test suite for stores.

use blockd_store::{
    BlobStore, PART_LEN_BYTES, Pieces, PutMode, StoreError, StoreErrorKind, TransferMemory, delete_objects,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// Tests all operations of a store; it must be empty below `suite/`.
///
/// # Panics
/// If the store misbehaves.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
pub async fn store_suite(store: &dyn BlobStore) {
    let key = "suite/a/object-1";
    objects(store, key).await;
    deletion_suite(store).await;
    let mut keys = listings(store, key).await;
    keys.push(parts(store).await);
    for key in &keys {
        store.delete(key).await.unwrap();
        store.delete(key).await.unwrap();
        assert_eq!(kind(store.get(key, 100).await), StoreErrorKind::NotFound);
    }
    assert!(store.list("suite/").await.unwrap().is_empty());
    for bad in ["../x", "/x", "x//y", "x/.y", ""] {
        let error = store.put(bad, Bytes::new(), PutMode::Overwrite).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::BadKey);
    }
}

#[allow(clippy::unwrap_used, reason = "a failed test panics")]
fn kind(result: Result<Bytes, StoreError>) -> StoreErrorKind {
    result.unwrap_err().kind
}

/// Deletes several objects, which need not exist; returns how many of 300 the store deletes with one request.
///
/// # Panics
/// If the store misbehaves.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
pub async fn deletion_suite(store: &dyn BlobStore) -> usize {
    let keys: Vec<String> = (0..300).map(|number| format!("suite/d/{number}")).collect();
    for key in keys.iter().step_by(2) {
        store.put(key, Bytes::from_static(b"1"), PutMode::Overwrite).await.unwrap();
    }
    let results = store.delete_many(&keys).await.unwrap();
    let at_once = results.len();
    assert!((1..=keys.len()).contains(&at_once));
    assert!(results.into_iter().all(|result| result.is_ok()));
    // S3 does not report whether an object existed.
    delete_objects(store, keys.iter().cloned()).await.unwrap();
    assert!(store.list("suite/d/").await.unwrap().is_empty());
    assert!(store.delete_many(&[]).await.unwrap().is_empty());
    at_once
}

/// Creates, reads and replaces an object, which is empty at the end.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn objects(store: &dyn BlobStore, key: &str) {
    let body = Bytes::from((0..100_000u32).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
    assert_eq!(kind(store.get(key, 1 << 20).await), StoreErrorKind::NotFound);
    assert_eq!(kind(store.get_range(key, 0, 1).await), StoreErrorKind::NotFound);
    assert!(store.list("suite/").await.unwrap().is_empty());
    let _ = store.delete(key).await.unwrap();

    store.put(key, body.clone(), PutMode::CreateIfAbsent).await.unwrap();
    assert_eq!(store.get(key, 1 << 20).await.unwrap(), body);
    assert_eq!(store.get(key, body.len() as u64).await.unwrap(), body);
    assert_eq!(kind(store.get(key, body.len() as u64 - 1).await), StoreErrorKind::TooLarge);
    assert_eq!(store.get_range(key, 500, 1000).await.unwrap(), body.slice(500..1500));
    assert_eq!(store.get_range(key, 0, body.len() as u64).await.unwrap(), body);
    for (offset, len) in [(99_999, 2), (100_000, 1), (200_000, 10), (0, 100_001)] {
        let error = store.get_range(key, offset, len).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::RangeBeyondEnd, "{offset}+{len}: {error}");
        assert!(error.to_string().contains(key), "{error}");
    }
    assert_eq!(in_pieces(store, key, 500, &[100, 70_000, 99_000]).await, body.slice(500..99_500));
    store.put(key, Bytes::from_static(b"new"), PutMode::Overwrite).await.unwrap();
    assert_eq!(store.get(key, 100).await.unwrap(), b"new"[..]);
    store.put(key, Bytes::new(), PutMode::Overwrite).await.unwrap();
    assert_eq!(store.get(key, 100).await.unwrap(), b""[..]);
}

/// Reads a range in pieces with these ends.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn in_pieces(store: &dyn BlobStore, key: &str, offset_bytes: u64, ends: &[u64]) -> Vec<u8> {
    let passed = Arc::<Mutex<Vec<u8>>>::default();
    let into = passed.clone();
    let pieces = Pieces::new(TransferMemory::new(1 << 20), ends.to_vec(), move |at, content| {
        let mut passed = into.lock();
        assert_eq!(at, passed.len() as u64, "pieces arrive in their order");
        passed.extend_from_slice(&content);
    });
    assert_eq!(store.get_pieces(key, offset_bytes, &pieces).await.unwrap().0, pieces.len_bytes());
    std::mem::take(&mut *passed.lock())
}

/// Tests complete and sorted listings by prefix; returns the keys of all objects.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn listings(store: &dyn BlobStore, key: &str) -> Vec<String> {
    let mut keys = vec![key.to_owned()];
    for i in [3, 1, 10, 2] {
        keys.push(format!("suite/a/object-{i:02}"));
        keys.push(format!("suite/b/{i}/x"));
    }
    for key in &keys[1..] {
        store.put(key, Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap();
    }
    keys.sort();
    let listed = async |prefix: &str| -> Vec<String> {
        store.list(prefix).await.unwrap().into_iter().map(|object| object.key).collect()
    };
    assert_eq!(listed("suite/").await, keys);
    assert_eq!(
        listed("suite/a/object-0").await,
        ["suite/a/object-01", "suite/a/object-02", "suite/a/object-03"]
    );
    assert_eq!(listed("suite/b/1").await, ["suite/b/1/x", "suite/b/10/x"]);
    assert_eq!(listed("suite/nothing/").await, [""; 0]);
    assert_eq!(store.list("suite/a/object-01").await.unwrap()[0].size_bytes, 1);
    keys
}

/// Stores an object in three parts and aborts another upload; returns the key.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn parts(store: &dyn BlobStore) -> String {
    let long = Bytes::from((0..PART_LEN_BYTES * 2 + 5).map(|i| (i % 253) as u8).collect::<Vec<u8>>());
    let parts = "suite/parts";
    let id = store.multipart_start(parts).await.unwrap();
    let mut tags = Vec::new();
    for part_no in 0..3u32 {
        let from = part_no as usize * PART_LEN_BYTES;
        let part = long.slice(from..(from + PART_LEN_BYTES).min(long.len()));
        tags.push(store.multipart_put(parts, &id, part_no, part).await.unwrap());
    }
    assert_eq!(kind(store.get(parts, 1 << 30).await), StoreErrorKind::NotFound);
    store.multipart_complete(parts, &id, &tags).await.unwrap();
    assert!(store.get(parts, 1 << 30).await.unwrap() == long);
    let id = store.multipart_start(parts).await.unwrap();
    store.multipart_put(parts, &id, 0, Bytes::from_static(b"never")).await.unwrap();
    store.multipart_abort(parts, &id).await.unwrap();
    assert!(store.get(parts, 1 << 30).await.unwrap() == long);
    parts.to_owned()
}
