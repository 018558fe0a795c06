//! Location of a filesystem's metadata, which a mount or a file search reads first.

use crate::{ExtError, Filesystem, InodeNumber, features::bit};
use std::ops::Range;

/// The superblock and the boot block before it.
const SUPERBLOCK_END_BYTES: u64 = 4096;
/// Maximum number of journal extents; more only in a crafted image.
const MAX_JOURNAL_RUNS: usize = 4096;

impl Filesystem {
    /// Ranges of bytes that hold metadata, in the order in which they are likely to be wanted: superblock,
    /// journal (all of it only if it was not played back), group descriptors, then the inodes in use and the
    /// bitmaps, group by group. Not more than `most` of them, nor of more groups; blocks that a directory or
    /// an extent tree is made of are found through files only, and are not among them.
    ///
    /// Only a hint: a group that is damaged is left out, what cannot be read ends the list, and nothing is
    /// said of what the journal would change.
    pub fn metadata(&self, most: usize) -> Vec<Range<u64>> {
        let mut found = Ranges { ranges: Vec::new(), most };
        found.add(Some(0..SUPERBLOCK_END_BYTES));
        // A damaged superblock may say that each block is a group.
        let groups = self.groups().min(u32::try_from(most).unwrap_or(u32::MAX));
        let sb = self.superblock();
        let block_len = u64::from(sb.block_len);
        let blocks = |first: u64, count: u64| {
            let inside = self.disk().has(first, count);
            inside.then(|| first * block_len..(first + count) * block_len)
        };
        self.journal_runs(&mut found);
        let mut descriptors = None;
        for group in 0..groups {
            let block = self.descriptor_block(group);
            if descriptors != Some(block) {
                found.add(blocks(block, 1));
                descriptors = Some(block);
            }
            if found.is_full() {
                return found.ranges;
            }
        }
        for group in 0..groups {
            let group = match self.group(group) {
                Ok(group) => group,
                Err(ExtError::Read { .. }) => break,
                Err(_) => continue,
            };
            if group.used_inodes == 0 {
                continue;
            }
            let table = (u64::from(group.used_inodes) * u64::from(sb.inode_len)).div_ceil(block_len);
            found.add(blocks(group.inode_table, table));
            found.add(blocks(group.inode_bitmap, 1));
            found.add(blocks(group.block_bitmap, 1));
            if found.is_full() {
                break;
            }
        }
        found.ranges
    }

    fn journal_runs(&self, found: &mut Ranges) {
        let number = self.superblock().journal_inode;
        if number == 0 {
            return;
        }
        let block_len = u64::from(self.superblock().block_len);
        let runs = self.inode(InodeNumber(number)).and_then(|journal| {
            // Only the superblock of a clean journal is read.
            let is_needed = self.superblock().features.has_incompat(bit::INCOMPAT_RECOVER);
            let len = if is_needed { journal.size_bytes.div_ceil(block_len) } else { 1 };
            let (mut runs, mut at) = (Vec::new(), 0);
            for _ in 0..MAX_JOURNAL_RUNS {
                if at >= len {
                    break;
                }
                let run = self.block_run(&journal, at)?;
                if let Some(stored) = run.stored {
                    let count = run.len.min(len - at);
                    runs.push(stored * block_len..(stored + count) * block_len);
                }
                at = at.saturating_add(run.len.max(1));
            }
            Ok::<_, ExtError>(runs)
        });
        for run in runs.unwrap_or_default() {
            found.add(Some(run));
        }
    }
}

/// Ranges as they come; one that continues the last one makes that longer.
struct Ranges {
    ranges: Vec<Range<u64>>,
    most: usize,
}

impl Ranges {
    fn is_full(&self) -> bool {
        self.ranges.len() >= self.most
    }

    fn add(&mut self, range: Option<Range<u64>>) {
        let Some(range) = range else { return };
        if let Some(last) = self.ranges.last_mut().filter(|last| last.end == range.start) {
            last.end = range.end;
        } else if !self.is_full() {
            self.ranges.push(range);
        }
    }
}
