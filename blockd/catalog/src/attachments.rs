//! Rows of attachments: volumes that are kernel devices.

use crate::{DbError, UnknownWord, number, parsed, rows, stored};
use blockd_extent::VolumeId;
use rusqlite::{Row, Transaction, params};
use std::str::FromStr;

/// State of an attachment's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachmentState {
    /// In creation: the client has no response yet.
    Attaching,
    /// The kernel has the device, or gets it at the next start.
    Attached,
    /// The device is being disconnected.
    Detaching,
}

impl AttachmentState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }
}

impl FromStr for AttachmentState {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Attaching, Self::Attached, Self::Detaching]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// Attachment of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachmentRow {
    /// The volume.
    pub volume: VolumeId,
    /// State.
    pub state: AttachmentState,
    /// Current, last or requested device.
    pub device: Option<u32>,
    /// No other device is acceptable.
    pub pinned: bool,
    /// The device refuses writes.
    pub read_only: bool,
    /// It is attached again after a boot.
    pub persistent: bool,
    /// Time without a reply before a request is sent again, in seconds.
    pub timeout_s: u64,
    /// Time that requests wait for a connection, in seconds.
    pub dead_timeout_s: u64,
    /// Number of connections.
    pub connections: u32,
    /// Its logical block size.
    pub block_size_bytes: u32,
}

const COLUMNS: &str = "volume, state, device, pinned, read_only, persistent, timeout_s, dead_timeout_s, connections, block_size_bytes";

impl AttachmentRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            volume: parsed(row, 0)?,
            state: parsed(row, 1)?,
            device: row.get(2)?,
            pinned: row.get(3)?,
            read_only: row.get(4)?,
            persistent: row.get(5)?,
            timeout_s: number(row, 6)?,
            dead_timeout_s: number(row, 7)?,
            connections: row.get(8)?,
            block_size_bytes: row.get(9)?,
        })
    }

    /// Returns all attachments.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM attachments ORDER BY volume"), [], Self::read)
    }

    /// Stores the attachment of its volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            &format!("INSERT OR REPLACE INTO attachments ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"),
            params![
                self.volume.to_string(),
                self.state.as_str(),
                self.device,
                self.pinned,
                self.read_only,
                self.persistent,
                stored(self.timeout_s),
                stored(self.dead_timeout_s),
                self.connections,
                self.block_size_bytes
            ],
        )?;
        Ok(())
    }

    /// Removes the attachment of a volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, volume: VolumeId) -> Result<(), DbError> {
        tx.execute("DELETE FROM attachments WHERE volume = ?1", [volume.to_string()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Db, VolumeRow};
    use super::*;

    #[test]
    fn row_round_trips_and_is_deleted_with_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let volume = VolumeRow::new(VolumeId::from_u64(7), "data".parse().unwrap(), 4096);
        let row = AttachmentRow {
            volume: volume.id,
            state: AttachmentState::Attaching,
            device: None,
            pinned: false,
            read_only: true,
            persistent: true,
            timeout_s: 30,
            dead_timeout_s: 600,
            connections: 4,
            block_size_bytes: 4096,
        };
        db.transaction::<_, DbError>(|tx| {
            assert!(row.put(tx).is_err(), "an attachment of no volume");
            volume.insert(tx)?;
            row.put(tx)?;
            assert_eq!(AttachmentRow::all(tx)?, std::slice::from_ref(&row));
            let attached = AttachmentRow { state: AttachmentState::Attached, device: Some(3), ..row.clone() };
            attached.put(tx)?;
            assert_eq!(AttachmentRow::all(tx)?, [attached]);
            VolumeRow::remove(tx, volume.id)?;
            assert_eq!(AttachmentRow::all(tx)?, []);
            Ok(())
        })
        .unwrap();
    }
}
