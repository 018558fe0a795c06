//! Space of backup locations, from the cached manifests.

use super::CloudSnapshots;
use crate::error::{ServiceError, blocking};
use blockd_api::status::LocationSpace;
use blockd_catalog::{DbError, DbManifestCache};
use std::sync::Arc;

impl CloudSnapshots {
    /// Returns the space of each location as this host knows it, by name. No store is asked.
    ///
    /// # Errors
    /// The database fails.
    pub async fn location_space(&self) -> Result<Vec<LocationSpace>, ServiceError> {
        let credentials = self.repositories.credential_rows().await?;
        let db = Arc::clone(&self.db);
        blocking(move || {
            let space = credentials.into_iter().map(|credential| {
                let content = DbManifestCache::new(Arc::clone(&db), credential.uuid).content()?;
                Ok(LocationSpace {
                    credential_id: credential.uuid,
                    credential_name: credential.name.to_string(),
                    cloud_snapshot_count: content.cloud_snapshots,
                    stored_bytes: content.stored_bytes,
                    listed_at: content.listed_at,
                })
            });
            space.collect::<Result<_, DbError>>()
        })
        .await
    }
}
