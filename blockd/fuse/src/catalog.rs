//! What is shown, as whoever shows it sees it: a list of snapshots, and readers of their images.

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
    /// What follows the time in its name: any text, escaped where it is shown, not the same for two of one
    /// volume.
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
    /// Whether it is data.
    pub is_data: bool,
    /// Where it ends, in bytes from the beginning of the image. More of the same kind may follow.
    pub end_bytes: u64,
}

/// An image that is open for reading. What it holds never changes.
pub trait Image: Send + Sync {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` with the bytes from `offset_bytes` on, all of which lie inside. May block, but not for
    /// ever.
    ///
    /// # Errors
    /// They cannot be had, or do not lie inside.
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

/// Where snapshots come from.
pub trait Catalog: Send + Sync + 'static {
    /// All snapshots, as new as the catalog can say without keeping anybody waiting for long. The same list,
    /// rather than an equal one, if nothing changed.
    fn snapshots(&self) -> Arc<Vec<SnapshotEntry>>;

    /// What whoever looks at the list should know of what is not in it, as a text; none if there is nothing.
    fn unlisted(&self) -> Option<String> {
        None
    }

    /// Opens a snapshot.
    ///
    /// # Errors
    /// It is gone, or cannot be read.
    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn Image>>;

    /// What is known of a snapshot, as JSON.
    ///
    /// # Errors
    /// It is gone, or cannot be read.
    fn manifest_json(&self, key: &SnapshotKey) -> io::Result<Vec<u8>>;
}
