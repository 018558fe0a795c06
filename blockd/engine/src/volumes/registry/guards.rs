//! Guards of a volume in use: connections and rollbacks.

use super::VolumeEntry;
use std::sync::Arc;

/// Fence of a volume that is being rolled back; dropping it admits clients again.
#[derive(Debug)]
pub struct RollbackMark {
    pub(super) entry: Arc<VolumeEntry>,
}

impl Drop for RollbackMark {
    fn drop(&mut self) {
        self.entry.inner.lock().rolling_back = None;
    }
}

impl RollbackMark {
    /// Sets the message to clients, after the name of the volume.
    pub fn set_reason(&self, why: String) {
        self.entry.inner.lock().rolling_back = Some(why);
    }
}

/// Connection of a client to a volume.
#[derive(Debug)]
pub struct ClientGuard {
    pub(super) entry: Arc<VolumeEntry>,
}

impl ClientGuard {
    /// The volume's entry.
    pub fn entry(&self) -> &Arc<VolumeEntry> {
        &self.entry
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        let mut inner = self.entry.inner.lock();
        inner.connections = inner.connections.saturating_sub(1);
    }
}
