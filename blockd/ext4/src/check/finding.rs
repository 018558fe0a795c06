//! Results of a check.

use crate::{InodeNumber, Structure};
use std::fmt;

/// Inconsistency of a filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Structure that contradicts the others, or itself.
    pub structure: Structure,
    /// Contradiction.
    pub problem: Problem,
}

/// Kind of an inconsistency.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The structure violates the format or does not match its checksum.
    Damaged {
        /// Violation.
        reason: &'static str,
    },
    /// The kernel or e2fsck recorded an inconsistency (`s_state`).
    RecordedErrors,
    /// The structure claims a block that another one or itself claims, too.
    ClaimedTwice {
        /// First such block.
        block: u64,
    },
    /// Claimed blocks are free in the block bitmap: later writes would overwrite them.
    BlocksMarkedFree {
        /// First such block of the group.
        first: u64,
        /// Number of such blocks of the group.
        count: u64,
    },
    /// Blocks of the block bitmap belong to no file and no structure.
    BlocksNotClaimed {
        /// First such block of the group.
        first: u64,
        /// Number of such blocks of the group.
        count: u64,
    },
    /// Inodes in use are free in the inode bitmap.
    InodesMarkedFree {
        /// First such inode of the group.
        first: InodeNumber,
        /// Number of such inodes of the group.
        count: u64,
    },
    /// Inodes of the inode bitmap are not in use.
    InodesNotUsed {
        /// First such inode of the group.
        first: InodeNumber,
        /// Number of such inodes of the group.
        count: u64,
    },
    /// A stored number differs from the number found.
    WrongCount {
        /// Counted objects.
        of: Count,
        /// Stored number.
        stored: u64,
        /// Number found.
        found: u64,
    },
    /// An entry of the directory leads to an inode that is free, reserved or out of range.
    EntryOfFreeInode {
        /// Inode of the entry.
        inode: InodeNumber,
    },
    /// An entry of the directory has a file type that its inode has not.
    EntryOfWrongType {
        /// Inode of the entry.
        inode: InodeNumber,
    },
    /// An entry of the directory leads to a directory that has another entry, or to the root directory.
    SecondEntry {
        /// Inode of the entry.
        inode: InodeNumber,
    },
    /// The directory has several entries with one name.
    DuplicateName,
    /// The entry `..` of the directory leads to another directory than the one that contains it.
    WrongParent {
        /// Inode of `..`.
        stored: InodeNumber,
        /// Directory that contains this one.
        found: InodeNumber,
    },
    /// No directory has an entry of the inode, or no path leads from the root directory to it.
    Unreachable,
}

/// Objects that a filesystem counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Count {
    /// Free blocks of a group; clusters with the feature `bigalloc`.
    FreeBlocks,
    /// Free inodes of a group.
    FreeInodes,
    /// Inodes of the filesystem.
    Inodes,
    /// Directories of a group.
    Directories,
    /// Hard links of an inode.
    Links,
    /// Bytes allocated to an inode.
    AllocatedBytes,
    /// Inodes that share an extended attribute block.
    XattrReferences,
}

/// Part of a filesystem that a check did not cover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Unchecked {
    /// Changes in fast commits, which are not replayed: the state of the last full commit was checked.
    FastCommits,
    /// Ownership and allocation count of clusters (`bigalloc`): the blocks were checked.
    Clusters,
    /// Contents of quota files.
    Quotas,
    /// Bad blocks that the filesystem recorded.
    BadBlocks,
    /// Names in encrypted directories.
    EncryptedNames,
    /// Duplicate names in directories of more than four million entries.
    LargeDirectories,
    /// Structures with features that this crate does not read.
    UnsupportedParts,
    /// Comparisons that need structures that are damaged, such as link counts.
    DamagedParts,
    /// Everything after the memory limit.
    MemoryLimit,
    /// Everything after the read limit.
    ReadLimit,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { structure, problem } = self;
        match problem {
            Problem::Damaged { reason } => write!(f, "{structure} is damaged: {reason}"),
            Problem::RecordedErrors => write!(f, "{structure}: an earlier inconsistency is recorded"),
            Problem::ClaimedTwice { block } => write!(f, "{structure}: block {block} is claimed twice"),
            Problem::BlocksMarkedFree { first, count } => {
                write!(f, "{structure}: {count} blocks in use are free in the bitmap, from block {first} on")
            }
            Problem::BlocksNotClaimed { first, count } => {
                write!(f, "{structure}: {count} blocks of the bitmap are not in use, from block {first} on")
            }
            Problem::InodesMarkedFree { first, count } => {
                write!(f, "{structure}: {count} inodes in use are free in the bitmap, from inode {first} on")
            }
            Problem::InodesNotUsed { first, count } => {
                write!(f, "{structure}: {count} inodes of the bitmap are not in use, from inode {first} on")
            }
            Problem::WrongCount { of, stored, found } => {
                write!(f, "{structure}: {stored} {of} recorded, {found} found")
            }
            Problem::EntryOfFreeInode { inode } => {
                write!(f, "{structure}: an entry leads to inode {inode}, which is free or invalid")
            }
            Problem::EntryOfWrongType { inode } => {
                write!(f, "{structure}: the entry of inode {inode} has the wrong file type")
            }
            Problem::SecondEntry { inode } => {
                write!(f, "{structure}: an entry is another link to directory {inode}")
            }
            Problem::DuplicateName => write!(f, "{structure}: several entries have one name"),
            Problem::WrongParent { stored, found } => {
                write!(f, "{structure}: `..` is inode {stored}, but inode {found} contains the directory")
            }
            Problem::Unreachable => write!(f, "{structure}: no path leads to it"),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FreeBlocks => "free blocks",
            Self::FreeInodes => "free inodes",
            Self::Inodes => "inodes",
            Self::Directories => "directories",
            Self::Links => "links",
            Self::AllocatedBytes => "allocated bytes",
            Self::XattrReferences => "references",
        })
    }
}

impl fmt::Display for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FastCommits => "fast commits",
            Self::Clusters => "ownership of clusters (bigalloc)",
            Self::Quotas => "quota files",
            Self::BadBlocks => "bad blocks",
            Self::EncryptedNames => "names in encrypted directories",
            Self::LargeDirectories => "duplicate names in directories of more than four million entries",
            Self::UnsupportedParts => "structures with unsupported features",
            Self::DamagedParts => "comparisons with damaged structures",
            Self::MemoryLimit => "all after the limit of memory",
            Self::ReadLimit => "all after the limit of reads",
        })
    }
}
