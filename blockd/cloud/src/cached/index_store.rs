//! A store whose indexes are also looked for in the cache on disk.

use super::disk::{DiskCache, PieceKey};
use crate::store::{ObjectInfo, ObjectStore, PutMode, StoreFuture};
use bytes::Bytes;
use std::sync::Arc;
use uuid::Uuid;

/// The store of one delta. What it reads goes to the cache; whoever finds that it is not right reads it again through
/// one that does not look there first.
pub(crate) struct IndexStore {
    inner: Arc<dyn ObjectStore>,
    disk: Arc<DiskCache>,
    key_id: Uuid,
    salt: [u8; 32],
    look_first: bool,
}

impl IndexStore {
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        disk: Arc<DiskCache>,
        (key_id, salt): (Uuid, [u8; 32]),
        look_first: bool,
    ) -> Self {
        Self { inner, disk, key_id, salt, look_first }
    }
}

impl ObjectStore for IndexStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            let piece = PieceKey::new(self.key_id, &self.salt, key, offset_bytes, len_bytes);
            if self.look_first {
                let disk = self.disk.clone();
                let found = tokio::task::spawn_blocking(move || disk.get(&piece)).await;
                if let Ok(Some(bytes)) = found {
                    return Ok(bytes.into());
                }
            }
            let fetched = self.inner.get_range(key, offset_bytes, len_bytes).await?;
            let (disk, bytes, renew) = (self.disk.clone(), fetched.clone(), !self.look_first);
            let kept = tokio::task::spawn_blocking(move || {
                if renew {
                    disk.forget(&piece);
                }
                disk.put(&piece, &bytes);
            });
            // What is not kept is fetched again one day.
            let _ = kept.await;
            Ok(fetched)
        })
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        self.inner.put(key, body, mode)
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.get(key, max_len_bytes)
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.inner.delete(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.inner.multipart_start(key)
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        self.inner.multipart_put(key, upload_id, part_no, body)
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        self.inner.multipart_complete(key, upload_id, tags)
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        self.inner.multipart_abort(key, upload_id)
    }
}
