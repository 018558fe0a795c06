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
//! Whoever serves a mount need not be who made it: [`UnservedMount`] is made with the rights of the one, in
//! their namespace, and [`serve_handed`] serves it in the other, who then needs no right to mount.
//!
//! Where the snapshots come from is not known here: a [`Catalog`] lists them and opens their images. Requests
//! that may have to wait for a store are done by threads of their own, so that listing goes on while a store
//! hangs.

mod catalog;
mod dirs;
mod error;
mod filesystem;
mod fusermount;
mod handed;
pub mod inside;
mod listing;
mod mount;
mod mountinfo;
mod names;
mod nodes;
mod pool;
#[cfg(test)]
mod testing;
mod tree;
mod unserved;

pub use catalog::{Catalog, Image, ImageRun, SnapshotEntry, SnapshotKey};
pub use error::FuseError;
pub use handed::{HandedMount, Served, check_handed, serve_handed};
pub use mount::{MountOptions, Mounted, clean_stale, mount};
pub use mountinfo::{SeenMount, find_mount, resolve};
pub use names::{escape, time_name};
pub use unserved::{UnservedMount, take_away};
