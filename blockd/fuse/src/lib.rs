//! Snapshots as files: a read-only FUSE filesystem with the image of each snapshot, and the files inside it.
//!
//! ```text
//! DIR/<volume>/<time>-<id>/disk.img        the image, sparse
//!                          manifest.json   what is known of the snapshot
//!                          files/…         the files of its ext2, ext3 or ext4 filesystem, or
//!                          files/p1/…      those of its first partition
//! DIR/<volume>/latest                      a link to the newest
//! ```
//!
//! Where the snapshots come from is not known here: a [`Catalog`] lists them and opens their images. Requests that may have to
//! wait for a store are done by threads of their own, so that listing goes on while a store hangs.

mod catalog;
mod dirs;
mod error;
mod filesystem;
pub mod inside;
mod listing;
mod mount;
mod names;
mod nodes;
mod pool;
#[cfg(test)]
mod testing;
mod tree;

pub use catalog::{Catalog, Image, ImageRun, SnapshotEntry, SnapshotKey};
pub use error::FuseError;
pub use mount::{MountOptions, Mounted, clean_stale, mount};
pub use names::{escape, time_name};
