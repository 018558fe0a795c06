//! A daemon that dies right after the commit of a backup, before it asked anything about it.

use blockd_store::{BlobStore, Middleware, PutMode, Request, Response, StoreFuture};
use bytes::Bytes;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The step at which it does.
pub(crate) const COMMITTED: &str = "backup put";

/// Store whose daemon dies when a manifest was put.
pub(crate) struct Dying {
    pub(crate) inner: Arc<dyn BlobStore>,
    pub(crate) stopping: CancellationToken,
}

impl Middleware for Dying {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(Arc::clone(&self.inner))
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
}
