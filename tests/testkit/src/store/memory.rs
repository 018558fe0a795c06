//! Store in memory whose objects tests can read and change.

use blockd_store::{
    BlobStore, Deletions, ListPage, ObjectInfo, PART_LEN_BYTES, PutMode, StoreError, StoreErrorKind,
    StoreFuture, check_key,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
    ops::Bound,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

/// Number of objects in a page of a listing.
const PAGE_LEN: usize = 10_000;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Conditions {
    #[default]
    Kept,
    Ignored,
    Refused,
}

/// Returns the version of a content: its hash.
fn version_of(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("{:016x}", hasher.finish())
}

/// Store in memory.
#[derive(Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, Bytes>>>,
    conditions: Conditions,
    /// Modification times by the clock that tests set.
    stored_unix_s: Mutex<BTreeMap<String, i64>>,
    clock_unix_s: AtomicI64,
    /// Maximum number of objects that a request deletes; 0 for a store without such requests.
    batch_keys: usize,
    /// Objects whose deletion fails in a request for several.
    refused: Mutex<BTreeMap<String, StoreErrorKind>>,
}

impl MemoryStore {
    /// Creates a store that accepts create-if-absent but overwrites objects.
    pub fn ignoring_conditions() -> Self {
        Self { conditions: Conditions::Ignored, ..Self::default() }
    }

    /// Creates a store that refuses create-if-absent.
    pub fn refusing_conditions() -> Self {
        Self { conditions: Conditions::Refused, ..Self::default() }
    }

    /// Creates a store that deletes several objects with one request.
    pub fn with_batches(batch_keys: usize) -> Self {
        Self { batch_keys, ..Self::default() }
    }

    /// Fails the deletion of an object in requests for several.
    pub fn refuse_in_batch(&self, key: &str, kind: StoreErrorKind) {
        self.refused.lock().insert(key.to_owned(), kind);
    }

    /// Returns a copy of all objects.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.objects.lock().clone()
    }

    /// Inserts or replaces an object.
    pub fn insert(&self, key: &str, body: impl Into<Bytes>) {
        self.objects.lock().insert(key.to_owned(), body.into());
        self.stamp(key);
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().remove(key)
    }

    /// Creates a second store with the same objects.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            objects: Mutex::new(self.objects()),
            stored_unix_s: Mutex::new(self.stored_unix_s.lock().clone()),
            clock_unix_s: AtomicI64::new(self.clock_unix_s.load(Relaxed)),
            ..Self::default()
        }
    }

    /// Sets the clock of the store, in seconds since 1970. It stands still; initially 0.
    pub fn set_clock(&self, unix_s: i64) {
        self.clock_unix_s.store(unix_s, Relaxed);
    }

    fn stamp(&self, key: &str) {
        self.stored_unix_s.lock().insert(key.to_owned(), self.clock_unix_s.load(Relaxed));
    }

    fn error(kind: StoreErrorKind, operation: &'static str, key: &str) -> StoreError {
        StoreError::new(kind, operation, key, "memory")
    }

    fn find(&self, key: &str) -> Result<Bytes, StoreError> {
        self.objects.lock().get(key).cloned().ok_or_else(|| Self::error(StoreErrorKind::NotFound, "GET", key))
    }
}

impl BlobStore for MemoryStore {
    fn describe(&self) -> &str {
        "memory"
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            if !check_key(key) {
                return Err(Self::error(StoreErrorKind::BadKey, "PUT", key));
            }
            let mut objects = self.objects.lock();
            match (mode, self.conditions) {
                (PutMode::CreateIfAbsent, Conditions::Refused) => {
                    return Err(Self::error(StoreErrorKind::Unsupported, "PUT", key));
                }
                (PutMode::CreateIfAbsent, Conditions::Kept) if objects.contains_key(key) => {
                    return Err(Self::error(StoreErrorKind::AlreadyExists, "PUT", key));
                }
                _ => {}
            }
            // A copy: the sender waits until the memory of its body is free.
            objects.insert(key.to_owned(), Bytes::copy_from_slice(&body));
            self.stamp(key);
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            let body = self.find(key)?;
            if body.len() as u64 > max_len_bytes {
                return Err(Self::error(StoreErrorKind::TooLarge, "GET", key));
            }
            Ok(body)
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            let body = self.find(key)?;
            let end = offset_bytes.saturating_add(len_bytes);
            if end > body.len() as u64 {
                return Err(Self::error(StoreErrorKind::RangeBeyondEnd, "GET", key));
            }
            Ok(body.slice(offset_bytes as usize..end as usize))
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move { Ok(self.objects.lock().remove(key).is_some()) })
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        Box::pin(async move {
            let (mut objects, refused) = (self.objects.lock(), self.refused.lock());
            let mut delete = |key: &String| match refused.get(key) {
                Some(kind) => Err(Self::error(*kind, "DELETE", key)),
                None => Ok(objects.remove(key).is_some()),
            };
            Ok(keys.iter().take(self.batch_keys.max(1)).map(&mut delete).collect())
        })
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            if !prefix.is_empty() && !check_key(prefix.strip_suffix('/').unwrap_or(prefix)) {
                return Err(Self::error(StoreErrorKind::BadKey, "LIST", prefix));
            }
            let objects = self.objects.lock();
            let stored = self.stored_unix_s.lock();
            let after = page.map_or(Bound::Included(prefix), Bound::Excluded);
            let found = objects.range::<str, _>((after, Bound::Unbounded));
            let mut found =
                found.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, body)| ObjectInfo {
                    key: key.clone(),
                    size_bytes: body.len() as u64,
                    version: version_of(body),
                    modified_unix_s: stored.get(key).copied(),
                });
            let objects: Vec<_> = found.by_ref().take(PAGE_LEN).collect();
            let next = found.next().and(objects.last()).map(|last| last.key.clone());
            Ok(ListPage { objects, next })
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        Box::pin(async move {
            let mut uploads = self.uploads.lock();
            let id = format!("{key}#{}", uploads.len());
            uploads.insert(id.clone(), BTreeMap::new());
            Ok(id)
        })
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        Box::pin(async move {
            let mut uploads = self.uploads.lock();
            let parts = uploads
                .get_mut(upload_id)
                .ok_or_else(|| Self::error(StoreErrorKind::NotFound, "MULTIPART", key))?;
            parts.insert(part_no, body);
            Ok(part_no.to_string())
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let parts = self
                .uploads
                .lock()
                .remove(upload_id)
                .ok_or_else(|| Self::error(StoreErrorKind::NotFound, "MULTIPART", key))?;
            let in_order = tags.iter().enumerate().all(|(no, tag)| *tag == no.to_string());
            let full = parts.values().rev().skip(1).all(|part| part.len() == PART_LEN_BYTES);
            if !in_order || !full || parts.len() != tags.len() {
                return Err(Self::error(StoreErrorKind::Other, "MULTIPART", key));
            }
            let body: Vec<u8> = parts.into_values().flatten().collect();
            self.objects.lock().insert(key.to_owned(), body.into());
            self.stamp(key);
            Ok(())
        })
    }

    fn multipart_abort<'a>(&'a self, _key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.uploads.lock().remove(upload_id);
            Ok(())
        })
    }
}
