//! State that the scheduler shares with the requests of users.

use crate::schedules::settle;
use blockd_catalog::DbError;
use blockd_extent::SnapshotId;
use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::Transaction;
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

    /// Records the results of ended runs.
    pub(super) fn settle(&self, tx: &Transaction<'_>, now: Timestamp) -> Result<(), DbError> {
        // Read inside the transaction: a snapshot is registered before its run refers to it, so an older
        // copy could take a run that has just started for one of a dead daemon.
        let freezing = self.freezing.lock().clone();
        settle::settle(tx, &freezing, now).map(drop)
    }
}
