//! Superblock and group descriptors: geometry and location of metadata.

use super::{
    finding::{Count, Problem},
    inode_states::State,
    limits::Stop,
    state::{Check, Stage},
};
use crate::{Structure, features::bit, group::Group};

/// `EXT2_ERROR_FS` of `s_state`.
const STATE_ERRORS: u16 = 2;
/// Minimum number of blocks of a group.
const MIN_GROUP: u32 = 8;

impl Check<'_> {
    /// Checks fields of the superblock. Returns false if they make all further checks impossible.
    pub fn check_superblock(&mut self) -> bool {
        let sb = self.fs.superblock();
        if self.special.state & STATE_ERRORS != 0 {
            self.add(Structure::Superblock, Problem::RecordedErrors);
        }
        let max_bits = sb.block_len.saturating_mul(8);
        let clusters = sb.blocks_per_group / self.special.cluster_len;
        if clusters > max_bits || sb.blocks_per_group < MIN_GROUP || !sb.blocks_per_group.is_multiple_of(8) {
            self.add_damage(Structure::Superblock, "invalid number of blocks of a group");
            return false;
        }
        if sb.inodes_per_group > max_bits || !sb.inodes_per_group.is_multiple_of(8) {
            self.add_damage(Structure::Superblock, "invalid number of inodes of a group");
            return false;
        }
        if self.special.first_inode < 11 || self.special.first_inode > sb.inodes {
            self.add_damage(Structure::Superblock, "invalid number of the first inode");
            return false;
        }
        let inodes = u64::from(self.fs.groups()) * u64::from(sb.inodes_per_group);
        self.compare(Structure::Superblock, Count::Inodes, sb.inodes.into(), inodes);
        true
    }

    /// Claims the blocks of superblock, descriptors, bitmaps and inode tables.
    pub fn claim_groups(&mut self) -> Result<(), Stop> {
        let groups = self.fs.groups();
        self.memory.take(u64::from(groups) * size_of::<Option<Box<[State]>>>() as u64)?;
        for group in 0..groups {
            self.step(Stage::Groups, group.into(), groups.into())?;
            for (first, count) in self.fs.fixed_blocks(group, self.special.reserved_descriptor_blocks) {
                // A damaged count of reserved blocks may exceed the filesystem.
                if !self.fs.disk().contains(first.max(1), count) {
                    self.add_damage(
                        Structure::GroupDescriptor(group),
                        "descriptors outside of the filesystem",
                    );
                    continue;
                }
                self.claim(Structure::GroupDescriptor(group), first, count)?;
            }
        }
        for group in 0..groups {
            self.step(Stage::Groups, group.into(), groups.into())?;
            let states = self.claim_group(group)?;
            self.is_incomplete |= states.is_none();
            self.groups.0.push(states);
        }
        if self.special.mmp_block != 0 && self.fs.disk().contains(self.special.mmp_block, 1) {
            self.claim(Structure::Superblock, self.special.mmp_block, 1)?;
        }
        Ok(())
    }

    /// Claims bitmaps and inode table of a group. Returns its inodes, if the table is usable.
    fn claim_group(&mut self, number: u32) -> Result<Option<Box<[State]>>, Stop> {
        let (sb, owner) = (self.fs.superblock(), Structure::GroupDescriptor(number));
        let group = self.fs.group(number);
        let Some(group) = self.found(group)? else { return Ok(None) };
        for bitmap in [group.block_bitmap, group.inode_bitmap] {
            if !self.is_valid_location(number, bitmap, 1) {
                self.add_damage(owner, "bitmap outside of the filesystem or group");
                self.is_incomplete = true;
            } else if !self.claim(owner, bitmap, 1)? {
                self.is_incomplete = true;
            }
        }
        let table_len = self.table_blocks();
        if !self.is_valid_location(number, group.inode_table, table_len) {
            self.add_damage(owner, "inode table outside of the filesystem or group");
            return Ok(None);
        }
        if !self.claim(owner, group.inode_table, table_len)? {
            return Ok(None);
        }
        let used = group.used_inodes.min(sb.inodes_per_group) as usize;
        self.memory.take((used * size_of::<State>()) as u64)?;
        Ok(Some(vec![State::default(); used].into()))
    }

    /// Returns the number of blocks of an inode table.
    pub fn table_blocks(&self) -> u64 {
        let sb = self.fs.superblock();
        (u64::from(sb.inodes_per_group) * u64::from(sb.inode_len)).div_ceil(sb.block_len.into())
    }

    fn is_valid_location(&self, group: u32, first: u64, count: u64) -> bool {
        let is_flexible = self.fs.superblock().features.has_incompat(bit::INCOMPAT_FLEX_BG);
        let blocks = self.fs.group_blocks(group);
        self.fs.disk().contains(first, count)
            && (is_flexible || (first >= blocks.start && first + count <= blocks.end))
    }

    /// Returns the blocks of a group that its own metadata takes: all that is in use before its block bitmap
    /// is initialized.
    pub fn own_blocks(&self, number: u32, group: &Group) -> Vec<(u64, u64)> {
        let mut found = self.fs.fixed_blocks(number, self.special.reserved_descriptor_blocks);
        found.extend([(group.block_bitmap, 1), (group.inode_bitmap, 1)]);
        found.push((group.inode_table, self.table_blocks()));
        found
    }
}
