//! Cache of block locations, so that a read of a deep volume consults one entry instead of layer after layer.
//!
//! Only frozen layers are cached, for one arrangement of them: each arrangement has a number, stored in every
//! entry, so that a freeze or a merge invalidates all entries at no cost. The first read of a block
//! afterwards fills its entry. The table is shared by all arrangements of a volume, including its snapshots,
//! and has one entry of eight bytes per block, at most 8 MiB: blocks 4 GiB apart then share an entry. Its
//! pages, each for 2 MiB of the volume, are allocated on use.

use blockd_extent::BlockIndex;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Maximum number of entries of a table.
const MAX_ENTRIES: u64 = 1 << 20;
/// Entries of a page.
const PAGE_ENTRIES: usize = 512;

/// Bits of a location in an entry, beside block and arrangement number; 0 is no entry, because numbers start
/// at 1.
const FOUND_BITS: u32 = 12;
const NUMBER_BITS: u32 = 18;

/// Maximum number of distinguishable layers.
const MAX_LAYERS: usize = (1 << FOUND_BITS) - 1;

/// Location of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Zeroes.
    Zeroes,
    /// Layer, counted from the bottom.
    Layer(usize),
}

/// Cache of one arrangement of layers.
#[derive(Clone)]
pub(crate) struct LocationCache {
    table: Arc<Table>,
    number: u64,
}

/// Neighbouring entries.
type Page = OnceLock<Box<[AtomicU64; PAGE_ENTRIES]>>;

struct Table {
    blocks: u64,
    pages: OnceLock<Box<[Page]>>,
    last_number: AtomicU64,
}

impl LocationCache {
    /// Creates a cache for this number of blocks; allocates nothing yet.
    pub(crate) fn new(blocks: u64) -> Self {
        let table = Table { blocks, pages: OnceLock::new(), last_number: AtomicU64::new(1) };
        Self { table: Arc::new(table), number: 1 }
    }

    /// Creates an empty cache for another arrangement of the same volume, which may have grown.
    pub(crate) fn next(&self, blocks: u64) -> Self {
        let number = self.table.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        // Growth and overflow of the numbers are rare.
        if blocks > self.table.blocks || number >= 1 << NUMBER_BITS {
            return Self::new(blocks);
        }
        Self { table: self.table.clone(), number }
    }

    fn key(&self, block: BlockIndex) -> u64 {
        // 34 bits suffice for the blocks of 64 TiB.
        debug_assert!(self.number < 1 << NUMBER_BITS && block.0 < 1 << 34, "block and number fit the key");
        (block.0 << NUMBER_BITS | self.number) << FOUND_BITS
    }

    /// Returns page and entry of a block.
    fn place(pages: &[Page], block: BlockIndex) -> Option<(&Page, usize)> {
        let at = block.0 as usize;
        debug_assert!(pages.len().is_power_of_two(), "the mask selects a page");
        Some((pages.get((at / PAGE_ENTRIES) & (pages.len() - 1))?, at % PAGE_ENTRIES))
    }

    /// Returns the cached location of a block.
    pub(crate) fn get(&self, block: BlockIndex) -> Option<Found> {
        let (page, at) = Self::place(self.table.pages.get()?, block)?;
        // An entry is self-contained: relaxed ordering suffices.
        let found = page.get()?.get(at)?.load(Ordering::Relaxed).checked_sub(self.key(block))?;
        match found {
            0 => Some(Found::Zeroes),
            _ if found <= MAX_LAYERS as u64 => Some(Found::Layer(found as usize - 1)),
            _ => None,
        }
    }

    /// Caches the location of a block.
    pub(crate) fn put(&self, block: BlockIndex, found: Found) {
        let found = match found {
            Found::Zeroes => 0,
            Found::Layer(layer) if layer < MAX_LAYERS => layer as u64 + 1,
            Found::Layer(_) => return,
        };
        let pages = self.table.pages.get_or_init(|| {
            let entries = self.table.blocks.next_power_of_two().min(MAX_ENTRIES) as usize;
            (0..entries.div_ceil(PAGE_ENTRIES)).map(|_| Page::new()).collect()
        });
        if let Some((page, at)) = Self::place(pages, block) {
            let page = page.get_or_init(|| Box::new([const { AtomicU64::new(0) }; PAGE_ENTRIES]));
            page[at].store(self.key(block) + found, Ordering::Relaxed);
        }
    }

    /// Returns the memory of the table, in bytes.
    pub(crate) fn heap_bytes(&self) -> u64 {
        let Some(pages) = self.table.pages.get() else { return 0 };
        let made = pages.iter().filter(|page| page.get().is_some()).count();
        (size_of_val::<[Page]>(pages) + made * size_of::<[AtomicU64; PAGE_ENTRIES]>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_location_applies_to_same_arrangement() {
        let memo = LocationCache::new(1 << 34);
        let last = BlockIndex((1 << 34) - 1);
        assert_eq!((memo.get(last), memo.heap_bytes()), (None, 0));
        for (block, found) in [
            (BlockIndex(0), Found::Zeroes),
            (BlockIndex(1), Found::Layer(0)),
            (last, Found::Layer(MAX_LAYERS - 1)),
        ] {
            memo.put(block, found);
            assert_eq!(memo.get(block), Some(found));
            assert_eq!(memo.get(BlockIndex(block.0 ^ 1 << 33)), None, "another block of the same place");
        }
        let (all, touched) = (MAX_ENTRIES / PAGE_ENTRIES as u64 * size_of::<Page>() as u64, 2 * 4096);
        assert_eq!(memo.heap_bytes(), all + touched);
        let next = memo.next(1 << 34);
        assert_eq!(next.get(last), None);
        next.put(last, Found::Layer(3));
        assert_eq!((memo.get(last), next.get(last)), (None, Some(Found::Layer(3))));
        memo.put(BlockIndex(9), Found::Layer(MAX_LAYERS));
        assert_eq!(memo.get(BlockIndex(9)), None);
    }

    #[test]
    fn checksums_of_adjacent_numbers_and_layers_differ() {
        let first = LocationCache::new(64);
        let second = first.next(64);
        first.put(BlockIndex(5), Found::Layer(MAX_LAYERS - 1));
        assert_eq!(second.get(BlockIndex(5)), None);
        second.put(BlockIndex(5), Found::Zeroes);
        assert_eq!(first.get(BlockIndex(5)), None);
        assert_eq!(second.get(BlockIndex(5)), Some(Found::Zeroes));
    }

    #[test]
    fn small_or_exhausted_table_is_replaced() {
        let mut memo = LocationCache::new(100);
        memo.put(BlockIndex(1), Found::Zeroes);
        assert_eq!(memo.heap_bytes(), (size_of::<Page>() + PAGE_ENTRIES * 8) as u64);
        assert_eq!(memo.next(101).heap_bytes(), 0);
        for _ in 0..1 << NUMBER_BITS {
            memo = memo.next(100);
            assert!(memo.number < 1 << NUMBER_BITS);
            assert_eq!(memo.get(BlockIndex(1)), None);
        }
        assert_eq!(memo.heap_bytes(), 0, "another one");
    }
}
