//! Live map: block set of the head that survives a process crash.
//!
//! Two bitmaps in memory, one bit per block: `held` (the head has the block) and `zero` (the head has it and
//! its data is all zeroes). They are authoritative for this process. Each new bit of `held` is also written
//! to a sparse file, after the data of its block and before the request is acknowledged. The page cache
//! outlives the process, so the next process finds every acknowledged block, also after `kill -9`.
//!
//! The file is written with `pwrite`, not through a mapping. A store to a mapping cannot return an error: on
//! a full or shut-down filesystem it kills the process (SIGBUS), and reclaim drops a page whose writeback
//! failed together with its bits. With `pwrite`, memory stays correct regardless of the file, a failed call
//! fails one write, and [`LiveMap::sync`] detects a failed writeback and rewrites the file.
//!
//! The kernel may write a bit back before the data of its block. The file is therefore trusted only in the
//! boot that wrote it, and only while the filesystem stays mounted ([`crate::head::mount`]): its header has
//! the boot id and the mount number. After a power cut, recovery uses the head's log ([`crate::head::log`]).
//! `zero` is not stored: recovery derives most of it from the holes of the data file.
//!
//! # File
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | magic `BLKDMAP1` |
//! | 8–11 | version, 1 |
//! | 12 | 1 if the volume was closed cleanly: the log then names every block of the map |
//! | 13–15 | zero |
//! | 16–23 | volume id |
//! | 24–31 | epoch |
//! | 32–39 | blocks of the volume |
//! | 40–75 | boot id, in the kernel's text form; zeroes until the map names every block of the log |
//! | 76–79 | zero |
//! | 80–87 | mount number ([`crate::head::mount`]), 0 if unknown |
//! | 88–4095 | zero |
//! | 4096– | `held`: bit `b & 63` of the little-endian u64 number `b / 64` is block `b`; padded to 4 KiB |

mod bitmap;
mod header;
mod recovery;

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    head::volume_dir::Identity,
    io::storage::{self, File},
};
use bitmap::{BLOCKS_PER_CHUNK, Bitmap, CHUNK_BYTES, words};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use header::{BOOT_ID_AT, BOOT_ID_BYTES, CLEAN_AT, HEADER_BYTES, Header, boot_id};
use parking_lot::Mutex;
pub(crate) use recovery::Inspection;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Maximum number of words (2 MiB of volume) that are written from a buffer on the stack.
const STACK_WORDS: usize = 8;
/// Number of locks for writes to the file; each covers every 16th chunk.
const WRITE_LOCKS: usize = 16;

/// Bitmaps of a head and the file behind one of them.
pub(crate) struct LiveMap {
    held: Bitmap,
    zero: Bitmap,
    file: File,
    path: PathBuf,
    /// Header without a boot id, which marks the file invalid.
    header: Vec<u8>,
    blocks: u64,
    /// Held while bits of a chunk are written to the file and then to memory, so that no older word
    /// overwrites a newer one.
    writing: [Mutex<()>; WRITE_LOCKS],
    /// True after writes since the last sync of the file.
    unsynced: AtomicBool,
    /// True if the file may lack bits; later processes reject it.
    is_incomplete: AtomicBool,
}

/// Failure to write the map to disk.
pub(crate) struct MapFailure {
    pub(crate) error: VolumeError,
    /// True if the disk is full: a later call can succeed.
    pub(crate) may_retry: bool,
}

impl LiveMap {
    /// Creates an empty map, replacing an old file. The caller syncs the directory.
    pub(crate) fn create(path: &Path, identity: Identity) -> Result<Self, VolumeError> {
        let map = Self::create_invalid(path, identity)?;
        map.mark_valid()?;
        Ok(map)
    }

    /// Creates an empty map that later processes reject until it is [marked valid](Self::mark_valid).
    pub(crate) fn create_invalid(path: &Path, identity: Identity) -> Result<Self, VolumeError> {
        crate::io::files::remove_if_exists(path)?;
        let file = File::create_new(path).during("create", path)?;
        let header = Header::compose(identity, &file);
        file.write_all_at(&header, 0).during("write", path)?;
        file.set_len(HEADER_BYTES + bitmap_bytes(identity.blocks)).during("truncate", path)?;
        Ok(Self::with(file, path, header, identity.blocks))
    }

    /// Replaces a rejected map by one that names the blocks of the log. The old map stays until the rename,
    /// because it is the evidence of lost writes. The caller syncs the directory.
    pub(crate) fn replace(path: &Path, identity: Identity, logged: &BlockSet) -> Result<Self, VolumeError> {
        let new_path = path.with_extension("map.new");
        let mut map = Self::create_invalid(&new_path, identity)?;
        map.add_all(logged)?;
        debug_assert!(map.held_set() == *logged, "the map names the blocks of the log");
        // Only after `add_all`: salvage relies on a valid map naming all blocks of the log.
        map.mark_valid()?;
        storage::rename(&new_path, path).during("rename", &new_path)?;
        map.path = path.to_owned();
        Ok(map)
    }

    fn with(file: File, path: &Path, header: Vec<u8>, blocks: u64) -> Self {
        assert!(header.len() as u64 == HEADER_BYTES, "the header fills its page");
        Self {
            held: Bitmap::new(blocks),
            zero: Bitmap::new(blocks),
            file,
            path: path.to_owned(),
            header,
            blocks,
            writing: [const { Mutex::new(()) }; WRITE_LOCKS],
            unsynced: AtomicBool::new(true),
            is_incomplete: AtomicBool::new(false),
        }
    }

    /// Marks the map, durably, as naming every block that the head holds, by writing the boot id: later
    /// processes of this boot trust it.
    pub(crate) fn mark_valid(&self) -> Result<(), VolumeError> {
        let boot = boot_id()?;
        let text = boot.as_bytes().get(..BOOT_ID_BYTES).unwrap_or_default();
        self.file.write_all_at(text, BOOT_ID_AT as u64).during("write", &self.path)?;
        self.sync_file()
    }

    /// Records, durably, whether the log names every block of the map.
    pub(crate) fn set_clean(&self, clean: bool) -> Result<(), VolumeError> {
        self.file.write_all_at(&[u8::from(clean)], CLEAN_AT as u64).during("write", &self.path)?;
        self.sync_file()
    }

    /// Makes every later process reject the map, because data of its blocks was lost. Memory is unchanged.
    pub(crate) fn invalidate(&self) {
        invalidate(&self.file, &self.path);
    }

    /// Syncs the file. After a failed sync the kernel marks unwritten pages clean, so the file is rewritten
    /// from memory.
    ///
    /// # Errors
    /// The file cannot be rewritten either. Later processes reject it then.
    pub(crate) fn sync(&self) -> Result<(), MapFailure> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        if !self.is_incomplete.load(Ordering::Acquire) {
            let Err(error) = self.sync_file() else { return Ok(()) };
            tracing::warn!(%error, "sync failed on the live map: rewriting it from memory");
            self.is_incomplete.store(true, Ordering::Release);
        }
        // A whole page, which the page cache accepts even if the disk is full.
        let invalidated = self.file.write_all_at(&[0; HEADER_BYTES as usize], 0).during("write", &self.path);
        if invalidated.is_err() {
            self.invalidate();
        }
        let may_retry = invalidated.is_ok();
        let repaired = invalidated.and_then(|()| self.rewrite());
        self.is_incomplete.store(repaired.is_err(), Ordering::Release);
        self.unsynced.fetch_or(repaired.is_err(), Ordering::AcqRel);
        repaired.map_err(|error| MapFailure {
            may_retry: may_retry && error.kind() == VolumeErrorKind::NoSpace,
            error,
        })
    }

    fn sync_file(&self) -> Result<(), VolumeError> {
        self.file.sync_data().during("sync", &self.path)
    }

    /// Writes the whole bitmap to an invalidated file and marks it valid after a sync.
    fn rewrite(&self) -> Result<(), VolumeError> {
        // Waits for running writes: afterwards all bits that the failed sync covered are in memory.
        self.writing.iter().for_each(|lock| drop(lock.lock()));
        for chunk in self.held.allocated_chunks() {
            let blocks = Extent::between(
                BlockIndex(chunk * BLOCKS_PER_CHUNK),
                BlockIndex((chunk + 1) * BLOCKS_PER_CHUNK),
            );
            let _guard = self.write_lock(blocks.start).lock();
            self.write_words(blocks, |_| 0)?;
        }
        self.sync_file()?;
        self.file.write_all_at(&self.header, 0).during("write", &self.path)?;
        self.mark_valid()
    }

    /// Sets `held` for blocks whose data is in the page cache, first in the file and then in memory, and
    /// reports each extent that was not held before to `new_extent`, under the lock of `lock_tracked`, which
    /// is taken after the write.
    ///
    /// # Errors
    /// The file cannot be written; the blocks of a leading part of the chunks may be held then.
    pub(crate) fn set_held<G>(
        &self,
        extent: Extent,
        mut lock_tracked: impl FnMut() -> G,
        mut new_extent: impl FnMut(&mut G, Extent),
    ) -> Result<(), VolumeError> {
        assert!(extent.end().0 <= self.blocks, "blocks beyond the end of the map");
        for part in split_by_chunk(extent).filter(|part| !self.held.holds_all(*part)) {
            let _guard = self.write_lock(part.start).lock();
            self.write_words(part, |mask| mask)?;
            let mut tracked = lock_tracked();
            self.held.set(part, |extent| new_extent(&mut tracked, extent));
        }
        debug_assert!(self.held.holds_all(extent), "the requested bits are set");
        Ok(())
    }

    /// Returns the lock for file writes of a block's chunk.
    fn write_lock(&self, block: BlockIndex) -> &Mutex<()> {
        &self.writing[(block.0 / BLOCKS_PER_CHUNK) as usize % WRITE_LOCKS]
    }

    /// Writes the words of an extent inside one chunk from memory, with the bits of `add` also set.
    fn write_words(&self, part: Extent, add: impl Fn(u64) -> u64) -> Result<(), VolumeError> {
        let last = part.end().0.saturating_sub(1);
        assert!(part.start.0 / BLOCKS_PER_CHUNK == last / BLOCKS_PER_CHUNK, "one lock covers the words");
        let (mut few, mut many) = ([0; STACK_WORDS * 8], Vec::new());
        let count = words(part).count();
        let bytes = match count <= STACK_WORDS {
            true => &mut few[..count * 8],
            false => {
                many.resize(count * 8, 0);
                &mut many[..]
            }
        };
        for ((index, mask), bytes) in words(part).zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&(self.held.word(index) | add(mask)).to_le_bytes());
        }
        let at = HEADER_BYTES + part.start.0 / 64 * 8;
        assert!(at + bytes.len() as u64 <= HEADER_BYTES + bitmap_bytes(self.blocks), "words beyond the map");
        let written = self.file.write_all_at(bytes, at).during("write", &self.path);
        // After the write, so that the sync that clears it covers the write.
        self.unsynced.store(true, Ordering::Release);
        written
    }

    /// Adds the blocks of the log to a map that no other thread uses yet.
    pub(crate) fn add_all(&self, logged: &BlockSet) -> Result<(), VolumeError> {
        assert!(logged.last().is_none_or(|last| last.0 < self.blocks), "blocks beyond the end of the map");
        let mut is_changed = false;
        for extent in logged.extents() {
            self.held.set(extent, |_| is_changed = true);
        }
        if !is_changed {
            return Ok(());
        }
        self.held.allocated_chunks().try_for_each(|chunk| {
            let start = BlockIndex(chunk * BLOCKS_PER_CHUNK);
            self.write_words(Extent::new(start, BLOCKS_PER_CHUNK), |_| 0)
        })
    }

    /// Returns true if every block of an extent is held.
    pub(crate) fn holds_all(&self, extent: Extent) -> bool {
        self.held.holds_all(extent)
    }

    pub(crate) fn is_held(&self, block: BlockIndex) -> bool {
        debug_assert!(block.0 < self.blocks, "a block beyond the end of the map");
        self.held.word(block.0 / 64) >> (block.0 % 64) & 1 == 1
    }

    /// Sets `zero` for an extent.
    pub(crate) fn set_zero(&self, extent: Extent) {
        assert!(extent.end().0 <= self.blocks, "zeroes beyond the end of the map");
        self.zero.set(extent, |_| {});
    }

    pub(crate) fn clear_zero(&self, extent: Extent) {
        assert!(extent.end().0 <= self.blocks, "a write beyond the end of the map");
        self.zero.clear(extent);
    }

    /// Splits a range into maximal extents of equal state, ascending.
    pub(crate) fn states(&self, range: Extent) -> impl Iterator<Item = (Extent, BlockState)> + '_ {
        let mut at = range.start.0;
        let end = range.end().0.min(self.blocks);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = at;
            let state = self.state(start);
            at = self.end_of_state(start, end, state);
            assert!(start < at && at <= end, "the states of blocks advance");
            Some((Extent::between(BlockIndex(start), BlockIndex(at)), state))
        })
    }

    /// Returns the state of one block; a block beyond the end is absent.
    pub(crate) fn state_of(&self, block: BlockIndex) -> BlockState {
        if block.0 < self.blocks { self.state(block.0) } else { BlockState::Absent }
    }

    fn state(&self, block: u64) -> BlockState {
        let (index, bit) = (block / 64, block % 64);
        if self.held.word(index) >> bit & 1 == 0 {
            return BlockState::Absent;
        }
        if self.zero.word(index) >> bit & 1 == 1 { BlockState::Zero } else { BlockState::Data }
    }

    /// Returns the first block after `start` in another state, or `end`.
    fn end_of_state(&self, start: u64, end: u64, state: BlockState) -> u64 {
        let mut at = start;
        while at < end {
            if state == BlockState::Absent && self.held.is_untouched(BlockIndex(at)) {
                at = (at / BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK;
                continue;
            }
            let (held, zero) = (self.held.word(at / 64), self.zero.word(at / 64));
            let same = match state {
                BlockState::Absent => !held,
                BlockState::Data => held & !zero,
                BlockState::Zero => held & zero,
            };
            let run = u64::from((same >> (at % 64)).trailing_ones());
            let to_boundary = 64 - at % 64;
            if run < to_boundary {
                // `max`: another thread may have changed the block's state since.
                return (at + run).max(start + 1).min(end);
            }
            at += to_boundary;
        }
        end
    }

    /// Returns the memory of the bitmaps, in bytes.
    pub(crate) fn heap_bytes(&self) -> u64 {
        self.held.heap_bytes() + self.zero.heap_bytes()
    }

    /// Returns the held blocks.
    pub(crate) fn held_set(&self) -> BlockSet {
        self.held.to_set()
    }

    /// Returns the blocks marked as zero, held or not.
    pub(crate) fn zero_set(&self) -> BlockSet {
        self.zero.to_set()
    }
}

/// State of a block in a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockState {
    /// Not held by the head: a lower layer provides it.
    Absent,
    /// Held with data.
    Data,
    /// Held as zeroes.
    Zero,
}

fn bitmap_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_CHUNK).max(1) * CHUNK_BYTES
}

/// Splits an extent at chunk boundaries.
fn split_by_chunk(extent: Extent) -> impl Iterator<Item = Extent> {
    let (mut at, end) = (extent.start.0, extent.end().0);
    std::iter::from_fn(move || {
        let to = ((at / BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK).min(end);
        let part = (at < end).then(|| Extent::between(BlockIndex(at), BlockIndex(to)));
        at = to;
        part
    })
}

/// Invalidates a map file and removes it; either step suffices.
///
/// It overwrites the whole header page, which the page cache accepts without a read from a failing disk. A
/// filesystem that refuses this write is shut down: it must be mounted again before use and has another mount
/// number then.
fn invalidate(file: &File, path: &Path) {
    let cleared = file.write_all_at(&[0; HEADER_BYTES as usize], 0).during("write", path);
    let removed = crate::io::files::remove_if_exists(path);
    if let (Err(error), Err(_)) = (cleared, removed) {
        tracing::error!(%error, "invalidation failed on the live map of a head with lost data");
    }
}

#[cfg(test)]
mod tests;
