//! Object stores: the bucket operations that backups use, and the classification of their errors.
//!
//! [`LocalStore`], [`BucketStore`] (S3, Azure, Google) and [`SwiftStore`] are clients. The others are
//! [`Middleware`]: [`MeterStore`] counts requests, [`RetryStore`] repeats failed ones within bounds,
//! [`LimitStore`] enforces bandwidth limits, [`FailoverStore`] uses the next server of a bucket, and
//! [`ReloadStore`] confines requests to a prefix and takes new credentials. `docs/architecture.md`, "A layer
//! of store requests", has their order.

mod backends;
mod deletion;
mod memory;
mod middleware;
mod pieces;
mod probe;
mod work;

pub use backends::{
    ALIGNMENT_BYTES, BucketStore, HttpOptions, LocalStore, SwiftStore, create_bucket, delete_batch_keys, open,
};
pub use blockd_store_config::StoreConfig;
pub use deletion::delete_objects;
pub use memory::{TransferBuffer, TransferMemory};
pub use middleware::{
    BadPrefix, Bandwidth, BudgetCheck, ClientFuture, ClientSource, DryStore, FailoverStore, LimitStore,
    MeterStore, Middleware, Operation, ReloadStore, Request, RequestCounts, RequestKind, RequestObserver,
    Requests, Reservation, Response, RetryPolicy, RetryStore, plain_prefix, task_store,
};
pub use pieces::{Pieces, Received};
pub use probe::{ProbeError, StoreCapabilities, probe};
pub use work::{Lost, Work, Workers, Yielding};

use bytes::Bytes;
use futures::future::BoxFuture;
use std::{any::Any, fmt, num::NonZero, sync::Arc};

/// Size of all parts of a multipart upload except the last, in bytes.
pub const PART_LEN_BYTES: usize = 16 << 20;

/// Maximum number of keys of [`BlobStore::delete_many`]: that of S3.
pub const DELETE_MAX_KEYS: usize = 1000;

/// Maximum number of objects that [`BlobStore::list`] returns, which bounds its memory.
pub const LIST_MAX_OBJECTS: usize = 2_000_000;

/// Maximum number of pages of a listing (10^9 objects in usual pages), against endless listings.
const MAX_PAGES: usize = 1_000_000;

/// Maximum number of consecutive empty pages, against endless listings.
const MAX_EMPTY_PAGES: usize = 1000;

/// Behavior for an existing object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// Keep it and fail with [`StoreErrorKind::AlreadyExists`], if the store supports that.
    CreateIfAbsent,
    /// Replace it.
    Overwrite,
}

/// Listed object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ObjectInfo {
    /// Key.
    pub key: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Version, which changes when the object is replaced or altered, as far as the store can detect it: an
    /// entity tag, or attributes of the file.
    pub version: String,
    /// Time of the store operation by the store's clock, in seconds since 1970; `None` if the store does not
    /// report it.
    pub modified_unix_s: Option<i64>,
}

/// Page of a listing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ListPage {
    /// Objects, in no particular order.
    pub objects: Vec<ObjectInfo>,
    /// Token of the next page; `None` after the last one.
    pub next: Option<String>,
}

/// Results of the deletions of several objects, in the order of their keys.
pub type Deletions = Vec<Result<bool, StoreError>>;

/// Future of a store operation.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Store of objects under keys.
///
/// Keys are relative paths of plain characters (letters, digits, `-`, `_`, `.`, `/`), see [`check_key`]. When
/// a put returns, the object is durable and completely visible, or not at all.
pub trait BlobStore: Any + Send + Sync {
    /// Returns the kind and address for messages, without secrets.
    fn describe(&self) -> &str;

    /// Stores an object.
    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()>;

    /// Reads a whole object; [`StoreErrorKind::TooLarge`] if it is longer than `max_len_bytes`.
    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes>;

    /// Reads exactly `len_bytes` bytes from `offset_bytes` on; fails if the object is shorter.
    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes>;

    /// Reads the range from `offset_bytes` on that `pieces` receives, like [`get_range`](Self::get_range). By
    /// default, all missing pieces have their memory before the request is sent.
    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        Box::pin(async move {
            let room = pieces.reserve().await;
            let done = pieces.offset_bytes();
            let body = self.get_range(key, offset_bytes + done, pieces.len_bytes() - done).await?;
            pieces.receive(key, self.describe(), &room.hold(body))
        })
    }

    /// Deletes an object; returns false if the store reports that it did not exist.
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// Deletes the first of at most [`DELETE_MAX_KEYS`] objects, as many as one request of the store takes,
    /// but at least one; returns the result of each as [`delete`](Self::delete) does. By default just the
    /// first object.
    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        Box::pin(async move {
            match keys.first() {
                Some(first) => Ok(vec![Ok(self.delete(first).await?)]),
                None => Ok(Vec::new()),
            }
        })
    }

    /// Returns a page of the objects whose keys begin with `prefix`: the first one, or the `next` of the
    /// previous page. An object that exists throughout the listing is on at least one page. Names that are
    /// not valid keys are omitted.
    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage>;

    /// Returns all objects whose keys begin with `prefix`, sorted by key; [`StoreErrorKind::TooLarge`] for
    /// more than [`LIST_MAX_OBJECTS`].
    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        Box::pin(async move {
            let mut objects = Vec::new();
            let mut pages = Pages::new(self, prefix);
            while let Some(page) = pages.next().await? {
                objects.extend(page);
                if objects.len() > LIST_MAX_OBJECTS {
                    return Err(StoreError::new(StoreErrorKind::TooLarge, "LIST", prefix, self.describe())
                        .with_detail(format!("more than {LIST_MAX_OBJECTS} objects")));
                }
            }
            // Not every server sorts, and pages may overlap while objects are created and deleted.
            objects.sort();
            objects.dedup();
            Ok(objects)
        })
    }

    /// Removes remains of unfinished uploads below a prefix that were stored before a time (seconds since
    /// 1970): hidden files and empty directories, or segments without an object. Returns the number of files
    /// or segments; removes nothing with `dry_run`. Does nothing for buckets, where a lifecycle rule removes
    /// such parts.
    fn remove_unfinished<'a>(
        &'a self,
        _prefix: &'a str,
        _before_unix_s: i64,
        _dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        Box::pin(async { Ok(0) })
    }

    /// Starts a multipart upload; returns its id.
    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String>;

    /// Stores part `part_no` (from 0); each part except the last is [`PART_LEN_BYTES`] long. Returns the
    /// part's tag.
    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String>;

    /// Completes the upload, given the tags of its parts in order; replaces an existing object.
    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()>;

    /// Aborts the upload and deletes its parts.
    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()>;
}

/// Iterator over the pages of a listing.
pub struct Pages<'a, S: ?Sized> {
    store: &'a S,
    prefix: &'a str,
    next: Option<String>,
    is_over: bool,
    pages: usize,
    empty_pages: usize,
}

impl<'a, S: BlobStore + ?Sized> Pages<'a, S> {
    /// Starts a listing of `prefix`.
    pub fn new(store: &'a S, prefix: &'a str) -> Self {
        Self { store, prefix, next: None, is_over: false, pages: 0, empty_pages: 0 }
    }

    /// Returns the objects of the next page; `None` after the last one.
    ///
    /// # Errors
    /// Those of [`BlobStore::list_page`]; [`StoreErrorKind::Other`] if the pages do not advance,
    /// [`StoreErrorKind::TooLarge`] for a million pages. A partial listing is never returned as complete,
    /// because deletions depend on it.
    pub async fn next(&mut self) -> Result<Option<Vec<ObjectInfo>>, StoreError> {
        if self.is_over {
            return Ok(None);
        }
        if self.pages == MAX_PAGES {
            return Err(StoreError::new(
                StoreErrorKind::TooLarge,
                "LIST",
                self.prefix,
                self.store.describe(),
            )
            .with_detail(format!("more than {MAX_PAGES} pages")));
        }
        self.pages += 1;
        let page = self.store.list_page(self.prefix, self.next.as_deref()).await?;
        self.empty_pages = if page.objects.is_empty() { self.empty_pages + 1 } else { 0 };
        if page.next.is_some() && (page.next == self.next || self.empty_pages > MAX_EMPTY_PAGES) {
            return Err(StoreError::new(StoreErrorKind::Other, "LIST", self.prefix, self.store.describe())
                .with_detail("the pages of the listing do not advance"));
        }
        self.is_over = page.next.is_none();
        self.next = page.next;
        Ok(Some(page.objects))
    }
}

/// Kind of a store error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StoreErrorKind {
    /// The object does not exist.
    NotFound,
    /// The object already exists.
    AlreadyExists,
    /// The object is in an archive class or tier, from which it must be restored before it can be read.
    Archived,
    /// The store refuses the credentials, or they lack a permission.
    Unauthorized,
    /// The clocks of this host and of the store differ by more than the store accepts.
    WrongClock,
    /// The bucket is in another region than that of the request or its signature.
    WrongRegion,
    /// The store requires the other style of bucket addresses.
    WrongStyle,
    /// Only one side uses TLS.
    WrongScheme,
    /// The bucket or directory does not exist.
    BucketMissing,
    /// The store cannot be reached.
    Unreachable,
    /// The store did not respond in time.
    Timeout,
    /// The store is full.
    NoSpace,
    /// The store throttles requests, or is temporarily unavailable.
    Throttled,
    /// The response was truncated.
    ShortBody,
    /// The checksum of stored or read data does not match.
    Altered,
    /// The object ends before the requested range.
    RangeBeyondEnd,
    /// The object is longer than the caller accepts.
    TooLarge,
    /// The key is invalid.
    BadKey,
    /// The store does not support the operation.
    Unsupported,
    /// Invalid configuration.
    Misconfigured,
    /// The request would exceed the budget of its task; it was not sent.
    BudgetExhausted,
    /// Other error.
    Other,
}

impl StoreErrorKind {
    /// Returns true if a retry can succeed.
    pub const fn is_retryable(self) -> bool {
        // `Other`: the cause is unknown, and a needless retry costs seconds, a missing one a backup.
        // `WrongScheme`: recognized by texts that a starting server or a proxy can cause as well.
        matches!(
            self,
            Self::Unreachable
                | Self::Timeout
                | Self::Throttled
                | Self::ShortBody
                | Self::Altered
                | Self::Other
                | Self::WrongScheme
        )
    }

    /// Returns true if the server sent no response: another server of the store may send one.
    pub(crate) const fn is_without_response(self) -> bool {
        matches!(self, Self::Unreachable | Self::Timeout)
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NotFound => "the object does not exist",
            Self::AlreadyExists => "the object already exists",
            Self::Archived => "the object is in an archive class and cannot be read",
            Self::Unauthorized => {
                "access denied: check the credentials and their permissions to read, write, list and delete"
            }
            Self::WrongClock => {
                "the clocks of this host and of the store differ too much: correct the wrong one"
            }
            Self::WrongRegion => "the bucket is in another region or at another address",
            Self::WrongStyle => "the store requires the bucket's name in the host name",
            Self::WrongScheme => "one side uses TLS and the other one plain HTTP",
            Self::BucketMissing => "the bucket or directory does not exist",
            Self::Unreachable => "cannot be reached: check the address, the port, TLS, and the network",
            Self::Timeout => "no response in time",
            Self::NoSpace => "no space left: free some, or raise the quota",
            Self::Throttled => "the store is overloaded or temporarily unavailable",
            Self::ShortBody => "the response was truncated",
            Self::Altered => "the data was altered in transit",
            Self::RangeBeyondEnd => "the object is shorter than expected",
            Self::TooLarge => "the object is longer than expected",
            Self::BadKey => {
                "invalid key: letters, digits, '-', '_', '.' in parts separated by '/' are expected"
            }
            Self::Unsupported => "the store does not support the operation",
            Self::Misconfigured => "the settings of the store are invalid",
            Self::BudgetExhausted => "not sent, because it would exceed the budget of the task",
            Self::Other => "failed",
        }
    }
}

/// Failed operation of a store.
#[derive(Debug)]
pub struct StoreError {
    /// Kind.
    pub kind: StoreErrorKind,
    /// Operation: `PUT`, `GET`, `DELETE`, `LIST`, `MULTIPART`, `OPEN`, `AUTH`, `CREATE`.
    pub operation: &'static str,
    /// The key or prefix.
    pub key: String,
    /// Description of the store.
    pub store: String,
    /// Details on one line; may be empty.
    pub detail: String,
    /// Pause that the store requested, in seconds.
    pub retry_after_s: Option<u16>,
    /// Time of the error by the store's clock, in seconds since 1970, if known; only for
    /// [`StoreErrorKind::NoSpace`].
    pub store_time_unix_s: Option<NonZero<i64>>,
    /// Source.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// Creates an error without a source.
    pub fn new(kind: StoreErrorKind, operation: &'static str, key: &str, store: &str) -> Self {
        Self {
            kind,
            operation,
            key: key.to_owned(),
            store: store.to_owned(),
            detail: String::new(),
            retry_after_s: None,
            store_time_unix_s: None,
            source: None,
        }
    }

    /// Returns the error with details, reduced to one line.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        self.detail = detail.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(400).collect();
        self
    }

    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}: {}", self.operation, self.key, self.store, self.kind.text())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

/// Returns true for a key (or, with a final `/` or a partial last name, a prefix) that all stores accept.
pub fn check_key(key: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    key.len() <= 900
        && !key.is_empty()
        && key.split('/').all(|name| {
            !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(plain)
        })
}

pub(crate) fn check_prefix(prefix: &str) -> bool {
    prefix.is_empty() || check_key(prefix.strip_suffix('/').unwrap_or(prefix))
}

/// Runs a blocking operation of a store. The runtime of its connections, which may not be that of the caller,
/// starts the thread: it inherits the priority of the one that starts it, and others use it later.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    key: &str,
    store: &str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let running = tokio::spawn(async { tokio::task::spawn_blocking(work).await });
    match running.await.flatten() {
        Ok(result) => result,
        Err(error) => Err(StoreError::new(StoreErrorKind::Other, operation, key, store)
            .with_detail(format!("the worker thread failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_outside_of_the_root_are_refused() {
        for good in ["a", "blockd/keys/0-1_2.x", "a/b/c"] {
            assert!(check_key(good), "{good}");
        }
        for bad in ["", "/", "/a", "a/", "a//b", "..", "a/../b", "a/.tmp", "a\\b", "a b", "ä", "a\0"] {
            assert!(!check_key(bad), "{bad:?}");
        }
        assert!(check_prefix("a/b/") && check_prefix("") && check_prefix("a/b-"));
        assert!(!check_prefix("../") && !check_prefix("/"));
    }

    #[test]
    fn messages_are_one_line() {
        let error = StoreError::new(StoreErrorKind::Other, "PUT", "k", "s").with_detail("a\n  b");
        assert_eq!(error.to_string(), "PUT k at s: failed (a b)");
    }
}
