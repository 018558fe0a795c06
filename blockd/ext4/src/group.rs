//! Block groups: where their inodes are (sections "Block Group Descriptors", "Meta Block Groups").
//!
//! Descriptors are read one by one when they are needed, so that opening a large filesystem costs nothing.

use crate::{
    ExtError, Filesystem, Place,
    bytes::{join, le16, le32},
    checksum::{crc16, crc32c},
    error::damaged,
    features::bit,
};

const CHECKSUM_AT: usize = 0x1e;
/// A descriptor of this length has the high halves of its numbers.
const WIDE_LEN: usize = 64;
/// In `bg_flags`: no inode of the group was ever used (`EXT4_BG_INODE_UNINIT`).
const INODES_UNUSED: u16 = 0x1;

/// Block numbers of a group's metadata.
pub(crate) struct Group {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    /// From the beginning of the table on.
    pub used_inodes: u32,
}

impl Filesystem {
    /// Returns true if a group starts with a copy of the superblock.
    fn has_superblock(&self, group: u32) -> bool {
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

    /// The block that holds the descriptor of a group, and where in it, in bytes.
    fn descriptor_place(&self, group: u32) -> (u64, usize) {
        let sb = self.superblock();
        let per_block = sb.block_len / u32::from(sb.desc_len);
        let (number, within) = (group / per_block, (group % per_block) as usize * usize::from(sb.desc_len));
        let primary = u64::from(sb.block_len == 1024);
        if !sb.features.has_incompat(bit::INCOMPAT_META_BG) || number < sb.first_meta_bg {
            return (primary + u64::from(number) + 1, within);
        }
        // The block of descriptors lies in the first of the groups that it describes, behind a superblock if
        // there is one.
        let first = number * per_block;
        let mut skip = u64::from(self.has_superblock(first));
        // With blocks of 1 KiB from 0 on, the boot block is in the way.
        skip += u64::from(sb.block_len == 1024 && number == 0 && sb.first_data_block == 0);
        (skip + u64::from(sb.first_data_block) + u64::from(first) * u64::from(sb.blocks_per_group), within)
    }

    /// The block of the group descriptors that holds that of a group.
    pub(crate) fn descriptor_block(&self, group: u32) -> u64 {
        self.descriptor_place(group).0
    }

    /// Returns the number of groups.
    pub(crate) fn groups(&self) -> u32 {
        let sb = self.superblock();
        let groups = (sb.blocks - u64::from(sb.first_data_block)).div_ceil(sb.blocks_per_group.into());
        // The superblock was refused if there were more.
        u32::try_from(groups).unwrap_or(u32::MAX)
    }

    /// Returns the descriptor of a group; its targets are not checked.
    pub(crate) fn group(&self, group: u32) -> Result<Group, ExtError> {
        let sb = self.superblock();
        let (block, within) = self.descriptor_place(group);
        let bytes = self.disk().block(block)?;
        let Some(desc) = bytes.get(within..within + usize::from(sb.desc_len)) else {
            return damaged(Place::Group(group), "it lies behind the end of its block");
        };
        let number = group.to_le_bytes();
        let stored = le16(desc, CHECKSUM_AT);
        let (before, behind) = (&desc[..CHECKSUM_AT], &desc[CHECKSUM_AT + 2..]);
        let old_checksums = sb.features.has_ro_compat(bit::RO_COMPAT_GDT_CSUM);
        let sound = if sb.has_checksums() {
            crc32c(sb.checksum_seed, &[&number, before, &[0; 2], behind]) & 0xffff == u32::from(stored)
        } else if old_checksums {
            crc16(&[&sb.uuid, &number, before, behind]) == stored
        } else {
            true
        };
        if !sound {
            return damaged(Place::Group(group), "it does not match its checksum");
        }
        let wide = desc.len() >= WIDE_LEN;
        let high = |at| if wide { le32(desc, at) } else { 0 };
        // Only where descriptors have checksums are some inodes known to be unused.
        let unused = match sb.has_checksums() || old_checksums {
            false => 0,
            true if le16(desc, 0x12) & INODES_UNUSED != 0 => sb.inodes_per_group,
            true => u32::from(le16(desc, 0x1c)) | if wide { u32::from(le16(desc, 0x32)) << 16 } else { 0 },
        };
        Ok(Group {
            block_bitmap: join(high(0x20), le32(desc, 0x0)),
            inode_bitmap: join(high(0x24), le32(desc, 0x4)),
            inode_table: join(high(0x28), le32(desc, 0x8)),
            used_inodes: sb.inodes_per_group.saturating_sub(unused),
        })
    }

    /// The first block of a group's inodes.
    pub(crate) fn inode_table(&self, group: u32) -> Result<u64, ExtError> {
        let sb = self.superblock();
        let table = self.group(group)?.inode_table;
        let blocks = (u64::from(sb.inodes_per_group) * u64::from(sb.inode_len)).div_ceil(sb.block_len.into());
        if !self.disk().has(table, blocks) {
            return damaged(Place::Group(group), "its inodes would lie behind the end of the filesystem");
        }
        Ok(table)
    }
}
