//! Volumes that are opened on first use.
//!
//! A start reads only `volume.meta` of a volume with nothing to complete. The first caller that needs the
//! open volume opens it; a [check](VolumeEntry::check_closed) opens and closes it before, so that damage is
//! reported without a client. An open volume stays open.

use super::{EntryState, VolumeEntry};
use crate::scrub::task::damaged_bytes;
use blockd_api::ErrorCode;
use blockd_volume::{ClosedVolume, Volume, VolumeError, VolumeErrorKind, VolumeStats};
use parking_lot::Mutex;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Notify,
};

/// Statistics of a volume that require its block sets.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Statistics.
    pub stats: VolumeStats,
    /// Damaged bytes that are not repaired.
    pub damaged_bytes: u64,
    /// Bytes that a complete scrub reads.
    pub scrub_bytes: u64,
}

impl Content {
    /// Returns the statistics of an open volume.
    pub fn of(volume: &Volume) -> Self {
        Self {
            stats: volume.stats(),
            damaged_bytes: damaged_bytes(volume),
            scrub_bytes: volume.scrub_bytes(),
        }
    }
}

/// Volume that is not open.
#[derive(Debug)]
pub struct Closed {
    /// Its metadata.
    pub volume: ClosedVolume,
    /// Set by the check. While the volume is closed, only the deletion of a clone changes it: shared bytes
    /// become allocated ones.
    content: OnceLock<Content>,
    /// Error of the last open, which the next use repeats.
    failure: Option<(ErrorCode, String)>,
}

impl From<ClosedVolume> for Closed {
    fn from(volume: ClosedVolume) -> Self {
        Self { volume, content: OnceLock::new(), failure: None }
    }
}

impl Closed {
    /// Returns the statistics that the check found.
    pub fn content(&self) -> Option<&Content> {
        self.content.get()
    }

    fn with_failure(&self, failure: Option<(ErrorCode, String)>) -> EntryState {
        let (volume, content) = (self.volume.clone(), self.content.clone());
        EntryState::Closed(Arc::new(Self { volume, content, failure }))
    }

    /// Returns the error of the last open.
    pub fn failure(&self) -> Option<(ErrorCode, &str)> {
        self.failure.as_ref().map(|(code, message)| (*code, message.as_str()))
    }
}

/// Serializes the opens and the check of a volume.
#[derive(Debug, Default)]
pub(super) struct Opening {
    running: Mutex<()>,
    /// Callers that need the open volume.
    waiting: AtomicUsize,
    /// Notified after an open that found damage or discarded writes.
    pub(super) found: OnceLock<Arc<Notify>>,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The volume was not closed, or is checked already.
    NotNeeded,
    /// The volume is intact, and closed again.
    Closed,
    /// The volume is intact and stays open: a caller needs it, layers may be mergeable, writes were
    /// discarded, or its close failed.
    Open,
    /// The volume cannot be opened, now or, if it is damaged, at all.
    Failed,
}

impl VolumeEntry {
    fn closed(&self) -> Option<Arc<Closed>> {
        match self.view().state {
            EntryState::Closed(closed) => Some(closed),
            _ => None,
        }
    }

    /// Opens the volume if it is closed. Blocks.
    pub(super) fn open_if_closed(&self) {
        if self.closed().is_none() {
            return;
        }
        in_place(|| {
            self.opening.waiting.fetch_add(1, Ordering::Relaxed);
            let _running = self.opening.running.lock();
            self.opening.waiting.fetch_sub(1, Ordering::Relaxed);
            if let Some(closed) = self.closed() {
                self.publish(&closed, closed.volume.open());
            }
        });
    }

    /// Sets the state after an open. After an error other than damage, as on a full disk, the volume stays
    /// closed, and the next use opens it.
    fn publish(&self, closed: &Closed, opened: Result<Arc<Volume>, VolumeError>) {
        let is_found = opened.as_ref().map_or(true, |volume| volume.discarded_writes().is_some());
        let state = match opened {
            Ok(volume) => EntryState::Up(volume),
            Err(error) => {
                tracing::error!(volume = %self.id, name = %self.name, %error, "opening the volume failed");
                let code = match error.kind() {
                    VolumeErrorKind::Damaged => None,
                    VolumeErrorKind::NoSpace => Some(ErrorCode::NoSpace),
                    _ => Some(ErrorCode::VolumeFailed),
                };
                let message = error.to_string();
                match code {
                    None => EntryState::Failed(message),
                    Some(code) => closed.with_failure(Some((code, message))),
                }
            }
        };
        self.set_state(state);
        if let Some(found) = self.opening.found.get().filter(|_| is_found) {
            found.notify_one();
        }
    }

    /// Opens a closed volume, which reads and verifies all of its metadata, and closes it again unless it is
    /// needed. Blocks.
    pub fn check_closed(&self) -> CheckOutcome {
        self.check_closed_with(Volume::close)
    }

    fn check_closed_with(&self, close: impl FnOnce(&Volume) -> Result<(), VolumeError>) -> CheckOutcome {
        let _running = self.opening.running.lock();
        let Some(closed) = self.closed().filter(|closed| closed.content().is_none()) else {
            return CheckOutcome::NotNeeded;
        };
        let volume = match closed.volume.open() {
            Ok(volume) => volume,
            Err(error) => {
                self.publish(&closed, Err(error));
                return CheckOutcome::Failed;
            }
        };
        let is_needed = self.opening.waiting.load(Ordering::Relaxed) > 0
            || closed.volume.may_merge()
            // The open may have completed a freeze.
            || volume.stats().merge.layers > 0
            || volume.is_lazy()
            || volume.discarded_writes().is_some();
        if is_needed {
            self.publish(&closed, Ok(volume));
            return CheckOutcome::Open;
        }
        let mut content = Content::of(&volume);
        content.stats.tracking_bytes = 0;
        if let Err(error) = close(&volume) {
            // A full disk fails the close, not the reads of an open volume.
            tracing::warn!(volume = %self.id, name = %self.name, %error, "closing the checked volume failed");
            drop(volume);
            let opened = closed.volume.open();
            let outcome = if opened.is_ok() { CheckOutcome::Open } else { CheckOutcome::Failed };
            self.publish(&closed, opened);
            return outcome;
        }
        let is_first = closed.content.set(content).is_ok();
        assert!(is_first, "a volume is checked once");
        if closed.failure().is_some() {
            self.set_state(closed.with_failure(None));
        }
        CheckOutcome::Closed
    }

    /// Returns the statistics of a volume that is open, or checked; a closed one is checked first, so that
    /// none is shown as empty. Blocks.
    pub fn content(&self) -> Option<Content> {
        if self.closed().is_some_and(|closed| closed.content().is_none()) {
            in_place(|| self.check_closed());
        }
        self.known(Content::of, |content| *content)
    }

    /// Returns a statistic of a volume that is open or checked.
    pub fn known<T>(
        &self,
        of_open: impl FnOnce(&Volume) -> T,
        of_closed: impl FnOnce(&Content) -> T,
    ) -> Option<T> {
        match self.view().state {
            EntryState::Up(volume) => Some(of_open(&volume)),
            EntryState::Closed(closed) => closed.content().map(of_closed),
            _ => None,
        }
    }

    /// Closes the volume for the end of the process.
    ///
    /// # Errors
    /// The last flush fails.
    pub fn shut_down(&self) -> Result<(), VolumeError> {
        let _running = self.opening.running.lock();
        match self.view().state {
            EntryState::Up(volume) => volume.close(),
            EntryState::Closed(_) => {
                self.set_state(EntryState::Stopping);
                Ok(())
            }
            EntryState::Creating
            | EntryState::Restoring
            | EntryState::Failed(_)
            | EntryState::Deleting
            | EntryState::Stopping => Ok(()),
        }
    }
}

/// Runs work that blocks, outside of the threads that serve requests.
fn in_place<R>(work: impl FnOnce() -> R) -> R {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests;
