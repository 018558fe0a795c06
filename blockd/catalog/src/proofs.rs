//! Rows of proofs: results of the last verification of each cloud snapshot.

use crate::{DbError, parsed, repository_location::Aliases, rows};
use blockd_cloud::{CloudSnapshotId, VerifyDepth};
use blockd_extent::{BlockSet, VolumeId};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params, types::Type};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Result of the last verification of a cloud snapshot.
#[derive(Clone, PartialEq, Debug)]
pub struct Proof {
    /// Credential of the verification.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Time.
    pub verified: Timestamp,
    /// Depth.
    pub depth: VerifyDepth,
    /// No damage was found.
    pub sound: bool,
    /// Unreadable blocks; empty if it is sound or completely unreadable.
    pub damaged: BlockSet,
    /// Digest of its content from the last complete restore.
    pub digest: Option<[u8; 32]>,
}

const COLUMNS: &str = "credential, cloudsnap, verified, depth, sound, damaged, digest";

fn depth_of(text: &str) -> VerifyDepth {
    // The table accepts no other words.
    [VerifyDepth::Quick, VerifyDepth::Deep]
        .into_iter()
        .find(|depth| depth.to_string() == text)
        .unwrap_or(VerifyDepth::Full)
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

    /// Returns true if the verification read the content and found no damage. A quick one only shows that the
    /// objects exist.
    #[must_use]
    pub fn covers_content(&self) -> bool {
        self.sound && self.depth != VerifyDepth::Quick
    }

    /// Returns the proofs of a credential's cloud snapshots.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM proofs WHERE credential = ?1 ORDER BY verified");
        rows(tx, &sql, [credential.to_string()], Self::read)
    }

    /// Returns the proofs of a repository from all its credentials, oldest first. A location that matches by
    /// key ids only may be a copy of the repository: damage found there counts, soundness does not.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_repository(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let mut proofs = Self::all(tx, credential)?;
        for alias in Aliases::all(tx)?.of(credential) {
            let others = Self::all(tx, alias.credential)?.into_iter();
            proofs.extend(others.filter(|proof| alias.is_same_location || !proof.sound));
        }
        proofs.sort_by_key(|proof| proof.verified);
        Ok(proofs)
    }

    /// Returns the proofs from the credentials with the location of a credential, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_location(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<Self>, DbError> {
        let mut proofs = Self::all(tx, credential)?;
        for alias in Aliases::all(tx)?.of(credential).iter().filter(|alias| alias.is_same_location) {
            proofs.extend(Self::all(tx, alias.credential)?);
        }
        proofs.sort_by_key(|proof| proof.verified);
        Ok(proofs)
    }

    /// Returns the times at which damage was found in locations that match by key ids only: copies of the
    /// repository, or other spellings of its location.
    ///
    /// # Errors
    /// The database fails.
    pub fn damage_in_copies(
        tx: &Transaction<'_>,
        credential: Uuid,
    ) -> Result<BTreeMap<CloudSnapshotId, Timestamp>, DbError> {
        let mut found = BTreeMap::new();
        for alias in Aliases::all(tx)?.of(credential).iter().filter(|alias| !alias.is_same_location) {
            for proof in Self::all(tx, alias.credential)?.into_iter().filter(|proof| !proof.sound) {
                let last = found.entry(proof.cloudsnap).or_insert(proof.verified);
                *last = proof.verified.max(*last);
            }
        }
        Ok(found)
    }

    /// Returns the times of the last verifications that read a cloud snapshot of a volume and found it sound,
    /// by credential and volume; of all volumes by default.
    ///
    /// # Errors
    /// The database fails.
    pub fn last_sound(
        tx: &Transaction<'_>,
        volume: Option<VolumeId>,
    ) -> Result<BTreeMap<(Uuid, VolumeId), Timestamp>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM proofs WHERE sound AND cloudsnap LIKE ?1");
        let pattern = volume.map_or_else(|| "%".to_owned(), |volume| format!("%/{volume}-%"));
        let mut found = BTreeMap::new();
        for proof in rows(tx, &sql, [pattern], Self::read)?.into_iter().filter(Self::covers_content) {
            let last = found.entry((proof.credential, proof.cloudsnap.volume)).or_insert(proof.verified);
            *last = proof.verified.max(*last);
        }
        Ok(found)
    }

    /// Adds or replaces the proof, and keeps a known digest.
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

    /// Removes the proofs of a cloud snapshot that was deleted from a credential's location. Copies of the
    /// repository keep theirs.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<(), DbError> {
        let sql = "DELETE FROM proofs WHERE cloudsnap = ?1 AND credential = ?2";
        let aliases = Aliases::all(tx)?;
        let same = aliases.of(credential).iter().filter(|alias| alias.is_same_location);
        for credential in same.map(|alias| alias.credential).chain([credential]) {
            tx.execute(sql, [cloudsnap.to_string(), credential.to_string()])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db};
    use super::*;

    #[test]
    fn deletion_in_one_place_keeps_the_proofs_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let cloudsnap: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let [here, spelled, copy] = [7, 8, 9].map(Uuid::from_u128);
        let key = Uuid::from_u128(1);
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(here, "/backup", key).insert(tx)?;
            CredentialRow::sample(spelled, "/backup/.", key).insert(tx)?;
            CredentialRow::sample(copy, "/copy", key).insert(tx)?;
            for credential in [here, spelled, copy] {
                let (verified, depth, sound) = (Timestamp::UNIX_EPOCH, VerifyDepth::Full, false);
                let (damaged, digest) = (BlockSet::new(), None);
                Proof { credential, cloudsnap, verified, depth, sound, damaged, digest }.put(tx)?;
            }
            Proof::remove(tx, here, &cloudsnap)?;
            let left =
                [here, spelled, copy].map(|credential| Proof::all(tx, credential).map(|all| all.len()));
            assert_eq!(left.map(Result::unwrap), [0, 0, 1]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn last_proof_of_content_of_each_volume_counts() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let credential = Uuid::from_u128(7);
        let at = |second| Timestamp::from_second(second).unwrap();
        let proof = |rest: &str, second, depth, sound| Proof {
            credential,
            cloudsnap: format!("2e4d4b67-95d7-481e-aec5-14223ac55170/{rest}").parse().unwrap(),
            verified: at(second),
            depth,
            sound,
            damaged: BlockSet::new(),
            digest: None,
        };
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(credential, "/backup", Uuid::from_u128(1)).insert(tx)?;
            for (rest, second, depth, sound) in [
                ("59-61", 5, VerifyDepth::Full, true),
                ("59-62-incr", 3, VerifyDepth::Deep, true),
                ("59-63-incr", 9, VerifyDepth::Deep, false),
                ("59-64-incr", 10, VerifyDepth::Quick, true),
                ("159-61", 8, VerifyDepth::Deep, true),
            ] {
                proof(rest, second, depth, sound).put(tx)?;
            }
            let volume = |number| VolumeId::from_u64(number);
            let all = Proof::last_sound(tx, None)?;
            assert_eq!(all.get(&(credential, volume(59))), Some(&at(5)));
            assert_eq!(all.len(), 2);
            let one = Proof::last_sound(tx, Some(volume(59)))?;
            assert_eq!(one.into_iter().collect::<Vec<_>>(), [((credential, volume(59)), at(5))]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn soundness_in_a_copy_of_a_repository_hides_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let cloudsnap: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let [here, spelled, copy] = [7, 8, 9].map(Uuid::from_u128);
        let key = Uuid::from_u128(1);
        let proof = |credential, second, sound| Proof {
            credential,
            cloudsnap,
            verified: Timestamp::from_second(second).unwrap(),
            depth: VerifyDepth::Deep,
            sound,
            damaged: BlockSet::new(),
            digest: None,
        };
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(here, "/backup", key).insert(tx)?;
            CredentialRow::sample(spelled, "/backup/.", key).insert(tx)?;
            CredentialRow::sample(copy, "/copy", key).insert(tx)?;
            let last = |tx| Ok::<_, DbError>(Proof::of_repository(tx, here)?.pop().map(|proof| proof.sound));
            proof(here, 1, false).put(tx)?;
            proof(copy, 2, true).put(tx)?;
            assert_eq!(last(tx)?, Some(false));
            proof(spelled, 3, true).put(tx)?;
            assert_eq!(last(tx)?, Some(true));
            proof(copy, 4, false).put(tx)?;
            assert_eq!(last(tx)?, Some(false));
            Ok(())
        })
        .unwrap();
    }
}
