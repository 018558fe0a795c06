//! Files of an image by number instead of path; hard links have the same number.

use super::{
    Content, FileStat, FileXattr, Files, ImageFiles, Inside,
    image_files::{NOTICE, dir, gone, notice, notice_stat},
    partitions::Partition,
};
use blockd_extent::DataRange;
use std::{io, sync::Arc};

/// The number of a root, in ext2, ext3 and ext4, and of the directory of all partitions.
const ROOT: u32 = 2;
/// That of the file that stands where files cannot be shown.
const NOTICE_NUMBER: u32 = 1;

/// A file of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId {
    /// The number of its partition; 0 if there are none, and for the directory of all of them.
    pub part: u32,
    /// Its number in the filesystem there.
    pub number: u32,
}

impl FileId {
    /// The root of all files of an image.
    pub const ROOT: Self = Self { part: 0, number: ROOT };
}

/// A name in a directory, and what it is the name of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedFile {
    /// The name.
    pub name: Vec<u8>,
    /// The file.
    pub file: FileId,
    /// Attributes; `None` if they are damaged.
    pub stat: Option<FileStat>,
}

enum Spot<'a> {
    Parts(&'a [Partition]),
    Files(Arc<dyn Files>),
    Nothing(String),
}

impl ImageFiles {
    fn spot(&self, file: FileId) -> io::Result<Spot<'_>> {
        let content = match (&self.inside, file) {
            (Inside::Parts(parts), FileId::ROOT) => return Ok(Spot::Parts(parts)),
            (Inside::Parts(parts), FileId { part, .. }) => {
                let Some(part) = parts.iter().find(|other| other.number == part) else { return gone() };
                self.part(*part)?
            }
            (Inside::Whole(content), _) => content.clone(),
        };
        Ok(match content {
            Content::Files(files) => Spot::Files(files),
            Content::Nothing(why) => Spot::Nothing(why),
        })
    }

    /// Returns the attributes of a file.
    ///
    /// # Errors
    /// It does not exist, or the image is damaged there.
    pub fn stat_of(&self, file: FileId) -> io::Result<FileStat> {
        match self.spot(file)? {
            Spot::Parts(_) => Ok(dir()),
            Spot::Files(files) => files.stat_of(file.number),
            Spot::Nothing(why) if file.number == NOTICE_NUMBER => Ok(notice_stat(&why)),
            Spot::Nothing(_) => Ok(dir()),
        }
    }

    /// Looks up a name in a directory.
    ///
    /// # Errors
    /// It does not exist, or the image is damaged there.
    pub fn lookup_in(&self, dir: FileId, name: &[u8]) -> io::Result<FileId> {
        match self.spot(dir)? {
            Spot::Parts(parts) => {
                let is_it = |part: &&Partition| part_name(part) == name;
                match parts.iter().find(is_it) {
                    Some(part) => Ok(FileId { part: part.number, number: ROOT }),
                    None => gone(),
                }
            }
            Spot::Files(files) => Ok(FileId { number: files.lookup_in(dir.number, name)?, ..dir }),
            Spot::Nothing(_) if name == &NOTICE[1..] => Ok(FileId { number: NOTICE_NUMBER, ..dir }),
            Spot::Nothing(_) => gone(),
        }
    }

    /// Returns the entries of a directory, sorted by name.
    ///
    /// # Errors
    /// It is no directory, or the image is damaged there.
    pub fn entries_of(&self, dir: FileId) -> io::Result<Vec<NamedFile>> {
        match self.spot(dir)? {
            Spot::Parts(parts) => {
                let entry = |part: &Partition| {
                    let stat = match self.part_root(*part) {
                        Ok(stat) => Some(stat),
                        // Each of them would have to be waited for, and none is known to be damaged.
                        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                        Err(_) => None,
                    };
                    let file = FileId { part: part.number, number: ROOT };
                    Ok(NamedFile { name: part_name(part), file, stat })
                };
                parts.iter().map(entry).collect()
            }
            Spot::Files(files) => {
                let entries = files.entries_of(dir.number)?.into_iter();
                let named = entries.map(|entry| NamedFile {
                    name: entry.name,
                    file: FileId { number: entry.number, ..dir },
                    stat: entry.stat,
                });
                Ok(named.collect())
            }
            Spot::Nothing(why) => {
                let file = FileId { number: NOTICE_NUMBER, ..dir };
                Ok(vec![NamedFile { name: NOTICE[1..].to_vec(), file, stat: Some(notice_stat(&why)) }])
            }
        }
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// It is no link, or the image is damaged there.
    pub fn link_of(&self, file: FileId) -> io::Result<Vec<u8>> {
        match self.spot(file)? {
            Spot::Files(files) => files.link_of(file.number),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The bytes of a regular file from `offset_bytes` on, fewer than `len` only at its end.
    ///
    /// # Errors
    /// It is none, or the image is damaged there.
    pub fn read_of(&self, file: FileId, offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
        match self.spot(file)? {
            Spot::Files(files) => files.read_of(file.number, offset_bytes, len),
            Spot::Nothing(why) if file.number == NOTICE_NUMBER => {
                let text = notice(&why);
                let from = usize::try_from(offset_bytes).unwrap_or(text.len()).min(text.len());
                Ok(text[from..text.len().min(from.saturating_add(len))].to_vec())
            }
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The run of a regular file that holds the byte at `offset_bytes`, which lies inside.
    ///
    /// # Errors
    /// It is none, or the image is damaged there.
    pub fn range_of(&self, file: FileId, offset_bytes: u64) -> io::Result<DataRange> {
        match self.spot(file)? {
            Spot::Files(files) => files.range_of(file.number, offset_bytes),
            Spot::Nothing(why) if file.number == NOTICE_NUMBER => {
                Ok(DataRange { is_data: true, end_bytes: notice(&why).len() as u64 })
            }
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The extended attributes of a file.
    ///
    /// # Errors
    /// The image is damaged there.
    pub fn xattrs_of(&self, file: FileId) -> io::Result<Vec<FileXattr>> {
        match self.spot(file)? {
            Spot::Files(files) => files.xattrs_of(file.number),
            _ => Ok(Vec::new()),
        }
    }
}

fn part_name(part: &Partition) -> Vec<u8> {
    format!("p{}", part.number).into_bytes()
}
