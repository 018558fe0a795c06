//! Filesystems of an image, for checks of their consistency.

use super::{PartitionImage, XFS, ext, other_kind, partitions};
use blockd_ext4::{ExtError, Filesystem};
use blockd_extent::BlockSource;
use std::{fmt, io, sync::Arc};

/// Offset of `sb_logstart` in the superblock of XFS, in bytes.
const XFS_LOG_START_AT: u64 = 48;

/// Filesystem, or other known content, of an image or partition.
#[derive(Clone)]
pub struct FoundFilesystem {
    /// Number of the partition; `None` for a whole image.
    pub partition: Option<u32>,
    /// Kind of other content than ext2, ext3 or ext4, such as `an XFS filesystem`.
    pub other: Option<&'static str>,
    /// The journal is on another device, which the image lacks: a mount would use a device of this host.
    pub has_external_journal: bool,
    offset_bytes: u64,
    image: Arc<dyn BlockSource>,
}

impl fmt::Debug for FoundFilesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundFilesystem")
            .field("partition", &self.partition)
            .field("other", &self.other)
            .field("has_external_journal", &self.has_external_journal)
            .finish_non_exhaustive()
    }
}

impl FoundFilesystem {
    /// Opens an ext2, ext3 or ext4 filesystem with its journal replayed.
    ///
    /// # Errors
    /// It is damaged or unsupported, or the image cannot be read.
    pub fn open(&self) -> Result<Filesystem, ExtError> {
        Filesystem::open(Arc::new(ext::Source(Arc::clone(&self.image))))
    }

    /// Returns the start of the partition in the image, in bytes; 0 for a whole image.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Returns the image or partition.
    pub fn image(&self) -> &Arc<dyn BlockSource> {
        &self.image
    }

    /// Returns the type for `mount -t`, for a filesystem that may be mounted beside its origin, unlike btrfs.
    pub fn mount_type(&self) -> Option<&'static str> {
        match self.other {
            None => Some("ext4"),
            Some(XFS) => Some("xfs"),
            Some(_) => None,
        }
    }
}

/// Returns true if the log of an XFS filesystem is on another device: `sb_logstart` is 0.
fn has_external_log(image: &dyn BlockSource) -> io::Result<bool> {
    let mut log_start = [0; 8];
    image.read_at(XFS_LOG_START_AT, &mut log_start)?;
    Ok(log_start == [0; 8])
}

/// Returns the known content of an image or, if it has a partition table, of each partition. Empty and
/// unknown ones are omitted.
///
/// # Errors
/// The image cannot be read.
pub fn filesystems(image: &Arc<dyn BlockSource>) -> io::Result<Vec<FoundFilesystem>> {
    let found =
        |image: Arc<dyn BlockSource>, partition, offset_bytes| -> io::Result<Option<FoundFilesystem>> {
            let other = match ext::probe(&image)? {
                true => None,
                false => match other_kind(&*image)? {
                    Some(kind) => Some(kind),
                    None => return Ok(None),
                },
            };
            let has_external_journal = match other {
                Some(XFS) => has_external_log(&*image)?,
                _ => ext::has_external_journal(&image)?,
            };
            Ok(Some(FoundFilesystem { partition, other, offset_bytes, has_external_journal, image }))
        };
    if let Some(whole) = found(Arc::clone(image), None, 0)? {
        return Ok(vec![whole]);
    }
    let mut all = Vec::new();
    for part in partitions::partitions(&**image)? {
        let whole = Arc::clone(image);
        let partition = Arc::new(PartitionImage { image: whole, part });
        all.extend(found(partition, Some(part.number), part.offset_bytes)?);
    }
    Ok(all)
}
