//! Source of the view: a list of snapshots, and readers of their images.

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

/// A run of bytes of an image that are all data, or are all nothing and read as zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageRun {
    /// The range has data.
    pub is_data: bool,
    /// End in the image, in bytes. A range of the same kind may follow.
    pub end_bytes: u64,
}

/// An image that is open for reading. What it holds never changes.
pub trait Image: Send + Sync {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes` on. May block for a bounded time.
    ///
    /// # Errors
    /// The range is unavailable or not inside the image.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The same if it can be had at once: false if not, and `buf` may hold anything then.
    ///
    /// # Errors
    /// Those of [`read_at`](Self::read_at).
    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
        let _ = (offset_bytes, buf);
        Ok(false)
    }

    /// The run that holds the byte at `offset_bytes`, which lies inside. May block, but not for ever.
    ///
    /// # Errors
    /// It cannot be found out.
    fn run_at(&self, offset_bytes: u64) -> io::Result<ImageRun>;
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
    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn Image>>;

    /// Returns the manifest of a snapshot as JSON.
    ///
    /// # Errors
    /// It is gone or unreadable.
    fn manifest_json(&self, key: &SnapshotKey) -> io::Result<Vec<u8>>;
}
