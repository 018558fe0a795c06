//! Errors.

use crate::InodeNumber;
use std::{fmt, io};

/// On-disk structure that an error refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Structure {
    /// Superblock.
    Superblock,
    /// Descriptor of a block group.
    GroupDescriptor(u32),
    /// Inode, or the blocks that it references.
    Inode(InodeNumber),
    /// Block of the filesystem.
    Block(u64),
    /// Journal.
    Journal,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::GroupDescriptor(group) => write!(f, "descriptor of block group {group}"),
            Self::Inode(number) => write!(f, "inode {number}"),
            Self::Block(block) => write!(f, "block {block}"),
            Self::Journal => f.write_str("journal"),
        }
    }
}

/// Error of the reader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtError {
    /// The image holds no ext2, ext3 or ext4 filesystem.
    #[error("no ext2, ext3 or ext4 filesystem found")]
    NoFilesystem,
    /// The filesystem or file uses a feature that this crate does not read.
    #[error("unsupported: {feature}")]
    Unsupported {
        /// Unsupported feature.
        feature: String,
    },
    /// A structure violates the format or does not match its checksum.
    #[error("{structure} is damaged: {reason}")]
    Damaged {
        /// Damaged structure.
        structure: Structure,
        /// Violation.
        reason: &'static str,
    },
    /// The image could not be read.
    #[error("read failed on {len_bytes} bytes at offset {offset_bytes}")]
    Read {
        /// Offset in the image, in bytes.
        offset_bytes: u64,
        /// Length, in bytes.
        len_bytes: usize,
        /// Error of the image.
        source: io::Error,
    },
    /// No file has this path.
    #[error("no such file or directory")]
    NotFound,
    /// Not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory was used as a file.
    #[error("is a directory")]
    IsADirectory,
    /// Not a regular file.
    #[error("not a regular file")]
    NotAFile,
    /// Not a symbolic link.
    #[error("not a symbolic link")]
    NotALink,
    /// Path resolution exceeded the limit of symbolic links or of path components.
    #[error("too many levels of symbolic links")]
    TooManyLinks,
    /// A directory has more entries than the caller's limit.
    #[error("directory has more than {max_entries} entries")]
    TooManyEntries {
        /// The limit.
        max_entries: usize,
    },
    /// The caller cancelled a consistency check.
    #[error("check cancelled by the caller")]
    Cancelled,
}

impl ExtError {
    /// Returns true if a retry can succeed: a read of the image failed, which may be remote.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }

    pub(crate) fn unsupported(feature: impl Into<String>) -> Self {
        Self::Unsupported { feature: feature.into() }
    }
}

/// Returns [`ExtError::Damaged`].
pub(crate) fn damaged<T>(structure: Structure, reason: &'static str) -> Result<T, ExtError> {
    Err(ExtError::Damaged { structure, reason })
}
