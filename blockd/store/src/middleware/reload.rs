//! Store with a replaceable client below a prefix.

use super::{Operation, Request, Response};
use crate::{BlobStore, ListPage, StoreError, StoreErrorKind, StoreFuture};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::{borrow::Cow, future::Future, sync::Arc};

type Client = Arc<dyn BlobStore>;

/// Future of a client, or of the kind and detail of an error.
pub type ClientFuture<'a> = BoxFuture<'a, Result<Client, (StoreErrorKind, String)>>;

/// Source of the client of a [`ReloadStore`].
pub trait ClientSource: Send + Sync {
    /// Returns the current client, which is asked for before each request. After the store has refused the
    /// credentials of a client, that client is `refused`: it is returned again if there are no new
    /// credentials.
    fn client<'a>(&'a self, refused: Option<&'a Client>) -> ClientFuture<'a>;
}

/// Source of one client that never changes.
impl ClientSource for Client {
    fn client<'a>(&'a self, _: Option<&'a Client>) -> ClientFuture<'a> {
        Box::pin(std::future::ready(Ok(Arc::clone(self))))
    }
}

/// Store of one place, whose client changes with its credentials.
///
/// Each request uses the client that is current at its start, and is repeated once if the store refuses its
/// credentials and there are new ones. All keys are below the prefix.
pub struct ReloadStore {
    description: String,
    /// Prefix of each key, with its slash; may be empty.
    prefix: String,
    source: Mutex<Arc<dyn ClientSource>>,
}

impl ReloadStore {
    /// Creates a store with this client, below a prefix as [`plain_prefix`](crate::plain_prefix) returns it.
    pub fn new(client: Client, prefix: Option<&str>) -> Self {
        let (description, prefix) = match prefix {
            Some(prefix) => (format!("{}, below {prefix}", client.describe()), format!("{prefix}/")),
            None => (client.describe().to_owned(), String::new()),
        };
        Self { description, prefix, source: Mutex::new(Arc::new(client)) }
    }

    /// Takes the clients from a source.
    #[must_use]
    pub fn with_source(self, source: Arc<dyn ClientSource>) -> Self {
        Self { source: Mutex::new(source), ..self }
    }

    /// Takes the source of another store for the next requests. Running requests continue with the old one.
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
        // The old credentials may have been revoked while the request was under way.
        let now = self.source();
        if Arc::ptr_eq(&source, &now) { result } else { self.run_with(&*now, request, &ask).await }
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
        let result = ask(Arc::clone(&client)).await;
        if !is_refused(&result) {
            return result;
        }
        let now = source.client(Some(&client)).await.map_err(failed)?;
        if Arc::ptr_eq(&client, &now) { result } else { ask(now).await }
    }
}

fn is_refused<T>(result: &Result<T, StoreError>) -> bool {
    result.as_ref().is_err_and(|error| error.kind == StoreErrorKind::Unauthorized)
}

impl super::Middleware for ReloadStore {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalStore, ObjectInfo, PutMode, testing::MemoryStore};
    use bytes::Bytes;

    fn with(content: &'static str) -> Client {
        let store = MemoryStore::default();
        store.insert("key", content.as_bytes());
        Arc::new(store)
    }

    #[tokio::test]
    async fn next_request_uses_the_new_client() {
        let store = ReloadStore::new(with("old"), None);
        assert_eq!(store.get("key", 100).await.unwrap(), "old");
        store.renew(&ReloadStore::new(with("new"), None));
        assert_eq!(store.get("key", 100).await.unwrap(), "new");
    }

    #[tokio::test]
    async fn refused_request_is_retried_with_the_new_keys() {
        let request = Request::new(Operation::Get, "key");
        let refused = || request.failed(StoreErrorKind::Unauthorized, "store");
        let old = with("old");
        let (store, asked) = (ReloadStore::new(Arc::clone(&old), None), Mutex::new(0));
        let get = async |client: Client| {
            *asked.lock() += 1;
            if !Arc::ptr_eq(&client, &old) {
                return client.get("key", 100).await;
            }
            // A user rotates the keys and revokes the old ones.
            store.renew(&ReloadStore::new(with("new"), None));
            Err(refused())
        };
        assert_eq!(store.run(request, get).await.unwrap(), "new");
        // A refusal with new keys is final.
        let still = async |_: Client| {
            *asked.lock() += 1;
            Err::<(), _>(refused())
        };
        assert_eq!(store.run(request, still).await.unwrap_err().kind, StoreErrorKind::Unauthorized);
        assert_eq!(*asked.lock(), 3);
    }

    #[tokio::test]
    async fn prefix_store_confines_all_requests() {
        let dir = tempfile::tempdir().unwrap();
        let full_key: Arc<dyn BlobStore> = Arc::new(LocalStore::open(dir.path()).unwrap());
        let part = |prefix| ReloadStore::new(Arc::clone(&full_key), Some(prefix));
        let (one, other) = (part("demo"), part("demo2/x"));
        let put = |store: &'static str| Bytes::from_static(store.as_bytes());
        one.put("a/k", put("one"), PutMode::CreateIfAbsent).await.unwrap();
        other.put("a/k", put("other"), PutMode::CreateIfAbsent).await.unwrap();
        let upload = one.multipart_start("a/big").await.unwrap();
        let tag = one.multipart_put("a/big", &upload, 0, put("parts")).await.unwrap();
        one.multipart_complete("a/big", &upload, &[tag]).await.unwrap();
        let upload = one.multipart_start("a/left").await.unwrap();
        one.multipart_put("a/left", &upload, 0, put("part")).await.unwrap();
        assert_eq!(other.remove_unfinished("", i64::MAX, false).await.unwrap(), 0);
        assert!(one.remove_unfinished("a/", i64::MAX, true).await.unwrap() > 0);
        one.multipart_abort("a/left", &upload).await.unwrap();
        let keys = |listed: Vec<ObjectInfo>| listed.into_iter().map(|info| info.key).collect::<Vec<_>>();
        assert_eq!(keys(full_key.list("").await.unwrap()), ["demo/a/big", "demo/a/k", "demo2/x/a/k"]);
        for prefix in ["", "a/"] {
            assert_eq!(keys(one.list(prefix).await.unwrap()), ["a/big", "a/k"]);
        }
        assert_eq!(one.get("a/k", 10).await.unwrap(), "one");
        assert_eq!(other.get_range("a/k", 1, 2).await.unwrap(), "th");
        assert!(one.describe().ends_with(", below demo"), "{}", one.describe());
        assert_eq!(one.get("../demo2/x/a/k", 10).await.unwrap_err().kind, StoreErrorKind::BadKey);
        assert!(one.delete("a/k").await.unwrap() && !one.delete("a/k").await.unwrap());
        assert_eq!(other.get("a/k", 10).await.unwrap(), "other");
    }
}
