//! Data of a layer: a sparse file with the offsets of the volume.
//!
//! ext4 limits files to 16 TiB and volumes have up to 64 TiB, so data is split into segments of 8 TiB; a
//! volume of up to 8 TiB has one file. All I/O uses the page cache: see the measurements in
//! `kernel-notes/page-cache.md`.

mod holes;

pub(crate) use holes::data_ranges;

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    io::files::remove_if_there,
    io::storage::{self, File},
    layer::shared,
};
use std::{
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Length of a volume covered by one data file.
const SEGMENT_BYTES: u64 = 8 << 40;
/// Maximum length of a single write. The page cache allocates folios as large as the write, and ext4 examines
/// every block of a folio at each overwrite: 4 KiB into a folio of 1 MiB costs two to three times as much as
/// into one of 64 KiB, and writing 1 MiB in 16 steps is not slower than in one
/// (`kernel-notes/nbd-server.md`).
const PIECE_BYTES: u64 = 64 << 10;

/// Open data files of a layer.
pub(crate) struct DataFiles {
    segments: Vec<Segment>,
}

struct Segment {
    file: File,
    path: PathBuf,
    open: shared::Open,
}

impl Segment {
    fn new(file: File, path: PathBuf) -> Result<Self, VolumeError> {
        let found = file.metadata().during("look at", &path)?;
        let open = shared::Open::new((found.dev(), found.ino()), path.parent().unwrap_or(Path::new("")));
        Ok(Self { file, path, open })
    }

    /// Returns true if another volume may read the file: it has another link, or another volume has it open
    /// after removing its link, because a snapshot there is still read.
    fn is_shared(&self) -> Result<bool, VolumeError> {
        let found = self.file.metadata().during("look at", &self.path)?;
        Ok(found.nlink() > 1 || self.open.by_others())
    }
}

fn segment_path(base: &Path, number: u64) -> PathBuf {
    if number == 0 {
        return base.to_owned();
    }
    let mut name = base.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn segment_lens(size_bytes: u64) -> impl Iterator<Item = u64> {
    (0..size_bytes.div_ceil(SEGMENT_BYTES)).map(move |n| (size_bytes - n * SEGMENT_BYTES).min(SEGMENT_BYTES))
}

/// Part of a range in one file.
pub(crate) struct FilePart<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
}

/// Missing data.
pub(crate) struct Gap {
    pub(crate) range: Range<u64>,
    /// Reason, in one line.
    pub(crate) what: String,
}

/// Options of zeroing.
#[derive(Clone, Copy, Default)]
pub(crate) struct ZeroHow {
    /// Keep the space allocated.
    pub(crate) keep_space: bool,
    /// Fail instead of writing zeroes on filesystems that can neither punch nor zero a range.
    pub(crate) fast: bool,
}

/// Result of sharing extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shared {
    /// The range is shared.
    Done,
    /// This range must be copied.
    NotThis,
    /// These files cannot share extents.
    Never,
}

impl DataFiles {
    /// Creates empty files; the caller syncs the directory.
    pub(crate) fn create(base: &Path, size_bytes: u64) -> Result<Self, VolumeError> {
        Self::extend(base, 0, size_bytes)
    }

    /// Opens existing files and checks that none is missing or too short. A file that is too long remains
    /// from an interrupted merge of a larger layer; it is truncated, unless another volume shares it.
    pub(crate) fn open(base: &Path, size_bytes: u64) -> Result<Self, VolumeError> {
        let mut segments = Vec::new();
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            let file = File::open(&path).during("open", &path)?;
            let found = file.metadata().during("look at", &path)?.len();
            if found < len {
                let what = format!("it is {found} bytes long, it must be {len}");
                return Err(VolumeError::Damaged { path, what });
            }
            let segment = Segment::new(file, path)?;
            if found > len && !segment.is_shared()? {
                segment.file.set_len(len).during("set the length of", &segment.path)?;
            }
            segments.push(segment);
        }
        Ok(Self { segments })
    }

    /// Opens the existing files of a layer without changes; also returns missing ranges with reasons.
    pub(crate) fn open_for_salvage(base: &Path, size_bytes: u64) -> Result<(Self, Vec<Gap>), VolumeError> {
        let (mut segments, mut gaps) = (Vec::new(), Vec::new());
        for (number, len) in (0u64..).zip(segment_lens(size_bytes)) {
            let path = segment_path(base, number);
            let opened = File::open_to_read(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
            let (found, file, what) = match opened.during("open", &path) {
                Ok((found, file)) => {
                    let what = format!("{} is {found} bytes long, it must be {len}", path.display());
                    (found, file, what)
                }
                Err(error) => (0, File::nothing(&path).during("open", &path)?, error.to_string()),
            };
            if found < len {
                let base = number * SEGMENT_BYTES;
                gaps.push(Gap { range: base + found..base + len, what });
            }
            segments.push(Segment::new(file, path)?);
        }
        Ok((Self { segments }, gaps))
    }

    /// Opens the files of a layer of `old_bytes` and extends them with zeroes to `new_bytes`. The caller
    /// syncs the directory.
    pub(crate) fn extend(base: &Path, old_bytes: u64, new_bytes: u64) -> Result<Self, VolumeError> {
        assert!(old_bytes <= new_bytes, "files are extended, not cut");
        let old_segments = segment_lens(old_bytes).count();
        let mut segments = Vec::new();
        for (number, len) in segment_lens(new_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            let file = match number >= old_segments {
                true => File::create(&path).during("create", &path)?,
                false => File::open(&path).during("open", &path)?,
            };
            file.set_len(len).during("set the length of", &path)?;
            file.sync_all().during("sync", &path)?;
            segments.push(Segment::new(file, path)?);
        }
        assert!(segments.len() >= old_segments, "files are extended, not cut");
        Ok(Self { segments })
    }

    /// Reports files that are missing, too short, or different from the open ones.
    pub(crate) fn check(&self, size_bytes: u64, findings: &mut Vec<String>) {
        for (segment, len) in self.segments.iter().zip(segment_lens(size_bytes)) {
            let path = segment.path.display();
            match (storage::metadata(&segment.path), segment.file.metadata()) {
                (Err(error), _) | (_, Err(error)) => findings.push(format!("cannot look at {path}: {error}")),
                (Ok(named), Ok(open)) if (named.dev(), named.ino()) != (open.dev(), open.ino()) => {
                    findings.push(format!("{path} is another file than the one that the volume has open"));
                }
                (Ok(named), Ok(_)) if named.len() < len => {
                    findings.push(format!("{path} is {} bytes long, it must be {len}", named.len()));
                }
                _ => {}
            }
        }
    }

    /// Reports missing or short files of a closed layer; returns the highest number of links.
    pub(crate) fn check_closed(base: &Path, size_bytes: u64, findings: &mut Vec<String>) -> u64 {
        let mut most_links = 0;
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            match storage::metadata(&path) {
                Err(error) => findings.push(format!("cannot look at {}: {error}", path.display())),
                Ok(found) if found.len() < len => {
                    findings.push(format!(
                        "{} is {} bytes long, it must be {len}",
                        path.display(),
                        found.len()
                    ));
                }
                Ok(found) => most_links = most_links.max(found.nlink()),
            }
        }
        most_links
    }

    /// Returns true if another volume may read one of the files, which forbids writes.
    pub(crate) fn are_shared(&self) -> Result<bool, VolumeError> {
        self.segments.iter().try_fold(false, |shared, segment| Ok(shared || segment.is_shared()?))
    }

    /// Links the files into another volume; `base` is their path there.
    pub(crate) fn link_to(&self, base: &Path) -> Result<(), VolumeError> {
        for (number, segment) in self.segments.iter().enumerate() {
            let path = segment_path(base, number as u64);
            storage::hard_link(&segment.path, &path).map_err(|source| {
                let errno = source.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
                match errno {
                    Some(rustix::io::Errno::XDEV | rustix::io::Errno::MLINK | rustix::io::Errno::PERM) => {
                        VolumeError::NotShareable { path: segment.path.clone(), source }
                    }
                    _ => VolumeError::Io { action: "share with a clone", path: segment.path.clone(), source },
                }
            })?;
        }
        Ok(())
    }

    /// Returns the paths of a layer's files.
    pub(crate) fn paths(base: &Path, size_bytes: u64) -> impl Iterator<Item = PathBuf> {
        segment_lens(size_bytes).enumerate().map(move |(number, _)| segment_path(base, number as u64))
    }

    /// Removes the existing files of a layer.
    pub(crate) fn remove(base: &Path, size_bytes: u64) -> Result<(), VolumeError> {
        Self::paths(base, size_bytes).try_for_each(|path| remove_if_there(&path))
    }

    /// Splits a range at segment boundaries.
    pub(crate) fn parts(&self, offset_bytes: u64, len_bytes: u64) -> impl Iterator<Item = FilePart<'_>> {
        let mut at = offset_bytes;
        let end = offset_bytes + len_bytes;
        assert!(end <= self.segments.len() as u64 * SEGMENT_BYTES, "a range beyond the data files");
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let segment = self.segments.get((at / SEGMENT_BYTES) as usize)?;
            let inner = at % SEGMENT_BYTES;
            let len = (end - at).min(SEGMENT_BYTES - inner);
            at += len;
            Some(FilePart { file: &segment.file, path: &segment.path, offset_bytes: inner, len_bytes: len })
        })
    }

    /// Reads a range.
    pub(crate) fn read(&self, offset_bytes: u64, mut buf: &mut [u8]) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, buf.len() as u64) {
            let (now, rest) = buf.split_at_mut(part.len_bytes as usize);
            part.file.read_exact_at(now, part.offset_bytes).during("read", part.path)?;
            buf = rest;
        }
        assert!(buf.is_empty(), "each byte of a read has a file");
        Ok(())
    }

    /// Reads from the page cache; returns false if the disk would be needed.
    pub(crate) fn try_read(&self, offset_bytes: u64, mut buf: &mut [u8]) -> Result<bool, VolumeError> {
        for part in self.parts(offset_bytes, buf.len() as u64) {
            let (now, rest) = buf.split_at_mut(part.len_bytes as usize);
            match part.file.read_cached_at(now, part.offset_bytes) {
                Ok(count) if count as u64 == part.len_bytes => {}
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP) => return Ok(false),
                Err(errno) => return Err(errno).during("read", part.path),
            }
            buf = rest;
        }
        assert!(buf.is_empty(), "each byte of a read has a file");
        Ok(true)
    }

    pub(crate) fn write(&self, offset_bytes: u64, mut data: &[u8]) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, data.len() as u64) {
            let (now, rest) = data.split_at(part.len_bytes as usize);
            let mut at = part.offset_bytes;
            let mut left = now;
            while !left.is_empty() {
                let (piece, behind) = left.split_at(piece_len(at, left.len()));
                assert!(!piece.is_empty() && piece.len() as u64 <= PIECE_BYTES, "a write advances in pieces");
                part.file.write_all_at(piece, at).during("write", part.path)?;
                at += piece.len() as u64;
                left = behind;
            }
            data = rest;
        }
        assert!(data.is_empty(), "each byte of a write has a file");
        Ok(())
    }

    /// Shares a range of other files.
    pub(crate) fn share_from(
        &self,
        from: &Self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Shared, VolumeError> {
        let parts = self.parts(offset_bytes, len_bytes).zip(from.parts(offset_bytes, len_bytes));
        for (to, from) in parts {
            assert!(to.offset_bytes == from.offset_bytes && to.len_bytes == from.len_bytes, "equal parts");
            match to.file.share_from(from.file, to.offset_bytes, to.len_bytes) {
                Err(error) if storage::cannot_share(&error) => return Ok(Shared::Never),
                Err(error) if storage::cannot_share_range(&error) => return Ok(Shared::NotThis),
                other => other.during("share extents with", to.path)?,
            }
        }
        Ok(Shared::Done)
    }

    /// Punches a hole: the range reads as zeroes and its space is freed.
    pub(crate) fn punch(&self, offset_bytes: u64, len_bytes: u64, fast: bool) -> Result<(), VolumeError> {
        self.zero(offset_bytes, len_bytes, ZeroHow { keep_space: false, fast })
    }

    /// Zeroes a range.
    pub(crate) fn zero(&self, offset_bytes: u64, len_bytes: u64, how: ZeroHow) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, len_bytes) {
            let done = part.file.zero(part.offset_bytes, part.len_bytes, how.keep_space);
            match done.during("zero a range of", part.path) {
                Err(error) if error.kind() == VolumeErrorKind::Unsupported && !how.fast => {
                    write_zeroes(&part)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Asks the kernel to read a range ahead; it may decline.
    pub(crate) fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, len_bytes) {
            part.file.will_need(part.offset_bytes, part.len_bytes).during("read ahead in", part.path)?;
        }
        Ok(())
    }

    /// Makes all written data and the metadata needed to reach it durable. Syncs every segment, also after a
    /// failure: an error left in the kernel would fail a later sync that has lost nothing.
    ///
    /// # Errors
    /// The first one.
    pub(crate) fn sync(&self) -> Result<(), VolumeError> {
        let mut first = Ok(());
        for segment in &self.segments {
            first = first.and(segment.file.sync_data().during("sync", &segment.path));
        }
        first
    }

    /// Drops clean pages from the page cache, so that reads use the disk.
    pub(crate) fn drop_cache(&self) -> Result<(), VolumeError> {
        for segment in &self.segments {
            segment.file.drop_cache().during("drop the cache of", &segment.path)?;
        }
        Ok(())
    }

    /// Returns the allocated bytes.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let files = self.segments.iter().filter_map(|segment| segment.file.metadata().ok());
        files.map(|found| found.blocks() * 512).sum()
    }
}

/// Returns true if a write takes several calls, between which another write can reach the file.
pub(crate) fn is_split(offset_bytes: u64, len: usize) -> bool {
    piece_len(offset_bytes, len) < len
}

/// Returns the length of one write call: up to the next multiple of [`PIECE_BYTES`].
fn piece_len(offset_bytes: u64, len: usize) -> usize {
    len.min((PIECE_BYTES - offset_bytes % PIECE_BYTES) as usize)
}

/// Writes zeroes on filesystems that cannot punch holes.
fn write_zeroes(part: &FilePart<'_>) -> Result<(), VolumeError> {
    let zeroes = vec![0u8; (1 << 20).min(part.len_bytes as usize)];
    let mut done = 0;
    while done < part.len_bytes {
        let len = (part.len_bytes - done).min(zeroes.len() as u64) as usize;
        assert!(len > 0 && done + len as u64 <= part.len_bytes, "zeroes stay in their part");
        part.file.write_all_at(&zeroes[..len], part.offset_bytes + done).during("write", part.path)?;
        done += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
