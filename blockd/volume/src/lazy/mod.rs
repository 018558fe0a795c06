//! Source of a lazy volume: the interface between a volume and its backing snapshot.
//!
//! The bottom layer of a lazy volume is empty at first. A block that no other layer holds is fetched when it
//! is read, or by hydration, and stays. The content of the source never changes, so fetching twice is
//! harmless.

pub(crate) mod base;
mod fetch_budget;
pub(crate) mod hydrate;
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
    /// Background hydration.
    Background,
}

/// Original content of a lazy volume.
///
/// The content never changes; beyond its end there are zeroes.
pub trait LazySource: Send + Sync {
    /// Fetches whole blocks, at most 4 MiB, and passes them to the reply as they arrive, from threads that
    /// may block.
    ///
    /// It must end by itself: waiters have no other bound.
    fn fetch(&self, extent: Extent, urgency: Urgency, reply: FetchReply);

    /// Returns the timeout of a reader, counted from its request; afterwards the read fails. By default it
    /// waits until [`fetch`](Self::fetch) ends, also behind earlier fetches.
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
    /// Creates an error from one line with operation and object, and whether a retry can help.
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
pub(crate) trait Arrivals: Send + Sync {
    /// Stores whole blocks, all within the fetch.
    fn keep(&self, start: BlockIndex, data: &[u8]) -> Result<(), FetchFailure>;

    /// Ends the fetch; after success, blocks that were not stored are zeroes.
    fn ended(&self, result: Result<(), Loss>);
}

/// Blocks that a fetch lost.
pub(crate) struct Loss {
    /// Lost blocks; `None` for all.
    pub blocks: Option<BlockSet>,
    pub failure: FetchFailure,
}

impl From<FetchFailure> for Loss {
    fn from(failure: FetchFailure) -> Self {
        Self { blocks: None, failure }
    }
}

struct Answer {
    extent: Extent,
    arrivals: Box<dyn Arrivals>,
    /// Read-locked while blocks are stored: the end of the fetch waits for that, and nothing is stored
    /// afterwards, when another fetch may own the blocks.
    is_over: RwLock<bool>,
    /// First failure to store blocks.
    failure: Mutex<Option<FetchFailure>>,
}

/// Reply of a source. Dropping it without a result is a failure.
pub struct FetchReply {
    answer: Arc<Answer>,
}

/// Accepts requested blocks on any thread until the reply is complete.
#[derive(Clone)]
pub struct FetchSink {
    answer: Arc<Answer>,
}

impl fmt::Debug for FetchReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchReply").field("extent", &self.answer.extent).finish_non_exhaustive()
    }
}

impl fmt::Debug for FetchSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchSink").field("extent", &self.answer.extent).finish_non_exhaustive()
    }
}

impl FetchSink {
    /// Passes whole blocks, which are written to the volume's files at once, so it may block. Blocks may be
    /// passed repeatedly; zero blocks may be omitted.
    ///
    /// # Errors
    /// The blocks were not requested, the reply is complete, or they cannot be written: the source should
    /// stop.
    pub fn put(&self, start: BlockIndex, data: &[u8]) -> Result<(), SourceError> {
        let Answer { extent, arrivals, is_over, failure } = &*self.answer;
        let blocks = data.len() as u64 / BLOCK_SIZE_BYTES;
        let is_asked_for = start >= extent.start
            && start.0.checked_add(blocks).is_some_and(|end| end <= extent.end().0)
            && (data.len() as u64).is_multiple_of(BLOCK_SIZE_BYTES);
        if !is_asked_for {
            let message =
                format!("the source of the volume gave {} bytes at block {start} for {extent:?}", data.len());
            let error = SourceError::new(message, false);
            failure.lock().get_or_insert(error.clone().into());
            return Err(error);
        }
        let is_over = is_over.read();
        if *is_over {
            return Err(SourceError::new("the answer is complete", false));
        }
        arrivals.keep(start, data).map_err(|error| {
            let message = error.to_string();
            failure.lock().get_or_insert(error);
            SourceError::new(message, false)
        })
    }

    /// Returns true if blocks could not be stored, so the source should stop.
    pub fn has_failed(&self) -> bool {
        self.answer.failure.lock().is_some()
    }
}

impl FetchReply {
    pub(crate) fn new(extent: Extent, arrivals: Box<dyn Arrivals>) -> Self {
        assert!(!extent.is_empty(), "a fetch requests blocks");
        let (is_over, failure) = (RwLock::new(false), Mutex::new(None));
        Self { answer: Arc::new(Answer { extent, arrivals, is_over, failure }) }
    }

    /// Returns the sink of the blocks.
    pub fn sink(&self) -> FetchSink {
        FetchSink { answer: Arc::clone(&self.answer) }
    }

    /// Completes the reply: all nonzero blocks were passed, or the error. Calls waiters, so it may block.
    pub fn end(self, result: Result<(), SourceError>) {
        self.over(result.map_err(|error| FetchFailure::from(error).into()));
    }

    /// Completes the reply without some blocks: their waiters get the error, all others succeed. With a
    /// retryable error none of the blocks counts as passed.
    pub fn end_without(self, lost: BlockSet, error: SourceError) {
        let blocks = (!error.is_retryable()).then_some(lost);
        self.over(Err(Loss { blocks, failure: error.into() }));
    }

    /// Passes all blocks and completes the reply, or fails it.
    pub fn complete(self, result: Result<Vec<u8>, SourceError>) {
        let kept = result.and_then(|data| {
            let wanted = self.answer.extent.len_bytes();
            if data.len() as u64 != wanted {
                let message = format!(
                    "the source of the volume gave {} bytes for {:?}",
                    data.len(),
                    self.answer.extent
                );
                return Err(SourceError::new(message, false));
            }
            self.sink().put(self.answer.extent.start, &data)
        });
        self.end(kept);
    }

    /// Completes the reply unless it is complete.
    fn over(&self, result: Result<(), Loss>) {
        if std::mem::replace(&mut *self.answer.is_over.write(), true) {
            return;
        }
        let failure = self.answer.failure.lock().take();
        let result = failure.map_or(result, |failure| Err(failure.into()));
        self.answer.arrivals.ended(result);
    }
}

impl Drop for FetchReply {
    fn drop(&mut self) {
        let failure = FetchFailure::from(SourceError::new("the source of the volume gave no answer", true));
        self.over(Err(failure.into()));
    }
}

/// Failure to fetch blocks of a lazy volume.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFailure {
    /// The volume has no source yet.
    #[error("its source is not known yet")]
    NoSource,
    /// The volume was closed during the wait.
    #[error("the volume was closed")]
    Closed,
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source did not reply within the reader's timeout.
    #[error("its source gave no answer in time")]
    Late,
    /// Too many readers wait for the source.
    #[error("too many wait for its source")]
    TooMany,
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
            Self::NoSource | Self::Late | Self::TooMany => true,
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
    /// Bytes present, including known zeroes.
    pub done_bytes: u64,
    /// Bytes fetched since the volume was opened.
    pub fetched_bytes: u64,
    /// Bytes that the source refused permanently to hydration.
    pub refused_bytes: u64,
    /// Readers that wait for the source.
    pub waiting: u64,
}

/// Called when the awaited blocks are present, or failed.
pub type OnFetched = Box<dyn FnOnce(Result<(), crate::VolumeError>) + Send>;
