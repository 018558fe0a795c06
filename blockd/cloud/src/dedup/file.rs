//! Fingerprint files: the fingerprints of the data blocks of one delta, on the host that stored it.
//!
//! A file that is missing, damaged, or of another key only prevents references to its delta. Integers are
//! little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | magic `BLKDFPRT` |
//! | 2 | version, 1 |
//! | 6 | zero |
//! | 16 | check of the key |
//! | 16, 8, 8 | cluster, volume and snapshot of the delta |
//! | 32 | salt of the delta |
//! | 4, 4 | number n of entries, number h of hooks |
//! | 24 n | entries, ascending by block: block (u64), fingerprint (16 bytes) |
//! | 16 m | for each chunk of 1024 entries: first block (u64), XXH3-64 of the chunk |
//! | 12 h | hooks, a sample of the entries: first 8 bytes of the fingerprint, number of the entry (u32) |
//! | 8 | XXH3-64 of everything but the entries |

use super::fingerprint::{Entry, Fingerprint, FingerprintKey};
use crate::{index::Cursor, names::DeltaId};
use blockd_extent::{BlockIndex, MAX_VOLUME_BYTES, SnapshotId, VolumeId};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use uuid::Uuid;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: &[u8; 8] = b"BLKDFPRT";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 104;
pub(super) const ENTRY_LEN: usize = 24;
const PLACE_LEN: usize = 16;
const HOOK_LEN: usize = 12;
/// Entries of a chunk, which is read and checked as a whole: 24 KiB for 4 MiB of blocks.
pub(super) const CHUNK_ENTRIES: usize = 1024;
/// Zero bits of the fingerprint that select a hook: one of 256 entries, 12 MiB for each TiB.
pub(super) const HOOK_BITS: u32 = 8;
/// Maximum number of entries, 4 TiB of blocks; further blocks are stored without a fingerprint.
const MAX_ENTRIES: u64 = 1 << 30;

/// Start of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    first: u64,
    checksum: u64,
}

/// Identity of the delta of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileOf {
    pub delta: DeltaId,
    pub salt: [u8; 32],
}

/// Everything but the entries.
#[derive(PartialEq, Eq, Debug)]
struct Outline {
    key: [u8; 16],
    of: FileOf,
    entries: u32,
    places: Vec<Place>,
    hooks: Vec<(u64, u32)>,
}

impl Outline {
    fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&self.key);
        out.extend_from_slice(self.of.delta.cluster.as_bytes());
        out.extend_from_slice(&self.of.delta.volume.as_u64().to_le_bytes());
        out.extend_from_slice(&self.of.delta.snapshot.as_u64().to_le_bytes());
        out.extend_from_slice(&self.of.salt);
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&(self.hooks.len() as u32).to_le_bytes());
        debug_assert_eq!(out.len(), HEADER_LEN);
        out
    }

    fn tail(&self, header: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.places.len() * PLACE_LEN + self.hooks.len() * HOOK_LEN + 8);
        for place in &self.places {
            out.extend_from_slice(&place.first.to_le_bytes());
            out.extend_from_slice(&place.checksum.to_le_bytes());
        }
        for (prefix, number) in &self.hooks {
            out.extend_from_slice(&prefix.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = checksum(header, &out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }
}

fn checksum(header: &[u8], tail: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(header);
    hasher.update(tail);
    hasher.digest()
}

fn tail_len(entries: u32, hooks: u32) -> u64 {
    u64::from(entries).div_ceil(CHUNK_ENTRIES as u64) * PLACE_LEN as u64
        + u64::from(hooks) * HOOK_LEN as u64
        + 8
}

/// Decodes a header; returns the numbers of entries and hooks.
fn parse_header(bytes: &[u8]) -> Result<([u8; 16], FileOf, u32, u32), &'static str> {
    let mut cursor = Cursor { rest: bytes };
    let head = cursor.take(16)?;
    if head[..8] != *MAGIC || head[8..10] != VERSION.to_le_bytes() || head[10..] != [0; 6] {
        return Err("it is no fingerprint file of this version");
    }
    let array = |bytes: &[u8]| bytes.try_into().map_err(|_| "the data is truncated");
    let key: [u8; 16] = array(cursor.take(16)?)?;
    let cluster = Uuid::from_slice(cursor.take(16)?).map_err(|_| "the data is truncated")?;
    let (volume, snapshot) = (VolumeId::from_u64(cursor.u64()?), SnapshotId::from_u64(cursor.u64()?));
    let salt = cursor.take(32)?.try_into().map_err(|_| "the data is truncated")?;
    let (entries, hooks) = (cursor.u32()?, cursor.u32()?);
    if u64::from(entries) > MAX_ENTRIES || hooks > entries {
        return Err("it has too many entries");
    }
    Ok((key, FileOf { delta: DeltaId { cluster, volume, snapshot }, salt }, entries, hooks))
}

fn parse_outline(header: &[u8], tail: &[u8]) -> Result<Outline, &'static str> {
    let (key, of, entries, hooks) = parse_header(header)?;
    if tail.len() as u64 != tail_len(entries, hooks) {
        return Err("its length differs from its header");
    }
    let (content, sum) = tail.split_last_chunk::<8>().ok_or("the data is truncated")?;
    if checksum(header, content) != u64::from_le_bytes(*sum) {
        return Err("checksum mismatch");
    }
    let mut cursor = Cursor { rest: content };
    let mut places = Vec::with_capacity((entries as usize).div_ceil(CHUNK_ENTRIES));
    for _ in 0..(entries as usize).div_ceil(CHUNK_ENTRIES) {
        places.push(Place { first: cursor.u64()?, checksum: cursor.u64()? });
    }
    if !places.is_sorted_by(|a, b| a.first < b.first) {
        return Err("its chunks are not ascending");
    }
    let mut found = Vec::with_capacity(hooks as usize);
    for _ in 0..hooks {
        found.push((cursor.u64()?, cursor.u32()?));
    }
    if found.iter().any(|(_, number)| *number >= entries) {
        return Err("a hook names no entry");
    }
    Ok(Outline { key, of, entries, places, hooks: found })
}

fn parse_chunk(bytes: &[u8], place: Place) -> Result<Vec<Entry>, &'static str> {
    if xxh3_64(bytes) != place.checksum {
        return Err("checksum mismatch");
    }
    let mut cursor = Cursor { rest: bytes };
    let mut entries = Vec::with_capacity(bytes.len() / ENTRY_LEN);
    while !cursor.rest.is_empty() {
        let block = BlockIndex(cursor.u64()?);
        let (low, high) = (cursor.u64()?, cursor.u64()?);
        let fingerprint = Fingerprint(u128::from(high) << 64 | u128::from(low));
        entries.push(Entry { block, fingerprint });
    }
    let most = MAX_VOLUME_BYTES / blockd_extent::BLOCK_SIZE_BYTES;
    if !entries.is_sorted_by(|a, b| a.block < b.block)
        || entries.first().is_none_or(|first| first.block.0 != place.first)
        || entries.last().is_some_and(|last| last.block.0 >= most)
    {
        return Err("its blocks are not ascending");
    }
    Ok(entries)
}

/// Decodes a whole file, for tests of the parser.
///
/// # Errors
/// Reason for which the file is not used.
#[doc(hidden)]
pub fn parse_fingerprint_file(bytes: &[u8]) -> Result<usize, &'static str> {
    let (header, rest) = bytes.split_at_checked(HEADER_LEN).ok_or("the data is truncated")?;
    let (_, _, entries, _) = parse_header(header)?;
    let (content, tail) =
        rest.split_at_checked(entries as usize * ENTRY_LEN).ok_or("the data is truncated")?;
    let outline = parse_outline(header, tail)?;
    let chunks = content.chunks(CHUNK_ENTRIES * ENTRY_LEN).zip(&outline.places);
    let mut found = 0;
    for (chunk, place) in chunks {
        found += parse_chunk(chunk, *place)?.len();
    }
    Ok(found)
}

/// Finds entries by block or number in chunks.
pub(super) trait Chunks {
    fn places(&self) -> usize;
    /// Returns the first block of a chunk.
    fn first_of(&self, chunk: usize) -> u64;
    /// Reads a chunk.
    fn chunk(&self, chunk: usize) -> io::Result<Vec<Entry>>;

    /// Returns the chunk that may have a block.
    fn chunk_of(&self, block: BlockIndex) -> Option<usize> {
        let (mut low, mut high) = (0, self.places());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.first_of(middle) <= block.0 { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }
}

/// File of a stored delta. It is open during reads only.
#[derive(Debug)]
pub(crate) struct FingerprintFile {
    path: PathBuf,
    outline: Outline,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl FingerprintFile {
    pub fn open(path: &Path, key: &FingerprintKey, of: &FileOf) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0)?;
        let (_, _, entries, hooks) = parse_header(&header).map_err(invalid)?;
        let tail_at = HEADER_LEN as u64 + u64::from(entries) * ENTRY_LEN as u64;
        // Before memory is allocated for it.
        if file.metadata()?.len() != tail_at + tail_len(entries, hooks) {
            return Err(invalid("its length differs from its header"));
        }
        let mut tail = vec![0; tail_len(entries, hooks) as usize];
        file.read_exact_at(&mut tail, tail_at)?;
        let outline = parse_outline(&header, &tail).map_err(invalid)?;
        if (outline.key, outline.of) != (key.check(), *of) {
            return Err(invalid("it is of another key or delta"));
        }
        Ok(Self { path: path.to_owned(), outline })
    }

    pub fn len(&self) -> u64 {
        u64::from(self.outline.entries)
    }

    /// Returns the hooks and frees their memory.
    pub fn take_hooks(&mut self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.outline.hooks)
    }
}

/// Returns the number of entries in a file, without checks.
pub(super) fn entries_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len() / ENTRY_LEN as u64)
}

fn read_chunk(file: &File, outline: &Outline, chunk: usize) -> io::Result<Vec<Entry>> {
    let place = outline.places.get(chunk).ok_or_else(|| invalid("no such chunk"))?;
    let first = chunk * CHUNK_ENTRIES;
    let len = (outline.entries as usize - first).min(CHUNK_ENTRIES);
    let mut bytes = vec![0; len * ENTRY_LEN];
    file.read_exact_at(&mut bytes, (HEADER_LEN + first * ENTRY_LEN) as u64)?;
    parse_chunk(&bytes, *place).map_err(invalid)
}

impl Chunks for FingerprintFile {
    fn places(&self) -> usize {
        self.outline.places.len()
    }

    fn first_of(&self, chunk: usize) -> u64 {
        self.outline.places[chunk].first
    }

    fn chunk(&self, chunk: usize) -> io::Result<Vec<Entry>> {
        read_chunk(&File::open(&self.path)?, &self.outline, chunk)
    }
}

/// Writer of the file of a new delta, which answers as a reader does meanwhile.
#[derive(Debug)]
pub(crate) struct FingerprintWriter {
    file: File,
    outline: Outline,
    /// Entries of the last chunk.
    open: Vec<Entry>,
}

impl FingerprintWriter {
    pub fn create(path: &Path, key: &FingerprintKey, of: FileOf) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let outline = Outline { key: key.check(), of, entries: 0, places: Vec::new(), hooks: Vec::new() };
        Ok(Self { file, outline, open: Vec::new() })
    }

    /// Adds a block above all others; returns the number of its entry.
    pub fn push(&mut self, entry: Entry) -> io::Result<Option<u32>> {
        if u64::from(self.outline.entries) + self.open.len() as u64 >= MAX_ENTRIES {
            return Ok(None);
        }
        let number = self.outline.entries + self.open.len() as u32;
        if entry.fingerprint.prefix().trailing_zeros() >= HOOK_BITS {
            self.outline.hooks.push((entry.fingerprint.prefix(), number));
        }
        self.open.push(entry);
        if self.open.len() == CHUNK_ENTRIES {
            self.flush()?;
        }
        Ok(Some(number))
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(first) = self.open.first() else { return Ok(()) };
        let first = first.block.0;
        let mut bytes = Vec::with_capacity(self.open.len() * ENTRY_LEN);
        for entry in &self.open {
            bytes.extend_from_slice(&entry.block.0.to_le_bytes());
            bytes.extend_from_slice(&entry.fingerprint.0.to_le_bytes());
        }
        self.file
            .write_all_at(&bytes, HEADER_LEN as u64 + u64::from(self.outline.entries) * ENTRY_LEN as u64)?;
        self.outline.entries += self.open.len() as u32;
        self.outline.places.push(Place { first, checksum: xxh3_64(&bytes) });
        self.open.clear();
        Ok(())
    }

    /// Completes the file durably. Before that, no reader accepts it.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let header = self.outline.header();
        let at = HEADER_LEN as u64 + u64::from(self.outline.entries) * ENTRY_LEN as u64;
        self.file.write_all_at(&self.outline.tail(&header), at)?;
        self.file.write_all_at(&header, 0)?;
        self.file.sync_all()
    }
}

impl Chunks for FingerprintWriter {
    fn places(&self) -> usize {
        self.outline.places.len()
    }

    fn first_of(&self, chunk: usize) -> u64 {
        self.outline.places[chunk].first
    }

    fn chunk(&self, chunk: usize) -> io::Result<Vec<Entry>> {
        read_chunk(&self.file, &self.outline, chunk)
    }
}
