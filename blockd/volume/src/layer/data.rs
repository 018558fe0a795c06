//! Data of a layer; a lazy base fetches the blocks that its files lack.

use crate::{
    error::VolumeError,
    layer::data_files::{DataFiles, Shared},
    lazy::base::LazyBase,
};
use blockd_extent::Extent;
use std::{ops::Deref, sync::Arc};

/// Reads part of a range into a buffer; false if it would block.
type ReadPart<'a> = dyn FnMut(u64, &mut [u8]) -> Result<bool, VolumeError> + 'a;

/// Data files of a layer, and the base that fills them on read if the layer is lazy.
pub(crate) struct LayerData {
    files: DataFiles,
    lazy: Option<Arc<LazyBase>>,
}

impl Deref for LayerData {
    type Target = DataFiles;

    fn deref(&self) -> &DataFiles {
        &self.files
    }
}

impl From<DataFiles> for LayerData {
    fn from(files: DataFiles) -> Self {
        Self { files, lazy: None }
    }
}

impl LayerData {
    pub(crate) fn lazy_over(files: DataFiles, base: Arc<LazyBase>) -> Self {
        Self { files, lazy: Some(base) }
    }

    /// Returns the lazy base.
    pub(crate) fn lazy(&self) -> Option<&Arc<LazyBase>> {
        self.lazy.as_ref()
    }

    /// Fetches a range and waits for it; needed before reads that bypass this type.
    pub(crate) fn fetch_extents(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        match &self.lazy {
            Some(lazy) if !lazy.has(offset_bytes, len_bytes) => lazy.fetch_bytes(offset_bytes, len_bytes),
            _ => Ok(()),
        }
    }

    /// Reads a range; fetches missing blocks first.
    pub(crate) fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.fetch_extents(offset_bytes, buf.len() as u64)?;
        self.but_zeroes(offset_bytes, buf, &mut |at, part| self.files.read(at, part).map(|()| true))?;
        Ok(())
    }

    /// Reads from the page cache; returns false if the disk would be needed.
    pub(crate) fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
        if self.lazy.as_ref().is_some_and(|lazy| !lazy.has(offset_bytes, buf.len() as u64)) {
            return Ok(false);
        }
        self.but_zeroes(offset_bytes, buf, &mut |at, part| self.files.try_read(at, part))
    }

    /// Reads a range except known zeroes; returns false once `read` does. Reading a hole would allocate page
    /// cache pages.
    fn but_zeroes(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
        read: &mut ReadPart<'_>,
    ) -> Result<bool, VolumeError> {
        let Some(lazy) = self.lazy.as_ref().filter(|lazy| !lazy.is_complete()) else {
            return read(offset_bytes, buf);
        };
        let end = offset_bytes + buf.len() as u64;
        let mut is_read = true;
        lazy.cut(Extent::touching(offset_bytes, buf.len() as u64), &mut |run, is_zero| {
            // The first and last block can be partial.
            let from = run.offset_bytes().max(offset_bytes);
            let to = (run.offset_bytes() + run.len_bytes()).min(end);
            debug_assert!(offset_bytes <= from && from < to && to <= end, "parts lie in the range");
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
    ) -> Result<Shared, VolumeError> {
        match from.lazy {
            // A copy waits for missing blocks.
            Some(_) => Ok(Shared::NotThis),
            None => self.files.share_from(&from.files, offset_bytes, len_bytes),
        }
    }

    /// Asks the kernel to read a range ahead; it may decline.
    pub(crate) fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        if let Some(lazy) = &self.lazy {
            lazy.fetch_soon(Extent::touching(offset_bytes, len_bytes));
        }
        self.files.will_need(offset_bytes, len_bytes)
    }
}
