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
    io::stream::{FileReader, FileWriter, HashingWriter, Window, decode_and_sum},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet};
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::Xxh3;

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
const ZEROES_BYTES: u64 = 64 << 10;

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
    /// Length above which the log is compared with the set of its blocks. A comparison costs as much as
    /// that set has, so each follows at least [`COMPACT_ABOVE_BYTES`] after the last one.
    compare_above_bytes: u64,
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

    /// Returns the hasher of a record with this start of its header.
    fn hasher(self, head: &[u8]) -> Xxh3 {
        let mut hash = Xxh3::with_seed(self.volume.as_u64() ^ self.epoch.0);
        hash.update(head);
        hash
    }

    /// Returns the header of a record.
    fn record_header(self, number: u64, blocks: &BlockSet) -> io::Result<Vec<u8>> {
        assert!(blocks.last().is_none_or(|last| last.0 < self.blocks), "a record names blocks of the volume");
        let len = u32::try_from(blocks.serialized_len()).map_err(io::Error::other)?;
        let mut header = Vec::with_capacity(RECORD_HEADER_BYTES);
        header.extend_from_slice(RECORD_MAGIC);
        header.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&number.to_le_bytes());
        let mut sink = io::sink();
        let mut hashing = HashingWriter::new(&mut sink, self.hasher(&header));
        blocks.write_to(&mut hashing)?;
        header.extend_from_slice(&hashing.sum().to_le_bytes());
        assert!(header.len() == RECORD_HEADER_BYTES, "the header of a record has its length");
        Ok(header)
    }

    /// Parses a record at a position into its blocks and length; `None` unless complete and valid.
    fn parse(self, log: &mut Window<'_>, at: u64, number: u64) -> io::Result<Option<(BlockSet, u64)>> {
        let Ok(head) = <[u8; RECORD_HEADER_BYTES]>::try_from(log.slice(at, RECORD_HEADER_BYTES)?) else {
            return Ok(None);
        };
        let len = half_at(&head, 4);
        let (start, end) =
            (at + RECORD_HEADER_BYTES as u64, at + RECORD_HEADER_BYTES as u64 + u64::from(len));
        if &head[..4] != RECORD_MAGIC || head[8..16] != number.to_le_bytes() || end > log.len_bytes() {
            return Ok(None);
        }
        let mut hash = self.hasher(&head[..16]);
        let (decoded, sum) = if len as usize <= Window::MAX_BYTES {
            let payload = log.slice(start, len as usize)?;
            hash.update(payload);
            (BlockSet::from_bytes(payload), hash.digest())
        } else {
            let payload = FileReader::new(log.file(), start, end);
            decode_and_sum(payload, hash, |input| BlockSet::read_from(input, u64::from(len)))?
        };
        let is_valid = |set: &BlockSet| {
            head[16..24] == sum.to_le_bytes() && set.last().is_none_or(|last| last.0 < self.blocks)
        };
        Ok(decoded.ok().filter(is_valid).map(|set| (set, end - at)))
    }

    /// Copies a valid record of a file to `out`.
    ///
    /// # Errors
    /// A read or write failed, or the record is not valid any more.
    fn copy_record(self, mut record: FileReader<'_>, out: &mut dyn Write) -> io::Result<()> {
        let mut head = [0; RECORD_HEADER_BYTES];
        record.read_exact(&mut head)?;
        out.write_all(&head)?;
        let mut hashing = HashingWriter::new(out, self.hasher(&head[..16]));
        io::copy(&mut record, &mut hashing)?;
        match hashing.sum().to_le_bytes() == head[16..24] {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the record differs from its checksum")),
        }
    }
}

/// Parsed log.
struct Parsed {
    held: BlockSet,
    /// Start and end of the last valid record; both are the end of the header without records.
    last_start_bytes: u64,
    end_bytes: u64,
    next_record: u64,
}

impl Parsed {
    fn from(path: &Path, log: &mut Window<'_>, identity: Identity) -> Result<Self, VolumeError> {
        let damaged = |what: String| VolumeError::Damaged { path: path.to_owned(), what };
        let header = log.slice(0, HEADER_BYTES).during("read", path)?;
        check_version(path, header, MAGIC, VERSION)?;
        if header != identity.header().as_slice() {
            return Err(damaged("header does not match the head".into()));
        }
        let start = HEADER_BYTES as u64;
        let mut parsed =
            Self { held: BlockSet::new(), last_start_bytes: start, end_bytes: start, next_record: 0 };
        while let Some((set, len)) =
            identity.parse(log, parsed.end_bytes, parsed.next_record).during("read", path)?
        {
            parsed.held.union_with(&set);
            parsed.last_start_bytes = parsed.end_bytes;
            parsed.end_bytes += len;
            parsed.next_record += 1;
        }
        assert!(parsed.end_bytes <= log.len_bytes(), "records end inside the file");
        match parsed.find_later_record(log, identity).during("read", path)? {
            Some(later) => Err(damaged(format!(
                "record {} at byte {} is invalid, but later record {later} is valid",
                parsed.next_record, parsed.end_bytes
            ))),
            None => Ok(parsed),
        }
    }

    /// Searches for a valid record after an invalid one: it proves corruption instead of a torn end.
    fn find_later_record(&self, log: &mut Window<'_>, identity: Identity) -> io::Result<Option<u64>> {
        let mut at = self.end_bytes + 1;
        loop {
            let part = log.slice(at, Window::MAX_BYTES)?;
            let Some(places) = part.len().checked_sub(RECORD_HEADER_BYTES) else { return Ok(None) };
            let is_candidate = |&place: &usize| {
                &part[place..place + 4] == RECORD_MAGIC && word_at(part, place + 8) > self.next_record
            };
            let candidates: Vec<_> = (0..=places).filter(is_candidate).collect();
            for place in candidates {
                let found = at + place as u64;
                let number = word_at(log.slice(found, RECORD_HEADER_BYTES)?, 8);
                if identity.parse(log, found, number)?.is_some() {
                    return Ok(Some(number));
                }
            }
            at += places as u64 + 1;
        }
    }

    /// Returns the length of the file after the last record, up to its last byte that is not zero.
    fn torn_bytes(&self, log: &mut Window<'_>) -> io::Result<u64> {
        let (mut at, mut torn) = (self.end_bytes, 0);
        while at < log.len_bytes() {
            let part = log.slice(at, Window::MAX_BYTES)?;
            if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
                torn = at + last as u64 + 1 - self.end_bytes;
            }
            at += part.len() as u64;
        }
        Ok(torn)
    }
}

impl HeadLog {
    /// Creates an empty, synced log; the caller syncs the directory.
    pub(crate) fn create(path: &Path, identity: Identity) -> Result<Self, VolumeError> {
        let file = File::create(path).during("create", path)?;
        let mut log = Self::with(file, path, identity, 0, 0);
        let header = identity.header();
        log.append_with(header.len() as u64, |_, out| out.write_all(&header))?;
        log.end_bytes = HEADER_BYTES as u64;
        log.file.sync_all().during("sync", path)?;
        log.preallocate();
        Ok(log)
    }

    fn with(file: File, path: &Path, identity: Identity, end_bytes: u64, next_record: u64) -> Self {
        Self {
            file,
            path: path.to_owned(),
            identity,
            end_bytes,
            zeroed_to_bytes: 0,
            next_record,
            compare_above_bytes: COMPACT_ABOVE_BYTES,
            dir_unsynced: false,
        }
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
        let len_bytes = file.metadata().during("read", path)?.len();
        let found = Parsed::from(path, &mut Window::new(&file, len_bytes), identity)?;
        let (start, end) = (found.last_start_bytes, found.end_bytes);
        let mut log = Self::with(file, path, identity, start, found.next_record);
        debug_assert!(found.held.last().is_none_or(|last| last.0 < identity.blocks), "blocks of the volume");
        log.file.set_len(end).during("truncate", path)?;
        // The last record may exist only in the page cache: its process died before the sync, or the sync
        // failed and the kernel treats the page as clean. Rewriting it ensures that this sync covers it.
        log.append_with(end - start, |file, out| match end > start {
            true => identity.copy_record(FileReader::new(file, start, end), out),
            false => Ok(()),
        })?;
        log.end_bytes = end;
        log.file.sync_all().during("sync", path)?;
        log.preallocate();
        Ok((log, found.held))
    }

    /// Returns the blocks that the file names.
    pub(crate) fn named(&self) -> Result<BlockSet, VolumeError> {
        Self::inspect(&self.path, self.identity).map(|found| found.named)
    }

    /// Inspects a log, read-only.
    pub(crate) fn inspect(path: &Path, identity: Identity) -> Result<InspectedLog, VolumeError> {
        let file = File::open_to_read(path).during("read", path)?;
        let len_bytes = file.metadata().during("read", path)?.len();
        let mut log = Window::new(&file, len_bytes);
        let found = Parsed::from(path, &mut log, identity)?;
        debug_assert!(found.last_start_bytes <= found.end_bytes, "a record ends after its start");
        let torn_bytes = found.torn_bytes(&mut log).during("read", path)?;
        let has_intact_end = torn_bytes == 0 && found.end_bytes < len_bytes;
        Ok(InspectedLog { named: found.held, torn_bytes, has_intact_end })
    }

    /// Returns the blocks of all valid records of a damaged log, read-only. A record with a valid checksum is
    /// trusted independently of its neighbours.
    pub(crate) fn rescue(path: &Path, identity: Identity) -> BlockSet {
        let mut named = BlockSet::new();
        let Ok(file) = File::open_to_read(path) else { return named };
        let len_bytes = file.metadata().map_or(0, |found| found.len());
        let mut log = Window::new(&file, len_bytes);
        let (mut at, mut tries) = (0, 0);
        while let Ok(head) = log.slice(at, RECORD_HEADER_BYTES)
            && head.len() == RECORD_HEADER_BYTES
        {
            let is_record = head.starts_with(RECORD_MAGIC);
            let number = word_at(head, 8);
            tries += u32::from(is_record);
            let record =
                if is_record { identity.parse(&mut log, at, number).unwrap_or_default() } else { None };
            debug_assert!(named.last().is_none_or(|last| last.0 < identity.blocks), "blocks of the volume");
            at += match record {
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

    /// Writes `len` bytes at the end of the log, with new zeroes if none are left. `write` writes them, and
    /// may be called twice. The caller advances `end_bytes` after a sync.
    fn append_with(
        &mut self,
        len: u64,
        write: impl Fn(&File, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), VolumeError> {
        let end_bytes = self.end_bytes + len;
        let append = |zeroes: u64| {
            let mut out = FileWriter::new(&self.file, self.end_bytes);
            write(&self.file, &mut out)?;
            io::copy(&mut io::repeat(0).take(zeroes), &mut out)?;
            out.finish()
        };
        if end_bytes >= self.zeroed_to_bytes {
            let with_zeroes = (len + ZEROES_BYTES).next_multiple_of(BLOCK_SIZE_BYTES);
            if append(with_zeroes - len).is_ok() {
                self.zeroed_to_bytes = self.end_bytes + with_zeroes;
                assert!(self.zeroed_to_bytes > end_bytes, "zeroes follow the record");
                return Ok(());
            }
            // The disk may have space for the record alone.
        }
        append(0).during("append", &self.path)
    }

    /// Appends blocks whose data is synced, and syncs the log.
    pub(crate) fn append(&mut self, blocks: &BlockSet) -> Result<(), VolumeError> {
        debug_assert!(!blocks.is_empty(), "a flush without new blocks appends no record");
        let header = self.identity.record_header(self.next_record, blocks).during("append", &self.path)?;
        let len = (header.len() + blocks.serialized_len()) as u64;
        self.append_with(len, |_, out| {
            out.write_all(&header)?;
            blocks.write_to(out)
        })?;
        self.file.sync_data().during("sync", &self.path)?;
        self.sync_name()?;
        self.end_bytes += len;
        self.next_record += 1;
        if self.end_bytes / PREALLOCATED_BYTES != (self.end_bytes - len) / PREALLOCATED_BYTES {
            self.preallocate();
        }
        Ok(())
    }

    /// Returns the length of the header and all records, in bytes.
    #[cfg(test)]
    pub(crate) fn len_bytes(&self) -> u64 {
        self.end_bytes
    }

    /// Returns true if the log has grown enough since it was last compared with the set of all its blocks.
    pub(crate) fn may_need_compaction(&self) -> bool {
        self.end_bytes > self.compare_above_bytes
    }

    /// Compacts the log if it is much larger than the set of all its blocks.
    pub(crate) fn compact_if_sparse(&mut self, all: &BlockSet) -> Result<(), VolumeError> {
        let len = all.serialized_len() as u64;
        self.compare_above_bytes = (len * 4).max(self.end_bytes + COMPACT_ABOVE_BYTES);
        if self.end_bytes / 4 > len { self.compact(all) } else { Ok(()) }
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
mod tests;
