//! Health of cloud snapshots for retention, from verifications.
//!
//! The proofs of other hosts are reasons to keep cloud snapshots, and never to delete one: they may be
//! forged, or come from a host with a defect.

use blockd_catalog::{DbError, KnownProofs, ProofRow};
use blockd_cloud::CloudSnapshotId;
use blockd_schedule::{Condition, Health};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Results of the verifications that concern a credential's cloud snapshots.
pub struct KnownHealth {
    /// Results in the repository of the credential.
    proofs: KnownProofs,
    /// Times at which damage was found in possible copies of the repository.
    damaged_copies: BTreeMap<CloudSnapshotId, Timestamp>,
    now: Timestamp,
}

impl KnownHealth {
    /// Reads the results for a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn of(tx: &Transaction<'_>, credential: Uuid, now: Timestamp) -> Result<Self, DbError> {
        Ok(Self {
            proofs: KnownProofs::of_location(tx, credential, now)?,
            damaged_copies: ProofRow::damage_in_copies(tx, credential)?,
            now,
        })
    }

    /// Returns the health of a cloud snapshot, and its condition for retention.
    ///
    /// Damage that another host found here, or this host in a possible copy, is no reason to delete the cloud
    /// snapshot here. Until a later verification here, the cloud snapshot replaces no other one.
    pub fn judge(&self, id: &CloudSnapshotId, condition: Condition) -> (Condition, Health) {
        let own = self.proofs.own(id);
        let health = match own {
            Some(own) if !own.sound => Health::Bad,
            Some(own) if own.covers_content(self.now) => Health::Verified,
            _ if self.proofs.is_sound_for_others(id) => Health::VerifiedElsewhere,
            _ => Health::Unverified,
        };
        let is_damaged_copy =
            |found: &Timestamp| health != Health::Verified || own.is_none_or(|own| own.verified < *found);
        let is_doubtful = health != Health::Bad
            && (self.damaged_copies.get(id).is_some_and(is_damaged_copy)
                || self.proofs.damage_of_others(id).is_some());
        let condition = match condition {
            Condition::Done if is_doubtful => Condition::InDoubt,
            other => other,
        };
        (condition, health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Condition::{Done, InDoubt, InUse};
    use Health::{Bad, Unverified, Verified, VerifiedElsewhere};
    use VerifyDepth::{Full, Quick};
    use blockd_catalog::HostProof;
    use blockd_cloud::VerifyDepth;

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
            damaged: Default::default(),
            digest: None,
            version: String::new(),
            location: None,
        }
    }

    fn other(second: i64, depth: VerifyDepth, sound: bool) -> HostProof {
        let time = Timestamp::from_second(second).unwrap();
        HostProof {
            credential: Uuid::nil(),
            cloudsnap: id(),
            host: Uuid::from_u128(1),
            depth,
            proven: time,
            verified: time,
            sound,
            host_name: String::new(),
            version: String::new(),
        }
    }

    /// Neither soundness nor damage that another host found counts as found by this one.
    #[test]
    fn results_of_other_hosts_are_reasons_to_keep_only() {
        let now = Timestamp::from_second(NOW_S).unwrap();
        for (own, other, condition, expected) in [
            (None, Some(other(10, Full, true)), Done, (Done, VerifiedElsewhere)),
            (None, Some(other(10, Quick, true)), Done, (Done, Unverified)),
            (Some(own(20, Quick, true)), Some(other(10, Full, true)), Done, (Done, VerifiedElsewhere)),
            (Some(own(20, Full, true)), Some(other(10, Full, true)), Done, (Done, Verified)),
            (Some(own(10, Full, false)), Some(other(20, Full, true)), Done, (Done, Bad)),
            (Some(own(10, Full, false)), Some(other(20, Full, false)), Done, (Done, Bad)),
            (None, Some(other(10, Full, false)), Done, (InDoubt, Unverified)),
            (None, Some(other(10, Full, false)), InUse, (InUse, Unverified)),
            (Some(own(10, Full, true)), Some(other(20, Full, false)), Done, (InDoubt, Verified)),
            (Some(own(20, Full, true)), Some(other(10, Full, false)), Done, (Done, Verified)),
        ] {
            let case = format!("{own:?} {other:?}");
            let proofs = KnownProofs::new(own.into_iter().collect(), other.into_iter().collect(), now);
            let known = KnownHealth { proofs, damaged_copies: BTreeMap::new(), now };
            assert_eq!(known.judge(&id(), condition), expected, "{case}");
        }
    }
}
