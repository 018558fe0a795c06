//! Labels and group of a volume.

use super::VolumeEntry;
use crate::error::ServiceError;
use blockd_api::{GroupName, Labels, RESTORED_FROM};
use blockd_catalog::{Db, VolumeRow};
use std::sync::Arc;
use tokio::sync::MutexGuard;

/// Labels and group of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Its labels.
    pub labels: Labels,
    /// Its consistency group.
    pub group: Option<GroupName>,
}

impl Tags {
    /// Returns the tags of a volume whose content was replaced.
    pub(crate) fn without_origin(self) -> Self {
        Self { labels: self.labels.without(&[RESTORED_FROM]), ..self }
    }
}

impl VolumeEntry {
    /// Changes labels and group, in the database and here.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn change_tags(
        &self,
        db: &Arc<Db>,
        // One at a time, or concurrent changes could undo each other.
        _admission: &MutexGuard<'_, ()>,
        change: impl FnOnce(Tags) -> Tags,
    ) -> Result<(), ServiceError> {
        let tags = change(self.tags());
        let (id, new) = (self.id, tags.clone());
        db.run(move |tx| VolumeRow::set_tags(tx, id, &new.labels, new.group.as_ref())).await?;
        self.set_tags(tags);
        Ok(())
    }
}
