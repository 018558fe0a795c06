//! Synthetic full backups: blocks that did not change since an earlier snapshot become references.

use crate::{
    CloudError, Manifest, Repository, SnapshotReader, manifest::Delta, names::DeltaId, reader::BulkRead,
    references::References,
};
use blockd_extent::{BlockSet, Extent};
use std::collections::BTreeMap;

/// Maximum number of sources of a planned backup. Blocks of further ones, those with the fewest blocks, are
/// stored again: so the number of deltas that a snapshot needs stays bounded, and old deltas become unneeded.
const MAX_PLANNED_SOURCES: usize = 256;

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

/// Finds the stored content of all blocks but `changed`. Reads the indexes of the base, and no pack.
///
/// # Errors
/// [`CloudError::Damaged`] if an index of the base is damaged; [`CloudError::UnknownKey`]; errors of the
/// store.
pub async fn unchanged_since(
    repo: &Repository,
    base: &Manifest,
    changed: &BlockSet,
) -> Result<Unchanged, CloudError> {
    let reader = SnapshotReader::open(repo, base).await?;
    let what = BulkRead { skip: Some(changed), ..BulkRead::default() };
    let mut pages = reader.visible(Extent::whole(base.size_bytes), &what);
    let mut found: BTreeMap<(DeltaId, i64), BlockSet> = BTreeMap::new();
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
    }
    let again = take_smallest(&mut found, MAX_PLANNED_SOURCES);
    let references = References::new(found, base.deltas()).map_err(|missing| {
        let what = format!("its references name {}, which the manifest does not", missing.prefix());
        CloudError::damaged(&base.delta.id().index_key(), 0, what)
    })?;
    Ok(Unchanged { references, again })
}

/// Removes the blocks of all but `max` sources, those with the most blocks.
fn take_smallest(found: &mut BTreeMap<(DeltaId, i64), BlockSet>, max: usize) -> BlockSet {
    let mut sizes: BTreeMap<DeltaId, u64> = BTreeMap::new();
    for ((source, _), blocks) in found.iter() {
        *sizes.entry(*source).or_default() += blocks.len_blocks();
    }
    let mut by_size: Vec<(u64, DeltaId)> = sizes.into_iter().map(|(source, len)| (len, source)).collect();
    by_size.sort_unstable();
    by_size.truncate(by_size.len().saturating_sub(max));
    let mut again = BlockSet::new();
    for ((source, _), blocks) in found.iter() {
        if by_size.iter().any(|(_, small)| small == source) {
            again.union_with(blocks);
        }
    }
    found.retain(|(source, _), _| by_size.iter().all(|(_, small)| small != source));
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockIndex, SnapshotId, VolumeId};

    #[test]
    fn blocks_of_the_smallest_sources_are_stored_again() {
        let id = |snapshot| DeltaId {
            cluster: uuid::Uuid::nil(),
            volume: VolumeId::from_u64(1),
            snapshot: SnapshotId::from_u64(snapshot),
        };
        let set = |start, len| BlockSet::from_iter([Extent::new(BlockIndex(start), len)]);
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
}
