//! Comparisons of answers with the model.

use super::Block;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_volume::{Allocation, AllocationExtent, Content, Difference, DirtyExtent, VolumeError};
use std::fs::File;

pub fn check_difference(found: &Difference, changed: &[bool], then: &[Block]) {
    let mut expected = vec![None; changed.len()];
    for (at, block) in then.iter().enumerate().filter(|pair| changed[pair.0]) {
        expected[at] = Some(block.has_data);
    }
    let mut named = vec![None; changed.len()];
    let (mut data_bytes, mut zero_bytes, mut last) = (0, 0, None);
    for run in found.extents_in(Extent::whole(changed.len() as u64 * BLOCK_SIZE_BYTES)) {
        let range = run.extent.start.0 as usize..run.extent.end().0 as usize;
        let is_next =
            |(end, kind): (usize, bool)| end < range.start || (end == range.start && kind != run.has_data);
        assert!(last.is_none_or(is_next), "ascending, and as long as can be");
        last = Some((range.end, run.has_data));
        named[range].fill(Some(run.has_data));
        *(if run.has_data { &mut data_bytes } else { &mut zero_bytes }) += run.extent.len_bytes();
    }
    assert_eq!(named, expected);
    assert_eq!((found.data_bytes(), found.zero_bytes()), (data_bytes, zero_bytes));
}

/// Extents of an answer.
pub type FoundRuns<T> = Vec<(u64, T)>;

pub fn allocation(runs: Result<Vec<AllocationExtent>, VolumeError>) -> FoundRuns<Allocation> {
    runs.unwrap().into_iter().map(|run| (run.len_bytes, run.allocation)).collect()
}

pub fn dirty(runs: Result<Vec<DirtyExtent>, VolumeError>) -> FoundRuns<bool> {
    runs.unwrap().into_iter().map(|run| (run.len_bytes, run.dirty)).collect()
}

/// Answer of the model about a block.
pub trait Says<T> {
    fn says(&self) -> T;
}

impl Says<Allocation> for Block {
    fn says(&self) -> Allocation {
        match (self.has_data, self.kept) {
            (true, _) => Allocation::Data,
            (false, true) => Allocation::Zero,
            (false, false) => Allocation::Hole,
        }
    }
}

impl Says<bool> for bool {
    fn says(&self) -> bool {
        *self
    }
}

/// Asks for ranges of all alignments, for many and for few runs at once, and compares with what is said block
/// by block.
pub fn check_runs<T, B>(model: &[B], ask: impl Fn(u64, u64, usize) -> FoundRuns<T>)
where
    T: Copy + PartialEq + std::fmt::Debug,
    B: Says<T>,
{
    let size = model.len() as u64 * BLOCK_SIZE_BYTES;
    for (start, end, most) in [(0, size, usize::MAX), (1, size - 1, 3), (5000, 60_001, 1), (4095, 4097, 9)] {
        let mut at = start;
        while at < end {
            let runs = ask(at, end - at, most);
            assert!(!runs.is_empty() && runs.len() <= most);
            assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours of the same kind");
            for (len, what) in runs {
                assert!(len > 0 && at + len <= end, "{len} bytes at {at} beyond {end}");
                for block in at / 4096..(at + len).div_ceil(4096) {
                    assert_eq!(what, model[block as usize].says(), "block {block}");
                }
                at += len;
            }
        }
        if most == usize::MAX {
            assert_eq!(at, end, "with enough room, one call tells all");
        }
    }
}

/// Zeroes are reported exactly where no block has data, and the buffer is not touched then.
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

/// Returns the first difference before the end of the shorter one.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(x, y)| x != y)
}

/// Every block that differs is named, and a block that is named as zero is zero.
pub fn assert_covers(before: &[u8], after: &[u8], data: &BlockSet, zero: &BlockSet) {
    let before = [before, &vec![0; after.len().saturating_sub(before.len())]].concat();
    for block in 0..after.len() as u64 / BLOCK_SIZE_BYTES {
        let range = (block * BLOCK_SIZE_BYTES) as usize..((block + 1) * BLOCK_SIZE_BYTES) as usize;
        let index = BlockIndex(block);
        let (in_data, in_zero) = (data.contains(index), zero.contains(index));
        assert!(!(in_data && in_zero));
        assert!(
            in_data || in_zero || before[range.clone()] == after[range.clone()],
            "block {block} changed unnoticed"
        );
        assert!(!in_zero || after[range].iter().all(|&byte| byte == 0), "block {block} is not zero");
    }
}
