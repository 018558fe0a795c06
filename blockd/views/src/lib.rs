//! Volumes, local snapshots and cloud snapshots as NBD devices, and their files through FUSE and the control
//! API.

pub mod access;
pub mod browse;
mod devices;
pub mod exports;
pub mod foreign_fd;
