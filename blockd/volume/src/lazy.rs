//! Where a lazy volume gets what it does not have yet: the seam between a volume and whatever holds the rest of it.
//!
//! A lazy volume's bottom layer is empty at first. A block that no other layer holds is asked for when somebody reads it, or
//! when nothing better is to be done, and stays. What the source gives never changes, so that asking twice does no harm.

use blockd_extent::{BlockSet, Extent};
use std::{fmt, time::Duration};

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
    /// Fetches whole blocks, and answers when it has them, from a thread that may block. At most 4 MiB at a time.
    ///
    /// It must come to an end by itself: whoever waits has no other bound.
    fn fetch(&self, extent: Extent, urgency: Urgency, reply: FetchReply);

    /// How long whoever reads waits for what it asks for, counted from then on: afterwards it is told that the source gave no
    /// answer. By default it waits until [`fetch`](Self::fetch) comes to its end, which may be that of others that were
    /// before it.
    fn patience(&self) -> Option<Duration> {
        None
    }

    /// Calls `wake` after this time, from a thread that may block; for a source that has [`patience`](Self::patience). There is
    /// at most one such call to come for each volume. By default it is never called.
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

type Answer = Box<dyn FnOnce(Result<Vec<u8>, SourceError>) + Send>;

/// How a source answers. One that is dropped without an answer counts as a failure.
pub struct FetchReply {
    answer: Option<Answer>,
}

impl fmt::Debug for FetchReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchReply").finish_non_exhaustive()
    }
}

impl FetchReply {
    pub(crate) fn new(answer: impl FnOnce(Result<Vec<u8>, SourceError>) + Send + 'static) -> Self {
        Self { answer: Some(Box::new(answer)) }
    }

    /// Gives the blocks, one after the other, or says why there are none. Writes them to the volume's files and wakes those
    /// who wait, so it may block.
    pub fn complete(mut self, result: Result<Vec<u8>, SourceError>) {
        if let Some(answer) = self.answer.take() {
            answer(result);
        }
    }
}

impl Drop for FetchReply {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Err(SourceError::new("the source of the volume gave no answer", true)));
        }
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
