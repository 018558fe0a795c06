//! Data of a layer, with fetches of missing blocks by a lazy base.

use crate::{
    error::VolumeError,
    layer::damage::DamageList,
    layer::data_files::{DataFiles, ShareOutcome},
    layer::sums::BlockSums,
    lazy::base::LazyBase,
};
use blockd_extent::{BlockSet, Extent};
use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

/// Reads part of a range into a buffer; returns false if it would block.
type ReadFn<'a> = dyn FnMut(u64, &mut [u8]) -> Result<bool, VolumeError> + 'a;

/// Data files of a layer. If the layer is lazy, its base fills them on read.
pub(crate) struct LayerData {
    files: DataFiles,
    lazy: Option<Arc<LazyBase>>,
    /// Checksums of the blocks, once the layer is frozen and in use by a view or a merge.
    sums: OnceLock<Arc<BlockSums>>,
    /// Damaged blocks; unset in a layer that never had one.
    damage: OnceLock<Arc<DamageList>>,
}

impl Deref for LayerData {
    type Target = DataFiles;

    fn deref(&self) -> &DataFiles {
        &self.files
    }
}

impl From<DataFiles> for LayerData {
    fn from(files: DataFiles) -> Self {
        Self { files, lazy: None, sums: OnceLock::new(), damage: OnceLock::new() }
    }
}

impl LayerData {
    pub(crate) fn lazy_over(files: DataFiles, base: Arc<LazyBase>) -> Self {
        Self { files, lazy: Some(base), sums: OnceLock::new(), damage: OnceLock::new() }
    }

    /// Uses the checksums of other open files of the same layer.
    pub(crate) fn with_sums(self, sums: Arc<BlockSums>) -> Self {
        Self { sums: OnceLock::from(sums), ..self }
    }

    /// Returns the checksums of a frozen layer's blocks, if a view or a merge uses the layer.
    pub(crate) fn sums(&self) -> Option<&Arc<BlockSums>> {
        self.sums.get()
    }

    /// Returns the checksums of a frozen layer's blocks; `sums` on first use.
    pub(crate) fn sums_or_init(&self, sums: impl FnOnce() -> BlockSums) -> &Arc<BlockSums> {
        self.sums.get_or_init(|| Arc::new(sums()))
    }

    /// Uses the list of damaged blocks of other open files of the same layer, or of its file.
    pub(crate) fn with_damage(self, damage: Arc<DamageList>) -> Self {
        Self { damage: OnceLock::from(damage), ..self }
    }

    /// Returns the list of damaged blocks; `damage` on first use.
    pub(crate) fn damage_or_init(&self, damage: impl FnOnce() -> DamageList) -> &Arc<DamageList> {
        self.damage.get_or_init(|| Arc::new(damage()))
    }

    /// Returns the list of damaged blocks, if the layer ever had one.
    pub(crate) fn damage(&self) -> Option<&Arc<DamageList>> {
        self.damage.get()
    }

    /// Returns the damaged blocks.
    pub(crate) fn damaged_blocks(&self) -> BlockSet {
        self.damage.get().map_or_else(BlockSet::new, |damage| damage.blocks())
    }

    /// Returns an error if a range has a damaged block.
    #[inline]
    fn check_damage(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        match self.damage.get() {
            Some(damage) => damage.check(offset_bytes, len_bytes),
            None => Ok(()),
        }
    }

    /// Returns the data files, for reads and writes regardless of damage.
    pub(crate) fn files(&self) -> &DataFiles {
        &self.files
    }

    /// Returns the lazy base.
    pub(crate) fn lazy(&self) -> Option<&Arc<LazyBase>> {
        self.lazy.as_ref()
    }

    /// Fetches the missing blocks of a range and waits for them; required before reads that bypass this type.
    ///
    /// # Errors
    /// The range has a damaged block, or the fetch fails.
    pub(crate) fn fetch_extents(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        self.check_damage(offset_bytes, len_bytes)?;
        match &self.lazy {
            Some(lazy) if !lazy.has(offset_bytes, len_bytes) => lazy.fetch_bytes(offset_bytes, len_bytes),
            _ => Ok(()),
        }
    }

    /// Reads a range; fetches missing blocks first.
    pub(crate) fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.fetch_extents(offset_bytes, buf.len() as u64)?;
        self.read_skipping_zeroes(offset_bytes, buf, &mut |at, part| {
            self.files.read(at, part).map(|()| true)
        })?;
        Ok(())
    }

    /// Reads from the page cache; returns false if disk I/O or a fetch is needed.
    pub(crate) fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
        if self.lazy.as_ref().is_some_and(|lazy| !lazy.has(offset_bytes, buf.len() as u64)) {
            return Ok(false);
        }
        self.check_damage(offset_bytes, buf.len() as u64)?;
        self.read_skipping_zeroes(offset_bytes, buf, &mut |at, part| self.files.try_read(at, part))
    }

    /// Fills known zeroes and reads the rest of a range; returns false if a call of `read` does. Reading a
    /// hole would allocate pages in the page cache.
    fn read_skipping_zeroes(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
        read: &mut ReadFn<'_>,
    ) -> Result<bool, VolumeError> {
        let Some(lazy) = self.lazy.as_ref().filter(|lazy| !lazy.is_complete()) else {
            return read(offset_bytes, buf);
        };
        let end = offset_bytes + buf.len() as u64;
        let mut is_read = true;
        lazy.split_zeroes(Extent::touching(offset_bytes, buf.len() as u64), &mut |extent, is_zero| {
            // The first and last block can be partial.
            let from = extent.offset_bytes().max(offset_bytes);
            let to = (extent.offset_bytes() + extent.len_bytes()).min(end);
            debug_assert!(offset_bytes <= from && from < to && to <= end, "parts are inside the range");
            let part = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
            if is_zero {
                part.fill(0);
            } else {
                is_read = is_read && read(from, part)?;
            }
            Ok::<(), VolumeError>(())
        })?;
        Ok(is_read)
    }

    /// Shares a range of another layer's files.
    pub(crate) fn share_from(
        &self,
        from: &Self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<ShareOutcome, VolumeError> {
        match from.lazy {
            // Missing blocks must be fetched, which a copy does.
            Some(_) => Ok(ShareOutcome::MustCopy),
            None => self.files.share_from(&from.files, offset_bytes, len_bytes),
        }
    }

    /// Starts readahead of a range: fetches missing blocks in the background and advises the kernel.
    pub(crate) fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        if let Some(lazy) = &self.lazy {
            lazy.fetch_soon(Extent::touching(offset_bytes, len_bytes));
        }
        self.files.will_need(offset_bytes, len_bytes)
    }
}
