//! Volumes that are opened on first use.
//!
//! A start reads only `volume.meta` of a volume with nothing to complete. The first caller that needs the
//! open volume opens it; a [check](VolumeEntry::check_closed) opens and closes it before, so that damage is
//! reported without a client. An open volume stays open.

use super::{EntryState, VolumeEntry};
use crate::scrub::task::damaged_bytes;
use blockd_volume::{ClosedVolume, Volume, VolumeError, VolumeStats};
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
}

impl From<ClosedVolume> for Closed {
    fn from(volume: ClosedVolume) -> Self {
        Self { volume, content: OnceLock::new() }
    }
}

impl Closed {
    /// Returns the statistics that the check found.
    pub fn content(&self) -> Option<&Content> {
        self.content.get()
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
    /// The volume is intact and stays open: a caller needs it, layers may be mergeable, or writes were
    /// discarded.
    Open,
    /// The volume cannot be used.
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
                let opened = closed.volume.open();
                self.publish(opened);
            }
        });
    }

    fn publish(&self, opened: Result<Arc<Volume>, VolumeError>) {
        let is_found = opened.as_ref().map_or(true, |volume| volume.discarded_writes().is_some());
        let state = match opened {
            Ok(volume) => EntryState::Up(volume),
            Err(error) => {
                tracing::error!(volume = %self.id, name = %self.name, %error, "opening the volume failed");
                EntryState::Failed(error.to_string())
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
        let _running = self.opening.running.lock();
        let Some(closed) = self.closed().filter(|closed| closed.content().is_none()) else {
            return CheckOutcome::NotNeeded;
        };
        let volume = match closed.volume.open() {
            Ok(volume) => volume,
            Err(error) => {
                self.publish(Err(error));
                return CheckOutcome::Failed;
            }
        };
        let is_needed = self.opening.waiting.load(Ordering::Relaxed) > 0
            || closed.volume.may_merge()
            || volume.is_lazy()
            || volume.discarded_writes().is_some();
        if is_needed {
            self.publish(Ok(volume));
            return CheckOutcome::Open;
        }
        let mut content = Content::of(&volume);
        content.stats.tracking_bytes = 0;
        if let Err(error) = volume.close() {
            self.publish(Err(error));
            return CheckOutcome::Failed;
        }
        let is_first = closed.content.set(content).is_ok();
        assert!(is_first, "a volume is checked once");
        CheckOutcome::Closed
    }

    /// Returns the statistics of a volume that is open, or checked; a closed one is checked first, so that
    /// none is shown as empty. Blocks.
    pub fn content(&self) -> Option<Content> {
        in_place(|| self.check_closed());
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
                self.set_state(EntryState::Failed("the daemon is stopping".to_owned()));
                Ok(())
            }
            EntryState::Creating | EntryState::Restoring | EntryState::Failed(_) | EntryState::Deleting => {
                Ok(())
            }
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
