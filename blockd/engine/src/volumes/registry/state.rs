//! State of a volume, and its view for a reply.

use blockd_volume::Volume;
use std::sync::Arc;

/// State of a volume.
#[derive(Clone)]
pub enum EntryState {
    /// Open.
    Up(Arc<Volume>),
    /// In creation.
    Creating,
    /// Being filled by a restore.
    Restoring,
    /// Failed to open.
    Failed(String),
    /// In deletion.
    Deleting,
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

    /// Returns the cause if the volume failed or could not be opened.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            EntryState::Up(volume) => volume.failure(),
            EntryState::Failed(reason) => Some(reason),
            EntryState::Creating | EntryState::Restoring | EntryState::Deleting => None,
        }
    }

    /// Returns true if the volume is open and accepts requests.
    pub fn is_up(&self) -> bool {
        self.volume().is_some() && self.failure().is_none()
    }
}
