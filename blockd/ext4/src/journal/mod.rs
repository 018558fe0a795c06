//! Journal replay in memory (section "Journal (jbd2)").

mod log;
mod overlay;
mod scan;

pub(crate) use overlay::{Overlay, Patch};

use crate::{ExtError, Filesystem, InodeNumber, ReadAt};
use log::Log;

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

/// Scans a journal that needs recovery, and returns the overlay of the blocks that it replaces.
pub(crate) fn replay(
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
