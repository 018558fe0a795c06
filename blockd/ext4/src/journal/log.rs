//! The journal as a ring of blocks, and its superblock (sections "Layout" and "Super Block" of the journal).

use crate::{
    ExtError, Filesystem, InodeNumber, Place, ReadAt,
    bytes::{be32, le32},
    checksum::{START, crc32c},
    disk,
    error::damaged,
};

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
/// Revocations, 64 bits, asynchronous commits, both newer checksums, fast commits.
const INCOMPAT_KNOWN: u32 = 0x3f;
/// Blocks for fast commits, if it is not said how many.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// A journal stays at least so long beside them.
const MIN_BLOCKS: u32 = 1024;
/// Linux makes none that is longer.
const MAX_BLOCKS: u32 = 10_240_000;
/// Head of a fast commit: a tag and the length of its value, little-endian.
const FAST_HEAD: [u8; 4] = [0x0a, 0, 8, 0];
/// Pieces that a journal may lie in.
const MAX_PIECES: usize = 1 << 16;

/// Checksums of transactions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Checksums {
    None,
    /// One of each transaction, in its commit block.
    Transaction,
    /// One of each block; half of it in tags.
    V2,
    /// One of each block.
    V3,
}

struct Piece {
    /// The first block of the journal that lies there.
    first: u32,
    len: u32,
    block: u64,
}

/// A journal that holds something.
pub(super) struct Log<'a> {
    source: &'a dyn ReadAt,
    pub block_len: usize,
    pieces: Vec<Piece>,
    /// The ring: its first block, and the one behind its last.
    first: u32,
    end: u32,
    /// Start of the oldest transaction, and its number.
    pub start: u32,
    pub sequence: u32,
    pub checksums: Checksums,
    pub checksum_seed: u32,
    /// 64-bit block numbers.
    pub wide: bool,
    /// Number of blocks that fit: the filesystem may have just grown.
    pub room_blocks: u64,
    /// The transaction that fast commits follow, if there are any.
    pub fast_tid: Option<u32>,
}

fn wrong<T>(what: &'static str) -> Result<T, ExtError> {
    damaged(Place::Journal, what)
}

/// Returns the incompatible features of a journal and its checksums, after a check of the superblock's own.
fn features(bytes: &[u8]) -> Result<(u32, Checksums), ExtError> {
    let kind = be32(bytes, 4);
    if be32(bytes, 0) != MAGIC || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return wrong("its superblock is none");
    }
    let feature = |at| if kind == SUPERBLOCK_V2 { be32(bytes, at) } else { 0 };
    let (compat, incompat) = (feature(0x24), feature(0x28));
    if incompat & !INCOMPAT_KNOWN != 0 {
        return Err(ExtError::unsupported(format!(
            "a journal with features that are unknown here ({:#x})",
            incompat & !INCOMPAT_KNOWN
        )));
    }
    let checksums = match incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
        0 if compat & COMPAT_CHECKSUM != 0 => Checksums::Transaction,
        0 => Checksums::None,
        INCOMPAT_CSUM_V2 => Checksums::V2,
        INCOMPAT_CSUM_V3 => Checksums::V3,
        _ => return wrong("it claims to have two kinds of checksums"),
    };
    if matches!(checksums, Checksums::V2 | Checksums::V3) {
        if bytes[0x50] != CHECKSUM_TYPE_CRC32C {
            return Err(ExtError::unsupported("a journal with checksums of an unknown kind"));
        }
        let (before, behind) = (&bytes[..CHECKSUM_AT], &bytes[CHECKSUM_AT + 4..]);
        if crc32c(START, &[before, &[0; 4], behind]) != be32(bytes, CHECKSUM_AT) {
            return wrong("its superblock does not match its checksum");
        }
    }
    Ok((incompat, checksums))
}

impl<'a> Log<'a> {
    /// Opens it; none if it holds nothing.
    pub fn open(
        fs: &Filesystem,
        source: &'a dyn ReadAt,
        number: InodeNumber,
    ) -> Result<Option<Self>, ExtError> {
        let inode = fs.inode(number)?;
        let block_len = fs.disk().block_len();
        let Some(first) = fs.block_run(&inode, 0)?.stored else { return wrong("it has no superblock") };
        let mut bytes = vec![0; SUPERBLOCK_LEN];
        fs.disk().read(first, 0, &mut bytes)?;
        let (incompat, checksums) = features(&bytes)?;
        let (len, first, start) = (be32(&bytes, 0x10), be32(&bytes, 0x14), be32(&bytes, 0x1c));
        if start == 0 {
            return Ok(None);
        }
        if be32(&bytes, 0xc) as usize != block_len || u64::from(len) > inode.size_bytes / block_len as u64 {
            return wrong("its length or that of its blocks is not that of its file");
        }
        if len > MAX_BLOCKS || u64::from(len) > fs.disk().blocks() {
            return wrong("it is longer than any is, or than the filesystem");
        }
        let (mut end, mut fast_blocks) = (len, None);
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            let fast = match be32(&bytes, 0x54) {
                0 => FAST_COMMIT_BLOCKS,
                fast => fast,
            };
            // What is written there is no part of the ring.
            if let Some(without) = end.checked_sub(fast).filter(|without| *without >= MIN_BLOCKS) {
                end = without;
                fast_blocks = Some(without);
            }
        }
        if first == 0 || !(first..end).contains(&start) {
            return wrong("it begins where it cannot");
        }
        let mut this = Self {
            source,
            block_len,
            pieces: Vec::new(),
            first,
            end,
            start,
            sequence: be32(&bytes, 0x18),
            checksums,
            checksum_seed: crc32c(START, &[bytes.get(0x30..0x40).unwrap_or_default()]),
            wide: incompat & INCOMPAT_64BIT != 0,
            room_blocks: source.size_bytes() / block_len as u64,
            fast_tid: None,
        };
        this.find_pieces(fs, &inode)?;
        if let Some(first) = fast_blocks {
            this.fast_tid = this.find_fast_tid(fs, &inode, first)?;
        }
        Ok(Some(this))
    }

    fn find_pieces(&mut self, fs: &Filesystem, inode: &crate::Inode) -> Result<(), ExtError> {
        let mut at = 0;
        while at < self.end {
            let run = fs.block_run(inode, at.into())?;
            let Some(block) = run.stored else { return wrong("a part of it is stored nowhere") };
            let len = u32::try_from(run.len).unwrap_or(u32::MAX).min(self.end - at);
            let count = self.pieces.len();
            match self.pieces.last_mut() {
                Some(last) if last.block + u64::from(last.len) == block => last.len += len,
                _ if count >= MAX_PIECES => return wrong("it lies in more pieces than any"),
                _ => self.pieces.push(Piece { first: at, len, block }),
            }
            at += len;
        }
        Ok(())
    }

    /// Returns the transaction that the fast commits follow.
    fn find_fast_tid(
        &self,
        fs: &Filesystem,
        inode: &crate::Inode,
        first: u32,
    ) -> Result<Option<u32>, ExtError> {
        // Linux leaves out the first block of their room.
        let Some(block) = fs.block_run(inode, u64::from(first) + 1)?.stored else { return Ok(None) };
        let mut head = [0; 12];
        disk::read(self.source, block * self.block_len as u64, &mut head)?;
        Ok((head[..4] == FAST_HEAD).then(|| le32(&head, 8)))
    }

    /// A journal from block 1 on, for tests.
    #[cfg(test)]
    pub fn of_one_piece(source: &'a dyn ReadAt, block_len: usize, end: u32, checksums: Checksums) -> Self {
        let pieces = vec![Piece { first: 1, len: end - 1, block: 1 }];
        let (wide, checksum_seed, fast_tid) = (false, 0, None);
        let room_blocks = u64::from(end);
        Self {
            source,
            block_len,
            pieces,
            first: 1,
            end,
            start: 1,
            sequence: 1,
            checksums,
            checksum_seed,
            wide,
            room_blocks,
            fast_tid,
        }
    }

    /// Returns the number of blocks of the ring.
    pub fn ring_len(&self) -> u32 {
        self.end - self.first
    }

    /// The block of the ring that is so many behind another one.
    pub fn behind(&self, at: u32, count: u32) -> u32 {
        let offset = u64::from(at - self.first) + u64::from(count);
        // Less than the ring's length, so less than 2³².
        self.first + (offset % u64::from(self.ring_len())) as u32
    }

    /// The block of the filesystem that a block of the ring is.
    pub fn place(&self, at: u32) -> Result<u64, ExtError> {
        let behind = self.pieces.partition_point(|piece| piece.first <= at);
        match behind.checked_sub(1).and_then(|index| self.pieces.get(index)) {
            Some(piece) => Ok(piece.block + u64::from(at - piece.first)),
            None => wrong("it has no such block"),
        }
    }

    /// Reads a block of the ring.
    pub fn read(&self, at: u32) -> Result<Vec<u8>, ExtError> {
        let mut bytes = vec![0; self.block_len];
        disk::read(self.source, self.place(at)? * self.block_len as u64, &mut bytes)?;
        Ok(bytes)
    }
}
