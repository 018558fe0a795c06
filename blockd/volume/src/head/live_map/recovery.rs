//! Live maps of earlier processes: recovery at a start, and read-only inspection.

use super::{
    LiveMap,
    bitmap::runs_of_word,
    bitmap_bytes,
    header::{HEADER_BYTES, HEADER_READ_BYTES, Header, Rejection},
    invalidate,
};
use crate::{
    error::{IoContext, VolumeError},
    head::discarded::{DiscardCause, DiscardedWrites},
    head::volume_dir::{Identity, VolumeDir},
    io::storage::File,
    layer::data_files::data_ranges,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use std::{io, path::Path};

/// Length of one read of the file.
const READ_BYTES: usize = 64 << 10;

/// Trusted map of an earlier process.
pub(crate) struct Found {
    pub(crate) map: LiveMap,
    pub(crate) clean: bool,
}

/// Rejected map.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) why: Rejection,
    /// True if the header is valid and marks a clean stop: the log names all blocks of the map.
    pub(crate) clean: bool,
}

impl Rejected {
    /// Logs the rejection. Records a loss if acknowledged writes may be lost and a client may have survived.
    pub(crate) fn report(&self, volume_dir: VolumeDir<'_>, serves_remote: bool) -> Result<(), VolumeError> {
        let Self { why, clean } = self;
        if *clean {
            return Ok(());
        }
        tracing::warn!(volume = %volume_dir.volume, %why, "live map rejected: head recovered to its last flush");
        let cause = match why {
            Rejection::NotOurs | Rejection::Unfinished => DiscardCause::MapMissing,
            // No client on this host survived the boot.
            Rejection::OtherBoot if !serves_remote => return Ok(()),
            Rejection::OtherBoot => DiscardCause::OtherBoot,
            Rejection::OtherMount | Rejection::PowerLoss => DiscardCause::OtherMount,
            Rejection::Unreadable(_) => DiscardCause::MapUnreadable,
            Rejection::WritebackFailed(_) => DiscardCause::WritebackFailed,
        };
        DiscardedWrites::now(cause).record(volume_dir.path)
    }
}

/// State of an inspected map.
pub(crate) enum Inspection {
    /// Trusted by a start.
    Trusted(InspectedMap),
    /// Valid, but of an earlier boot or mount: recovery uses the log.
    Stale,
    /// Missing, or with a defective header: its blocks are unknown. Contains the error.
    Suspect(String),
}

/// Blocks of a map that a start would trust.
pub(crate) struct InspectedMap {
    pub(crate) held: BlockSet,
    /// First block without a bit in a truncated file.
    pub(crate) unread: Option<BlockIndex>,
}

impl LiveMap {
    /// Syncs and opens the map of an earlier process, or returns the reason for rejecting it.
    ///
    /// The sync comes first: after a failed writeback the kernel may have dropped pages of the map, and only
    /// the next sync reports that.
    ///
    /// The caller removes the clean mark before the first acknowledged write. A map with the mark is not
    /// invalidated: the mark is the evidence that no write was lost.
    ///
    /// Without `trust_map` only the header is read, and the map is always rejected.
    ///
    /// # Errors
    /// The map has a newer format, or a map that would be trusted cannot be opened or read, or is damaged. A
    /// retry may succeed, whereas recovery from the log would discard acknowledged writes.
    pub(crate) fn open(
        path: &Path,
        identity: Identity,
        trust_map: bool,
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
            // A retry cannot help: the sector stays unreadable.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return rejected(Rejection::Unreadable(error), false);
            }
            Err(error) => return Err(error).during("read", path),
        };
        header.check_version(path)?;
        if let Some(why) = header.rejection(identity, &file)? {
            let clean = header.is_clean() && !matches!(why, Rejection::NotOurs);
            return rejected(why, clean);
        }
        let clean = header.is_clean();
        if !trust_map {
            return rejected(Rejection::PowerLoss, clean);
        }
        if let Err(error) = file.sync_data() {
            if !clean {
                invalidate(&file, path);
            }
            return rejected(Rejection::WritebackFailed(error), clean);
        }
        let header = Header::compose(identity, &file);
        let map = Self::with(file, path, header, identity.blocks);
        map.load()?;
        Ok(Ok(Found { map, clean }))
    }

    /// Returns true if an open may record a loss for another reason than another boot, read-only.
    pub(crate) fn may_show_loss(path: &Path, identity: Identity) -> bool {
        let rejection = || {
            let file = File::open_to_read(path).during("open", path)?;
            let header = read_header(&file).during("read", path)?;
            Ok::<_, VolumeError>(header.rejection(identity, &file)?.filter(|_| !header.is_clean()))
        };
        !matches!(rejection(), Ok(None | Some(Rejection::OtherBoot)))
    }

    /// Reads the bitmap into memory.
    fn load(&self) -> Result<(), VolumeError> {
        let end = HEADER_BYTES + bitmap_bytes(self.blocks);
        if self.file.metadata().during("stat", &self.path)?.len() != end {
            let what = format!("length differs from {end} bytes");
            return Err(VolumeError::Damaged { path: self.path.clone(), what });
        }
        let mut beyond = None;
        read_bits(&self.file, &self.path, end, |extent| {
            if extent.end().0 > self.blocks {
                beyond = Some(extent.end());
            } else {
                self.held.set(extent, |_| {});
            }
        })?;
        match beyond {
            Some(block) => {
                let what =
                    format!("block {} is beyond the {} blocks of the volume", block.0 - 1, self.blocks);
                Err(VolumeError::Damaged { path: self.path.clone(), what })
            }
            None => Ok(()),
        }
    }

    /// Checks that the map of an earlier process has no newer format, read-only. Leaves other errors to
    /// [`open`](Self::open).
    pub(crate) fn check_version(path: &Path) -> Result<(), VolumeError> {
        let header = File::open_to_read(path).and_then(|file| read_header(&file));
        header.map_or(Ok(()), |header| header.check_version(path))
    }

    /// Inspects the map of an earlier process, read-only.
    ///
    /// # Errors
    /// The map has a newer format, or the file cannot be read.
    pub(crate) fn inspect(path: &Path, identity: Identity) -> Result<Inspection, VolumeError> {
        let blocks = identity.blocks;
        let suspect = |what: &str| Inspection::Suspect(format!("{} is damaged: {what}", path.display()));
        let file = match File::open_to_read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(suspect("file is missing")),
            other => other.during("open", path)?,
        };
        let header = match read_header(&file) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(suspect("file is truncated"));
            }
            other => other.during("read", path)?,
        };
        header.check_version(path)?;
        if let Some(what) = header.defect(identity, &file)? {
            return Ok(suspect(what));
        }
        if header.rejection(identity, &file)?.is_some() {
            return Ok(Inspection::Stale);
        }
        let end = HEADER_BYTES + bitmap_bytes(blocks);
        let end_of_file = file.metadata().during("stat", path)?.len().min(end);
        let mut held = BlockSet::new();
        read_bits(&file, path, end_of_file, |extent| {
            held.insert_extent(Extent::between(extent.start, extent.end().min(BlockIndex(blocks))));
        })?;
        debug_assert!(held.last().is_none_or(|last| last.0 < blocks), "blocks beyond the end of the map");
        let unread = BlockIndex(end_of_file.saturating_sub(HEADER_BYTES) * 8);
        let unread = (end_of_file < end && unread.0 < blocks).then_some(unread);
        Ok(Inspection::Trusted(InspectedMap { held, unread }))
    }
}

fn read_header(file: &File) -> io::Result<Header> {
    let mut header = [0; HEADER_READ_BYTES];
    file.read_exact_at(&mut header, 0)?;
    Ok(Header(header))
}

/// Reads the bitmap up to an offset of the file and reports its extents, split at byte boundaries.
fn read_bits(file: &File, path: &Path, end: u64, mut found: impl FnMut(Extent)) -> Result<(), VolumeError> {
    let mut bytes = vec![0u8; READ_BYTES];
    for range in data_ranges(file, path, HEADER_BYTES..end) {
        let range = range?;
        let mut at = range.start;
        while at < range.end {
            debug_assert!(at >= HEADER_BYTES && range.end <= end, "the bitmap follows the header");
            let len = (range.end - at).min(READ_BYTES as u64) as usize;
            file.read_exact_at(&mut bytes[..len], at).during("read", path)?;
            for (nth, byte) in (0u64..).zip(&bytes[..len]).filter(|(_, byte)| **byte != 0) {
                runs_of_word(u64::from(*byte), |low, count| {
                    found(Extent::new(BlockIndex((at - HEADER_BYTES + nth) * 8 + low), count));
                });
            }
            at += len as u64;
        }
    }
    Ok(())
}
