//! Bitmaps and free counts of the groups.

use super::{
    finding::{Count, Problem},
    inode_states::DIRECTORY,
    limits::Stop,
    state::{BLOCKS_AHEAD, Check, Stage},
};
use crate::{InodeNumber, Structure, checksum::crc32c, group::Group};
use std::ops::Range;

/// Groups whose bitmaps are announced together.
const GROUPS_AHEAD: u32 = BLOCKS_AHEAD as u32 / 2;

/// Sets bits of a bitmap.
fn set_bits(bitmap: &mut [u8], bits: Range<usize>) {
    for bit in bits {
        if let Some(byte) = bitmap.get_mut(bit / 8) {
            *byte |= 1 << (bit % 8);
        }
    }
}

fn is_set(bitmap: &[u8], bit: usize) -> bool {
    bitmap.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

/// Returns the first bit that only `a` has, and the number of such bits, among the first `len` bits.
fn only_in(a: &[u8], b: &[u8], len: usize) -> Option<(u64, u64)> {
    if a == b {
        return None;
    }
    let mut bits = (0..len).filter(|bit| is_set(a, *bit) && !is_set(b, *bit));
    let first = bits.next()?;
    Some((first as u64, 1 + bits.count() as u64))
}

fn count_free(bitmap: &[u8], len: usize) -> u64 {
    (0..len).filter(|bit| !is_set(bitmap, *bit)).count() as u64
}

impl Check<'_> {
    pub fn check_bitmaps(&mut self) -> Result<(), Stop> {
        let groups = self.fs.groups();
        for number in 0..groups {
            self.step(Stage::Bitmaps, number.into(), groups.into())?;
            if number % GROUPS_AHEAD == 0 {
                let next = (number..groups).take(GROUPS_AHEAD as usize);
                let next = next.filter_map(|group| self.fs.group(group).ok());
                let bitmaps = next.flat_map(|group| [(group.block_bitmap, 1), (group.inode_bitmap, 1)]);
                self.fs.disk().will_need(bitmaps);
            }
            // Damage of the descriptor is a finding already.
            if let Ok(group) = self.fs.group(number) {
                self.check_block_bitmap(number, &group)?;
                self.check_inode_bitmap(number, &group)?;
            }
        }
        Ok(())
    }

    /// Reads a bitmap and verifies its checksum over `len` bits.
    fn read_bitmap(&mut self, number: u32, block: u64, len: u32, sum: u32) -> Result<Option<Vec<u8>>, Stop> {
        if !self.fs.disk().contains(block, 1) {
            return Ok(None);
        }
        let Some(bytes) = self.read_block(block)? else { return Ok(None) };
        let sb = self.fs.superblock();
        let bitmap = bytes.get(..len as usize / 8).unwrap_or(&bytes);
        let mask = if sb.desc_len >= 64 { u32::MAX } else { 0xffff };
        if sb.has_checksums() && crc32c(sb.checksum_seed, &[bitmap]) & mask != sum & mask {
            self.add_damage(Structure::GroupDescriptor(number), "checksum mismatch of a bitmap");
            return Ok(None);
        }
        Ok(Some(bitmap.to_vec()))
    }

    /// Compares the block bitmap of a group.
    fn check_block_bitmap(&mut self, number: u32, group: &Group) -> Result<(), Stop> {
        let (structure, blocks) = (Structure::GroupDescriptor(number), self.fs.group_blocks(number));
        let cluster = u64::from(self.special.cluster_len);
        let per_group = (u64::from(self.fs.superblock().blocks_per_group) / cluster) as u32;
        let stored = if group.has_block_bitmap {
            self.read_bitmap(number, group.block_bitmap, per_group, group.block_bitmap_checksum)?
        } else {
            Some(self.initial_bitmap(number, group, per_group))
        };
        let Some(stored) = stored else { return Ok(()) };
        let mut claimed = vec![0; stored.len()];
        let mut at = blocks.start;
        while at < blocks.end {
            let (is_claimed, until) = self.claims.run(at, blocks.end);
            if is_claimed {
                let (from, to) = ((at - blocks.start) / cluster, (until - blocks.start).div_ceil(cluster));
                set_bits(&mut claimed, from as usize..to as usize);
            }
            at = until;
        }
        let len = (blocks.end - blocks.start).div_ceil(cluster) as usize;
        let at = |bit: u64| blocks.start + bit * cluster;
        if let Some((bit, count)) = only_in(&claimed, &stored, len) {
            self.add(structure, Problem::BlocksMarkedFree { first: at(bit), count });
        }
        // With a part of the files hidden, their blocks seem to be unused.
        if !self.is_incomplete
            && let Some((bit, count)) = only_in(&stored, &claimed, len)
        {
            self.add(structure, Problem::BlocksNotClaimed { first: at(bit), count });
        }
        let free = count_free(&stored, len);
        self.compare(structure, Count::FreeBlocks, group.free_clusters.into(), free);
        Ok(())
    }

    /// Returns the block bitmap of a group that has not been initialized.
    fn initial_bitmap(&self, number: u32, group: &Group, len: u32) -> Vec<u8> {
        let (blocks, cluster) = (self.fs.group_blocks(number), u64::from(self.special.cluster_len));
        let mut bitmap = vec![0; len as usize / 8];
        for (first, count) in self.own_blocks(number, group) {
            let (from, to) = (first.max(blocks.start), first.saturating_add(count).min(blocks.end));
            if from < to {
                let bits = (from - blocks.start) / cluster..(to - blocks.start).div_ceil(cluster);
                set_bits(&mut bitmap, bits.start as usize..bits.end as usize);
            }
        }
        bitmap
    }

    /// Compares the inode bitmap of a group.
    fn check_inode_bitmap(&mut self, number: u32, group: &Group) -> Result<(), Stop> {
        let (sb, structure) = (self.fs.superblock(), Structure::GroupDescriptor(number));
        let len = sb.inodes_per_group;
        let stored = if group.has_inode_bitmap {
            self.read_bitmap(number, group.inode_bitmap, len, group.inode_bitmap_checksum)?
        } else {
            Some(vec![0; len as usize / 8])
        };
        let (Some(stored), Some(states)) = (stored, self.groups.states(number)) else { return Ok(()) };
        let (mut used, mut directories) = (vec![0; stored.len()], 0u64);
        for (state, index) in states.iter().zip(0..).filter(|(state, _)| state.kind != 0) {
            set_bits(&mut used, index..index + 1);
            directories += u64::from(state.kind == DIRECTORY);
        }
        let first_number = number * len + 1;
        let at = |bit: u64| InodeNumber(first_number + bit as u32);
        let len = len as usize;
        if let Some((bit, count)) = only_in(&used, &stored, len) {
            self.add(structure, Problem::InodesMarkedFree { first: at(bit), count });
        }
        if let Some((bit, count)) = only_in(&stored, &used, len) {
            self.add(structure, Problem::InodesNotUsed { first: at(bit), count });
        }
        let free = count_free(&stored, len);
        self.compare(structure, Count::FreeInodes, group.free_inodes.into(), free);
        if !self.is_incomplete {
            self.compare(structure, Count::Directories, group.directories.into(), directories);
        }
        Ok(())
    }
}
