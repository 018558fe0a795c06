//! Crash-state replay. The tests record all requests of the filesystem below a data directory to its disk,
//! and the history of the volumes. They then rebuild the disk as a power cut at any request may have left it,
//! mount it, start a daemon on it, and check the daemon against its acknowledgements before the cut.
//!
//! The recorded disk is an NBD server in this process, which `nbdfuse` presents as a file and a loop device
//! as a block device. Mounting requires root.

pub mod backups;
pub mod files;
pub mod filesystem;
mod group;
pub mod history;
pub mod image;
pub mod load;
pub mod recorder;
pub mod store;
pub mod verify;
