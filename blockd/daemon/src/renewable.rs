//! A store whose client can be replaced under those who work with it: each request goes through the one that is there when it begins.

use blockd_cloud::store::{ObjectInfo, ObjectStore, PutMode, StoreError, StoreErrorKind, StoreFuture};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{future::Future, sync::Arc};

type Client = Arc<dyn ObjectStore>;

/// One place, whatever keys open it.
pub(crate) struct RenewableStore {
    describe: String,
    client: Mutex<Client>,
}

impl RenewableStore {
    /// One that is asked through this client.
    pub fn new(client: Client) -> Self {
        Self { describe: client.describe().to_owned(), client: Mutex::new(client) }
    }

    /// Is asked through this client from the next request on. What is under way goes on as it began.
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

impl ObjectStore for RenewableStore {
    fn describe(&self) -> &str {
        &self.describe
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let put = |store: Client| {
                let body = body.clone();
                async move { store.put(key, body, mode).await }
            };
            self.run(put).await
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(self.run(move |store: Client| async move { store.get(key, max_len_bytes).await }))
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        let get = move |store: Client| async move { store.get_range(key, offset_bytes, len_bytes).await };
        Box::pin(self.run(get))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(self.run(move |store: Client| async move { store.delete(key).await }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        Box::pin(self.run(move |store: Client| async move { store.list(prefix).await }))
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        Box::pin(self.run(move |store: Client| async move { store.multipart_start(key).await }))
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        Box::pin(async move {
            let put = |store: Client| {
                let body = body.clone();
                async move { store.multipart_put(key, upload_id, part_no, body).await }
            };
            self.run(put).await
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        let complete =
            move |store: Client| async move { store.multipart_complete(key, upload_id, tags).await };
        Box::pin(self.run(complete))
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(self.run(move |store: Client| async move { store.multipart_abort(key, upload_id).await }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_cloud::testing::MemoryStore;

    fn with(content: &'static str) -> Client {
        let store = MemoryStore::default();
        store.insert("key", content.as_bytes());
        Arc::new(store)
    }

    #[tokio::test]
    async fn the_next_request_goes_through_the_new_client() {
        let store = RenewableStore::new(with("old"));
        assert_eq!(store.get("key", 100).await.unwrap(), "old");
        store.renew(with("new"));
        assert_eq!(store.get("key", 100).await.unwrap(), "new");
    }

    #[tokio::test]
    async fn a_request_that_is_refused_while_the_keys_change_is_made_once_more() {
        let refused = || StoreError::new(StoreErrorKind::Unauthorized, "GET", "key", "store");
        let store = RenewableStore::new(with("old"));
        let (old, asked) = (store.client(), Mutex::new(0));
        let get = async |client: Client| {
            *asked.lock() += 1;
            if !Arc::ptr_eq(&client, &old) {
                return client.get("key", 100).await;
            }
            // Somebody changes the keys, and has the old ones revoked.
            store.renew(with("new"));
            Err(refused())
        };
        assert_eq!(store.run(get).await.unwrap(), "new");
        // Who is refused with keys that are new is refused.
        let still = async |_: Client| {
            *asked.lock() += 1;
            Err::<(), _>(refused())
        };
        assert_eq!(store.run(still).await.unwrap_err().kind, StoreErrorKind::Unauthorized);
        assert_eq!(*asked.lock(), 3);
    }
}
