//! Samples of files, by inode numbers.

use crate::{ExtError, FileKind, Filesystem, Inode, InodeNumber, bytes::le16};

/// First inode of files with names (`EXT4_GOOD_OLD_FIRST_INO`); those before it are of the filesystem itself.
const FIRST_FILE: u32 = 11;

impl Filesystem {
    /// Returns the regular file of an inode that a random number selects; `None` if that inode is not in use,
    /// or no regular file. Each block group has the same probability, and in it each inode of the initialized
    /// part of its table.
    ///
    /// # Errors
    /// The inode is damaged, or the image cannot be read.
    pub fn random_file(&self, random: u64) -> Result<Option<Inode>, ExtError> {
        let per_group = self.superblock().inodes_per_group;
        let (low, high) = (random & u64::from(u32::MAX), random >> 32);
        // Below the number of groups, which has 32 bits.
        let group = (low % u64::from(self.groups().max(1))) as u32;
        let used = self.group(group)?.used_inodes;
        if used == 0 {
            return Ok(None);
        }
        let index = (high % u64::from(used)) as u32;
        // The superblock ensures that inode numbers have 32 bits.
        let number = InodeNumber(group.saturating_mul(per_group).saturating_add(index).saturating_add(1));
        if number.0 < FIRST_FILE {
            return Ok(None);
        }
        let (block, within) = self.raw_inode(number)?;
        let raw = &block[within];
        let (mode, links) = (le16(raw, 0), le16(raw, 0x1a));
        if mode == 0 || links == 0 {
            return Ok(None);
        }
        Ok(Some(self.parse_inode(number, raw)?).filter(|inode| inode.kind == FileKind::Regular))
    }
}
