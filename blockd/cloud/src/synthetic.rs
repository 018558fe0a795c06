//! Synthetic full backups: blocks that did not change since an earlier snapshot become references.

use crate::{
    CloudError, Manifest, Repository, SnapshotReader, dedup::MAX_FOUND_GROUPS, manifest::Delta,
    names::DeltaId, reader::BulkRead, references::References,
};
use blockd_extent::{BlockSet, Extent};
use std::collections::BTreeMap;

/// Maximum number of sources of a planned backup. Blocks of further ones, those with the fewest blocks, are
/// stored again, so that the number of deltas that a snapshot needs stays bounded.
pub(crate) const MAX_PLANNED_SOURCES: usize = 256;

/// Maximum number of sets by source and displacement of a planned backup, and twice as many meanwhile.
/// Blocks of further ones are stored again.
pub(crate) const MAX_UNCHANGED_GROUPS: usize = 8 * MAX_FOUND_GROUPS;

/// A source is sparse if less than this share of its data blocks is referenced. Its blocks are stored again,
/// so that it can be deleted with the snapshots that need the rest.
const SPARSE_SHARE: u64 = 4;

/// A backup stores at most this share of the referenced blocks again because their sources are sparse; the
/// next ones continue. A large source would otherwise make one backup as long as a full one, and look like an
/// unusual change.
const MOVED_SHARE: u64 = 32;

/// Blocks of a synthetic full backup that did not change since its base.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Unchanged {
    /// Blocks that stored deltas have.
    pub references: References,
    /// Blocks to store again.
    pub again: BlockSet,
}

impl Unchanged {
    /// Stores again the blocks whose content is among the lost blocks of their source.
    pub fn without(mut self, lost_of: impl Fn(&Delta) -> BlockSet) -> Self {
        self.again.union_with(&self.references.take(lost_of));
        self
    }
}

/// Finds the stored content of all blocks but `changed`. Reads the indexes of the base, and no pack. The
/// blocks of sparse sources are stored again; a source that `stays` is not sparse.
///
/// # Errors
/// [`CloudError::Damaged`] if an index of the base is damaged; [`CloudError::UnknownKey`]; errors of the
/// store.
pub async fn unchanged_since(
    repo: &Repository,
    base: &Manifest,
    changed: &BlockSet,
    stays: impl Fn(&Delta) -> bool,
) -> Result<Unchanged, CloudError> {
    let reader = SnapshotReader::open(repo, base).await?;
    let what = BulkRead { skip: Some(changed), ..BulkRead::default() };
    let mut pages = reader.visible(Extent::whole(base.size_bytes), &what);
    let (mut found, mut again) = (Found::new(), BlockSet::new());
    while let Some(page) = pages.next().await? {
        let mut add = |source, displacement, blocks: &BlockSet| {
            let mut blocks = blocks.clone();
            blocks.intersect_with(&page.visible);
            if !blocks.is_empty() {
                found.entry((source, displacement)).or_default().union_with(&blocks);
            }
        };
        add(page.delta.reader.id(), 0, &page.page.data);
        for group in &page.page.references {
            add(page.delta.reader.source(group), group.displacement, &group.blocks);
        }
        if found.len() > 2 * MAX_UNCHANGED_GROUPS {
            again.union_with(&take_smallest_groups(&mut found, MAX_UNCHANGED_GROUPS));
        }
    }
    again.union_with(&take_smallest_groups(&mut found, MAX_UNCHANGED_GROUPS));
    again.union_with(&take_smallest(&mut found, MAX_PLANNED_SOURCES));
    let deltas = base.deltas().filter(|delta| !stays(delta));
    let data_blocks = deltas.map(|delta| (delta.id(), delta.data_blocks)).collect();
    again.union_with(&take_sparse(&mut found, &data_blocks));
    let references = References::new(found, base.deltas(), None).map_err(|missing| {
        let what = format!("its references name {}, which the manifest does not", missing.prefix());
        CloudError::damaged(&base.delta.id().index_key(), 0, what)
    })?;
    Ok(Unchanged { references, again })
}

/// Blocks by their sources and displacements.
type Found = BTreeMap<(DeltaId, i64), BlockSet>;

/// Returns the sources with their numbers of blocks, the one with the fewest first.
fn by_size(found: &Found) -> Vec<(u64, DeltaId)> {
    let mut sizes: BTreeMap<DeltaId, u64> = BTreeMap::new();
    for ((source, _), blocks) in found {
        *sizes.entry(*source).or_default() += blocks.len_blocks();
    }
    let mut by_size: Vec<(u64, DeltaId)> = sizes.into_iter().map(|(source, len)| (len, source)).collect();
    by_size.sort_unstable();
    by_size
}

/// Removes up to `max_blocks` blocks of a source.
fn take(found: &mut Found, from: DeltaId, max_blocks: u64) -> BlockSet {
    let mut taken = BlockSet::new();
    for (_, blocks) in found.range_mut((from, i64::MIN)..=(from, i64::MAX)) {
        let mut left = max_blocks - taken.len_blocks();
        let mut part = BlockSet::new();
        for extent in blocks.extents() {
            part.insert_extent(Extent::new(extent.start, extent.len_blocks.min(left)));
            left -= extent.len_blocks.min(left);
        }
        blocks.subtract(&part);
        taken.union_with(&part);
    }
    found.retain(|_, blocks| !blocks.is_empty());
    taken
}

/// Removes the blocks of all but `max` sources, those with the most blocks.
fn take_smallest(found: &mut Found, max: usize) -> BlockSet {
    let (mut again, mut small) = (BlockSet::new(), by_size(found));
    small.truncate(small.len().saturating_sub(max));
    small.into_iter().for_each(|(_, source)| again.union_with(&take(found, source, u64::MAX)));
    again
}

/// Removes the blocks of all but `max` groups, those with the most blocks.
fn take_smallest_groups(found: &mut Found, max: usize) -> BlockSet {
    let (mut again, too_many) = (BlockSet::new(), found.len().saturating_sub(max));
    let mut sizes: Vec<_> = found.iter().map(|(group, blocks)| (blocks.len_blocks(), *group)).collect();
    sizes.sort_unstable();
    for (_, group) in sizes.into_iter().take(too_many) {
        again.union_with(&found.remove(&group).unwrap_or_default());
    }
    again
}

/// Removes the blocks of sparse sources, up to a share of all blocks.
fn take_sparse(found: &mut Found, data_blocks: &BTreeMap<DeltaId, u64>) -> BlockSet {
    let (mut again, by_size) = (BlockSet::new(), by_size(found));
    let max_blocks = by_size.iter().map(|(len, _)| len).sum::<u64>() / MOVED_SHARE;
    for (len, source) in by_size {
        if data_blocks.get(&source).is_some_and(|all| len < all / SPARSE_SHARE) {
            let left = max_blocks - again.len_blocks();
            again.union_with(&take(found, source, left));
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockIndex, SnapshotId, VolumeId};

    fn id(snapshot: u64) -> DeltaId {
        let (cluster, volume) = (uuid::Uuid::nil(), VolumeId::from_u64(1));
        DeltaId { cluster, volume, snapshot: SnapshotId::from_u64(snapshot) }
    }

    fn set(start: u64, len: u64) -> BlockSet {
        BlockSet::from_iter([Extent::new(BlockIndex(start), len)])
    }

    #[test]
    fn blocks_of_the_smallest_sources_are_stored_again() {
        // The first source has the most blocks together.
        let mut found = BTreeMap::from([
            ((id(1), 0), set(0, 3)),
            ((id(1), 5), set(10, 3)),
            ((id(2), 0), set(20, 4)),
            ((id(3), 0), set(30, 5)),
        ]);
        let all = found.clone();
        assert!(take_smallest(&mut found, 3).is_empty());
        assert_eq!(found, all);
        assert_eq!(take_smallest(&mut found, 2), set(20, 4));
        assert_eq!(found.len(), 3);
        assert_eq!(take_smallest(&mut found, 1), set(30, 5));
        assert!(found.keys().all(|(source, _)| *source == id(1)));
    }

    #[test]
    fn blocks_of_the_smallest_groups_are_stored_again() {
        let mut found = BTreeMap::from([
            ((id(1), 0), set(0, 3)),
            ((id(1), 5), set(10, 1)),
            ((id(2), 0), set(20, 4)),
            ((id(2), 7), set(30, 2)),
        ]);
        let all = found.clone();
        assert!(take_smallest_groups(&mut found, 4).is_empty());
        assert_eq!(found, all);
        let mut taken = set(10, 1);
        taken.union_with(&set(30, 2));
        assert_eq!(take_smallest_groups(&mut found, 2), taken);
        assert!(found.keys().all(|(_, displacement)| *displacement == 0));
    }

    #[test]
    fn blocks_of_sparse_sources_are_stored_again_in_parts() {
        let mut found = BTreeMap::from([
            ((id(1), 0), set(0, 10)),
            ((id(1), 9), set(10, 14)),
            ((id(2), 0), set(100, 25)),
            ((id(3), 0), set(200, 4)),
            ((id(4), 0), set(300, 479)),
        ]);
        let data_blocks = BTreeMap::from([(id(1), 100), (id(2), 100), (id(3), 20), (id(4), 479)]);
        // A 32nd of 532 blocks: those of the smallest sparse source, then a part of the next.
        let mut expected = set(200, 4);
        expected.union_with(&set(0, 12));
        assert_eq!(take_sparse(&mut found, &data_blocks), expected);
        assert_eq!(found.values().map(BlockSet::len_blocks).sum::<u64>(), 532 - 16);
        assert_eq!(take_sparse(&mut found, &data_blocks), set(12, 12));
        assert_eq!(take_sparse(&mut found, &data_blocks), BlockSet::new(), "a quarter is not sparse");
        assert_eq!(by_size(&found), [(25, id(2)), (479, id(4))]);
    }
}
