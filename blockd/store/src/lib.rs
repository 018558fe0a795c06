//! Object stores: the six operations of a bucket that backups use, and the classification of their errors.
//!
//! [`LocalStore`], [`BucketStore`] (S3, Azure, Google) and [`SwiftStore`] are clients. The others are
//! [`Middleware`]: [`MeterStore`] counts requests, [`RetryStore`] repeats failed ones within bounds,
//! [`LimitStore`] enforces bandwidth limits and [`ReloadStore`] confines requests to a prefix and takes new
//! credentials. A request of a task passes `LimitStore`, `RetryStore`, `MeterStore` and the shared
//! `ReloadStore` of its credential to a client.

mod backends;
mod middleware;
mod probe;
mod work;

pub use backends::{ALIGNMENT_BYTES, BucketStore, HttpOptions, LocalStore, SwiftStore, open};
pub use blockd_store_config::StoreConfig;
pub use middleware::{
    BadPrefix, Bandwidth, ClientFuture, ClientSource, LimitStore, MeterStore, Middleware, Operation,
    ReloadStore, Request, RequestCounts, RequestKind, RequestObserver, Requests, Response, RetryPolicy,
    RetryStore, plain_prefix, task_store,
};
pub use probe::{ProbeError, StoreCapabilities, probe};
pub use work::{Lost, Work, Workers, Yielding};

use bytes::Bytes;
use futures::future::BoxFuture;
use std::{any::Any, fmt, num::NonZero, sync::Arc};

/// The size of every part of a multipart upload but the last, in bytes.
pub const PART_LEN_BYTES: usize = 16 << 20;

/// Most objects that [`BlobStore::list`] returns; more below one prefix are refused, because they would all
/// be in memory.
pub const LIST_MAX_OBJECTS: usize = 2_000_000;

/// Most pages of one listing, after which it is taken for one without an end: a thousand million objects in
/// the usual pages.
const MAX_PAGES: usize = 1_000_000;

/// Most pages without an object in a row, after which a listing is taken for one without an end.
const MAX_EMPTY_PAGES: usize = 1000;

/// Behavior for an existing object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// It stays, and the put fails with [`StoreErrorKind::AlreadyExists`], where the store can do that.
    CreateIfAbsent,
    /// It is replaced.
    Overwrite,
}

/// An object, as listings show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ObjectInfo {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Changes whenever the object is replaced or altered, as far as the store can tell: an entity tag, or
    /// what a filesystem says of the file.
    pub version: String,
    /// When it was stored, by the store's clock, in seconds since 1970; none if the store does not tell.
    pub modified_unix_s: Option<i64>,
}

/// A part of a listing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ListPage {
    /// Some of the objects, in no particular order.
    pub objects: Vec<ObjectInfo>,
    /// The name of the next page; `None` after the last one.
    pub next: Option<String>,
}

/// Future of a store operation.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// A place that keeps objects under keys.
///
/// Keys are relative paths of plain characters (letters, digits, `-`, `_`, `.`, `/`), see [`check_key`]. A
/// put is durable and visible as a whole, or not at all, when it returns.
pub trait BlobStore: Any + Send + Sync {
    /// Returns the kind and address for messages, without secrets.
    fn describe(&self) -> &str;

    /// Stores an object.
    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()>;

    /// The whole object; [`StoreErrorKind::TooLarge`] if it is longer than `max_len_bytes`.
    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes>;

    /// Exactly `len_bytes` bytes from `offset_bytes` on; what is shorter is an error.
    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes>;

    /// Removes an object; false if the store says that there was none.
    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool>;

    /// A page of the objects whose keys begin with `prefix`: the first one, or the `next` of the page before.
    /// An object that is there all the time is on at least one page. Names that are no keys are left out.
    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage>;

    /// Every object whose key begins with `prefix`, sorted by key; [`StoreErrorKind::TooLarge`] for more than
    /// [`LIST_MAX_OBJECTS`].
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
            // Not every server sorts, and pages may overlap while objects come and go.
            objects.sort();
            objects.dedup();
            Ok(objects)
        })
    }

    /// Removes what uploads that did not end left below a prefix, as far as it was stored before a time
    /// (seconds since 1970): hidden files and directories that became empty, or segments of no object.
    /// Returns the number of files or segments; if `dry_run`, nothing is removed. A bucket keeps the parts of
    /// such an upload until a lifecycle rule removes them: there it does nothing.
    fn remove_unfinished<'a>(
        &'a self,
        _prefix: &'a str,
        _before_unix_s: i64,
        _dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        Box::pin(async { Ok(0) })
    }

    /// Begins an object that arrives in parts; returns the upload's id.
    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String>;

    /// Stores part `part_no` (from 0); every part but the last is [`PART_LEN_BYTES`] long. Returns the part's
    /// tag.
    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String>;

    /// Makes the object of its parts, given their tags in order; an object that is already there is replaced.
    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()>;

    /// Throws the parts away.
    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()>;
}

/// The pages of a listing, one after the other.
pub struct Pages<'a, S: ?Sized> {
    store: &'a S,
    prefix: &'a str,
    next: Option<String>,
    is_over: bool,
    pages: usize,
    empty_pages: usize,
}

impl<'a, S: BlobStore + ?Sized> Pages<'a, S> {
    /// Begins a listing of `prefix`.
    pub fn new(store: &'a S, prefix: &'a str) -> Self {
        Self { store, prefix, next: None, is_over: false, pages: 0, empty_pages: 0 }
    }

    /// The objects of the next page; `None` after the last one.
    ///
    /// # Errors
    /// Those of [`BlobStore::list_page`]; [`StoreErrorKind::Other`] if the pages do not go on,
    /// [`StoreErrorKind::TooLarge`] for a million pages: half a list is worse than none for a caller who
    /// deletes.
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
                .with_detail("the pages of the listing do not go on from each other"));
        }
        self.is_over = page.next.is_none();
        self.next = page.next;
        Ok(Some(page.objects))
    }
}

/// Kind of a store error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// There is no such object.
    NotFound,
    /// There is such an object already.
    AlreadyExists,
    /// The store refuses these credentials, or they may not do this.
    Unauthorized,
    /// The clocks of this host and of the store differ by more than the store takes.
    WrongClock,
    /// Requests are signed for another region than that of the bucket, or sent to another one.
    WrongRegion,
    /// The store takes the name of a bucket in another place of the address only.
    WrongStyle,
    /// One side speaks TLS and the other one does not.
    WrongScheme,
    /// The bucket or directory is not there.
    BucketMissing,
    /// The store cannot be reached.
    Unreachable,
    /// The store did not answer in time.
    Timeout,
    /// The store is full.
    NoSpace,
    /// The store asks for fewer requests, or is down for the moment.
    Throttled,
    /// The answer was cut short.
    ShortBody,
    /// The checksum of stored or read data does not match.
    Altered,
    /// The object ends before the range that was asked for.
    RangeBeyondEnd,
    /// The object is longer than the caller takes.
    TooLarge,
    /// The key is not one that a store may be asked for.
    BadKey,
    /// The store does not know how to do that.
    Unsupported,
    /// Invalid configuration.
    Misconfigured,
    /// Anything else.
    Other,
}

impl StoreErrorKind {
    /// Returns true if a retry can succeed.
    pub const fn is_retryable(self) -> bool {
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

    const fn text(self) -> &'static str {
        match self {
            Self::NotFound => "there is no such object",
            Self::AlreadyExists => "the object already exists",
            Self::Unauthorized => {
                "access denied: check the credentials, and that they may read, write, list and delete there"
            }
            Self::WrongClock => {
                "the clock of this host and that of the store differ too much: set the one that is wrong"
            }
            Self::WrongRegion => "the bucket is in another region, or at another address",
            Self::WrongStyle => "the store wants the bucket's name in the name of the host",
            Self::WrongScheme => "one side speaks TLS and the other one plain HTTP",
            Self::BucketMissing => "the bucket or directory does not exist: create it, or correct its name",
            Self::Unreachable => "cannot be reached: check the address, the port, TLS, and the network",
            Self::Timeout => "no answer in time",
            Self::NoSpace => "no space left there: free some, or raise its quota",
            Self::Throttled => "it is overloaded or temporarily unavailable",
            Self::ShortBody => "the answer was cut short",
            Self::Altered => "the bytes were altered on their way",
            Self::RangeBeyondEnd => "the object is shorter than expected",
            Self::TooLarge => "the object is longer than expected",
            Self::BadKey => {
                "the key is not valid: letters, digits, '-', '_', '.' in parts separated by '/' are expected"
            }
            Self::Unsupported => "the store does not support this",
            Self::Misconfigured => "the settings of the store are not right",
            Self::Other => "failed",
        }
    }
}

/// A failed operation of a store.
#[derive(Debug)]
pub struct StoreError {
    /// Kind.
    pub kind: StoreErrorKind,
    /// The operation: `PUT`, `GET`, `DELETE`, `LIST`, `MULTIPART`, `OPEN`.
    pub operation: &'static str,
    /// The key or prefix.
    pub key: String,
    /// The store, as it describes itself.
    pub store: String,
    /// More about it, on one line; may be empty.
    pub detail: String,
    /// For how many seconds the store asked to be left alone, if it did.
    pub retry_after_s: Option<u16>,
    /// The store's clock when it refused, in seconds since 1970, if it is known; only of
    /// [`StoreErrorKind::NoSpace`].
    pub store_time_unix_s: Option<NonZero<i64>>,
    /// Source.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error without a cause.
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

    /// The same, with more to say (kept to one line).
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

/// Asks a store for the result of a blocking piece of work.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    key: &str,
    store: &str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::new(StoreErrorKind::Other, operation, key, store)
            .with_detail(format!("the worker thread stopped: {error}"))),
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
