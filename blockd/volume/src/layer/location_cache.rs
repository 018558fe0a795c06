//! Cache of block locations, so that a read of a deep volume takes one lookup instead of one per layer.
//!
//! Only locations in frozen layers are cached. Each sequence of layers has a version, stored in every entry,
//! so that a freeze or a merge invalidates all entries at no cost; the next read of a block refills its
//! entry. The table is shared by all versions of a volume, including its snapshots. It has one entry of eight
//! bytes per block, at most 8 MiB; blocks 4 GiB apart then share an entry. Pages of
//! the table, each for 2 MiB of the volume, are allocated on use.

use blockd_extent::BlockIndex;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// Maximum number of entries of a table.
const MAX_ENTRIES: u64 = 1 << 20;
/// Entries of a page.
const PAGE_ENTRIES: usize = 512;

/// Bits of a location in an entry, below block and version. An empty entry is 0, because versions start at 1.
const LOCATION_BITS: u32 = 12;
const VERSION_BITS: u32 = 18;

/// Maximum number of distinguishable layers.
const MAX_LAYERS: usize = (1 << LOCATION_BITS) - 1;

/// Location of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Location {
    /// Zeroes.
    Zeroes,
    /// Index of a layer, from the bottom.
    Layer(usize),
}

/// Location cache of one version of the layers.
#[derive(Clone)]
pub(crate) struct LocationCache {
    table: Arc<Table>,
    version: u64,
}

/// Adjacent entries.
type Page = OnceLock<Box<[AtomicU64; PAGE_ENTRIES]>>;

struct Table {
    blocks: u64,
    pages: OnceLock<Box<[Page]>>,
    last_version: AtomicU64,
}

impl LocationCache {
    /// Creates a cache for this number of blocks; allocates nothing yet.
    pub(crate) fn new(blocks: u64) -> Self {
        let table = Table { blocks, pages: OnceLock::new(), last_version: AtomicU64::new(1) };
        Self { table: Arc::new(table), version: 1 }
    }

    /// Creates an empty cache for the next version of the layers of the same volume, which may have grown.
    pub(crate) fn next(&self, blocks: u64) -> Self {
        let version = self.table.last_version.fetch_add(1, Ordering::Relaxed) + 1;
        // Rare: the volume has grown, or the versions overflow.
        if blocks > self.table.blocks || version >= 1 << VERSION_BITS {
            return Self::new(blocks);
        }
        Self { table: self.table.clone(), version }
    }

    fn key(&self, block: BlockIndex) -> u64 {
        // 34 bits suffice for the blocks of 64 TiB.
        debug_assert!(self.version < 1 << VERSION_BITS && block.0 < 1 << 34, "block and version fit the key");
        (block.0 << VERSION_BITS | self.version) << LOCATION_BITS
    }

    /// Returns page and entry index of a block.
    fn slot(pages: &[Page], block: BlockIndex) -> Option<(&Page, usize)> {
        let at = block.0 as usize;
        debug_assert!(pages.len().is_power_of_two(), "the mask selects a page");
        Some((pages.get((at / PAGE_ENTRIES) & (pages.len() - 1))?, at % PAGE_ENTRIES))
    }

    /// Returns the cached location of a block.
    pub(crate) fn get(&self, block: BlockIndex) -> Option<Location> {
        let (page, at) = Self::slot(self.table.pages.get()?, block)?;
        // An entry is self-contained: relaxed ordering suffices.
        let location = page.get()?.get(at)?.load(Ordering::Relaxed).checked_sub(self.key(block))?;
        match location {
            0 => Some(Location::Zeroes),
            _ if location <= MAX_LAYERS as u64 => Some(Location::Layer(location as usize - 1)),
            _ => None,
        }
    }

    /// Caches the location of a block.
    pub(crate) fn put(&self, block: BlockIndex, location: Location) {
        let location = match location {
            Location::Zeroes => 0,
            Location::Layer(layer) if layer < MAX_LAYERS => layer as u64 + 1,
            Location::Layer(_) => return,
        };
        let pages = self.table.pages.get_or_init(|| {
            let entries = self.table.blocks.next_power_of_two().min(MAX_ENTRIES) as usize;
            (0..entries.div_ceil(PAGE_ENTRIES)).map(|_| Page::new()).collect()
        });
        if let Some((page, at)) = Self::slot(pages, block) {
            let page = page.get_or_init(|| Box::new([const { AtomicU64::new(0) }; PAGE_ENTRIES]));
            page[at].store(self.key(block) + location, Ordering::Relaxed);
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
    fn cached_location_applies_to_same_version() {
        let cache = LocationCache::new(1 << 34);
        let last = BlockIndex((1 << 34) - 1);
        assert_eq!((cache.get(last), cache.heap_bytes()), (None, 0));
        for (block, location) in [
            (BlockIndex(0), Location::Zeroes),
            (BlockIndex(1), Location::Layer(0)),
            (last, Location::Layer(MAX_LAYERS - 1)),
        ] {
            cache.put(block, location);
            assert_eq!(cache.get(block), Some(location));
            assert_eq!(cache.get(BlockIndex(block.0 ^ 1 << 33)), None, "another block with the same entry");
        }
        let (all, touched) = (MAX_ENTRIES / PAGE_ENTRIES as u64 * size_of::<Page>() as u64, 2 * 4096);
        assert_eq!(cache.heap_bytes(), all + touched);
        let next = cache.next(1 << 34);
        assert_eq!(next.get(last), None);
        next.put(last, Location::Layer(3));
        assert_eq!((cache.get(last), next.get(last)), (None, Some(Location::Layer(3))));
        cache.put(BlockIndex(9), Location::Layer(MAX_LAYERS));
        assert_eq!(cache.get(BlockIndex(9)), None);
    }

    #[test]
    fn keys_of_adjacent_versions_and_layers_differ() {
        let first = LocationCache::new(64);
        let second = first.next(64);
        first.put(BlockIndex(5), Location::Layer(MAX_LAYERS - 1));
        assert_eq!(second.get(BlockIndex(5)), None);
        second.put(BlockIndex(5), Location::Zeroes);
        assert_eq!(first.get(BlockIndex(5)), None);
        assert_eq!(second.get(BlockIndex(5)), Some(Location::Zeroes));
    }

    #[test]
    fn small_or_exhausted_table_is_replaced() {
        let mut cache = LocationCache::new(100);
        cache.put(BlockIndex(1), Location::Zeroes);
        assert_eq!(cache.heap_bytes(), (size_of::<Page>() + PAGE_ENTRIES * 8) as u64);
        assert_eq!(cache.next(101).heap_bytes(), 0);
        for _ in 0..1 << VERSION_BITS {
            cache = cache.next(100);
            assert!(cache.version < 1 << VERSION_BITS);
            assert_eq!(cache.get(BlockIndex(1)), None);
        }
        assert_eq!(cache.heap_bytes(), 0, "a new table");
    }
}
