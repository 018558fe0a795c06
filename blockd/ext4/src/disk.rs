//! Blocks of a filesystem: from the image, or from the journal overlay.

use crate::{
    ExtError, Structure,
    error::damaged,
    overlay::{Overlay, Patch},
};
use hashlink::LruCache;
use parking_lot::Mutex;
use std::{io, ops::Range, sync::Arc};

/// Size of the metadata cache, in bytes: directories, inodes and trees read the same blocks repeatedly.
const CACHE_BYTES: usize = 2 << 20;
/// Minimum number of cached blocks.
const MIN_CACHED: usize = 16;

/// Metadata blocks by number, each with the seed of its verified checksum, if any.
type BlockCache = Mutex<LruCache<u64, (Arc<[u8]>, Option<u32>)>>;

fn new_cache(block_len_bytes: usize) -> BlockCache {
    Mutex::new(LruCache::new((CACHE_BYTES / block_len_bytes.max(1)).max(MIN_CACHED)))
}

/// Random access to the bytes of an image, which must not change while a [`Filesystem`](crate::Filesystem) is
/// open.
pub trait ReadAt: Send + Sync {
    /// Returns the size of the image, in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` with the bytes from `offset_bytes` on; the caller ensures that the range is inside the
    /// image.
    ///
    /// # Errors
    /// The bytes cannot be read, temporarily or permanently.
    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Announces reads of byte ranges inside the image, at most 8 MiB of adjacent ones or 64 others at a
    /// time: a remote image can fetch them concurrently. A hint, ignored by default.
    fn will_need(&self, ranges: &[Range<u64>]) {
        let _ = ranges;
    }
}

/// Reads from an image; a range beyond its end is an error.
pub(crate) fn read(source: &dyn ReadAt, offset_bytes: u64, buf: &mut [u8]) -> Result<(), ExtError> {
    let inside = offset_bytes.checked_add(buf.len() as u64).is_some_and(|end| end <= source.size_bytes());
    let result = if inside {
        source.read_exact_at(offset_bytes, buf)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    };
    result.map_err(|source| ExtError::Read { offset_bytes, len_bytes: buf.len(), source })
}

/// Blocks of one filesystem.
pub(crate) struct Disk {
    source: Arc<dyn ReadAt>,
    block_len: u32,
    /// Number of blocks, all inside the image.
    blocks: u64,
    overlay: Overlay,
    cache: BlockCache,
}

impl Disk {
    /// Creates a disk of `blocks` blocks, all inside the image, without an overlay.
    pub fn new(source: Arc<dyn ReadAt>, block_len: u32, blocks: u64) -> Self {
        let cache = new_cache(block_len as usize);
        Self { source, block_len, blocks, overlay: Overlay::default(), cache }
    }

    /// Redirects reads of the blocks in the overlay to the journal.
    pub fn set_overlay(&mut self, overlay: Overlay) {
        self.cache.get_mut().clear();
        self.overlay = overlay;
    }

    /// Returns the image.
    pub fn source(&self) -> &dyn ReadAt {
        &*self.source
    }

    /// Sets the number of blocks, all inside the image.
    pub fn set_blocks(&mut self, blocks: u64) {
        self.blocks = blocks;
    }

    /// Returns the block size, in bytes.
    pub fn block_len(&self) -> usize {
        self.block_len as usize
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns true if these blocks exist; block 0 holds no file data.
    pub fn contains(&self, block: u64, count: u64) -> bool {
        block > 0 && block.checked_add(count).is_some_and(|end| end <= self.blocks)
    }

    /// Announces reads of blocks: first block and number of each extent. Those outside are left out.
    pub fn will_need(&self, extents: impl IntoIterator<Item = (u64, u64)>) {
        let len = u64::from(self.block_len);
        let inside = extents.into_iter().filter(|(first, count)| *count > 0 && self.contains(*first, *count));
        let ranges: Vec<_> = inside.map(|(first, count)| first * len..(first + count) * len).collect();
        if !ranges.is_empty() {
            self.source.will_need(&ranges);
        }
    }

    /// Returns a metadata block through the cache.
    pub fn block(&self, block: u64) -> Result<Arc<[u8]>, ExtError> {
        if let Some((bytes, _)) = self.cache.lock().get(&block) {
            return Ok(Arc::clone(bytes));
        }
        let mut bytes = vec![0; self.block_len()];
        self.read(block, 0, &mut bytes)?;
        let bytes: Arc<[u8]> = bytes.into();
        self.cache.lock().insert(block, (Arc::clone(&bytes), None));
        Ok(bytes)
    }

    /// Returns a cached block whose checksum was verified with this seed.
    pub fn checked_block(&self, block: u64, seed: u32) -> Option<Arc<[u8]>> {
        let mut cache = self.cache.lock();
        cache.get(&block).filter(|(_, known)| *known == Some(seed)).map(|(bytes, _)| Arc::clone(bytes))
    }

    /// Records that the checksum of a block was verified with this seed. The image never changes, so this
    /// holds even if the block was evicted and read again since.
    pub fn set_checked(&self, block: u64, seed: u32) {
        if let Some((_, known)) = self.cache.lock().get_mut(&block) {
            *known = Some(seed);
        }
    }

    /// Fills `buf` from the byte `within` of a block on; it may extend into the following blocks.
    pub fn read(&self, block: u64, within: usize, buf: &mut [u8]) -> Result<(), ExtError> {
        let len = self.block_len();
        let last = block.saturating_add(((within + buf.len()).saturating_sub(1) / len) as u64);
        if last >= self.blocks {
            return damaged(Structure::Block(block), "beyond the end of the filesystem");
        }
        if !self.overlay.has_any(block, last) {
            return read(&*self.source, block * u64::from(self.block_len) + within as u64, buf);
        }
        let (mut number, mut within, mut rest) = (block, within, buf);
        number += (within / len) as u64;
        within %= len;
        while !rest.is_empty() {
            let part_len = rest.len().min(len - within);
            let (part, after) = rest.split_at_mut(part_len);
            match self.overlay.get(number) {
                Some(patch) => {
                    part.copy_from_slice(&self.patched(number, patch)?[within..within + part_len]);
                }
                None => read(&*self.source, number * u64::from(self.block_len) + within as u64, part)?,
            }
            (number, within, rest) = (number + 1, 0, after);
        }
        Ok(())
    }

    /// Reads the copy of a block in the journal.
    fn patched(&self, block: u64, patch: Patch) -> Result<Vec<u8>, ExtError> {
        let mut bytes = vec![0; self.block_len()];
        read(&*self.source, patch.log_block * u64::from(self.block_len), &mut bytes)?;
        if !self.overlay.unescape(patch, &mut bytes) {
            return damaged(Structure::Block(block), "checksum mismatch of its copy in the journal");
        }
        Ok(bytes)
    }
}
