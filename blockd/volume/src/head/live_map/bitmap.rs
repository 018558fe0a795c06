//! Sparse lock-free bitmap in memory, one bit per block.
//!
//! A chunk of 4 KiB (128 MiB of volume) is allocated when its first bit is set. A chunk without bits costs
//! only its table entry of 16 bytes, 128 KiB per TiB.

use blockd_extent::{BlockIndex, BlockSet, Extent};
use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of a chunk, in memory and in the map file.
pub(super) const CHUNK_BYTES: u64 = 4096;
/// Blocks of a chunk.
pub(super) const BLOCKS_PER_CHUNK: u64 = CHUNK_BYTES * 8;
const WORDS_PER_CHUNK: usize = CHUNK_BYTES as usize / 8;

type Chunk = [AtomicU64; WORDS_PER_CHUNK];

/// Bitmap with one bit per block of a volume.
pub(super) struct Bitmap {
    chunks: Box<[OnceLock<Box<Chunk>>]>,
}

impl Bitmap {
    /// Creates a bitmap of `blocks` bits, all zero.
    pub(super) fn new(blocks: u64) -> Self {
        Self { chunks: (0..blocks.div_ceil(BLOCKS_PER_CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// Returns word number `index`, which holds the bits of blocks `index * 64` to `index * 64 + 63`.
    pub(super) fn word(&self, index: u64) -> u64 {
        let (chunk, word) = locate(index);
        self.chunks[chunk].get().map_or(0, |chunk| chunk[word].load(Ordering::Acquire))
    }

    /// Returns true if no bit of a block's chunk was ever set.
    pub(super) fn is_untouched(&self, block: BlockIndex) -> bool {
        self.chunks[(block.0 / BLOCKS_PER_CHUNK) as usize].get().is_none()
    }

    /// Returns true if the bits of all blocks of an extent are set.
    pub(super) fn holds_all(&self, extent: Extent) -> bool {
        words(extent).all(|(index, mask)| self.word(index) & mask == mask)
    }

    /// Sets the bits of an extent and reports each extent that was not set before.
    pub(super) fn set(&self, extent: Extent, mut new_extent: impl FnMut(Extent)) {
        for (index, mask) in words(extent) {
            let (chunk, word) = locate(index);
            let chunk =
                self.chunks[chunk].get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS_PER_CHUNK]));
            // Usually the bits are set: a plain load keeps the cache line shared.
            if chunk[word].load(Ordering::Acquire) & mask == mask {
                continue;
            }
            let before = chunk[word].fetch_or(mask, Ordering::AcqRel);
            runs_of_word(mask & !before, |low, len| {
                new_extent(Extent::new(BlockIndex(index * 64 + low), len));
            });
        }
    }

    /// Clears the bits of an extent.
    pub(super) fn clear(&self, extent: Extent) {
        for (index, mask) in words(extent) {
            let (chunk, word) = locate(index);
            let Some(chunk) = self.chunks[chunk].get() else { continue };
            if chunk[word].load(Ordering::Acquire) & mask != 0 {
                chunk[word].fetch_and(!mask, Ordering::AcqRel);
            }
        }
    }

    /// Returns the numbers of the allocated chunks, ascending.
    pub(super) fn allocated_chunks(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..).zip(&self.chunks).filter(|(_, chunk)| chunk.get().is_some()).map(|(number, _)| number)
    }

    /// Returns the memory of the bitmap, in bytes.
    pub(super) fn heap_bytes(&self) -> u64 {
        size_of_val(&*self.chunks) as u64 + self.allocated_chunks().count() as u64 * CHUNK_BYTES
    }

    /// Returns the blocks with set bits.
    pub(super) fn to_set(&self) -> BlockSet {
        let mut set = BlockSet::new();
        let mut bytes = [0; CHUNK_BYTES as usize];
        for number in self.allocated_chunks() {
            let Some(chunk) = self.chunks[number as usize].get() else { continue };
            for (word, bytes) in chunk.iter().zip(bytes.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
            }
            set.insert_bits(BlockIndex(number * BLOCKS_PER_CHUNK), &bytes);
        }
        set
    }
}

fn locate(index: u64) -> (usize, usize) {
    ((index / WORDS_PER_CHUNK as u64) as usize, (index % WORDS_PER_CHUNK as u64) as usize)
}

/// Returns the words that an extent overlaps, each with the mask of its bits, ascending.
pub(super) fn words(extent: Extent) -> impl Iterator<Item = (u64, u64)> {
    let (start, end) = (extent.start.0, extent.end().0);
    (start / 64..end.div_ceil(64)).filter(move |_| end > start).map(move |index| {
        let low = start.max(index * 64) - index * 64;
        let high = end.min(index * 64 + 64) - index * 64;
        debug_assert!(low < high && high <= 64, "an extent overlaps each of its words");
        let mask = if high - low == 64 { u64::MAX } else { ((1 << (high - low)) - 1) << low };
        (index, mask)
    })
}

/// Reports the maximal runs of ones in a word as (first bit, length).
pub(super) fn runs_of_word(mut word: u64, mut found: impl FnMut(u64, u64)) {
    let mut base = 0;
    while word != 0 {
        let skip = u64::from(word.trailing_zeros());
        word >>= skip;
        let len = u64::from(word.trailing_ones());
        debug_assert!(len > 0 && base + skip + len <= 64, "runs are inside the word");
        found(base + skip, len);
        base += skip + len;
        word = if len == 64 { 0 } else { word >> len };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_allocated_by_the_first_bit_only() {
        let bitmap = Bitmap::new(7 * BLOCKS_PER_CHUNK / 2);
        for block in [3, 2 * BLOCKS_PER_CHUNK - 1, 3 * BLOCKS_PER_CHUNK] {
            assert!(bitmap.is_untouched(BlockIndex(block)));
            bitmap.clear(Extent::new(BlockIndex(block), 1));
            assert_eq!(bitmap.word(block / 64), 0);
            bitmap.set(Extent::new(BlockIndex(block), 1), |_| {});
        }
        assert_eq!(bitmap.allocated_chunks().collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(bitmap.to_set().len_blocks(), 3);
    }
}
