//! Files of an image under one root: those of its filesystem, or a directory for each partition.

use super::{
    Content, FileEntry, FileKind, FileStat, FileTree, Files, ImageLayout, Xattr, inspect, inspect_partition,
    is_outage, partitions::Partition,
};
use blockd_extent::{BlockSource, DataRange};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
};

/// File that takes the place of an unsupported filesystem's files.
pub(super) const NOTICE: &[u8] = b"/NO-FILES.txt";

/// Maximum number of open partitions, each with the caches of its filesystem.
const MAX_PARTS: usize = 4;

/// Files of an image. Partitions are opened on first access.
pub struct ImageFiles {
    image: Arc<dyn BlockSource>,
    pub(super) inside: ImageLayout,
    /// Open partitions, the most recently used last.
    parts: Mutex<VecDeque<(u32, Content)>>,
    /// Attributes of the roots of accessed partitions.
    part_roots: Mutex<HashMap<u32, FileStat>>,
}

/// Target of a path.
enum PathTarget<'a> {
    /// Directory of all partitions.
    Parts(&'a [Partition]),
    /// Path in a filesystem.
    Files(Arc<dyn Files>, &'a [u8]),
    /// Path in an image or partition without supported files, and the reason.
    NoFiles(String, &'a [u8]),
}

pub(super) fn gone<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotFound.into())
}

pub(super) fn dir() -> FileStat {
    FileStat {
        kind: FileKind::Directory,
        number: 0,
        size_bytes: 0,
        allocated_bytes: 0,
        mode: 0o555,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        links: 2,
        device: None,
        modified: None,
        accessed: None,
        changed: None,
    }
}

pub(super) fn notice(reason: &str) -> Vec<u8> {
    format!(
        "No files of this image or partition are shown: {reason}.\nThe image itself is available. Filesystems that the kernel supports can be mounted from it, as root:\n  \
         mount -o ro,loop,norecovery DIR/VOLUME/SNAPSHOT/disk.img /mnt\n\
         (XFS and ext4; for btrfs -o ro,loop,rescue=nologreplay; for a partition add offset=BYTES: `fdisk -l disk.img` prints its first sector).\n"
    )
    .into_bytes()
}

pub(super) fn notice_stat(reason: &str) -> FileStat {
    FileStat {
        kind: FileKind::Regular,
        size_bytes: notice(reason).len() as u64,
        mode: 0o444,
        links: 1,
        ..dir()
    }
}

/// Returns the partition number in the first component of a path, such as 1 for `/p1/etc`.
fn part_number(path: &[u8]) -> Option<u32> {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    let name = below.split(|byte| *byte == b'/').next()?;
    let number = std::str::from_utf8(name).ok()?.strip_prefix('p')?;
    number.parse().ok().filter(|parsed: &u32| parsed.to_string() == number)
}

impl ImageFiles {
    /// Opens the files of an image. May block for a bounded time.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn open(image: Arc<dyn BlockSource>) -> io::Result<Self> {
        let inside = inspect(&image)?;
        Ok(Self { image, inside, parts: Mutex::default(), part_roots: Mutex::default() })
    }

    /// Returns the reason if the image or partition of a path has no supported filesystem.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn unreadable_reason(&self, path: &[u8]) -> io::Result<Option<String>> {
        Ok(match self.target(path)? {
            PathTarget::NoFiles(reason, _) => Some(reason),
            _ => None,
        })
    }

    /// Returns the attributes of the root directory, if the image is one filesystem without partitions. They
    /// restrict access to all files below.
    ///
    /// # Errors
    /// The image cannot be read, or is damaged there.
    pub fn root(&self) -> io::Result<Option<FileStat>> {
        match &self.inside {
            ImageLayout::Whole(Content::Files(files)) => files.stat(b"/").map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the attributes of a partition's root.
    pub(super) fn part_root(&self, part: Partition) -> io::Result<FileStat> {
        if let Some(stat) = self.part_roots.lock().get(&part.number) {
            return Ok(*stat);
        }
        let stat = match self.part(part)? {
            Content::Files(files) => files.stat(b"/")?,
            Content::NoFiles(_) => dir(),
        };
        self.part_roots.lock().insert(part.number, stat);
        Ok(stat)
    }

    pub(super) fn part(&self, part: Partition) -> io::Result<Content> {
        if let Some(content) = self.open_part(part.number) {
            return Ok(content);
        }
        let content = inspect_partition(&self.image, part)?;
        // Another thread may have opened it since.
        if let Some(content) = self.open_part(part.number) {
            return Ok(content);
        }
        let mut parts = self.parts.lock();
        if parts.len() >= MAX_PARTS {
            parts.pop_front();
        }
        parts.push_back((part.number, content.clone()));
        Ok(content)
    }

    /// Returns an open partition and marks it as the most recently used.
    fn open_part(&self, number: u32) -> Option<Content> {
        let mut parts = self.parts.lock();
        let at = parts.iter().position(|(other, _)| *other == number)?;
        let found = parts.remove(at)?;
        let content = found.1.clone();
        parts.push_back(found);
        Some(content)
    }

    /// Returns the high bits of the file numbers of a path's partition.
    fn part_bits(&self, path: &[u8]) -> u64 {
        match &self.inside {
            ImageLayout::Whole(_) => 0,
            ImageLayout::Parts(_) => u64::from(part_number(path).unwrap_or(0)) << 32,
        }
    }

    fn target<'a>(&'a self, path: &'a [u8]) -> io::Result<PathTarget<'a>> {
        let (content, rest) = match &self.inside {
            ImageLayout::Whole(content) => (content.clone(), path),
            ImageLayout::Parts(parts) => {
                let below = path.strip_prefix(b"/").unwrap_or(path);
                if below.is_empty() {
                    return Ok(PathTarget::Parts(parts));
                }
                let end = below.iter().position(|byte| *byte == b'/').unwrap_or(below.len());
                let number = part_number(path);
                let Some(part) = parts.iter().find(|part| Some(part.number) == number) else { return gone() };
                let rest = &below[end..];
                (self.part(*part)?, if rest.is_empty() { b"/".as_slice() } else { rest })
            }
        };
        Ok(match content {
            Content::Files(files) => PathTarget::Files(files, rest),
            Content::NoFiles(reason) => PathTarget::NoFiles(reason, rest),
        })
    }
}

impl FileTree for ImageFiles {
    fn stat(&self, path: &[u8]) -> io::Result<FileStat> {
        match self.target(path)? {
            PathTarget::Parts(_) => Ok(dir()),
            PathTarget::Files(files, below) => {
                let stat = files.stat(below)?;
                Ok(FileStat { number: self.part_bits(path) | stat.number, ..stat })
            }
            PathTarget::NoFiles(_, b"/") => Ok(dir()),
            PathTarget::NoFiles(reason, path) if path == NOTICE => Ok(notice_stat(&reason)),
            PathTarget::NoFiles(..) => gone(),
        }
    }

    fn read_dir(&self, path: &[u8], max_entries: usize) -> io::Result<Vec<FileEntry>> {
        match self.target(path)? {
            PathTarget::Parts(parts) => {
                let entry = |part: &Partition| {
                    let stat = match self.part_root(*part) {
                        Ok(stat) => Some(stat),
                        // An outage is no damage, and each further partition would wait for its timeout.
                        Err(error) if is_outage(&error) => return Err(error),
                        Err(_) => None,
                    };
                    Ok(FileEntry { name: format!("p{}", part.number).into_bytes(), number: 0, stat })
                };
                parts.iter().map(entry).collect()
            }
            PathTarget::Files(files, below) => {
                let bits = self.part_bits(path);
                let mut entries = files.read_dir(below, max_entries)?;
                for stat in entries.iter_mut().filter_map(|entry| entry.stat.as_mut()) {
                    stat.number |= bits;
                }
                Ok(entries)
            }
            PathTarget::NoFiles(reason, b"/") => Ok(vec![FileEntry {
                name: NOTICE[1..].to_vec(),
                number: 0,
                stat: Some(notice_stat(&reason)),
            }]),
            PathTarget::NoFiles(..) => gone(),
        }
    }

    fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        match self.target(path)? {
            PathTarget::Files(files, path) => files.read_link(path),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn read(&self, path: &[u8], offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
        match self.target(path)? {
            PathTarget::Files(files, path) => files.read(path, offset_bytes, len),
            PathTarget::NoFiles(reason, path) if path == NOTICE => {
                let text = notice(&reason);
                let from = usize::try_from(offset_bytes).unwrap_or(text.len()).min(text.len());
                Ok(text[from..text.len().min(from.saturating_add(len))].to_vec())
            }
            PathTarget::NoFiles(..) => gone(),
            PathTarget::Parts(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn range_at(&self, path: &[u8], offset_bytes: u64) -> io::Result<DataRange> {
        match self.target(path)? {
            PathTarget::Files(files, path) => files.range_at(path, offset_bytes),
            PathTarget::NoFiles(reason, path) if path == NOTICE => {
                Ok(DataRange { is_data: true, end_bytes: notice(&reason).len() as u64 })
            }
            PathTarget::NoFiles(..) => gone(),
            PathTarget::Parts(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn xattrs(&self, path: &[u8]) -> io::Result<Vec<Xattr>> {
        match self.target(path)? {
            PathTarget::Files(files, path) => files.xattrs(path),
            _ => Ok(Vec::new()),
        }
    }
}
