//! Block groups: location of their inodes and bitmaps (sections "Block Group Descriptors", "Meta Block
//! Groups").
//!
//! Descriptors are read on demand, so that the cost of opening a filesystem does not grow with its size.

use crate::{
    ExtError, Filesystem, Structure,
    bytes::{join, le16, le32},
    checksum::{crc16, crc32c},
    error::damaged,
    features::bit,
};
use std::ops::Range;

const CHECKSUM_AT: usize = 0x1e;
/// Minimum length of a descriptor with the high halves of its block numbers.
const LEN_64BIT: usize = 64;
/// `EXT4_BG_INODE_UNINIT` of `bg_flags`: the group's inode table and bitmap are uninitialized.
const INODE_UNINIT: u16 = 0x1;
/// `EXT4_BG_BLOCK_UNINIT` of `bg_flags`: the group's block bitmap is uninitialized.
const BLOCK_UNINIT: u16 = 0x2;

/// Descriptor of a group.
pub(crate) struct Group {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    /// Length of the initialized part of the inode table, in inodes.
    pub used_inodes: u32,
    pub has_block_bitmap: bool,
    pub has_inode_bitmap: bool,
    pub block_bitmap_checksum: u32,
    pub inode_bitmap_checksum: u32,
    /// Free clusters, which are blocks without the feature `bigalloc`.
    pub free_clusters: u32,
    pub free_inodes: u32,
    pub directories: u32,
}

impl Filesystem {
    /// Returns true if a group starts with the superblock or a backup of it.
    pub(crate) fn has_superblock(&self, group: u32) -> bool {
        let sb = self.superblock();
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        if group == 0 {
            true
        } else if sb.features.has_compat(bit::COMPAT_SPARSE_SUPER2) {
            sb.backup_groups.contains(&group)
        } else if group == 1 || !sb.features.has_ro_compat(bit::RO_COMPAT_SPARSE_SUPER) {
            true
        } else {
            group % 2 == 1 && (power_of(3) || power_of(5) || power_of(7))
        }
    }

    /// Returns the block that holds the descriptor of a group, and the byte offset in that block.
    fn descriptor_location(&self, group: u32) -> (u64, usize) {
        let sb = self.superblock();
        let per_block = sb.block_len / u32::from(sb.desc_len);
        let (number, within) = (group / per_block, (group % per_block) as usize * usize::from(sb.desc_len));
        let primary = u64::from(sb.block_len == 1024);
        if !sb.features.has_incompat(bit::INCOMPAT_META_BG) || number < sb.first_meta_bg {
            return (primary + u64::from(number) + 1, within);
        }
        // The descriptor block is in the first group of its meta block group, after the superblock backup if
        // present.
        let first = number * per_block;
        let mut skip = u64::from(self.has_superblock(first));
        // With 1 KiB blocks and first data block 0 (bigalloc), the boot block precedes the superblock.
        skip += u64::from(sb.block_len == 1024 && number == 0 && sb.first_data_block == 0);
        (skip + u64::from(sb.first_data_block) + u64::from(first) * u64::from(sb.blocks_per_group), within)
    }

    /// Returns the block that holds the descriptor of a group.
    pub(crate) fn descriptor_block(&self, group: u32) -> u64 {
        self.descriptor_location(group).0
    }

    /// Returns the number of groups.
    pub(crate) fn groups(&self) -> u32 {
        let sb = self.superblock();
        let groups = (sb.blocks - u64::from(sb.first_data_block)).div_ceil(sb.blocks_per_group.into());
        // The superblock is refused if the count exceeds 32 bits.
        u32::try_from(groups).unwrap_or(u32::MAX)
    }

    /// Returns the number of inodes in use, including directories and reserved inodes, by the descriptors.
    ///
    /// # Errors
    /// A descriptor is damaged or cannot be read.
    pub fn count_inodes_in_use(&self) -> Result<u64, ExtError> {
        let mut free = 0;
        for group in 0..self.groups() {
            free += u64::from(self.group(group)?.free_inodes);
        }
        Ok(u64::from(self.superblock().inodes).saturating_sub(free))
    }

    /// Returns the blocks of a group.
    pub(crate) fn group_blocks(&self, group: u32) -> Range<u64> {
        let sb = self.superblock();
        let first = u64::from(sb.first_data_block) + u64::from(group) * u64::from(sb.blocks_per_group);
        first..(first + u64::from(sb.blocks_per_group)).min(sb.blocks)
    }

    /// Returns the extents of a group with the superblock, the descriptors and those `reserved` for growth:
    /// first block and number of blocks.
    pub(crate) fn fixed_blocks(&self, group: u32, reserved: u16) -> Vec<(u64, u64)> {
        let sb = self.superblock();
        let mut first = self.group_blocks(group).start;
        let has_superblock = self.has_superblock(group);
        let mut found = Vec::new();
        if has_superblock {
            // With 1 KiB blocks and first data block 0 (bigalloc), the boot block precedes the superblock.
            let is_shifted = group == 0 && sb.block_len == 1024 && sb.first_data_block == 0;
            found.push((first, if is_shifted { 2 } else { 1 }));
            first += if is_shifted { 2 } else { 1 };
        }
        let per_block = sb.block_len / u32::from(sb.desc_len);
        let has_meta = sb.features.has_incompat(bit::INCOMPAT_META_BG);
        if has_meta && group / per_block >= sb.first_meta_bg {
            if matches!(group % per_block, 0 | 1) || group % per_block == per_block - 1 {
                found.push((first, 1));
            }
        } else if has_superblock {
            let descriptors = if has_meta {
                sb.first_meta_bg.into()
            } else {
                u64::from(self.groups().div_ceil(per_block)) + u64::from(reserved)
            };
            found.push((first, descriptors));
        }
        found.retain(|(_, count)| *count > 0);
        found
    }

    /// Returns the descriptor of a group; its block numbers are not checked.
    pub(crate) fn group(&self, group: u32) -> Result<Group, ExtError> {
        let sb = self.superblock();
        let (block, within) = self.descriptor_location(group);
        let bytes = self.disk().block(block)?;
        let Some(desc) = bytes.get(within..within + usize::from(sb.desc_len)) else {
            return damaged(Structure::GroupDescriptor(group), "beyond the end of its block");
        };
        let number = group.to_le_bytes();
        let stored = le16(desc, CHECKSUM_AT);
        let (before, after) = (&desc[..CHECKSUM_AT], &desc[CHECKSUM_AT + 2..]);
        let has_crc16 = sb.features.has_ro_compat(bit::RO_COMPAT_GDT_CSUM);
        let is_valid = if sb.has_checksums() {
            crc32c(sb.checksum_seed, &[&number, before, &[0; 2], after]) & 0xffff == u32::from(stored)
        } else if has_crc16 {
            crc16(&[&sb.uuid, &number, before, after]) == stored
        } else {
            true
        };
        if !is_valid {
            return damaged(Structure::GroupDescriptor(group), "checksum mismatch");
        }
        let is_64bit = desc.len() >= LEN_64BIT;
        let high = |at| if is_64bit { le32(desc, at) } else { 0 };
        // The flags and `bg_itable_unused` are valid only with descriptor checksums.
        let halves = |low_at, high_at| {
            let high = if is_64bit { u32::from(le16(desc, high_at)) << 16 } else { 0 };
            high | u32::from(le16(desc, low_at))
        };
        let flags = if sb.has_checksums() || has_crc16 { le16(desc, 0x12) } else { 0 };
        let unused = match sb.has_checksums() || has_crc16 {
            false => 0,
            true if flags & INODE_UNINIT != 0 => sb.inodes_per_group,
            true => halves(0x1c, 0x32),
        };
        Ok(Group {
            block_bitmap: join(high(0x20), le32(desc, 0x0)),
            inode_bitmap: join(high(0x24), le32(desc, 0x4)),
            inode_table: join(high(0x28), le32(desc, 0x8)),
            used_inodes: sb.inodes_per_group.saturating_sub(unused),
            has_block_bitmap: flags & BLOCK_UNINIT == 0,
            has_inode_bitmap: flags & INODE_UNINIT == 0,
            block_bitmap_checksum: halves(0x18, 0x38),
            inode_bitmap_checksum: halves(0x1a, 0x3a),
            free_clusters: halves(0xc, 0x2c),
            free_inodes: halves(0xe, 0x2e),
            directories: halves(0x10, 0x30),
        })
    }

    /// Returns the first block of a group's inode table.
    pub(crate) fn inode_table(&self, group: u32) -> Result<u64, ExtError> {
        let sb = self.superblock();
        let table = self.group(group)?.inode_table;
        let blocks = (u64::from(sb.inodes_per_group) * u64::from(sb.inode_len)).div_ceil(sb.block_len.into());
        if !self.disk().contains(table, blocks) {
            return damaged(Structure::GroupDescriptor(group), "inode table outside of the filesystem");
        }
        Ok(table)
    }
}
