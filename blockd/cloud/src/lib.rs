//! The cloud format: how snapshots of volumes rest in object stores, and come back.
//!
//! A snapshot owns one delta, the blocks that changed, in frames, packs and an index, and a manifest that names that
//! delta and all those below it; the manifest is put last and is the commit. The format is written down byte for byte
//! in `FORMAT.md`; volumes are known here only as block sets and as whoever reads and writes blocks.

mod backup;
mod cached;
mod delete;
mod error;
mod fetch;
mod frame;
#[cfg(test)]
mod golden;
mod index;
mod index_writer;
mod journal;
mod keys;
mod manifest;
mod names;
mod pack;
mod plan;
mod progress;
mod reader;
mod repository;
mod restore;
mod seal;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use backup::{BackupOptions, BackupSpec, BlockReader, backup, check_base, new_delta_salt};
pub use cached::{CacheCounters, CacheOptions, CachedSnapshot, SnapshotCache};
pub use delete::{DeleteReport, delete_snapshot, delete_with_manifest};
pub use error::CloudError;
pub use journal::{BackupJournal, FileJournal, JournalBinding, MemoryJournal};
pub use keys::{DataKey, KdfParams};
pub use manifest::{BackupType, Delta, IndexRef, Manifest};
pub use names::CloudsnapId;
pub use progress::{CancelToken, Phase, Progress, ProgressSnapshot};
pub use reader::SnapshotReader;
pub use repository::{
    ListedManifest, ManifestCache, ManifestFilter, MemoryCache, NoCache, OpenOptions, Repository,
};
pub use restore::{BlockWriter, RestoreOptions, RestoreSummary, restore};
pub use seal::EncryptionMode;

/// The version of the format that is written and read.
pub const FORMAT_VERSION: u16 = 1;
