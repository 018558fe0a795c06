//! Crash-state replay: everything that a filesystem under a data directory asked its disk for is recorded,
//! with the life of the volumes beside it; then the disk is laid down as a power cut at any request may have
//! left it, mounted, and a daemon started on it is held to what it had answered by then.
//!
//! The recorded disk is an NBD server of this process, made a file by `nbdfuse` and a block device by a loop
//! device on that. Mounting needs root.

pub mod backups;
pub mod filesystem;
mod group;
pub mod history;
pub mod image;
pub mod load;
pub mod recorder;
pub mod store;
pub mod verify;
