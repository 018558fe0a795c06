//! Wakes the scheduler.

use blockd_extent::SnapshotId;
use parking_lot::Mutex;
use std::collections::HashSet;
use tokio::sync::Notify;

/// Wakes the scheduler.
#[derive(Debug, Default)]
pub struct Scheduler {
    pub(crate) wake: Notify,
    /// Wakes the deletions.
    pub(crate) judge: Notify,
    /// The local snapshots that are being taken, of runs without a backup.
    pub(crate) freezing: Mutex<HashSet<SnapshotId>>,
}

impl Scheduler {
    /// Wakes the scheduler after a change of a schedule or the end of a task.
    pub fn wake(&self) {
        self.wake.notify_one();
        self.judge.notify_one();
    }
}
