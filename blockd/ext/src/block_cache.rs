//! The blocks of metadata that were read last. Directories, inodes and trees are read block by block, again and again.

use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// How much of them is kept, in bytes.
const KEPT_BYTES: usize = 2 << 20;
/// How many of them are kept at least.
const KEPT_LEAST: usize = 16;

#[derive(Default)]
struct Kept {
    blocks: HashMap<u64, Arc<[u8]>>,
    order: VecDeque<u64>,
}

/// Blocks by their numbers.
pub(crate) struct BlockCache {
    kept: Mutex<Kept>,
    most: usize,
}

impl BlockCache {
    pub fn new(block_len_bytes: usize) -> Self {
        Self { kept: Mutex::default(), most: (KEPT_BYTES / block_len_bytes.max(1)).max(KEPT_LEAST) }
    }

    pub fn get(&self, block: u64) -> Option<Arc<[u8]>> {
        self.kept.lock().blocks.get(&block).cloned()
    }

    /// Keeps one, in place of the one that has been kept for longest.
    pub fn insert(&self, block: u64, bytes: Arc<[u8]>) {
        let mut kept = self.kept.lock();
        if kept.blocks.insert(block, bytes).is_some() {
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
    fn it_stays_within_its_bounds() {
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
