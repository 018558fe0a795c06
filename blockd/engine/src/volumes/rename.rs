//! Renaming of volumes.
//!
//! Everything that outlives a request refers to volumes by id; only exports, and the files of browsed
//! snapshots, have the name.

use crate::{
    error::ServiceError,
    volumes::{Volumes, registry::VolumeEntry},
};
use blockd_api::{VolumeName, VolumeRef};
use blockd_catalog::VolumeRow;
use std::sync::Arc;

impl Volumes {
    /// Renames a volume and its export; returns its new entry.
    ///
    /// # Errors
    /// There is no such volume, the name is taken, the volume is attached or not open, or clients are
    /// connected: they could not reconnect.
    pub(super) async fn rename_volume(
        &self,
        wanted: &VolumeRef,
        name: VolumeName,
    ) -> Result<Arc<VolumeEntry>, ServiceError> {
        // One at a time: a volume found before the lock may have another name by now.
        let _admission = self.admission.lock().await;
        let entry = self.registry.find(wanted)?;
        if entry.name == name {
            return Ok(entry);
        }
        self.attachments.check_delete(entry.id)?;
        entry.check_free()?;
        // Volumes of either name that are created meanwhile are refused.
        let renamed = self.registry.rename(&entry, name)?;
        let (id, name) = (renamed.id, renamed.name.clone());
        if let Err(error) = self.db.run(move |tx| VolumeRow::set_name(tx, id, &name)).await {
            self.registry.undo_rename(&renamed, &entry);
            return Err(error.into());
        }
        self.registry.end_rename(&entry);
        tracing::info!(volume = %id, former = %entry.name, name = %renamed.name, "volume renamed");
        Ok(renamed)
    }
}
