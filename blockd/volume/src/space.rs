//! Space of snapshots: exclusive and shared data.
//!
//! Snapshots divide the layers of a volume into slices: one for each snapshot, of the layers since the
//! previous snapshot, and one of the layers above the newest. A block of a snapshot's slice is exclusive if
//! the next slice holds it again: newer points read the newer version, and older ones an older version. So
//! one pass over the block sets computes the space of all snapshots, without reading data.

use crate::{layer::set::LayerSet, layer::stack::Layer, volume::Volume};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, SnapshotId};
use std::sync::Arc;

/// Space of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotSpace {
    /// The snapshot.
    pub id: SnapshotId,
    /// Bytes freed by deleting this snapshot alone, in whole blocks.
    pub exclusive_bytes: u64,
    /// Bytes shared with other snapshots or the volume.
    pub shared_bytes: u64,
}

/// Snapshot before the scan of the next slice.
struct PendingSnapshot {
    id: SnapshotId,
    /// Data of its slice.
    own: BlockSet,
    /// All data of the snapshot, in blocks.
    data_blocks: u64,
}

impl PendingSnapshot {
    fn finish(mut self, held_next: &BlockSet) -> SnapshotSpace {
        self.own.intersect_with(held_next);
        let exclusive_blocks = self.own.len_blocks();
        assert!(exclusive_blocks <= self.data_blocks, "a snapshot holds its exclusive blocks");
        SnapshotSpace {
            id: self.id,
            exclusive_bytes: exclusive_blocks * BLOCK_SIZE_BYTES,
            shared_bytes: (self.data_blocks - exclusive_blocks) * BLOCK_SIZE_BYTES,
        }
    }
}

impl Volume {
    /// Returns the space of each snapshot, oldest first. The time depends on the size of the block sets, not
    /// of the data.
    pub fn snapshot_space(&self) -> Vec<SnapshotSpace> {
        // A merge would remove the files of block sets.
        let _no_merge = self.pause_merges();
        let (mut points, layers): (Vec<_>, Vec<Layer>) = {
            // The stack under the same lock: otherwise a merge could remove a snapshot's layer in between.
            let admin = self.admin.lock();
            let points = admin.snapshots.iter().map(|entry| (entry.epoch, entry.id)).collect();
            (points, Arc::clone(&self.current()).layers().to_vec())
        };
        points.sort_unstable();
        let mut layers = layers.iter().rev().peekable();
        let (mut total, mut found) = (LayerSet::default(), Vec::with_capacity(points.len()));
        let mut pending: Option<PendingSnapshot> = None;
        for (epoch, id) in points {
            let mut slice = LayerSet::default();
            while let Some(layer) = layers.next_if(|layer| layer.epoch() <= epoch) {
                slice.cover_with(&layer.set_with_zeroes(&self.dir, self.id));
            }
            total.cover_with(&slice);
            let own = slice.data();
            let data_blocks = total.held.len_blocks() - total.zero.len_blocks();
            found.extend(
                pending
                    .replace(PendingSnapshot { id, own, data_blocks })
                    .map(|last| last.finish(&slice.held)),
            );
        }
        if let Some(last) = pending {
            let mut held = BlockSet::new();
            layers.for_each(|layer| held.union_with(&layer.set().held));
            found.push(last.finish(&held));
        }
        found
    }
}
