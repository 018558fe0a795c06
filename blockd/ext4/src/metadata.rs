//! Location of a filesystem's metadata, which a mount or a file search reads first.

use crate::{ExtError, Filesystem, InodeNumber, features::bit};
use std::ops::Range;

/// End of the range with the boot block and the superblock.
const SUPERBLOCK_END_BYTES: u64 = 4096;
/// Maximum number of journal extents; only a crafted image has more.
const MAX_JOURNAL_EXTENTS: usize = 4096;

impl Filesystem {
    /// Returns byte ranges of metadata in the order of their probable use: superblock, journal (as a whole
    /// only if it needs recovery), group descriptors, then the initialized part of the inode table and the
    /// bitmaps of each group. At most `max_ranges` ranges, of at most as many groups. Directory blocks and
    /// extent tree nodes are not included.
    ///
    /// The result is a hint, such as for prefetch: damaged groups are skipped, a read error ends the list,
    /// and the journal is not applied.
    pub fn metadata(&self, max_ranges: usize) -> Vec<Range<u64>> {
        let mut found = Ranges { ranges: Vec::new(), max: max_ranges };
        found.add(Some(0..SUPERBLOCK_END_BYTES));
        // A damaged superblock may declare as many groups as blocks.
        let groups = self.groups().min(u32::try_from(max_ranges).unwrap_or(u32::MAX));
        let sb = self.superblock();
        let block_len = u64::from(sb.block_len);
        let blocks = |first: u64, count: u64| {
            let inside = self.disk().contains(first, count);
            inside.then(|| first * block_len..(first + count) * block_len)
        };
        self.add_journal(&mut found);
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

    fn add_journal(&self, found: &mut Ranges) {
        let number = self.superblock().journal_inode;
        if number == 0 {
            return;
        }
        let block_len = u64::from(self.superblock().block_len);
        let ranges = self.inode(InodeNumber(number)).and_then(|journal| {
            // Only the superblock of a clean journal is read.
            let is_needed = self.superblock().features.has_incompat(bit::INCOMPAT_RECOVER);
            let len = if is_needed { journal.size_bytes.div_ceil(block_len) } else { 1 };
            let (mut ranges, mut at) = (Vec::new(), 0);
            for _ in 0..MAX_JOURNAL_EXTENTS {
                if at >= len {
                    break;
                }
                let mapping = self.mapping(&journal, at)?;
                if let Some(first) = mapping.physical {
                    let count = mapping.len.min(len - at);
                    ranges.push(first * block_len..(first + count) * block_len);
                }
                at = at.saturating_add(mapping.len.max(1));
            }
            Ok::<_, ExtError>(ranges)
        });
        for range in ranges.unwrap_or_default() {
            found.add(Some(range));
        }
    }
}

/// Collected ranges; adjacent ones are merged.
struct Ranges {
    ranges: Vec<Range<u64>>,
    max: usize,
}

impl Ranges {
    fn is_full(&self) -> bool {
        self.ranges.len() >= self.max
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
