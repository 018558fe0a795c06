//! Journal superblock and ring of blocks (sections "Layout" and "Super Block" of the journal).

use crate::{
    ExtError, Filesystem, Inode, InodeNumber, ReadAt, Structure,
    bytes::{be32, le32},
    checksum::{START, crc32c},
    disk,
    error::damaged,
};
use std::ops::Range;

pub(super) const MAGIC: u32 = 0xc03b_3998;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const SUPERBLOCK_LEN: usize = 1024;
const CHECKSUM_AT: usize = 0xfc;
const CHECKSUM_TYPE_CRC32C: u8 = 4;

const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Supported features: revoke, 64bit, async_commit, csum_v2, csum_v3, fast_commit.
const INCOMPAT_SUPPORTED: u32 = 0x3f;
/// Default number of fast commit blocks.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// Minimum length of the ring with fast commits, in blocks (`JBD2_MIN_JOURNAL_BLOCKS`).
const MIN_BLOCKS: u32 = 1024;
/// Maximum length of a journal that mke2fs creates, in blocks.
const MAX_BLOCKS: u32 = 10_240_000;
/// Tag and value length that mark the first block of fast commits; little-endian (`EXT4_FC_TAG_HEAD`, Linux
/// `fs/ext4/fast_commit.h`).
const FAST_HEAD: [u8; 4] = [9, 0, 8, 0];
/// Maximum number of extents of the journal file.
const MAX_EXTENTS: usize = 1 << 16;

/// Journal checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Checksums {
    None,
    /// One per transaction, in its commit block.
    Transaction,
    /// One per block; tags store 16 bits of it.
    V2,
    /// One per block.
    V3,
}

/// Extent of the journal file.
struct LogExtent {
    /// First block of the journal.
    first: u32,
    len: u32,
    /// First physical block.
    physical: u64,
}

/// Non-empty journal.
pub(super) struct Log<'a> {
    source: &'a dyn ReadAt,
    pub block_len: usize,
    extents: Vec<LogExtent>,
    /// First block of the ring, and the end after its last block.
    first: u32,
    end: u32,
    /// First block and sequence number of the oldest transaction.
    pub start: u32,
    pub sequence: u32,
    pub checksums: Checksums,
    pub checksum_seed: u32,
    /// Block numbers have 64 bits.
    pub is_64bit: bool,
    /// Number of blocks of the image. The filesystem may have fewer before replay, after a resize.
    pub image_blocks: u64,
    /// Transaction after which the fast commits apply, if the journal has any.
    pub fast_tid: Option<u32>,
}

fn invalid<T>(reason: &'static str) -> Result<T, ExtError> {
    damaged(Structure::Journal, reason)
}

/// Returns the incompatible features and the checksums, after a check of the superblock's checksum.
fn features(bytes: &[u8]) -> Result<(u32, Checksums), ExtError> {
    let kind = be32(bytes, 4);
    if be32(bytes, 0) != MAGIC || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return invalid("invalid magic number or type of its superblock");
    }
    let feature = |at| if kind == SUPERBLOCK_V2 { be32(bytes, at) } else { 0 };
    let (compat, incompat) = (feature(0x24), feature(0x28));
    if incompat & !INCOMPAT_SUPPORTED != 0 {
        return Err(ExtError::unsupported(format!(
            "unknown incompatible journal features {:#x}",
            incompat & !INCOMPAT_SUPPORTED
        )));
    }
    let checksums = match incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
        0 if compat & COMPAT_CHECKSUM != 0 => Checksums::Transaction,
        0 => Checksums::None,
        INCOMPAT_CSUM_V2 => Checksums::V2,
        INCOMPAT_CSUM_V3 => Checksums::V3,
        _ => return invalid("both checksum v2 and v3 enabled"),
    };
    if matches!(checksums, Checksums::V2 | Checksums::V3) {
        if bytes[0x50] != CHECKSUM_TYPE_CRC32C {
            return Err(ExtError::unsupported("unknown journal checksum type"));
        }
        let (before, after) = (&bytes[..CHECKSUM_AT], &bytes[CHECKSUM_AT + 4..]);
        if crc32c(START, &[before, &[0; 4], after]) != be32(bytes, CHECKSUM_AT) {
            return invalid("checksum mismatch of its superblock");
        }
    }
    Ok((incompat, checksums))
}

impl<'a> Log<'a> {
    /// Opens a journal; `None` if it is empty.
    pub fn open(
        fs: &Filesystem,
        source: &'a dyn ReadAt,
        number: InodeNumber,
    ) -> Result<Option<Self>, ExtError> {
        let inode = fs.inode(number)?;
        let block_len = fs.disk().block_len();
        let Some(first) = fs.mapping(&inode, 0)?.physical else { return invalid("hole at its superblock") };
        let mut bytes = vec![0; SUPERBLOCK_LEN];
        fs.disk().read(first, 0, &mut bytes)?;
        let (incompat, checksums) = features(&bytes)?;
        let (len, first, start) = (be32(&bytes, 0x10), be32(&bytes, 0x14), be32(&bytes, 0x1c));
        if start == 0 {
            return Ok(None);
        }
        if be32(&bytes, 0xc) as usize != block_len || u64::from(len) > inode.size_bytes / block_len as u64 {
            return invalid("its block size or length does not match its file");
        }
        if len > MAX_BLOCKS || u64::from(len) > fs.disk().blocks() {
            return invalid("its length exceeds the maximum or the filesystem");
        }
        let (mut end, mut fast_blocks) = (len, None);
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            let fast = match be32(&bytes, 0x54) {
                0 => FAST_COMMIT_BLOCKS,
                fast => fast,
            };
            // The fast commit area follows the ring.
            if let Some(ring_end) = end.checked_sub(fast).filter(|ring_end| *ring_end >= MIN_BLOCKS) {
                end = ring_end;
                fast_blocks = Some(ring_end);
            }
        }
        if first == 0 || !(first..end).contains(&start) {
            return invalid("its first block is outside of the ring");
        }
        let mut this = Self {
            source,
            block_len,
            extents: Vec::new(),
            first,
            end,
            start,
            sequence: be32(&bytes, 0x18),
            checksums,
            checksum_seed: crc32c(START, &[bytes.get(0x30..0x40).unwrap_or_default()]),
            is_64bit: incompat & INCOMPAT_64BIT != 0,
            image_blocks: source.size_bytes() / block_len as u64,
            fast_tid: None,
        };
        this.find_extents(fs, &inode)?;
        if let Some(first) = fast_blocks {
            this.fast_tid = this.find_fast_tid(fs, &inode, first)?;
        }
        Ok(Some(this))
    }

    fn find_extents(&mut self, fs: &Filesystem, inode: &Inode) -> Result<(), ExtError> {
        let mut at = 0;
        while at < self.end {
            let mapping = fs.mapping(inode, at.into())?;
            let Some(physical) = mapping.physical else { return invalid("hole in its file") };
            let len = u32::try_from(mapping.len).unwrap_or(u32::MAX).min(self.end - at);
            let count = self.extents.len();
            match self.extents.last_mut() {
                Some(last) if last.physical + u64::from(last.len) == physical => last.len += len,
                _ if count >= MAX_EXTENTS => return invalid("too many extents of its file"),
                _ => self.extents.push(LogExtent { first: at, len, physical }),
            }
            at += len;
        }
        Ok(())
    }

    /// Returns the transaction after which the fast commits in the area from block `first` on apply.
    fn find_fast_tid(&self, fs: &Filesystem, inode: &Inode, first: u32) -> Result<Option<u32>, ExtError> {
        // Linux does not use the first block of the area.
        let Some(block) = fs.mapping(inode, u64::from(first) + 1)?.physical else { return Ok(None) };
        let mut head = [0; 12];
        disk::read(self.source, block * self.block_len as u64, &mut head)?;
        Ok((head[..4] == FAST_HEAD).then(|| le32(&head, 8)))
    }

    /// Creates a contiguous journal from block 1 on, for tests.
    #[cfg(test)]
    pub fn contiguous(source: &'a dyn ReadAt, block_len: usize, end: u32, checksums: Checksums) -> Self {
        let extents = vec![LogExtent { first: 1, len: end - 1, physical: 1 }];
        let (is_64bit, checksum_seed, fast_tid) = (false, 0, None);
        let image_blocks = u64::from(end);
        Self {
            source,
            block_len,
            extents,
            first: 1,
            end,
            start: 1,
            sequence: 1,
            checksums,
            checksum_seed,
            is_64bit,
            image_blocks,
            fast_tid,
        }
    }

    /// Returns the number of blocks of the ring.
    pub fn ring_len(&self) -> u32 {
        self.end - self.first
    }

    /// Returns the block of the ring `count` blocks after another one, with wraparound.
    pub fn advance(&self, at: u32, count: u32) -> u32 {
        let offset = u64::from(at - self.first) + u64::from(count);
        // The remainder is less than the ring's length, so it fits.
        self.first + (offset % u64::from(self.ring_len())) as u32
    }

    /// Returns the physical block of a block of the ring.
    pub fn physical(&self, at: u32) -> Result<u64, ExtError> {
        let next = self.extents.partition_point(|extent| extent.first <= at);
        match next.checked_sub(1).and_then(|index| self.extents.get(index)) {
            Some(extent) => Ok(extent.physical + u64::from(at - extent.first)),
            None => invalid("block number outside of its file"),
        }
    }

    /// Announces reads of `count` blocks of the ring.
    pub fn will_need(&self, at: u32, count: u32) {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for index in 0..count {
            let Ok(block) = self.physical(self.advance(at, index)) else { continue };
            let start = block * self.block_len as u64;
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end += self.block_len as u64,
                None => ranges.push(start..start + self.block_len as u64),
            }
        }
        self.source.will_need(&ranges);
    }

    /// Reads a block of the ring.
    pub fn read(&self, at: u32) -> Result<Vec<u8>, ExtError> {
        let mut bytes = vec![0; self.block_len];
        disk::read(self.source, self.physical(at)? * self.block_len as u64, &mut bytes)?;
        Ok(bytes)
    }
}
