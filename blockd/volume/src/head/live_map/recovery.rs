//! Maps of earlier processes: opened by a start, or inspected without a change.

use super::{
    LiveMap,
    bitmap::runs_of_word,
    bitmap_bytes, disown,
    header::{HEADER_BYTES, HEADER_READ_BYTES, Header, Rejection},
};
use crate::{
    error::{IoContext, VolumeError},
    head::discarded::{DiscardCause, DiscardedWrites},
    head::place::{Identity, Place},
    io::storage::File,
    layer::data_files::data_ranges,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use std::{io, path::Path};

/// Length of a read of the file.
const READ_BYTES: usize = 64 << 10;

/// Believed map of an earlier process.
pub(crate) struct Found {
    pub(crate) map: LiveMap,
    pub(crate) clean: bool,
}

/// Rejected map.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) why: Rejection,
    /// The header is valid and marks a clean stop: the log names all blocks of the map.
    pub(crate) clean: bool,
}

impl Rejected {
    /// Logs the rejection and records the loss, if acknowledged writes may be gone and a client may have
    /// survived.
    pub(crate) fn report(&self, place: Place<'_>, serves_remote: bool) -> Result<(), VolumeError> {
        let Self { why, clean } = self;
        if *clean {
            return Ok(());
        }
        tracing::warn!(volume = %place.volume, %why, "the live map is not believed: the head is as of the last flush");
        let cause = match why {
            Rejection::NotOurs | Rejection::Unfinished => DiscardCause::MapMissing,
            // No client on this host has survived.
            Rejection::OtherBoot if !serves_remote => return Ok(()),
            Rejection::OtherBoot => DiscardCause::OtherBoot,
            Rejection::OtherMount | Rejection::PowerLoss => DiscardCause::OtherMount,
            Rejection::Unreadable(_) => DiscardCause::MapUnreadable,
            Rejection::WritebackFailed(_) => DiscardCause::WritebackFailed,
        };
        DiscardedWrites::now(cause).record(place.dir)
    }
}

/// State of a map that is only inspected.
pub(crate) enum Inspection {
    /// A start would believe it.
    Believed(InspectedMap),
    /// Valid, but written before the last boot or mount: the log decides.
    Outlived,
    /// Missing, or with an invalid header: its blocks are unknown.
    Doubtful(String),
}

/// Blocks of a map that a start would believe.
pub(crate) struct InspectedMap {
    pub(crate) held: BlockSet,
    /// First block whose bit is missing in a truncated file.
    pub(crate) unread: Option<BlockIndex>,
}

impl LiveMap {
    /// Opens the map of an earlier process after syncing it, or returns why it is not trusted.
    ///
    /// The sync comes first: the kernel may have dropped pages of a map with a failed writeback, and only the
    /// next sync reports that.
    ///
    /// Without `believe` it is always rejected, and only the header is read.
    ///
    /// # Errors
    /// If a map that is to be believed cannot be opened or read, or is damaged: another attempt may succeed,
    /// and going by the log instead would discard writes that were answered.
    pub(crate) fn open(
        path: &Path,
        identity: Identity,
        believe: bool,
    ) -> Result<Result<Found, Rejected>, VolumeError> {
        let rejected = |why, clean| Ok(Err(Rejected { why, clean }));
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return rejected(Rejection::NotOurs, false);
            }
            other => other.during("open", path)?,
        };
        let header = match read_header(&file) {
            Ok(header) => header,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return rejected(Rejection::Unfinished, false);
            }
            // The need for the map is unknown then; an unreadable sector stays unreadable.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return rejected(Rejection::Unreadable(error), false);
            }
            Err(error) => return Err(error).during("read", path),
        };
        if let Some(why) = header.rejection(identity, &file)? {
            let clean = header.is_clean() && !matches!(why, Rejection::NotOurs);
            return rejected(why, clean);
        }
        let clean = header.is_clean();
        if !believe {
            return rejected(Rejection::PowerLoss, clean);
        }
        if let Err(error) = file.sync_data() {
            disown(&file, path);
            return rejected(Rejection::WritebackFailed(error), clean);
        }
        let header = Header::compose(identity, &file);
        let map = Self::with(file, path, header, identity.blocks);
        map.load()?;
        // Before the first write is answered: a start in another boot must not take this head for one that
        // was closed. Also where the mark is not there: a start whose sync failed leaves it on the disk
        // alone.
        map.set_clean(false)?;
        Ok(Ok(Found { map, clean }))
    }

    /// Reads the bitmap into memory.
    fn load(&self) -> Result<(), VolumeError> {
        let end = HEADER_BYTES + bitmap_bytes(self.blocks);
        if self.file.metadata().during("look at", &self.path)?.len() != end {
            let what = format!("it should have {end} bytes");
            return Err(VolumeError::Damaged { path: self.path.clone(), what });
        }
        let mut beyond = None;
        read_bits(&self.file, &self.path, end, |run| {
            if run.end().0 > self.blocks {
                beyond = Some(run.end());
            } else {
                self.held.set(run, |_| {});
            }
        })?;
        match beyond {
            Some(block) => {
                let what = format!("it names block {} of {}", block.0, self.blocks);
                Err(VolumeError::Damaged { path: self.path.clone(), what })
            }
            None => Ok(()),
        }
    }

    /// Reads the map of an earlier process, as far as a start would believe it, and changes nothing.
    pub(crate) fn inspect(path: &Path, identity: Identity) -> Result<Inspection, VolumeError> {
        let blocks = identity.blocks;
        let doubtful = |what: &str| Inspection::Doubtful(format!("{}: {what}", path.display()));
        let file = match File::open_to_read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(doubtful("it is missing")),
            other => other.during("open", path)?,
        };
        let header = match read_header(&file) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(doubtful("it is cut short"));
            }
            other => other.during("read", path)?,
        };
        if let Some(what) = header.doubt(identity, &file)? {
            return Ok(doubtful(what));
        }
        if header.rejection(identity, &file)?.is_some() {
            return Ok(Inspection::Outlived);
        }
        let end = HEADER_BYTES + bitmap_bytes(blocks);
        let there = file.metadata().during("look at", path)?.len().min(end);
        let mut held = BlockSet::new();
        read_bits(&file, path, there, |run| {
            held.insert_extent(Extent::between(run.start, run.end().min(BlockIndex(blocks))));
        })?;
        debug_assert!(held.last().is_none_or(|last| last.0 < blocks), "blocks beyond the end of the map");
        let unread = BlockIndex(there.saturating_sub(HEADER_BYTES) * 8);
        let unread = (there < end && unread.0 < blocks).then_some(unread);
        Ok(Inspection::Believed(InspectedMap { held, unread }))
    }
}

fn read_header(file: &File) -> io::Result<Header> {
    let mut header = [0; HEADER_READ_BYTES];
    file.read_exact_at(&mut header, 0)?;
    Ok(Header(header))
}

/// Reads the bitmap up to an end in the file, and reports its runs; runs end at the borders of bytes.
fn read_bits(file: &File, path: &Path, end: u64, mut found: impl FnMut(Extent)) -> Result<(), VolumeError> {
    let mut bytes = vec![0u8; READ_BYTES];
    for range in data_ranges(file, path, HEADER_BYTES..end) {
        let range = range?;
        let mut at = range.start;
        while at < range.end {
            debug_assert!(at >= HEADER_BYTES && range.end <= end, "bits lie behind the header");
            let len = (range.end - at).min(READ_BYTES as u64) as usize;
            file.read_exact_at(&mut bytes[..len], at).during("read", path)?;
            for (nth, byte) in (0u64..).zip(&bytes[..len]).filter(|(_, byte)| **byte != 0) {
                runs_of_word(u64::from(*byte), |low, run| {
                    found(Extent::new(BlockIndex((at - HEADER_BYTES + nth) * 8 + low), run));
                });
            }
            at += len as u64;
        }
    }
    Ok(())
}
