//! Reads of open files.

use crate::{
    dirs::Listed,
    inside::{FileId, ImageFiles},
};
use blockd_extent::{BlockSource, DataRange};
use rustix::io::Errno as SystemError;
use std::{io, sync::Arc};

/// Names that are used for `lseek`.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
/// After how many runs a search for data or a hole gives up, and says that there is data.
const MAX_RUNS: usize = 1 << 16;

/// Something that is open.
pub(crate) enum Open {
    Image(Arc<dyn BlockSource>),
    File { files: Arc<ImageFiles>, file: FileId, size_bytes: u64 },
    Text(Vec<u8>),
    Dir(Listed),
}

/// Cuts a read off at the end of an image.
fn image_part(image: &dyn BlockSource, offset_bytes: u64, len: usize, buf: &mut Vec<u8>) {
    let left = image.size_bytes().saturating_sub(offset_bytes);
    buf.resize(len.min(usize::try_from(left).unwrap_or(len)), 0);
}

impl Open {
    /// Reads from memory only; false if that is not possible.
    pub fn try_read(&self, offset_bytes: u64, len: usize, buf: &mut Vec<u8>) -> io::Result<bool> {
        let Open::Image(image) = self else { return Ok(false) };
        image_part(&**image, offset_bytes, len, buf);
        image.try_read_at(offset_bytes, buf)
    }

    /// Reads into a buffer that may hold what was read before: to clear it each time takes as long as to fill
    /// it.
    pub fn read(&self, offset_bytes: u64, len: usize, buf: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Open::Image(image) => {
                image_part(&**image, offset_bytes, len, buf);
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

    /// Answers `lseek`.
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

/// The first byte from `at` on that is data, or is none.
fn seek_range(
    size: u64,
    mut at: u64,
    data: bool,
    range_at: impl Fn(u64) -> io::Result<DataRange>,
) -> io::Result<Option<u64>> {
    for _ in 0..MAX_RUNS {
        if at >= size {
            // Behind the end there is a hole, and no data.
            return Ok((!data).then_some(size));
        }
        let run = range_at(at)?;
        if run.is_data == data {
            return Ok(Some(at));
        }
        at = run.end_bytes.max(at + 1);
    }
    // To say that there is data where there may be none is allowed.
    Ok(Some(if data { at } else { size }))
}
