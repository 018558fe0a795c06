//! A daemon that dies right after the commit of a backup, before it asked anything about it.

use crate::core::Core;
use blockd_cloud::{
    CancelToken, Repository,
    store::{ObjectInfo, ObjectStore, PutMode, StoreFuture},
};
use bytes::Bytes;
use std::sync::Arc;

/// The step at which it does.
pub(crate) const COMMITTED: &str = "backup put";

struct Dying {
    inner: Arc<dyn ObjectStore>,
    stopping: CancelToken,
}

/// The repository, through a store whose daemon dies when a manifest was put, if it is to die at that step.
pub(crate) fn dying(core: &Core, repository: &Repository) -> Repository {
    if *core.dies_at.lock() != Some(COMMITTED) {
        return repository.clone();
    }
    let inner = Arc::clone(repository.store());
    repository.with_store(Arc::new(Dying { inner, stopping: core.stopping.clone() }))
}

impl ObjectStore for Dying {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let done = self.inner.put(key, body, mode).await;
            if key.starts_with("blockd/manifests/") {
                self.stopping.cancel();
                std::future::pending::<()>().await;
            }
            done
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.get(key, max_len_bytes)
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.get_range(key, offset_bytes, len_bytes)
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
