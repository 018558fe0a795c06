//! The journal, and playing it back in memory (section "Journal (jbd2)").

mod log;
mod overlay;
mod scan;

pub(crate) use overlay::{Overlay, Patch};

use crate::{ExtError, Filesystem, InodeNumber, ReadAt};
use log::Log;

/// State of a filesystem's journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalState {
    /// There is none.
    None,
    /// There was nothing in it to play back.
    Clean,
    /// It was played back in memory.
    Replayed {
        /// Number of transactions.
        transactions: u32,
        /// Number of replayed blocks.
        blocks: u32,
        /// The journal ends in a damaged transaction, which was skipped with those after it.
        damaged: bool,
        /// Fast commits follow, which are not replayed: the last synced data is missing.
        fast_commits: bool,
    },
}

/// Plays the journal back: a table of the blocks that are to be taken from it. It was not played back, says
/// the superblock.
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
    // Those of an earlier round name another transaction.
    let fast_commits = !damaged && log.fast_tid == Some(scanned.next);
    let overlay = scanned.into_overlay(&log);
    let blocks = overlay.len();
    Ok((overlay, JournalState::Replayed { transactions, blocks, damaged, fast_commits }))
}
