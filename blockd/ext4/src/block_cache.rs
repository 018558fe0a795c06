//! The blocks of metadata that were read last. Directories, inodes and trees are read block by block, again
//! and again.

use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Size of the cache, in bytes.
const KEPT_BYTES: usize = 2 << 20;
/// Minimum number of cached blocks.
const MIN_KEPT: usize = 16;

#[derive(Default)]
struct Kept {
    /// With what their checksums continued, for those that were found right.
    blocks: HashMap<u64, (Arc<[u8]>, Option<u32>)>,
    order: VecDeque<u64>,
}

/// Blocks by their numbers.
pub(crate) struct BlockCache {
    kept: Mutex<Kept>,
    most: usize,
}

impl BlockCache {
    pub fn new(block_len_bytes: usize) -> Self {
        Self { kept: Mutex::default(), most: (KEPT_BYTES / block_len_bytes.max(1)).max(MIN_KEPT) }
    }

    pub fn get(&self, block: u64) -> Option<Arc<[u8]>> {
        self.kept.lock().blocks.get(&block).map(|(bytes, _)| Arc::clone(bytes))
    }

    /// One that was found right with that seed.
    pub fn get_checked(&self, block: u64, seed: u32) -> Option<Arc<[u8]>> {
        let kept = self.kept.lock();
        kept.blocks.get(&block).filter(|(_, by)| *by == Some(seed)).map(|(bytes, _)| Arc::clone(bytes))
    }

    /// It was found right with that seed. Blocks never change, so it still is if it was read again since.
    pub fn set_checked(&self, block: u64, seed: u32) {
        if let Some((_, by)) = self.kept.lock().blocks.get_mut(&block) {
            *by = Some(seed);
        }
    }

    /// Keeps one, in place of the one that has been kept for longest.
    pub fn insert(&self, block: u64, bytes: Arc<[u8]>) {
        let mut kept = self.kept.lock();
        if kept.blocks.insert(block, (bytes, None)).is_some() {
            return;
        }
        kept.order.push_back(block);
        if kept.order.len() > self.most
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.blocks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_stays_within_its_bounds() {
        let cache = BlockCache::new(1 << 16);
        for block in 0..100 {
            cache.insert(block, Arc::from([block as u8]));
            cache.insert(block, Arc::from([block as u8, 1]));
        }
        assert_eq!(cache.get(99).as_deref(), Some(&[99, 1][..]));
        let kept = (0..100).filter(|block| cache.get(*block).is_some()).count();
        assert_eq!((kept, cache.get(0)), ((2 << 20) / (1 << 16), None));
    }
}
