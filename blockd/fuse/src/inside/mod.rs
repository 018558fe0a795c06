//! Files inside an image: detection and reading of filesystems.
//!
//! Images are untrusted, as their volumes had arbitrary writers. Readers may fail, but never write, never
//! leave the image, and keep their limits of memory and time.

mod ext;
mod image_files;
mod large;
mod numbered;
pub mod partitions;

pub use image_files::ImageFiles;
pub use numbered::{FileId, NamedFile};

use blockd_extent::{BlockSource, DataRange};
use partitions::Partition;
use std::{io, ops::Range, sync::Arc, time::SystemTime};

/// File type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device with blocks.
    BlockDevice,
    /// A device with characters.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// File type.
    pub kind: FileKind,
    /// Its number in its filesystem, which all its names have in common; 0 if it is in none. Where an image
    /// has partitions, that of its partition stands above the lowest 32 bits.
    pub number: u64,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Allocated space, in bytes.
    pub allocated_bytes: u64,
    /// The permission bits, with those above them (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
    /// Number of links.
    pub links: u32,
    /// The device that it stands for, as major and minor number, if it is a device node.
    pub device: Option<(u32, u32)>,
    /// When its content was changed, if that is known.
    pub modified: Option<SystemTime>,
    /// When it was read, if that is known.
    pub accessed: Option<SystemTime>,
    /// When it was changed, content or not, if that is known.
    pub changed: Option<SystemTime>,
}

/// An extended attribute of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileXattr {
    /// Its name with what it begins with, such as `user.comment`; no zero byte is in it.
    pub name: Vec<u8>,
    /// Its value, as the kernel would give it.
    pub value: Vec<u8>,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// Its name: any bytes but `/` and zero, never `.` or `..`.
    pub name: Vec<u8>,
    /// The number of what it is the name of.
    pub number: u32,
    /// Attributes; `None` if they are damaged.
    pub stat: Option<FileStat>,
}

/// Filesystem accessed by file numbers instead of paths.
pub trait NumberedFiles: Send + Sync {
    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// See [`FileTree::stat`], here and below.
    fn stat_of(&self, number: u32) -> io::Result<FileStat>;

    /// Looks up a name in a directory.
    ///
    /// # Errors
    /// It does not exist, or is part of a loop.
    fn lookup_in(&self, dir: u32, name: &[u8]) -> io::Result<u32>;

    /// The entries of a directory, sorted by name. Those that lead to itself or to the root are damaged.
    ///
    /// # Errors
    /// As [`FileTree::read_dir`].
    fn entries_of(&self, dir: u32) -> io::Result<Vec<FileEntry>>;

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// See [`FileTree::read_link`].
    fn link_of(&self, number: u32) -> io::Result<Vec<u8>>;

    /// Bytes of a regular file.
    ///
    /// # Errors
    /// As [`FileTree::read`].
    fn read_of(&self, number: u32, offset_bytes: u64, len: usize) -> io::Result<Vec<u8>>;

    /// A run of a regular file.
    ///
    /// # Errors
    /// As [`FileTree::range_at`].
    fn range_of(&self, number: u32, offset_bytes: u64) -> io::Result<DataRange>;

    /// Extended attributes.
    ///
    /// # Errors
    /// As [`FileTree::xattrs`].
    fn xattrs_of(&self, number: u32) -> io::Result<Vec<FileXattr>>;
}

/// A filesystem that is open for reading. Paths begin with `/`, and their last parts are not followed if they
/// are links.
pub trait FileTree: Send + Sync {
    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// It does not exist, or the filesystem is damaged there.
    fn stat(&self, path: &[u8]) -> io::Result<FileStat>;

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// It is not there, is no directory, or the filesystem is damaged there; [`io::ErrorKind::InvalidInput`]
    /// if it has more than `max_entries`, before its entries are looked at; [`io::ErrorKind::ResourceBusy`]
    /// if other large directories are listed.
    fn read_dir(&self, path: &[u8], max_entries: usize) -> io::Result<Vec<FileEntry>>;

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// It does not exist, is no link, or the filesystem is damaged there.
    fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>>;

    /// The bytes of a regular file from `offset_bytes` on, fewer than `len` only at its end.
    ///
    /// # Errors
    /// It is not there, is no regular file, or the filesystem is damaged there.
    fn read(&self, path: &[u8], offset_bytes: u64, len: usize) -> io::Result<Vec<u8>>;

    /// The run of a regular file that holds the byte at `offset_bytes`, which lies inside.
    ///
    /// # Errors
    /// It is not there, is no regular file, or the filesystem is damaged there.
    fn range_at(&self, path: &[u8], offset_bytes: u64) -> io::Result<DataRange>;

    /// The extended attributes of a file.
    ///
    /// # Errors
    /// It is not there, or the filesystem is damaged there.
    fn xattrs(&self, path: &[u8]) -> io::Result<Vec<FileXattr>>;
}

/// A filesystem that can be asked both ways.
pub trait Files: FileTree + NumberedFiles {}

/// Content of an image or partition.
#[derive(Clone)]
pub enum Content {
    /// Files.
    Files(Arc<dyn Files>),
    /// Nothing that is shown as files, and why.
    Nothing(String),
}

/// Content of an image.
#[derive(Clone)]
pub enum Inside {
    /// A filesystem, or nothing, without partitions.
    Whole(Content),
    /// Partitions.
    Parts(Vec<Partition>),
}

/// A part of an image as an image.
struct Part {
    image: Arc<dyn BlockSource>,
    part: Partition,
}

impl BlockSource for Part {
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
        let run = self.image.range_at(self.part.offset_bytes + offset_bytes)?;
        let end_bytes = (run.end_bytes - self.part.offset_bytes).min(self.part.len_bytes);
        Ok(DataRange { end_bytes, ..run })
    }
}

/// Looks at what an image holds. A filesystem at its beginning goes before a partition table.
///
/// # Errors
/// The image cannot be read.
pub fn inspect(image: &Arc<dyn BlockSource>) -> io::Result<Inside> {
    if !ext::is_there(image)? {
        let parts = partitions::partitions(&**image)?;
        if !parts.is_empty() {
            return Ok(Inside::Parts(parts));
        }
    }
    Ok(Inside::Whole(content(image.clone())?))
}

/// Looks at what a partition holds.
///
/// # Errors
/// The image cannot be read.
pub fn inspect_partition(image: &Arc<dyn BlockSource>, part: Partition) -> io::Result<Content> {
    content(Arc::new(Part { image: image.clone(), part }))
}

/// Returns the byte ranges of an image's filesystem metadata, at most `most` for each: a mount reads them
/// first. Unsupported and damaged filesystems are skipped.
///
/// # Errors
/// The image cannot be read.
pub fn metadata(image: &Arc<dyn BlockSource>, most: usize) -> io::Result<Vec<Range<u64>>> {
    let found = |image: Arc<dyn BlockSource>| match ext::is_there(&image)? {
        true => ext::metadata(image, most).or_else(|error| match is_about_content(&error) {
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
        let inside = found(Arc::new(Part { image: image.clone(), part }))?;
        ranges.extend(inside.into_iter().map(|range| start + range.start..start + range.end));
    }
    Ok(ranges)
}

fn content(image: Arc<dyn BlockSource>) -> io::Result<Content> {
    if ext::is_there(&image)? {
        return Ok(match ext::open(image) {
            Ok(tree) => Content::Files(tree),
            Err(error) if is_about_content(&error) => Content::Nothing(format!(
                "There is an ext2, ext3 or ext4 filesystem here that cannot be read: {error}."
            )),
            Err(error) => return Err(error),
        });
    }
    let what = match other_kind(&*image)? {
        Some(kind) => format!("There is {kind} here, which is not shown as files."),
        None => "No filesystem that is shown as files was found here (ext2, ext3 and ext4 are).".into(),
    };
    Ok(Content::Nothing(what))
}

/// Returns true for an error in the content, not of reading it.
fn is_about_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Unsupported)
}

/// Returns the kind of other content by its magic.
fn other_kind(image: &dyn BlockSource) -> io::Result<Option<&'static str>> {
    let kinds: [(u64, &[u8], &str); 7] = [
        (0, b"XFSB", "an XFS filesystem"),
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
