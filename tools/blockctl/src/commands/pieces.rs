//! A file inside a snapshot piece by piece, and where its pieces go: holes are neither fetched nor, where that is possible, written.

use super::files::{PIECE_BYTES, Source};
use crate::failure::Failure;
use blockd_api::browse::{FilePath, FileRun, FileRuns};
use rustix::fs::OFlags;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::fd::AsFd,
};

/// Zeroes that are written at once.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Shorter holes are read like data: a request for each run would take longer than the zeroes between them.
const HOLE_LEAST_BYTES: u64 = 256 << 10;

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many zeroes.
    Hole(u64),
    /// These bytes.
    Data(Vec<u8>),
}

/// What is to be done for the next piece.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Ask where there is data from here on.
    Ask(u64),
    /// Read these bytes.
    Read(FileRun),
    /// Pass so many zeroes.
    Skip(u64),
    /// Nothing is left.
    End,
}

/// How far a file was read, and where there is data behind that.
#[derive(Default)]
struct Plan {
    at_bytes: u64,
    /// None until it was asked for.
    size_bytes: Option<u64>,
    runs: VecDeque<FileRun>,
    /// Up to where `runs` says where there is data.
    until_bytes: u64,
}

impl Plan {
    fn next(&self) -> Step {
        let at = self.at_bytes;
        if self.size_bytes.is_some_and(|size| at >= size) {
            return Step::End;
        }
        match self.runs.front() {
            Some(run) if at < run.offset_bytes => Step::Skip(run.offset_bytes - at),
            Some(run) => {
                let left = (run.offset_bytes + run.len_bytes).saturating_sub(at);
                Step::Read(FileRun { offset_bytes: at, len_bytes: left.min(PIECE_BYTES) })
            }
            None if at < self.until_bytes => Step::Skip(self.until_bytes - at),
            None => Step::Ask(at),
        }
    }

    /// Notes where there is data.
    fn learn(&mut self, found: FileRuns) {
        self.size_bytes = Some(found.size_bytes);
        self.until_bytes = found.until_bytes;
        self.runs.clear();
        for run in found.data {
            match self.runs.back_mut() {
                Some(last)
                    if run.offset_bytes.saturating_sub(last.offset_bytes.saturating_add(last.len_bytes))
                        < HOLE_LEAST_BYTES =>
                {
                    let end = run.offset_bytes.saturating_add(run.len_bytes);
                    last.len_bytes = last.len_bytes.max(end.saturating_sub(last.offset_bytes));
                }
                _ => self.runs.push_back(run),
            }
        }
    }

    fn pass(&mut self, len_bytes: u64) {
        self.at_bytes += len_bytes;
        while self.runs.front().is_some_and(|run| run.offset_bytes + run.len_bytes <= self.at_bytes) {
            self.runs.pop_front();
        }
    }
}

/// A file that is read from its beginning to its end.
pub struct Pieces<'a> {
    source: &'a Source<'a>,
    path: &'a FilePath,
    plan: Plan,
}

impl<'a> Pieces<'a> {
    /// Nothing is asked for yet.
    pub fn new(source: &'a Source<'a>, path: &'a FilePath) -> Self {
        Self { source, path, plan: Plan::default() }
    }

    /// What comes next; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        loop {
            match self.plan.next() {
                Step::End => return Ok(None),
                Step::Skip(len_bytes) => {
                    self.plan.pass(len_bytes);
                    return Ok(Some(Piece::Hole(len_bytes)));
                }
                Step::Read(run) => {
                    let bytes = self.source.read(self.path, run.offset_bytes, run.len_bytes).await?;
                    if bytes.is_empty() {
                        return Err(self.ends_early());
                    }
                    self.plan.pass(bytes.len() as u64);
                    return Ok(Some(Piece::Data(bytes)));
                }
                Step::Ask(at_bytes) => {
                    let found = self.source.runs(self.path, at_bytes).await?;
                    if found.until_bytes <= at_bytes && at_bytes < found.size_bytes {
                        return Err(self.ends_early());
                    }
                    self.plan.learn(found);
                }
            }
        }
    }

    fn ends_early(&self) -> Failure {
        Failure::Short { path: self.path.clone(), at_bytes: self.plan.at_bytes }
    }
}

/// A stream that somebody else opened: holes stay holes behind the end of a regular file.
pub struct Stream {
    file: File,
    appends: bool,
}

impl Stream {
    /// What this process prints to.
    pub fn stdout() -> io::Result<Self> {
        Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    fn new(file: File) -> io::Result<Self> {
        let appends = rustix::fs::fcntl_getfl(&file)?.contains(OFlags::APPEND);
        Ok(Self { file, appends })
    }

    /// Writes a piece.
    pub fn write(&mut self, piece: &Piece) -> io::Result<()> {
        match piece {
            Piece::Data(bytes) => self.file.write_all(bytes),
            Piece::Hole(len_bytes) => self.pass(*len_bytes),
        }
    }

    fn pass(&mut self, len_bytes: u64) -> io::Result<()> {
        let meta = self.file.metadata()?;
        // Others may append to a file meanwhile that is opened for that (`>>`), and a new length would cut off what they did.
        if meta.is_file() && !self.appends {
            // Wherever whoever opened it has come.
            let at = self.file.stream_position()?;
            let end = at.checked_add(len_bytes).ok_or(io::ErrorKind::FileTooLarge)?;
            // Otherwise what is there already would shine through.
            if at >= meta.len() {
                self.file.set_len(end)?;
                return self.file.seek(SeekFrom::Start(end)).map(drop);
            }
        }
        let mut left = len_bytes;
        while left > 0 {
            let now = left.min(ZEROES.len() as u64);
            // At most the length of the slice.
            self.file.write_all(&ZEROES[..now as usize])?;
            left -= now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::OpenOptions,
        io::Read,
        os::{fd::OwnedFd, unix::fs::MetadataExt},
    };

    fn run(offset_bytes: u64, len_bytes: u64) -> FileRun {
        FileRun { offset_bytes, len_bytes }
    }

    #[test]
    fn only_data_is_read_and_every_byte_comes_once() {
        let size = 40 << 20;
        let data = [run(0, 10), run(1 << 20, 6 << 20), run(39 << 20, 1 << 20)];
        let mut plan = Plan::default();
        let (mut at, mut read, mut asked) = (0, 0, 0);
        loop {
            match plan.next() {
                Step::End => break,
                Step::Ask(from) => {
                    assert_eq!(from, at);
                    asked += 1;
                    // The last run is told of only when it is asked for what follows.
                    let told = if asked == 1 { &data[..2] } else { &data[2..] };
                    let until_bytes = if asked == 1 { 10 << 20 } else { size };
                    plan.learn(FileRuns { size_bytes: size, until_bytes, data: told.to_vec() });
                }
                Step::Skip(len) => {
                    plan.pass(len);
                    at += len;
                }
                Step::Read(piece) => {
                    assert!(piece.offset_bytes == at && piece.len_bytes <= PIECE_BYTES);
                    // Less than was asked for is no end.
                    let came = piece.len_bytes.min(1_500_000);
                    plan.pass(came);
                    (at, read) = (at + came, read + came);
                }
            }
        }
        assert_eq!((at, read, asked), (size, 10 + (6 << 20) + (1 << 20), 2));
        let nothing = Plan { size_bytes: Some(0), ..Plan::default() };
        assert_eq!(nothing.next(), Step::End);
    }

    #[test]
    fn short_holes_are_read_and_long_ones_are_not() {
        let kib = |from: u64, len: u64| run(from << 10, len << 10);
        let mut plan = Plan::default();
        // 255 KiB, nothing and 256 KiB between them.
        let data = vec![kib(0, 4), kib(259, 1), kib(260, 4), kib(520, 4)];
        plan.learn(FileRuns { size_bytes: 1 << 20, until_bytes: 1 << 20, data });
        let mut steps = vec![];
        loop {
            let step = plan.next();
            match &step {
                Step::Read(run) => plan.pass(run.len_bytes),
                Step::Skip(len_bytes) => plan.pass(*len_bytes),
                Step::End | Step::Ask(_) => break,
            }
            steps.push(step);
        }
        let expected = [
            Step::Read(kib(0, 264)),
            Step::Skip(256 << 10),
            Step::Read(kib(520, 4)),
            Step::Skip((1024 - 524) << 10),
        ];
        assert_eq!(steps, expected);
    }

    const HOLE: u64 = 4 << 20;

    fn write_all(file: File) {
        let mut stream = Stream::new(file).unwrap();
        for piece in [Piece::Data(b"begin".to_vec()), Piece::Hole(HOLE), Piece::Data(b"end".to_vec())] {
            stream.write(&piece).unwrap();
        }
        stream.write(&Piece::Hole(4096)).unwrap();
    }

    #[test]
    fn holes_stay_holes_in_files_that_grow_and_are_written_where_others_may_append() {
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
    fn where_a_hole_would_not_read_as_zeroes_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        std::fs::write(&path, vec![b'x'; 9000]).unwrap();
        let mut stream = Stream::new(OpenOptions::new().write(true).open(&path).unwrap()).unwrap();
        stream.write(&Piece::Data(b"ab".to_vec())).unwrap();
        stream.write(&Piece::Hole(5000)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[2..5002].iter().all(|byte| *byte == 0) && bytes.len() == 9000 && bytes[5002] == b'x');

        let (mut reader, writer) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let mut stream = Stream::new(File::from(OwnedFd::from(writer))).unwrap();
            stream.write(&Piece::Hole(200_000)).unwrap();
        });
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        writer.join().unwrap();
        assert!(bytes.len() == 200_000 && bytes.iter().all(|byte| *byte == 0));
    }
}
