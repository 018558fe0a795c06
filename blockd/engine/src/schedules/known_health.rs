//! Health of cloud snapshots for retention, from verifications.

use blockd_catalog::{DbError, Proof};
use blockd_cloud::CloudSnapshotId;
use blockd_schedule::{Condition, Health};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Results of the verifications that concern a credential's cloud snapshots.
pub struct KnownHealth {
    /// Last results in the repository of the credential.
    proofs: BTreeMap<CloudSnapshotId, Proof>,
    /// Times at which damage was found in possible copies of the repository.
    damaged_copies: BTreeMap<CloudSnapshotId, Timestamp>,
}

impl KnownHealth {
    /// Reads the results for a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn of(tx: &Transaction<'_>, credential: Uuid) -> Result<Self, DbError> {
        let proofs = Proof::of_location(tx, credential)?;
        Ok(Self {
            proofs: proofs.into_iter().map(|proof| (proof.cloudsnap, proof)).collect(),
            damaged_copies: Proof::damage_in_copies(tx, credential)?,
        })
    }

    /// Returns the health of a cloud snapshot, and its condition for retention.
    ///
    /// Damage in a possible copy is no reason to delete the cloud snapshot here, but it may be the same
    /// object under another name. Until a later verification here, the cloud snapshot replaces no other one.
    pub fn judge(&self, id: &CloudSnapshotId, condition: Condition) -> (Condition, Health) {
        let proof = self.proofs.get(id);
        let health = health(proof);
        let is_doubtful = self.damaged_copies.get(id).is_some_and(|found| match health {
            Health::Bad => false,
            Health::Verified => proof.is_none_or(|proof| proof.verified < *found),
            Health::Unverified => true,
        });
        let condition = match condition {
            Condition::Done if is_doubtful => Condition::InDoubt,
            other => other,
        };
        (condition, health)
    }
}

/// Returns the health that the last proof found.
fn health(proof: Option<&Proof>) -> Health {
    match proof {
        Some(proof) if !proof.sound => Health::Bad,
        Some(proof) if proof.covers_content() => Health::Verified,
        _ => Health::Unverified,
    }
}
