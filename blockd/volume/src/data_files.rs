//! The data of one layer: a sparse file with the offsets of the volume.
//!
//! ext4 ends at 16 TiB a file, a volume at 64 TiB, so the data is cut into segments of 8 TiB; a volume of up
//! to 8 TiB has one file. All I/O goes through the page cache: see `kernel-notes/page-cache.md` for what was
//! measured.

use crate::{
    error::{IoContext, VolumeError, VolumeErrorKind},
    lazy_base::LazyBase,
    shared,
    storage::{self, Bug, File},
};
use blockd_extent::Extent;
use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Reads a part of a range to its place in a buffer; `false` if that would have to wait.
type ReadPart<'a> = dyn FnMut(u64, &mut [u8]) -> Result<bool, VolumeError> + 'a;

/// How much of a volume one data file covers.
const SEGMENT_BYTES: u64 = 8 << 40;
/// The longest single write. The page cache takes a write into folios as large as the write, and ext4 looks
/// at every block of a folio whenever one of them is overwritten: 4 KiB into a folio of 1 MiB costs two to
/// three times as much as into one of 64 KiB, and writing 1 MiB in 16 steps is no slower than in one
/// (`kernel-notes/nbd-server.md`).
const PIECE_BYTES: u64 = 64 << 10;

/// The open data files of a layer.
pub(crate) struct DataFiles {
    segments: Vec<Segment>,
    /// What fills them, if they are filled as they are read.
    lazy: Option<Arc<LazyBase>>,
}

struct Segment {
    file: File,
    path: PathBuf,
    open: shared::Open,
}

impl Segment {
    fn new(file: File, path: PathBuf) -> Result<Self, VolumeError> {
        let identity = file.identity().during("look at", &path)?;
        let open = shared::Open::new(identity, path.parent().unwrap_or(Path::new("")));
        Ok(Self { file, path, open })
    }

    /// Whether another volume may read the file: it has another name, or another volume has it open although
    /// it has removed its name, because somebody there still reads a snapshot.
    fn is_shared(&self) -> Result<bool, VolumeError> {
        let links = self.file.links().during("look at", &self.path)?;
        Ok(links > 1 || self.open.by_others())
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

/// One part of a range that lies in one file.
pub(crate) struct FilePart<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
}

/// Data that is not there.
pub(crate) struct Gap {
    pub(crate) range: Range<u64>,
    /// Why, in one line.
    pub(crate) what: String,
}

/// What became of a request to share extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shared {
    /// The range is the other one's now.
    Done,
    /// This range must be copied.
    NotThis,
    /// Between these files, every range must be copied.
    Never,
}

impl DataFiles {
    /// Makes empty files; the caller syncs the directory.
    pub(crate) fn create(base: &Path, size_bytes: u64) -> Result<Self, VolumeError> {
        let mut segments = Vec::new();
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            let file = File::create(&path).during("create", &path)?;
            file.set_len(len).during("set the length of", &path)?;
            file.sync_all().during("sync", &path)?;
            segments.push(Segment::new(file, path)?);
        }
        Ok(Self { segments, lazy: None })
    }

    /// The same files, filled by `lazy` as they are read.
    pub(crate) fn with_lazy(self, lazy: Arc<LazyBase>) -> Self {
        Self { lazy: Some(lazy), ..self }
    }

    /// What fills the files as they are read.
    pub(crate) fn lazy(&self) -> Option<&Arc<LazyBase>> {
        self.lazy.as_ref()
    }

    /// Waits until a range is there. To be called before a read that does not go through here.
    pub(crate) fn bring(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        match &self.lazy {
            Some(lazy) if !lazy.has(offset_bytes, len_bytes) => lazy.bring_bytes(offset_bytes, len_bytes),
            _ => Ok(()),
        }
    }

    /// Opens existing files and checks that none is missing or too short. One that is too long is what a
    /// merge of a larger layer left that did not get to its end; it is cut, unless another volume shares it.
    pub(crate) fn open(base: &Path, size_bytes: u64) -> Result<Self, VolumeError> {
        let mut segments = Vec::new();
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            let file = File::open(&path).during("open", &path)?;
            let found = file.len_bytes().during("look at", &path)?;
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
        Ok(Self { segments, lazy: None })
    }

    /// Opens what there is of the files of a layer, and changes nothing: also where the data is not there,
    /// and why.
    pub(crate) fn open_what_is_left(base: &Path, size_bytes: u64) -> Result<(Self, Vec<Gap>), VolumeError> {
        let (mut segments, mut gaps) = (Vec::new(), Vec::new());
        for (number, len) in (0u64..).zip(segment_lens(size_bytes)) {
            let path = segment_path(base, number);
            let opened = File::open_to_read(&path).and_then(|file| Ok((file.len_bytes()?, file)));
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
        Ok((Self { segments, lazy: None }, gaps))
    }

    /// Opens existing files of a layer that had `old_bytes` and makes them `new_bytes` long; what is new is
    /// zeroes. The caller syncs the directory.
    pub(crate) fn extend(base: &Path, old_bytes: u64, new_bytes: u64) -> Result<Self, VolumeError> {
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
        Ok(Self { segments, lazy: None })
    }

    /// Adds what is wrong with the files by their names: one that is gone, too short, or another one than is
    /// open.
    pub(crate) fn check(&self, size_bytes: u64, findings: &mut Vec<String>) {
        for (segment, len) in self.segments.iter().zip(segment_lens(size_bytes)) {
            let path = segment.path.display();
            let named = storage::identity_and_len(&segment.path);
            match (named, segment.file.identity()) {
                (Err(error), _) | (_, Err(error)) => findings.push(format!("cannot look at {path}: {error}")),
                (Ok((named, _)), Ok(open)) if named != open => {
                    findings.push(format!("{path} is another file than the one that the volume has open"));
                }
                (Ok((_, found)), Ok(_)) if found < len => {
                    findings.push(format!("{path} is {found} bytes long, it must be {len}"));
                }
                _ => {}
            }
        }
    }

    /// The same for files that nobody has open; how many names the one with the most has.
    pub(crate) fn check_closed(base: &Path, size_bytes: u64, findings: &mut Vec<String>) -> u64 {
        let mut most_links = 0;
        for (number, len) in segment_lens(size_bytes).enumerate() {
            let path = segment_path(base, number as u64);
            match storage::len_and_links(&path) {
                Err(error) => findings.push(format!("cannot look at {}: {error}", path.display())),
                Ok((found, _)) if found < len => {
                    findings.push(format!("{} is {found} bytes long, it must be {len}", path.display()));
                }
                Ok((_, links)) => most_links = most_links.max(links),
            }
        }
        most_links
    }

    /// Whether another volume may read one of the files, so that nothing may be written to them.
    pub(crate) fn are_shared(&self) -> Result<bool, VolumeError> {
        self.segments.iter().try_fold(false, |shared, segment| Ok(shared || segment.is_shared()?))
    }

    /// Gives the files names of another volume, too: `base` stands for theirs.
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

    /// Where the files of a layer are.
    pub(crate) fn paths(base: &Path, size_bytes: u64) -> impl Iterator<Item = PathBuf> {
        segment_lens(size_bytes).enumerate().map(move |(number, _)| segment_path(base, number as u64))
    }

    /// Removes the files of a layer, those that are there.
    pub(crate) fn remove(base: &Path, size_bytes: u64) -> Result<(), VolumeError> {
        Self::paths(base, size_bytes).try_for_each(|path| remove_if_there(&path))
    }

    /// Cuts a range at segment borders.
    pub(crate) fn parts(&self, offset_bytes: u64, len_bytes: u64) -> impl Iterator<Item = FilePart<'_>> {
        let mut at = offset_bytes;
        let end = offset_bytes + len_bytes;
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

    /// Reads; what has to be fetched first is waited for.
    pub(crate) fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.bring(offset_bytes, buf.len() as u64)?;
        self.but_zeroes(offset_bytes, buf, &mut |at, part| self.read_files(at, part).map(|()| true))?;
        Ok(())
    }

    /// Has all of a range read but what is known to be zeroes; `false` as soon as `read` says so. The kernel
    /// would take a page of the cache for each page of a hole.
    fn but_zeroes(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
        read: &mut ReadPart<'_>,
    ) -> Result<bool, VolumeError> {
        let Some(lazy) = self.lazy.as_ref().filter(|lazy| !lazy.is_complete()) else {
            return read(offset_bytes, buf);
        };
        let end = offset_bytes + buf.len() as u64;
        let mut is_read = true;
        lazy.cut(Extent::touching(offset_bytes, buf.len() as u64), &mut |run, is_zero| {
            // The first and the last block may be wanted in part.
            let from = run.offset_bytes().max(offset_bytes);
            let to = (run.offset_bytes() + run.len_bytes()).min(end);
            let part = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
            if is_zero {
                part.fill(0);
            } else {
                is_read = is_read && read(from, part)?;
            }
            Ok::<(), VolumeError>(())
        })?;
        Ok(is_read)
    }

    fn read_files(&self, offset_bytes: u64, mut buf: &mut [u8]) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, buf.len() as u64) {
            let (now, rest) = buf.split_at_mut(part.len_bytes as usize);
            part.file.read_exact_at(now, part.offset_bytes).during("read", part.path)?;
            buf = rest;
        }
        Ok(())
    }

    /// Reads what the page cache holds; `false` if the disk would have to be asked.
    pub(crate) fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
        if self.lazy.as_ref().is_some_and(|lazy| !lazy.has(offset_bytes, buf.len() as u64)) {
            return Ok(false);
        }
        self.but_zeroes(offset_bytes, buf, &mut |at, part| self.try_read_files(at, part))
    }

    fn try_read_files(&self, offset_bytes: u64, mut buf: &mut [u8]) -> Result<bool, VolumeError> {
        for part in self.parts(offset_bytes, buf.len() as u64) {
            let (now, rest) = buf.split_at_mut(part.len_bytes as usize);
            match part.file.read_cached_at(now, part.offset_bytes) {
                Ok(count) if count as u64 == part.len_bytes => {}
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP) => return Ok(false),
                Err(errno) => return Err(errno).during("read", part.path),
            }
            buf = rest;
        }
        Ok(true)
    }

    pub(crate) fn write(&self, offset_bytes: u64, mut data: &[u8]) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, data.len() as u64) {
            let (now, rest) = data.split_at(part.len_bytes as usize);
            let mut at = part.offset_bytes;
            let mut left = now;
            while !left.is_empty() {
                let (piece, behind) = left.split_at(piece_len(at, left.len()));
                part.file.write_all_at(piece, at).during("write", part.path)?;
                at += piece.len() as u64;
                left = behind;
            }
            data = rest;
        }
        Ok(())
    }

    /// Makes a range be the same one of other files, without copying data.
    pub(crate) fn share_from(
        &self,
        from: &Self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Shared, VolumeError> {
        if from.lazy.is_some() {
            // A copy waits for what has to be fetched.
            return Ok(Shared::NotThis);
        }
        let parts = self.parts(offset_bytes, len_bytes).zip(from.parts(offset_bytes, len_bytes));
        for (to, from) in parts {
            match to.file.share_from(from.file, to.offset_bytes, to.len_bytes) {
                Err(error) if storage::cannot_share(&error) => return Ok(Shared::Never),
                Err(error) if storage::cannot_share_range(&error) => return Ok(Shared::NotThis),
                other => other.during("share extents with", to.path)?,
            }
        }
        Ok(Shared::Done)
    }

    /// Makes a range read as zeroes and gives its space back.
    pub(crate) fn punch(&self, offset_bytes: u64, len_bytes: u64, fast: bool) -> Result<(), VolumeError> {
        self.zero(offset_bytes, len_bytes, File::punch, fast)
    }

    /// Makes a range read as zeroes and keeps (or takes) its space.
    pub(crate) fn zero_range(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        fast: bool,
    ) -> Result<(), VolumeError> {
        self.zero(offset_bytes, len_bytes, File::zero_range, fast)
    }

    /// With `fast`, the filesystem's word that it cannot do it is the caller's answer.
    fn zero(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        how: impl Fn(&File, u64, u64) -> std::io::Result<()>,
        fast: bool,
    ) -> Result<(), VolumeError> {
        for part in self.parts(offset_bytes, len_bytes) {
            let done = how(part.file, part.offset_bytes, part.len_bytes).during("zero a range of", part.path);
            match done {
                Err(error) if error.kind() == VolumeErrorKind::Unsupported && !fast => write_zeroes(&part)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// Asks the kernel to read a range into the page cache; nobody waits for it, and it may decline.
    pub(crate) fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        if let Some(lazy) = &self.lazy {
            lazy.fetch_soon(Extent::touching(offset_bytes, len_bytes));
        }
        for part in self.parts(offset_bytes, len_bytes) {
            part.file.will_need(part.offset_bytes, part.len_bytes).during("read ahead in", part.path)?;
        }
        Ok(())
    }

    /// Makes everything written so far survive a power cut, the metadata needed to reach it included. Syncs
    /// every segment, also after one has failed: an error that this sync does not take from the kernel would
    /// fail a later one, which has lost nothing.
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

    /// Takes what is clean out of memory, so that the next read asks the disk.
    pub(crate) fn drop_cache(&self) -> Result<(), VolumeError> {
        for segment in &self.segments {
            segment.file.drop_cache().during("drop the cache of", &segment.path)?;
        }
        Ok(())
    }

    /// Holes, which read as zeroes, ascending: all of them up to the range of data with the number `most`.
    pub(crate) fn holes(&self, size_bytes: u64, most: usize) -> Result<Vec<Range<u64>>, VolumeError> {
        let mut holes = Vec::new();
        let mut left = most;
        for ((number, segment), len) in (0u64..).zip(&self.segments).zip(segment_lens(size_bytes)) {
            let base = number * SEGMENT_BYTES;
            let mut at = 0;
            for data in data_ranges(&segment.file, &segment.path, 0..len) {
                let data = data?;
                holes.push(base + at..base + data.start);
                at = data.end;
                left = left.saturating_sub(1);
                if left == 0 {
                    return Ok(holes);
                }
            }
            holes.push(base + at..base + len);
        }
        Ok(holes)
    }

    #[inline(always)]
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.segments.first().is_some_and(|segment| segment.file.has(bug))
    }

    /// How much of the disk the files take.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.segments.iter().filter_map(|segment| segment.file.allocated_bytes().ok()).sum()
    }
}

/// The ranges of a file that are not holes, ascending.
pub(crate) fn data_ranges<'a>(
    file: &'a File,
    path: &'a Path,
    within: Range<u64>,
) -> impl Iterator<Item = Result<Range<u64>, VolumeError>> + 'a {
    let mut at = within.start;
    std::iter::from_fn(move || {
        if at >= within.end {
            return None;
        }
        let start = match file.seek_data(at) {
            Ok(Some(start)) if start < within.end => start,
            Ok(_) => return None,
            Err(error) => return Some(Err(error).during("find the data of", path)),
        };
        let end = match file.seek_hole(start) {
            Ok(end) => end.min(within.end),
            Err(error) => return Some(Err(error).during("find the holes of", path)),
        };
        at = end;
        Some(Ok(start..end))
    })
}

/// How much of a write goes out in one call: up to the next multiple of [`PIECE_BYTES`].
fn piece_len(offset_bytes: u64, len: usize) -> usize {
    len.min((PIECE_BYTES - offset_bytes % PIECE_BYTES) as usize)
}

/// For filesystems that cannot punch holes.
fn write_zeroes(part: &FilePart<'_>) -> Result<(), VolumeError> {
    let zeroes = vec![0u8; (1 << 20).min(part.len_bytes as usize)];
    let mut done = 0;
    while done < part.len_bytes {
        let len = (part.len_bytes - done).min(zeroes.len() as u64) as usize;
        part.file.write_all_at(&zeroes[..len], part.offset_bytes + done).during("write", part.path)?;
        done += len as u64;
    }
    Ok(())
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), VolumeError> {
    match storage::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).during("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_cut_at_multiples_of_the_piece() {
        let pieces = |mut at: u64, mut len: usize| {
            let mut lens = Vec::new();
            while len > 0 {
                let piece = piece_len(at, len);
                lens.push(piece);
                at += piece as u64;
                len -= piece;
            }
            lens
        };
        assert_eq!(pieces(0, 4096), [4096]);
        assert_eq!(pieces(4096, 65536), [61440, 4096]);
        assert_eq!(pieces(65536, 131_072), [65536, 65536]);
        assert_eq!(pieces(65535, 3), [1, 2]);
    }

    #[test]
    fn a_long_write_reads_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = DataFiles::create(&dir.path().join("d"), 1 << 20).unwrap();
        let data: Vec<u8> = (0..300_001u32).map(|i| (i % 251) as u8).collect();
        files.write(12_345, &data).unwrap();
        let mut back = vec![0; data.len()];
        files.read(12_345, &mut back).unwrap();
        assert!(back == data);
    }

    #[test]
    fn a_range_across_a_segment_border_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("d");
        let size = SEGMENT_BYTES + (1 << 20);
        let files = DataFiles::create(&base, size).unwrap();
        let data: Vec<u8> = (0..8192u32).map(|i| i as u8 | 1).collect();
        files.write(SEGMENT_BYTES - 4096, &data).unwrap();
        let mut back = vec![0; 8192];
        files.read(SEGMENT_BYTES - 4096, &mut back).unwrap();
        assert_eq!(back, data);
        files.punch(SEGMENT_BYTES - 4096, 8192, true).unwrap();
        files.read(SEGMENT_BYTES - 4096, &mut back).unwrap();
        assert!(back.iter().all(|&byte| byte == 0));
        drop(files);
        assert!(DataFiles::open(&base, size).is_ok());
        std::fs::OpenOptions::new().write(true).open(&base).unwrap().set_len(5).unwrap();
        let message = DataFiles::open(&base, size).err().unwrap().to_string();
        assert!(message.contains("5 bytes long"), "{message}");
    }

    #[test]
    fn holes_are_found_across_a_segment_border() {
        let dir = tempfile::tempdir().unwrap();
        let size = SEGMENT_BYTES + (1 << 20);
        let files = DataFiles::create(&dir.path().join("d"), size).unwrap();
        let (first, second) = (1 << 20, SEGMENT_BYTES + (1 << 19));
        for at in [first, second] {
            files.write(at, &[1; 4096]).unwrap();
        }
        // A filesystem may call more of it data than was written.
        let holes = files.holes(size, 10).unwrap();
        let is_hole = |at: u64| holes.iter().any(|hole| hole.contains(&at));
        assert!(is_hole(0) && is_hole(SEGMENT_BYTES - 4096) && is_hole(SEGMENT_BYTES) && is_hole(size - 1));
        assert!(!is_hole(first) && !is_hole(first + 4095) && !is_hole(second));
        let cut_short = files.holes(size, 1).unwrap();
        assert_eq!((cut_short.len(), cut_short[0].clone()), (1, 0..first));
    }

    #[test]
    fn files_are_extended_with_zeroes_and_cut_back_if_nothing_came_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("d");
        drop(DataFiles::create(&base, 8192).unwrap());
        let longer = SEGMENT_BYTES + 4096;
        let files = DataFiles::extend(&base, 8192, longer).unwrap();
        files.write(SEGMENT_BYTES - 5, &[7; 10]).unwrap();
        let mut back = vec![1; 20];
        files.read(SEGMENT_BYTES - 10, &mut back).unwrap();
        assert_eq!(back, [[0; 5], [7; 5], [7; 5], [0; 5]].concat());
        drop(files);
        DataFiles::open(&base, 8192).unwrap();
        assert_eq!(base.metadata().unwrap().len(), 8192);
        // What the attempt before wrote there must not come back.
        let files = DataFiles::extend(&base, 8192, longer).unwrap();
        files.read(SEGMENT_BYTES - 10, &mut back).unwrap();
        assert_eq!(back, [0; 20]);
    }

    #[test]
    #[cfg(feature = "testing")]
    fn sync_goes_on_after_a_segment_that_failed() {
        use crate::testing::{Disk, Fault, FaultError, OpKind};
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::attach(dir.path(), 1).unwrap();
        let paths = ["d", "d.1"].map(|name| dir.path().join(name));
        let segment = |path: &PathBuf| Segment::new(File::create(path).unwrap(), path.clone()).unwrap();
        let files = DataFiles { segments: paths.iter().map(segment).collect(), lazy: None };
        disk.inject(Fault { kinds: vec![OpKind::Sync], ..Fault::every(FaultError::Io) });
        let error = files.sync().unwrap_err();
        assert!(matches!(error, VolumeError::Io { path, .. } if path == paths[0]));
        let failed: Vec<_> = disk.mend().into_iter().map(|operation| operation.path).collect();
        assert_eq!(failed, paths);
        files.sync().unwrap();
    }
}
