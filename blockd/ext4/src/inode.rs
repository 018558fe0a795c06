//! Inodes (section "Index Nodes").

use crate::{
    ExtError, Filesystem, InodeNumber, Structure,
    bytes::{join, le16, le32},
    checksum::crc32c,
    error::damaged,
    features::bit,
};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Length of the original ext2 inode (`EXT2_GOOD_OLD_INODE_SIZE`).
const OLD_LEN: usize = 128;
/// Shorter targets of symbolic links are stored in `i_block` (fast symbolic links).
const FAST_LINK_LEN: u64 = 60;
const CHECKSUM_LOW_AT: usize = 0x7c;
const CHECKSUM_HIGH_AT: usize = 0x82;

/// Inode flags (`i_flags`) that change how a file is read.
pub(crate) mod flag {
    pub const ENCRYPTED: u32 = 0x800;
    pub const INDEX: u32 = 0x1000;
    pub const HUGE_FILE: u32 = 0x4_0000;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const VERITY: u32 = 0x10_0000;
    pub const EA_INODE: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
}

/// File type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Device number of a block or character device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Time with nanosecond resolution.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC; negative before it.
    pub seconds: i64,
    /// Nanoseconds after that second, less than one second.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Decodes the 32-bit seconds and the extra word, which holds two high bits of the seconds and the
    /// nanoseconds (section "Inode Timestamps").
    fn decode(seconds: u32, extra: u32) -> Self {
        let seconds = i64::from(seconds.cast_signed()) + (i64::from(extra & 3) << 32);
        let nanoseconds = extra >> 2;
        Self { seconds, nanoseconds: if nanoseconds < 1_000_000_000 { nanoseconds } else { 0 } }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let whole =
            if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        // 34-bit seconds are inside the range of `SystemTime` on Unix.
        whole
            .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanoseconds.into())))
            .unwrap_or(UNIX_EPOCH)
    }
}

/// Inode.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Inode number.
    pub number: InodeNumber,
    /// File type.
    pub kind: FileKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky bit (mask 07777).
    pub mode: u16,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Number of hard links.
    pub links: u16,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Allocated space, in bytes.
    pub allocated_bytes: u64,
    /// Last access (`i_atime`).
    pub accessed: Timestamp,
    /// Last modification of the content (`i_mtime`).
    pub modified: Timestamp,
    /// Last change of the inode (`i_ctime`).
    pub changed: Timestamp,
    /// Creation (`i_crtime`), if the inode stores it.
    pub created: Option<Timestamp>,
    /// Device number of a block or character device.
    pub device: Option<Device>,
    pub(crate) flags: u32,
    /// `i_block`: block map, extent tree root, inline data, or link target.
    pub(crate) block: [u8; 60],
    /// Extended attribute block (`i_file_acl`); 0 without one.
    pub(crate) xattr_block: u64,
    /// Bytes after the fixed fields: extended attributes.
    pub(crate) xattr_region: Box<[u8]>,
    /// Seed of dependent checksums.
    pub(crate) checksum_seed: u32,
}

impl Inode {
    /// Returns true if the content or, in a directory, the names are encrypted (`fscrypt`).
    pub fn is_encrypted(&self) -> bool {
        self.flags & flag::ENCRYPTED != 0
    }

    /// Returns true for a symbolic link without inline data whose target is in `i_block`.
    pub(crate) fn is_fast_link(&self) -> bool {
        self.size_bytes < FAST_LINK_LEN && !self.has(flag::EXTENTS)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Returns [`ExtError::Damaged`] of this inode.
    pub(crate) fn damaged<T>(&self, reason: &'static str) -> Result<T, ExtError> {
        damaged(Structure::Inode(self.number), reason)
    }
}

fn kind_of(mode: u16) -> Option<FileKind> {
    Some(match mode >> 12 {
        0x1 => FileKind::Fifo,
        0x2 => FileKind::CharDevice,
        0x4 => FileKind::Directory,
        0x6 => FileKind::BlockDevice,
        0x8 => FileKind::Regular,
        0xa => FileKind::Symlink,
        0xc => FileKind::Socket,
        _ => return None,
    })
}

/// Decodes the device number in `i_block`: the old 16-bit format in the first word, otherwise the new format
/// in the second.
fn device_of(block: &[u8; 60]) -> Device {
    match (le32(block, 0), le32(block, 4)) {
        (0, new) => Device { major: new >> 8 & 0xfff, minor: new & 0xff | new >> 12 & 0xf_ff00 },
        (old, _) => Device { major: old >> 8 & 0xff, minor: old & 0xff },
    }
}

/// Returns the end of the fixed fields, in bytes.
fn fields_end(raw: &[u8]) -> usize {
    if raw.len() > OLD_LEN { OLD_LEN + usize::from(le16(raw, 0x80)) } else { OLD_LEN }
}

/// Returns the maximum size of a file with this block mapping.
fn max_size(flags: u32, block_len: u64) -> u64 {
    let pointers = block_len / 4;
    let blocks = if flags & flag::INLINE_DATA != 0 {
        // An inode does not exceed a block.
        1
    } else if flags & flag::EXTENTS != 0 {
        1 << 32
    } else {
        12 + pointers + pointers.pow(2) + pointers.pow(3)
    };
    blocks * block_len
}

/// Computes the checksum of an inode.
fn checksum(raw: &[u8], seed: u32) -> u32 {
    let (before, after) = (&raw[..CHECKSUM_LOW_AT], &raw[CHECKSUM_LOW_AT + 2..OLD_LEN]);
    let sum = crc32c(seed, &[before, &[0; 2], after]);
    if raw.len() == OLD_LEN {
        sum & 0xffff
    } else if fields_end(raw) >= CHECKSUM_HIGH_AT + 2 {
        crc32c(sum, &[&raw[OLD_LEN..CHECKSUM_HIGH_AT], &[0; 2], &raw[CHECKSUM_HIGH_AT + 2..]])
    } else {
        crc32c(sum, &[&raw[OLD_LEN..]]) & 0xffff
    }
}

impl Filesystem {
    /// Reads an inode.
    ///
    /// # Errors
    /// The number is invalid, the inode is damaged, or the image cannot be read.
    pub fn inode(&self, number: InodeNumber) -> Result<Inode, ExtError> {
        let (block, within) = self.raw_inode(number)?;
        self.parse_inode(number, &block[within])
    }

    /// Returns the block with an inode, and its bytes there.
    pub(crate) fn raw_inode(&self, number: InodeNumber) -> Result<(Arc<[u8]>, Range<usize>), ExtError> {
        let sb = self.superblock();
        let invalid = |reason| damaged(Structure::Inode(number), reason);
        if number.0 == 0 || number.0 > sb.inodes {
            return invalid("number out of range");
        }
        let index = number.0 - 1;
        let table = self.inode_table(index / sb.inodes_per_group)?;
        let at = u64::from(index % sb.inodes_per_group) * u64::from(sb.inode_len);
        let block = self.disk().block(table + at / u64::from(sb.block_len))?;
        let start = (at % u64::from(sb.block_len)) as usize;
        let within = start..start + usize::from(sb.inode_len);
        if within.end > block.len() {
            return invalid("beyond the end of its block");
        }
        Ok((block, within))
    }

    /// Returns the block that holds an inode; `None` if its number or its group is invalid.
    pub(crate) fn inode_block(&self, number: InodeNumber) -> Option<u64> {
        let sb = self.superblock();
        let index = number.0.checked_sub(1).filter(|index| *index < sb.inodes)?;
        let within = u64::from(index % sb.inodes_per_group) * u64::from(sb.inode_len);
        Some(self.inode_table(index / sb.inodes_per_group).ok()? + within / u64::from(sb.block_len))
    }

    pub(crate) fn parse_inode(&self, number: InodeNumber, raw: &[u8]) -> Result<Inode, ExtError> {
        let sb = self.superblock();
        let invalid = |reason| damaged(Structure::Inode(number), reason);
        let end = fields_end(raw);
        if end > raw.len() {
            return invalid("its extra fields exceed the inode size");
        }
        let checksum_seed =
            crc32c(sb.checksum_seed, &[&number.0.to_le_bytes(), raw.get(0x64..0x68).unwrap_or_default()]);
        if sb.has_checksums() {
            let high = if end >= CHECKSUM_HIGH_AT + 2 { le16(raw, CHECKSUM_HIGH_AT) } else { 0 };
            let stored = u32::from(high) << 16 | u32::from(le16(raw, CHECKSUM_LOW_AT));
            if checksum(raw, checksum_seed) != stored {
                return invalid("checksum mismatch");
            }
        }
        let mode = le16(raw, 0);
        let Some(kind) = kind_of(mode) else { return invalid("unknown file type") };
        let flags = le32(raw, 0x20);
        let has_high_size = kind == FileKind::Regular
            || (kind == FileKind::Directory && sb.features.has_incompat(bit::INCOMPAT_LARGEDIR));
        let size_bytes = join(if has_high_size { le32(raw, 0x6c) } else { 0 }, le32(raw, 0x4));
        let has_blocks = kind == FileKind::Regular || kind == FileKind::Directory;
        if has_blocks && size_bytes > max_size(flags, sb.block_len.into()) {
            return invalid("its size exceeds the maximum");
        }
        let huge = sb.features.has_ro_compat(bit::RO_COMPAT_HUGE_FILE);
        let units = join(if huge { le16(raw, 0x74) } else { 0 }, le32(raw, 0x1c));
        let unit = if huge && flags & flag::HUGE_FILE != 0 { u64::from(sb.block_len) } else { 512 };
        // Inline data counts as allocated, as in the kernel: programs take a file without allocated blocks
        // for a single hole.
        let inline =
            if flags & flag::INLINE_DATA != 0 { size_bytes.div_ceil(512).saturating_mul(512) } else { 0 };
        let mut block = [0; 60];
        block.copy_from_slice(&raw[0x28..0x64]);
        // A field is present if `i_extra_isize` includes it.
        let extra = |at: usize| if end >= at + 4 { le32(raw, at) } else { 0 };
        let time = |at, extra_at| Timestamp::decode(le32(raw, at), extra(extra_at));
        let is_device = matches!(kind, FileKind::BlockDevice | FileKind::CharDevice);
        Ok(Inode {
            number,
            kind,
            mode: mode & 0o7777,
            uid: u32::from(le16(raw, 0x78)) << 16 | u32::from(le16(raw, 0x2)),
            gid: u32::from(le16(raw, 0x7a)) << 16 | u32::from(le16(raw, 0x18)),
            links: le16(raw, 0x1a),
            size_bytes,
            allocated_bytes: units.saturating_mul(unit).saturating_add(inline),
            accessed: time(0x8, 0x8c),
            modified: time(0x10, 0x88),
            changed: time(0xc, 0x84),
            created: (end >= 0x94).then(|| Timestamp::decode(le32(raw, 0x90), extra(0x94))),
            device: is_device.then(|| device_of(&block)),
            flags,
            block,
            xattr_block: join(le16(raw, 0x76), le32(raw, 0x68)),
            xattr_region: raw[end..].into(),
            checksum_seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_from_1901_to_2446_are_decoded() {
        // Table of section "Inode Timestamps".
        for (extra, low, seconds) in [
            (0, 0x8000_0000u32, -0x8000_0000i64),
            (0, 0xffff_ffff, -1),
            (0, 0x7fff_ffff, 0x7fff_ffff),
            (1, 0x8000_0000, 0x8000_0000),
            (1, 0, 0x1_0000_0000),
            (3, 0x7fff_ffff, 0x3_7fff_ffff),
        ] {
            assert_eq!(Timestamp::decode(low, extra | 7 << 2), Timestamp { seconds, nanoseconds: 7 });
        }
        assert_eq!(Timestamp::decode(1, !0).nanoseconds, 0, "out of range");
        let before = SystemTime::from(Timestamp { seconds: -2, nanoseconds: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(before).unwrap(), Duration::from_millis(1500));
    }

    #[test]
    fn max_file_size_follows_from_block_mapping() {
        assert_eq!(max_size(flag::EXTENTS, 4096), 1 << 44);
        assert_eq!(max_size(flag::INLINE_DATA | flag::EXTENTS, 4096), 4096);
        assert_eq!(max_size(0, 1024), (12 + 256 + 65_536 + 16_777_216) * 1024);
        assert_eq!(max_size(0, 65_536) / 65_536, 12 + 16_384 + (1 << 28) + (1 << 42));
    }

    #[test]
    fn device_numbers_in_both_formats_are_decoded() {
        let mut block = [0; 60];
        block[..2].copy_from_slice(&[1, 8]);
        assert_eq!(device_of(&block), Device { major: 8, minor: 1 });
        block = [0; 60];
        block[4..8].copy_from_slice(&0x1231_0345u32.to_le_bytes());
        assert_eq!(device_of(&block), Device { major: 0x103, minor: 0x12345 });
    }
}
