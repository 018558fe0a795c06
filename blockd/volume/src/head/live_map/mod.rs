//! Block set of the head in a form that survives a process crash.
//!
//! Two bitmaps in memory, one bit per block: `held` (the head has the block) and `zero` (the head has it and
//! its data is all zeroes). They are authoritative for this process. Each new bit of `held` is also written
//! to a sparse file, after the data of its block and before the answer of the request; the page cache
//! outlives the process, so the next one finds every acknowledged block after `kill -9`.
//!
//! The file is written with `pwrite`, not through a mapping. A store through a mapping cannot return an
//! error: after a filesystem shutdown or on a full one it kills the process (SIGBUS), and reclaim drops a
//! page with a failed writeback together with its bits. Here memory stays correct regardless of the file, a
//! failed `pwrite` is the error of one write, and a failed writeback is found by [`LiveMap::sync`], which
//! then rewrites the file.
//!
//! The kernel may write the file back at any time, before the data of a bit. It is therefore trusted only in
//! the boot that wrote it, and only while the filesystem stays mounted ([`crate::head::mount`]): its header
//! has the boot id and the number of the mount. After a power cut the head's log decides
//! ([`crate::head::log`]). `zero` is not stored: the data file has those zeroes anyway, and its holes show
//! most of them.
//!
//! # File
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | magic `BLKDMAP1` |
//! | 8–11 | version, 1 |
//! | 12 | 1 if the volume was closed cleanly: the log then names all that the map names |
//! | 13–15 | zero |
//! | 16–23 | volume id |
//! | 24–31 | epoch |
//! | 32–39 | blocks of the volume |
//! | 40–75 | boot id, as the text the kernel gives; zeroes until the map names all that the log names |
//! | 76–79 | zero |
//! | 80–87 | number of the mount ([`crate::head::mount`]), 0 if it is not known |
//! | 88–4095 | zero |
//! | 4096– | `held`: bit `b & 63` of the little-endian u64 number `b / 64` is block `b`; padded to 4 KiB |

mod bitmap;
mod header;
mod recovery;

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    head::place::Identity,
    io::storage::{self, File},
};
use bitmap::{BLOCKS_PER_CHUNK, Bitmap, CHUNK_BYTES, words};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use header::{BOOT_ID_AT, BOOT_ID_BYTES, CLEAN_AT, HEADER_BYTES, Header};
use parking_lot::Mutex;
pub(crate) use recovery::Inspection;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Words touched by most writes (2 MiB of volume): written from the stack.
const FEW_WORDS: usize = 8;
/// Number of locks for writes to the file; each covers every 16th chunk.
const WRITE_LOCKS: usize = 16;

/// Bitmaps of a head and the file behind one of them.
pub(crate) struct LiveMap {
    held: Bitmap,
    zero: Bitmap,
    file: File,
    path: PathBuf,
    /// Header as long as no boot owns the file.
    header: Vec<u8>,
    blocks: u64,
    /// Held while bits of a chunk are written to the file and then to memory: an older word must not
    /// overwrite a newer one.
    writing: [Mutex<()>; WRITE_LOCKS],
    /// True after writes since the last sync of the file.
    unsynced: AtomicBool,
    /// True if the file lacks bits; no later process believes it.
    is_behind: AtomicBool,
}

/// Failure to write the map to disk.
pub(crate) struct MapFailure {
    pub(crate) error: VolumeError,
    /// The disk is full: a later call can succeed.
    pub(crate) may_retry: bool,
}

/// Returns the id of this boot of the kernel.
pub(crate) fn boot_id() -> Result<String, VolumeError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(std::fs::read_to_string(path).during("read", path)?.trim().to_owned())
}

impl LiveMap {
    /// Creates an empty map; an old file of that name is replaced. The caller syncs the directory.
    pub(crate) fn create(path: &Path, identity: Identity) -> Result<Self, VolumeError> {
        let map = Self::create_unowned(path, identity)?;
        map.own()?;
        Ok(map)
    }

    /// Creates an empty map that no later process believes before it is [owned](Self::own).
    pub(crate) fn create_unowned(path: &Path, identity: Identity) -> Result<Self, VolumeError> {
        crate::io::files::remove_if_there(path)?;
        let file = File::create_new(path).during("create", path)?;
        let header = Header::compose(identity, &file);
        file.write_all_at(&header, 0).during("write", path)?;
        file.set_len(HEADER_BYTES + bitmap_bytes(identity.blocks)).during("set the length of", path)?;
        Ok(Self::with(file, path, header, identity.blocks))
    }

    /// Puts a map that names the blocks of the log in the place of one that is not believed. Until then the
    /// old one stays, because it shows what was lost and to whom. The caller syncs the directory.
    pub(crate) fn replace(path: &Path, identity: Identity, logged: &BlockSet) -> Result<Self, VolumeError> {
        let new_path = path.with_extension("map.new");
        let mut map = Self::create_unowned(&new_path, identity)?;
        map.add_all(logged)?;
        debug_assert!(map.snapshot_of_held() == *logged, "the map names the blocks of the log");
        // Only now does it name all blocks of the log, which salvage relies on if the log is damaged.
        map.own()?;
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
            is_behind: AtomicBool::new(false),
        }
    }

    /// Declares, durably, that the map names every block that the head holds: the next process of this boot
    /// believes it, and one of a later boot knows in which one it was written.
    pub(crate) fn own(&self) -> Result<(), VolumeError> {
        let boot = boot_id()?;
        let text = boot.as_bytes().get(..BOOT_ID_BYTES).unwrap_or_default();
        self.file.write_all_at(text, BOOT_ID_AT as u64).during("write", &self.path)?;
        self.sync_file()
    }

    /// Records, durably, whether the log names all that the map names.
    pub(crate) fn set_clean(&self, clean: bool) -> Result<(), VolumeError> {
        self.file.write_all_at(&[u8::from(clean)], CLEAN_AT as u64).during("write", &self.path)?;
        self.sync_file()
    }

    /// Makes every later process reject the map, because data that its bits stand for was lost. Memory stays
    /// as it is.
    pub(crate) fn disown(&self) {
        disown(&self.file, &self.path);
    }

    /// Makes the disk take what was written to the file. If it fails, the kernel calls pages clean that it
    /// did not write, so the file is written again from memory.
    ///
    /// # Errors
    /// If the file cannot be written again either. No later process believes it then.
    pub(crate) fn sync(&self) -> Result<(), MapFailure> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        if !self.is_behind.load(Ordering::Acquire) {
            let Err(error) = self.sync_file() else { return Ok(()) };
            tracing::warn!(%error, "writing the map again from memory");
            self.is_behind.store(true, Ordering::Release);
        }
        // A whole page: the page cache accepts it even if the disk is full.
        let unowned = self.file.write_all_at(&[0; HEADER_BYTES as usize], 0).during("write", &self.path);
        if unowned.is_err() {
            self.disown();
        }
        let may_retry = unowned.is_ok();
        let repaired = unowned.and_then(|()| self.write_again());
        self.is_behind.store(repaired.is_err(), Ordering::Release);
        self.unsynced.fetch_or(repaired.is_err(), Ordering::AcqRel);
        repaired.map_err(|error| MapFailure {
            may_retry: may_retry && error.kind() == VolumeErrorKind::NoSpace,
            error,
        })
    }

    fn sync_file(&self) -> Result<(), VolumeError> {
        self.file.sync_data().during("sync", &self.path)
    }

    /// Writes the whole bitmap to a disowned file, and owns the file once it is synced.
    fn write_again(&self) -> Result<(), VolumeError> {
        // Bits written before the failed sync are in memory from here on.
        self.writing.iter().for_each(|lock| drop(lock.lock()));
        for chunk in self.held.touched_chunks() {
            let blocks = Extent::between(
                BlockIndex(chunk * BLOCKS_PER_CHUNK),
                BlockIndex((chunk + 1) * BLOCKS_PER_CHUNK),
            );
            let _one_at_a_time = self.write_lock(blocks.start).lock();
            self.write_words(blocks, |_| 0)?;
        }
        self.sync_file()?;
        self.file.write_all_at(&self.header, 0).during("write", &self.path)?;
        self.own()
    }

    /// Sets `held` for blocks whose data is in the page cache, first in the file and then in memory, and
    /// reports each run that was not held before. `lock_tracked` locks what `new_run` changes, after the file
    /// was written.
    ///
    /// # Errors
    /// If the file cannot be written; blocks up to some chunk's end may be held then.
    pub(crate) fn set_held<G>(
        &self,
        extent: Extent,
        mut lock_tracked: impl FnMut() -> G,
        mut new_run: impl FnMut(&mut G, Extent),
    ) -> Result<(), VolumeError> {
        assert!(extent.end().0 <= self.blocks, "blocks beyond the end of the map");
        for part in by_chunk(extent).filter(|part| !self.held.holds_all(*part)) {
            let _one_at_a_time = self.write_lock(part.start).lock();
            self.write_words(part, |mask| mask)?;
            let mut tracked = lock_tracked();
            self.held.set(part, |run| new_run(&mut tracked, run));
        }
        debug_assert!(self.held.holds_all(extent), "the bits that were to be set are set");
        Ok(())
    }

    /// Returns the write lock of a block's chunk, so that no word in the file is older than in memory.
    fn write_lock(&self, block: BlockIndex) -> &Mutex<()> {
        &self.writing[(block.0 / BLOCKS_PER_CHUNK) as usize % WRITE_LOCKS]
    }

    /// Writes the words of an extent inside one chunk from memory, with more bits set by `add`.
    fn write_words(&self, part: Extent, add: impl Fn(u64) -> u64) -> Result<(), VolumeError> {
        let last = part.end().0.saturating_sub(1);
        assert!(part.start.0 / BLOCKS_PER_CHUNK == last / BLOCKS_PER_CHUNK, "one lock covers the words");
        let (mut few, mut many) = ([0; FEW_WORDS * 8], Vec::new());
        let count = words(part).count();
        let bytes = match count <= FEW_WORDS {
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
        // After the write: the sync that clears it must come later.
        self.unsynced.store(true, Ordering::Release);
        written
    }

    /// Adds blocks that the log names to a map that no other thread has yet.
    pub(crate) fn add_all(&self, logged: &BlockSet) -> Result<(), VolumeError> {
        assert!(logged.last().is_none_or(|last| last.0 < self.blocks), "blocks beyond the end of the map");
        let mut is_changed = false;
        for extent in logged.extents() {
            self.held.set(extent, |_| is_changed = true);
        }
        if !is_changed {
            return Ok(());
        }
        self.held.touched_chunks().try_for_each(|chunk| {
            let start = BlockIndex(chunk * BLOCKS_PER_CHUNK);
            self.write_words(Extent::new(start, BLOCKS_PER_CHUNK), |_| 0)
        })
    }

    /// Returns whether every block of a run is held.
    pub(crate) fn holds_all(&self, extent: Extent) -> bool {
        self.held.holds_all(extent)
    }

    pub(crate) fn is_held(&self, block: BlockIndex) -> bool {
        debug_assert!(block.0 < self.blocks, "a block beyond the end of the map");
        self.held.word(block.0 / 64) >> (block.0 % 64) & 1 == 1
    }

    /// Sets `zero` for a run of blocks.
    pub(crate) fn set_zero(&self, extent: Extent) {
        assert!(extent.end().0 <= self.blocks, "zeroes beyond the end of the map");
        self.zero.set(extent, |_| {});
    }

    pub(crate) fn clear_zero(&self, extent: Extent) {
        assert!(extent.end().0 <= self.blocks, "a write beyond the end of the map");
        self.zero.clear(extent);
    }

    /// Cuts a range into maximal runs of blocks in the same state, ascending.
    pub(crate) fn states(&self, range: Extent) -> impl Iterator<Item = (Extent, BlockState)> + '_ {
        let mut at = range.start.0;
        let end = range.end().0.min(self.blocks);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = at;
            let state = self.state(start);
            at = self.same_until(start, end, state);
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

    /// Returns the first block after `start` that is in another state, or `end`.
    fn same_until(&self, start: u64, end: u64, state: BlockState) -> u64 {
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
            let to_border = 64 - at % 64;
            if run < to_border {
                // `max`: another thread may have changed the block since its state was read.
                return (at + run).max(start + 1).min(end);
            }
            at += to_border;
        }
        end
    }

    /// Returns every block that the head holds.
    pub(crate) fn snapshot_of_held(&self) -> BlockSet {
        self.held.to_set()
    }

    /// Returns every block marked as zero, among them possibly some that are not held.
    pub(crate) fn zero_set(&self) -> BlockSet {
        self.zero.to_set()
    }
}

/// State of a block in a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockState {
    /// The head does not hold it: a lower layer decides.
    Absent,
    /// The head holds its data.
    Data,
    /// The head holds it, and it is all zeroes.
    Zero,
}

fn bitmap_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_CHUNK).max(1) * CHUNK_BYTES
}

/// Cuts an extent at the borders of chunks.
fn by_chunk(extent: Extent) -> impl Iterator<Item = Extent> {
    let (mut at, end) = (extent.start.0, extent.end().0);
    std::iter::from_fn(move || {
        let to = ((at / BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK).min(end);
        let part = (at < end).then(|| Extent::between(BlockIndex(at), BlockIndex(to)));
        at = to;
        part
    })
}

/// Makes a map's file worthless and removes it. Each alone is enough.
///
/// The whole header page is written, so that nothing has to be read from a failing disk: the page cache takes
/// it. A filesystem that refuses even that was shut down, and has another mount number before anything is
/// read from it again.
fn disown(file: &File, path: &Path) {
    let cleared = file.write_all_at(&[0; HEADER_BYTES as usize], 0).during("write", path);
    let removed = crate::io::files::remove_if_there(path);
    if let (Err(error), Err(_)) = (cleared, removed) {
        tracing::error!(%error, "disown failed on the map of a head whose data was lost");
    }
}

#[cfg(test)]
mod tests;
