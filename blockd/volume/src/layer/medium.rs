//! Reads of a layer's files from the medium instead of the page cache, which hides damage of cached blocks.

use crate::{
    error::{IoContext, VolumeError},
    layer::data_files::{DataFiles, FilePart},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use rustix::io::Errno;
use std::{
    collections::HashMap,
    num::NonZeroU64,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

/// Alignment that each disk accepts.
const ALIGN_BYTES: usize = 4096;

/// Reader of one layer; owns an aligned buffer.
pub(crate) struct MediumReader<'a> {
    files: &'a DataFiles,
    /// Handles without page cache, by the layer's own; `None` where the filesystem has none.
    direct: HashMap<i32, Option<std::fs::File>>,
    buf: Vec<u8>,
    /// Start of the aligned part of the buffer.
    at: usize,
}

/// Read blocks of an extent.
pub(crate) struct MediumRead<'a> {
    /// Content of the extent; unspecified in unreadable blocks.
    pub(crate) data: &'a [u8],
    /// Blocks with an error of the medium.
    pub(crate) unreadable: BlockSet,
}

impl<'a> MediumReader<'a> {
    /// Creates a reader of extents of up to `max_blocks` blocks.
    pub(crate) fn new(files: &'a DataFiles, max_blocks: u64) -> Self {
        let buf = vec![0; (max_blocks * BLOCK_SIZE_BYTES) as usize + ALIGN_BYTES];
        let at = buf.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Self { files, direct: HashMap::new(), buf, at }
    }

    /// Reads an extent. A failed read is repeated block by block.
    ///
    /// # Errors
    /// The read fails, but not by an error of the medium.
    pub(crate) fn read(&mut self, extent: Extent) -> Result<MediumRead<'_>, VolumeError> {
        let mut unreadable = BlockSet::new();
        if !self.read_extent(extent, 0)? {
            for (number, block) in (extent.start.0..extent.end().0).enumerate() {
                let one = Extent::new(BlockIndex(block), 1);
                if !self.read_extent(one, number * BLOCK_SIZE_BYTES as usize)? {
                    unreadable.insert_extent(one);
                }
            }
        }
        Ok(MediumRead { data: &self.buf[self.at..][..extent.len_bytes() as usize], unreadable })
    }

    /// Reads an extent to a position of the buffer; returns false after an error of the medium.
    fn read_extent(&mut self, extent: Extent, to: usize) -> Result<bool, VolumeError> {
        let buf = &mut self.buf[self.at + to..][..extent.len_bytes() as usize];
        let mut rest = buf;
        for part in self.files.parts(extent.offset_bytes(), extent.len_bytes()) {
            let (now, after) = rest.split_at_mut(part.len_bytes as usize);
            let direct = self.direct.entry(part.file.as_raw_fd()).or_insert_with(|| part.file.open_direct());
            match read_part(&part, direct, now) {
                Err(error) if is_of_medium(&error) => return Ok(false),
                other => other.during("read", part.path)?,
            }
            rest = after;
        }
        assert!(rest.is_empty(), "each byte of a read has a file");
        Ok(true)
    }
}

fn read_part(part: &FilePart<'_>, direct: &mut Option<std::fs::File>, buf: &mut [u8]) -> std::io::Result<()> {
    part.file.before_read()?;
    if let Some(file) = direct {
        match file.read_exact_at(buf, part.offset_bytes) {
            // A disk or filesystem with another alignment.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => *direct = None,
            other => return other,
        }
    }
    // Pages that were cached before are those of guests.
    if part.file.read_cached_at(buf, part.offset_bytes) == Ok(buf.len()) {
        return Ok(());
    }
    part.file.read_exact_at(buf, part.offset_bytes)?;
    part.file.drop_cache(part.offset_bytes, NonZeroU64::new(part.len_bytes))
}

/// Returns true for an error of the medium, or of the filesystem's checksum of a block.
fn is_of_medium(error: &std::io::Error) -> bool {
    let medium = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::BADMSG, Errno::UCLEAN, Errno::REMOTEIO];
    medium.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
