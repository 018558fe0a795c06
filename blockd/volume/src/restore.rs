//! Target volume of a restore.
//!
//! The volume is built in a sibling of its final directory and becomes visible by a rename, so that a partial
//! restore is never opened as a volume. Restored data goes to the base layer, not the head: a restored volume
//! has no dirty blocks.

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    head::Head,
    head::volume_dir::OpenOptions,
    head::volume_dir::VolumeDir,
    io::files,
    io::reserve,
    io::storage,
    layer::data_files::DataFiles,
    layer::set::{LayerSet, SetIdentity},
    meta::{self, LayerEntry, Meta},
    open::{sibling, sync_parent},
    volume::Volume,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use parking_lot::Mutex;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const BASE: Epoch = Epoch(1);
const HEAD: Epoch = Epoch(2);

/// Target volume of a restore; initially all zeroes.
pub struct RestoreTarget {
    dir: PathBuf,
    building: PathBuf,
    id: VolumeId,
    size_bytes: u64,
    data: DataFiles,
    held: Mutex<BlockSet>,
}

impl RestoreTarget {
    /// Creates a target for `dir`; discards an earlier one.
    ///
    /// # Errors
    /// The size is not a positive multiple of 4096 up to 64 TiB, `dir` exists, or the filesystem fails.
    pub fn create(dir: &Path, id: VolumeId, size_bytes: u64) -> Result<Self, VolumeError> {
        meta::check_size(size_bytes).map_err(VolumeError::InvalidInput)?;
        if dir.exists() {
            return Err(VolumeError::Busy(format!("restore failed on {}: directory exists", dir.display())));
        }
        let building = Self::building_dir(dir);
        remove_tree(&building)?;
        storage::create_dir(&building).during("create", &building)?;
        let data = DataFiles::create(&files::data_path(&building, BASE), size_bytes)?;
        Ok(Self { dir: dir.to_owned(), building, id, size_bytes, data, held: Mutex::default() })
    }

    /// Reopens the target of an interrupted restore, with the blocks that it wrote and made durable with
    /// [`sync`](Self::sync) in `held` and its [`fingerprint`](Self::fingerprint). Returns `None` if there is
    /// no target, its files do not fit the size, or they are other files.
    ///
    /// # Errors
    /// The size is invalid, `dir` exists, `held` has blocks beyond the volume, or the filesystem fails.
    pub fn reopen(
        dir: &Path,
        id: VolumeId,
        size_bytes: u64,
        held: BlockSet,
        fingerprint: u64,
    ) -> Result<Option<Self>, VolumeError> {
        meta::check_size(size_bytes).map_err(VolumeError::InvalidInput)?;
        if dir.exists() {
            return Err(VolumeError::Busy(format!("restore failed on {}: directory exists", dir.display())));
        }
        if held.last().is_some_and(|last| last >= Extent::whole(size_bytes).end()) {
            return Err(VolumeError::InvalidInput(
                "resume of a restore failed: blocks are beyond the end of the volume".to_owned(),
            ));
        }
        let building = Self::building_dir(dir);
        if !building.exists() {
            return Ok(None);
        }
        let path = files::data_path(&building, BASE);
        match DataFiles::open(&path, size_bytes) {
            // A copy, or a file of another restore: its blocks are unknown.
            Ok(data) if data.fingerprint()? != fingerprint => {
                tracing::warn!(path = %path.display(), "the file is not that of the interrupted restore, which starts again");
                Ok(None)
            }
            Ok(data) => {
                let held = Mutex::new(held);
                Ok(Some(Self { dir: dir.to_owned(), building, id, size_bytes, data, held }))
            }
            // The earlier restore stopped before it created its files.
            Err(VolumeError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == VolumeErrorKind::Damaged => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns a fingerprint of the target's files, by which [`reopen`](Self::reopen) recognizes them.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn fingerprint(&self) -> Result<u64, VolumeError> {
        self.data.fingerprint()
    }

    /// Makes all written data durable.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn sync(&self) -> Result<(), VolumeError> {
        self.data.sync()
    }

    fn building_dir(dir: &Path) -> PathBuf {
        sibling(dir, "restoring")
    }

    /// Writes whole blocks from `start` on, from any thread and in any order.
    ///
    /// # Errors
    /// `data` is not a whole number of blocks or not inside the volume, or the disk is full or fails.
    pub fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> Result<(), VolumeError> {
        let len_blocks = data.len() as u64 / BLOCK_SIZE_BYTES;
        let end = start.0.checked_add(len_blocks);
        let inside = end.is_some_and(|end| end <= self.size_bytes / BLOCK_SIZE_BYTES);
        if !inside || !(data.len() as u64).is_multiple_of(BLOCK_SIZE_BYTES) {
            let message = format!(
                "restore failed on block {start}: {} bytes are not whole blocks inside the volume",
                data.len()
            );
            return Err(VolumeError::InvalidInput(message));
        }
        reserve::check_free("restore", &self.building)?;
        let extent = Extent::new(start, len_blocks);
        self.data.write(extent.offset_bytes(), data)?;
        self.held.lock().insert_extent(extent);
        Ok(())
    }

    /// Makes all data durable, turns the target into a volume, and opens it.
    ///
    /// # Errors
    /// The disk is full or fails; no volume exists then.
    pub fn finish(self) -> Result<Arc<Volume>, VolumeError> {
        self.data.sync()?;
        let mut held = self.held.into_inner();
        debug_assert!(held.last().is_none_or(|last| last < Extent::whole(self.size_bytes).end()));
        held.optimize();
        let base = LayerEntry::frozen(BASE, self.size_bytes);
        LayerSet { held, ..LayerSet::default() }.store(&self.building, SetIdentity::of(self.id, &base))?;
        let volume_dir = VolumeDir { path: &self.building, volume: self.id, size_bytes: self.size_bytes };
        drop(Head::create(volume_dir, HEAD)?);
        Meta::new(self.id, vec![LayerEntry::head(HEAD, self.size_bytes), base]).store(&self.building)?;
        storage::rename(&self.building, &self.dir).during("rename", &self.building)?;
        let opened = sync_parent(&self.dir).and_then(|()| Volume::open(&self.dir, &OpenOptions::default()));
        match &opened {
            Ok(volume) => {
                assert_eq!(volume.size_bytes(), self.size_bytes, "the size is that of the snapshot");
            }
            // The caller must be able to retry.
            Err(_) => drop(storage::rename(&self.dir, &self.building)),
        }
        opened
    }

    /// Discards the target.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn abandon(self) -> Result<(), VolumeError> {
        remove_tree(&self.building)
    }

    /// Discards the target of an earlier restore to `dir`, if any.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn discard(dir: &Path) -> Result<(), VolumeError> {
        remove_tree(&Self::building_dir(dir))
    }
}

fn remove_tree(dir: &Path) -> Result<(), VolumeError> {
    match storage::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.during("remove", dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_restore_is_resumed_with_its_blocks() {
        const SIZE_BYTES: u64 = 1 << 20;
        let parent = tempfile::tempdir().unwrap();
        let (dir, id) = (parent.path().join("7"), VolumeId::from_u64(7));
        assert!(RestoreTarget::reopen(&dir, id, SIZE_BYTES, BlockSet::new(), 0).unwrap().is_none());
        let target = RestoreTarget::create(&dir, id, SIZE_BYTES).unwrap();
        target.write_blocks(BlockIndex(3), &[3; 4096]).unwrap();
        target.sync().unwrap();
        let fingerprint = target.fingerprint().unwrap();
        drop(target);

        let held = |block, len| BlockSet::from_iter([Extent::new(BlockIndex(block), len)]);
        let reopen = |size_bytes, held| RestoreTarget::reopen(&dir, id, size_bytes, held, fingerprint);
        assert!(reopen(SIZE_BYTES, held(255, 2)).is_err());
        // The files have another size.
        assert!(reopen(2 * SIZE_BYTES, held(3, 1)).unwrap().is_none());
        let target = reopen(SIZE_BYTES, held(3, 1)).unwrap().unwrap();
        assert!(target.write_blocks(BlockIndex(255), &[9; 8192]).is_err());
        target.write_blocks(BlockIndex(9), &[9; 4096]).unwrap();
        let volume = target.finish().unwrap();
        let mut content = vec![0; SIZE_BYTES as usize];
        volume.read(0, &mut content).unwrap();
        let found: Vec<_> = (0..256).filter(|block| content[block * 4096] != 0).collect();
        assert_eq!(found, [3, 9]);
        assert_eq!((content[3 * 4096], content[9 * 4096]), (3, 9));
        assert!(reopen(SIZE_BYTES, held(3, 1)).is_err());
    }

    #[test]
    fn replaced_file_of_a_partial_restore_is_not_resumed() {
        const SIZE_BYTES: u64 = 1 << 20;
        let parent = tempfile::tempdir().unwrap();
        let (dir, id) = (parent.path().join("7"), VolumeId::from_u64(7));
        let target = RestoreTarget::create(&dir, id, SIZE_BYTES).unwrap();
        target.write_blocks(BlockIndex(3), &[3; 4096]).unwrap();
        target.sync().unwrap();
        let fingerprint = target.fingerprint().unwrap();
        drop(target);
        let held = || BlockSet::from_iter([Extent::new(BlockIndex(3), 1)]);
        let reopen = || RestoreTarget::reopen(&dir, id, SIZE_BYTES, held(), fingerprint);
        assert!(reopen().unwrap().is_some());
        let path = files::data_path(&RestoreTarget::building_dir(&dir), BASE);
        let copy = path.with_extension("copy");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        assert!(reopen().unwrap().is_none());
    }
}
