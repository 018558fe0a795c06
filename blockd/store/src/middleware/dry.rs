//! Store of a dry run.

use crate::{BlobStore, Deletions, ListPage, PutMode, StoreFuture};
use bytes::Bytes;
use std::{future::ready, sync::Arc};

/// Store that sends reads and listings only. Writes and deletions succeed without being sent, so that an
/// operation makes all the requests of a real run, which a [`MeterStore`](crate::MeterStore) in front counts.
pub struct DryStore {
    inner: Arc<dyn BlobStore>,
    batch_keys: usize,
}

impl DryStore {
    /// Creates a store that never changes `inner`, which deletes up to `batch_keys` objects with a request.
    pub fn new(inner: Arc<dyn BlobStore>, batch_keys: usize) -> Self {
        Self { inner, batch_keys }
    }
}

fn done<'a, T: Send + 'a>(value: T) -> StoreFuture<'a, T> {
    Box::pin(ready(Ok(value)))
}

impl BlobStore for DryStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn put<'a>(&'a self, _: &'a str, _: Bytes, _: PutMode) -> StoreFuture<'a, ()> {
        done(())
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.get(key, max_len_bytes)
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.inner.get_range(key, offset_bytes, len_bytes)
    }

    fn delete<'a>(&'a self, _: &'a str) -> StoreFuture<'a, bool> {
        done(true)
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        done(keys.iter().take(self.batch_keys.max(1)).map(|_| Ok(true)).collect())
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        self.inner.list_page(prefix, page)
    }

    fn remove_unfinished<'a>(&'a self, prefix: &'a str, before_unix_s: i64, _: bool) -> StoreFuture<'a, u64> {
        self.inner.remove_unfinished(prefix, before_unix_s, true)
    }

    fn multipart_start<'a>(&'a self, _: &'a str) -> StoreFuture<'a, String> {
        done(String::new())
    }

    fn multipart_put<'a>(&'a self, _: &'a str, _: &'a str, _: u32, _: Bytes) -> StoreFuture<'a, String> {
        done(String::new())
    }

    fn multipart_complete<'a>(&'a self, _: &'a str, _: &'a str, _: &'a [String]) -> StoreFuture<'a, ()> {
        done(())
    }

    fn multipart_abort<'a>(&'a self, _: &'a str, _: &'a str) -> StoreFuture<'a, ()> {
        done(())
    }
}
