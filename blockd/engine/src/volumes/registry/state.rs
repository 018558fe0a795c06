//! State of a volume, and its view for a reply.

use super::closed::Closed;
use blockd_volume::Volume;
use std::sync::Arc;

/// State of a volume.
#[derive(Clone)]
pub enum EntryState {
    /// Open.
    Up(Arc<Volume>),
    /// Usable, but not open yet: opened on first use.
    Closed(Arc<Closed>),
    /// In creation.
    Creating,
    /// Being filled by a restore.
    Restoring,
    /// Failed to open.
    Failed(String),
    /// In deletion.
    Deleting,
    /// Closed for the end of the process before its first use.
    Stopping,
}

/// View of a volume for a reply.
pub struct EntryView {
    /// State.
    pub state: EntryState,
    /// Clients connected.
    pub connections: u64,
}

impl EntryView {
    /// Returns the open volume, which may have failed.
    pub fn volume(&self) -> Option<&Arc<Volume>> {
        match &self.state {
            EntryState::Up(volume) => Some(volume),
            _ => None,
        }
    }

    /// Returns the cause if the volume failed or the last open did.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            EntryState::Up(volume) => volume.failure(),
            EntryState::Failed(reason) => Some(reason),
            EntryState::Closed(closed) => closed.failure().map(|(_, message)| message),
            EntryState::Creating | EntryState::Restoring | EntryState::Deleting | EntryState::Stopping => {
                None
            }
        }
    }

    /// Returns true if the volume is open, or opened on first use, and has not failed.
    pub fn is_up(&self) -> bool {
        self.is_served() && self.failure().is_none()
    }

    /// Returns true if the volume is open, although it may have failed, or opened on first use.
    pub fn is_served(&self) -> bool {
        matches!(self.state, EntryState::Up(_) | EntryState::Closed(_))
    }
}
