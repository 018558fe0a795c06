//! Rows of proofs: results of this host's last verification of each cloud snapshot.

use crate::{DbError, latest_credible, parsed, parsed_if_there, repository_location::Aliases, rows};
use blockd_cloud::{CloudSnapshotId, VerifyDepth};
use blockd_extent::{BlockSet, Extent, MAX_VOLUME_BYTES, VolumeId};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params, types::Type};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Result of this host's last verification of a cloud snapshot.
#[derive(Clone, PartialEq, Debug)]
pub struct ProofRow {
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
    /// Unreadable blocks; empty if it is sound or completely unreadable. See
    /// [`lost_blocks`](Self::lost_blocks).
    pub damaged: BlockSet,
    /// Digest of its content from the last complete restore.
    pub digest: Option<[u8; 32]>,
    /// Version of blockd.
    pub version: String,
    /// Id of the location that was read; a disk or a bucket may have been replaced since. `None`: unknown.
    pub location: Option<Uuid>,
}

const COLUMNS: &str = "credential, cloudsnap, verified, depth, sound, damaged, digest, version, location";

/// Returns the pattern of the cloud snapshots of a volume; of all volumes by default.
pub(crate) fn pattern(volume: Option<VolumeId>) -> String {
    volume.map_or_else(|| "%".to_owned(), |volume| format!("%/{volume}-%"))
}

pub(crate) fn depth_of(text: &str) -> VerifyDepth {
    // The table accepts no other words.
    [VerifyDepth::Quick, VerifyDepth::Deep]
        .into_iter()
        .find(|depth| depth.to_string() == text)
        .unwrap_or(VerifyDepth::Full)
}

impl ProofRow {
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
            version: row.get(7)?,
            location: parsed_if_there(row, 8)?,
        })
    }

    /// Returns true if the verification found no damage. One that is dated in the future shows nothing: the
    /// clock was ahead.
    #[must_use]
    pub fn is_sound(&self, now: Timestamp) -> bool {
        self.sound && self.verified <= latest_credible(now)
    }

    /// Returns true if the verification read the content and found no damage. A quick one only shows that the
    /// objects exist.
    #[must_use]
    pub fn covers_content(&self, now: Timestamp) -> bool {
        self.is_sound(now) && self.depth > VerifyDepth::Quick
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
        let mut proofs = Vec::new();
        for credential in Aliases::all(tx)?.of_location(credential) {
            proofs.extend(Self::all(tx, credential)?);
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

    /// Returns the proofs of the cloud snapshots of a volume from all credentials; of all volumes by default.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_volume(tx: &Transaction<'_>, volume: Option<VolumeId>) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM proofs WHERE cloudsnap LIKE ?1 ORDER BY verified");
        rows(tx, &sql, [pattern(volume)], Self::read)
    }

    /// Returns this result after an earlier one; `None` if the earlier one stays. A verification adds to the
    /// damage that a deeper one found and ends none of it. A quick one also leaves that the content was read.
    #[must_use]
    pub fn after(mut self, before: Option<&Self>) -> Option<Self> {
        let is_shallow =
            |before: &&Self| before.depth > self.depth && (!before.sound || self.depth == VerifyDepth::Quick);
        let Some(before) = before.filter(is_shallow) else {
            return Some(self);
        };
        match self.damaged.is_empty() || before.is_total_loss() {
            true => self.damaged = BlockSet::new(),
            false => self.damaged.union_with(&before.damaged),
        }
        self.depth = before.depth;
        (!self.sound).then_some(self)
    }

    /// Returns true for damage that names no block: all may be lost.
    #[must_use]
    pub fn is_total_loss(&self) -> bool {
        !self.sound && self.damaged.is_empty()
    }

    /// Returns the blocks that may be lost, of a cloud snapshot of any size.
    #[must_use]
    pub fn lost_blocks(&self) -> BlockSet {
        match self.is_total_loss() {
            true => BlockSet::from_iter([Extent::whole(MAX_VOLUME_BYTES)]),
            false => self.damaged.clone(),
        }
    }

    /// Returns results of a credential at a location that are not published, the latest ones first.
    ///
    /// # Errors
    /// The database fails.
    pub fn unpublished(
        tx: &Transaction<'_>,
        credential: Uuid,
        location: Uuid,
        max: u32,
    ) -> Result<Vec<Self>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM proofs WHERE credential = ?1 AND location = ?2 AND NOT published ORDER BY verified DESC LIMIT ?3"
        );
        rows(tx, &sql, params![credential.to_string(), location.to_string(), max], Self::read)
    }

    /// Notes that the location has this result, unless a later one replaced it.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_published(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let key = [self.credential.to_string(), self.cloudsnap.to_string(), self.verified.to_string()];
        let sql =
            "UPDATE proofs SET published = 1 WHERE credential = ?1 AND cloudsnap = ?2 AND verified = ?3";
        tx.execute(sql, key)?;
        Ok(())
    }

    /// Adds or replaces the proof, and keeps a known digest.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let damaged = (!self.damaged.is_empty()).then(|| self.damaged.to_bytes());
        tx.execute(
            "INSERT INTO proofs (credential, cloudsnap, verified, depth, sound, damaged, digest, version, location, published)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0)
             ON CONFLICT (credential, cloudsnap) DO UPDATE SET verified = excluded.verified, depth = excluded.depth,
             sound = excluded.sound, damaged = excluded.damaged, digest = coalesce(digest, excluded.digest),
             version = excluded.version, location = excluded.location, published = 0",
            params![
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.verified.to_string(),
                self.depth.to_string(),
                self.sound,
                damaged,
                self.digest,
                self.version,
                self.location.map(|id| id.to_string()),
            ],
        )?;
        Ok(())
    }

    /// Removes the proofs of a cloud snapshot that was deleted from a credential's location, also those of
    /// other hosts. Copies of the repository keep theirs.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<(), DbError> {
        let sql = "DELETE FROM proofs WHERE cloudsnap = ?1 AND credential = ?2";
        let of_others = "DELETE FROM host_proofs WHERE cloudsnap = ?1 AND credential = ?2";
        for credential in Aliases::all(tx)?.of_location(credential) {
            tx.execute(sql, [cloudsnap.to_string(), credential.to_string()])?;
            tx.execute(of_others, [cloudsnap.to_string(), credential.to_string()])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db};
    use super::*;
    use blockd_extent::{BlockIndex, Extent};

    const HERE: Uuid = Uuid::from_u128(5);

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
                let (damaged, digest, version, location) = (BlockSet::new(), None, String::new(), None);
                ProofRow {
                    credential,
                    cloudsnap,
                    verified,
                    depth,
                    sound,
                    damaged,
                    digest,
                    version,
                    location,
                }
                .put(tx)?;
            }
            ProofRow::remove(tx, here, &cloudsnap)?;
            let left =
                [here, spelled, copy].map(|credential| ProofRow::all(tx, credential).map(|all| all.len()));
            assert_eq!(left.map(Result::unwrap), [0, 0, 1]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn results_of_this_host_wait_for_their_publication() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let credential = Uuid::from_u128(7);
        let proof = |snapshot: u64, second| ProofRow {
            credential,
            cloudsnap: format!("2e4d4b67-95d7-481e-aec5-14223ac55170/59-{snapshot}").parse().unwrap(),
            verified: Timestamp::from_second(second).unwrap(),
            depth: VerifyDepth::Full,
            sound: true,
            damaged: BlockSet::new(),
            digest: None,
            version: "1.2.3".into(),
            location: Some(HERE),
        };
        db.transaction::<_, DbError>(|tx| {
            let other = Uuid::from_u128(8);
            CredentialRow::sample(credential, "/backup", Uuid::from_u128(1)).insert(tx)?;
            CredentialRow::sample(other, "/other", Uuid::from_u128(2)).insert(tx)?;
            let (first, second) = (proof(1, 1), proof(2, 2));
            let elsewhere = ProofRow { credential: other, ..proof(3, 3) };
            let swapped = ProofRow { location: Some(other), ..proof(4, 4) };
            let unknown = ProofRow { location: None, ..proof(5, 5) };
            [&first, &second, &elsewhere, &swapped, &unknown].into_iter().try_for_each(|row| row.put(tx))?;
            assert_eq!(ProofRow::unpublished(tx, credential, HERE, 9)?, [second.clone(), first.clone()]);
            assert_eq!(ProofRow::unpublished(tx, credential, HERE, 1)?, std::slice::from_ref(&second));
            first.set_published(tx)?;
            let later = ProofRow { verified: Timestamp::from_second(9).unwrap(), ..second.clone() };
            later.put(tx)?;
            second.set_published(tx)?;
            assert_eq!(
                ProofRow::unpublished(tx, credential, HERE, 9)?,
                [later],
                "a later result is not published with it"
            );
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn lesser_verification_names_no_less_damage() {
        let blocks = |start| BlockSet::from_iter([Extent::new(BlockIndex(start), 1)]);
        let result = |depth, damaged: &BlockSet| ProofRow {
            credential: Uuid::nil(),
            cloudsnap: "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap(),
            verified: Timestamp::UNIX_EPOCH,
            depth,
            sound: false,
            damaged: damaged.clone(),
            digest: None,
            version: String::new(),
            location: None,
        };
        let (all, five, seven) = (BlockSet::new(), blocks(5), blocks(7));
        let mut both = five.clone();
        both.union_with(&seven);
        for (before, found, expected) in
            [(&five, &seven, &both), (&all, &seven, &all), (&five, &all, &all), (&all, &all, &all)]
        {
            let before = result(VerifyDepth::Full, before);
            let after = result(VerifyDepth::Quick, found).after(Some(&before)).unwrap();
            assert_eq!((&after.damaged, after.depth), (expected, VerifyDepth::Full));
            let is_lost = |block| after.lost_blocks().contains(BlockIndex(block));
            assert_eq!((is_lost(5), is_lost(6)), (true, expected == &all));
        }
        let sound = ProofRow { sound: true, ..result(VerifyDepth::Full, &all) };
        assert_eq!(result(VerifyDepth::Quick, &five).after(Some(&sound)).unwrap().damaged, five);
        assert!(sound.lost_blocks().is_empty());
    }

    #[test]
    fn soundness_in_a_copy_of_a_repository_hides_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let cloudsnap: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let [here, spelled, copy] = [7, 8, 9].map(Uuid::from_u128);
        let key = Uuid::from_u128(1);
        let proof = |credential, second, sound| ProofRow {
            credential,
            cloudsnap,
            verified: Timestamp::from_second(second).unwrap(),
            depth: VerifyDepth::Deep,
            sound,
            damaged: BlockSet::new(),
            digest: None,
            version: String::new(),
            location: None,
        };
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(here, "/backup", key).insert(tx)?;
            CredentialRow::sample(spelled, "/backup/.", key).insert(tx)?;
            CredentialRow::sample(copy, "/copy", key).insert(tx)?;
            let last =
                |tx| Ok::<_, DbError>(ProofRow::of_repository(tx, here)?.pop().map(|proof| proof.sound));
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
