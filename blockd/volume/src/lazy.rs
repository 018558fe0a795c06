//! Where a lazy volume gets what it does not have yet: the seam between a volume and whatever holds the rest
//! of it.
//!
//! A lazy volume's bottom layer is empty at first. A block that no other layer holds is asked for when
//! somebody reads it, or when nothing better is to be done, and stays. What the source gives never changes,
//! so that asking twice does no harm.

use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use parking_lot::{Mutex, RwLock};
use std::{fmt, sync::Arc, time::Duration};

/// How long somebody would mind to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Somebody waits for it.
    Reader,
    /// It will be wanted some day.
    Background,
}

/// Holds the content of a lazy volume at the time when it was made.
///
/// The content never changes, and beyond what a source holds there are zeroes.
pub trait LazySource: Send + Sync {
    /// Fetches whole blocks, and gives them to the reply as they come, from threads that may block. At most 4
    /// MiB at a time.
    ///
    /// It must come to an end by itself: whoever waits has no other bound.
    fn fetch(&self, extent: Extent, urgency: Urgency, reply: FetchReply);

    /// How long whoever reads waits for what it asks for, counted from then on: afterwards it is told that
    /// the source gave no answer. By default it waits until [`fetch`](Self::fetch) comes to its end, which
    /// may be that of others that were before it.
    fn time_limit(&self) -> Option<Duration> {
        None
    }

    /// Calls `wake` after this time, from a thread that may block; for a source that has
    /// [`time_limit`](Self::time_limit). There is at most one such call to come for each volume. By default
    /// it is never called.
    fn wake_after(&self, delay: Duration, wake: Box<dyn FnOnce() + Send>) {
        let _ = (delay, wake);
    }

    /// The blocks of a stretch that may hold data; all others are zeroes. May block.
    ///
    /// # Errors
    /// The source cannot be asked.
    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError>;
}

/// The source of a lazy volume could not give what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    retryable: bool,
}

impl SourceError {
    /// An error with one line that says what failed on what, and whether the same may succeed later.
    pub fn new(message: impl Into<String>, retryable: bool) -> Self {
        Self { message: message.into(), retryable }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}

/// What takes the blocks of a flight as they come.
pub(crate) trait Arrivals: Send + Sync {
    /// Keeps whole blocks, all of which belong to the flight.
    fn keep(&self, start: BlockIndex, data: &[u8]) -> Result<(), FetchFailure>;

    /// The flight has ended; what was not kept of it is zeroes, if it ended well.
    fn ended(&self, result: Result<(), Loss>);
}

/// What a flight ended without.
pub(crate) struct Loss {
    /// Which blocks; all if not said.
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
    /// Held for reading while something is kept: whoever ends the flight waits for that, and nothing is kept
    /// afterwards. The blocks may be somebody else's by then.
    is_over: RwLock<bool>,
    /// What could not be kept.
    failure: Mutex<Option<FetchFailure>>,
}

/// How a source answers. One that is dropped without an answer counts as a failure.
pub struct FetchReply {
    answer: Arc<Answer>,
}

/// Takes blocks that a source was asked for, on any thread, until the answer is complete.
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
    /// Gives whole blocks, which are written to the volume's files at once, so it may block. The same may be
    /// given again. Blocks that are zeroes need not be given.
    ///
    /// # Errors
    /// The blocks were not asked for, the answer is complete already, or they cannot be written: nobody wants
    /// the rest either.
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

    /// Whether something that was given could not be kept, so that it makes no sense to go on.
    pub fn has_failed(&self) -> bool {
        self.answer.failure.lock().is_some()
    }
}

impl FetchReply {
    pub(crate) fn new(extent: Extent, arrivals: Box<dyn Arrivals>) -> Self {
        let (is_over, failure) = (RwLock::new(false), Mutex::new(None));
        Self { answer: Arc::new(Answer { extent, arrivals, is_over, failure }) }
    }

    /// What takes the blocks.
    pub fn sink(&self) -> FetchSink {
        FetchSink { answer: Arc::clone(&self.answer) }
    }

    /// Says that all blocks that are not zeroes were given, or why they were not. Wakes those who wait, so it
    /// may block.
    pub fn end(self, result: Result<(), SourceError>) {
        self.over(result.map_err(|error| FetchFailure::from(error).into()));
    }

    /// Says that all blocks that are not zeroes were given but these, which can never be had: whoever wants
    /// one of them is told why, and all others have what they want. If the error may pass, none of the blocks
    /// counts as given.
    pub fn end_without(self, lost: BlockSet, error: SourceError) {
        let blocks = (!error.is_retryable()).then_some(lost);
        self.over(Err(Loss { blocks, failure: error.into() }));
    }

    /// Gives the blocks, one after the other, or says why there are none.
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

    /// Ends it, if it has not ended.
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

/// Why blocks of a lazy volume could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFailure {
    /// The volume was opened, and nobody has said yet where the rest of it is.
    #[error("its source is not known yet")]
    NoSource,
    /// The volume was closed while somebody waited.
    #[error("the volume was closed")]
    Closed,
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source gave no answer for as long as a reader may have to wait.
    #[error("its source gave no answer in time")]
    Late,
    /// More readers wait for the source than may at once.
    #[error("too many wait for its source")]
    TooMany,
    /// The blocks came and could not be kept.
    #[error(transparent)]
    Disk(std::sync::Arc<crate::VolumeError>),
}

impl FetchFailure {
    /// Whether the same request may succeed later.
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

/// How much of a lazy volume is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Hydration {
    /// How much there is in all, in bytes: the size of the volume when it was made.
    pub total_bytes: u64,
    /// How much of that need not be fetched any more, in bytes; zeroes that are known to be zeroes included.
    pub done_bytes: u64,
    /// How much was fetched since the volume was opened, in bytes.
    pub fetched_bytes: u64,
    /// How much the source has refused for good to whoever fetches in the background, in bytes.
    pub refused_bytes: u64,
    /// Readers that wait for the source now.
    pub waiting: u64,
}

/// Called when what was waited for is there, or cannot be had.
pub type WhenNear = Box<dyn FnOnce(Result<(), crate::VolumeError>) + Send>;
