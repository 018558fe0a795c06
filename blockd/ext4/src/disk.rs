//! The blocks of a filesystem: those of the image, or those that the journal has in their place.

use crate::{
    ExtError, Place,
    error::damaged,
    journal::{Overlay, Patch},
};
use hashlink::LruCache;
use parking_lot::Mutex;
use std::{io, sync::Arc};

/// Size of the cache of metadata, in bytes: directories, inodes and trees are read block by block, again and
/// again.
const CACHE_BYTES: usize = 2 << 20;
/// Minimum number of cached blocks.
const MIN_CACHED: usize = 16;

/// Blocks of metadata by number, each with the seed that its checksum, found right, continued.
type BlockCache = Mutex<LruCache<u64, (Arc<[u8]>, Option<u32>)>>;

fn new_cache(block_len_bytes: usize) -> BlockCache {
    Mutex::new(LruCache::new((CACHE_BYTES / block_len_bytes.max(1)).max(MIN_CACHED)))
}

/// Bytes at random places. What they are must not change while they are read.
pub trait ReadAt: Send + Sync {
    /// Returns the size, in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes` on; the range is inside the image.
    ///
    /// # Errors
    /// They cannot be read, temporarily or permanently.
    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// Reads from an image.
pub(crate) fn read(source: &dyn ReadAt, offset_bytes: u64, buf: &mut [u8]) -> Result<(), ExtError> {
    let inside = offset_bytes.checked_add(buf.len() as u64).is_some_and(|end| end <= source.size_bytes());
    let result = if inside {
        source.read_exact_at(offset_bytes, buf)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    };
    result.map_err(|source| ExtError::Read { offset_bytes, len_bytes: buf.len(), source })
}

/// The blocks of one filesystem.
pub(crate) struct Disk {
    source: Arc<dyn ReadAt>,
    block_len: u32,
    /// Number of blocks, all inside the image.
    blocks: u64,
    overlay: Overlay,
    cache: BlockCache,
}

impl Disk {
    /// So many blocks, which lie inside the image, as they are there.
    pub fn new(source: Arc<dyn ReadAt>, block_len: u32, blocks: u64) -> Self {
        let cache = new_cache(block_len as usize);
        Self { source, block_len, blocks, overlay: Overlay::default(), cache }
    }

    /// From now on blocks that the journal has are taken from there.
    pub fn set_overlay(&mut self, overlay: Overlay) {
        self.cache.get_mut().clear();
        self.overlay = overlay;
    }

    /// The image.
    pub fn source(&self) -> &dyn ReadAt {
        &*self.source
    }

    /// Sets the number of blocks, all inside the image.
    pub fn set_blocks(&mut self, blocks: u64) {
        self.blocks = blocks;
    }

    /// Length of a block in bytes.
    pub fn block_len(&self) -> usize {
        self.block_len as usize
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns true if these blocks exist; block 0 holds no file data.
    pub fn has(&self, block: u64, count: u64) -> bool {
        block > 0 && block.checked_add(count).is_some_and(|end| end <= self.blocks)
    }

    /// One block of metadata.
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

    /// One block of metadata that was found right before, if it is still there.
    pub fn checked_block(&self, block: u64, seed: u32) -> Option<Arc<[u8]>> {
        let mut cache = self.cache.lock();
        cache.get(&block).filter(|(_, by)| *by == Some(seed)).map(|(bytes, _)| Arc::clone(bytes))
    }

    /// Remembers that a block was found right, by checksums that continue that seed. Blocks never change, so
    /// it still is if it was read again since.
    pub fn set_checked(&self, block: u64, seed: u32) {
        if let Some((_, by)) = self.cache.lock().get_mut(&block) {
            *by = Some(seed);
        }
    }

    /// Fills `buf` from `within` bytes behind the beginning of a block on; it may reach into the blocks
    /// behind it.
    pub fn read(&self, block: u64, within: usize, buf: &mut [u8]) -> Result<(), ExtError> {
        let len = self.block_len();
        let last = block.saturating_add(((within + buf.len()).saturating_sub(1) / len) as u64);
        if last >= self.blocks {
            return damaged(Place::Block(block), "it lies behind the end of the filesystem");
        }
        if !self.overlay.has_any(block, last) {
            return read(&*self.source, block * u64::from(self.block_len) + within as u64, buf);
        }
        let (mut number, mut within, mut rest) = (block, within, buf);
        number += (within / len) as u64;
        within %= len;
        while !rest.is_empty() {
            let now = rest.len().min(len - within);
            let (piece, behind) = rest.split_at_mut(now);
            match self.overlay.get(number) {
                Some(patch) => {
                    piece.copy_from_slice(&self.patched(number, patch)?[within..within + now]);
                }
                None => read(&*self.source, number * u64::from(self.block_len) + within as u64, piece)?,
            }
            (number, within, rest) = (number + 1, 0, behind);
        }
        Ok(())
    }

    /// A block as the journal has it.
    fn patched(&self, block: u64, patch: Patch) -> Result<Vec<u8>, ExtError> {
        let mut bytes = vec![0; self.block_len()];
        read(&*self.source, patch.log_block * u64::from(self.block_len), &mut bytes)?;
        if !self.overlay.finish(patch, &mut bytes) {
            return damaged(Place::Block(block), "what the journal has of it does not match its checksum");
        }
        Ok(bytes)
    }
}
