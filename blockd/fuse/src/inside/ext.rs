//! ext2, ext3 and ext4, through the crate `ext4-view`, which knows journals that were not played back.
//!
//! What it makes cannot be sent between threads, so each filesystem has one thread of its own that answers questions one by
//! one. A question that makes it panic, read too much or think too long is answered with an error; after a panic or a
//! thought without end the filesystem is not asked again until it is opened anew.

use super::{
    FileEntry, FileKind, FileStat, FileTree,
    guard::{Guard, GuardedImage},
};
use crate::Image;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType, Metadata, Path, Timestamp};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const MAGIC_OFFSET_BYTES: u64 = 1024 + 56;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// Most groups of blocks that a filesystem may have, as each takes memory: those of 64 TiB.
const GROUPS_MOST: u64 = 600_000;
/// What may be read to open a filesystem: the descriptors of its groups, and its journal.
const OPEN_MOST_BYTES: u64 = 3 << 30;
/// What may be read to answer one question.
const QUESTION_MOST_BYTES: u64 = 512 << 20;
/// How long one question may be thought about.
const THINKING_MOST: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most entries of a directory that are shown.
const ENTRIES_MOST: usize = 1_000_000;
/// The longest target of a link.
const LINK_LEN_MOST: u64 = 4096;
/// Questions that wait for one filesystem.
const QUESTIONS_MOST: usize = 64;

/// Whether there is such a filesystem, by its magic.
pub(super) fn is_there(image: &dyn Image) -> io::Result<bool> {
    let mut magic = [0; 2];
    if image.size_bytes() < MAGIC_OFFSET_BYTES + 2 {
        return Ok(false);
    }
    image.read_at(MAGIC_OFFSET_BYTES, &mut magic)?;
    Ok(magic == MAGIC)
}

/// Opens it.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::Unsupported`] if it cannot be made sense of; what reading reports.
pub(super) fn open(image: Arc<dyn Image>) -> io::Result<Arc<dyn FileTree>> {
    check_superblock(&*image)?;
    let guard = Guard::new();
    let (send, receive) = bounded(QUESTIONS_MOST);
    let (opened_send, opened) = bounded(1);
    let reader = GuardedImage::new(image, guard.clone());
    guard.begin(OPEN_MOST_BYTES);
    let worker_guard = guard.clone();
    std::thread::Builder::new().name("ext".into()).spawn(move || {
        let fs = catch_unwind(AssertUnwindSafe(|| Ext4::load(Box::new(reader))));
        let fs = match fs {
            Ok(Ok(fs)) => fs,
            Ok(Err(error)) => return drop(opened_send.send(Err(convert(&error)))),
            Err(_) => return drop(opened_send.send(Err(panicked()))),
        };
        // If nobody waits any more, nobody will ask.
        if opened_send.send(Ok(())).is_ok() {
            answer_all(&fs, &worker_guard, &receive);
        }
    })?;
    wait(&opened, &guard)??;
    Ok(Arc::new(ExtTree { send, guard }))
}

/// Refuses what would take too much memory to open.
fn check_superblock(image: &dyn Image) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    let mut block = [0; 1024];
    if image.size_bytes() < 2048 {
        return wrong("it is too small");
    }
    image.read_at(1024, &mut block)?;
    let number = |at: usize| -> u64 {
        block
            .get(at..at + 4)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |b| u32::from_le_bytes(*b))
            .into()
    };
    let (low, log_size, per_group, incompatible) = (number(4), number(24), number(32), number(0x60));
    let high = if incompatible & 0x80 != 0 { number(0x150) } else { 0 };
    if log_size > 6 {
        return wrong("its blocks are larger than any");
    }
    let blocks = high << 32 | low;
    match blocks.checked_mul(1024 << log_size) {
        Some(bytes) if bytes <= image.size_bytes() => {}
        _ => return wrong("it is larger than where it lies"),
    }
    if per_group == 0 || blocks / per_group > GROUPS_MOST {
        return wrong("it has too many groups of blocks");
    }
    Ok(())
}

impl Ext4Read for GuardedImage {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(GuardedImage::read(self, start_byte, dst)?)
    }
}

fn panicked() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is damaged in a way that the reader does not stand")
}

fn convert(error: &Ext4Error) -> io::Error {
    let kind = match error {
        Ext4Error::NotFound => io::ErrorKind::NotFound,
        Ext4Error::NotADirectory => io::ErrorKind::NotADirectory,
        Ext4Error::IsADirectory => io::ErrorKind::IsADirectory,
        Ext4Error::NotASymlink | Ext4Error::IsASpecialFile | Ext4Error::MalformedPath => {
            io::ErrorKind::InvalidInput
        }
        Ext4Error::Encrypted | Ext4Error::Incompatible(_) => io::ErrorKind::Unsupported,
        Ext4Error::Io(_) => {
            // What the image said, with its kind.
            let kind =
                error.as_io().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
            kind.unwrap_or(io::ErrorKind::Other)
        }
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error.to_string())
}

enum Question {
    Stat(Vec<u8>, Sender<io::Result<FileStat>>),
    ReadDir(Vec<u8>, Sender<io::Result<Vec<FileEntry>>>),
    ReadLink(Vec<u8>, Sender<io::Result<Vec<u8>>>),
    Read(Vec<u8>, u64, usize, Sender<io::Result<Vec<u8>>>),
}

/// Waits for an answer, but not for one that is thought about for ever.
fn wait<T>(answer: &Receiver<T>, guard: &Guard) -> io::Result<T> {
    loop {
        match answer.recv_timeout(LOOK_EVERY) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) if guard.thinking() > THINKING_MOST => {
                guard.stop();
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it takes too long to make sense of it",
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(panicked()),
        }
    }
}

/// Answers until nobody asks any more, or something panics.
fn answer_all(fs: &Ext4, guard: &Guard, questions: &Receiver<Question>) {
    // The file that was read last: who reads it reads on.
    let mut last: Option<(Vec<u8>, File)> = None;
    while let Ok(question) = questions.recv() {
        guard.begin(QUESTION_MOST_BYTES);
        let answered = catch_unwind(AssertUnwindSafe(|| match question {
            Question::Stat(path, reply) => drop(reply.send(stat(fs, &path))),
            Question::ReadDir(path, reply) => drop(reply.send(read_dir(fs, &path))),
            Question::ReadLink(path, reply) => drop(reply.send(read_link(fs, &path))),
            Question::Read(path, offset_bytes, len, reply) => {
                drop(reply.send(read(fs, &mut last, path, offset_bytes, len)));
            }
        }));
        if answered.is_err() {
            tracing::error!("the reader of ext4 panicked: the filesystem is damaged");
            return;
        }
    }
}

fn path_of(path: &[u8]) -> io::Result<Path<'_>> {
    Path::try_from(path).map_err(|_| io::Error::from(io::ErrorKind::NotFound))
}

fn kind_of(kind: FileType) -> FileKind {
    match kind {
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::Directory => FileKind::Directory,
        FileType::Fifo => FileKind::Fifo,
        FileType::Regular => FileKind::Regular,
        FileType::Socket => FileKind::Socket,
        FileType::Symlink => FileKind::Symlink,
    }
}

fn stat_of(metadata: &Metadata) -> FileStat {
    FileStat {
        kind: kind_of(metadata.file_type()),
        size_bytes: metadata.len(),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified: time_of(metadata.modified()),
        accessed: time_of(metadata.accessed()),
    }
}

/// A time since 1970; what was before is not shown.
fn time_of(time: Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds()).ok()?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, time.nanoseconds()))
}

fn stat(fs: &Ext4, path: &[u8]) -> io::Result<FileStat> {
    Ok(stat_of(&fs.symlink_metadata(path_of(path)?).map_err(|error| convert(&error))?))
}

fn read_dir(fs: &Ext4, path: &[u8]) -> io::Result<Vec<FileEntry>> {
    let mut entries = Vec::new();
    for entry in fs.read_dir(path_of(path)?).map_err(|error| convert(&error))? {
        let entry = entry.map_err(|error| convert(&error))?;
        let name = entry.file_name();
        let name: &[u8] = name.as_ref();
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            continue;
        }
        if entries.len() >= ENTRIES_MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the directory has too many entries"));
        }
        entries
            .push(FileEntry { name: name.to_vec(), stat: entry.metadata().ok().map(|meta| stat_of(&meta)) });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    // Two of one name cannot be told apart.
    entries.dedup_by(|b, a| a.name == b.name);
    Ok(entries)
}

fn read_link(fs: &Ext4, path: &[u8]) -> io::Result<Vec<u8>> {
    // The whole of it is read into memory.
    if stat(fs, path)?.size_bytes > LINK_LEN_MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the target of the link is too long"));
    }
    let target = fs.read_link(path_of(path)?).map_err(|error| convert(&error))?;
    Ok(AsRef::<[u8]>::as_ref(&target).to_vec())
}

fn read(
    fs: &Ext4,
    last: &mut Option<(Vec<u8>, File)>,
    path: Vec<u8>,
    offset_bytes: u64,
    len: usize,
) -> io::Result<Vec<u8>> {
    let mut file = match last.take() {
        Some((of, file)) if of == path => file,
        _ => {
            if stat(fs, &path)?.kind != FileKind::Regular {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            fs.open(path_of(&path)?).map_err(|error| convert(&error))?
        }
    };
    let size = file.metadata().len();
    let len = len.min(usize::try_from(size.saturating_sub(offset_bytes)).unwrap_or(len));
    if len == 0 {
        // The reader goes block by block to wherever it is sent.
        *last = Some((path, file));
        return Ok(Vec::new());
    }
    if file.position() != offset_bytes {
        file.seek_to(offset_bytes).map_err(|error| convert(&error))?;
    }
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_bytes(&mut bytes[done..]).map_err(|error| convert(&error))? {
            0 => break,
            read => done += read,
        }
    }
    bytes.truncate(done);
    *last = Some((path, file));
    Ok(bytes)
}

/// A filesystem that a thread of its own reads.
struct ExtTree {
    send: Sender<Question>,
    guard: Arc<Guard>,
}

impl ExtTree {
    fn ask<T>(&self, question: impl FnOnce(Sender<io::Result<T>>) -> Question) -> io::Result<T> {
        let (reply, answer) = bounded(1);
        self.send.send(question(reply)).map_err(|_| panicked())?;
        wait(&answer, &self.guard)?
    }
}

impl FileTree for ExtTree {
    fn stat(&self, path: &[u8]) -> io::Result<FileStat> {
        self.ask(|reply| Question::Stat(path.to_vec(), reply))
    }

    fn read_dir(&self, path: &[u8]) -> io::Result<Vec<FileEntry>> {
        self.ask(|reply| Question::ReadDir(path.to_vec(), reply))
    }

    fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        self.ask(|reply| Question::ReadLink(path.to_vec(), reply))
    }

    fn read(&self, path: &[u8], offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
        self.ask(|reply| Question::Read(path.to_vec(), offset_bytes, len, reply))
    }
}
