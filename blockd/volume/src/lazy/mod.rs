//! Source of a lazy volume: the interface between a volume and its backing snapshot.
//!
//! The bottom layer of a lazy volume is initially empty. A block that no other layer holds is fetched on read
//! or by hydration and stored there. The content of the source never changes, so fetching twice is harmless.

pub(crate) mod base;
mod fetch_budget;
pub(crate) mod hydrate;
mod hydration_order;
mod in_flight;
mod prefetch_queue;
mod waiters;

use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use parking_lot::{Mutex, RwLock};
use std::{fmt, sync::Arc, time::Duration};

/// Urgency of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// A reader waits.
    Reader,
    /// Nothing waits for it: hydration, readahead, or a hint of the client.
    Background,
}

/// Backing content of a lazy volume.
///
/// The content never changes; beyond its end it is zeroes.
pub trait LazySource: Send + Sync {
    /// Fetches an extent of at most 8 MiB and passes blocks to the reply as they arrive, from threads
    /// that may block.
    ///
    /// Each fetch must complete its reply in limited time: without a [`time_limit`](Self::time_limit),
    /// readers have no other timeout.
    fn fetch(&self, extent: Extent, urgency: Urgency, reply: FetchReply);

    /// Returns the timeout of a read, counted from its request. By default a read waits until its
    /// [`fetch`](Self::fetch) completes, including the time in the queue.
    fn time_limit(&self) -> Option<Duration> {
        None
    }

    /// Calls `wake` after this delay, from a thread that may block; for sources with a
    /// [`time_limit`](Self::time_limit). At most one call is pending per volume. The default never calls it.
    fn wake_after(&self, delay: Duration, wake: Box<dyn FnOnce() + Send>) {
        let _ = (delay, wake);
    }

    /// Returns the blocks of an extent that may hold data; all others are zeroes. May block.
    ///
    /// # Errors
    /// The source is unreachable.
    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError>;
}

/// Failure of the source of a lazy volume.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    retryable: bool,
}

impl SourceError {
    /// Creates an error from a message of one line, with operation and object.
    pub fn new(message: impl Into<String>, retryable: bool) -> Self {
        Self { message: message.into(), retryable }
    }

    /// Returns true if a retry can succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

/// Receiver of the blocks of a fetch.
pub(crate) trait FetchReceiver: Send + Sync {
    /// Stores whole blocks of the fetch.
    fn store(&self, start: BlockIndex, data: &[u8]) -> Result<(), FetchFailure>;

    /// Completes the fetch. After success, blocks that were not stored are zeroes.
    fn finish(&self, result: Result<(), Loss>);
}

/// Failure of a fetch, in part or completely.
pub(crate) struct Loss {
    /// Failed blocks; `None` for all.
    pub blocks: Option<BlockSet>,
    pub failure: FetchFailure,
}

impl From<FetchFailure> for Loss {
    fn from(failure: FetchFailure) -> Self {
        Self { blocks: None, failure }
    }
}

/// State of a reply, shared by its handles.
struct ReplyState {
    extent: Extent,
    receiver: Box<dyn FetchReceiver>,
    /// Read-locked while blocks are stored, so that completion waits for it. Nothing is stored after
    /// completion, because another fetch may then have requested the blocks.
    is_complete: RwLock<bool>,
    /// First failure to store blocks.
    failure: Mutex<Option<FetchFailure>>,
}

/// Reply of a source to a fetch. Dropping it incomplete fails the fetch.
pub struct FetchReply {
    state: Arc<ReplyState>,
}

/// Sink for the blocks of a fetch, usable from any thread until the reply is complete.
#[derive(Clone)]
pub struct FetchSink {
    state: Arc<ReplyState>,
}

impl fmt::Debug for FetchReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchReply").field("extent", &self.state.extent).finish_non_exhaustive()
    }
}

impl fmt::Debug for FetchSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchSink").field("extent", &self.state.extent).finish_non_exhaustive()
    }
}

impl FetchSink {
    /// Writes whole blocks to the volume's files; may block. Blocks may be passed repeatedly; zero
    /// blocks may be omitted.
    ///
    /// # Errors
    /// The blocks were not requested, the reply is complete, or the write fails. The source should stop then.
    pub fn put(&self, start: BlockIndex, data: &[u8]) -> Result<(), SourceError> {
        let ReplyState { extent, receiver, is_complete, failure } = &*self.state;
        let blocks = data.len() as u64 / BLOCK_SIZE_BYTES;
        let is_requested = start >= extent.start
            && start.0.checked_add(blocks).is_some_and(|end| end <= extent.end().0)
            && (data.len() as u64).is_multiple_of(BLOCK_SIZE_BYTES);
        if !is_requested {
            let message =
                format!("fetch failed on {extent:?}: source returned {} bytes at block {start}", data.len());
            let error = SourceError::new(message, false);
            failure.lock().get_or_insert(error.clone().into());
            return Err(error);
        }
        let is_complete = is_complete.read();
        if *is_complete {
            return Err(SourceError::new(format!("fetch failed on {extent:?}: reply is complete"), false));
        }
        receiver.store(start, data).map_err(|error| {
            let message = error.to_string();
            failure.lock().get_or_insert(error);
            SourceError::new(message, false)
        })
    }

    /// Returns true if blocks could not be stored; the source should stop then.
    pub fn has_failed(&self) -> bool {
        self.state.failure.lock().is_some()
    }
}

impl FetchReply {
    pub(crate) fn new(extent: Extent, receiver: Box<dyn FetchReceiver>) -> Self {
        assert!(!extent.is_empty(), "a fetch requests blocks");
        let (is_complete, failure) = (RwLock::new(false), Mutex::new(None));
        Self { state: Arc::new(ReplyState { extent, receiver, is_complete, failure }) }
    }

    /// Returns the sink of the blocks.
    pub fn sink(&self) -> FetchSink {
        FetchSink { state: Arc::clone(&self.state) }
    }

    /// Completes the reply with success, after all nonzero blocks were passed, or with an error. Runs the
    /// callbacks of waiters, so it may block.
    pub fn end(self, result: Result<(), SourceError>) {
        self.finish(result.map_err(|error| FetchFailure::from(error).into()));
    }

    /// Completes the reply with an error for some blocks: only their waiters fail. A retryable error fails
    /// the whole fetch.
    pub fn end_incomplete(self, lost: BlockSet, error: SourceError) {
        let blocks = (!error.is_retryable()).then_some(lost);
        self.finish(Err(Loss { blocks, failure: error.into() }));
    }

    /// Passes all blocks and completes the reply, or fails it.
    pub fn complete(self, result: Result<Vec<u8>, SourceError>) {
        let stored = result.and_then(|data| {
            let wanted = self.state.extent.len_bytes();
            if data.len() as u64 != wanted {
                let message =
                    format!("fetch failed on {:?}: source returned {} bytes", self.state.extent, data.len());
                return Err(SourceError::new(message, false));
            }
            self.sink().put(self.state.extent.start, &data)
        });
        self.end(stored);
    }

    /// Completes the reply unless it is complete.
    fn finish(&self, result: Result<(), Loss>) {
        if std::mem::replace(&mut *self.state.is_complete.write(), true) {
            return;
        }
        let failure = self.state.failure.lock().take();
        let result = failure.map_or(result, |failure| Err(failure.into()));
        self.state.receiver.finish(result);
    }
}

impl Drop for FetchReply {
    fn drop(&mut self) {
        let failure = FetchFailure::from(SourceError::new("fetch failed: source dropped the request", true));
        self.finish(Err(failure.into()));
    }
}

/// Failure to fetch blocks of a lazy volume.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFailure {
    /// The volume has no source yet.
    #[error("volume has no source yet")]
    NoSource,
    /// The volume was closed.
    #[error("volume is closed")]
    Closed,
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source did not reply within the reader's timeout.
    #[error("timeout")]
    TimedOut,
    /// Too many readers wait for the source.
    #[error("too many readers wait for the source")]
    TooManyWaiters,
    /// Fetched blocks could not be written.
    #[error(transparent)]
    Disk(std::sync::Arc<crate::VolumeError>),
}

impl FetchFailure {
    /// Returns true if a retry can succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Source(error) => error.is_retryable(),
            Self::NoSource | Self::TimedOut | Self::TooManyWaiters => true,
            Self::Closed => false,
            Self::Disk(error) => error.is_retryable(),
        }
    }
}

/// Hydration state of a lazy volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Hydration {
    /// Total bytes: the size of the volume at its creation.
    pub total_bytes: u64,
    /// Present bytes, including known zeroes.
    pub done_bytes: u64,
    /// Bytes fetched since the volume was opened.
    pub fetched_bytes: u64,
    /// Missing bytes that the source refused permanently; hydration skips them.
    pub refused_bytes: u64,
    /// Readers that wait for the source.
    pub waiting: u64,
}

/// Called when the awaited blocks are present, or failed.
pub type OnFetched = Box<dyn FnOnce(Result<(), crate::VolumeError>) + Send>;
