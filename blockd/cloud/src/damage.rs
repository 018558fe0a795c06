//! Damage found by reads that skip it.

use crate::{CloudError, references::displaced_extent};
use blockd_extent::{BlockSet, Extent};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Maximum number of described damaged parts; for further ones only the blocks are recorded.
pub const MAX_DAMAGE_DESCRIBED: usize = 1000;

/// Damaged part of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedPart {
    /// Key of the object.
    pub object: String,
    /// Offset of the part.
    pub offset_bytes: u64,
    /// Violation.
    pub what: String,
    /// Affected blocks of the snapshot.
    pub blocks: Vec<Extent>,
    /// Affected blocks of the object's delta, which differ for displaced references.
    pub(crate) stored: Vec<Extent>,
}

/// All damage found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Damage {
    /// Damaged parts, at most [`MAX_DAMAGE_DESCRIBED`].
    pub parts: Vec<DamagedPart>,
    /// Number of damaged parts; an undescribed one may count once per snapshot.
    pub total: u64,
    /// All affected blocks.
    pub blocks: BlockSet,
    /// Affected blocks of each object's delta, also of undescribed parts, to find the affected snapshots.
    pub(crate) objects: BTreeMap<String, BlockSet>,
}

impl Damage {
    /// Returns true if there is no damage.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns the keys of all damaged objects.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.objects.keys().map(String::as_str)
    }

    pub(crate) fn add(&mut self, error: CloudError, blocks: impl IntoIterator<Item = Extent>) {
        self.add_displaced(error, blocks.into_iter().map(|extent| (extent, 0)));
    }

    /// Adds damage to blocks of a snapshot, each with its displacement to the object's delta.
    fn add_displaced(&mut self, error: CloudError, blocks: impl IntoIterator<Item = (Extent, i64)>) {
        let CloudError::Damaged { key, offset_bytes, what, .. } = error else { return };
        let (mut affected, mut stored) = (Vec::new(), Vec::new());
        let lost = self.objects.entry(key.clone()).or_default();
        for (extent, displacement) in blocks {
            let Some(in_delta) = displaced_extent(extent, displacement) else { continue };
            self.blocks.insert_extent(extent);
            lost.insert_extent(in_delta);
            affected.push(extent);
            stored.push(in_delta);
        }
        self.total += 1;
        if self.parts.len() < MAX_DAMAGE_DESCRIBED {
            self.parts.push(DamagedPart { object: key, offset_bytes, what, blocks: affected, stored });
        }
        debug_assert!(self.total >= self.parts.len() as u64);
    }

    /// Merges other damage. A part damaged in several snapshots counts once.
    pub(crate) fn merge(&mut self, damage: Self) {
        let Self { parts, total, blocks, objects } = damage;
        debug_assert!(total >= parts.len() as u64, "{total} damaged parts, {} described", parts.len());
        // Undescribed parts may be duplicates: over-counting is safe.
        self.total += total.saturating_sub(parts.len() as u64);
        self.blocks.union_with(&blocks);
        for (object, blocks) in objects {
            self.objects.entry(object).or_default().union_with(&blocks);
        }
        for part in parts {
            let place = (&part.object, part.offset_bytes);
            match self.parts.iter_mut().find(|known| (&known.object, known.offset_bytes) == place) {
                Some(known) => {
                    let union = |known: &mut Vec<Extent>, more: Vec<Extent>| {
                        *known = known.iter().copied().chain(more).collect::<BlockSet>().extents().collect();
                    };
                    union(&mut known.blocks, part.blocks);
                    union(&mut known.stored, part.stored);
                }
                None => {
                    self.total += 1;
                    if self.parts.len() < MAX_DAMAGE_DESCRIBED {
                        self.parts.push(part);
                    }
                }
            }
        }
    }
}

/// Collector of damage from several threads.
#[derive(Default, Debug)]
pub(crate) struct DamageList {
    damage: Mutex<Damage>,
}

impl DamageList {
    /// Records an error of kind [`CloudError::Damaged`].
    pub fn add(&self, error: CloudError, blocks: impl IntoIterator<Item = Extent>) {
        self.damage.lock().add(error, blocks);
    }

    /// Records damage to blocks, each with its displacement to the object's delta.
    pub fn add_displaced(&self, error: CloudError, blocks: impl IntoIterator<Item = (Extent, i64)>) {
        self.damage.lock().add_displaced(error, blocks);
    }

    /// Returns the undamaged blocks.
    pub fn sound(&self, blocks: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
        let mut sound: BlockSet = blocks.into_iter().collect();
        sound.subtract(&self.damage.lock().blocks);
        sound.extents().collect()
    }

    /// Returns the recorded damage, sorted by position.
    pub fn take(&self) -> Damage {
        let mut damage = std::mem::take(&mut *self.damage.lock());
        damage.parts.sort_by(|a, b| (&a.object, a.offset_bytes).cmp(&(&b.object, b.offset_bytes)));
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
        assert_eq!(damage.parts.len(), MAX_DAMAGE_DESCRIBED);
        assert!(damage.parts.is_sorted_by_key(|part| part.offset_bytes));

        let other = DamageList::default();
        other.add(CloudError::damaged("other", 0, "torn"), [Extent::new(BlockIndex(1), 1)]);
        other.add(CloudError::damaged("pack", 0, "torn"), [Extent::new(BlockIndex(3), 1)]);
        let mut all = other.take();
        all.merge(damage);
        // The first part of the pack was known or undescribed: it may count twice, but is not lost.
        let most = MAX_DAMAGE_DESCRIBED as u64;
        assert!((most + 6..=most + 7).contains(&all.total), "{}", all.total);
        assert_eq!(all.parts.len(), MAX_DAMAGE_DESCRIBED);
        assert_eq!(all.objects["pack"].len_blocks(), most + 6);
        assert_eq!(all.objects["other"].len_blocks(), 1);
        assert_eq!(all.blocks.len_blocks(), most + 7);
    }
}
