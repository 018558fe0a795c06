//! Data of a layer: a sparse file with the offsets of the volume.
//!
//! ext4 limits files to 16 TiB and volumes have up to 64 TiB, so data is split into segment files of 8 TiB.
//! All I/O uses the page cache; `kernel-notes/page-cache.md` has the measurements.

mod holes;

pub(crate) use holes::data_ranges;

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    io::files::remove_if_exists,
    io::storage::{self, File},
    layer::shared,
};
use std::{
    num::NonZeroU64,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};
use xxhash_rust::xxh3::xxh3_64;

/// Length of the part of a volume in one data file.
const SEGMENT_BYTES: u64 = 8 << 40;
/// Maximum length of a single write call. The page cache allocates folios as large as the write, and ext4
/// examines every block of a folio at each overwrite: a write of 4 KiB to a folio of 1 MiB costs two to three
/// times as much as to one of 64 KiB. Writing 1 MiB in 16 calls is not slower than in one
/// (`kernel-notes/nbd-server.md`).
const MAX_WRITE_BYTES: u64 = 64 << 10;

/// Open data files of a layer.
pub(crate) struct DataFiles {
    segments: Vec<Segment>,
}

struct Segment {
    file: File,
    path: PathBuf,
    registration: shared::OpenRegistration,
}

impl Segment {
    fn new(file: File, path: PathBuf) -> Result<Self, VolumeError> {
        let found = file.metadata().during("stat", &path)?;
        let registration =
            shared::OpenRegistration::new((found.dev(), found.ino()), path.parent().unwrap_or(Path::new("")));
        Ok(Self { file, path, registration })
    }

    /// Returns true if another volume may read the file: the file has another link, or another volume has
    /// removed its link but still has the file open for an open snapshot.
    fn is_shared(&self) -> Result<bool, VolumeError> {
        let found = self.file.metadata().during("stat", &self.path)?;
        Ok(found.nlink() > 1 || self.registration.is_open_in_other_volume())
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

/// Range without data in a missing or truncated file.
pub(crate) struct Gap {
    pub(crate) range: Range<u64>,
    /// Cause, in one line.
    pub(crate) what: String,
}

/// Options of zeroing.
#[derive(Clone, Copy, Default)]
pub(crate) struct ZeroOptions {
    /// Keep the space allocated.
    pub(crate) keep_space: bool,
    /// Fail instead of writing zeroes on a filesystem without support for the operation.
    pub(crate) fast: bool,
}

/// Outcome of an attempt to share extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShareOutcome {
    /// The range is shared.
    Shared,
    /// This range must be copied.
    MustCopy,
    /// These files cannot share extents.
    Unsupported,
}

impl DataFiles {
    /// Creates empty files; the caller syncs the directory.
    pub(crate) fn create(base: &Path, size_bytes: u64) -> Result<Self, VolumeError> {
        Self::extend(base, 0, size_bytes)
    }

    /// Opens existing files and checks that none is missing or too short. An interrupted merge of a larger
    /// layer leaves too long files; they are truncated unless another volume shares them.
    pub(crate) fn open(base: &Path, size_bytes: u64) -> Result<Self, VolumeError> {
        let mut segments = Vec::new();
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            let file = File::open(&path).during("open", &path)?;
            let found = file.metadata().during("stat", &path)?.len();
            if found < len {
                let what = format!("length is {found} bytes, expected {len}");
                return Err(VolumeError::Damaged { path, what });
            }
            let segment = Segment::new(file, path)?;
            if found > len && !segment.is_shared()? {
                segment.file.set_len(len).during("truncate", &segment.path)?;
            }
            segments.push(segment);
        }
        Ok(Self { segments })
    }

    /// Opens the existing files of a layer read-only; also returns the missing ranges.
    pub(crate) fn open_for_salvage(base: &Path, size_bytes: u64) -> Result<(Self, Vec<Gap>), VolumeError> {
        let (mut segments, mut gaps) = (Vec::new(), Vec::new());
        for (number, len) in (0u64..).zip(segment_lens(size_bytes)) {
            let path = segment_path(base, number);
            let opened = File::open_to_read(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
            let (found, file, what) = match opened.during("open", &path) {
                Ok((found, file)) => {
                    let what =
                        format!("{} is damaged: length is {found} bytes, expected {len}", path.display());
                    (found, file, what)
                }
                Err(error) => (0, File::empty_substitute(&path).during("open", &path)?, error.to_string()),
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
        assert!(old_bytes <= new_bytes, "files are never truncated");
        let old_segments = segment_lens(old_bytes).count();
        let mut segments = Vec::new();
        for (number, len) in segment_lens(new_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            let file = match number >= old_segments {
                true => File::create(&path).during("create", &path)?,
                false => File::open(&path).during("open", &path)?,
            };
            file.set_len(len).during("truncate", &path)?;
            file.sync_all().during("sync", &path)?;
            segments.push(Segment::new(file, path)?);
        }
        assert!(segments.len() >= old_segments, "files are never truncated");
        Ok(Self { segments })
    }

    /// Reports files that are missing, too short, or different from the open ones.
    pub(crate) fn check(&self, size_bytes: u64, findings: &mut Vec<String>) {
        for (segment, len) in self.segments.iter().zip(segment_lens(size_bytes)) {
            let path = segment.path.display();
            match (storage::metadata(&segment.path), segment.file.metadata()) {
                (Err(error), _) | (_, Err(error)) => findings.push(format!("stat failed on {path}: {error}")),
                (Ok(named), Ok(open)) if (named.dev(), named.ino()) != (open.dev(), open.ino()) => {
                    findings.push(format!("{path} is not the open file of the volume"));
                }
                (Ok(named), Ok(_)) if named.len() < len => {
                    findings
                        .push(format!("{path} is damaged: length is {} bytes, expected {len}", named.len()));
                }
                _ => {}
            }
        }
    }

    /// Reports missing or short files of a closed layer; returns the highest number of links.
    pub(crate) fn check_closed(base: &Path, size_bytes: u64, findings: &mut Vec<String>) -> u64 {
        let mut max_links = 0;
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            match storage::metadata(&path) {
                Err(error) => findings.push(format!("stat failed on {}: {error}", path.display())),
                Ok(found) if found.len() < len => {
                    findings.push(format!(
                        "{} is damaged: length is {} bytes, expected {len}",
                        path.display(),
                        found.len()
                    ));
                }
                Ok(found) => max_links = max_links.max(found.nlink()),
            }
        }
        max_links
    }

    /// Returns the number of volumes with links to the files.
    pub(crate) fn volumes(&self) -> Result<u64, VolumeError> {
        let Some(first) = self.segments.first() else { return Ok(0) };
        Ok(first.file.metadata().during("stat", &first.path)?.nlink())
    }

    /// Returns true if another volume may read one of the files. Shared files must not be written.
    pub(crate) fn are_shared(&self) -> Result<bool, VolumeError> {
        self.segments.iter().try_fold(false, |shared, segment| Ok(shared || segment.is_shared()?))
    }

    /// Hard-links the files into another volume; `base` is the path of the first link.
    pub(crate) fn link_to(&self, base: &Path) -> Result<(), VolumeError> {
        for (number, segment) in self.segments.iter().enumerate() {
            let path = segment_path(base, number as u64);
            storage::hard_link(&segment.path, &path).map_err(|source| {
                let errno = source.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
                match errno {
                    Some(rustix::io::Errno::XDEV | rustix::io::Errno::MLINK | rustix::io::Errno::PERM) => {
                        VolumeError::NotShareable { path: segment.path.clone(), source }
                    }
                    _ => VolumeError::Io { operation: "hard link", path: segment.path.clone(), source },
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
        Self::paths(base, size_bytes).try_for_each(|path| remove_if_exists(&path))
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

    /// Reads from the page cache; returns false if disk I/O is needed.
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
                let (chunk, after) = left.split_at(write_len(at, left.len()));
                assert!(
                    !chunk.is_empty() && chunk.len() as u64 <= MAX_WRITE_BYTES,
                    "the length of a write call is bounded"
                );
                part.file.write_all_at(chunk, at).during("write", part.path)?;
                at += chunk.len() as u64;
                left = after;
            }
            data = rest;
        }
        assert!(data.is_empty(), "each byte of a write has a file");
        Ok(())
    }

    /// Shares a range of the files of another layer.
    pub(crate) fn share_from(
        &self,
        from: &Self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<ShareOutcome, VolumeError> {
        let parts = self.parts(offset_bytes, len_bytes).zip(from.parts(offset_bytes, len_bytes));
        for (to, from) in parts {
            assert!(to.offset_bytes == from.offset_bytes && to.len_bytes == from.len_bytes, "equal parts");
            match to.file.share_from(from.file, to.offset_bytes, to.len_bytes) {
                Err(error) if storage::cannot_share(&error) => return Ok(ShareOutcome::Unsupported),
                Err(error) if storage::cannot_share_range(&error) => return Ok(ShareOutcome::MustCopy),
                other => other.during("extent sharing", to.path)?,
            }
        }
        Ok(ShareOutcome::Shared)
    }

    /// Punches a hole: the range reads as zeroes and its space is freed.
    pub(crate) fn punch(&self, offset_bytes: u64, len_bytes: u64, fast: bool) -> Result<(), VolumeError> {
        self.zero(offset_bytes, len_bytes, ZeroOptions { keep_space: false, fast })
    }

    /// Zeroes a range.
    pub(crate) fn zero(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        options: ZeroOptions,
    ) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, len_bytes) {
            let done = part.file.zero(part.offset_bytes, part.len_bytes, options.keep_space);
            match done.during("zeroing", part.path) {
                Err(error) if error.kind() == VolumeErrorKind::Unsupported && !options.fast => {
                    write_zeroes(&part)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Advises the kernel to read a range ahead.
    pub(crate) fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, len_bytes) {
            part.file.will_need(part.offset_bytes, part.len_bytes).during("readahead", part.path)?;
        }
        Ok(())
    }

    /// Syncs all written data and the metadata needed to read it. Continues after a failure: a writeback
    /// error left in the kernel would fail a later sync that lost nothing.
    ///
    /// # Errors
    /// The first error.
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
            segment.file.drop_cache(0, None).during("drop of the page cache", &segment.path)?;
        }
        Ok(())
    }

    /// Drops clean pages of a range from the page cache.
    pub(crate) fn drop_cache_of(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, len_bytes) {
            let len = NonZeroU64::new(part.len_bytes);
            part.file.drop_cache(part.offset_bytes, len).during("drop of the page cache", part.path)?;
        }
        Ok(())
    }

    /// Returns a fingerprint of the identity of the files: inode numbers and creation times, which, unlike
    /// device numbers, survive a boot. A copy has another one.
    pub(crate) fn fingerprint(&self) -> Result<u64, VolumeError> {
        assert!(!self.segments.is_empty(), "a volume has a data file");
        let mut identity = Vec::new();
        for segment in &self.segments {
            let found = segment.file.metadata().during("stat", &segment.path)?;
            // Not every filesystem has creation times.
            let created = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            identity.extend_from_slice(&found.ino().to_le_bytes());
            identity.extend_from_slice(&created.unwrap_or_default().as_nanos().to_le_bytes());
        }
        Ok(xxh3_64(&identity))
    }

    /// Returns the allocated disk space, in bytes.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let files = self.segments.iter().filter_map(|segment| segment.file.metadata().ok());
        files.map(|found| found.blocks() * 512).sum()
    }
}

/// Returns true if a write takes several calls, between which another write can reach the file.
pub(crate) fn is_split(offset_bytes: u64, len: usize) -> bool {
    write_len(offset_bytes, len) < len
}

/// Returns the length of one write call: up to the next multiple of [`MAX_WRITE_BYTES`].
fn write_len(offset_bytes: u64, len: usize) -> usize {
    len.min((MAX_WRITE_BYTES - offset_bytes % MAX_WRITE_BYTES) as usize)
}

/// Writes zeroes on filesystems that cannot punch holes.
fn write_zeroes(part: &FilePart<'_>) -> Result<(), VolumeError> {
    let zeroes = vec![0u8; (1 << 20).min(part.len_bytes as usize)];
    let mut done = 0;
    while done < part.len_bytes {
        let len = (part.len_bytes - done).min(zeroes.len() as u64) as usize;
        assert!(len > 0 && done + len as u64 <= part.len_bytes, "zeroes are inside the part");
        part.file.write_all_at(&zeroes[..len], part.offset_bytes + done).during("write", part.path)?;
        done += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
