//! Scan of a journal's transactions with their blocks and revocations (sections "Block Header" to "Commit
//! Block" of the journal).
//!
//! As in the kernel and in e2fsck, the journal ends at an unexpected block or at a transaction with a
//! checksum mismatch. Checksums of data blocks (v2 and v3) are verified when the overlay is read.

use super::log::{Checksums, Log, MAGIC};
use crate::{
    ExtError,
    bytes::{be16, be32, be64, join},
    checksum::{START, crc32_big_endian, crc32c},
    overlay::{BlockChecksum, Overlay, Patch},
};
use std::collections::HashMap;

const HEADER_LEN: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
/// Length of the checksum at the end of descriptor and revocation blocks (v2 and v3).
const TAIL_LEN: usize = 4;
const COMMIT_CHECKSUM_AT: usize = 16;
const COMMIT_SECONDS_AT: usize = 48;
const COMMIT_CRC32: u8 = 1;

const TAG_ESCAPED: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;
const UUID_LEN: usize = 16;

/// Maximum number of blocks in the overlay, and of revocations: twice the block count of the largest journal
/// that mke2fs creates by default (1 GiB of 4 KiB blocks). The overlay is kept while the filesystem is open.
const MAX_ENTRIES: usize = 1 << 19;
/// Maximum number of journal bytes read: each block may be a request if the image is remote.
const MAX_READ_BYTES: u64 = 4 << 30;

/// Blocks of the journal that are announced together.
const BLOCKS_AHEAD: u32 = 512;

/// Block that a transaction writes.
struct Write {
    block: u64,
    patch: Patch,
}

/// Result of a scan.
#[derive(Default)]
pub(super) struct Scanned {
    /// Last write of each block. A revocation of the last write covers all earlier ones.
    writes: HashMap<u64, Patch>,
    /// Last transaction that revoked each block: its writes of the block and earlier ones are not replayed.
    revoked: HashMap<u64, u32>,
    pub transactions: u32,
    pub damaged: bool,
    /// Sequence number after the last transaction.
    pub next: u32,
}

/// Returns true if a transaction is later than another one. Sequence numbers wrap around.
fn is_later(sequence: u32, than: u32) -> bool {
    sequence.wrapping_sub(than).cast_signed() > 0
}

impl Scanned {
    /// Returns the overlay of the blocks that are not revoked.
    pub fn into_overlay(self, log: &Log<'_>) -> Overlay {
        let revoked = self.revoked;
        let is_valid =
            |(block, patch): &(u64, Patch)| revoked.get(block).is_none_or(|by| is_later(patch.sequence, *by));
        Overlay::new(log.checksum_seed, self.writes.into_iter().filter(is_valid))
    }

    fn is_full(&self) -> bool {
        self.writes.len() > MAX_ENTRIES || self.revoked.len() > MAX_ENTRIES
    }
}

/// Transaction before its commit block.
struct Transaction {
    writes: Vec<Write>,
    revoked: Vec<u64>,
    /// Checksum of the blocks so far, for [`Checksums::Transaction`].
    sum: u32,
    /// A descriptor or revocation block is invalid.
    is_invalid: bool,
}

impl Transaction {
    fn new() -> Self {
        Self { writes: Vec::new(), revoked: Vec::new(), sum: START, is_invalid: false }
    }
}

/// Scans the journal in a single pass.
pub(super) fn scan(log: &Log<'_>) -> Result<Scanned, ExtError> {
    scan_limited(log, MAX_READ_BYTES / log.block_len as u64)
}

fn scan_limited(log: &Log<'_>, max_blocks: u64) -> Result<Scanned, ExtError> {
    let mut scanned = Scanned { next: log.sequence, ..Scanned::default() };
    let (mut at, mut sequence, mut blocks_left) = (log.start, log.sequence, max_blocks);
    // Remaining blocks of the ring, which bound the scan.
    let mut left = log.ring_len();
    let mut open = Transaction::new();
    let mut last_commit_seconds = 0;
    let mut ahead = left;
    while left > 0 {
        if left < ahead.saturating_add(BLOCKS_AHEAD / 2) && ahead > 0 {
            let count = BLOCKS_AHEAD.min(ahead);
            log.will_need(log.advance(at, left.saturating_sub(ahead)), count);
            ahead -= count;
        }
        blocks_left = count_reads(blocks_left, 1)?;
        let bytes = log.read(at)?;
        if be32(&bytes, 0) != MAGIC || be32(&bytes, 8) != sequence {
            break;
        }
        (at, left) = (log.advance(at, 1), left - 1);
        match be32(&bytes, 4) {
            DESCRIPTOR => {
                open.is_invalid |= !tail_matches(log, &bytes);
                let before = open.writes.len();
                open.is_invalid |= !read_tags(log, &bytes, sequence, at, &mut open.writes)?;
                let count = u32::try_from(open.writes.len() - before).unwrap_or(u32::MAX);
                if count > left {
                    break;
                }
                if log.checksums == Checksums::Transaction {
                    open.sum = crc32_big_endian(open.sum, &bytes);
                    // The checksum covers the data blocks, which the scan skips otherwise.
                    blocks_left = count_reads(blocks_left, count)?;
                    for index in 0..count {
                        open.sum = crc32_big_endian(open.sum, &log.read(log.advance(at, index))?);
                    }
                }
                (at, left) = (log.advance(at, count), left - count);
            }
            REVOKE => {
                open.is_invalid |= !tail_matches(log, &bytes);
                open.is_invalid |= !read_revocations(log, &bytes, &mut open.revoked);
            }
            COMMIT => {
                let seconds = be64(&bytes, COMMIT_SECONDS_AT);
                if open.is_invalid || !commit_matches(log, &bytes, open.sum) {
                    // A transaction with an older commit time is a remnant of an earlier lap of the ring.
                    scanned.damaged = seconds >= last_commit_seconds;
                    return Ok(scanned);
                }
                last_commit_seconds = seconds;
                for block in open.revoked {
                    scanned.revoked.insert(block, sequence);
                }
                scanned.writes.extend(open.writes.into_iter().map(|write| (write.block, write.patch)));
                scanned.transactions += 1;
                sequence = sequence.wrapping_add(1);
                scanned.next = sequence;
                open = Transaction::new();
            }
            _ => break,
        }
        if scanned.is_full() || open.writes.len() > MAX_ENTRIES || open.revoked.len() > MAX_ENTRIES {
            return Err(ExtError::unsupported("journal with too many blocks or revocations"));
        }
    }
    Ok(scanned)
}

/// Subtracts blocks from the read limit before they are read.
fn count_reads(blocks_left: u64, count: u32) -> Result<u64, ExtError> {
    let too_long = || ExtError::unsupported("journal beyond the read limit");
    blocks_left.checked_sub(count.into()).ok_or_else(too_long)
}

fn has_tails(log: &Log<'_>) -> bool {
    matches!(log.checksums, Checksums::V2 | Checksums::V3)
}

fn tail_matches(log: &Log<'_>, bytes: &[u8]) -> bool {
    if !has_tails(log) {
        return true;
    }
    let at = bytes.len() - TAIL_LEN;
    crc32c(log.checksum_seed, &[&bytes[..at], &[0; TAIL_LEN]]) == be32(bytes, at)
}

fn commit_matches(log: &Log<'_>, bytes: &[u8], sum: u32) -> bool {
    let stored = be32(bytes, COMMIT_CHECKSUM_AT);
    match log.checksums {
        Checksums::None => true,
        Checksums::Transaction => {
            let (kind, len) = (bytes[HEADER_LEN], bytes[HEADER_LEN + 1]);
            (kind == COMMIT_CRC32 && len == 4 && stored == sum) || (kind == 0 && len == 0 && stored == 0)
        }
        Checksums::V2 | Checksums::V3 => {
            let (before, after) = (&bytes[..COMMIT_CHECKSUM_AT], &bytes[COMMIT_CHECKSUM_AT + 4..]);
            crc32c(log.checksum_seed, &[before, &[0; 4], after]) == stored
        }
    }
}

/// Reads the tags of a descriptor block, whose data blocks start at block `at` of the ring. Returns false if
/// a tag names a block outside of the image.
fn read_tags(
    log: &Log<'_>,
    bytes: &[u8],
    sequence: u32,
    at: u32,
    writes: &mut Vec<Write>,
) -> Result<bool, ExtError> {
    let tag_len = match (log.checksums, log.is_64bit) {
        (Checksums::V3, _) => 16,
        // Two bytes longer than its fields, an error of the kernel that became the format.
        (Checksums::V2, true) => 14,
        (Checksums::V2, false) => 10,
        (_, true) => 12,
        (_, false) => 8,
    };
    let end = bytes.len() - if has_tails(log) { TAIL_LEN } else { 0 };
    let (mut tag_at, mut is_valid) = (HEADER_LEN, true);
    for index in 0.. {
        if tag_at + tag_len > end {
            break;
        }
        let flags = be16(bytes, tag_at + 6);
        let block = join(if log.is_64bit { be32(bytes, tag_at + 8) } else { 0 }, be32(bytes, tag_at));
        is_valid &= block < log.image_blocks;
        let checksum = match log.checksums {
            Checksums::V3 => BlockChecksum::Full(be32(bytes, tag_at + 12)),
            Checksums::V2 => BlockChecksum::Low(be16(bytes, tag_at + 4)),
            Checksums::None | Checksums::Transaction => BlockChecksum::None,
        };
        let log_block = log.physical(log.advance(at, index))?;
        let escaped = flags & TAG_ESCAPED != 0;
        writes.push(Write { block, patch: Patch { log_block, sequence, checksum, escaped } });
        if flags & TAG_LAST != 0 {
            break;
        }
        tag_at += tag_len + if flags & TAG_SAME_UUID != 0 { 0 } else { UUID_LEN };
    }
    Ok(is_valid)
}

/// Reads the records of a revocation block. Returns false if its length is invalid.
fn read_revocations(log: &Log<'_>, bytes: &[u8], revoked: &mut Vec<u64>) -> bool {
    let end = bytes.len() - if has_tails(log) { TAIL_LEN } else { 0 };
    let used = be32(bytes, HEADER_LEN) as usize;
    let Some(records) = bytes.get(HEADER_LEN + 4..used).filter(|_| used <= end) else { return false };
    if log.is_64bit {
        revoked.extend(records.chunks_exact(8).map(|record| be64(record, 0)));
    } else {
        revoked.extend(records.chunks_exact(4).map(|record| u64::from(be32(record, 0))));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReadAt;
    use std::{
        io,
        ops::Range,
        sync::atomic::{AtomicU64, Ordering::Relaxed},
    };

    const BLOCK_LEN: usize = 1024;
    /// Blocks of a transaction: descriptor, data, commit.
    const TRANSACTION: u64 = 128;

    /// Fake journal of transactions that write the same blocks. Counts the reads, which must be announced.
    #[derive(Default)]
    struct Repeating(AtomicU64, AtomicU64);

    impl ReadAt for Repeating {
        fn size_bytes(&self) -> u64 {
            1 << 40
        }

        fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.fetch_add(1, Relaxed);
            assert!(offset_bytes < self.1.load(Relaxed), "{offset_bytes} is not announced");
            buf.fill(0);
            let at = offset_bytes / BLOCK_LEN as u64 - 1;
            let kind = match at % TRANSACTION {
                0 => DESCRIPTOR,
                last if last == TRANSACTION - 1 => COMMIT,
                _ => return Ok(()),
            };
            buf[..4].copy_from_slice(&MAGIC.to_be_bytes());
            buf[4..8].copy_from_slice(&kind.to_be_bytes());
            buf[8..12].copy_from_slice(&((at / TRANSACTION) as u32 + 1).to_be_bytes());
            for tag in buf[HEADER_LEN..].chunks_exact_mut(8).filter(|_| kind == DESCRIPTOR) {
                tag[7] = TAG_SAME_UUID as u8;
            }
            Ok(())
        }

        fn will_need(&self, ranges: &[Range<u64>]) {
            let end = ranges.iter().map(|range| range.end).max().unwrap();
            self.1.fetch_max(end, Relaxed);
        }
    }

    #[test]
    fn data_blocks_of_checksummed_transaction_count_as_read() {
        // Blocks read per transaction.
        for (checksums, cost) in [(Checksums::None, 2), (Checksums::Transaction, TRANSACTION)] {
            let source = Repeating::default();
            let of = |transactions: u64| {
                let end = 1 + (transactions * TRANSACTION) as u32;
                Log::contiguous(&source, BLOCK_LEN, end, checksums)
            };
            let scanned = scan_limited(&of(7), 7 * cost).unwrap();
            assert_eq!((scanned.transactions, source.0.load(Relaxed)), (7, 7 * cost));
            let refused = scan_limited(&of(7), 7 * cost - 1).err().unwrap();
            assert!(refused.to_string().contains("read limit"), "{refused}");
            assert!(source.0.load(Relaxed) < 14 * cost, "the scan read beyond the limit");
        }
    }
}
