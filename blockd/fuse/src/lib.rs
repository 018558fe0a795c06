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
//! The server of a mount may differ from its maker: [`UnservedMount`] is made with the maker's rights and in
//! its namespace, and [`serve_handed`] serves it in another process, which needs no right to mount.
//!
//! The source of snapshots is abstract: a [`Catalog`] lists them and opens their images. Requests that may
//! wait for a store run on separate threads, so that listings continue during an outage.

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
pub use foreign_mount::{UnservedMount, take_away};
pub use mount::{MountOptions, Mounted, clean_stale, mount};
pub use mountinfo::{SeenMount, find_mount, resolve};
pub use names::{escape, time_name};
pub use user_mount::{HandedMount, Served, check_handed, serve_handed};
