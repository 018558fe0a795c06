//! What each snapshot costs: the data that only it needs, and the data that it shares.
//!
//! Cut at the snapshots, the layers of a volume make slices: one for each snapshot, from the one before it,
//! and one from the newest snapshot to the head. A snapshot alone needs those blocks of its slice that the
//! next slice holds again: the next snapshot, or the head, no longer sees them, and the one before does not
//! see them yet. So all snapshots are worked out in one walk over the sets, without reading a block.

use crate::{layer_set::LayerSet, stack::Layer, volume::Volume};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, SnapshotId};
use std::sync::Arc;

/// What a snapshot costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotSpace {
    /// The snapshot.
    pub id: SnapshotId,
    /// Data that would be given back if this snapshot, and no other, were deleted; in bytes of whole blocks.
    pub exclusive_bytes: u64,
    /// The rest of the data that the snapshot holds: another snapshot or the volume itself needs it, too.
    pub shared_bytes: u64,
}

/// A snapshot whose next slice is not known yet.
struct Waiting {
    id: SnapshotId,
    /// The data of its slice.
    own: BlockSet,
    /// All the data that it holds, in blocks.
    data_blocks: u64,
}

impl Waiting {
    fn priced(mut self, held_next: &BlockSet) -> SnapshotSpace {
        self.own.intersect_with(held_next);
        let exclusive_blocks = self.own.len_blocks();
        SnapshotSpace {
            id: self.id,
            exclusive_bytes: exclusive_blocks * BLOCK_SIZE_BYTES,
            shared_bytes: (self.data_blocks - exclusive_blocks) * BLOCK_SIZE_BYTES,
        }
    }
}

impl Volume {
    /// What each snapshot costs, oldest first. Takes time with the size of the block sets, not with that of
    /// the data.
    pub fn snapshot_space(&self) -> Vec<SnapshotSpace> {
        let (mut points, layers): (Vec<_>, Vec<Layer>) = {
            // The stack under the same lock, or a merge could take a snapshot's layer away in between.
            let admin = self.admin.lock();
            let points = admin.snapshots.iter().map(|entry| (entry.epoch, entry.id)).collect();
            (points, Arc::clone(&self.current()).layers().to_vec())
        };
        points.sort_unstable();
        let mut layers = layers.iter().rev().peekable();
        let (mut total, mut found) = (LayerSet::default(), Vec::with_capacity(points.len()));
        let mut waiting: Option<Waiting> = None;
        for (epoch, id) in points {
            let mut slice = LayerSet::default();
            while let Some(layer) = layers.next_if(|layer| layer.epoch() <= epoch) {
                slice.cover_with(&layer.set());
            }
            total.cover_with(&slice);
            let own = slice.data();
            let data_blocks = total.held.len_blocks() - total.zero.len_blocks();
            found.extend(
                waiting.replace(Waiting { id, own, data_blocks }).map(|last| last.priced(&slice.held)),
            );
        }
        if let Some(last) = waiting {
            let mut held = BlockSet::new();
            layers.for_each(|layer| held.union_with(&layer.set().held));
            found.push(last.priced(&held));
        }
        found
    }
}
