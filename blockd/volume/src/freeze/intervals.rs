//! Changes between two freezes.
//!
//! Each freeze stores the set of blocks dirtied in its epoch, the interval set, which outlives the
//! merge of the layer. An incremental backup is planned from these sets, without reading data and
//! without an older snapshot.

use crate::{
    error::VolumeError,
    io::files,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::Layer,
    meta::LayerEntry,
    volume::Volume,
};
use blockd_extent::{BlockSet, Epoch};

/// Blocks of a backup, in two disjoint sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Blocks whose data must be read.
    pub data: BlockSet,
    /// Blocks that became zeroes and need no read.
    pub zero: BlockSet,
}

impl Volume {
    /// Returns the blocks of a backup of the end of epoch `until`, based on the end of epoch `since`, if any.
    ///
    /// Without `since`, returns all blocks with data and an empty `zero`. For a lazy volume this may
    /// query the source.
    ///
    /// # Errors
    /// [`VolumeError::IntervalsGone`] if a required interval set was deleted;
    /// [`VolumeError::InvalidInput`] if `until` is not the epoch of a frozen layer (full), or not
    /// after `since`; or the disk or source fails.
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
                    // The source determines which blocks have data.
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
                "data blocks of volume {} are unknown: no frozen layer ends in epoch {until}",
                self.id
            )));
        }
        Ok(Changes { data: total.data(), zero: BlockSet::new() })
    }

    fn changes_after(&self, since: Epoch, until: Epoch) -> Result<Changes, VolumeError> {
        if since >= until {
            return Err(VolumeError::InvalidInput(format!(
                "changed blocks of volume {} are undefined: epoch {until} is not after {since}",
                self.id
            )));
        }
        // Under the lock, so that no interval set is deleted in between.
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

    /// Deletes the interval sets of epochs up to `keep_after`, or all.
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
        let deleted: Vec<Epoch> =
            admin.intervals.iter().copied().filter(|epoch| !meta.intervals.contains(epoch)).collect();
        self.commit(&mut admin, meta)?;
        for epoch in deleted {
            // The set of a frozen layer that was never merged is the same file.
            let in_use = admin.layers.iter().any(|layer| layer.file == epoch && layer.generation == 0);
            if !in_use {
                files::remove_if_exists(&files::set_path(&self.dir, epoch, 0))?;
            }
        }
        Ok(())
    }
}
