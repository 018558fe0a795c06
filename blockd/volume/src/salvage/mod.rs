//! Salvage: read-only recovery of volumes that cannot be opened because files are missing, truncated
//! or corrupted.
//!
//! A read returns the content that the undamaged volume would return, or an error if that content cannot be
//! proven:
//!
//! * A held block without its data is unproven, unless the layer's set marks it as zeroes.
//! * A layer with unknown blocks may hold any of them, so each is unproven unless a newer layer holds it.
//! * Blocks that a layer does not hold, or that are beyond its end, are read from the layers below.
//!
//! `volume.meta` lists the layers; without it no content can be proven. One flipped bit in it, or in a small
//! set, is [corrected](repair) by trial. Data has no checksums, so corruption of data is not detected.

mod layer;
mod repair;
#[cfg(test)]
mod tests;

use crate::{
    OpenOptions, Recovery,
    error::{VolumeError, check_range},
    freeze::SnapshotInfo,
    layer::set::LayerSet,
    layer::stack::{Layer, Stack},
    meta::Meta,
    read::{Content, Start, from_disk, read_stack},
};
use blockd_extent::{BlockSet, Epoch, Extent, SnapshotId, VolumeId};
use layer::SalvagedLayer;
use repair::Repairer;
use std::path::Path;

/// Salvage of a damaged volume.
pub struct Salvage {
    meta: Meta,
    /// Layers, top first.
    layers: Vec<SalvagedLayer>,
    notes: Vec<String>,
}

/// View of a damaged volume: its latest state, or a snapshot.
pub struct SalvageView {
    stack: Stack,
    size_bytes: u64,
    /// Blocks whose content cannot be proven.
    unproven: BlockSet,
    /// Unproven blocks by cause.
    causes: Vec<(BlockSet, String)>,
}

/// Extent whose content cannot be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnprovenExtent<'a> {
    /// Blocks.
    pub extent: Extent,
    /// Cause, in one line.
    pub why: &'a str,
}

impl Salvage {
    /// Examines a volume, which must not be open.
    ///
    /// # Errors
    /// `volume.meta` is missing, has more than one flipped bit, or is of a newer format.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Self, VolumeError> {
        let trust_map = options.recovery == Recovery::Auto;
        let mut repairer = Repairer::new();
        let meta = repairer.meta(dir)?;
        let layers = meta
            .layers
            .iter()
            .map(|entry| SalvagedLayer::load(dir, &meta, entry, trust_map, &mut repairer))
            .collect::<Result<_, _>>()?;
        Ok(Self { meta, layers, notes: repairer.notes })
    }

    /// Returns the volume's id.
    pub fn id(&self) -> VolumeId {
        self.meta.volume
    }

    /// Returns the volume's size, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.meta.size_bytes
    }

    /// Returns the errors of the volume's files, one line each.
    pub fn findings(&self) -> Vec<String> {
        let causes = self.layers.iter().flat_map(|layer| &layer.unproven);
        let mut all = self.notes.clone();
        for (_, why) in causes {
            if !all.contains(why) {
                all.push(why.clone());
            }
        }
        all
    }

    /// Returns the snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        SnapshotInfo::list(&self.meta, &self.layers.iter().map(|layer| &layer.layer))
    }

    /// Returns a view of the latest state.
    pub fn latest(&self) -> SalvageView {
        self.view_at(None)
    }

    /// Returns a view of a snapshot.
    ///
    /// # Errors
    /// The snapshot does not exist.
    pub fn snapshot(&self, snapshot: SnapshotId) -> Result<SalvageView, VolumeError> {
        let entry = self.meta.snapshots.iter().find(|entry| entry.id == snapshot);
        let entry = entry.ok_or(VolumeError::NoSuchSnapshot { volume: self.meta.volume, snapshot })?;
        Ok(self.view_at(Some(entry.epoch)))
    }

    fn view_at(&self, until: Option<Epoch>) -> SalvageView {
        let is_within = |layer: &&SalvagedLayer| until.is_none_or(|until| layer.epoch() <= until);
        let layers: Vec<&SalvagedLayer> = self.layers.iter().filter(is_within).collect();
        let size_bytes = layers.first().map_or(0, |layer| layer.layer.size_bytes);
        let damaged = layers.iter().rposition(|layer| !layer.unproven.is_empty());
        let mut causes = Vec::new();
        let mut unproven = BlockSet::new();
        // Blocks that no layer has provided or hidden yet.
        let mut undecided = BlockSet::from_iter([Extent::whole(size_bytes)]);
        for layer in layers.iter().take(damaged.map_or(0, |last| last + 1)) {
            for (blocks, why) in &layer.unproven {
                let mut hidden = blocks.clone();
                hidden.intersect_with(&undecided);
                unproven.union_with(&hidden);
                if !hidden.is_empty() {
                    causes.push((hidden, why.clone()));
                }
            }
            undecided.subtract(&layer.layer.set.held);
            for (blocks, _) in &layer.unproven {
                undecided.subtract(blocks);
            }
        }
        debug_assert!(
            unproven.last().is_none_or(|last| last < Extent::whole(size_bytes).end()),
            "unproven blocks are inside the view"
        );
        unproven.optimize();
        let layers = layers.into_iter().map(|layer| Layer::Frozen(layer.layer.clone())).collect();
        SalvageView { stack: Stack::new(layers, &Stack::default()), size_bytes, unproven, causes }
    }
}

impl SalvageView {
    /// Returns the size of the view, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the number of unproven bytes.
    pub fn unproven_bytes(&self) -> u64 {
        self.unproven.len_bytes()
    }

    /// Returns the number of readable bytes with data; other readable bytes are zeroes.
    pub fn data_bytes(&self) -> u64 {
        let mut data = BlockSet::new();
        let mut above = LayerSet::default();
        for layer in self.stack.layers() {
            let set = layer.set();
            let mut own = set.data();
            own.subtract(&above.held);
            data.union_with(&own);
            above.held.union_with(&set.held);
        }
        data.subtract(&self.unproven);
        data.len_bytes()
    }

    /// Returns the unproven extents of a range with their causes, ascending.
    pub fn unproven_in(&self, range: Extent) -> impl Iterator<Item = UnprovenExtent<'_>> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let next = self.causes.iter().filter_map(|(blocks, why)| {
                let extent = blocks.extents_in(Extent::between(at, range.end())).next()?;
                Some(UnprovenExtent { extent, why })
            });
            let unproven = next.min_by_key(|unproven| unproven.extent.start)?;
            at = unproven.extent.end();
            Some(unproven)
        })
    }

    /// Reads at `offset_bytes`, any alignment, into `buf`; leaves `buf` unchanged for a range without data.
    ///
    /// # Errors
    /// The range is not inside the view, the content of a block is unproven, or the disk fails.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Content, VolumeError> {
        self.check_proven(offset_bytes, buf.len() as u64)?;
        let content = read_stack(&self.stack, Start::Top, offset_bytes, buf, from_disk)?;
        Ok(content.unwrap_or(Content::Data))
    }

    fn check_proven(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        check_range(offset_bytes, len_bytes, self.size_bytes)?;
        match self.unproven_in(Extent::touching(offset_bytes, len_bytes)).next() {
            None => Ok(()),
            Some(unproven) => {
                Err(VolumeError::Unproven { start: unproven.extent.start, why: unproven.why.to_owned() })
            }
        }
    }
}
