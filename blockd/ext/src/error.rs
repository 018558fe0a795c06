//! What can go wrong.

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

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtError {
    /// There is no such filesystem.
    #[error("there is no ext2, ext3 or ext4 filesystem")]
    NoFilesystem,
    /// It is well, as far as one can tell, but not read here.
    #[error("it uses {what}, which is not read here")]
    Unsupported {
        /// What it uses.
        what: String,
    },
    /// Something is not as it should be.
    #[error("{place} is damaged: {what}")]
    Damaged {
        /// What is damaged.
        place: Place,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The image could not be read.
    #[error("cannot read {len_bytes} bytes at {offset_bytes}: {source}")]
    Read {
        /// Where, in bytes from the beginning of the image.
        offset_bytes: u64,
        /// How many bytes.
        len_bytes: usize,
        /// What the image said.
        source: io::Error,
    },
    /// There is no file of that name.
    #[error("it is not there")]
    NotFound,
    /// What is not a directory was used as one.
    #[error("it is not a directory")]
    NotADirectory,
    /// A directory was used as a file.
    #[error("it is a directory")]
    IsADirectory,
    /// What is no regular file was used as one.
    #[error("it is not a regular file")]
    NotAFile,
    /// What is no symbolic link was used as one.
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
    /// Whether the same can succeed later without anybody doing anything about it: if reading the image
    /// failed, for it may be far away.
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
