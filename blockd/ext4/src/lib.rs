//! Reader of ext2, ext3 and ext4: files, directories, links and extended attributes of an untrusted image.
//!
//! It is pure: it only reads through [`ReadAt`]. A journal that was not replayed is replayed in memory
//! ([`JournalState`]): a table selects the blocks from the journal.
//!
//! The image is untrusted. Each number is checked against the image's limits before use, each step goes
//! deeper into a tree of bounded depth or forward in a list of bounded length, and each violation is an
//! [`ExtError`] that names the place. Metadata with checksums is checked against them.
//!
//! The terms are those of the kernel's documentation, "ext4 Data Structures and Algorithms"
//! (`Documentation/filesystems/ext4`); comments name its sections.
//!
//! # What it does not read
//!
//! - Encrypted files, links and directories (`fscrypt`): [`ExtError::Unsupported`]; their inodes can be
//!   looked at.
//! - Compressed files, and directories with data in them (`dirdata`): the filesystem is refused.
//! - A journal on another device that was not played back: the filesystem is refused.
//! - Fast commits that a journal ends with. What is shown is the filesystem as of the last full commit, which
//!   is whole; e2fsck and the kernel would also play back what was synced since. [`JournalState`] tells that
//!   there are some.

#![forbid(unsafe_code)]

mod acl;
mod bytes;
mod checksum;
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
mod journal;
mod map;
mod metadata;
mod resolve;
mod superblock;
mod xattr;

pub use dir::DirEntry;
pub use disk::ReadAt;
pub use error::{ExtError, Place};
pub use filesystem::{Filesystem, Info};
pub use inode::{Device, FileKind, Inode, InodeNumber, Timestamp};
pub use journal::JournalState;
pub use map::Run;
pub use xattr::Xattr;

/// Returns true for an ext filesystem, by its magic.
///
/// # Errors
/// [`ExtError::Read`].
pub fn is_there(source: &dyn ReadAt) -> Result<bool, ExtError> {
    superblock::is_there(source)
}
