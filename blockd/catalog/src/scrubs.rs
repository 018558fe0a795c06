//! Rows of scrubs: how far the local data of each volume was read.

use crate::{DbError, number, parsed, parsed_if_there, rows, stored};
use blockd_extent::{BlockIndex, Epoch, VolumeId};
use jiff::Timestamp;
use rusqlite::{Transaction, params};

/// Progress of the scrub of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubRow {
    /// The volume.
    pub volume: VolumeId,
    /// Last epoch of the layer that is read next.
    pub epoch: Epoch,
    /// First block of the layer that is read next.
    pub block: BlockIndex,
    /// End of the last complete scrub.
    pub completed: Option<Timestamp>,
}

impl ScrubRow {
    /// Returns all rows.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, "SELECT volume, epoch, block, completed FROM scrubs", [], |row| {
            Ok(Self {
                volume: parsed(row, 0)?,
                epoch: Epoch(number(row, 1)?),
                block: BlockIndex(number(row, 2)?),
                completed: parsed_if_there(row, 3)?,
            })
        })
    }

    /// Stores the progress, unless the volume was deleted.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO scrubs (volume, epoch, block, completed)
             SELECT id, ?2, ?3, ?4 FROM volumes WHERE id = ?1",
            params![
                self.volume.to_string(),
                stored(self.epoch.0),
                stored(self.block.0),
                self.completed.map(|at| at.to_string())
            ],
        )?;
        Ok(())
    }
}
