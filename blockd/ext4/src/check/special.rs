//! Superblock fields of a check.

use crate::{
    ExtError, Filesystem, InodeNumber,
    bytes::{join, le16, le32},
    features::bit,
    superblock,
};

/// Fields of the superblock that only a check reads.
pub(super) struct Special {
    pub state: u16,
    pub first_inode: u32,
    pub reserved_descriptor_blocks: u16,
    pub prealloc_dir_blocks: u8,
    /// Blocks of a cluster; 1 without the feature `bigalloc`.
    pub cluster_len: u32,
    pub last_orphan: u32,
    pub orphan_file: u32,
    quotas: [u32; 3],
    pub mmp_block: u64,
}

impl Special {
    pub fn read(fs: &Filesystem) -> Result<Self, ExtError> {
        let sb = fs.superblock();
        let (block, within) = superblock::location(sb.block_len);
        let mut bytes = [0; superblock::LEN];
        fs.disk().read(block, within, &mut bytes)?;
        let is_bigalloc = sb.features.has_ro_compat(bit::RO_COMPAT_BIGALLOC);
        let shift = le32(&bytes, 0x1c).saturating_sub(le32(&bytes, 0x18)).min(20);
        let is_dynamic = le32(&bytes, 0x4c) > 0;
        Ok(Self {
            state: le16(&bytes, 0x3a),
            first_inode: if is_dynamic { le32(&bytes, 0x54) } else { 11 },
            reserved_descriptor_blocks: le16(&bytes, 0xce),
            prealloc_dir_blocks: bytes[0xcd],
            cluster_len: if is_bigalloc { 1 << shift } else { 1 },
            last_orphan: le32(&bytes, 0xe8),
            orphan_file: if sb.features.has_compat(bit::COMPAT_ORPHAN_FILE) {
                le32(&bytes, 0x280)
            } else {
                0
            },
            quotas: [le32(&bytes, 0x240), le32(&bytes, 0x244), le32(&bytes, 0x26c)],
            mmp_block: if sb.features.has_incompat(bit::INCOMPAT_MMP) {
                join(le32(&bytes, 0x16c), le32(&bytes, 0x168))
            } else {
                0
            },
        })
    }

    /// Returns true for inodes without entries: reserved ones except the root directory, and quota files.
    pub fn has_no_entry(&self, number: InodeNumber) -> bool {
        let is_reserved = number.0 < self.first_inode && number != InodeNumber::ROOT;
        is_reserved || number.0 == self.orphan_file || self.quotas.contains(&number.0)
    }
}
