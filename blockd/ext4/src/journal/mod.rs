//! Journal replay in memory (section "Journal (jbd2)").

mod log;
mod scan;

use crate::{
    ExtError, Filesystem, InodeNumber, JournalState, ReadAt, Structure, error::damaged, features::bit,
    overlay::Overlay, superblock,
};
use log::Log;
use std::sync::Arc;

impl Filesystem {
    /// Opens a filesystem. If its journal needs recovery, this reads the used part of the journal and replays
    /// it in memory.
    ///
    /// # Errors
    /// The image holds no filesystem or cannot be read, a feature is unsupported, or the superblock or the
    /// journal is damaged.
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self, ExtError> {
        let mut this = Self::open_without_replay(source)?;
        if !this.superblock.features.has_compat(bit::COMPAT_HAS_JOURNAL) {
            return Ok(this);
        }
        this.journal = JournalState::Clean;
        if !this.superblock.features.has_incompat(bit::INCOMPAT_RECOVER) {
            // As in the kernel: the contents of such a journal are stale.
            return Ok(this);
        }
        if this.superblock.journal_inode == 0 {
            return match this.superblock.journal_device {
                0 => damaged(Structure::Journal, "recovery needed, but neither inode nor device recorded"),
                _ => Err(ExtError::unsupported("recovery from an external journal")),
            };
        }
        let number = InodeNumber(this.superblock.journal_inode);
        let (overlay, state) = replay(&this, this.disk.source(), number)?;
        this.disk.set_overlay(overlay);
        this.journal = state;
        // The journal may contain a newer superblock, such as after a resize.
        let (block, within) = superblock::location(this.superblock.block_len);
        let mut bytes = [0; superblock::LEN];
        this.disk.read(block, within, &mut bytes)?;
        let replayed = superblock::parse(&bytes, this.disk.source().size_bytes())?;
        if replayed.block_len != this.superblock.block_len {
            return damaged(Structure::Journal, "its superblock copy has another block size");
        }
        this.disk.set_blocks(replayed.blocks);
        this.superblock = replayed;
        Ok(this)
    }
}

/// Scans a journal that needs recovery, and returns the overlay of the blocks that it replaces.
fn replay(
    fs: &Filesystem,
    source: &dyn ReadAt,
    inode: InodeNumber,
) -> Result<(Overlay, JournalState), ExtError> {
    let Some(log) = Log::open(fs, source, inode)? else {
        return Ok((Overlay::default(), JournalState::Clean));
    };
    let scanned = scan::scan(&log)?;
    let (transactions, damaged) = (scanned.transactions, scanned.damaged);
    // Stale fast commits of an earlier lap of the ring have another transaction id.
    let fast_commits = !damaged && log.fast_tid == Some(scanned.next);
    let overlay = scanned.into_overlay(&log);
    let blocks = overlay.len();
    Ok((overlay, JournalState::Replayed { transactions, blocks, damaged, fast_commits }))
}

/// Checks the superblock of a journal.
pub(crate) fn check(fs: &Filesystem, source: &dyn ReadAt, inode: InodeNumber) -> Result<(), ExtError> {
    Log::open(fs, source, inode).map(|_| ())
}
