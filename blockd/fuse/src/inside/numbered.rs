//! Access to the files of an image by inode number instead of path; hard links have the same number.

use super::{
    Content, FileStat, Files, ImageFiles, ImageLayout, Xattr,
    image_files::{NOTICE, dir, gone, notice, notice_stat},
    is_outage,
    partitions::Partition,
};
use blockd_extent::DataRange;
use std::{io, sync::Arc};

/// Inode number of the root in ext2, ext3 and ext4, also used for the directory of all partitions.
const ROOT: u32 = 2;
/// Number of the file [`NOTICE`].
const NOTICE_NUMBER: u32 = 1;

/// File of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId {
    /// Partition number; 0 in an image without partitions, and for the directory of all partitions.
    pub part: u32,
    /// Inode number in the filesystem.
    pub number: u32,
}

impl FileId {
    /// Root of all files of an image.
    pub const ROOT: Self = Self { part: 0, number: ROOT };
}

/// Entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedFile {
    /// Name.
    pub name: Vec<u8>,
    /// File.
    pub file: FileId,
    /// Attributes; `None` if they are damaged.
    pub stat: Option<FileStat>,
}

/// Target of a file id.
enum FileTarget<'a> {
    /// Directory of all partitions.
    Parts(&'a [Partition]),
    /// Filesystem of the file.
    Files(Arc<dyn Files>),
    /// Image or partition without supported files, and the reason.
    NoFiles(String),
}

impl ImageFiles {
    fn target_of(&self, file: FileId) -> io::Result<FileTarget<'_>> {
        let content = match (&self.inside, file) {
            (ImageLayout::Parts(parts), FileId::ROOT) => return Ok(FileTarget::Parts(parts)),
            (ImageLayout::Parts(parts), FileId { part, .. }) => {
                let Some(part) = parts.iter().find(|other| other.number == part) else { return gone() };
                self.part(*part)?
            }
            (ImageLayout::Whole(content), _) => content.clone(),
        };
        Ok(match content {
            Content::Files(files) => FileTarget::Files(files),
            Content::NoFiles(reason) => FileTarget::NoFiles(reason),
        })
    }

    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// The file does not exist, or the filesystem is damaged there.
    pub fn stat_of(&self, file: FileId) -> io::Result<FileStat> {
        match self.target_of(file)? {
            FileTarget::Parts(_) => Ok(dir()),
            FileTarget::Files(files) => files.stat_of(file.number),
            FileTarget::NoFiles(reason) if file.number == NOTICE_NUMBER => Ok(notice_stat(&reason)),
            FileTarget::NoFiles(_) => Ok(dir()),
        }
    }

    /// Looks up a name in a directory.
    ///
    /// # Errors
    /// The name does not exist, or the filesystem is damaged there.
    pub fn lookup_in(&self, dir: FileId, name: &[u8]) -> io::Result<FileId> {
        match self.target_of(dir)? {
            FileTarget::Parts(parts) => match parts.iter().find(|part| part_name(part) == name) {
                Some(part) => Ok(FileId { part: part.number, number: ROOT }),
                None => gone(),
            },
            FileTarget::Files(files) => Ok(FileId { number: files.lookup_in(dir.number, name)?, ..dir }),
            FileTarget::NoFiles(_) if name == &NOTICE[1..] => Ok(FileId { number: NOTICE_NUMBER, ..dir }),
            FileTarget::NoFiles(_) => gone(),
        }
    }

    /// Returns the entries of a directory, sorted by name.
    ///
    /// # Errors
    /// The file is no directory, or the filesystem is damaged there.
    pub fn entries_of(&self, dir: FileId) -> io::Result<Vec<NamedFile>> {
        match self.target_of(dir)? {
            FileTarget::Parts(parts) => {
                let entry = |part: &Partition| {
                    let stat = match self.part_root(*part) {
                        Ok(stat) => Some(stat),
                        // An outage is no damage, and each further partition would wait for its timeout.
                        Err(error) if is_outage(&error) => return Err(error),
                        Err(_) => None,
                    };
                    let file = FileId { part: part.number, number: ROOT };
                    Ok(NamedFile { name: part_name(part), file, stat })
                };
                parts.iter().map(entry).collect()
            }
            FileTarget::Files(files) => {
                let entries = files.entries_of(dir.number)?.into_iter();
                let named = entries.map(|entry| NamedFile {
                    name: entry.name,
                    file: FileId { number: entry.number, ..dir },
                    stat: entry.stat,
                });
                Ok(named.collect())
            }
            FileTarget::NoFiles(reason) => {
                let file = FileId { number: NOTICE_NUMBER, ..dir };
                Ok(vec![NamedFile { name: NOTICE[1..].to_vec(), file, stat: Some(notice_stat(&reason)) }])
            }
        }
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// The file is no symbolic link, or the filesystem is damaged there.
    pub fn link_of(&self, file: FileId) -> io::Result<Vec<u8>> {
        match self.target_of(file)? {
            FileTarget::Files(files) => files.link_of(file.number),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Reads bytes of a regular file from `offset_bytes` on, fewer than `len` only at its end.
    ///
    /// # Errors
    /// The file is no regular file, or the filesystem is damaged there.
    pub fn read_of(&self, file: FileId, offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
        match self.target_of(file)? {
            FileTarget::Files(files) => files.read_of(file.number, offset_bytes, len),
            FileTarget::NoFiles(reason) if file.number == NOTICE_NUMBER => {
                let text = notice(&reason);
                let from = usize::try_from(offset_bytes).unwrap_or(text.len()).min(text.len());
                Ok(text[from..text.len().min(from.saturating_add(len))].to_vec())
            }
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Returns the data range or hole of a regular file at `offset_bytes`, which is inside the file.
    ///
    /// # Errors
    /// The file is no regular file, or the filesystem is damaged there.
    pub fn range_of(&self, file: FileId, offset_bytes: u64) -> io::Result<DataRange> {
        match self.target_of(file)? {
            FileTarget::Files(files) => files.range_of(file.number, offset_bytes),
            FileTarget::NoFiles(reason) if file.number == NOTICE_NUMBER => {
                Ok(DataRange { is_data: true, end_bytes: notice(&reason).len() as u64 })
            }
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Returns the extended attributes of a file.
    ///
    /// # Errors
    /// The filesystem is damaged there.
    pub fn xattrs_of(&self, file: FileId) -> io::Result<Vec<Xattr>> {
        match self.target_of(file)? {
            FileTarget::Files(files) => files.xattrs_of(file.number),
            _ => Ok(Vec::new()),
        }
    }
}

fn part_name(part: &Partition) -> Vec<u8> {
    format!("p{}", part.number).into_bytes()
}
