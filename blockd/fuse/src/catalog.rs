//! Source of the view: a list of snapshots, and readers of their images.

use blockd_extent::BlockSource;
use std::{fmt, io, sync::Arc, time::SystemTime};

/// Opaque key of a snapshot in its catalog; never shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotKey(pub Arc<str>);

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Snapshot in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// Key in the catalog.
    pub key: SnapshotKey,
    /// Name of its volume: any text, escaped on display.
    pub volume: String,
    /// Id after the time in the name: any text, escaped on display, unique in a volume.
    pub id: String,
    /// Point in time.
    pub created: SystemTime,
    /// Size of its image, in bytes.
    pub size_bytes: u64,
    /// Approximate amount of data, in bytes.
    pub data_bytes: u64,
}

/// Source of snapshots.
pub trait Catalog: Send + Sync + 'static {
    /// Returns all snapshots, as recent as possible without a long wait. An unchanged list is the same `Arc`.
    fn snapshots(&self) -> Arc<Vec<SnapshotEntry>>;

    /// Returns a text about stores missing in the list, if any.
    fn unlisted(&self) -> Option<String> {
        None
    }

    /// Opens a snapshot.
    ///
    /// # Errors
    /// The snapshot was deleted, or cannot be read.
    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>>;

    /// Returns the manifest of a snapshot as JSON.
    ///
    /// # Errors
    /// The snapshot was deleted, or cannot be read.
    fn manifest_json(&self, key: &SnapshotKey) -> io::Result<Vec<u8>>;
}
