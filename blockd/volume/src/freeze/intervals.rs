//! Changes between two freezes.
//!
//! Each freeze stores the blocks dirtied in its epoch, the interval set, which stays when the layer is
//! merged: an incremental backup is planned from these sets in memory, without reading data and without an
//! old snapshot.

use crate::{
    error::VolumeError,
    io::files,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::Layer,
    meta::LayerEntry,
    volume::Volume,
};
use blockd_extent::{BlockSet, Epoch};

/// Blocks of a backup; the two sets are disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Blocks whose data must be read.
    pub data: BlockSet,
    /// Blocks that became zeroes; no data to read.
    pub zero: BlockSet,
}

impl Volume {
    /// Returns the blocks of a backup of the end of epoch `until`, based on the end of epoch `since`, if any.
    ///
    /// Without `since` these are all blocks with data (`zero` is empty: everything else is zeroes). For a
    /// lazy volume the source is asked where needed.
    ///
    /// # Errors
    /// [`VolumeError::IntervalsGone`] if a required set is no longer kept; [`VolumeError::InvalidInput`] if
    /// `until` is not the epoch of a layer (full), or not after `since`; or the disk fails.
    pub fn changes(&self, since: Option<Epoch>, until: Epoch) -> Result<Changes, VolumeError> {
        match since {
            None => self.all_data(until),
            Some(since) => self.changes_after(since, until),
        }
    }

    fn all_data(&self, until: Epoch) -> Result<Changes, VolumeError> {
        let stack = self.current();
        let mut total = LayerSet::default();
        let mut found = false;
        for layer in stack.layers().iter().rev().filter(|layer| layer.epoch() <= until) {
            if let Layer::Frozen(layer) = layer {
                match layer.data.lazy() {
                    // Only the source knows where it has data.
                    Some(base) => {
                        total.cover_with(&LayerSet { held: base.data_set()?, ..LayerSet::default() });
                    }
                    None => total.cover_with(&layer.set),
                }
                found |= layer.epoch == until;
            }
        }
        if !found {
            return Err(VolumeError::InvalidInput(format!(
                "volume {} has no frozen layer of epoch {until}",
                self.id
            )));
        }
        Ok(Changes { data: total.data(), zero: BlockSet::new() })
    }

    fn changes_after(&self, since: Epoch, until: Epoch) -> Result<Changes, VolumeError> {
        if since >= until {
            return Err(VolumeError::InvalidInput(format!("epoch {until} is not after epoch {since}")));
        }
        // Under the lock, so that no interval is dropped in between.
        let admin = self.admin.lock();
        let mut total = LayerSet::default();
        for epoch in (since.0 + 1..=until.0).map(Epoch) {
            if admin.intervals.binary_search(&epoch).is_err() {
                return Err(VolumeError::IntervalsGone { volume: self.id, after: since, until });
            }
            total.cover_with(&LayerSet::load_of_any_size(&self.dir, self.interval_identity(epoch))?);
        }
        drop(admin);
        Ok(Changes { data: total.data(), zero: total.zero })
    }

    pub(crate) fn interval_identity(&self, epoch: Epoch) -> SetIdentity {
        SetIdentity::of(self.id, &LayerEntry::frozen(epoch, self.size_bytes()))
    }

    /// Drops the interval sets of epochs up to `keep_after`, or all.
    ///
    /// # Errors
    /// The disk fails.
    pub fn forget_intervals(&self, keep_after: Option<Epoch>) -> Result<(), VolumeError> {
        let mut admin = self.admin.lock();
        self.check_usable()?;
        let mut meta = admin.clone();
        meta.intervals.retain(|&epoch| keep_after.is_some_and(|limit| epoch > limit));
        if meta.intervals == admin.intervals {
            return Ok(());
        }
        let dropped: Vec<Epoch> =
            admin.intervals.iter().copied().filter(|epoch| !meta.intervals.contains(epoch)).collect();
        self.commit(&mut admin, meta)?;
        for epoch in dropped {
            // A layer that was never merged uses the same file.
            let in_use = admin.layers.iter().any(|layer| layer.file == epoch && layer.generation == 0);
            if !in_use {
                files::remove_if_there(&files::set_path(&self.dir, epoch, 0))?;
            }
        }
        Ok(())
    }
}
