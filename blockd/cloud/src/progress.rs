//! Progress and cancellation of a task.

use crate::CloudError;
use blockd_store::{RequestCounts, Requests, Reservation};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Phase of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Determining the layout.
    Planning,
    /// Transferring blocks.
    Data,
    /// Writing the index.
    Index,
    /// Storing the manifest.
    Commit,
    /// Finished.
    Done,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planning => "planning",
            Self::Data => "data",
            Self::Index => "index",
            Self::Commit => "commit",
            Self::Done => "done",
        })
    }
}

/// Progress of a backup or restore; written by the task, readable at any time.
#[derive(Debug)]
pub struct Progress {
    phase: AtomicU8,
    bytes_total: AtomicU64,
    bytes_processed: AtomicU64,
    in_doubt: AtomicBool,
    requests: Arc<Requests>,
}

/// Values of a [`Progress`] at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProgressSnapshot {
    /// Phase.
    pub phase: Phase,
    /// Total bytes of blocks to transfer. It may shrink during a restore, which learns it on the way.
    pub bytes_total: u64,
    /// Bytes of blocks transferred, including those of earlier runs.
    pub bytes_processed: u64,
    /// Bytes sent to the store, including retries.
    pub bytes_uploaded: u64,
    /// Bytes received from the store.
    pub bytes_downloaded: u64,
    /// Requests made.
    pub requests: RequestCounts,
}

impl Progress {
    /// Creates the progress of a task; its store counts requests in `requests`.
    pub fn new(requests: Arc<Requests>) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Planning as u8),
            bytes_total: AtomicU64::new(0),
            bytes_processed: AtomicU64::new(0),
            in_doubt: AtomicBool::new(false),
            requests,
        }
    }

    /// Returns the current values.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let requests = self.requests.snapshot();
        let phase = match self.phase.load(Relaxed) {
            0 => Phase::Planning,
            1 => Phase::Data,
            2 => Phase::Index,
            3 => Phase::Commit,
            _ => Phase::Done,
        };
        ProgressSnapshot {
            phase,
            bytes_total: self.bytes_total.load(Relaxed),
            bytes_processed: self.bytes_processed.load(Relaxed),
            bytes_uploaded: requests.bytes_up,
            bytes_downloaded: requests.bytes_down,
            requests,
        }
    }

    /// Sets requests aside for the end of the task, which another run would finish with `next_run`.
    ///
    /// # Errors
    /// They would exceed its budget; returns the exceeded limit.
    pub(crate) fn reserve(
        &self,
        last: RequestCounts,
        next_run: RequestCounts,
    ) -> Result<Reservation, String> {
        self.requests.reserve(last, Some(next_run))
    }

    /// Returns the latency of the store, as far as it is known.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.requests.latency()
    }

    pub(crate) fn begin(&self, bytes_total: u64) {
        self.bytes_processed.store(0, Relaxed);
        self.bytes_total.store(bytes_total, Relaxed);
        self.enter(Phase::Data);
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    pub(crate) fn processed(&self, bytes: u64) {
        self.bytes_processed.fetch_add(bytes, Relaxed);
    }

    /// Records that an earlier attempt may have committed the snapshot.
    pub(crate) fn set_in_doubt(&self) {
        self.in_doubt.store(true, Relaxed);
    }

    /// Returns true if the commit may have happened before: another host may be deleting the snapshot, and
    /// delete the manifest again. It must not be used as a base. See `FORMAT.md`, "Deleting".
    pub fn was_in_doubt(&self) -> bool {
        self.in_doubt.load(Relaxed)
    }

    /// Ends the task.
    pub(crate) fn finish(&self) {
        self.bytes_total.store(self.bytes_processed.load(Relaxed), Relaxed);
        self.enter(Phase::Done);
    }

    /// Subtracts bytes that need no transfer from the total.
    pub(crate) fn subtract_from_total(&self, bytes: u64) {
        let total = self.bytes_total.fetch_sub(bytes, Relaxed);
        debug_assert!(total >= bytes, "{bytes} of {total} bytes are subtracted");
    }
}

/// Stop request of a task; all clones are one token.
///
/// A backup that has begun to commit can still be cancelled ([`cancel`](Self::cancel)), as a stop of the
/// daemon does, but not stopped permanently ([`stop_unless_committing`](Self::stop_unless_committing)): the
/// caller could not know whether its snapshot exists.
#[derive(Clone, Default)]
pub struct CancelToken {
    token: CancellationToken,
    state: Arc<AtomicU8>,
    check: Option<CommitCheck>,
}

type CommitCheck = Arc<dyn Fn() -> Result<(), CloudError> + Send + Sync>;

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelToken")
            .field("token", &self.token)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// The task was stopped permanently.
const STOPPED: u8 = 1;
/// The commit has begun.
const COMMITTING: u8 = 2;

impl From<CancellationToken> for CancelToken {
    /// Creates a token that is cancelled with its parent.
    fn from(parent: CancellationToken) -> Self {
        Self { token: parent.child_token(), ..Self::default() }
    }
}

impl CancelToken {
    /// Creates an unused token.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs work until it ends or is cancelled.
    pub(crate) fn guard<T>(
        &self,
        work: impl Future<Output = Result<T, CloudError>>,
    ) -> impl Future<Output = Result<T, CloudError>> {
        // Boxed, because it is large.
        let mut work = Box::pin(work);
        async move {
            tokio::select! {
                biased;
                () = self.cancelled() => Err(CloudError::Cancelled),
                result = &mut work => result,
            }
        }
    }

    /// Cancels the task, permanently.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Cancels, unless the commit has started; returns true if it was cancelled.
    pub fn stop_unless_committing(&self) -> bool {
        let stop = |state| (state & COMMITTING == 0).then_some(state | STOPPED);
        let is_stopped = self.state.fetch_update(SeqCst, SeqCst, stop).is_ok();
        if is_stopped {
            self.token.cancel();
        }
        is_stopped
    }

    /// Returns the token with a check that may block. Its error refuses the commit.
    #[must_use]
    pub fn with_commit_check(
        &self,
        check: impl Fn() -> Result<(), CloudError> + Send + Sync + 'static,
    ) -> Self {
        Self { check: Some(Arc::new(check)), ..self.clone() }
    }

    /// Starts the commit.
    ///
    /// # Errors
    /// [`CloudError::Cancelled`] if it was cancelled before; the error of the check.
    pub(crate) fn begin_commit(&self) -> Result<(), CloudError> {
        self.check.as_ref().map_or(Ok(()), |check| check())?;
        // The check outlives a stop, after which no caller waits to end the commit.
        let begin =
            |state| (state & STOPPED == 0 && !self.token.is_cancelled()).then_some(state | COMMITTING);
        let begun = self.state.fetch_update(SeqCst, SeqCst, begin);
        begun.map(drop).map_err(|_| CloudError::Cancelled)
    }

    /// Ends a commit that failed definitely, so that the task can be stopped again.
    pub fn end_commit(&self) {
        self.state.fetch_and(!COMMITTING, SeqCst);
    }

    /// Returns true once the commit has started: from then on the snapshot may exist.
    pub fn is_committing(&self) -> bool {
        self.state.load(SeqCst) & COMMITTING != 0
    }

    /// Returns true after a cancellation.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the cancellation.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_parent_cancels_the_task() {
        let parent = CancellationToken::new();
        let token = CancelToken::from(parent.clone());
        assert!(!token.is_cancelled());
        parent.cancel();
        assert!(token.is_cancelled() && token.begin_commit().is_err());
    }

    #[test]
    fn commit_in_progress_cannot_be_cancelled() {
        let token = CancelToken::new();
        token.begin_commit().unwrap();
        assert!(!token.stop_unless_committing() && token.is_committing());
        token.end_commit();
        assert!(!token.is_committing() && !token.is_cancelled());
        assert!(token.stop_unless_committing());
        assert!(token.begin_commit().is_err());
    }

    #[test]
    fn stop_during_the_check_prevents_the_commit() {
        for stop in [|token: &CancelToken| assert!(token.stop_unless_committing()), CancelToken::cancel] {
            let token = CancelToken::new();
            let stopped = token.clone();
            let checked = token.with_commit_check(move || {
                stop(&stopped);
                Ok(())
            });
            assert!(matches!(checked.begin_commit(), Err(CloudError::Cancelled)));
            assert!(!token.is_committing());
        }
    }

    #[test]
    fn failed_check_refuses_the_commit() {
        let token = CancelToken::new();
        let checked = token.with_commit_check(|| Err(CloudError::InvalidRequest { what: String::new() }));
        assert!(matches!(checked.begin_commit(), Err(CloudError::InvalidRequest { .. })));
        assert!(!checked.is_committing() && checked.stop_unless_committing() && token.is_cancelled());
    }

    #[test]
    fn phases_survive_the_atomic() {
        let progress = Progress::new(Arc::default());
        for phase in [Phase::Planning, Phase::Data, Phase::Index, Phase::Commit, Phase::Done] {
            progress.enter(phase);
            assert_eq!(progress.snapshot().phase, phase);
        }
    }
}
