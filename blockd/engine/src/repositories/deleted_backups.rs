//! Cloud snapshots that another host deleted.

use crate::{
    error::ServiceError,
    ids::random_id,
    repositories::{Repositories, locate::MAX_CONCURRENT_LOOKUPS},
};
use blockd_catalog::{Chain, DbError, DbManifestCache, HostProof, ProofRow, RunRow};
use blockd_cloud::{CloudError, CloudSnapshotId, ManifestFilter, ManifestKey, Repository};
use futures::StreamExt;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Maximum number of missing cloud snapshots that are asked for after a listing.
const MAX_LOOKUPS: usize = 100;
/// Maximum number of newest backups among them.
const MAX_TIP_LOOKUPS: usize = MAX_LOOKUPS / 2;

/// Cloud snapshots of a location that this host knew before a listing.
#[derive(Debug)]
pub struct KnownBefore {
    /// Newest backups of volumes, whose deletion makes the next backup full.
    tips: BTreeSet<CloudSnapshotId>,
    others: BTreeSet<CloudSnapshotId>,
}

impl KnownBefore {
    /// Returns the cloud snapshots that are missing from a listing, newest backups first, as many as are
    /// asked for at once. `first` chooses where the selection begins: those whose requests keep failing do
    /// not keep others out for ever.
    fn missing(self, listed: &BTreeSet<String>, first: u64) -> Vec<CloudSnapshotId> {
        let some_of = |ids: BTreeSet<CloudSnapshotId>, max: usize| {
            let mut ids: Vec<_> = ids.into_iter().filter(|id| !listed.contains(&id.manifest_key())).collect();
            let start = (first as usize).checked_rem(ids.len()).unwrap_or(0);
            ids.rotate_left(start);
            ids.truncate(max);
            ids
        };
        let mut missing = some_of(self.tips, MAX_TIP_LOOKUPS);
        missing.extend(some_of(self.others, MAX_LOOKUPS - missing.len()));
        missing
    }
}

impl Repositories {
    /// Returns the cached or verified cloud snapshots and the newest backups of volumes at a location, before
    /// it is listed.
    ///
    /// # Errors
    /// The database fails.
    pub async fn known_before(
        &self,
        credential: Uuid,
        scope: &ManifestFilter,
    ) -> Result<KnownBefore, ServiceError> {
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            // The manifest of a damaged one may not be cached.
            let own = ProofRow::all(tx, credential)?.into_iter().map(|proof| proof.cloudsnap);
            let of_others = HostProof::all(tx, credential)?.into_iter().map(|proof| proof.cloudsnap);
            let verified: Vec<_> = own.chain(of_others).collect();
            Ok((Chain::all(tx, None)?, DbManifestCache::keys(tx, credential)?, verified))
        });
        let (chains, keys, verified) = known.await?;
        let here = chains.into_iter().filter(|chain| chain.credential == credential);
        let cached = keys.iter().filter_map(|key| CloudSnapshotId::from_manifest_key(key));
        let is_listed = |id: &CloudSnapshotId| {
            scope.cluster.is_none_or(|cluster| cluster == id.cluster)
                && scope.volume.is_none_or(|volume| volume == id.volume)
        };
        let tips: BTreeSet<_> = here.map(|chain| chain.cloudsnap).filter(is_listed).collect();
        let others = cached.chain(verified).filter(|id| is_listed(id) && !tips.contains(id)).collect();
        Ok(KnownBefore { tips, others })
    }

    /// Forgets the cloud snapshots that were known before a listing, are missing from it, and do not exist:
    /// a listing may lag behind. A volume whose newest backup is forgotten has no base at this location, and
    /// its next backup is full. With `dry`, nothing is forgotten after the same requests.
    ///
    /// # Errors
    /// The location is not that of the credential, or the store or the database fails.
    pub async fn forget_deleted_backups(
        &self,
        credential: Uuid,
        repository: &Repository,
        known: KnownBefore,
        listed: &BTreeSet<String>,
        dry: bool,
    ) -> Result<(), ServiceError> {
        let lookups = known.missing(listed, random_id()?).into_iter().map(|id| async move {
            let found = repository.manifest(&id).await;
            matches!(found, Err(CloudError::SnapshotNotFound { .. })).then_some(id)
        });
        let lookups = futures::stream::iter(lookups).buffer_unordered(MAX_CONCURRENT_LOOKUPS);
        let gone: Vec<CloudSnapshotId> = lookups.filter_map(async |gone| gone).collect().await;
        if gone.is_empty() {
            return Ok(());
        }
        // The mount point of an unmounted disk is empty, too.
        self.prove_location(credential, repository).await?;
        if dry {
            return Ok(());
        }
        let forgotten = self.db.run(move |tx| -> Result<(), DbError> {
            for id in gone {
                if Chain::remove_tip_at(tx, credential, &id)? {
                    tracing::warn!(%credential, cloudsnap = %id, "the newest backup of a volume was deleted by another host: the next one is full");
                }
                ProofRow::remove(tx, credential, &id)?;
                RunRow::expire_failed(tx, credential, &id)?;
                DbManifestCache::remove(tx, credential, &id.manifest_key())?;
            }
            Ok(())
        });
        match forgotten.await {
            // The next listing forgets them.
            Err(error) if error.is_full() => {
                tracing::warn!(%credential, %error, "forgetting deleted cloud snapshots failed");
                Ok(())
            }
            stored => Ok(stored?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{SnapshotId, VolumeId};

    #[test]
    fn missing_backups_are_asked_for_newest_first_and_in_turn() {
        let id = |snapshot| CloudSnapshotId {
            cluster: Uuid::nil(),
            volume: VolumeId::from_u64(1),
            snapshot: SnapshotId::from_u64(snapshot),
            incremental: false,
        };
        let max = MAX_LOOKUPS as u64;
        let missing = |tips: u64, others: u64, listed: &[u64], first| {
            let tips: BTreeSet<_> = (1..=tips).map(|n| id(10_000 + n)).collect();
            let others = (1..=others).map(id).collect();
            let listed = listed.iter().map(|n| id(*n).manifest_key()).collect();
            KnownBefore { tips, others }.missing(&listed, first)
        };
        assert_eq!(missing(0, 0, &[], 7), []);
        assert_eq!(missing(1, 2, &[1], 7), [id(10_001), id(2)]);
        let asked = missing(max, 3 * max, &[], 0);
        assert_eq!(asked.len() as u64, max);
        assert!(asked.contains(&id(10_001)) && asked.contains(&id(1)));
        let mut seen = BTreeSet::new();
        for first in 0..3 * max {
            seen.extend(missing(max, 3 * max, &[], first));
        }
        assert_eq!(seen.len() as u64, 4 * max, "each is asked for at some listing");
    }
}
