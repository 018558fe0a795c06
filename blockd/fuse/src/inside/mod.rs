//! Files inside an image: detection of filesystems and read access.
//!
//! Images are untrusted, as their volumes had arbitrary writers. A reader may fail, but it never writes,
//! never leaves the image, and bounds its memory and time.

mod ext;
mod found;
mod image_files;
mod large;
mod numbered;
pub mod partitions;

pub use found::{FoundFilesystem, filesystems};
pub use image_files::ImageFiles;
pub use numbered::{FileId, NamedFile};

pub use blockd_ext4::{FileKind, Xattr};
use blockd_extent::{BlockSource, DataRange};
use partitions::Partition;
use std::{io, ops::Range, sync::Arc, time::SystemTime};

/// Attributes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// File type.
    pub kind: FileKind,
    /// Inode number, equal for all hard links; 0 outside of a filesystem. Access by path adds the partition
    /// number in the high 32 bits.
    pub number: u64,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Allocated space, in bytes.
    pub allocated_bytes: u64,
    /// Permission bits with set-user-ID, set-group-ID and sticky bit (mask 07777).
    pub mode: u16,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Number of hard links.
    pub links: u32,
    /// Major and minor number of a block or character device.
    pub device: Option<(u32, u32)>,
    /// Last modification of the content, if known.
    pub modified: Option<SystemTime>,
    /// Last access, if known.
    pub accessed: Option<SystemTime>,
    /// Last change of the inode, if known.
    pub changed: Option<SystemTime>,
}

/// Entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// Name: any bytes except `/` and zero; never empty, `.` or `..`.
    pub name: Vec<u8>,
    /// Inode number; 0 outside of a filesystem.
    pub number: u32,
    /// Attributes; `None` if they are damaged.
    pub stat: Option<FileStat>,
}

/// Filesystem with access by inode numbers instead of paths.
pub trait NumberedFiles: Send + Sync {
    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// See [`FileTree::stat`].
    fn stat_of(&self, number: u32) -> io::Result<FileStat>;

    /// Looks up a name in a directory.
    ///
    /// # Errors
    /// The name does not exist, or leads to the directory itself or the root.
    fn lookup_in(&self, dir: u32, name: &[u8]) -> io::Result<u32>;

    /// Returns the entries of a directory, sorted by name. Entries that lead to the directory itself or to
    /// the root count as damaged.
    ///
    /// # Errors
    /// See [`FileTree::read_dir`].
    fn entries_of(&self, dir: u32) -> io::Result<Vec<FileEntry>>;

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// See [`FileTree::read_link`].
    fn link_of(&self, number: u32) -> io::Result<Vec<u8>>;

    /// Reads bytes of a regular file.
    ///
    /// # Errors
    /// See [`FileTree::read`].
    fn read_of(&self, number: u32, offset_bytes: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Returns the data range or hole of a regular file at `offset_bytes`.
    ///
    /// # Errors
    /// See [`FileTree::range_at`].
    fn range_of(&self, number: u32, offset_bytes: u64) -> io::Result<DataRange>;

    /// Returns the extended attributes of a file.
    ///
    /// # Errors
    /// See [`FileTree::xattrs`].
    fn xattrs_of(&self, number: u32) -> io::Result<Vec<Xattr>>;
}

/// Filesystem with access by paths. Paths begin with `/`; a symbolic link as the last component is not
/// followed.
pub trait FileTree: Send + Sync {
    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// The file does not exist, or the filesystem is damaged there.
    fn stat(&self, path: &[u8]) -> io::Result<FileStat>;

    /// Returns the entries of a directory, sorted by name.
    ///
    /// # Errors
    /// The file does not exist, is no directory, or the filesystem is damaged there.
    /// [`io::ErrorKind::InvalidInput`] if the directory has more than `max_entries` entries, before their
    /// inodes are read; [`io::ErrorKind::ResourceBusy`] if other large directories are being listed.
    fn read_dir(&self, path: &[u8], max_entries: usize) -> io::Result<Vec<FileEntry>>;

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// The file does not exist, is no symbolic link, or the filesystem is damaged there.
    fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>>;

    /// Reads bytes of a regular file from `offset_bytes` on, fewer than `len` only at its end.
    ///
    /// # Errors
    /// The file does not exist, is no regular file, or the filesystem is damaged there.
    fn read(&self, path: &[u8], offset_bytes: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Returns the data range or hole of a regular file at `offset_bytes`, which is inside the file.
    ///
    /// # Errors
    /// The file does not exist, is no regular file, or the filesystem is damaged there.
    fn range_at(&self, path: &[u8], offset_bytes: u64) -> io::Result<DataRange>;

    /// Returns the extended attributes of a file.
    ///
    /// # Errors
    /// The file does not exist, or the filesystem is damaged there.
    fn xattrs(&self, path: &[u8]) -> io::Result<Vec<Xattr>>;
}

/// Filesystem with access by paths and by inode numbers.
pub trait Files: FileTree + NumberedFiles {}

/// Content of an image or partition.
#[derive(Clone)]
pub enum Content {
    /// Files.
    Files(Arc<dyn Files>),
    /// No supported filesystem, and the reason, as a clause about the content.
    NoFiles(String),
}

/// Layout of an image.
#[derive(Clone)]
pub enum ImageLayout {
    /// No partition table.
    Whole(Content),
    /// Partitions.
    Parts(Vec<Partition>),
}

/// Partition as an image.
struct PartitionImage {
    image: Arc<dyn BlockSource>,
    part: Partition,
}

impl BlockSource for PartitionImage {
    fn size_bytes(&self) -> u64 {
        self.part.len_bytes
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset_bytes.checked_add(buf.len() as u64) {
            Some(end) if end <= self.part.len_bytes => {
                self.image.read_at(self.part.offset_bytes + offset_bytes, buf)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn range_at(&self, offset_bytes: u64) -> io::Result<DataRange> {
        let range = self.image.range_at(self.part.offset_bytes + offset_bytes)?;
        let end_bytes = (range.end_bytes - self.part.offset_bytes).min(self.part.len_bytes);
        Ok(DataRange { end_bytes, ..range })
    }

    fn will_need(&self, ranges: &[Range<u64>]) {
        let start = self.part.offset_bytes;
        let inside = ranges.iter().filter(|range| range.end <= self.part.len_bytes);
        let of_image: Vec<_> = inside.map(|range| start + range.start..start + range.end).collect();
        self.image.will_need(&of_image);
    }
}

/// Inspects the content of an image. A filesystem at the start of the image takes precedence over a partition
/// table.
///
/// # Errors
/// The image cannot be read.
pub fn inspect(image: &Arc<dyn BlockSource>) -> io::Result<ImageLayout> {
    if !ext::probe(image)? {
        let parts = partitions::partitions(&**image)?;
        if !parts.is_empty() {
            return Ok(ImageLayout::Parts(parts));
        }
    }
    Ok(ImageLayout::Whole(content(image.clone())?))
}

/// Inspects the content of a partition.
///
/// # Errors
/// The image cannot be read.
pub fn inspect_partition(image: &Arc<dyn BlockSource>, part: Partition) -> io::Result<Content> {
    content(Arc::new(PartitionImage { image: image.clone(), part }))
}

/// Returns the byte ranges of the metadata in an image's filesystems, which a mount reads first; at most
/// `max_ranges` per filesystem. Unsupported and damaged filesystems are skipped.
///
/// # Errors
/// The image cannot be read.
pub fn metadata(image: &Arc<dyn BlockSource>, max_ranges: usize) -> io::Result<Vec<Range<u64>>> {
    let found = |image: Arc<dyn BlockSource>| match ext::probe(&image)? {
        true => ext::metadata(image, max_ranges).or_else(|error| match is_about_content(&error) {
            true => Ok(Vec::new()),
            false => Err(error),
        }),
        false => Ok(Vec::new()),
    };
    let whole = found(image.clone())?;
    if !whole.is_empty() {
        return Ok(whole);
    }
    let mut ranges = Vec::new();
    for part in partitions::partitions(&**image)? {
        let start = part.offset_bytes;
        let inside = found(Arc::new(PartitionImage { image: image.clone(), part }))?;
        ranges.extend(inside.into_iter().map(|range| start + range.start..start + range.end));
    }
    Ok(ranges)
}

/// Returns the number of files and directories in an image's filesystems; `None` without a supported one.
/// Damaged and unsupported ones are skipped. Changes that are only in the journal are not counted.
///
/// # Errors
/// The image cannot be read.
pub fn count_files(image: &Arc<dyn BlockSource>) -> io::Result<Option<u64>> {
    let found = |image: Arc<dyn BlockSource>| match ext::probe(&image)? {
        true => ext::count_files(image).map(Some).or_else(|error| match is_about_content(&error) {
            true => Ok(None),
            false => Err(error),
        }),
        false => Ok(None),
    };
    if ext::probe(image)? {
        return found(Arc::clone(image));
    }
    let mut count = None;
    for part in partitions::partitions(&**image)? {
        let files = found(Arc::new(PartitionImage { image: Arc::clone(image), part }))?;
        count = files.map(|files| count.unwrap_or(0) + files).or(count);
    }
    Ok(count)
}

fn content(image: Arc<dyn BlockSource>) -> io::Result<Content> {
    if ext::probe(&image)? {
        return Ok(match ext::open(image) {
            Ok(tree) => Content::Files(tree),
            Err(error) if is_about_content(&error) => {
                Content::NoFiles(format!("its ext2, ext3 or ext4 filesystem cannot be read: {error}"))
            }
            Err(error) => return Err(error),
        });
    }
    let reason = match other_kind(&*image)? {
        Some(kind) => format!("it is {kind}; only files of ext2, ext3 and ext4 can be read"),
        None => "it has no ext2, ext3 or ext4 filesystem".into(),
    };
    Ok(Content::NoFiles(reason))
}

/// Returns true if the content of the image caused the error, not a read of it.
fn is_about_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Unsupported)
}

/// Returns true if the store of the image does not serve reads.
fn is_outage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::NotConnected)
}

/// Kind of XFS.
const XFS: &str = "an XFS filesystem";

/// Returns the kind of unsupported content, by its magic number.
fn other_kind(image: &dyn BlockSource) -> io::Result<Option<&'static str>> {
    let kinds: [(u64, &[u8], &str); 7] = [
        (0, b"XFSB", XFS),
        (65_536 + 64, b"_BHRfS_M", "a btrfs filesystem"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (512, b"LABELONE", "a physical volume of LVM"),
        (4096 - 10, b"SWAPSPACE2", "swap space"),
        (3, b"NTFS    ", "an NTFS filesystem"),
        (1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    ];
    for (at, magic, name) in kinds {
        if at + magic.len() as u64 > image.size_bytes() {
            continue;
        }
        let mut found = vec![0; magic.len()];
        image.read_at(at, &mut found)?;
        if found == magic {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
