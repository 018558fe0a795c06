//! Properties of block sets.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use blockd_extent::{BlockIndex, BlockSet, Extent, MAX_VOLUME_BLOCKS};
use proptest::prelude::*;
use std::collections::BTreeSet;

const EDGE: u64 = 1 << 32;

/// Extents near the boundaries: zero, containers, shards, the end.
fn extent_near_boundary() -> impl Strategy<Value = Extent> {
    let base = prop_oneof![Just(0), Just(65_000), Just(EDGE - 300), Just(MAX_VOLUME_BLOCKS - 700)];
    (base, 0u64..600, 0u64..400).prop_map(|(base, offset, len)| {
        let start = (base + offset).min(MAX_VOLUME_BLOCKS - 1);
        Extent::new(BlockIndex(start), len.min(MAX_VOLUME_BLOCKS - start))
    })
}

fn model_extents(model: &BTreeSet<u64>, range: Extent) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for &block in model.range(range.start.0..range.end().0) {
        match extents.last_mut() {
            Some(extent) if extent.end().0 == block => extent.len_blocks += 1,
            _ => extents.push(Extent::new(BlockIndex(block), 1)),
        }
    }
    extents
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn block_set_matches_a_set_of_numbers(
        steps in prop::collection::vec((any::<bool>(), extent_near_boundary()), 1..20),
        probe in extent_near_boundary(),
        optimize in any::<bool>(),
    ) {
        let mut set = BlockSet::new();
        let mut model = BTreeSet::new();
        for (insert, extent) in steps {
            for block in extent.start.0..extent.end().0 {
                if insert { model.insert(block); } else { model.remove(&block); }
            }
            if insert { set.insert_extent(extent) } else { set.remove_extent(extent) }
        }
        if optimize { set.optimize(); }
        let everything = Extent::new(BlockIndex(0), MAX_VOLUME_BLOCKS);
        prop_assert_eq!(set.len_blocks(), model.len() as u64);
        prop_assert_eq!(set.first().map(|b| b.0), model.first().copied());
        prop_assert_eq!(set.last().map(|b| b.0), model.last().copied());
        prop_assert_eq!(set.extents().collect::<Vec<_>>(), model_extents(&model, everything));
        prop_assert_eq!(set.extents_in(probe).collect::<Vec<_>>(), model_extents(&model, probe));
        let mut complement = BlockSet::from_iter([probe]);
        complement.subtract(&set);
        prop_assert_eq!(set.gaps_in(probe).collect::<Vec<_>>(), complement.extents().collect::<Vec<_>>());
        prop_assert_eq!(set.intersection_len(probe), model.range(probe.start.0..probe.end().0).count() as u64);
        prop_assert_eq!(
            set.contains_extent(probe),
            (probe.start.0..probe.end().0).all(|block| model.contains(&block))
        );
        prop_assert_eq!(set.slice(probe).extents().collect::<Vec<_>>(), model_extents(&model, probe));
        for (rank, &block) in model.iter().enumerate().step_by(97) {
            prop_assert_eq!(set.rank(BlockIndex(block)), rank as u64);
            prop_assert_eq!(set.select(rank as u64), Some(BlockIndex(block)));
        }
        prop_assert_eq!(set.rank(BlockIndex(MAX_VOLUME_BLOCKS)), model.len() as u64);
        prop_assert_eq!(set.select(model.len() as u64), None);
        let bytes = set.to_bytes();
        prop_assert_eq!(bytes.len(), set.serialized_len());
        prop_assert_eq!(BlockSet::from_bytes(&bytes), Ok(set));
    }

    #[test]
    fn bits_of_a_bitmap_become_blocks(
        at in 0u64..200,
        base in prop_oneof![Just(0), Just(65_536 - 400), Just(EDGE - 800), Just(MAX_VOLUME_BLOCKS - 800)],
        bits in prop::collection::vec(prop_oneof![Just(0), Just(u8::MAX), any::<u8>()], 0..100),
        before in extent_near_boundary(),
    ) {
        let start = base + at / 8 * 8;
        let mut set = BlockSet::from_iter([before]);
        set.insert_bits(BlockIndex(start), &bits);
        let shard_end = (start / EDGE + 1) * EDGE;
        let mut expected = BlockSet::from_iter([before]);
        for block in start..(start + bits.len() as u64 * 8).min(shard_end) {
            if bits[(block - start) as usize / 8] >> (block % 8) & 1 == 1 {
                expected.insert(BlockIndex(block));
            }
        }
        prop_assert_eq!(&set, &expected);
        prop_assert!(set.is_subset(&expected));
        let added = (0..MAX_VOLUME_BLOCKS).step_by(EDGE as usize / 2).find(|&block| !set.contains(BlockIndex(block)));
        set.insert(BlockIndex(added.unwrap_or(0)));
        prop_assert_eq!(set.is_subset(&expected), added.is_none());
        prop_assert!(expected.is_subset(&set));
    }

    #[test]
    fn arbitrary_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(set) = BlockSet::from_bytes(&bytes) {
            prop_assert!(set.last().is_none_or(|last| last.0 < MAX_VOLUME_BLOCKS));
        }
    }

    #[test]
    fn damaged_encodings_never_panic(extent in extent_near_boundary(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let set = BlockSet::from_iter([extent, Extent::new(BlockIndex(7), 1)]);
        let mut bytes = set.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = BlockSet::from_bytes(&bytes);
        for cut in 0..bytes.len() {
            prop_assert!(BlockSet::from_bytes(&bytes[..cut]).as_ref() != Ok(&set));
        }
    }
}

/// Maximum memory of a terabyte: 32 MiB of bitmaps and their table.
const TERABYTE_MAX_BYTES: u64 = 33 << 20;
const TERABYTE_BLOCKS: u64 = 1 << 28;

/// Every other block of a sixteenth of a terabyte, built in different ways.
#[test]
fn worst_case_memory_is_a_bitmap() {
    let part = TERABYTE_BLOCKS / 16;
    let every_other = |from: u64| (from..part).step_by(2).map(|block| Extent::new(BlockIndex(block), 1));
    let mut added = BlockSet::new();
    // The first write of each container is a run.
    (0..part).step_by(1 << 16).for_each(|block| added.insert_extent(Extent::new(BlockIndex(block), 3)));
    every_other(0).for_each(|one| added.insert_extent(one));
    let mut removed = BlockSet::from_iter([Extent::new(BlockIndex(0), part)]);
    every_other(1).for_each(|one| removed.remove_extent(one));
    let mut subtracted = BlockSet::from_iter([Extent::new(BlockIndex(0), part)]);
    subtracted.subtract(&BlockSet::from_iter(every_other(1)));
    let mut united = BlockSet::from_iter(every_other(0).step_by(2));
    united.optimize();
    united.union_with(&BlockSet::from_iter(every_other(2).step_by(2)));
    for (name, set) in
        [("added", &added), ("removed", &removed), ("subtracted", &subtracted), ("united", &united)]
    {
        assert!(set.len_blocks() >= part / 2, "{name}");
        let used = set.heap_bytes_estimate();
        assert!(used <= TERABYTE_MAX_BYTES / 16, "{name}: {used} bytes");
    }
}

#[test]
fn block_beyond_max_volume_is_never_a_member() {
    let mut set = BlockSet::new();
    assert!(!set.insert(BlockIndex(MAX_VOLUME_BLOCKS)));
    set.insert_extent(Extent::new(BlockIndex(MAX_VOLUME_BLOCKS - 1), 10));
    assert_eq!(set.len_blocks(), 1);
    assert!(!set.contains_extent(Extent::new(BlockIndex(MAX_VOLUME_BLOCKS - 1), 2)));
}

#[test]
fn encoding_matches_documentation() {
    let set = BlockSet::from_iter([Extent::new(BlockIndex(EDGE + 5), 1)]);
    // One shard, number 1; an array container with key 0 and the single member 5.
    let expected = [
        &1u32.to_le_bytes()[..],
        &1u32.to_le_bytes(),
        &18u32.to_le_bytes(),
        &[0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 5, 0],
    ]
    .concat();
    assert_eq!(set.to_bytes(), expected);
}
