//! Results of all hosts' verifications that this host knows.
//!
//! The proofs of other hosts never replace this host's own damage: it may have been found on another path,
//! and each writer of an unencrypted bucket can forge proofs. Their damage counts until a later verification.

use crate::{Aliases, DbError, HostProof, ProofRow};
use blockd_cloud::{CloudSnapshotId, VerifyDepth};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Last proof of a cloud snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastProof {
    /// Time.
    pub proven: Timestamp,
    /// Kind.
    pub kind: VerifyDepth,
    /// No damage was found.
    pub sound: bool,
    /// Name or installation of the host; `None` for this one.
    pub host: Option<String>,
    /// Version of its program.
    pub version: String,
}

impl From<&ProofRow> for LastProof {
    fn from(row: &ProofRow) -> Self {
        let ProofRow { verified, depth, sound, version, .. } = row;
        Self { proven: *verified, kind: *depth, sound: *sound, host: None, version: version.clone() }
    }
}

impl From<&HostProof> for LastProof {
    fn from(proof: &HostProof) -> Self {
        let HostProof { verified, depth, sound, version, host, host_name, .. } = proof;
        let host = if host_name.is_empty() { host.to_string() } else { host_name.clone() };
        Self { proven: *verified, kind: *depth, sound: *sound, host: Some(host), version: version.clone() }
    }
}

impl LastProof {
    /// Returns true if the content was read and no damage found.
    #[must_use]
    pub fn covers_content(&self) -> bool {
        self.sound && self.kind > VerifyDepth::Quick
    }

    /// Returns the last proofs of the cloud snapshots of a volume, of all volumes by default, with their
    /// credentials.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_volume(
        tx: &Transaction<'_>,
        volume: Option<VolumeId>,
        now: Timestamp,
    ) -> Result<Vec<(Uuid, CloudSnapshotId, Self)>, DbError> {
        let mut of: BTreeMap<Uuid, (Vec<ProofRow>, Vec<HostProof>)> = BTreeMap::new();
        for row in ProofRow::of_volume(tx, volume)? {
            of.entry(row.credential).or_default().0.push(row);
        }
        for proof in HostProof::of_volume(tx, volume)? {
            of.entry(proof.credential).or_default().1.push(proof);
        }
        let mut all = Vec::new();
        for (credential, (own, others)) in of {
            let known = KnownProofs::new(own, others, now);
            all.extend(known.ids().into_iter().filter_map(|id| Some((credential, id, known.last(&id)?))));
        }
        Ok(all)
    }

    /// Returns the last proofs that read a cloud snapshot of a volume and found it sound, by credential and
    /// volume; of all volumes by default.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_content(
        tx: &Transaction<'_>,
        volume: Option<VolumeId>,
        now: Timestamp,
    ) -> Result<BTreeMap<(Uuid, VolumeId), Self>, DbError> {
        let mut found: BTreeMap<(Uuid, VolumeId), Self> = BTreeMap::new();
        let all = Self::of_volume(tx, volume, now)?;
        for (credential, id, proof) in all.into_iter().filter(|(_, _, proof)| proof.covers_content()) {
            let of = (credential, id.volume);
            if found.get(&of).is_none_or(|last| last.proven < proof.proven) {
                found.insert(of, proof);
            }
        }
        Ok(found)
    }
}

/// Proofs of the cloud snapshots of a location.
#[derive(Debug)]
pub struct KnownProofs {
    own: BTreeMap<CloudSnapshotId, ProofRow>,
    others: BTreeMap<CloudSnapshotId, Vec<HostProof>>,
    now: Timestamp,
}

impl KnownProofs {
    /// Collects results of this host, oldest first, and of others.
    pub fn new(own: Vec<ProofRow>, others: Vec<HostProof>, now: Timestamp) -> Self {
        let mut of: BTreeMap<CloudSnapshotId, Vec<HostProof>> = BTreeMap::new();
        others.into_iter().for_each(|proof| of.entry(proof.cloudsnap).or_default().push(proof));
        Self { own: own.into_iter().map(|row| (row.cloudsnap, row)).collect(), others: of, now }
    }

    /// Reads the results about the location of a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_location(tx: &Transaction<'_>, credential: Uuid, now: Timestamp) -> Result<Self, DbError> {
        Ok(Self::new(ProofRow::of_location(tx, credential)?, HostProof::of_location(tx, credential)?, now))
    }

    /// Reads the results about each location, with its credentials.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_all_locations(
        tx: &Transaction<'_>,
        now: Timestamp,
    ) -> Result<Vec<(BTreeSet<Uuid>, Self)>, DbError> {
        let aliases = Aliases::all(tx)?;
        let mut of: BTreeMap<BTreeSet<Uuid>, (Vec<ProofRow>, Vec<HostProof>)> = BTreeMap::new();
        for row in ProofRow::of_volume(tx, None)? {
            of.entry(aliases.of_location(row.credential)).or_default().0.push(row);
        }
        for proof in HostProof::of_volume(tx, None)? {
            of.entry(aliases.of_location(proof.credential)).or_default().1.push(proof);
        }
        let known = of.into_iter().map(|(credentials, (mut own, others))| {
            own.sort_by_key(|row| row.verified);
            (credentials, Self::new(own, others, now))
        });
        Ok(known.collect())
    }

    /// Reads the results about the location of a credential, and damage in possible copies.
    ///
    /// # Errors
    /// The database fails.
    pub fn of_repository(tx: &Transaction<'_>, credential: Uuid, now: Timestamp) -> Result<Self, DbError> {
        Ok(Self::new(ProofRow::of_repository(tx, credential)?, HostProof::of_location(tx, credential)?, now))
    }

    /// Returns the cloud snapshots with a proof.
    pub fn ids(&self) -> BTreeSet<CloudSnapshotId> {
        self.own.keys().chain(self.others.keys()).copied().collect()
    }

    /// Returns the last result of this host.
    pub fn own(&self, id: &CloudSnapshotId) -> Option<&ProofRow> {
        self.own.get(id)
    }

    fn of_others(&self, id: &CloudSnapshotId) -> &[HostProof] {
        self.others.get(id).map_or(&[], Vec::as_slice)
    }

    /// Returns the last damage that another host found, and after which neither that host nor this one found
    /// the cloud snapshot sound.
    pub fn damage_of_others(&self, id: &CloudSnapshotId) -> Option<&HostProof> {
        let others = self.of_others(id);
        let is_refuted = |damage: &HostProof| {
            let own = self.own.get(id).filter(|own| own.is_sound(self.now));
            own.is_some_and(|own| own.verified > damage.verified && own.depth >= damage.depth)
                || others.iter().any(|later| later.refutes(damage))
        };
        others.iter().filter(|proof| !proof.sound && !is_refuted(proof)).max_by_key(|proof| proof.verified)
    }

    /// Returns true if another host read the content and found it sound, and none found damage since.
    pub fn is_sound_for_others(&self, id: &CloudSnapshotId) -> bool {
        self.damage_of_others(id).is_none()
            && self.of_others(id).iter().any(|proof| LastProof::from(proof).covers_content())
    }

    /// Returns damage that this host found, or else that others found, with the credential of its proof.
    pub fn damage(&self, id: &CloudSnapshotId) -> Option<(Uuid, LastProof)> {
        let own = self.own.get(id).filter(|own| !own.sound).map(|own| (own.credential, own.into()));
        own.or_else(|| self.damage_of_others(id).map(|found| (found.credential, found.into())))
    }

    /// Returns the last proof: damage that this host found, damage that others found, or the last one that
    /// read the content.
    pub fn last(&self, id: &CloudSnapshotId) -> Option<LastProof> {
        if let Some((_, damage)) = self.damage(id) {
            return Some(damage);
        }
        let own = self.own.get(id).filter(|own| own.is_sound(self.now)).map(LastProof::from);
        let others = self.of_others(id).iter().filter(|proof| proof.sound).map(LastProof::from);
        own.into_iter().chain(others).max_by_key(|last| (last.covers_content(), last.proven))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db};
    use super::*;
    use VerifyDepth::{Deep, Full, Quick};
    use blockd_extent::BlockSet;

    const NOW_S: i64 = 1_000_000;

    fn id() -> CloudSnapshotId {
        "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap()
    }

    fn own(second: i64, depth: VerifyDepth, sound: bool) -> ProofRow {
        ProofRow {
            credential: Uuid::nil(),
            cloudsnap: id(),
            verified: Timestamp::from_second(second).unwrap(),
            depth,
            sound,
            damaged: BlockSet::new(),
            digest: None,
            version: "1.2.3".into(),
            location: None,
        }
    }

    fn other(host: u128, second: i64, depth: VerifyDepth, sound: bool) -> HostProof {
        HostProof {
            credential: Uuid::nil(),
            cloudsnap: id(),
            host: Uuid::from_u128(host),
            depth,
            proven: Timestamp::from_second(second).unwrap(),
            verified: Timestamp::from_second(second).unwrap(),
            sound,
            host_name: format!("db{host}"),
            version: "1.2.3".into(),
        }
    }

    /// Returns time, kind, result and host of the last proof.
    fn last(own: Option<ProofRow>, others: &[HostProof]) -> Option<(i64, VerifyDepth, bool, Option<String>)> {
        let now = Timestamp::from_second(NOW_S).unwrap();
        let known = KnownProofs::new(own.into_iter().collect(), others.to_vec(), now);
        let last = known.last(&id())?;
        Some((last.proven.as_second(), last.kind, last.sound, last.host))
    }

    #[test]
    fn last_proof_of_content_of_each_volume_counts() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let (here, there) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let snap = |rest: &str| format!("2e4d4b67-95d7-481e-aec5-14223ac55170/{rest}").parse().unwrap();
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(here, "/backup", Uuid::from_u128(1)).insert(tx)?;
            CredentialRow::sample(there, "/other", Uuid::from_u128(2)).insert(tx)?;
            for (rest, second, depth, sound) in [
                ("59-61", 5, Full, true),
                ("59-62-incr", 3, Deep, true),
                ("59-63-incr", 9, Deep, false),
                ("59-64-incr", 10, Quick, true),
                ("159-61", 8, Deep, true),
            ] {
                let row = own(second, depth, sound);
                ProofRow { credential: here, cloudsnap: snap(rest), ..row }.put(tx)?;
            }
            for (rest, second) in [("59-62-incr", 7), ("59-63-incr", 12)] {
                let proof = other(1, second, Full, true);
                HostProof { credential: there, cloudsnap: snap(rest), ..proof.clone() }.put(tx)?;
                HostProof { credential: here, cloudsnap: snap(rest), ..proof }.put(tx)?;
            }
            let now = Timestamp::from_second(NOW_S).unwrap();
            let seconds = |volume: Option<u64>| -> Result<Vec<_>, DbError> {
                let found = LastProof::of_content(tx, volume.map(VolumeId::from_u64), now)?;
                let each = |((credential, volume), last): ((Uuid, VolumeId), LastProof)| {
                    (credential, volume.to_string(), last.proven.as_second())
                };
                Ok(found.into_iter().map(each).collect())
            };
            let of_59 = [(here, "59".to_owned(), 7), (there, "59".to_owned(), 12)];
            assert_eq!(seconds(Some(59))?, of_59);
            assert_eq!(seconds(None)?.len(), 3);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn own_damage_stays_until_an_own_verification() {
        let damage = own(10, Full, false);
        let later = [other(1, 20, Full, true), other(2, 30, Deep, true)];
        assert_eq!(last(Some(damage), &later), Some((10, Full, false, None)));
        assert_eq!(last(Some(own(40, Full, true)), &later), Some((40, Full, true, None)));
    }

    #[test]
    fn damage_of_another_host_counts_until_a_later_verification() {
        let damage = other(1, 20, Full, false);
        let alone = std::slice::from_ref(&damage);
        let found = Some((20, Full, false, Some("db1".to_owned())));
        assert_eq!(last(None, alone), found);
        assert_eq!(last(Some(own(10, Deep, true)), alone), found, "it was sound before");
        assert_eq!(last(Some(own(30, Quick, true)), alone), found, "content was not read");
        assert_eq!(last(Some(own(30, Full, true)), alone), Some((30, Full, true, None)));
        for (refuting, is_end) in [
            (other(1, 30, Deep, true), true),
            (other(1, 10, Full, true), false),
            (other(1, 30, Quick, true), false),
            (other(2, 30, Full, true), false),
        ] {
            let sound = last(None, &[refuting.clone(), damage.clone()]).unwrap().2;
            assert_eq!(sound, is_end, "{refuting:?}");
        }
        let quick = other(1, 20, Quick, false);
        assert!(last(None, &[quick, other(1, 30, Full, true)]).unwrap().2);
    }

    #[test]
    fn own_proof_from_the_future_hides_nothing() {
        let ahead = || Some(own(2 * NOW_S, Deep, true));
        assert_eq!(last(ahead(), &[]), None);
        assert!(!last(ahead(), &[other(1, 20, Full, false)]).unwrap().2);
        assert_eq!(last(ahead(), &[other(1, 20, Full, true)]).unwrap().0, 20);
        assert!(!last(Some(own(2 * NOW_S, Deep, false)), &[]).unwrap().2, "damage is no matter of time");
        assert!(last(Some(own(NOW_S + 3600, Deep, true)), &[]).unwrap().2);
    }

    #[test]
    fn proof_of_the_content_is_shown_before_a_later_quick_one() {
        assert_eq!(last(Some(own(30, Quick, true)), &[other(1, 20, Full, true)]).unwrap().0, 20);
        assert_eq!(last(Some(own(30, Quick, true)), &[other(1, 20, Quick, true)]).unwrap().0, 30);
        let nameless = HostProof { host_name: String::new(), ..other(3, 20, Full, true) };
        assert_eq!(last(None, &[nameless]).unwrap().3, Some(Uuid::from_u128(3).to_string()));
    }
}
