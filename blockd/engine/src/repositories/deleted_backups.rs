//! Newest backups of volumes that another host deleted.

use crate::{error::ServiceError, repositories::Repositories};
use blockd_catalog::{Chain, DbError, DbManifestCache};
use blockd_cloud::{CloudError, CloudSnapshotId, ListedManifest, ManifestFilter, ManifestKey, Repository};
use uuid::Uuid;

impl Repositories {
    /// Returns the newest backups of all volumes at a location, before it is listed.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn newest_backups(
        &self,
        credential: Uuid,
        scope: &ManifestFilter,
    ) -> Result<Vec<CloudSnapshotId>, ServiceError> {
        let chains = self.db.run(|tx| Chain::all(tx, None)).await?.into_iter();
        let here = chains.filter(|chain| chain.credential == credential).map(|chain| chain.cloudsnap);
        let is_listed = |id: &CloudSnapshotId| {
            scope.cluster.is_none_or(|cluster| cluster == id.cluster)
                && scope.volume.is_none_or(|volume| volume == id.volume)
        };
        Ok(here.filter(is_listed).collect())
    }

    /// Forgets the newest backups that are missing from a listing: their volumes then have no backup at this
    /// location, and their next one is full.
    ///
    /// # Errors
    /// The location is not that of the credential, or the store or the database fails.
    pub(crate) async fn forget_deleted_backups(
        &self,
        credential: Uuid,
        repository: &Repository,
        newest: &[CloudSnapshotId],
        listed: &[ListedManifest],
    ) -> Result<(), ServiceError> {
        let is_missing = |id: &&CloudSnapshotId| listed.iter().all(|item| item.id != Some(**id));
        for &id in newest.iter().filter(is_missing) {
            // A listing may lag behind.
            match repository.manifest(&id).await {
                Err(CloudError::SnapshotNotFound { .. }) => {}
                _ => continue,
            }
            // The mount point of an unmounted disk is empty, too.
            self.prove_location(credential, repository).await?;
            tracing::warn!(%credential, cloudsnap = %id, "the newest backup of a volume was deleted by another host: the next one is full");
            let forgotten = self.db.run(move |tx| -> Result<(), DbError> {
                Chain::remove_tip_at(tx, credential, &id)?;
                DbManifestCache::remove(tx, credential, &id.manifest_key())
            });
            forgotten.await?;
        }
        Ok(())
    }
}
