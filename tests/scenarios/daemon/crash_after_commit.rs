//! Crash right after the commit of a backup, before any further request.

use blockd_store::{BlobStore, Middleware, PutMode, Request, Response, StoreFuture};
use bytes::Bytes;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Step of this crash.
pub(crate) const COMMITTED: &str = "backup put";

/// Store that kills its daemon after the PUT of a manifest.
pub(crate) struct CrashingStore {
    pub(crate) inner: Arc<dyn BlobStore>,
    pub(crate) stopping: CancellationToken,
}

impl Middleware for CrashingStore {
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
