//! Open filesystems.

use crate::{
    ExtError, ReadAt,
    disk::Disk,
    features::bit,
    superblock::{self, Superblock},
};
use std::sync::Arc;

/// State of a filesystem's journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalState {
    /// The filesystem has no journal, or was opened without replay.
    None,
    /// The journal needed no recovery.
    Clean,
    /// The journal was replayed in memory.
    Replayed {
        /// Number of replayed transactions.
        transactions: u32,
        /// Number of blocks that the journal replaces.
        blocks: u32,
        /// The journal ends with a damaged transaction, which was skipped with those after it.
        damaged: bool,
        /// Fast commits follow, which are not replayed: the changes synced last are missing.
        fast_commits: bool,
    },
}

/// Information about a filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Block size, in bytes.
    pub block_len_bytes: u32,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Volume label (`s_volume_name`); any bytes except zero.
    pub label: Vec<u8>,
    /// UUID.
    pub uuid: [u8; 16],
    /// State of the journal.
    pub journal: JournalState,
}

/// Filesystem open for reading, also by several threads concurrently.
pub struct Filesystem {
    pub(crate) disk: Disk,
    pub(crate) superblock: Superblock,
    pub(crate) journal: JournalState,
}

impl std::fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filesystem").field("superblock", &self.superblock).finish_non_exhaustive()
    }
}

impl Filesystem {
    /// Opens a filesystem without journal replay, which suffices to locate its [metadata](Self::metadata).
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_without_replay(source: Arc<dyn ReadAt>) -> Result<Self, ExtError> {
        let superblock = superblock::read(&*source)?;
        let disk = Disk::new(source, superblock.block_len, superblock.blocks);
        Ok(Self { disk, superblock, journal: JournalState::None })
    }

    /// Returns information about the filesystem.
    pub fn info(&self) -> Info {
        Info {
            block_len_bytes: self.superblock.block_len,
            size_bytes: self.superblock.blocks * u64::from(self.superblock.block_len),
            label: self.superblock.label.clone(),
            uuid: self.superblock.uuid,
            journal: self.journal,
        }
    }

    /// Returns the version by the features in use: `ext2`, `ext3` or `ext4`.
    pub fn version(&self) -> &'static str {
        let features = self.superblock.features;
        match features.has_incompat(bit::INCOMPAT_EXTENTS | bit::INCOMPAT_64BIT | bit::INCOMPAT_FLEX_BG) {
            true => "ext4",
            false if features.has_compat(bit::COMPAT_HAS_JOURNAL) => "ext3",
            false => "ext2",
        }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }
}
