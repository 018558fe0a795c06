//! Streaming of a file of a snapshot: holes are neither fetched nor, where possible, written.

use super::source::{FileSource, PIECE_BYTES};
use crate::failure::{EXIT_FAILED, Failure};
use blockd_api::{
    ErrorCode,
    browse::{FilePath, FileRange, FileRanges},
};
use rustix::fs::OFlags;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::fd::AsFd,
};

/// Buffer of zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Minimum length of a skipped hole: a request per data range costs more than shorter holes.
const MIN_HOLE_BYTES: u64 = 256 << 10;

/// Part of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum SparsePart {
    /// Length of a hole.
    Hole(u64),
    /// Bytes.
    Data(Vec<u8>),
}

/// Next action of a reader.
#[derive(Debug, PartialEq, Eq)]
enum ReadStep {
    /// Request data ranges from this offset.
    Ask(u64),
    /// Read this range.
    Read(FileRange),
    /// Skip a hole of this length.
    Skip(u64),
    /// End of file.
    End,
}

/// Position in a file and the known data ranges behind it.
#[derive(Default)]
struct ReadPlan {
    at_bytes: u64,
    /// `None` until requested.
    size_bytes: Option<u64>,
    ranges: VecDeque<FileRange>,
    /// End of the range that `ranges` describes.
    until_bytes: u64,
}

impl ReadPlan {
    fn next(&self) -> ReadStep {
        let at = self.at_bytes;
        if self.size_bytes.is_some_and(|size| at >= size) {
            return ReadStep::End;
        }
        match self.ranges.front() {
            Some(range) if at < range.offset_bytes => ReadStep::Skip(range.offset_bytes - at),
            Some(range) => {
                let left = (range.offset_bytes + range.len_bytes).saturating_sub(at);
                ReadStep::Read(FileRange { offset_bytes: at, len_bytes: left.min(PIECE_BYTES) })
            }
            None if at < self.until_bytes => ReadStep::Skip(self.until_bytes - at),
            None => ReadStep::Ask(at),
        }
    }

    /// Adds received data ranges.
    fn learn(&mut self, found: FileRanges) {
        self.size_bytes = Some(found.size_bytes);
        self.until_bytes = found.list.next.unwrap_or(found.size_bytes);
        self.ranges.clear();
        for range in found.list.items {
            match self.ranges.back_mut() {
                Some(last)
                    if range
                        .offset_bytes
                        .saturating_sub(last.offset_bytes.saturating_add(last.len_bytes))
                        < MIN_HOLE_BYTES =>
                {
                    let end = range.offset_bytes.saturating_add(range.len_bytes);
                    last.len_bytes = last.len_bytes.max(end.saturating_sub(last.offset_bytes));
                }
                _ => self.ranges.push_back(range),
            }
        }
    }

    fn pass(&mut self, len_bytes: u64) {
        self.at_bytes += len_bytes;
        while self.ranges.front().is_some_and(|range| range.offset_bytes + range.len_bytes <= self.at_bytes) {
            self.ranges.pop_front();
        }
    }
}

/// Sequential reader of a file.
pub struct SparseParts<'a> {
    source: &'a FileSource<'a>,
    path: &'a FilePath,
    plan: ReadPlan,
}

impl<'a> SparseParts<'a> {
    /// Creates a reader; sends no request.
    pub fn new(source: &'a FileSource<'a>, path: &'a FilePath) -> Self {
        Self { source, path, plan: ReadPlan::default() }
    }

    /// Returns the next part; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<SparsePart>, Failure> {
        loop {
            match self.plan.next() {
                ReadStep::End => return Ok(None),
                ReadStep::Skip(len_bytes) => {
                    self.plan.pass(len_bytes);
                    return Ok(Some(SparsePart::Hole(len_bytes)));
                }
                ReadStep::Read(range) => {
                    let bytes = self.source.read(self.path, range.offset_bytes, range.len_bytes).await?;
                    if bytes.is_empty() {
                        return Err(self.ends_early());
                    }
                    self.plan.pass(bytes.len() as u64);
                    return Ok(Some(SparsePart::Data(bytes)));
                }
                ReadStep::Ask(at_bytes) => {
                    let found = self.source.ranges(self.path, at_bytes).await?;
                    let until_bytes = found.list.next.unwrap_or(found.size_bytes);
                    if until_bytes <= at_bytes && at_bytes < found.size_bytes {
                        return Err(self.ends_early());
                    }
                    self.plan.learn(found);
                }
            }
        }
    }

    fn ends_early(&self) -> Failure {
        let (path, at_bytes) = (&self.path, self.plan.at_bytes);
        let message = format!("{path} in the snapshot ends at byte {at_bytes}, before its length");
        Failure::local(ErrorCode::CloudsnapDamaged.as_str(), EXIT_FAILED, message)
    }
}

/// Inherited output stream: holes stay holes beyond the end of a regular file.
pub struct SparseOutput {
    file: File,
    appends: bool,
}

impl SparseOutput {
    /// Returns the standard output.
    pub fn stdout() -> io::Result<Self> {
        Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    fn new(file: File) -> io::Result<Self> {
        let appends = rustix::fs::fcntl_getfl(&file)?.contains(OFlags::APPEND);
        Ok(Self { file, appends })
    }

    /// Writes a part.
    pub fn write(&mut self, piece: &SparsePart) -> io::Result<()> {
        match piece {
            SparsePart::Data(bytes) => self.file.write_all(bytes),
            SparsePart::Hole(len_bytes) => self.pass(*len_bytes),
        }
    }

    fn pass(&mut self, len_bytes: u64) -> io::Result<()> {
        let meta = self.file.metadata()?;
        // Other processes can append to a file opened with `>>`; setting the length would truncate their
        // data.
        if meta.is_file() && !self.appends {
            // The position was inherited.
            let at = self.file.stream_position()?;
            let end = at.checked_add(len_bytes).ok_or(io::ErrorKind::FileTooLarge)?;
            // Existing data behind the position would show in the hole.
            if at >= meta.len() {
                self.file.set_len(end)?;
                return self.file.seek(SeekFrom::Start(end)).map(drop);
            }
        }
        let mut left = len_bytes;
        while left > 0 {
            let now = left.min(ZEROES.len() as u64);
            // Bounded by the length of the slice.
            self.file.write_all(&ZEROES[..now as usize])?;
            left -= now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::List;
    use std::{
        fs::OpenOptions,
        io::Read,
        os::{fd::OwnedFd, unix::fs::MetadataExt},
    };

    fn range(offset_bytes: u64, len_bytes: u64) -> FileRange {
        FileRange { offset_bytes, len_bytes }
    }

    #[test]
    fn sparse_read_returns_each_data_byte_once() {
        let size = 40 << 20;
        let data = [range(0, 10), range(1 << 20, 6 << 20), range(39 << 20, 1 << 20)];
        let mut plan = ReadPlan::default();
        let (mut at, mut read, mut asked) = (0, 0, 0);
        loop {
            match plan.next() {
                ReadStep::End => break,
                ReadStep::Ask(from) => {
                    assert_eq!(from, at);
                    asked += 1;
                    // The last range is returned only by the request for the following offset.
                    let told = if asked == 1 { &data[..2] } else { &data[2..] };
                    let next = (asked == 1).then_some(10 << 20);
                    plan.learn(FileRanges { size_bytes: size, list: List { items: told.to_vec(), next } });
                }
                ReadStep::Skip(len) => {
                    plan.pass(len);
                    at += len;
                }
                ReadStep::Read(piece) => {
                    assert!(piece.offset_bytes == at && piece.len_bytes <= PIECE_BYTES);
                    // A short read is not the end.
                    let came = piece.len_bytes.min(1_500_000);
                    plan.pass(came);
                    (at, read) = (at + came, read + came);
                }
            }
        }
        assert_eq!((at, read, asked), (size, 10 + (6 << 20) + (1 << 20), 2));
        let nothing = ReadPlan { size_bytes: Some(0), ..ReadPlan::default() };
        assert_eq!(nothing.next(), ReadStep::End);
    }

    #[test]
    fn short_holes_are_read_and_long_ones_are_not() {
        let kib = |from: u64, len: u64| range(from << 10, len << 10);
        let mut plan = ReadPlan::default();
        // Holes of 255 KiB, 0 and 256 KiB between the ranges.
        let data = vec![kib(0, 4), kib(259, 1), kib(260, 4), kib(520, 4)];
        plan.learn(FileRanges { size_bytes: 1 << 20, list: data.into() });
        let mut steps = vec![];
        loop {
            let step = plan.next();
            match &step {
                ReadStep::Read(range) => plan.pass(range.len_bytes),
                ReadStep::Skip(len_bytes) => plan.pass(*len_bytes),
                ReadStep::End | ReadStep::Ask(_) => break,
            }
            steps.push(step);
        }
        let expected = [
            ReadStep::Read(kib(0, 264)),
            ReadStep::Skip(256 << 10),
            ReadStep::Read(kib(520, 4)),
            ReadStep::Skip((1024 - 524) << 10),
        ];
        assert_eq!(steps, expected);
    }

    const HOLE: u64 = 4 << 20;

    fn write_all(file: File) {
        let mut stream = SparseOutput::new(file).unwrap();
        for piece in
            [SparsePart::Data(b"begin".to_vec()), SparsePart::Hole(HOLE), SparsePart::Data(b"end".to_vec())]
        {
            stream.write(&piece).unwrap();
        }
        stream.write(&SparsePart::Hole(4096)).unwrap();
    }

    #[test]
    fn holes_are_kept_in_files_and_written_in_append_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (new, longer) = (dir.path().join("new"), dir.path().join("longer"));
        write_all(File::create(&new).unwrap());
        std::fs::write(&longer, b"before ").unwrap();
        write_all(OpenOptions::new().append(true).open(&longer).unwrap());
        for (path, before, is_sparse) in [(new, b"".as_slice(), true), (longer, b"before ", false)] {
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!(meta.len(), before.len() as u64 + 5 + HOLE + 3 + 4096);
            assert_eq!(meta.blocks() * 512 < HOLE, is_sparse, "{} blocks", meta.blocks());
            let bytes = std::fs::read(&path).unwrap();
            let content = [before, b"begin"].concat();
            assert!(
                bytes.starts_with(&content) && bytes[content.len() + HOLE as usize..].starts_with(b"end")
            );
            assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), content.len() + 3);
        }
    }

    #[test]
    fn zeroes_are_written_over_existing_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        std::fs::write(&path, vec![b'x'; 9000]).unwrap();
        let mut stream = SparseOutput::new(OpenOptions::new().write(true).open(&path).unwrap()).unwrap();
        stream.write(&SparsePart::Data(b"ab".to_vec())).unwrap();
        stream.write(&SparsePart::Hole(5000)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[2..5002].iter().all(|byte| *byte == 0) && bytes.len() == 9000 && bytes[5002] == b'x');

        let (mut reader, writer) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let mut stream = SparseOutput::new(File::from(OwnedFd::from(writer))).unwrap();
            stream.write(&SparsePart::Hole(200_000)).unwrap();
        });
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        writer.join().unwrap();
        assert!(bytes.len() == 200_000 && bytes.iter().all(|byte| *byte == 0));
    }
}
