//! Difference between two points of a volume: two snapshots, or a snapshot and the current content.
//!
//! The layers between the points hold exactly the blocks that were written, trimmed or zeroed. Data is not
//! compared: a block overwritten with equal content counts as changed.

use crate::{error::VolumeError, layer::set::LayerSet, layer::stack::Layer, volume::Volume};
use blockd_extent::{Extent, SnapshotId};

/// Changed extents between two points, ascending.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    set: LayerSet,
    /// Size of the volume at the older point, in bytes.
    pub from_size_bytes: u64,
    /// Size of the volume at the newer point, in bytes.
    pub to_size_bytes: u64,
}

/// Changed extent of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DifferenceExtent {
    /// Blocks.
    pub extent: Extent,
    /// True for data at the newer point; false for zeroes.
    pub has_data: bool,
}

impl Difference {
    /// Returns the changed bytes with data at the newer point.
    pub fn data_bytes(&self) -> u64 {
        self.set.held.len_bytes() - self.set.zero.len_bytes()
    }

    /// Returns the bytes that became zeroes.
    pub fn zero_bytes(&self) -> u64 {
        self.set.zero.len_bytes()
    }

    /// Returns the maximal extents of one kind, clipped to a range.
    pub fn extents_in(&self, range: Extent) -> impl Iterator<Item = DifferenceExtent> + '_ {
        self.set.held.extents_in(range).flat_map(|held| {
            let mut zero = self.set.zero.extents_in(held).peekable();
            let mut at = held.start;
            std::iter::from_fn(move || {
                if at >= held.end() {
                    return None;
                }
                let next_zero = zero.peek().copied();
                let found = match next_zero {
                    Some(extent) if extent.start == at => {
                        zero.next();
                        DifferenceExtent { extent, has_data: false }
                    }
                    next => {
                        let end = next.map_or(held.end(), |extent| extent.start);
                        DifferenceExtent { extent: Extent::between(at, end), has_data: true }
                    }
                };
                debug_assert!(
                    !found.extent.is_empty() && found.extent.end() <= held.end(),
                    "parts of the extent"
                );
                at = found.extent.end();
                Some(found)
            })
        })
    }
}

impl Volume {
    /// Returns the difference from a snapshot to a newer one, or to the current content.
    ///
    /// # Errors
    /// A snapshot does not exist, or the second is not newer than the first.
    pub fn difference(&self, from: SnapshotId, to: Option<SnapshotId>) -> Result<Difference, VolumeError> {
        // A merge would remove the files of block sets.
        let _no_merge = self.pause_merges();
        let (from, to, stack) = {
            // The stack under the same lock: otherwise a merge could remove a layer in between.
            let admin = self.admin.lock();
            let from = self.find_snapshot(&admin, from)?;
            let to = to.map(|to| self.find_snapshot(&admin, to)).transpose()?;
            (from, to, self.current())
        };
        if let Some(to) = to
            && to.epoch <= from.epoch
        {
            return Err(VolumeError::InvalidInput(format!(
                "difference failed on snapshot {}: it is not older than snapshot {}",
                from.id, to.id
            )));
        }
        let until = to.map(|to| to.epoch);
        let within = |layer: &&Layer| until.is_none_or(|until| layer.epoch() <= until);
        let mut found = Difference::default();
        for layer in stack.layers().iter().rev().filter(within) {
            if layer.epoch() <= from.epoch {
                found.from_size_bytes = layer.size_bytes();
            } else {
                found.set.cover_with(&layer.set_with_zeroes(&self.dir, self.id));
            }
            found.to_size_bytes = layer.size_bytes();
        }
        assert!(found.from_size_bytes <= found.to_size_bytes, "a volume never shrinks");
        Ok(found)
    }
}
