//! Browsing of snapshots: as files through FUSE and the control API, and cloud snapshots over NBD.
//!
//! All of it reads cloud snapshots through one cache, which is opened on first use. The functions here block;
//! their callers are threads of FUSE, NBD workers, and blocking threads of the runtime.

mod browser;
mod export;
mod files;
mod images;
mod listing;
mod mount_table;
mod mounts;
mod request_limit;
mod stores;
mod user_mounts;

pub use browser::{Browse, Browser};
pub use export::CloudExports;
