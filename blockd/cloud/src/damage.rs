//! What of a snapshot is damaged, where a read goes on past it.

use crate::CloudError;
use blockd_extent::{BlockSet, Extent};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Pieces that are described one by one; of more, only the blocks are known.
pub const MAX_DAMAGE_DESCRIBED: usize = 1000;

/// A damaged piece of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedPiece {
    /// Key of the object.
    pub object: String,
    /// Where the piece begins in it.
    pub offset_bytes: u64,
    /// What does not hold.
    pub what: String,
    /// The blocks that were to be had from it, in ascending runs.
    pub blocks: Vec<Extent>,
}

/// Everything that was found to be damaged.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Damage {
    /// The pieces, at most [`MAX_DAMAGE_DESCRIBED`] of them.
    pub pieces: Vec<DamagedPiece>,
    /// How many there are; of those that are not described, one may count again for each snapshot that it was
    /// met in.
    pub total: u64,
    /// All their blocks.
    pub blocks: BlockSet,
    /// The blocks by object, of the pieces that are not described too: snapshots are judged by them.
    pub(crate) objects: BTreeMap<String, BlockSet>,
}

impl Damage {
    /// Whether nothing is damaged.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    pub(crate) fn add(&mut self, error: CloudError, blocks: impl IntoIterator<Item = Extent>) {
        let CloudError::Damaged { key, offset_bytes, what, .. } = error else { return };
        let blocks: Vec<Extent> = blocks.into_iter().collect();
        let lost = self.objects.entry(key.clone()).or_default();
        for extent in &blocks {
            self.blocks.insert_extent(*extent);
            lost.insert_extent(*extent);
        }
        self.total += 1;
        if self.pieces.len() < MAX_DAMAGE_DESCRIBED {
            self.pieces.push(DamagedPiece { object: key, offset_bytes, what, blocks });
        }
    }

    /// Adds what was found elsewhere. What is damaged for one snapshot is for another one too: it is one
    /// piece.
    pub(crate) fn merge(&mut self, damage: Self) {
        let Self { pieces, total, blocks, objects } = damage;
        // Whether those that are not described are known already cannot be told: too many is better than too
        // few.
        self.total += total.saturating_sub(pieces.len() as u64);
        self.blocks.union_with(&blocks);
        for (object, blocks) in objects {
            self.objects.entry(object).or_default().union_with(&blocks);
        }
        for piece in pieces {
            let place = (&piece.object, piece.offset_bytes);
            match self.pieces.iter_mut().find(|known| (&known.object, known.offset_bytes) == place) {
                Some(known) => {
                    let all: BlockSet = known.blocks.iter().copied().chain(piece.blocks).collect();
                    known.blocks = all.extents().collect();
                }
                None => {
                    self.total += 1;
                    if self.pieces.len() < MAX_DAMAGE_DESCRIBED {
                        self.pieces.push(piece);
                    }
                }
            }
        }
    }
}

/// Takes down damage from several threads.
#[derive(Default, Debug)]
pub(crate) struct DamageList {
    damage: Mutex<Damage>,
}

impl DamageList {
    /// Takes down an error of the kind [`CloudError::Damaged`].
    pub fn add(&self, error: CloudError, blocks: impl IntoIterator<Item = Extent>) {
        self.damage.lock().add(error, blocks);
    }

    /// Which of these blocks are not damaged.
    pub fn sound(&self, blocks: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
        let mut sound: BlockSet = blocks.into_iter().collect();
        sound.subtract(&self.damage.lock().blocks);
        sound.extents().collect()
    }

    /// What was taken down so far, sorted by place.
    pub fn take(&self) -> Damage {
        let mut damage = std::mem::take(&mut *self.damage.lock());
        damage.pieces.sort_by(|a, b| (&a.object, a.offset_bytes).cmp(&(&b.object, b.offset_bytes)));
        damage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::BlockIndex;

    #[test]
    fn more_than_is_described_still_counts() {
        let list = DamageList::default();
        for n in (0..MAX_DAMAGE_DESCRIBED as u64 + 5).rev() {
            list.add(CloudError::damaged("pack", n, "torn"), [Extent::new(BlockIndex(2 * n), 1)]);
        }
        list.add(CloudError::Cancelled, [Extent::new(BlockIndex(1), 1)]);
        let sound = list.sound([Extent::new(BlockIndex(0), 4)]);
        assert_eq!(sound, [Extent::new(BlockIndex(1), 1), Extent::new(BlockIndex(3), 1)]);
        let damage = list.take();
        assert_eq!(damage.total, MAX_DAMAGE_DESCRIBED as u64 + 5);
        assert_eq!(damage.blocks.len_blocks(), damage.total);
        assert_eq!(damage.pieces.len(), MAX_DAMAGE_DESCRIBED);
        assert!(damage.pieces.is_sorted_by_key(|piece| piece.offset_bytes));

        let other = DamageList::default();
        other.add(CloudError::damaged("other", 0, "torn"), [Extent::new(BlockIndex(1), 1)]);
        other.add(CloudError::damaged("pack", 0, "torn"), [Extent::new(BlockIndex(3), 1)]);
        let mut all = other.take();
        all.merge(damage);
        // The first of the pack was known, or was not described: it may count twice, and is not lost.
        let most = MAX_DAMAGE_DESCRIBED as u64;
        assert!((most + 6..=most + 7).contains(&all.total), "{}", all.total);
        assert_eq!(all.pieces.len(), MAX_DAMAGE_DESCRIBED);
        assert_eq!(all.objects["pack"].len_blocks(), most + 6);
        assert_eq!(all.objects["other"].len_blocks(), 1);
        assert_eq!(all.blocks.len_blocks(), most + 7);
    }
}
