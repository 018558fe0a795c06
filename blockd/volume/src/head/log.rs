//! Log of the head's blocks, for recovery after a power cut.
//!
//! A record names blocks whose data was synced *before* the record was written, so the data of every block in
//! the log is on disk. A flush appends at most one record, with the blocks added to the head since the last
//! record. Records never change; compaction replaces the log by a rename.
//!
//! # File
//!
//! A header of 64 bytes: magic `BLKDLOG1`, version u32 (1), zero u32, volume id u64, epoch u64, blocks u64,
//! zero 16 bytes, xxh3-64 of the 56 bytes before it. Then records, each:
//!
//! | bytes | content |
//! |---|---|
//! | 0–3 | magic `BREC` |
//! | 4–7 | length of the payload |
//! | 8–15 | number of the record, from 0 |
//! | 16–23 | xxh3-64, seeded with the volume id xor the epoch, of bytes 0–15 and the payload |
//! | 24– | payload: an encoded block set |
//!
//! All integers are little-endian. The last valid record is followed by preallocated zeroes, or by the torn
//! end of a record whose flush was never acknowledged, which the next start truncates. A valid record after a
//! damaged one proves corruption. At least one zero follows the last record, unless the disk was full: a file
//! that ends with a record may be truncated.
//!
//! The zeroes are for speed: overwriting written blocks within the file's size needs only a data sync,
//! whereas a growing file costs a commit of the filesystem's journal.

use crate::{
    error::{IoContext, VolumeError},
    head::volume_dir::Identity,
    io::record::{check_version, half_at, seal, word_at},
    io::storage::{self, File},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const MAGIC: &[u8; 8] = b"BLKDLOG1";
const RECORD_MAGIC: &[u8; 4] = b"BREC";
const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 64;
const RECORD_HEADER_BYTES: usize = 24;
/// Minimum size of a log for compaction.
const COMPACT_ABOVE_BYTES: u64 = 1 << 20;
/// Space preallocated after the end of the log.
const PREALLOCATED_BYTES: u64 = 256 << 10;
/// Zeroes written after the records: enough for some hundred flushes of scattered writes.
const ZEROES_BYTES: usize = 64 << 10;

/// Maximum number of invalid records examined in a damaged log.
const MAX_RESCUE_TRIES: u32 = 1024;

/// Open log of a head.
pub(crate) struct HeadLog {
    file: File,
    path: PathBuf,
    identity: Identity,
    end_bytes: u64,
    /// End of the preallocated zeroes.
    zeroed_to_bytes: u64,
    next_record: u64,
    /// True if the rename of the file may not be durable.
    dir_unsynced: bool,
}

/// Content of an inspected log.
pub(crate) struct InspectedLog {
    /// Blocks named by the log.
    pub(crate) named: BlockSet,
    /// Length of its torn end, in bytes.
    pub(crate) torn_bytes: u64,
    /// True if zeroes follow the last record. Otherwise the log may have had more records.
    pub(crate) has_intact_end: bool,
}

impl Identity {
    fn header(self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        for word in [u64::from(VERSION), self.volume.as_u64(), self.epoch.0, self.blocks, 0, 0] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        let header = seal(header);
        assert!(header.len() == HEADER_BYTES, "the header of a log has its length");
        header
    }

    fn checksum(self, head: &[u8], payload: &[u8]) -> u64 {
        let mut all = Vec::with_capacity(head.len() + payload.len());
        all.extend_from_slice(head);
        all.extend_from_slice(payload);
        xxh3_64_with_seed(&all, self.volume.as_u64() ^ self.epoch.0)
    }

    fn record(self, number: u64, blocks: &BlockSet) -> Vec<u8> {
        assert!(blocks.last().is_none_or(|last| last.0 < self.blocks), "a record names blocks of the volume");
        let payload = blocks.to_bytes();
        assert!(u32::try_from(payload.len()).is_ok(), "the length of a record has 32 bits");
        let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + payload.len());
        record.extend_from_slice(RECORD_MAGIC);
        record.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        record.extend_from_slice(&number.to_le_bytes());
        let sum = self.checksum(&record, &payload);
        record.extend_from_slice(&sum.to_le_bytes());
        assert!(record.len() == RECORD_HEADER_BYTES, "the header of a record has its length");
        record.extend_from_slice(&payload);
        record
    }

    /// Parses a record at the start of `bytes` into its blocks and length; `None` unless complete and valid.
    fn parse(self, bytes: &[u8], number: u64) -> Option<(BlockSet, usize)> {
        let head = bytes.get(..RECORD_HEADER_BYTES)?;
        if &head[..4] != RECORD_MAGIC || head[8..16] != number.to_le_bytes() {
            return None;
        }
        let len = half_at(head, 4) as usize;
        let payload = bytes.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES.checked_add(len)?)?;
        if head[16..24] != self.checksum(&head[..16], payload).to_le_bytes() {
            return None;
        }
        let set = BlockSet::from_bytes(payload).ok()?;
        let inside = set.last().is_none_or(|last| last.0 < self.blocks);
        inside.then_some((set, RECORD_HEADER_BYTES + len))
    }
}

/// Parsed log.
struct Parsed {
    held: BlockSet,
    /// Start and end of the last valid record; both are the end of the header without records.
    last_start_bytes: usize,
    end_bytes: usize,
    next_record: u64,
}

impl Parsed {
    fn from(path: &Path, bytes: &[u8], identity: Identity) -> Result<Self, VolumeError> {
        let damaged = |what: String| VolumeError::Damaged { path: path.to_owned(), what };
        check_version(path, bytes, MAGIC, VERSION)?;
        if !bytes.starts_with(&identity.header()) {
            return Err(damaged("header does not match the head".into()));
        }
        let mut parsed = Self {
            held: BlockSet::new(),
            last_start_bytes: HEADER_BYTES,
            end_bytes: HEADER_BYTES,
            next_record: 0,
        };
        while let Some((set, len)) = identity.parse(&bytes[parsed.end_bytes..], parsed.next_record) {
            parsed.held.union_with(&set);
            parsed.last_start_bytes = parsed.end_bytes;
            parsed.end_bytes += len;
            parsed.next_record += 1;
        }
        assert!(parsed.end_bytes <= bytes.len(), "records end inside the file");
        parsed.reject_later_records(&bytes[parsed.end_bytes..], identity).map_err(damaged)?;
        Ok(parsed)
    }

    /// Searches for valid records after an invalid one: they prove corruption instead of a torn end.
    fn reject_later_records(&self, rest: &[u8], identity: Identity) -> Result<(), String> {
        let candidates = (1..rest.len().saturating_sub(RECORD_HEADER_BYTES))
            .filter(|&at| &rest[at..at + 4] == RECORD_MAGIC);
        for at in candidates {
            let number = word_at(rest, at + 8);
            if number > self.next_record && identity.parse(&rest[at..], number).is_some() {
                return Err(format!(
                    "record {} at byte {} is invalid, but later record {number} is valid",
                    self.next_record, self.end_bytes
                ));
            }
        }
        Ok(())
    }
}

impl HeadLog {
    /// Creates an empty, synced log; the caller syncs the directory.
    pub(crate) fn create(path: &Path, identity: Identity) -> Result<Self, VolumeError> {
        let file = File::create(path).during("create", path)?;
        let mut log = Self {
            file,
            path: path.to_owned(),
            identity,
            end_bytes: 0,
            zeroed_to_bytes: 0,
            next_record: 0,
            dir_unsynced: false,
        };
        log.append_bytes(&identity.header())?;
        log.end_bytes = HEADER_BYTES as u64;
        log.file.sync_all().during("sync", path)?;
        log.preallocate();
        Ok(log)
    }

    /// Preallocates space for the next records, so that on a full disk writes fail instead of flushes.
    fn preallocate(&self) {
        if let Err(error) = self.file.reserve(self.end_bytes, PREALLOCATED_BYTES) {
            tracing::debug!(%error, "preallocation failed on the log of the head");
        }
    }

    /// Opens a log and returns all blocks that it names; truncates a torn end.
    pub(crate) fn open(path: &Path, identity: Identity) -> Result<(Self, BlockSet), VolumeError> {
        let file = File::open(path).during("open", path)?;
        let bytes = storage::read(path).during("read", path)?;
        let found = Parsed::from(path, &bytes, identity)?;
        let mut log = Self {
            file,
            path: path.to_owned(),
            identity,
            end_bytes: found.last_start_bytes as u64,
            zeroed_to_bytes: 0,
            next_record: found.next_record,
            dir_unsynced: false,
        };
        debug_assert!(found.held.last().is_none_or(|last| last.0 < identity.blocks), "blocks of the volume");
        log.file.set_len(found.end_bytes as u64).during("truncate", path)?;
        // The last record may exist only in the page cache: its process died before the sync, or the sync
        // failed and the kernel treats the page as clean. Rewriting it ensures that this sync covers it.
        let last_record = &bytes[found.last_start_bytes..found.end_bytes];
        log.append_bytes(last_record)?;
        log.end_bytes = found.end_bytes as u64;
        log.file.sync_all().during("sync", path)?;
        log.preallocate();
        Ok((log, found.held))
    }

    /// Inspects a log, read-only.
    pub(crate) fn inspect(path: &Path, identity: Identity) -> Result<InspectedLog, VolumeError> {
        let bytes = storage::read(path).during("read", path)?;
        let found = Parsed::from(path, &bytes, identity)?;
        let rest = &bytes[found.end_bytes..];
        debug_assert!(found.last_start_bytes <= found.end_bytes, "a record ends after its start");
        let torn = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let has_intact_end = torn == 0 && !rest.is_empty();
        Ok(InspectedLog { named: found.held, torn_bytes: torn as u64, has_intact_end })
    }

    /// Returns the blocks of all valid records of a damaged log, read-only. A record with a valid checksum is
    /// trusted independently of its neighbours.
    pub(crate) fn rescue(path: &Path, identity: Identity) -> BlockSet {
        let bytes = storage::read(path).unwrap_or_default();
        let mut named = BlockSet::new();
        let (mut at, mut tries) = (0, 0);
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= RECORD_HEADER_BYTES) {
            let record = rest.starts_with(RECORD_MAGIC).then(|| {
                tries += 1;
                identity.parse(rest, word_at(rest, 8))
            });
            debug_assert!(named.last().is_none_or(|last| last.0 < identity.blocks), "blocks of the volume");
            at += match record.flatten() {
                Some((blocks, len)) => {
                    named.union_with(&blocks);
                    tries -= 1;
                    len
                }
                None if tries >= MAX_RESCUE_TRIES => break,
                None => 1,
            };
        }
        named
    }

    /// Writes at the end of the log, with new zeroes if none are left. The caller advances
    /// `end_bytes` after a sync.
    fn append_bytes(&mut self, bytes: &[u8]) -> Result<(), VolumeError> {
        assert!(self.end_bytes >= HEADER_BYTES as u64 || bytes.starts_with(MAGIC), "the header comes first");
        let end_bytes = self.end_bytes + bytes.len() as u64;
        if end_bytes >= self.zeroed_to_bytes {
            let mut with_zeroes = bytes.to_vec();
            with_zeroes.resize((bytes.len() + ZEROES_BYTES).next_multiple_of(BLOCK_SIZE_BYTES as usize), 0);
            if self.file.write_all_at(&with_zeroes, self.end_bytes).is_ok() {
                self.zeroed_to_bytes = self.end_bytes + with_zeroes.len() as u64;
                assert!(self.zeroed_to_bytes > end_bytes, "zeroes follow the record");
                return Ok(());
            }
            // The disk may have space for the record alone.
        }
        self.file.write_all_at(bytes, self.end_bytes).during("append", &self.path)
    }

    /// Appends blocks whose data is synced, and syncs the log.
    pub(crate) fn append(&mut self, blocks: &BlockSet) -> Result<(), VolumeError> {
        debug_assert!(!blocks.is_empty(), "a flush without new blocks appends no record");
        let record = self.identity.record(self.next_record, blocks);
        debug_assert!(
            self.identity.parse(&record, self.next_record).is_some_and(|(named, _)| named == *blocks),
            "a record reads back"
        );
        self.append_bytes(&record)?;
        self.file.sync_data().during("sync", &self.path)?;
        self.sync_name()?;
        self.end_bytes += record.len() as u64;
        self.next_record += 1;
        if self.end_bytes / PREALLOCATED_BYTES != (self.end_bytes - record.len() as u64) / PREALLOCATED_BYTES
        {
            self.preallocate();
        }
        Ok(())
    }

    /// Returns true if the log is much larger than `all` and should be compacted.
    pub(crate) fn needs_compaction(&self, all: &BlockSet) -> bool {
        self.end_bytes > COMPACT_ABOVE_BYTES && self.end_bytes / 4 > all.serialized_len() as u64
    }

    /// Replaces the log by one with a single record that names all blocks.
    pub(crate) fn compact(&mut self, all: &BlockSet) -> Result<(), VolumeError> {
        let new_path = self.path.with_extension("log.new");
        let mut new = Self::create(&new_path, self.identity)?;
        new.append(all)?;
        assert!(new.next_record == 1, "a compacted log has one record");
        storage::rename(&new_path, &self.path).during("rename", &new_path)?;
        // Even if the sync below fails: the name refers to the new file, so records must go there.
        new.path.clone_from(&self.path);
        new.dir_unsynced = true;
        *self = new;
        self.sync_name()
    }

    /// Syncs the directory if the rename may not be durable, so that recovery finds appended records.
    fn sync_name(&mut self) -> Result<(), VolumeError> {
        if let Some(dir) = self.path.parent().filter(|_| self.dir_unsynced) {
            crate::io::files::sync_dir(dir)?;
            self.dir_unsynced = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockIndex, Extent};
    use blockd_extent::{Epoch, VolumeId};

    const IDENTITY: Identity = Identity { volume: VolumeId::from_u64(9), epoch: Epoch(2), blocks: 1 << 20 };

    fn set(start: u64, len: u64) -> BlockSet {
        BlockSet::from_iter([Extent::new(BlockIndex(start), len)])
    }

    fn block(number: u64) -> Extent {
        Extent::new(BlockIndex(number), 1)
    }

    #[test]
    fn torn_ends_are_cut_and_altered_bytes_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log = HeadLog::create(&path, IDENTITY).unwrap();
        log.append(&set(5, 10)).unwrap();
        let first_end = log.end_bytes as usize;
        log.append(&set(100, 3)).unwrap();
        let end = log.end_bytes as usize;
        drop(log);
        let ahead = std::fs::read(&path).unwrap();
        assert!(ahead.len() >= ZEROES_BYTES && ahead[end..].iter().all(|byte| *byte == 0));
        let whole = ahead[..end].to_vec();
        let mut both = set(5, 10);
        both.union_with(&set(100, 3));

        for cut in HEADER_BYTES..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(!HeadLog::inspect(&path, IDENTITY).unwrap().has_intact_end, "cut at {cut}");
            let (mut log, found) = HeadLog::open(&path, IDENTITY).unwrap();
            let expected = if cut == whole.len() {
                both.clone()
            } else if cut >= first_end {
                set(5, 10)
            } else {
                BlockSet::new()
            };
            assert_eq!(found, expected, "cut at {cut}");
            assert!(HeadLog::inspect(&path, IDENTITY).unwrap().has_intact_end, "cut at {cut}, and opened");
            log.append(&set(7000, 1)).unwrap();
            assert!(HeadLog::open(&path, IDENTITY).unwrap().1.contains(BlockIndex(7000)));
        }
        for at in first_end..end {
            let mut bytes = ahead.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            assert!(!HeadLog::inspect(&path, IDENTITY).unwrap().has_intact_end, "byte {at}");
        }
        // A flipped bit before the last record is damage; in the last one it looks like a torn end.
        for at in 0..first_end {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            assert!(HeadLog::open(&path, IDENTITY).is_err(), "byte {at}");
            let left = if at < HEADER_BYTES { both.clone() } else { set(100, 3) };
            assert_eq!(HeadLog::rescue(&path, IDENTITY), left, "byte {at}");
        }
    }

    #[test]
    fn golden_file_round_trips() {
        let golden = include_bytes!("../../tests/golden/layer-v1.log");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log = HeadLog::create(&path, IDENTITY).unwrap();
        let (first, second) = (set(5, 10), BlockSet::from_iter([100, (1 << 20) - 1].map(block)));
        log.append(&first).unwrap();
        log.append(&second).unwrap();
        let written = std::fs::read(&path).unwrap();
        let (records, zeroes) = written.split_at(golden.len());
        assert_eq!(records, golden);
        assert!(!zeroes.is_empty() && zeroes.iter().all(|byte| *byte == 0), "zeroes follow the records");
        drop(log);
        std::fs::write(&path, golden).unwrap();
        let mut all = first;
        all.union_with(&second);
        assert_eq!(HeadLog::open(&path, IDENTITY).unwrap().1, all);
    }

    #[test]
    fn compacted_log_describes_the_same_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let mut log = HeadLog::create(&path, IDENTITY).unwrap();
        let mut all = BlockSet::new();
        for i in 0..100 {
            let more = set(i * 3, 1);
            all.union_with(&more);
            log.append(&more).unwrap();
        }
        let before = log.end_bytes;
        log.compact(&all).unwrap();
        assert!(log.end_bytes < before / 4);
        log.append(&set(5000, 1)).unwrap();
        all.insert(BlockIndex(5000));
        assert_eq!(HeadLog::open(&path, IDENTITY).unwrap().1, all);
    }

    #[test]
    fn log_of_other_head_or_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        HeadLog::create(&path, IDENTITY).unwrap();
        assert!(HeadLog::open(&path, Identity { epoch: Epoch(3), ..IDENTITY }).is_err());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 2;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(HeadLog::open(&path, IDENTITY), Err(VolumeError::NewerFormat { found: 2, .. })));
    }
}
