//! Store with a replaceable client: each request uses the client current at its start.

use blockd_store::{BlobStore, Request, Response, StoreError, StoreErrorKind, StoreFuture};
use parking_lot::Mutex;
use std::{future::Future, sync::Arc};

type Client = Arc<dyn BlobStore>;

/// One place, regardless of the keys.
pub(crate) struct RenewableStore {
    describe: String,
    client: Mutex<Client>,
}

impl RenewableStore {
    /// Creates a store with this client.
    pub fn new(client: Client) -> Self {
        Self { describe: client.describe().to_owned(), client: Mutex::new(client) }
    }

    /// Replaces the client for the next requests. Running requests continue with the old one.
    pub fn renew(&self, client: Client) {
        *self.client.lock() = client;
    }

    fn client(&self) -> Client {
        Arc::clone(&self.client.lock())
    }

    async fn run<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let client = self.client();
        let result = request(Arc::clone(&client)).await;
        match &result {
            Err(error) if error.kind == StoreErrorKind::Unauthorized => {}
            _ => return result,
        }
        // The old keys may have been revoked while the request was under way.
        let now = self.client();
        if Arc::ptr_eq(&client, &now) { result } else { request(now).await }
    }
}

impl blockd_store::Middleware for RenewableStore {
    fn describe(&self) -> &str {
        &self.describe
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(self.run(ask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_store::testing::MemoryStore;

    fn with(content: &'static str) -> Client {
        let store = MemoryStore::default();
        store.insert("key", content.as_bytes());
        Arc::new(store)
    }

    #[tokio::test]
    async fn next_request_uses_the_new_client() {
        let store = RenewableStore::new(with("old"));
        assert_eq!(store.get("key", 100).await.unwrap(), "old");
        store.renew(with("new"));
        assert_eq!(store.get("key", 100).await.unwrap(), "new");
    }

    #[tokio::test]
    async fn refused_request_is_retried_with_the_new_keys() {
        let refused = || StoreError::new(StoreErrorKind::Unauthorized, "GET", "key", "store");
        let store = RenewableStore::new(with("old"));
        let (old, asked) = (store.client(), Mutex::new(0));
        let get = async |client: Client| {
            *asked.lock() += 1;
            if !Arc::ptr_eq(&client, &old) {
                return client.get("key", 100).await;
            }
            // A user rotates the keys and revokes the old ones.
            store.renew(with("new"));
            Err(refused())
        };
        assert_eq!(store.run(get).await.unwrap(), "new");
        // A refusal with new keys is final.
        let still = async |_: Client| {
            *asked.lock() += 1;
            Err::<(), _>(refused())
        };
        assert_eq!(store.run(still).await.unwrap_err().kind, StoreErrorKind::Unauthorized);
        assert_eq!(*asked.lock(), 3);
    }
}
