//! Published results of this host, to compare with the proofs that a location lists.

use crate::{DbError, parsed, proofs::depth_of, rows};
use blockd_cloud::{CloudSnapshotId, ProofId, ProofKind};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Row, Transaction};
use uuid::Uuid;

/// Result of this host that was published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishedProof {
    credential: Uuid,
    cloudsnap: CloudSnapshotId,
    kind: ProofKind,
    proven: Timestamp,
    /// Row of a drill.
    drill: Option<Uuid>,
}

impl PublishedProof {
    /// Returns the published verifications and drills of this host that read this location.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, credential: Uuid, location: Uuid) -> Result<Vec<Self>, DbError> {
        let here = [credential.to_string(), location.to_string()];
        let read = |row: &Row<'_>, kind, drill| {
            let (cloudsnap, proven) = (parsed(row, 0)?, parsed(row, 1)?);
            Ok(Self { credential, cloudsnap, kind, proven, drill })
        };
        let sql = "SELECT cloudsnap, verified, depth FROM proofs
                   WHERE credential = ?1 AND location = ?2 AND published";
        let of_depth = |row: &Row<'_>| read(row, depth_of(&row.get::<_, String>(2)?).into(), None);
        let mut found = rows(tx, sql, here.clone(), of_depth)?;
        let sql = "SELECT cloudsnap, ended, id FROM drills
                   WHERE credential = ?1 AND location = ?2 AND published AND host IS NULL";
        let of_drill = |row: &Row<'_>| read(row, ProofKind::Drill, Some(parsed(row, 2)?));
        found.extend(rows(tx, sql, here, of_drill)?);
        Ok(found)
    }

    /// Returns the id of the proof.
    pub fn id(&self, host: Uuid) -> ProofId {
        let proven_unix_ms = u64::try_from(self.proven.as_millisecond()).unwrap_or(0);
        ProofId { cloudsnap: self.cloudsnap, proven_unix_ms, kind: self.kind, host }
    }

    /// Lets the result be published again, unless a later one replaced it. The proof of a damaged one gets
    /// another key, a millisecond later: the store may refuse to overwrite the object.
    ///
    /// # Errors
    /// The database fails.
    pub fn withdraw(&self, tx: &Transaction<'_>, is_damaged: bool) -> Result<(), DbError> {
        let shift = SignedDuration::from_millis(is_damaged.into());
        let proven = self.proven.saturating_add(shift).unwrap_or(self.proven).to_string();
        match self.drill {
            Some(id) => tx.execute(
                "UPDATE drills SET published = 0, ended = ?2 WHERE id = ?1",
                [id.to_string(), proven],
            )?,
            None => tx.execute(
                "UPDATE proofs SET published = 0, verified = ?4
                 WHERE credential = ?1 AND cloudsnap = ?2 AND verified = ?3",
                [self.credential.to_string(), self.cloudsnap.to_string(), self.proven.to_string(), proven],
            )?,
        };
        Ok(())
    }
}
