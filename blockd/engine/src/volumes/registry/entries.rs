//! Volumes by name, and the names of renames that are not stored yet.

use super::VolumeEntry;
use blockd_api::{ApiError, ErrorCode, VolumeName};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Volumes by name. Each volume has one entry.
#[derive(Debug, Default)]
pub(super) struct Entries {
    by_name: BTreeMap<VolumeName, Arc<VolumeEntry>>,
    /// Former names of volumes whose new names are not stored yet.
    former: BTreeSet<VolumeName>,
}

fn is_same(one: &VolumeEntry, other: &VolumeEntry) -> bool {
    Arc::ptr_eq(&one.shared, &other.shared)
}

impl Entries {
    /// Returns all volumes by name.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<VolumeEntry>> {
        self.by_name.values()
    }

    /// Returns the volume of this name.
    pub(super) fn get(&self, name: &VolumeName) -> Option<&Arc<VolumeEntry>> {
        self.by_name.get(name)
    }

    /// Adds a volume, replacing one of the same name.
    pub(super) fn insert(&mut self, entry: Arc<VolumeEntry>) {
        self.by_name.insert(entry.name.clone(), entry);
    }

    /// Adds a volume if its name is free.
    pub(super) fn reserve(&mut self, entry: &Arc<VolumeEntry>) -> Result<(), ApiError> {
        self.check_free(&entry.name)?;
        self.insert(Arc::clone(entry));
        Ok(())
    }

    /// Refuses a name that a volume has.
    pub(super) fn check_free(&self, name: &VolumeName) -> Result<(), ApiError> {
        if self.by_name.contains_key(name) || self.former.contains(name) {
            let message = format!("volume {name} already exists: choose another name");
            return Err(ApiError::new(ErrorCode::VolumeExists, message));
        }
        Ok(())
    }

    /// Replaces the entry of a volume by one of another name, and keeps the former name from others.
    pub(super) fn replace(
        &mut self,
        former: &VolumeEntry,
        renamed: &Arc<VolumeEntry>,
    ) -> Result<(), ApiError> {
        let name = &former.name;
        // The volume may have been renamed or deleted, and its name reused.
        if !self.get(name).is_some_and(|found| is_same(found, former)) {
            return Err(ApiError::new(ErrorCode::VolumeNotFound, format!("there is no volume {name}")));
        }
        self.reserve(renamed)?;
        self.by_name.remove(name);
        self.former.insert(name.clone());
        Ok(())
    }

    /// Releases a former name.
    pub(super) fn release(&mut self, name: &VolumeName) {
        self.former.remove(name);
    }

    /// Reverts [`replace`](Self::replace), unless the volume was removed since.
    pub(super) fn restore(&mut self, renamed: &VolumeEntry, former: &Arc<VolumeEntry>) {
        self.release(&former.name);
        if self.get(&renamed.name).is_some_and(|found| is_same(found, renamed)) {
            self.by_name.remove(&renamed.name);
            self.insert(Arc::clone(former));
        }
    }

    /// Removes a volume, whose name may have changed since the entry was found.
    pub(super) fn remove(&mut self, entry: &VolumeEntry) {
        self.by_name.retain(|_, found| !is_same(found, entry));
    }
}
