//! Damaged blocks of a frozen layer.
//!
//! Reads of these blocks fail, all others do not. A scrub adds blocks, a repair removes them, both durably. A
//! layer without damage has no file, and a read of it costs the check of one flag.
//!
//! # File
//!
//! `layer-<file>.damaged`, all integers little-endian: magic `BLKDDMG1`, version u32 (1), 0 u32, volume id
//! u64, file epoch u64, the encoded block set, then xxh3-64 of everything before it.

use crate::{
    error::{IoContext, VolumeError},
    io::files,
    io::record::{check_version, half_at, seal, unseal, word_at},
    io::storage,
};
use blockd_extent::{BlockSet, Epoch, Extent, VolumeId};
use parking_lot::{Mutex, RwLock};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

const MAGIC: &[u8; 8] = b"BLKDDMG1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
/// Maximum number of blocks that a scrub adds to the list of a layer: 256 MiB.
const MAX_BLOCKS: u64 = 65_536;

/// Damaged blocks of a layer. Layers with the same files share them.
pub(crate) struct DamageList {
    path: PathBuf,
    volume: VolumeId,
    file: Epoch,
    /// False without damage.
    is_any: AtomicBool,
    blocks: RwLock<BlockSet>,
    /// Held during a change, so that reads do not wait for the disk.
    changing: Mutex<()>,
}

impl DamageList {
    /// Returns an empty list; creates no file.
    pub(crate) fn new(dir: &Path, volume: VolumeId, file: Epoch) -> Self {
        let path = files::damaged_path(dir, file);
        let is_any = AtomicBool::new(false);
        Self { path, volume, file, is_any, blocks: RwLock::default(), changing: Mutex::default() }
    }

    /// Loads the list of a layer; `None` without a file.
    ///
    /// # Errors
    /// The file is damaged or cannot be read. A block may be on the list only, so it is not ignored.
    pub(crate) fn load(dir: &Path, volume: VolumeId, file: Epoch) -> Result<Option<Self>, VolumeError> {
        let list = Self::new(dir, volume, file);
        let bytes = match storage::read(&list.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.during("read", &list.path)?,
        };
        check_version(&list.path, &bytes, MAGIC, VERSION)?;
        let found =
            list.decode(&bytes).map_err(|what| VolumeError::Damaged { path: list.path.clone(), what })?;
        list.is_any.store(!found.is_empty(), Ordering::Release);
        *list.blocks.write() = found;
        Ok(Some(list))
    }

    /// Returns the blocks.
    pub(crate) fn blocks(&self) -> BlockSet {
        match self.is_any.load(Ordering::Acquire) {
            true => self.blocks.read().clone(),
            false => BlockSet::new(),
        }
    }

    /// Returns an error if an extent has a damaged block.
    #[inline]
    pub(crate) fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        match self.is_any.load(Ordering::Acquire) {
            true => self.search(Extent::touching(offset_bytes, len_bytes)),
            false => Ok(()),
        }
    }

    #[cold]
    fn search(&self, extent: Extent) -> Result<(), VolumeError> {
        let found = self.blocks.read().slice(extent);
        match found.extents().next() {
            None => Ok(()),
            Some(first) => Err(VolumeError::UnreadableBlocks {
                volume: self.volume,
                first: first.start,
                len_blocks: found.len_blocks(),
            }),
        }
    }

    /// Adds blocks, durably; returns those that exceed the limit and were not added.
    pub(crate) fn add(&self, blocks: &BlockSet) -> Result<BlockSet, VolumeError> {
        let _changing = self.changing.lock();
        let listed = self.blocks();
        let (mut new, mut left) = (blocks.clone(), BlockSet::new());
        new.subtract(&listed);
        let room = MAX_BLOCKS.saturating_sub(listed.len_blocks());
        if new.len_blocks() > room {
            let kept: BlockSet =
                new.blocks().take(room as usize).map(|block| Extent::new(block, 1)).collect();
            left = new;
            left.subtract(&kept);
            new = kept;
        }
        new.union_with(&listed);
        // Reads fail even if the list cannot be stored: no altered block is served.
        *self.blocks.write() = new.clone();
        self.is_any.store(!new.is_empty(), Ordering::Release);
        if new != listed {
            self.store(&new)?;
        }
        Ok(left)
    }

    /// Replaces the list, durably, with the result of a function.
    pub(crate) fn update(&self, change: impl FnOnce(&mut BlockSet)) -> Result<(), VolumeError> {
        let _changing = self.changing.lock();
        let listed = self.blocks();
        let mut new = listed.clone();
        change(&mut new);
        if new != listed {
            self.store(&new)?;
            self.is_any.store(!new.is_empty(), Ordering::Release);
            *self.blocks.write() = new;
        }
        Ok(())
    }

    /// Stores the list of the same layer of a clone, which has its own file.
    pub(crate) fn copy_to(&self, dir: &Path, volume: VolumeId) -> Result<(), VolumeError> {
        let copy = Self::new(dir, volume, self.file);
        let blocks = self.blocks();
        match blocks.is_empty() {
            true => Ok(()),
            false => copy.store(&blocks),
        }
    }

    fn store(&self, blocks: &BlockSet) -> Result<(), VolumeError> {
        if blocks.is_empty() {
            files::remove_if_exists(&self.path)?;
            return self.path.parent().map_or(Ok(()), files::sync_dir);
        }
        files::write_whole(&self.path, &self.encode(blocks))
    }

    fn encode(&self, blocks: &BlockSet) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&self.volume.as_u64().to_le_bytes());
        out.extend_from_slice(&self.file.0.to_le_bytes());
        assert!(out.len() == HEADER_BYTES, "the header has its length");
        out.extend_from_slice(&blocks.to_bytes());
        seal(out)
    }

    /// Decodes the file; the error is the failed check.
    fn decode(&self, bytes: &[u8]) -> Result<BlockSet, String> {
        let body = unseal(bytes).ok_or("checksum mismatch")?;
        let is_own = body.starts_with(MAGIC)
            && [half_at(body, 8), half_at(body, 12)] == [VERSION, 0]
            && [word_at(body, 16), word_at(body, 24)] == [self.volume.as_u64(), self.file.0];
        match body.get(HEADER_BYTES..) {
            Some(set) if is_own => BlockSet::from_bytes(set).map_err(|error| error.to_string()),
            _ => Err("header does not match the layer".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::BlockIndex;

    const VOLUME: VolumeId = VolumeId::from_u64(0x0102_0304);

    fn set_of(runs: &[(u64, u64)]) -> BlockSet {
        runs.iter().map(|&(start, len)| Extent::new(BlockIndex(start), len)).collect()
    }

    #[test]
    fn golden_file_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let golden = include_bytes!("../../tests/golden/layer-v1.damaged");
        let path = files::damaged_path(dir.path(), Epoch(5));
        let list = DamageList::new(dir.path(), VOLUME, Epoch(5));
        list.add(&set_of(&[(1, 3), (70_000, 1)])).unwrap();
        assert!(std::fs::read(&path).unwrap() == golden, "the file differs from tests/golden");
        let loaded = DamageList::load(dir.path(), VOLUME, Epoch(5)).unwrap().unwrap();
        assert_eq!(loaded.blocks(), set_of(&[(1, 3), (70_000, 1)]));
        for at in 0..golden.len() {
            let mut bad = golden.to_vec();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(DamageList::load(dir.path(), VOLUME, Epoch(5)).is_err(), "byte {at}");
        }
        std::fs::write(&path, golden).unwrap();
        assert!(DamageList::load(dir.path(), VOLUME, Epoch(6)).unwrap().is_none());
        assert!(DamageList::load(dir.path(), VolumeId::from_u64(1), Epoch(5)).is_err());
        list.update(|blocks| *blocks = BlockSet::new()).unwrap();
        assert!(!path.exists(), "an empty list has no file");
    }

    #[test]
    fn list_is_bounded_and_names_the_first_block_of_a_read() {
        let dir = tempfile::tempdir().unwrap();
        let list = DamageList::new(dir.path(), VOLUME, Epoch(5));
        assert!(list.check(0, 1 << 40).is_ok());
        assert!(list.add(&set_of(&[(10, MAX_BLOCKS - 2)])).unwrap().is_empty());
        let left = list.add(&set_of(&[(1, 1), (3, 1), (12, 4), (5, 2)])).unwrap();
        assert_eq!(left, set_of(&[(5, 2)]));
        assert_eq!(list.blocks().len_blocks(), MAX_BLOCKS);
        assert!(list.check(4 * 4096, 6 * 4096).is_ok());
        match list.check(4096 * 2 + 5, 4096 * 10) {
            Err(VolumeError::UnreadableBlocks { first, len_blocks, .. }) => {
                assert_eq!((first.0, len_blocks), (3, 4));
            }
            other => panic!("{other:?}"),
        }
    }
}
