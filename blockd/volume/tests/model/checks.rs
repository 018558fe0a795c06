//! Comparisons of query results with the model.

use super::Block;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_volume::{Allocation, AllocationExtent, Content, Difference, DirtyExtent, VolumeError};
use std::fs::File;

/// Checks a difference: `changed` are its blocks, `newer` is the state of the newer point.
pub fn check_difference(found: &Difference, changed: &[bool], newer: &[Block]) {
    let mut expected = vec![None; changed.len()];
    for (at, block) in newer.iter().enumerate().filter(|pair| changed[pair.0]) {
        expected[at] = Some(block.has_data);
    }
    let mut reported = vec![None; changed.len()];
    let (mut data_bytes, mut zero_bytes, mut last) = (0, 0, None);
    for run in found.extents_in(Extent::whole(changed.len() as u64 * BLOCK_SIZE_BYTES)) {
        let range = run.extent.start.0 as usize..run.extent.end().0 as usize;
        let is_next =
            |(end, kind): (usize, bool)| end < range.start || (end == range.start && kind != run.has_data);
        assert!(last.is_none_or(is_next), "extents are not ascending and maximal");
        last = Some((range.end, run.has_data));
        reported[range].fill(Some(run.has_data));
        *(if run.has_data { &mut data_bytes } else { &mut zero_bytes }) += run.extent.len_bytes();
    }
    assert_eq!(reported, expected);
    assert_eq!((found.data_bytes(), found.zero_bytes()), (data_bytes, zero_bytes));
}

/// Extents of a query result: lengths in bytes and their kinds.
pub type FoundExtents<T> = Vec<(u64, T)>;

pub fn allocation(extents: Result<Vec<AllocationExtent>, VolumeError>) -> FoundExtents<Allocation> {
    extents.unwrap().into_iter().map(|run| (run.len_bytes, run.allocation)).collect()
}

pub fn dirty(extents: Result<Vec<DirtyExtent>, VolumeError>) -> FoundExtents<bool> {
    extents.unwrap().into_iter().map(|run| (run.len_bytes, run.dirty)).collect()
}

/// Expected result of a query for a block.
pub trait Expected<T> {
    fn expected(&self) -> T;
}

impl Expected<Allocation> for Block {
    fn expected(&self) -> Allocation {
        match (self.has_data, self.kept) {
            (true, _) => Allocation::Data,
            (false, true) => Allocation::Zero,
            (false, false) => Allocation::Hole,
        }
    }
}

impl Expected<bool> for bool {
    fn expected(&self) -> bool {
        *self
    }
}

/// Queries ranges of different alignments, with many and with few extents per query, and compares each
/// block with the model.
pub fn check_extents<T, B>(model: &[B], query: impl Fn(u64, u64, usize) -> FoundExtents<T>)
where
    T: Copy + PartialEq + std::fmt::Debug,
    B: Expected<T>,
{
    let size = model.len() as u64 * BLOCK_SIZE_BYTES;
    for (start, end, max) in [(0, size, usize::MAX), (1, size - 1, 3), (5000, 60_001, 1), (4095, 4097, 9)] {
        let mut at = start;
        while at < end {
            let extents = query(at, end - at, max);
            assert!(!extents.is_empty() && extents.len() <= max);
            assert!(
                extents.windows(2).all(|pair| pair[0].1 != pair[1].1),
                "two neighbouring extents of the same kind"
            );
            for (len, kind) in extents {
                assert!(len > 0 && at + len <= end, "{len} bytes at {at} beyond {end}");
                for block in at / 4096..(at + len).div_ceil(4096) {
                    assert_eq!(kind, model[block as usize].expected(), "block {block}");
                }
                at += len;
            }
        }
        if max == usize::MAX {
            assert_eq!(at, end, "an unlimited query ended early");
        }
    }
}

/// Checks that reads report zeroes exactly where no block has data, and leave the buffer unchanged then.
pub fn check_reads(
    content: &[u8],
    blocks: &[Block],
    read: impl Fn(u64, &mut [u8]) -> Result<Content, VolumeError>,
) {
    for at in (0..content.len()).step_by(30_011) {
        let mut found = vec![0xee; 10_000.min(content.len() - at)];
        let all = at..at + found.len();
        let has_data = blocks[at / 4096..all.end.div_ceil(4096)].iter().any(|block| block.has_data);
        match read(at as u64, &mut found).unwrap() {
            Content::Data => assert!(has_data && found == content[all]),
            Content::Zeroes => {
                assert!(!has_data && found.iter().all(|&byte| byte == 0xee));
                assert!(content[all].iter().all(|&byte| byte == 0));
            }
        }
    }
}

pub fn is_hole(file: &File, block: u64) -> bool {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(block * BLOCK_SIZE_BYTES)) {
        Ok(next) => next >= (block + 1) * BLOCK_SIZE_BYTES,
        Err(rustix::io::Errno::NXIO) => true,
        Err(errno) => panic!("lseek: {errno}"),
    }
}

/// Returns the position of the first difference, up to the end of the shorter slice.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(x, y)| x != y)
}

/// Checks that the sets have each block that differs, and that each block of `zero` is zeroes.
pub fn assert_covers(before: &[u8], after: &[u8], data: &BlockSet, zero: &BlockSet) {
    let before = [before, &vec![0; after.len().saturating_sub(before.len())]].concat();
    for block in 0..after.len() as u64 / BLOCK_SIZE_BYTES {
        let range = (block * BLOCK_SIZE_BYTES) as usize..((block + 1) * BLOCK_SIZE_BYTES) as usize;
        let index = BlockIndex(block);
        let (in_data, in_zero) = (data.contains(index), zero.contains(index));
        assert!(!(in_data && in_zero));
        assert!(
            in_data || in_zero || before[range.clone()] == after[range.clone()],
            "block {block} changed and is in no set"
        );
        assert!(!in_zero || after[range].iter().all(|&byte| byte == 0), "block {block} is not zero");
    }
}
