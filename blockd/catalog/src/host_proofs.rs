//! Rows of proofs that other hosts published.

use crate::{
    DbError, parsed,
    proofs::{depth_of, pattern},
    repository_location::Aliases,
    rows,
};
use blockd_cloud::{CloudSnapshotId, VerifyDepth};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

/// Newest result of another host's verifications of one depth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostProof {
    /// Credential of the location.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Installation of the host.
    pub host: Uuid,
    /// Depth.
    pub depth: VerifyDepth,
    /// Time by the clock of the host, in whole milliseconds: orders the proofs of one host.
    pub proven: Timestamp,
    /// Time from which it counts.
    pub verified: Timestamp,
    /// No damage was found.
    pub sound: bool,
    /// Name of the host; may be empty.
    pub host_name: String,
    /// Version of its program.
    pub version: String,
}

const COLUMNS: &str =
    "credential, cloudsnap, host, depth, proven_unix_ms, verified, sound, host_name, version";

impl HostProof {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let depth: String = row.get(3)?;
        Ok(Self {
            credential: parsed(row, 0)?,
            cloudsnap: parsed(row, 1)?,
            host: parsed(row, 2)?,
            depth: depth_of(&depth),
            proven: Timestamp::from_millisecond(row.get(4)?).unwrap_or(Timestamp::MAX),
            verified: parsed(row, 5)?,
            sound: row.get(6)?,
            host_name: row.get(7)?,
            version: row.get(8)?,
        })
    }

    /// Returns true if this proof ends the damage that an earlier one of the same host found: it is at least
    /// as deep.
    #[must_use]
    pub(crate) fn refutes(&self, damage: &Self) -> bool {
        self.sound && self.host == damage.host && self.proven > damage.proven && self.depth >= damage.depth
    }

    /// Returns the proofs of a credential's cloud snapshots.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM host_proofs WHERE credential = ?1");
        rows(tx, &sql, [credential.to_string()], Self::read)
    }

    /// Returns the proofs from the credentials with the location of a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_location(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let mut proofs = Vec::new();
        for credential in Aliases::all(tx)?.of_location(credential) {
            proofs.extend(Self::all(tx, credential)?);
        }
        Ok(proofs)
    }

    /// Returns the proofs of the cloud snapshots of a volume from all credentials; of all volumes by default.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_volume(tx: &Transaction<'_>, volume: Option<VolumeId>) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM host_proofs WHERE cloudsnap LIKE ?1");
        rows(tx, &sql, [pattern(volume)], Self::read)
    }

    /// Adds the proof, or replaces an earlier one; returns false if a later one is stored.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<bool, DbError> {
        let stored = tx.execute(
            &format!(
                "INSERT INTO host_proofs ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (credential, cloudsnap, host, depth) DO UPDATE SET
                 proven_unix_ms = excluded.proven_unix_ms, verified = excluded.verified, sound = excluded.sound,
                 host_name = excluded.host_name, version = excluded.version
                 WHERE excluded.proven_unix_ms > proven_unix_ms"
            ),
            params![
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.host.to_string(),
                self.depth.to_string(),
                self.proven.as_millisecond(),
                self.verified.to_string(),
                self.sound,
                self.host_name,
                self.version
            ],
        )?;
        Ok(stored > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db, ProofRow};
    use super::*;

    #[test]
    fn earlier_proof_of_a_host_replaces_no_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let credential = Uuid::from_u128(7);
        let proof = |proven_ms, sound| HostProof {
            credential,
            cloudsnap: "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap(),
            host: Uuid::from_u128(1),
            depth: VerifyDepth::Full,
            proven: Timestamp::from_millisecond(proven_ms).unwrap(),
            verified: Timestamp::from_second(5).unwrap(),
            sound,
            host_name: "db2".into(),
            version: "1.2.3".into(),
        };
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(credential, "/backup", Uuid::from_u128(1)).insert(tx)?;
            assert!(proof(20, false).put(tx)?);
            assert!(!proof(10, true).put(tx)?);
            assert!(!proof(20, true).put(tx)?, "a repeated import changes nothing");
            assert_eq!(HostProof::all(tx, credential)?, [proof(20, false)]);
            let other = HostProof { host: Uuid::from_u128(2), ..proof(10, true) };
            let deep = HostProof { depth: VerifyDepth::Deep, ..proof(10, true) };
            assert!(proof(30, true).put(tx)? && other.put(tx)? && deep.put(tx)?);
            let volume = |number| Some(VolumeId::from_u64(number));
            assert_eq!(HostProof::of_volume(tx, volume(59))?.len(), 3);
            assert_eq!(HostProof::of_volume(tx, volume(9))?, []);
            ProofRow::remove(tx, credential, &deep.cloudsnap)?;
            assert_eq!(HostProof::of_location(tx, credential)?, []);
            Ok(())
        })
        .unwrap();
    }
}
