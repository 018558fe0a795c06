//! Rows of proofs: what the last verification of each cloud snapshot found.

use super::{DbError, parsed, repository_place::RepositoryPlace};
use blockd_cloud::{CloudsnapId, VerifyDepth};
use blockd_extent::BlockSet;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params, types::Type};
use uuid::Uuid;

/// What the last verification of a cloud snapshot found.
#[derive(Clone, PartialEq, Debug)]
pub struct Proof {
    /// The credential under which it was looked at.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudsnapId,
    /// When.
    pub verified: Timestamp,
    /// How thoroughly.
    pub depth: VerifyDepth,
    /// Whether nothing of it is damaged.
    pub sound: bool,
    /// The blocks of it that cannot be read; none if it is sound, or if nothing of it can be read.
    pub damaged: BlockSet,
    /// Of its content, from the last time that it was brought back whole.
    pub digest: Option<[u8; 32]>,
}

const COLUMNS: &str = "credential, cloudsnap, verified, depth, sound, damaged, digest";

fn depth_of(text: &str) -> VerifyDepth {
    // The table takes no other words.
    [VerifyDepth::Quick, VerifyDepth::Deep]
        .into_iter()
        .find(|depth| depth.to_string() == text)
        .unwrap_or(VerifyDepth::Frames)
}

impl Proof {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (depth, damaged): (String, Option<Vec<u8>>) = (row.get(3)?, row.get(5)?);
        let digest: Option<Vec<u8>> = row.get(6)?;
        let damaged = damaged.map(|bytes| BlockSet::from_bytes(&bytes)).transpose();
        Ok(Self {
            credential: parsed(row, 0)?,
            cloudsnap: parsed(row, 1)?,
            verified: parsed(row, 2)?,
            depth: depth_of(&depth),
            sound: row.get(4)?,
            damaged: damaged
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(5, Type::Blob, Box::new(error)))?
                .unwrap_or_default(),
            digest: digest.and_then(|bytes| bytes.try_into().ok()),
        })
    }

    /// The proofs of a credential's cloud snapshots.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM proofs WHERE credential = ?1 ORDER BY verified");
        let mut statement = tx.prepare(&sql)?;
        let rows = statement.query_map([credential.to_string()], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// The proofs of the cloud snapshots in a repository, made under whichever of its credentials, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_repository(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let mut proofs = Vec::new();
        for same_place in RepositoryPlace::credentials(tx, credential)? {
            proofs.extend(Self::all(tx, same_place)?);
        }
        proofs.sort_by_key(|proof| proof.verified);
        Ok(proofs)
    }

    /// Adds or replaces the proof. A digest that is known stays known.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let damaged = (!self.damaged.is_empty()).then(|| self.damaged.to_bytes());
        tx.execute(
            "INSERT INTO proofs (credential, cloudsnap, verified, depth, sound, damaged, digest)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (credential, cloudsnap) DO UPDATE SET verified = excluded.verified, depth = excluded.depth,
             sound = excluded.sound, damaged = excluded.damaged, digest = coalesce(digest, excluded.digest)",
            params![
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.verified.to_string(),
                self.depth.to_string(),
                self.sound,
                damaged,
                self.digest
            ],
        )?;
        Ok(())
    }

    /// Forgets the proof of a cloud snapshot that is gone.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, cloudsnap: &CloudsnapId) -> Result<(), DbError> {
        tx.execute("DELETE FROM proofs WHERE cloudsnap = ?1", [cloudsnap.to_string()])?;
        Ok(())
    }
}
