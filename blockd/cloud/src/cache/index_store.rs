//! Store adapter with a disk cache of indexes.

use super::disk::{DiskCache, PieceKey};
use blockd_store::{BlobStore, Middleware, Request, Response, StoreFuture};
use bytes::Bytes;
use std::sync::Arc;
use uuid::Uuid;

/// Store of one delta with cached range reads. A reader that gets invalid data reads again through the
/// uncached store.
pub(crate) struct IndexStore {
    inner: Arc<dyn BlobStore>,
    disk: Arc<DiskCache>,
    key_id: Uuid,
    salt: [u8; 32],
    look_first: bool,
}

impl IndexStore {
    pub fn new(
        inner: Arc<dyn BlobStore>,
        disk: Arc<DiskCache>,
        (key_id, salt): (Uuid, [u8; 32]),
        look_first: bool,
    ) -> Self {
        Self { inner, disk, key_id, salt, look_first }
    }
}

impl Middleware for IndexStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.inner.clone())
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
            // Caching is best effort.
            let _ = kept.await;
            Ok(fetched)
        })
    }
}
