//! Snapshots as files: a read-only FUSE filesystem with the image of each snapshot, and the files inside it.
//!
//! ```text
//! DIR/<volume>/<time>-<id>/disk.img        the image, sparse
//!                          manifest.json   the manifest of the snapshot
//!                          files/…         the files of its ext2, ext3 or ext4 filesystem, or
//!                          files/p1/…      the files of its first partition
//! DIR/<volume>/latest                      a symbolic link to the newest snapshot
//! ```
//!
//! A mount and its server may belong to different processes: [`UnservedMount`] mounts with the privileges and
//! in the namespace of one process, and [`serve_passed`] serves the mount in another, which needs no
//! privilege to mount.
//!
//! A [`Catalog`] lists the snapshots and opens their images. Requests that may wait for a store run on
//! separate threads, so that listings continue during an outage.

mod catalog;
mod dirs;
mod error;
mod filesystem;
mod foreign_mount;
mod fusermount;
pub mod inside;
mod listing;
mod mount;
mod mountinfo;
mod names;
mod nodes;
mod open_file;
mod pool;
mod tree;
mod user_mount;

pub use catalog::{Catalog, SnapshotEntry, SnapshotKey};
pub use error::FuseError;
pub use foreign_mount::{UnservedMount, unmount};
pub use mount::{MountOptions, Mounted, clean_stale, mount};
pub use mountinfo::{BrowseMountPoint, find_mount, resolve};
pub use names::escape;
pub use user_mount::{PassedMount, Served, check_passed, serve_passed};
