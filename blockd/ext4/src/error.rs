//! Errors.

use crate::InodeNumber;
use std::{fmt, io};

/// A part of a filesystem, as messages name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Place {
    /// The superblock.
    Superblock,
    /// The descriptor of a block group.
    Group(u32),
    /// An inode, or what hangs on it.
    Inode(InodeNumber),
    /// A block of the filesystem.
    Block(u64),
    /// The journal.
    Journal,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("the superblock"),
            Self::Group(group) => write!(f, "the descriptor of group {group}"),
            Self::Inode(number) => write!(f, "inode {number}"),
            Self::Block(block) => write!(f, "block {block}"),
            Self::Journal => f.write_str("the journal"),
        }
    }
}

/// Error of the reader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtError {
    /// There is no such filesystem.
    #[error("there is no ext2, ext3 or ext4 filesystem")]
    NoFilesystem,
    /// It is well, as far as one can tell, but not read here.
    #[error("it uses {what}, which is not read here")]
    Unsupported {
        /// Unsupported feature.
        what: String,
    },
    /// Something is not as it should be.
    #[error("{place} is damaged: {what}")]
    Damaged {
        /// Damaged place.
        place: Place,
        /// Cause.
        what: &'static str,
    },
    /// The image could not be read.
    #[error("cannot read {len_bytes} bytes at {offset_bytes}: {source}")]
    Read {
        /// Offset in the image, in bytes.
        offset_bytes: u64,
        /// Length, in bytes.
        len_bytes: usize,
        /// Error of the image.
        source: io::Error,
    },
    /// There is no file of that name.
    #[error("it is not there")]
    NotFound,
    /// Not a directory.
    #[error("it is not a directory")]
    NotADirectory,
    /// A directory was used as a file.
    #[error("it is a directory")]
    IsADirectory,
    /// Not a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// Not a symbolic link.
    #[error("it is not a symbolic link")]
    NotALink,
    /// A path leads through more links than any system follows.
    #[error("the path leads through too many symbolic links")]
    TooManyLinks,
    /// A directory has more entries than were asked for.
    #[error("the directory has more than {max_entries} entries")]
    TooManyEntries {
        /// The limit.
        max_entries: usize,
    },
}

impl ExtError {
    /// Returns true if a retry can succeed: a read of the image failed, which may be remote.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}

/// An error that says that something is damaged.
pub(crate) fn damaged<T>(place: Place, what: &'static str) -> Result<T, ExtError> {
    Err(ExtError::Damaged { place, what })
}
