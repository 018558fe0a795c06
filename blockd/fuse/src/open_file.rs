//! Open files: reads and seeks.

use crate::{
    dirs::OpenDir,
    inside::{FileId, ImageFiles},
};
use blockd_extent::{BlockSource, DataRange};
use rustix::io::Errno as SystemError;
use std::{io, sync::Arc};

/// Values of `whence` of `lseek`.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// Maximum number of ranges examined by a seek.
const MAX_RANGES: usize = 1 << 16;

/// Open file or directory.
pub(crate) enum Open {
    Image(Arc<dyn BlockSource>),
    File { files: Arc<ImageFiles>, file: FileId, size_bytes: u64 },
    Text(Vec<u8>),
    Dir(OpenDir),
}

/// Resizes a buffer to the length of a read, which ends at the end of the image.
fn resize_for(image: &dyn BlockSource, offset_bytes: u64, len: usize, buf: &mut Vec<u8>) {
    let left = image.size_bytes().saturating_sub(offset_bytes);
    buf.resize(len.min(usize::try_from(left).unwrap_or(len)), 0);
}

impl Open {
    /// Reads without waiting; returns false if that is not possible.
    pub fn try_read(&self, offset_bytes: u64, len: usize, buf: &mut Vec<u8>) -> io::Result<bool> {
        let Open::Image(image) = self else { return Ok(false) };
        resize_for(&**image, offset_bytes, len, buf);
        image.try_read_at(offset_bytes, buf)
    }

    /// Reads into `buf` and sets its length. The old content of `buf` is not cleared first, which would take
    /// as long as the copy.
    pub fn read(&self, offset_bytes: u64, len: usize, buf: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Open::Image(image) => {
                resize_for(&**image, offset_bytes, len, buf);
                image.read_at(offset_bytes, buf)
            }
            Open::File { files, file, .. } => {
                *buf = files.read_of(*file, offset_bytes, len)?;
                Ok(())
            }
            Open::Text(text) => {
                let from = usize::try_from(offset_bytes).unwrap_or(text.len()).min(text.len());
                buf.clear();
                buf.extend_from_slice(&text[from..text.len().min(from.saturating_add(len))]);
                Ok(())
            }
            Open::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Seeks like `lseek` with `SEEK_DATA` or `SEEK_HOLE`.
    pub fn seek(&self, offset: i64, whence: i32) -> io::Result<i64> {
        let beyond = || io::Error::from(SystemError::NXIO);
        let at = u64::try_from(offset).map_err(|_| beyond())?;
        let size = match self {
            Open::Image(image) => image.size_bytes(),
            Open::File { size_bytes, .. } => *size_bytes,
            Open::Text(text) => text.len() as u64,
            Open::Dir(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if at >= size {
            return Err(beyond());
        }
        let found = match (whence, self) {
            (SEEK_DATA | SEEK_HOLE, Open::Image(image)) => {
                seek_range(size, at, whence == SEEK_DATA, |at| image.range_at(at))?
            }
            (SEEK_DATA | SEEK_HOLE, Open::File { files, file, .. }) => {
                seek_range(size, at, whence == SEEK_DATA, |at| files.range_of(*file, at))?
            }
            (SEEK_DATA, _) => Some(at),
            (SEEK_HOLE, _) => Some(size),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        i64::try_from(found.ok_or_else(beyond)?).map_err(|_| beyond())
    }
}

/// Returns the offset of the first data or hole from `at` on.
fn seek_range(
    size: u64,
    mut at: u64,
    data: bool,
    range_at: impl Fn(u64) -> io::Result<DataRange>,
) -> io::Result<Option<u64>> {
    for _ in 0..MAX_RANGES {
        if at >= size {
            // A file ends with an implicit hole.
            return Ok((!data).then_some(size));
        }
        let range = range_at(at)?;
        if range.is_data == data {
            return Ok(Some(at));
        }
        at = range.end_bytes.max(at + 1);
    }
    // At the limit the rest counts as data, which `lseek` permits for holes.
    Ok(Some(if data { at } else { size }))
}
