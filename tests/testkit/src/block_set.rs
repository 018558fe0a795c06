//! Properties of block sets decoded from arbitrary bytes.
#![allow(clippy::panic, reason = "a violated property must be found")]

use blockd_extent::{BlockIndex, BlockSet, Extent, MAX_VOLUME_BLOCKS};

/// Decodes `data` as a block set and checks its properties.
///
/// # Panics
/// If a property is violated.
pub fn block_set(data: &[u8]) {
    let Ok(set) = BlockSet::from_bytes(data) else {
        return;
    };
    let again = set.to_bytes();
    assert_eq!(again.len(), set.serialized_len(), "the predicted length is right");
    assert!(BlockSet::from_bytes(&again).as_ref() == Ok(&set), "an encoded set decodes to itself");
    assert_eq!(set.is_empty(), set.first().is_none());

    let (mut blocks, mut last_end) = (0, None);
    let mut rebuilt = BlockSet::new();
    for extent in set.extents() {
        assert!(extent.len_blocks > 0 && extent.end().0 <= MAX_VOLUME_BLOCKS, "{extent:?}");
        assert!(last_end.is_none_or(|end| end < extent.start), "extents ascend and are maximal");
        assert!(set.contains_extent(extent));
        assert_eq!((set.rank(extent.start), set.select(blocks)), (blocks, Some(extent.start)));
        last_end = Some(extent.end());
        blocks += extent.len_blocks;
        rebuilt.insert_extent(extent);
    }
    assert_eq!(blocks, set.len_blocks());
    assert_eq!(set.select(blocks), None);
    assert_eq!(last_end.map(|end| end.0 - 1), set.last().map(|last| last.0));
    assert!(rebuilt == set, "the extents are complete");

    let volume = Extent::new(BlockIndex(0), MAX_VOLUME_BLOCKS);
    let outside: u64 = set.gaps_in(volume).map(|gap| gap.len_blocks).sum();
    assert_eq!(outside + blocks, MAX_VOLUME_BLOCKS, "extents and gaps tile the volume");
    rebuilt.optimize();
    assert!(rebuilt == set);
    rebuilt.subtract(&set);
    assert!(rebuilt.is_empty());
}
