//! Renaming of volumes.
//!
//! Everything that outlives a request refers to volumes by id; only exports, and the files of browsed
//! snapshots, have the name.

use crate::{
    error::ServiceError,
    volumes::{Volumes, registry::VolumeEntry},
};
use blockd_api::VolumeName;
use blockd_catalog::VolumeRow;
use std::sync::Arc;

impl Volumes {
    /// Renames a volume and its export; returns its new entry.
    ///
    /// # Errors
    /// The name is taken, the volume is attached or not open, or clients are connected: they could not
    /// reconnect.
    pub(super) async fn rename_volume(
        &self,
        entry: &Arc<VolumeEntry>,
        name: VolumeName,
    ) -> Result<Arc<VolumeEntry>, ServiceError> {
        let _admission = self.admission.lock().await;
        if entry.name == name {
            return Ok(Arc::clone(entry));
        }
        self.attachments.check_delete(entry.id)?;
        entry.check_free()?;
        // A volume of this name that is created meanwhile is refused.
        let renamed = self.registry.rename(entry, name)?;
        let (id, name) = (renamed.id, renamed.name.clone());
        if let Err(error) = self.db.run(move |tx| VolumeRow::set_name(tx, id, &name)).await {
            self.registry.rename(&renamed, entry.name.clone())?;
            return Err(error.into());
        }
        tracing::info!(volume = %id, former = %entry.name, name = %renamed.name, "volume renamed");
        Ok(renamed)
    }
}
