//! Store with a replaceable client below a prefix.

use super::layer::{Middleware, Operation, Request, Response};
use crate::{BlobStore, ListPage, StoreError, StoreErrorKind, StoreFuture};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::{borrow::Cow, future::Future, sync::Arc};
use tokio::runtime::Handle;
use tokio_util::context::TokioContext;

type Client = Arc<dyn BlobStore>;

/// Future of a client, or of the kind and detail of an error.
pub type ClientFuture<'a> = BoxFuture<'a, Result<Client, (StoreErrorKind, String)>>;

/// Source of the client of a [`ReloadStore`].
pub trait ClientSource: Send + Sync {
    /// Returns the current client; called before each request. If the store has refused a client's
    /// credentials, that client is passed as `refused`, and is returned again if there are no new
    /// credentials.
    fn client<'a>(&'a self, refused: Option<&'a Client>) -> ClientFuture<'a>;
}

/// Source of one client that never changes.
impl ClientSource for Client {
    fn client<'a>(&'a self, _: Option<&'a Client>) -> ClientFuture<'a> {
        Box::pin(std::future::ready(Ok(Arc::clone(self))))
    }
}

/// Store whose client is replaced when its credentials change.
///
/// Each request uses the client that is current at its start, and is repeated once if the store refuses its
/// credentials and there are new ones. All keys are below the prefix.
pub struct ReloadStore {
    description: String,
    /// Prefix of each key, with its slash; may be empty.
    prefix: String,
    source: Mutex<Arc<dyn ClientSource>>,
    /// Runtime of the connections; that of the caller by default.
    runtime: Option<Handle>,
}

impl ReloadStore {
    /// Creates a store with this client, below a prefix as [`plain_prefix`](crate::plain_prefix) returns it.
    pub fn new(client: Client, prefix: Option<&str>) -> Self {
        let (description, prefix) = match prefix {
            Some(prefix) => (format!("{}, below {prefix}", client.describe()), format!("{prefix}/")),
            None => (client.describe().to_owned(), String::new()),
        };
        Self { description, prefix, source: Mutex::new(Arc::new(client)), runtime: None }
    }

    /// Replaces the source of clients.
    #[must_use]
    pub fn with_source(self, source: Arc<dyn ClientSource>) -> Self {
        Self { source: Mutex::new(source), ..self }
    }

    /// Returns the store with a runtime for its connections. Connections are shared by all callers: without
    /// this, one that a low-priority runtime opened would delay the requests of others.
    #[must_use]
    pub fn with_runtime(self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self }
    }

    /// Uses the source of another store for new requests. Running requests continue with the old one.
    pub fn renew(&self, other: &Self) {
        let source = other.source();
        *self.source.lock() = source;
    }

    fn source(&self) -> Arc<dyn ClientSource> {
        Arc::clone(&self.source.lock())
    }

    async fn run<T, F>(&self, request: Request<'_>, ask: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let source = self.source();
        let result = self.run_with(&*source, request, &ask).await;
        if !is_refused(&result) {
            return result;
        }
        // The old credentials may have been revoked during the request.
        let current = self.source();
        if Arc::ptr_eq(&source, &current) { result } else { self.run_with(&*current, request, &ask).await }
    }

    /// Sends a request with a client.
    async fn send<T>(&self, request: impl Future<Output = T>) -> T {
        match &self.runtime {
            Some(runtime) => TokioContext::new(request, runtime.clone()).await,
            None => request.await,
        }
    }

    async fn run_with<T, F>(
        &self,
        source: &dyn ClientSource,
        request: Request<'_>,
        ask: &impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let failed = |(kind, detail): (StoreErrorKind, String)| {
            request.failed(kind, &self.description).with_detail(detail)
        };
        let client = source.client(None).await.map_err(failed)?;
        let result = self.send(ask(Arc::clone(&client))).await;
        if !is_refused(&result) {
            return result;
        }
        let current = source.client(Some(&client)).await.map_err(failed)?;
        if Arc::ptr_eq(&client, &current) { result } else { self.send(ask(current)).await }
    }
}

fn is_refused<T>(result: &Result<T, StoreError>) -> bool {
    result.as_ref().is_err_and(|error| error.kind == StoreErrorKind::Unauthorized)
}

impl Middleware for ReloadStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn key_behind<'a>(&self, key: &'a str) -> Cow<'a, str> {
        match self.prefix.is_empty() {
            true => Cow::Borrowed(key),
            false => Cow::Owned(format!("{}{key}", self.prefix)),
        }
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Client) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(self.run(request, ask))
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let ask = |client: Client| async move { client.list_page(&self.key_behind(prefix), page).await };
            let mut listed = self.run(Request::new(Operation::List, prefix), ask).await?;
            listed.objects.retain(|info| info.key.starts_with(&self.prefix));
            for info in &mut listed.objects {
                info.key.drain(..self.prefix.len());
            }
            Ok(listed)
        })
    }
}
