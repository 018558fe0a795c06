//! The superblock (section "The Super Block").

use crate::{
    ExtError, ReadAt, Structure,
    bytes::{join, le16, le32},
    checksum::{START, crc32c},
    disk,
    error::damaged,
    features::{Features, bit},
};

const OFFSET_BYTES: u64 = 1024;
pub(crate) const LEN: usize = 1024;
const MAGIC_AT: usize = 0x38;
const MAGIC: u16 = 0xef53;
const CHECKSUM_AT: usize = 0x3fc;
const CHECKSUM_TYPE_CRC32C: u8 = 1;
/// `s_log_block_size` of the maximum block size, 64 KiB.
const MAX_LOG_BLOCK_LEN: u32 = 6;
const INODE_LEN_OLD: u16 = 128;
const DESC_LEN_32: u16 = 32;
const DESC_LEN_64: u16 = 64;

/// Checked fields of the superblock.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub features: Features,
    pub inodes: u32,
    pub blocks: u64,
    pub block_len: u32,
    pub first_data_block: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    pub inode_len: u16,
    pub desc_len: u16,
    pub first_meta_bg: u32,
    pub backup_groups: [u32; 2],
    pub journal_inode: u32,
    pub journal_device: u32,
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    /// Seed of metadata checksums.
    pub checksum_seed: u32,
}

/// Returns true if the magic number matches.
pub(crate) fn probe(source: &dyn ReadAt) -> Result<bool, ExtError> {
    if source.size_bytes() < OFFSET_BYTES + LEN as u64 {
        return Ok(false);
    }
    let mut magic = [0; 2];
    disk::read(source, OFFSET_BYTES + MAGIC_AT as u64, &mut magic)?;
    Ok(u16::from_le_bytes(magic) == MAGIC)
}

/// Returns true if the primary superblock names a device as its journal. Other fields are not checked, also
/// not the revision: the kernel uses the features of revision 0, too.
pub(crate) fn names_journal_device(source: &dyn ReadAt) -> Result<bool, ExtError> {
    if !probe(source)? {
        return Ok(false);
    }
    let mut bytes = [0; LEN];
    disk::read(source, OFFSET_BYTES, &mut bytes)?;
    Ok(le32(&bytes, 0x5c) & bit::COMPAT_HAS_JOURNAL != 0 && le32(&bytes, 0xe4) != 0)
}

/// Reads the primary superblock.
pub(crate) fn read(source: &dyn ReadAt) -> Result<Superblock, ExtError> {
    if !probe(source)? {
        return Err(ExtError::NoFilesystem);
    }
    let mut bytes = [0; LEN];
    disk::read(source, OFFSET_BYTES, &mut bytes)?;
    parse(&bytes, source.size_bytes())
}

/// Returns the block that holds the primary superblock, and the byte offset in that block.
pub(crate) fn location(block_len: u32) -> (u64, usize) {
    match block_len {
        1024 => (1, 0),
        _ => (0, OFFSET_BYTES as usize),
    }
}

/// Returns true for revision 1 (`EXT4_DYNAMIC_REV`); revision 0 has no features and a fixed inode size.
fn is_dynamic(bytes: &[u8; LEN]) -> bool {
    le32(bytes, 0x4c) > 0
}

/// Returns the features, after a check of the superblock's checksum with the feature `metadata_csum`.
fn features(bytes: &[u8; LEN]) -> Result<Features, ExtError> {
    let field = |at| if is_dynamic(bytes) { le32(bytes, at) } else { 0 };
    let features = Features { compat: field(0x5c), incompat: field(0x60), ro_compat: field(0x64) };
    features.check()?;
    if features.has_ro_compat(bit::RO_COMPAT_METADATA_CSUM) {
        if bytes[0x175] != CHECKSUM_TYPE_CRC32C {
            return Err(ExtError::unsupported("unknown checksum type"));
        }
        if crc32c(START, &[&bytes[..CHECKSUM_AT]]) != le32(bytes, CHECKSUM_AT) {
            return damaged(Structure::Superblock, "checksum mismatch");
        }
    }
    Ok(features)
}

/// Parses a superblock and checks it against the size of the image.
pub(crate) fn parse(bytes: &[u8; LEN], size_bytes: u64) -> Result<Superblock, ExtError> {
    let invalid = |reason| damaged(Structure::Superblock, reason);
    if le16(bytes, MAGIC_AT) != MAGIC {
        return Err(ExtError::NoFilesystem);
    }
    let dynamic = is_dynamic(bytes);
    let features = features(bytes)?;
    let log_block_len = le32(bytes, 0x18);
    if log_block_len > MAX_LOG_BLOCK_LEN {
        return invalid("invalid block size");
    }
    let block_len = 1024u32 << log_block_len;
    let is_64bit = features.has_incompat(bit::INCOMPAT_64BIT);
    let blocks = join(if is_64bit { le32(bytes, 0x150) } else { 0 }, le32(bytes, 0x4));
    if blocks.checked_mul(block_len.into()).is_none_or(|len| len > size_bytes) {
        return invalid("filesystem larger than the image");
    }
    let first_data_block = le32(bytes, 0x14);
    if u64::from(first_data_block) >= blocks || first_data_block > u32::from(block_len == 1024) {
        return invalid("invalid first data block");
    }
    let (blocks_per_group, inodes_per_group) = (le32(bytes, 0x20), le32(bytes, 0x28));
    if blocks_per_group == 0 || inodes_per_group == 0 {
        return invalid("block groups without blocks or inodes");
    }
    let groups = (blocks - u64::from(first_data_block)).div_ceil(blocks_per_group.into());
    if u32::try_from(groups).is_err() {
        return invalid("too many block groups");
    }
    let inodes = le32(bytes, 0x0);
    if u64::from(inodes) > groups.saturating_mul(inodes_per_group.into()) {
        return invalid("more inodes than its block groups hold");
    }
    let inode_len = if dynamic { le16(bytes, 0x58) } else { INODE_LEN_OLD };
    if !inode_len.is_power_of_two() || inode_len < INODE_LEN_OLD || u32::from(inode_len) > block_len {
        return invalid("invalid inode size");
    }
    let desc_len = if is_64bit { le16(bytes, 0xfe) } else { DESC_LEN_32 };
    if !desc_len.is_power_of_two() || u32::from(desc_len) > block_len || (is_64bit && desc_len < DESC_LEN_64)
    {
        return invalid("invalid group descriptor size");
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[0x68..0x78]);
    let label = &bytes[0x78..0x88];
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let checksum_seed = if features.has_incompat(bit::INCOMPAT_CSUM_SEED) {
        le32(bytes, 0x270)
    } else {
        crc32c(START, &[&uuid])
    };
    Ok(Superblock {
        features,
        inodes,
        blocks,
        block_len,
        first_data_block,
        blocks_per_group,
        inodes_per_group,
        inode_len,
        desc_len,
        first_meta_bg: le32(bytes, 0x104),
        backup_groups: [le32(bytes, 0x24c), le32(bytes, 0x250)],
        journal_inode: le32(bytes, 0xe0),
        journal_device: le32(bytes, 0xe4),
        uuid,
        label,
        checksum_seed,
    })
}

impl Superblock {
    /// Returns true with the feature `metadata_csum`.
    pub fn has_checksums(&self) -> bool {
        self.features.has_ro_compat(bit::RO_COMPAT_METADATA_CSUM)
    }
}
