//! Requests as seen by middleware, and the trait that turns a layer into a store.

use crate::{
    BlobStore, Deletions, ListPage, Pieces, PutMode, Received, StoreError, StoreErrorKind, StoreFuture,
};
use bytes::Bytes;
use std::{any::Any, borrow::Cow, sync::Arc};

/// Operation of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// [`BlobStore::put`].
    Put,
    /// [`BlobStore::get`].
    Get,
    /// [`BlobStore::get_range`].
    GetRange,
    /// [`BlobStore::delete`].
    Delete,
    /// [`BlobStore::delete_many`].
    DeleteMany,
    /// [`BlobStore::remove_unfinished`].
    RemoveUnfinished,
    /// [`BlobStore::list_page`].
    List,
    /// [`BlobStore::multipart_start`].
    MultipartStart,
    /// [`BlobStore::multipart_put`].
    MultipartPut,
    /// [`BlobStore::multipart_complete`].
    MultipartComplete,
    /// [`BlobStore::multipart_abort`].
    MultipartAbort,
}

impl Operation {
    /// Returns the kind of its requests.
    pub const fn kind(self) -> RequestKind {
        match self {
            Self::Put => RequestKind::Put,
            Self::Get | Self::GetRange => RequestKind::Get,
            Self::Delete | Self::DeleteMany | Self::RemoveUnfinished => RequestKind::Delete,
            Self::List => RequestKind::List,
            Self::MultipartStart | Self::MultipartPut | Self::MultipartComplete | Self::MultipartAbort => {
                RequestKind::Multipart
            }
        }
    }
}

/// Kind of a request in errors and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// Store of an object.
    Put,
    /// Read of an object or a range.
    Get,
    /// Deletion of an object.
    Delete,
    /// Page of a listing.
    List,
    /// Request of a multipart upload: start, each part, completion, abort.
    Multipart,
}

impl RequestKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Delete, Self::List, Self::Multipart];

    /// Returns the name in errors.
    pub const fn name(self) -> &'static str {
        ["PUT", "GET", "DELETE", "LIST", "MULTIPART"][self as usize]
    }
}

/// Properties of a request for middleware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// Operation.
    pub operation: Operation,
    /// Key or prefix.
    pub key: &'a str,
    /// Length of the request body in bytes.
    pub sent_bytes: u64,
    /// Maximum length of the response body in bytes.
    pub wanted_bytes: u64,
}

impl<'a> Request<'a> {
    /// Creates a request without bodies.
    pub const fn new(operation: Operation, key: &'a str) -> Self {
        Self { operation, key, sent_bytes: 0, wanted_bytes: 0 }
    }

    /// Returns an error of this request.
    pub fn failed(&self, kind: StoreErrorKind, store: &str) -> StoreError {
        StoreError::new(kind, self.operation.kind().name(), self.key, store)
    }

    const fn sending(self, body: &Bytes) -> Self {
        Self { sent_bytes: body.len() as u64, ..self }
    }

    const fn wanting(self, wanted_bytes: u64) -> Self {
        Self { wanted_bytes, ..self }
    }
}

/// Response of a store.
pub trait Response: Send {
    /// Returns the length of the body in bytes.
    fn received_bytes(&self) -> u64 {
        0
    }
}

impl Response for () {}
impl Response for bool {}
impl Response for String {}
impl Response for u64 {}
impl Response for ListPage {}
impl Response for Deletions {}
impl Response for Received {
    fn received_bytes(&self) -> u64 {
        self.0
    }
}
impl Response for Bytes {
    fn received_bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// Middleware in front of a store. [`wrap`](Self::wrap) wraps all requests; other methods override single
/// operations. Each layer is a [`BlobStore`].
pub trait Middleware: Any + Send + Sync {
    /// [`BlobStore::describe`].
    fn describe(&self) -> &str;

    /// Returns the key or prefix in the wrapped store.
    fn key_behind<'a>(&self, key: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(key)
    }

    /// Runs a request. Each call of `ask` sends it to the given store.
    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T>;

    /// [`BlobStore::put`].
    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        self.wrap(Request::new(Operation::Put, key).sending(&body), move |store| {
            let body = body.clone();
            Box::pin(async move { store.put(&self.key_behind(key), body, mode).await })
        })
    }

    /// [`BlobStore::get`].
    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.wrap(Request::new(Operation::Get, key).wanting(max_len_bytes), move |store| {
            Box::pin(async move { store.get(&self.key_behind(key), max_len_bytes).await })
        })
    }

    /// [`BlobStore::get_range`].
    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.wrap(Request::new(Operation::GetRange, key).wanting(len_bytes), move |store| {
            Box::pin(async move { store.get_range(&self.key_behind(key), offset_bytes, len_bytes).await })
        })
    }

    /// [`BlobStore::get_pieces`].
    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        let missing = pieces.len_bytes() - pieces.offset_bytes();
        self.wrap(Request::new(Operation::GetRange, key).wanting(missing), move |store| {
            Box::pin(async move { store.get_pieces(&self.key_behind(key), offset_bytes, pieces).await })
        })
    }

    /// [`BlobStore::delete`].
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.wrap(Request::new(Operation::Delete, key), move |store| {
            Box::pin(async move { store.delete(&self.key_behind(key)).await })
        })
    }

    /// [`BlobStore::delete_many`]: one request, with the first key.
    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        let Some(first) = keys.first() else { return Box::pin(async { Ok(Vec::new()) }) };
        self.wrap(Request::new(Operation::DeleteMany, first), move |store| {
            Box::pin(async move {
                let behind: Vec<String> = keys.iter().map(|key| self.key_behind(key).into_owned()).collect();
                store.delete_many(&behind).await
            })
        })
    }

    /// [`BlobStore::list_page`].
    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        self.wrap(Request::new(Operation::List, prefix), move |store| {
            Box::pin(async move { store.list_page(&self.key_behind(prefix), page).await })
        })
    }
}

/// Returns a store as this middleware if it is one, so that layers of one kind can be merged.
pub(super) fn downcast<L: Middleware>(store: &Arc<dyn BlobStore>) -> Option<&L> {
    (&**store as &dyn Any).downcast_ref()
}

impl<L: Middleware> BlobStore for L {
    fn describe(&self) -> &str {
        Middleware::describe(self)
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Middleware::put(self, key, body, mode)
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Middleware::get(self, key, max_len_bytes)
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Middleware::get_range(self, key, offset_bytes, len_bytes)
    }

    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        Middleware::get_pieces(self, key, offset_bytes, pieces)
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Middleware::delete(self, key)
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        Middleware::delete_many(self, keys)
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Middleware::list_page(self, prefix, page)
    }

    fn remove_unfinished<'a>(
        &'a self,
        prefix: &'a str,
        before_unix_s: i64,
        dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        self.wrap(Request::new(Operation::RemoveUnfinished, prefix), move |store| {
            Box::pin(async move {
                store.remove_unfinished(&self.key_behind(prefix), before_unix_s, dry_run).await
            })
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.wrap(Request::new(Operation::MultipartStart, key), move |store| {
            Box::pin(async move { store.multipart_start(&self.key_behind(key)).await })
        })
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        self.wrap(Request::new(Operation::MultipartPut, key).sending(&body), move |store| {
            let body = body.clone();
            Box::pin(
                async move { store.multipart_put(&self.key_behind(key), upload_id, part_no, body).await },
            )
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        self.wrap(Request::new(Operation::MultipartComplete, key), move |store| {
            Box::pin(async move { store.multipart_complete(&self.key_behind(key), upload_id, tags).await })
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        self.wrap(Request::new(Operation::MultipartAbort, key), move |store| {
            Box::pin(async move { store.multipart_abort(&self.key_behind(key), upload_id).await })
        })
    }
}
