//! Source of the view: a list of snapshots, and readers of their images.

use blockd_extent::BlockSource;
use std::{fmt, io, sync::Arc, time::SystemTime};

/// Names a snapshot to the catalog that it came from; never shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotKey(pub Arc<str>);

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A snapshot in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// Names it to the catalog.
    pub key: SnapshotKey,
    /// The directory that it is in: any text, escaped where it is shown.
    pub volume: String,
    /// Id after the time in the name: any text, escaped on display, unique in a volume.
    pub id: String,
    /// When it was taken.
    pub created: SystemTime,
    /// Size of its image, in bytes.
    pub size_bytes: u64,
    /// About how many bytes of it are data.
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
    /// It is gone, or cannot be read.
    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>>;

    /// Returns the manifest of a snapshot as JSON.
    ///
    /// # Errors
    /// It is gone or unreadable.
    fn manifest_json(&self, key: &SnapshotKey) -> io::Result<Vec<u8>>;
}
