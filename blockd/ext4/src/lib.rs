//! Reader of ext2, ext3 and ext4: files, directories, links and extended attributes of an untrusted image.
//!
//! [`Filesystem::open`] opens an image through the trait [`ReadAt`], the only source of bytes. The crate
//! never writes. It replays a journal in memory ([`JournalState`]): an overlay redirects reads of a block to
//! its last committed copy in the journal.
//!
//! The image is untrusted. Each number is checked against the image's limits before use, each walk is bounded
//! in depth or length, and each violation is an [`ExtError`] that names the damaged [`Structure`]. Metadata
//! checksums are verified. Names, link targets and attributes are arbitrary bytes.
//!
//! The terms are those of the kernel's documentation, "ext4 Data Structures and Algorithms"
//! (`Documentation/filesystems/ext4`); comments name its sections.
//!
//! # Limits
//!
//! - Encrypted files, links and directories (`fscrypt`) return [`ExtError::Unsupported`]; their inodes can be
//!   read.
//! - Directories of more than 1 GiB, lookups that read more than 256 MiB of directories, and extended
//!   attributes of more than 64 KiB each or 1 MiB per file return [`ExtError::Unsupported`].
//! - Filesystems with compressed files (`compression`) or data in directory entries (`dirdata`) are refused.
//! - Filesystems with an external journal that needs recovery are refused.
//! - Fast commits are not replayed: the result is the consistent state of the last full commit, without
//!   changes synced later, which e2fsck and the kernel would replay. [`JournalState`] reports them.

#![forbid(unsafe_code)]

mod acl;
mod bytes;
pub mod check;
mod checksum;
mod content;
mod dir;
mod disk;
mod error;
mod extents;
mod features;
mod filesystem;
mod group;
mod indirect;
mod inline;
mod inode;
mod inode_number;
mod journal;
mod map;
mod metadata;
mod overlay;
mod resolve;
mod sample;
mod superblock;
mod users;
mod xattr;

pub use dir::DirEntry;
pub use disk::ReadAt;
pub use error::{ExtError, Structure};
pub use filesystem::{Filesystem, Info, JournalState};
pub use inode::{Device, FileKind, Inode, Timestamp};
pub use inode_number::InodeNumber;
pub use map::FileExtent;
pub use users::Users;
pub use xattr::Xattr;

/// Returns true if the image holds an ext2, ext3 or ext4 superblock, by its magic number.
///
/// # Errors
/// [`ExtError::Read`].
pub fn probe(source: &dyn ReadAt) -> Result<bool, ExtError> {
    superblock::probe(source)
}

/// Returns true if the image holds an ext3 or ext4 superblock that names a device as its journal. A kernel
/// that mounts the image opens that device of its host. Works for damaged and unsupported filesystems as
/// well.
///
/// # Errors
/// [`ExtError::Read`].
pub fn names_journal_device(source: &dyn ReadAt) -> Result<bool, ExtError> {
    superblock::names_journal_device(source)
}
