//! The head's block set as a shared memory map: what survives the death of the process.
//!
//! Two bitmaps, a bit a block, lie in a sparse file that is mapped shared: `held` (the head has the block) and `zero`
//! (the head has it and its data is all zeroes). A bit is set with one atomic instruction after the data is in the
//! page cache; the page cache outlives the process, so whatever was acknowledged is found again after `kill -9`.
//!
//! The kernel may write the map to disk at any time, before the data that a bit speaks of. The map is therefore
//! believed only by the boot that wrote it, and only while the filesystem stays mounted ([`crate::mount`]): its header holds
//! the boot id and the number of the mount. After a power cut the head's log decides ([`crate::head_log`]). `zero` is never
//! believed after a restart: the data file has those zeroes anyway, and its holes show most of them.
//!
//! Storing through a map into a hole of a full filesystem kills the process with SIGBUS, so space is allocated, a page
//! of a bitmap at a time (128 MiB of volume), before the first bit in it is set: a full disk is an error there.
//! What has no space has no bits and is never looked at, because looking takes a page of memory: writes that are spread
//! thin cost a page of `held` each and nothing of `zero`, which most heads never use.
//!
//! # File
//!
//! | bytes | what |
//! |---|---|
//! | 0–7 | magic `BLKDMAP1` |
//! | 8–11 | version, 1 |
//! | 12 | 1 if the volume was closed cleanly: the log then says all that the map says |
//! | 13–15 | zero |
//! | 16–23 | volume id |
//! | 24–31 | epoch |
//! | 32–39 | blocks of the volume |
//! | 40–75 | boot id, as the text the kernel gives; zeroes until the map names all that the log names |
//! | 76–79 | zero |
//! | 80–87 | number of the mount ([`crate::mount`]), 0 if it is not known |
//! | 88–4095 | zero |
//! | 4096– | `held`: bit `b & 63` of the little-endian u64 number `b / 64` is block `b`; padded to 64 KiB |
//! | then | `zero`, the same way |

use crate::{
    data_files::data_ranges,
    error::{IoContext, VolumeError},
    mount::{may_be_altered, may_be_the_same, mount_number},
    storage::{Bug, File},
};
use blockd_extent::{BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use memmap2::{Advice, MmapMut, MmapOptions};
use parking_lot::Mutex;
use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

const MAGIC: &[u8; 8] = b"BLKDMAP1";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 4096;
/// How much of the header is read: all that says something, and some of the zeroes behind it.
const HEADER_READ_BYTES: usize = 128;
const CLEAN_AT: usize = 12;
const VOLUME_AT: usize = 16;
const EPOCH_AT: usize = 24;
const BOOT_ID_AT: usize = 40;
const BOOT_ID_BYTES: usize = 36;
const MOUNT_AT: usize = 80;
/// Two boot ids that differ in no more bits are one that was altered.
const MOST_ALTERED_BITS: u32 = 8;
/// Bitmaps begin at multiples of this.
const PLANE_ALIGN_BYTES: u64 = 64 << 10;
/// How much of a bitmap is given disk space at once: as much as is in memory when one of its bits is set.
const CHUNK_BYTES: u64 = 4096;
const BLOCKS_PER_CHUNK: u64 = CHUNK_BYTES * 8;

/// A map that has been given more space than this is not [kept](LiveMap::is_worth_keeping): 512 GiB of volume with
/// writes in all parts, whose pages are 16 MiB of each bitmap.
const KEPT_MAX_CHUNKS: usize = 4096;

/// No bit of the chunk was ever set.
const UNTOUCHED: u8 = 0;
/// An earlier process set bits in it; not all of it need have disk space.
const INHERITED: u8 = 1;
/// All of it has disk space.
const RESERVED: u8 = 2;
/// All of it has disk space, and no bit of it was ever set.
const BLANK: u8 = 3;

/// Whether a chunk in this state has no bits, so that nobody need look at it.
fn is_empty(state: u8) -> bool {
    matches!(state, UNTOUCHED | BLANK)
}

/// One of the two bitmaps.
#[derive(Clone, Copy)]
pub(crate) enum Plane {
    Held,
    Zero,
}

/// The mapped bitmaps of a head.
pub(crate) struct LiveMap {
    map: MmapMut,
    file: File,
    path: PathBuf,
    blocks: u64,
    plane_bytes: u64,
    /// One byte for each chunk of both planes: [`UNTOUCHED`], [`INHERITED`], [`RESERVED`] or [`BLANK`].
    chunks: Vec<AtomicU8>,
    allocating: Mutex<()>,
}

/// What was found in an existing map.
pub(crate) struct Found {
    pub(crate) map: LiveMap,
    pub(crate) clean: bool,
}

/// What becomes of a map that was only looked at.
pub(crate) enum Look {
    /// A start would believe it.
    Believed(Looked),
    /// It is whole and was written before the last boot or mount: the log decides.
    Outlived,
    /// It is missing or its header is not whole, so that nobody knows what it named.
    Doubtful(String),
}

/// What a map says that a start would believe.
pub(crate) struct Looked {
    pub(crate) held: BlockSet,
    /// The file ends before the bit of this block.
    pub(crate) unread: Option<BlockIndex>,
}

/// The header up to the boot id, of a map that is not closed.
fn identity_of(volume: VolumeId, epoch: Epoch, blocks: u64) -> [u8; BOOT_ID_AT] {
    let mut header = [0; BOOT_ID_AT];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&volume.as_u64().to_le_bytes());
    header[24..32].copy_from_slice(&epoch.0.to_le_bytes());
    header[32..40].copy_from_slice(&blocks.to_le_bytes());
    header
}

/// Whether an existing map is of this head, was written in this boot of the kernel, and its filesystem was mounted ever
/// since; if so, whether it was closed cleanly.
fn believed(
    file: &File,
    path: &Path,
    volume: VolumeId,
    epoch: Epoch,
    blocks: u64,
) -> Result<Option<bool>, VolumeError> {
    let mut header = [0; HEADER_READ_BYTES];
    match file.read_exact_at(&mut header, 0) {
        // A process died while it made the file.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.during("read", path)?,
    }
    let boot = boot_id()?;
    let identity = identity_of(volume, epoch, blocks);
    let ours = header[..CLEAN_AT] == identity[..CLEAN_AT]
        && header[VOLUME_AT..BOOT_ID_AT] == identity[VOLUME_AT..]
        && header[BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES].iter().eq(boot.as_bytes());
    if !ours {
        return Ok(None);
    }
    let mut mount = [0; 8];
    mount.copy_from_slice(&header[MOUNT_AT..MOUNT_AT + 8]);
    if !may_be_the_same(NonZeroU64::new(u64::from_le_bytes(mount)), mount_number(file)) {
        tracing::warn!(map = %path.display(), "the filesystem was unmounted since this map was written: going back to what was flushed");
        return Ok(None);
    }
    Ok(Some(header[CLEAN_AT] == 1))
}

/// Why a map's header, which names another boot or mount than this one, may be altered instead.
fn doubt(
    header: &[u8; HEADER_READ_BYTES],
    file: &File,
    identity: &[u8],
) -> Result<Option<String>, VolumeError> {
    let is_zero = |range: std::ops::Range<usize>| header[range].iter().all(|byte| *byte == 0);
    let boot = &header[BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES];
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    let now = boot_id()?;
    let differing = boot.iter().zip(now.as_bytes()).map(|(one, other)| (one ^ other).count_ones());
    let mut mount = [0; 8];
    mount.copy_from_slice(&header[MOUNT_AT..MOUNT_AT + 8]);
    let mount = NonZeroU64::new(u64::from_le_bytes(mount));
    let what = if header[..CLEAN_AT] != identity[..CLEAN_AT]
        || header[VOLUME_AT..BOOT_ID_AT] != identity[VOLUME_AT..BOOT_ID_AT]
        || header[CLEAN_AT] > 1
        || !(is_zero(CLEAN_AT + 1..VOLUME_AT) && is_zero(76..MOUNT_AT) && is_zero(88..HEADER_READ_BYTES))
    {
        "its header is not that of this head's map"
    } else if is_zero(BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES) {
        "it was not finished"
    } else if !boot.iter().all(is_hex) {
        "its boot id is none"
    } else {
        // Two boots differ in far more.
        match differing.sum() {
            0 => match (mount, mount_number(file)) {
                (Some(left), Some(now)) if left != now && may_be_altered(left, now) => {
                    "the number of its mount is none that an earlier mount had for certain"
                }
                _ => return Ok(None),
            },
            1..=MOST_ALTERED_BITS => "its boot id is altered",
            _ => return Ok(None),
        }
    };
    Ok(Some(what.into()))
}

/// The id of this boot of the kernel.
pub(crate) fn boot_id() -> Result<String, VolumeError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(std::fs::read_to_string(path).during("read", path)?.trim().to_owned())
}

impl LiveMap {
    /// Makes an empty map; an old file of that name is replaced. The caller syncs the directory.
    pub(crate) fn create(
        path: &Path,
        volume: VolumeId,
        epoch: Epoch,
        blocks: u64,
    ) -> Result<Self, VolumeError> {
        let map = Self::create_unowned(path, volume, epoch, blocks)?;
        map.own()?;
        Ok(map)
    }

    /// The same, but no later process believes it before it is [owned](Self::own).
    pub(crate) fn create_unowned(
        path: &Path,
        volume: VolumeId,
        epoch: Epoch,
        blocks: u64,
    ) -> Result<Self, VolumeError> {
        crate::data_files::remove_if_there(path)?;
        let file = File::create_new(path).during("create", path)?;
        let mut header = vec![0u8; HEADER_BYTES as usize];
        header[..BOOT_ID_AT].copy_from_slice(&identity_of(volume, epoch, blocks));
        let mount = mount_number(&file).map_or(0, NonZeroU64::get);
        header[MOUNT_AT..MOUNT_AT + 8].copy_from_slice(&mount.to_le_bytes());
        file.write_all_at(&header, 0).during("write", path)?;
        Self::map(file, path, blocks)
    }

    /// Says of a map that it names every block that the head holds: the next process of this boot believes it.
    pub(crate) fn own(&self) -> Result<(), VolumeError> {
        let boot = boot_id()?;
        let text = boot.as_bytes().get(..BOOT_ID_BYTES).unwrap_or_default();
        self.file.write_all_at(text, BOOT_ID_AT as u64).during("write", &self.path)
    }

    /// Opens the map of an earlier process, if this boot of the kernel wrote it and its filesystem was mounted ever since.
    pub(crate) fn open(
        path: &Path,
        volume: VolumeId,
        epoch: Epoch,
        blocks: u64,
    ) -> Result<Option<Found>, VolumeError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.during("open", path)?,
        };
        let Some(clean) = believed(&file, path, volume, epoch, blocks)? else { return Ok(None) };
        let plane_bytes = plane_bytes(blocks);
        // What `zero` says is forgotten: it is never needed and would have to be proven.
        file.punch(HEADER_BYTES + plane_bytes, plane_bytes).during("clear the zero map of", path)?;
        let map = Self::map(file, path, blocks)?;
        map.note_inherited()?;
        map.set_clean(false);
        Ok(Some(Found { map, clean }))
    }

    /// Reads the map of an earlier process, as far as it is to be believed, and changes nothing.
    pub(crate) fn look(
        path: &Path,
        volume: VolumeId,
        epoch: Epoch,
        blocks: u64,
    ) -> Result<Look, VolumeError> {
        let doubtful = |what: &str| Look::Doubtful(format!("{}: {what}", path.display()));
        let file = match File::open_to_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(doubtful("it is missing"));
            }
            other => other.during("open", path)?,
        };
        let mut header = [0; HEADER_READ_BYTES];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(doubtful("it is cut short"));
            }
            other => other.during("read", path)?,
        }
        if let Some(what) = doubt(&header, &file, &identity_of(volume, epoch, blocks))? {
            return Ok(doubtful(&what));
        }
        if believed(&file, path, volume, epoch, blocks)?.is_none() {
            return Ok(Look::Outlived);
        }
        let plane_end = HEADER_BYTES + plane_bytes(blocks);
        let there = file.len_bytes().during("look at", path)?.min(plane_end);
        let mut held = BlockSet::new();
        let mut words = vec![0u8; PLANE_ALIGN_BYTES as usize];
        for range in data_ranges(&file, path, HEADER_BYTES..there) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(PLANE_ALIGN_BYTES) as usize;
                file.read_exact_at(&mut words[..len], at).during("read", path)?;
                for (nth, byte) in (0u64..).zip(&words[..len]) {
                    runs_of_word(u64::from(*byte), |low, run| {
                        let first = (at - HEADER_BYTES + nth) * 8 + low;
                        let run = Extent::between(BlockIndex(first), BlockIndex((first + run).min(blocks)));
                        held.insert_extent(run);
                    });
                }
                at += len as u64;
            }
        }
        let unread = BlockIndex(there.saturating_sub(HEADER_BYTES) * 8);
        let unread = (there < plane_end && unread.0 < blocks).then_some(unread);
        Ok(Look::Believed(Looked { held, unread }))
    }

    #[allow(unsafe_code)]
    fn map(file: File, path: &Path, blocks: u64) -> Result<Self, VolumeError> {
        let plane_bytes = plane_bytes(blocks);
        let len = HEADER_BYTES + 2 * plane_bytes;
        if file.len_bytes().during("look at", path)? != len {
            file.set_len(len).during("set the length of", path)?;
        }
        // SAFETY: the file lies in the volume's private directory, which the daemon holds under a lock; nobody else
        // maps or truncates it. All access to the bitmaps goes through atomics, so that the kernel and other threads
        // may look at any time.
        let map = unsafe { MmapOptions::new().len(len as usize).map_mut(&file) }.during("map", path)?;
        // Who touches one page seldom touches its neighbours: the kernel is not to read those in or make them, 32 at once.
        map.advise(Advice::Random).during("say how it is used of", path)?;
        let chunks = 2 * plane_bytes / CHUNK_BYTES;
        let chunks = (0..chunks).map(|_| AtomicU8::new(0)).collect();
        Ok(Self { map, file, path: path.to_owned(), blocks, plane_bytes, chunks, allocating: Mutex::new(()) })
    }

    #[allow(unsafe_code)]
    fn word(&self, plane: Plane, index: u64) -> &AtomicU64 {
        let base = match plane {
            Plane::Held => HEADER_BYTES,
            Plane::Zero => HEADER_BYTES + self.plane_bytes,
        };
        let at = base + index * 8;
        assert!(index * 8 < self.plane_bytes, "block beyond the end of the map");
        // SAFETY: `at` is inside the mapping (checked above: each plane has `plane_bytes` bytes, the mapping has the
        // header and two planes) and a multiple of eight, the mapping starts at a page border, it lives as long as
        // `self`, and every access to these bytes is atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(at as usize).cast_mut().cast()) }
    }

    /// What is known of a chunk of a plane.
    fn chunk(&self, plane: Plane, number: u64) -> &AtomicU8 {
        let first = match plane {
            Plane::Held => 0,
            Plane::Zero => self.plane_bytes / CHUNK_BYTES,
        };
        &self.chunks[(first + number) as usize]
    }

    /// A word as it stands; parts that nobody ever touched are not faulted in, so that a sparse volume costs no memory.
    fn load(&self, plane: Plane, index: u64) -> u64 {
        if is_empty(self.chunk(plane, index * 8 / CHUNK_BYTES).load(Ordering::Acquire)) {
            return 0;
        }
        self.word(plane, index).load(Ordering::Acquire)
    }

    /// Marks the map as saying nothing that the log does not say.
    #[allow(unsafe_code)]
    pub(crate) fn set_clean(&self, clean: bool) {
        // SAFETY: byte 12 is inside the mapping, is not part of a bitmap, and is only accessed here, atomically.
        let flag = unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(CLEAN_AT).cast_mut()) };
        flag.store(u8::from(clean), Ordering::Release);
    }

    /// Finds out which chunks an earlier process set bits in.
    fn note_inherited(&self) -> Result<(), VolumeError> {
        let held = HEADER_BYTES..HEADER_BYTES + self.plane_bytes;
        for range in data_ranges(&self.file, &self.path, held) {
            let range = range?;
            let first = (range.start - HEADER_BYTES) / CHUNK_BYTES;
            let last = (range.end - HEADER_BYTES).div_ceil(CHUNK_BYTES);
            // Somebody is about to look at all of it.
            self.file.will_need(range.start, range.end - range.start).during("read ahead in", &self.path)?;
            for chunk in first..last {
                self.chunk(Plane::Held, chunk).store(INHERITED, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Makes the map be disbelieved by every later process, because data that its bits speak of was lost.
    #[allow(unsafe_code)]
    pub(crate) fn disown(&self) {
        // SAFETY: the byte is inside the mapping, is not part of a bitmap, and is only accessed here, atomically.
        let first = unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(BOOT_ID_AT).cast_mut()) };
        first.store(0, Ordering::Release);
        // Without its name it is not found either. The mapping itself stays usable for readers.
        if let Err(error) = crate::data_files::remove_if_there(&self.path) {
            tracing::error!(%error, "the map of a head whose data was lost could not be removed");
        }
    }

    /// Whether a frozen head's map is of use to the next head: what has its space spares writes to the same parts the asking
    /// for it. One that would take much memory is not, nor one whose space is not known.
    pub(crate) fn is_worth_keeping(&self) -> bool {
        let mut used = 0;
        for chunk in &self.chunks {
            match chunk.load(Ordering::Acquire) {
                UNTOUCHED => {}
                INHERITED => return false,
                _ => used += 1,
            }
        }
        used <= 2 * KEPT_MAX_CHUNKS
    }

    /// Makes the map of a frozen head, which nobody else has any more, the empty one of a new head of the same size. The file
    /// gets its new name last, and that is what a later process finds it by. The caller syncs the directory. If it fails, the
    /// file is removed.
    pub(crate) fn use_again(mut self, from: &Path, to: &Path, epoch: Epoch) -> Result<Self, VolumeError> {
        let emptied = self.empty_for(epoch).during("write", from);
        let named = emptied.and_then(|()| crate::storage::rename(from, to).during("rename", from));
        if let Err(error) = named {
            // Half of it may be cleared: nobody has a use for it.
            if let Err(error) = crate::data_files::remove_if_there(from) {
                tracing::warn!(%error, "a spare map that cannot be used stays until the next start");
            }
            return Err(error);
        }
        self.path = to.to_owned();
        Ok(self)
    }

    /// Clears the bits and says in the header that it is of another epoch, and not closed.
    ///
    /// Not through the mapping: a page that was written back and dropped would have to be read again for that, and a disk
    /// that cannot do so kills the process. Whole pages that are written to the file need no reading, a failure is an
    /// error, and a shared mapping shows them at once.
    fn empty_for(&self, epoch: Epoch) -> std::io::Result<()> {
        let mut at = HEADER_BYTES;
        for plane in [Plane::Held, Plane::Zero] {
            for number in 0..self.plane_bytes / CHUNK_BYTES {
                let chunk = self.chunk(plane, number);
                if chunk.load(Ordering::Acquire) == RESERVED && !self.file.has(Bug::SpareMapNotCleared) {
                    self.file.write_all_at(&[0; CHUNK_BYTES as usize], at)?;
                    chunk.store(BLANK, Ordering::Release);
                }
                at += CHUNK_BYTES;
            }
        }
        self.file.write_all_at(&[0], CLEAN_AT as u64)?;
        self.file.write_all_at(&epoch.0.to_le_bytes(), EPOCH_AT as u64)
    }

    /// Whether it is a map of this many blocks that was not [disowned](Self::disown).
    #[allow(unsafe_code)]
    pub(crate) fn fits(&self, blocks: u64) -> bool {
        // SAFETY: as in `disown`.
        let first = unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(BOOT_ID_AT).cast_mut()) };
        self.blocks == blocks && first.load(Ordering::Acquire) != 0
    }

    /// Whether every block of a run is held.
    pub(crate) fn holds_all(&self, extent: Extent) -> bool {
        words(extent).all(|(index, mask)| self.load(Plane::Held, index) & mask == mask)
    }

    /// Gives disk space to the bits of these blocks, so that setting them cannot fail. Who holds blocks may want to give them
    /// back, and a full disk must not refuse that: [`Plane::Held`] is given the space of both planes.
    pub(crate) fn reserve(&self, plane: Plane, extent: Extent) -> Result<(), VolumeError> {
        if extent.is_empty() {
            return Ok(());
        }
        let first = extent.start.0 / BLOCKS_PER_CHUNK;
        let last = (extent.end().0 - 1) / BLOCKS_PER_CHUNK;
        (first..=last).try_for_each(|number| {
            match plane {
                Plane::Held => self.reserve_chunk(Plane::Zero, number, BLANK)?,
                Plane::Zero => {}
            }
            self.reserve_chunk(plane, number, RESERVED)
        })
    }

    /// Gives a chunk its space; `wanted` is [`RESERVED`], or [`BLANK`] if no bit is about to be set.
    fn reserve_chunk(&self, plane: Plane, number: u64, wanted: u8) -> Result<(), VolumeError> {
        let slot = self.chunk(plane, number);
        let is_done = |state| state == RESERVED || state == wanted;
        if is_done(slot.load(Ordering::Acquire)) {
            return Ok(());
        }
        let _one_at_a_time = self.allocating.lock();
        let state = slot.load(Ordering::Acquire);
        if is_done(state) {
            return Ok(());
        }
        if state == BLANK {
            slot.store(wanted, Ordering::Release);
            return Ok(());
        }
        let base = match plane {
            Plane::Held => HEADER_BYTES,
            Plane::Zero => HEADER_BYTES + self.plane_bytes,
        };
        self.file
            .reserve(base + number * CHUNK_BYTES, CHUNK_BYTES)
            .during("allocate space in", &self.path)?;
        // Bits of an earlier process stay to be looked at.
        let wanted = if state == INHERITED { RESERVED } else { wanted };
        slot.store(wanted, Ordering::Release);
        Ok(())
    }

    pub(crate) fn is_held(&self, block: BlockIndex) -> bool {
        self.bit(Plane::Held, block)
    }

    fn bit(&self, plane: Plane, block: BlockIndex) -> bool {
        self.load(plane, block.0 / 64) >> (block.0 % 64) & 1 == 1
    }

    /// Sets `held` for a run of blocks, whose space there was [reserved](Self::reserve); calls back for each run that is new.
    pub(crate) fn set_held(&self, extent: Extent, mut new_run: impl FnMut(Extent)) {
        for (index, mask) in words(extent) {
            let word = self.word(Plane::Held, index);
            // Most writes hit blocks that are held already: a plain load keeps the cache line shared then.
            if word.load(Ordering::Acquire) & mask == mask {
                continue;
            }
            let before = word.fetch_or(mask, Ordering::AcqRel);
            runs_of_word(mask & !before, |low, len| {
                new_run(Extent::new(BlockIndex(index * 64 + low), len));
            });
        }
    }

    /// Sets `zero` for a run of blocks, whose space there was [reserved](Self::reserve).
    pub(crate) fn set_zero(&self, extent: Extent) {
        for (index, mask) in words(extent) {
            self.word(Plane::Zero, index).fetch_or(mask, Ordering::AcqRel);
        }
    }

    pub(crate) fn clear_zero(&self, extent: Extent) {
        for (index, mask) in words(extent) {
            if self.load(Plane::Zero, index) & mask != 0 {
                self.word(Plane::Zero, index).fetch_and(!mask, Ordering::AcqRel);
            }
        }
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
            Some((Extent::between(BlockIndex(start), BlockIndex(at)), state))
        })
    }

    /// The state of one block; absent beyond the end.
    pub(crate) fn state_of(&self, block: BlockIndex) -> BlockState {
        if block.0 < self.blocks { self.state(block.0) } else { BlockState::Absent }
    }

    fn state(&self, block: u64) -> BlockState {
        let (index, bit) = (block / 64, block % 64);
        let held = self.load(Plane::Held, index) >> bit & 1 == 1;
        if !held {
            return BlockState::Absent;
        }
        if self.load(Plane::Zero, index) >> bit & 1 == 1 { BlockState::Zero } else { BlockState::Data }
    }

    /// The first block after `start` that is in another state, or `end`.
    fn same_until(&self, start: u64, end: u64, state: BlockState) -> u64 {
        let mut at = start;
        while at < end {
            if state == BlockState::Absent && self.is_untouched(at) {
                at = (at / BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK;
                continue;
            }
            let index = at / 64;
            let held = self.load(Plane::Held, index);
            let zero = self.load(Plane::Zero, index);
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

    fn is_untouched(&self, block: u64) -> bool {
        is_empty(self.chunk(Plane::Held, block / BLOCKS_PER_CHUNK).load(Ordering::Acquire))
    }

    /// Collects a plane into a set, looking just at the parts that were ever touched.
    fn collect(&self, plane: Plane) -> BlockSet {
        let mut set = BlockSet::new();
        for chunk in 0..self.plane_bytes / CHUNK_BYTES {
            if is_empty(self.chunk(plane, chunk).load(Ordering::Acquire)) {
                continue;
            }
            let first_word = chunk * CHUNK_BYTES / 8;
            for index in first_word..first_word + CHUNK_BYTES / 8 {
                let word = self.word(plane, index).load(Ordering::Acquire);
                runs_of_word(word, |low, len| {
                    set.insert_extent(Extent::new(BlockIndex(index * 64 + low), len));
                });
            }
        }
        set
    }

    /// Every block that the head holds.
    pub(crate) fn held_set(&self) -> BlockSet {
        self.collect(Plane::Held)
    }

    /// Every block marked as zero, among them possibly some that are not held.
    pub(crate) fn zero_set(&self) -> BlockSet {
        self.collect(Plane::Zero)
    }
}

/// What a head knows of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockState {
    /// It does not hold it: a lower layer decides.
    Absent,
    /// It holds its data.
    Data,
    /// It holds it, and it is all zeroes.
    Zero,
}

fn plane_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(8).max(1).next_multiple_of(PLANE_ALIGN_BYTES)
}

/// The words of a bitmap that a run of blocks touches, each with the mask of its bits.
fn words(extent: Extent) -> impl Iterator<Item = (u64, u64)> {
    let (start, end) = (extent.start.0, extent.end().0);
    (start / 64..end.div_ceil(64)).filter(move |_| end > start).map(move |index| {
        let low = start.max(index * 64) - index * 64;
        let high = end.min(index * 64 + 64) - index * 64;
        let mask = if high - low == 64 { u64::MAX } else { ((1 << (high - low)) - 1) << low };
        (index, mask)
    })
}

/// The maximal runs of ones in a word.
fn runs_of_word(mut word: u64, mut found: impl FnMut(u64, u64)) {
    let mut base = 0;
    while word != 0 {
        let skip = u64::from(word.trailing_zeros());
        word >>= skip;
        let len = u64::from(word.trailing_ones());
        found(base + skip, len);
        base += skip + len;
        word = if len == 64 { 0 } else { word >> len };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 7 * BLOCKS_PER_CHUNK / 2;

    fn map(dir: &tempfile::TempDir) -> LiveMap {
        LiveMap::create(&dir.path().join("m"), VolumeId::from_u64(7), Epoch(3), BLOCKS).unwrap()
    }

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn behaves_like_a_set(runs in prop::collection::vec((0..3u8, 0..400u64, 0..300u64), 1..20)) {
            let dir = tempfile::tempdir().unwrap();
            let map = map(&dir);
            let (mut held, mut zero) = (BlockSet::new(), BlockSet::new());
            for (what, start, len) in runs {
                let run = extent(start, len);
                map.reserve(if what == 0 { Plane::Held } else { Plane::Zero }, run).unwrap();
                match what {
                    0 => {
                        let mut expected = BlockSet::from_iter([run]);
                        expected.subtract(&held);
                        let mut new = BlockSet::new();
                        map.set_held(run, |run| new.insert_extent(run));
                        prop_assert_eq!(new, expected);
                        held.insert_extent(run);
                    }
                    1 => { map.set_zero(run); zero.insert_extent(run); }
                    _ => { map.clear_zero(run); zero.remove_extent(run); }
                }
            }
            let mut both = zero.clone();
            both.intersect_with(&held);
            prop_assert_eq!(map.held_set(), held.clone());
            let mut found = map.zero_set();
            found.intersect_with(&held);
            prop_assert_eq!(found, both);
            let mut next = 10;
            for (run, state) in map.states(extent(10, 600)) {
                prop_assert_eq!(run.start.0, next);
                next = run.end().0;
                for block in run.start.0..run.end().0 {
                    let block = BlockIndex(block);
                    let expected = match (held.contains(block), zero.contains(block)) {
                        (false, _) => BlockState::Absent,
                        (true, false) => BlockState::Data,
                        (true, true) => BlockState::Zero,
                    };
                    prop_assert_eq!(state, expected);
                }
            }
            prop_assert_eq!(next, 610);
        }
    }

    /// How much of a map is in this process's memory, in bytes.
    fn resident_bytes(map: &LiveMap) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.ends_with(map.path.to_str().unwrap()));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    }

    /// How many pages of both planes were written to.
    fn dirty_pages(map: &LiveMap) -> usize {
        let data = data_ranges(&map.file, &map.path, HEADER_BYTES..HEADER_BYTES + 2 * map.plane_bytes);
        data.map(|range| range.map_or(0, |range| ((range.end - range.start) / 4096) as usize)).sum()
    }

    #[test]
    fn blocks_that_are_spread_thin_take_a_page_each_and_nothing_for_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let map = map(&dir);
        for block in [3, 2 * BLOCKS_PER_CHUNK - 1, 3 * BLOCKS_PER_CHUNK] {
            let run = extent(block, 1);
            map.reserve(Plane::Held, run).unwrap();
            map.clear_zero(run);
            map.set_held(run, |_| {});
            assert_eq!(map.state_of(BlockIndex(block)), BlockState::Data);
        }
        assert!(map.zero_set().is_empty());
        // Dirty pages are what the file has data for. The header's page may be there, too.
        assert!(resident_bytes(&map) <= 4 * 4096, "{} bytes", resident_bytes(&map));
        assert_eq!(dirty_pages(&map), 3);
    }

    #[test]
    fn a_map_that_is_not_owned_yet_is_not_believed_and_one_that_is_can_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let (id, epoch) = (VolumeId::from_u64(7), Epoch(3));
        let look = || match LiveMap::look(&path, id, epoch, BLOCKS).unwrap() {
            Look::Believed(found) => Some(found),
            Look::Doubtful(_) => None,
            Look::Outlived => panic!("it is of this boot and mount"),
        };
        assert!(look().is_none());
        let map = LiveMap::create_unowned(&path, id, epoch, BLOCKS).unwrap();
        let runs = [extent(3, 70), extent(BLOCKS_PER_CHUNK * 2, 1), extent(BLOCKS - 1, 1)];
        for run in runs {
            map.reserve(Plane::Held, run).unwrap();
            map.set_held(run, |_| {});
        }
        assert!(look().is_none() && LiveMap::open(&path, id, epoch, BLOCKS).unwrap().is_none());
        map.own().unwrap();
        let found = look().unwrap();
        assert_eq!((found.held, found.unread), (BlockSet::from_iter(runs), None));
        drop(map);
        let before = std::fs::read(&path).unwrap();
        look();
        assert!(std::fs::read(&path).unwrap() == before, "a look changed it");
        // No bit of its header makes it one of another boot or mount, and all but two fields are checked.
        for bit in 0..HEADER_READ_BYTES * 8 {
            let mut bad = before.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            let may_pass = bit == CLEAN_AT * 8 || (MOUNT_AT..MOUNT_AT + 8).contains(&(bit / 8));
            assert!(look().is_none() || may_pass, "bit {bit}");
        }
        let mut other = before.clone();
        other[BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES]
            .copy_from_slice(b"01234567-89ab-cdef-0123-456789abcdef");
        std::fs::write(&path, other).unwrap();
        assert!(matches!(LiveMap::look(&path, id, epoch, BLOCKS), Ok(Look::Outlived)));
        std::fs::write(&path, &before).unwrap();
        File::open(&path).unwrap().set_len(HEADER_BYTES + 8).unwrap();
        let found = look().unwrap();
        assert_eq!((found.held, found.unread), (BlockSet::from_iter([extent(3, 61)]), Some(BlockIndex(64))));
    }

    #[test]
    fn a_dead_process_leaves_its_bits_to_the_next_one_of_the_same_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let first = map(&dir);
        let far = extent(BLOCKS - 5, 5);
        first.reserve(Plane::Held, far).unwrap();
        first.set_held(far, |_| {});
        drop(first);
        let found = LiveMap::open(&path, VolumeId::from_u64(7), Epoch(3), BLOCKS).unwrap().unwrap();
        assert!(!found.clean);
        assert_eq!(found.map.held_set(), BlockSet::from_iter([far]));
        found.map.set_clean(true);
        drop(found);
        let open =
            |volume, epoch| LiveMap::open(&path, VolumeId::from_u64(volume), Epoch(epoch), BLOCKS).unwrap();
        assert!(open(8, 3).is_none(), "the map of another volume was taken");
        assert!(open(7, 4).is_none(), "the map of another epoch was taken");
        assert!(open(7, 3).unwrap().clean);
        assert!(!open(7, 3).unwrap().clean, "opening it must take the clean mark away");
        let file = File::open(&path).unwrap();
        // Where the mount has no number, one that was left there cannot be compared with anything.
        let other_mount = u64::MAX.to_le_bytes();
        file.write_all_at(&other_mount, MOUNT_AT as u64).unwrap();
        assert_eq!(open(7, 3).is_none(), mount_number(&file).is_some(), "a map of another mount");
        file.write_all_at(&[0; 8], MOUNT_AT as u64).unwrap();
        assert!(open(7, 3).is_some(), "a map of an unknown mount");
        file.write_all_at(b"0", BOOT_ID_AT as u64).unwrap();
        assert!(open(7, 3).is_none(), "the map of another boot was taken");
    }
}
