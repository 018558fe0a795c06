//! Cloud snapshots that another host deleted.

use crate::{
    error::ServiceError,
    repositories::{Repositories, locate::MAX_CONCURRENT_LOOKUPS},
};
use blockd_catalog::{Chain, DbError, DbManifestCache};
use blockd_cloud::{CloudError, CloudSnapshotId, ManifestFilter, ManifestKey, Repository};
use futures::StreamExt;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Maximum number of missing cloud snapshots that are asked for after a listing. The next one continues.
const MAX_LOOKUPS: usize = 100;

/// Cloud snapshots of a location that this host knew before a listing.
#[derive(Debug)]
pub struct KnownBefore(BTreeSet<CloudSnapshotId>);

impl Repositories {
    /// Returns the cached cloud snapshots and the newest backups of volumes at a location, before it is
    /// listed.
    ///
    /// # Errors
    /// The database fails.
    pub async fn known_before(
        &self,
        credential: Uuid,
        scope: &ManifestFilter,
    ) -> Result<KnownBefore, ServiceError> {
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            Ok((Chain::all(tx, None)?, DbManifestCache::keys(tx, credential)?))
        });
        let (chains, keys) = known.await?;
        let here = chains.into_iter().filter(|chain| chain.credential == credential);
        let cached = keys.iter().filter_map(|key| CloudSnapshotId::from_manifest_key(key));
        let all = here.map(|chain| chain.cloudsnap).chain(cached);
        let is_listed = |id: &CloudSnapshotId| {
            scope.cluster.is_none_or(|cluster| cluster == id.cluster)
                && scope.volume.is_none_or(|volume| volume == id.volume)
        };
        Ok(KnownBefore(all.filter(is_listed).collect()))
    }

    /// Forgets the cloud snapshots that were known before a listing, are missing from it, and do not exist:
    /// a listing may lag behind. A volume whose newest backup is forgotten has no base at this location, and
    /// its next backup is full.
    ///
    /// # Errors
    /// The location is not that of the credential, or the store or the database fails.
    pub async fn forget_deleted_backups(
        &self,
        credential: Uuid,
        repository: &Repository,
        known: KnownBefore,
        listed: &BTreeSet<String>,
    ) -> Result<(), ServiceError> {
        let missing = known.0.into_iter().filter(|id| !listed.contains(&id.manifest_key())).take(MAX_LOOKUPS);
        let lookups = missing.map(|id| async move {
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
        let forgotten = self.db.run(move |tx| -> Result<(), DbError> {
            for id in gone {
                if Chain::remove_tip_at(tx, credential, &id)? {
                    tracing::warn!(%credential, cloudsnap = %id, "the newest backup of a volume was deleted by another host: the next one is full");
                }
                DbManifestCache::remove(tx, credential, &id.manifest_key())?;
            }
            Ok(())
        });
        Ok(forgotten.await?)
    }
}
