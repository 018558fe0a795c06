//! Properties of block sets decoded from arbitrary bytes.
#![allow(clippy::panic, reason = "what does not hold is to be found")]

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
    assert_eq!(again.len(), set.serialized_len(), "the length is known beforehand");
    assert!(BlockSet::from_bytes(&again).as_ref() == Ok(&set), "what is written reads back");
    assert_eq!(set.is_empty(), set.first().is_none());

    let (mut blocks, mut last_end) = (0, None);
    let mut rebuilt = BlockSet::new();
    for run in set.extents() {
        assert!(run.len_blocks > 0 && run.end().0 <= MAX_VOLUME_BLOCKS, "{run:?}");
        assert!(last_end.is_none_or(|end| end < run.start), "runs ascend and are maximal");
        assert!(set.contains_extent(run));
        assert_eq!((set.rank(run.start), set.select(blocks)), (blocks, Some(run.start)));
        last_end = Some(run.end());
        blocks += run.len_blocks;
        rebuilt.insert_extent(run);
    }
    assert_eq!(blocks, set.len_blocks());
    assert_eq!(set.select(blocks), None);
    assert_eq!(last_end.map(|end| end.0 - 1), set.last().map(|last| last.0));
    assert!(rebuilt == set, "the runs are all of it");

    let volume = Extent::new(BlockIndex(0), MAX_VOLUME_BLOCKS);
    let outside: u64 = set.gaps_in(volume).map(|gap| gap.len_blocks).sum();
    assert_eq!(outside + blocks, MAX_VOLUME_BLOCKS, "runs and gaps tile the volume");
    rebuilt.optimize();
    assert!(rebuilt == set);
    rebuilt.subtract(&set);
    assert!(rebuilt.is_empty());
}
