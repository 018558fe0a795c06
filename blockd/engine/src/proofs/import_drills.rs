//! Import of published restore drills.

use super::Proofs;
use crate::error::ServiceError;
use blockd_catalog::{DbError, DrillRow};
use blockd_cloud::{CloudSnapshotId, ListedManifest, Proof, ProofId};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

/// Cloud snapshots and times of known drills, in milliseconds since 1970.
pub(super) type KnownDrills = BTreeSet<(CloudSnapshotId, u64)>;

/// Returns the known drills of all locations.
///
/// # Errors
/// The database fails.
pub(super) fn known(tx: &rusqlite::Transaction<'_>) -> Result<KnownDrills, DbError> {
    let key = |row: DrillRow| (row.cloudsnap, u64::try_from(row.ended.as_millisecond()).unwrap_or(0));
    Ok(DrillRow::all(tx)?.into_iter().map(key).collect())
}

/// Returns the row of a published drill; `None` for other proofs. Its id follows from its key, so that each
/// import has the same.
pub(super) fn drill_row(
    credential: Uuid,
    id: &ProofId,
    proof: &Proof,
    own: Uuid,
    manifests: &BTreeMap<CloudSnapshotId, &ListedManifest>,
) -> Option<DrillRow> {
    let report = proof.drill.clone()?;
    let manifest = manifests.get(&proof.cloudsnap).and_then(|listed| listed.manifest.as_ref().ok());
    let host = match (proof.host == own, proof.host_name.is_empty()) {
        (true, _) => None,
        (false, true) => Some(proof.host.to_string()),
        (false, false) => Some(proof.host_name.clone()),
    };
    Some(DrillRow {
        id: Uuid::from_u128(xxh3_128(id.key().as_bytes())),
        credential,
        cloudsnap: proof.cloudsnap,
        volume_name: manifest.map_or_else(String::new, |one| one.description.volume_name.clone()),
        host,
        version: proof.version.clone(),
        ended: proof.proven,
        passed: proof.sound,
        report,
        location: Some(proof.location),
    })
}

impl Proofs {
    /// Stores imported drills.
    ///
    /// # Errors
    /// The database fails.
    pub(super) async fn store_drills(&self, drills: Vec<DrillRow>) -> Result<(), ServiceError> {
        if drills.is_empty() {
            return Ok(());
        }
        let stored = self.db.run(move |tx| -> Result<(), DbError> {
            for drill in drills {
                drill.put(tx)?;
                drill.set_published(tx)?;
            }
            Ok(())
        });
        Ok(stored.await?)
    }
}
