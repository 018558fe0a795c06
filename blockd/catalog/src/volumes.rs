//! Rows of volumes.

use crate::{DbError, json, number, parsed, parsed_if_there, rows, stored, to_json};
use blockd_api::{GroupName, Labels, VolumeName};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use std::{fmt, str::FromStr};

/// State of a volume's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeState {
    /// In creation: the client has no response yet.
    Creating,
    /// A restore task writes to it.
    Restoring,
    /// Ready.
    Up,
    /// In deletion: its files are being removed.
    Deleting,
}

impl VolumeState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Restoring => "restoring",
            Self::Up => "up",
            Self::Deleting => "deleting",
        }
    }
}

/// Unknown word in the database.
#[derive(Debug)]
pub struct UnknownWord(pub String);

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown value `{}`", self.0)
    }
}

impl std::error::Error for UnknownWord {}

impl FromStr for VolumeState {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Creating, Self::Restoring, Self::Up, Self::Deleting]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeRow {
    /// Its id.
    pub id: VolumeId,
    /// Its name, which is also that of its export.
    pub name: VolumeName,
    /// Its size.
    pub size_bytes: u64,
    /// Its labels.
    pub labels: Labels,
    /// Creation time.
    pub created: Timestamp,
    /// State.
    pub state: VolumeState,
    /// Read-only for NBD clients.
    pub read_only: bool,
    /// Consistency group.
    pub group: Option<GroupName>,
}

/// Columns of a volume in each database version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Size, in bytes; its files may be larger, not smaller.
    pub size_bytes: u64,
    /// State.
    pub state: VolumeState,
}

const COLUMNS: &str = "id, name, size_bytes, labels, created, state, read_only, group_name";

impl VolumeRow {
    /// Returns the row of a volume that is to be created now, without labels and group.
    pub fn new(id: VolumeId, name: VolumeName, size_bytes: u64) -> Self {
        Self {
            id,
            name,
            size_bytes,
            labels: Labels::default(),
            created: Timestamp::now(),
            state: VolumeState::Creating,
            read_only: false,
            group: None,
        }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            name: parsed(row, 1)?,
            size_bytes: number(row, 2)?,
            labels: json(row, 3)?,
            created: parsed(row, 4)?,
            state: parsed(row, 5)?,
            read_only: row.get(6)?,
            group: parsed_if_there(row, 7)?,
        })
    }

    /// Returns all volumes by name.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM volumes ORDER BY name"), [], Self::read)
    }

    /// Adds the row.
    ///
    /// # Errors
    /// The database fails; a conflict if the name is taken.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT INTO volumes (id, name, size_bytes, labels, created, state, read_only, group_name)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                self.id.to_string(),
                self.name.as_str(),
                stored(self.size_bytes),
                to_json("labels", &self.labels)?,
                self.created.to_string(),
                self.state.as_str(),
                self.read_only,
                self.group.as_ref().map(GroupName::as_str)
            ],
        )?;
        Ok(())
    }

    /// Sets the state of a volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_state(tx: &Transaction<'_>, id: VolumeId, state: VolumeState) -> Result<(), DbError> {
        tx.execute("UPDATE volumes SET state = ?2 WHERE id = ?1", params![id.to_string(), state.as_str()])?;
        Ok(())
    }

    /// Stores a larger size; a smaller one is ignored.
    ///
    /// # Errors
    /// The database fails.
    pub fn grow(tx: &Transaction<'_>, id: VolumeId, size_bytes: u64) -> Result<(), DbError> {
        tx.execute(
            "UPDATE volumes SET size_bytes = max(size_bytes, ?2) WHERE id = ?1",
            params![id.to_string(), stored(size_bytes)],
        )?;
        Ok(())
    }

    /// Makes a volume read-only or writable for NBD clients.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_read_only(tx: &Transaction<'_>, id: VolumeId, read_only: bool) -> Result<(), DbError> {
        tx.execute("UPDATE volumes SET read_only = ?2 WHERE id = ?1", params![id.to_string(), read_only])?;
        Ok(())
    }

    /// Sets the labels and the group of a volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_tags(
        tx: &Transaction<'_>,
        id: VolumeId,
        labels: &Labels,
        group: Option<&GroupName>,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE volumes SET labels = ?2, group_name = ?3 WHERE id = ?1",
            params![id.to_string(), to_json("labels", labels)?, group.map(GroupName::as_str)],
        )?;
        Ok(())
    }

    /// Renames a volume.
    ///
    /// # Errors
    /// The database fails; a conflict if the name is taken.
    pub fn set_name(tx: &Transaction<'_>, id: VolumeId, name: &VolumeName) -> Result<(), DbError> {
        tx.execute("UPDATE volumes SET name = ?2 WHERE id = ?1", params![id.to_string(), name.as_str()])?;
        Ok(())
    }

    /// Removes the row, with those of its snapshots and chains.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, id: VolumeId) -> Result<(), DbError> {
        tx.execute("DELETE FROM volumes WHERE id = ?1", [id.to_string()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;

    #[test]
    fn row_round_trips_and_names_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let row = VolumeRow {
            labels: "a=b=c".parse().unwrap(),
            group: Some("shop".parse().unwrap()),
            ..VolumeRow::new(VolumeId::from_u64(u64::MAX), "data".parse().unwrap(), 64 << 40)
        };
        db.transaction::<_, DbError>(|tx| row.insert(tx)).unwrap();
        let again = VolumeRow { id: VolumeId::from_u64(7), ..row.clone() };
        assert!(db.transaction::<_, DbError>(|tx| again.insert(tx)).unwrap_err().is_conflict());
        db.transaction::<_, DbError>(|tx| {
            VolumeRow::set_state(tx, row.id, VolumeState::Up)?;
            VolumeRow::set_read_only(tx, row.id, true)?;
            let expected = VolumeRow { state: VolumeState::Up, read_only: true, ..row.clone() };
            assert_eq!(VolumeRow::all(tx)?, vec![expected.clone()]);
            let labels = "x=y".parse().unwrap();
            VolumeRow::set_tags(tx, row.id, &labels, None)?;
            assert_eq!(VolumeRow::all(tx)?, vec![VolumeRow { labels, group: None, ..expected }]);
            VolumeRow::remove(tx, row.id)?;
            assert_eq!(VolumeRow::all(tx)?, vec![]);
            Ok(())
        })
        .unwrap();
    }
}
