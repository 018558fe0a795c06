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
