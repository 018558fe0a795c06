//! Checksums of the blocks of a frozen layer.
//!
//! The first read of a block through a snapshot view stores its sum, each later one compares it, so that
//! damage on the disk in between is found. The file is a cache: a lost or unreadable sum is stored again by
//! the next read. A sum must never outlive the content that it is of: see [`BlockSums::forget`]. A clone
//! shares the file by a hard link, as it shares the data, which no volume changes then.
//!
//! # File
//!
//! `layer-<file>.sums` consists of pages of 4096 bytes; all integers are little-endian. Page 0 is the header:
//! magic `BLKDSUM1`, version u32 (1), 0 u32, file epoch u64, zeroes, and in its last 8 bytes xxh3-64 of
//! everything before. Page n + 1 has the sums of the blocks 1022 n to 1022 n + 1021, u32 each,
//! and then xxh3-64, with seed n, of everything before. The sum of a block is the lower half of the xxh3-64
//! of its content, or 1 instead of 0; 0 means that it is unknown. All sums are unknown in a page of zeroes,
//! beyond the end of the file, or with another checksum, as a power cut can leave it.

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    io::files,
    io::record::{half_at, seal, unseal, word_at},
    io::reserve,
    io::storage::{self, File},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use parking_lot::{Mutex, MutexGuard};
use std::{
    io::ErrorKind,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAGIC: &[u8; 8] = b"BLKDSUM1";
const VERSION: u32 = 1;
const PAGE_BYTES: usize = 4096;
/// Bytes of a page before its checksum.
const BODY_BYTES: usize = PAGE_BYTES - 8;
const SUM_BYTES: usize = 4;
/// Sums of a page.
const PAGE_SUMS: u64 = (BODY_BYTES / SUM_BYTES) as u64;
/// Blocks whose sums are updated under one lock: about 1 GiB of content and 1 MiB of sums.
const PART_BLOCKS: u64 = 256 * PAGE_SUMS;

/// Held during an access to a file, by its inode number: clones have the same file open.
static ACCESS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];

/// Returns the sum of a block's content; never 0.
pub(crate) fn sum_of(block: &[u8]) -> u32 {
    debug_assert!(block.len() as u64 == BLOCK_SIZE_BYTES, "a sum is of one block");
    known(xxh3_64(block) as u32)
}

/// Returns a sum that is not that of an unknown block.
fn known(sum: u32) -> u32 {
    sum.max(1)
}

/// Checksums of the blocks in the data files of a layer. Layers with the same files share them.
pub(crate) struct BlockSums {
    path: PathBuf,
    volume: VolumeId,
    file: Epoch,
    state: Mutex<State>,
}

/// File with the sums.
enum State {
    /// Not used yet.
    Closed,
    Open(SumsFile),
    /// Removed with its layer, or failed: no sums are compared or stored.
    Unused,
}

/// Open file with the sums.
struct SumsFile {
    file: File,
    inode: u64,
}

impl SumsFile {
    fn new(file: File, path: &Path) -> Result<Self, VolumeError> {
        let inode = file.metadata().during("stat", path)?.ino();
        Ok(Self { file, inode })
    }

    /// Returns the pages, exclusively.
    fn pages(&self) -> Pages<'_> {
        let access = ACCESS[self.inode as usize % ACCESS.len()].lock();
        Pages { file: &self.file, page: None, _access: access }
    }
}

impl BlockSums {
    /// Returns the sums of a layer's files; opens no file.
    pub(crate) fn new(dir: &Path, volume: VolumeId, file: Epoch) -> Self {
        Self { path: files::sums_path(dir, file), volume, file, state: Mutex::new(State::Closed) }
    }

    /// Compares the sums of blocks, in ascending order, and stores those that are unknown; returns the blocks
    /// that differ. Sums that cannot be read or stored are not compared: that must not fail a backup.
    pub(crate) fn check(&self, blocks: &[(BlockIndex, u32)]) -> Vec<BlockIndex> {
        debug_assert!(blocks.is_sorted_by_key(|(block, _)| *block), "blocks ascend");
        // The space of a released reserve is for operations that free space.
        let may_store = !reserve::is_released();
        let (mut state, mut damaged) = (self.state.lock(), Vec::new());
        let checked = self.open(&mut state, may_store).and_then(|file| match file {
            Some(file) => compare(&mut file.pages(), blocks, may_store, &mut damaged)
                .during("checksum update", &self.path),
            None => Ok(()),
        });
        match checked {
            Err(error) if error.kind() == VolumeErrorKind::NoSpace => {
                tracing::debug!(volume = %self.volume, %error, "checksums are not stored on a full disk");
            }
            Err(error) => {
                tracing::warn!(volume = %self.volume, %error, "checksums are not compared until the next start");
                *state = State::Unused;
            }
            Ok(()) => {}
        }
        damaged
    }

    /// Forgets the sums of blocks, durably, before a merge overwrites them: after a power cut an old sum
    /// would declare the new content damaged. Calls `may_continue` before each part; returns false if it
    /// stopped, with the sums of any blocks forgotten.
    pub(crate) fn forget(
        &self,
        blocks: &BlockSet,
        may_continue: &dyn Fn() -> bool,
    ) -> Result<bool, VolumeError> {
        for part in parts_of(blocks) {
            if !may_continue() {
                return Ok(false);
            }
            self.forget_in(|file| clear(&mut file.pages(), &part))?;
        }
        self.forget_in(|file| file.file.sync_data())?;
        Ok(true)
    }

    /// Runs a step of [`forget`](Self::forget) on the file. Removes the file if that fails.
    fn forget_in(&self, step: impl FnOnce(&SumsFile) -> std::io::Result<()>) -> Result<(), VolumeError> {
        let mut state = self.state.lock();
        let forgotten = match self.open(&mut state, false) {
            Ok(Some(file)) => step(file).during("checksum update", &self.path),
            Ok(None) if matches!(self.path.try_exists(), Ok(false)) => Ok(()),
            Ok(None) => self.remove_file(),
            Err(error) => Err(error),
        };
        forgotten.or_else(|error| {
            tracing::warn!(volume = %self.volume, %error, "checksums of a layer are removed");
            *state = State::Unused;
            self.remove_file()
        })
    }

    /// Takes over the known sums of blocks that were copied from another layer. Calls `may_continue` before
    /// each part; returns false if it stopped.
    pub(crate) fn take_from(&self, from: &Self, blocks: &BlockSet, may_continue: &dyn Fn() -> bool) -> bool {
        debug_assert!(self.file != from.file, "a copy has two layers");
        for part in parts_of(blocks) {
            if !may_continue() {
                return false;
            }
            if let Err(error) = self.take_part(from, &part) {
                tracing::warn!(volume = %self.volume, %error, "checksums of a copied layer are incomplete");
                return true;
            }
        }
        true
    }

    fn take_part(&self, from: &Self, part: &BlockSet) -> Result<(), VolumeError> {
        let found = from.find(part)?;
        let mut state = self.state.lock();
        match self.open(&mut state, !reserve::is_released())? {
            Some(file) => store(&mut file.pages(), &found).during("write", &self.path),
            None => Ok(()),
        }
    }

    /// Makes the sums also those of a clone, which shares the data files; creates the file if necessary, so
    /// that both have the same sums. A clone of sums that cannot be read starts without.
    ///
    /// # Errors
    /// The file cannot be linked.
    pub(crate) fn link_to(&self, dir: &Path) -> Result<(), VolumeError> {
        let mut state = self.state.lock();
        let open = match self.open(&mut state, true) {
            Ok(Some(open)) => open,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(volume = %self.volume, %error, "a clone starts without checksums");
                return Ok(());
            }
        };
        // Without the header or the name both would start a file of their own after a power cut.
        open.file.sync_all().during("sync", &self.path)?;
        self.path.parent().map_or(Ok(()), files::sync_dir)?;
        storage::hard_link(&self.path, &files::sums_path(dir, self.file)).during("link", &self.path)
    }

    /// Returns the number of volumes that have the file; 0 without a file.
    pub(crate) fn volumes(&self) -> Result<u64, VolumeError> {
        let mut state = self.state.lock();
        match self.open(&mut state, false)? {
            Some(open) => Ok(open.file.metadata().during("stat", &self.path)?.nlink()),
            None => Ok(0),
        }
    }

    /// Returns the known sums of blocks, ascending.
    pub(crate) fn known(&self, blocks: &BlockSet) -> Vec<(BlockIndex, u32)> {
        self.find(blocks).unwrap_or_else(|error| {
            tracing::warn!(volume = %self.volume, %error, "checksums of damaged blocks cannot be read");
            vec![]
        })
    }

    fn find(&self, blocks: &BlockSet) -> Result<Vec<(BlockIndex, u32)>, VolumeError> {
        let mut state = self.state.lock();
        match self.open(&mut state, false)? {
            Some(file) => known_in(&mut file.pages(), blocks).during("read", &self.path),
            None => Ok(vec![]),
        }
    }

    /// Removes the sums with their layer.
    pub(crate) fn remove(&self) -> Result<(), VolumeError> {
        *self.state.lock() = State::Unused;
        files::remove_if_exists(&self.path)
    }

    /// Removes the file durably.
    fn remove_file(&self) -> Result<(), VolumeError> {
        files::remove_if_exists(&self.path)?;
        self.path.parent().map_or(Ok(()), files::sync_dir)
    }

    /// Returns the file, opened on first use; `None` if it does not exist and must not be created, or is not
    /// used.
    fn open<'a>(&self, state: &'a mut State, may_create: bool) -> Result<Option<&'a SumsFile>, VolumeError> {
        if matches!(state, State::Closed) {
            match self.open_existing()? {
                Some(file) => *state = State::Open(file),
                None if may_create => *state = State::Open(self.create()?),
                None => {}
            }
        }
        match state {
            State::Open(file) => Ok(Some(file)),
            State::Closed | State::Unused => Ok(None),
        }
    }

    /// Opens the file; removes one of another layer or version, or with a torn header.
    fn open_existing(&self) -> Result<Option<SumsFile>, VolumeError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.during("open", &self.path)?,
        };
        let mut header = [0; PAGE_BYTES];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            other => other.during("read", &self.path)?,
        }
        let is_own = unseal(&header).is_some_and(|body| {
            body.starts_with(MAGIC) && half_at(body, 8) == VERSION && word_at(body, 16) == self.file.0
        });
        if is_own {
            return SumsFile::new(file, &self.path).map(Some);
        }
        self.remove_file()?;
        Ok(None)
    }

    fn create(&self) -> Result<SumsFile, VolumeError> {
        let mut header = Vec::with_capacity(PAGE_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&0u32.to_le_bytes());
        header.extend_from_slice(&self.file.0.to_le_bytes());
        header.resize(BODY_BYTES, 0);
        let file = File::create(&self.path).during("create", &self.path)?;
        file.write_all_at(&seal(header), 0).during("write", &self.path)?;
        SumsFile::new(file, &self.path)
    }
}

/// Cursor over the pages of a file: keeps one page, and writes it back if it was changed.
struct Pages<'a> {
    file: &'a File,
    page: Option<Page>,
    _access: MutexGuard<'static, ()>,
}

struct Page {
    number: u64,
    body: Vec<u8>,
    is_changed: bool,
}

impl Pages<'_> {
    /// Returns the page with a number.
    fn at(&mut self, number: u64) -> std::io::Result<&mut Page> {
        let page = match self.page.take() {
            Some(page) if page.number == number => page,
            other => {
                self.page = other;
                self.flush()?;
                let mut body = vec![0; PAGE_BYTES];
                match self.file.read_exact_at(&mut body, position_of(number)) {
                    // The file ends at its last page with sums.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => body.fill(0),
                    other => other?,
                }
                let sum = word_at(&body, BODY_BYTES);
                body.truncate(BODY_BYTES);
                if sum != xxh3_64_with_seed(&body, number) {
                    body.fill(0);
                }
                Page { number, body, is_changed: false }
            }
        };
        Ok(self.page.insert(page))
    }

    /// Writes the page if it was changed.
    fn flush(&mut self) -> std::io::Result<()> {
        match self.page.take() {
            Some(page) if page.is_changed => {
                let mut bytes = page.body;
                assert!(bytes.len() == BODY_BYTES, "a page has its length");
                bytes.extend_from_slice(&xxh3_64_with_seed(&bytes, page.number).to_le_bytes());
                self.file.write_all_at(&bytes, position_of(page.number))
            }
            _ => Ok(()),
        }
    }
}

impl Page {
    fn sum(&self, slot: u64) -> u32 {
        half_at(&self.body, slot as usize * SUM_BYTES)
    }

    fn set_sum(&mut self, slot: u64, sum: u32) {
        assert!(slot < PAGE_SUMS, "a page has the sum");
        let at = slot as usize * SUM_BYTES;
        if self.sum(slot) != sum {
            self.body[at..at + SUM_BYTES].copy_from_slice(&sum.to_le_bytes());
            self.is_changed = true;
        }
    }

    /// Returns the known sums of slots.
    fn known_sums(&self, slots: Range<u64>) -> Vec<(u64, u32)> {
        slots.map(|slot| (slot, self.sum(slot))).filter(|(_, sum)| *sum != 0).collect()
    }
}

/// Splits blocks into parts that are updated under one lock, without the empty ones.
fn parts_of(blocks: &BlockSet) -> impl Iterator<Item = BlockSet> {
    let part_of = |block: BlockIndex| block.0 / PART_BLOCKS;
    let first = blocks.extents().next().map_or(0, |extent| part_of(extent.start));
    let end = blocks.last().map_or(0, |last| part_of(last) + 1);
    let parts = (first..end).map(|part| {
        let start = BlockIndex(part * PART_BLOCKS);
        blocks.slice(Extent::between(start, BlockIndex(start.0 + PART_BLOCKS)))
    });
    parts.filter(|part| !part.is_empty())
}

/// Splits blocks into slots of pages.
fn slots_of(blocks: &BlockSet) -> impl Iterator<Item = (u64, Range<u64>)> {
    blocks.extents().flat_map(|extent| {
        let pages = extent.start.0 / PAGE_SUMS..extent.end().0.div_ceil(PAGE_SUMS);
        pages.map(move |page| {
            let first = page * PAGE_SUMS;
            let end = extent.end().0.min(first + PAGE_SUMS) - first;
            (page, extent.start.0.saturating_sub(first)..end)
        })
    })
}

/// Returns the position of a page of sums in the file, after the header.
fn position_of(number: u64) -> u64 {
    (number + 1) * PAGE_BYTES as u64
}

/// Compares sums, adds the blocks that differ to `damaged`, and stores unknown ones.
fn compare(
    pages: &mut Pages<'_>,
    blocks: &[(BlockIndex, u32)],
    may_store: bool,
    damaged: &mut Vec<BlockIndex>,
) -> std::io::Result<()> {
    for &(block, sum) in blocks {
        assert!(sum != 0, "the sum of a block is known");
        let page = pages.at(block.0 / PAGE_SUMS)?;
        match page.sum(block.0 % PAGE_SUMS) {
            0 if may_store => page.set_sum(block.0 % PAGE_SUMS, sum),
            0 => {}
            stored if stored != sum => damaged.push(block),
            _ => {}
        }
    }
    pages.flush()
}

/// Returns the known sums of blocks.
fn known_in(pages: &mut Pages<'_>, blocks: &BlockSet) -> std::io::Result<Vec<(BlockIndex, u32)>> {
    let mut found = Vec::new();
    for (number, slots) in slots_of(blocks) {
        let sums = pages.at(number)?.known_sums(slots);
        found.extend(sums.into_iter().map(|(slot, sum)| (BlockIndex(number * PAGE_SUMS + slot), sum)));
    }
    Ok(found)
}

/// Forgets the sums of blocks.
fn clear(pages: &mut Pages<'_>, blocks: &BlockSet) -> std::io::Result<()> {
    for (number, slots) in slots_of(blocks) {
        let page = pages.at(number)?;
        for (slot, _) in page.known_sums(slots) {
            page.set_sum(slot, 0);
        }
    }
    pages.flush()
}

/// Stores sums.
fn store(pages: &mut Pages<'_>, sums: &[(BlockIndex, u32)]) -> std::io::Result<()> {
    for &(block, sum) in sums {
        pages.at(block.0 / PAGE_SUMS)?.set_sum(block.0 % PAGE_SUMS, sum);
    }
    pages.flush()
}

#[cfg(test)]
mod tests;
