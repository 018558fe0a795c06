//! A disk that records its requests: an NBD server for one export in memory.
//!
//! The server executes requests one after the other; the log has them in this order. Requests before an
//! answered flush are durable; a power cut may keep any part of later ones.

use super::image::Image;
use crate::harness::{Rng, nbd::command};
use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

const OPTION_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
/// Transmission flags: has flags, flush, trim, write zeroes.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6;
const EINVAL: u32 = 22;
/// Maximum length of a read or write; no client of the tests exceeds it.
const MAX_BYTES: u64 = 64 << 20;
const SECTOR_BYTES: u64 = 512;

/// Recorded request.
#[derive(Debug)]
pub enum Entry {
    /// Write.
    Write {
        /// Offset, in bytes.
        offset_bytes: u64,
        /// Data.
        data: Vec<u8>,
    },
    /// Zeroes or a trim.
    Zero {
        /// Offset, in bytes.
        offset_bytes: u64,
        /// Length, in bytes.
        len_bytes: u64,
    },
    /// Flush: earlier requests are durable.
    Flush,
}

/// Callback before each change of the disk, with its position in the log.
pub type Observer = Box<dyn FnMut(usize) + Send>;

#[derive(Default)]
struct State {
    image: Image,
    log: Vec<Entry>,
    observer: Option<Observer>,
}

impl State {
    fn push(&mut self, entry: Entry) {
        if let Some(observer) = &mut self.observer {
            observer(self.log.len());
        }
        self.log.push(entry);
    }
}

struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves the log unchanged.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running server.
pub struct Recorder {
    shared: Arc<Shared>,
    socket: PathBuf,
    base: Image,
    listener: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Serves a disk with this content on a new unix socket.
    pub fn start(base: Image, socket: &Path) -> io::Result<Self> {
        let state = State { image: base.clone(), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), ended: AtomicBool::new(false) });
        let listening = UnixListener::bind(socket)?;
        let for_thread = Arc::clone(&shared);
        let listener = std::thread::spawn(move || {
            for stream in listening.incoming() {
                let (Ok(stream), false) = (stream, for_thread.ended.load(Ordering::SeqCst)) else { return };
                let shared = Arc::clone(&for_thread);
                // The thread ends with its connection; errors end the connection.
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Ok(Self { shared, socket: socket.to_owned(), base, listener: Some(listener) })
    }

    /// Returns the URI.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Returns the number of logged requests.
    pub fn position(&self) -> usize {
        self.shared.state().log.len()
    }

    /// Sets the callback that is called with the position of each change before its reply.
    pub fn observe(&self, observer: Observer) {
        self.shared.state().observer = Some(observer);
    }

    /// Stops the server. Returns the recording.
    pub fn end(mut self) -> Recording {
        self.stop();
        Recording { base: self.base.clone(), log: std::mem::take(&mut self.shared.state().log) }
    }

    fn stop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the listening thread.
        drop(UnixStream::connect(&self.socket));
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let size_bytes = shared.state().image.size_bytes();
    greet(&mut stream, size_bytes)?;
    loop {
        let header: [u8; 28] = take(&mut stream)?;
        let field = |from: usize, len: usize| {
            header[from..from + len].iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let (kind, offset_bytes, len_bytes) = (field(6, 2) as u16, field(16, 8), field(24, 4));
        let inside = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= size_bytes);
        if kind == command::DISC
            || len_bytes > MAX_BYTES && kind != command::WRITE_ZEROES && kind != command::TRIM
        {
            return Ok(());
        }
        let mut data = vec![0; if kind == command::WRITE { len_bytes as usize } else { 0 }];
        stream.read_exact(&mut data)?;
        let mut state = shared.state();
        let mut errno = 0;
        match kind {
            _ if !inside => errno = EINVAL,
            command::READ => {
                data = vec![0; len_bytes as usize];
                state.image.read(offset_bytes, &mut data);
            }
            command::WRITE => {
                state.image.write(offset_bytes, &data);
                state.push(Entry::Write { offset_bytes, data: std::mem::take(&mut data) });
            }
            command::TRIM | command::WRITE_ZEROES => {
                state.image.zero(offset_bytes, len_bytes);
                state.push(Entry::Zero { offset_bytes, len_bytes });
            }
            command::FLUSH => state.push(Entry::Flush),
            _ => errno = EINVAL,
        }
        drop(state);
        let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
        reply.extend(errno.to_be_bytes());
        reply.extend(&header[8..16]);
        if errno == 0 {
            reply.extend(data);
        }
        stream.write_all(&reply)?;
    }
}

fn greet(stream: &mut UnixStream, size_bytes: u64) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _client_flags: [u8; 4] = take(stream)?;
    loop {
        let _magic: [u8; 8] = take(stream)?;
        let option = u32::from_be_bytes(take(stream)?);
        let len = u32::from_be_bytes(take(stream)?);
        io::copy(&mut stream.take(u64::from(len)), &mut io::sink())?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            stream.write_all(&bytes)
        };
        match option {
            OPT_GO | OPT_INFO => {
                let mut info = vec![0, 0];
                info.extend(size_bytes.to_be_bytes());
                info.extend(FLAGS.to_be_bytes());
                reply(REP_INFO, &info)?;
                reply(REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(());
                }
            }
            OPT_ABORT => {
                reply(REP_ACK, &[])?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            _ => reply(REP_ERR_UNSUP, &[])?,
        }
    }
}

/// Initial content of a disk and its requests.
pub struct Recording {
    base: Image,
    log: Vec<Entry>,
}

/// Fate of unflushed requests in a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survivors {
    /// All requests.
    All,
    /// A random subset of the requests.
    Requests,
    /// A random subset of the 4 KiB pages of each request.
    Pages,
    /// A random subset of the sectors of each request. The first page is not torn: ext4 writes its
    /// superblock, whose checksum is in another sector, without the journal and relies on disks that do not
    /// tear 1 KiB.
    Sectors,
}

impl Recording {
    /// Returns the number of requests.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Returns the position after each flush: a power cut there leaves durable requests only.
    pub fn flush_boundaries(&self) -> Vec<usize> {
        let flushes = self.log.iter().enumerate().filter(|(_, entry)| matches!(entry, Entry::Flush));
        flushes.map(|(at, _)| at + 1).collect()
    }

    /// Starts a replay of the log.
    pub fn replay(&self) -> Replay<'_> {
        Replay { recording: self, durable: self.base.clone(), durable_until: 0 }
    }
}

/// Builds the states after power cuts, in ascending order.
pub struct Replay<'a> {
    recording: &'a Recording,
    durable: Image,
    durable_until: usize,
}

impl Replay<'_> {
    /// Returns the state after a power cut before the request at `position`. Positions must not decrease.
    pub fn cut(&mut self, position: usize, survivors: Survivors, rng: &mut Rng) -> Image {
        assert!(position >= self.durable_until, "positions must not decrease");
        let log = &self.recording.log;
        let flushes =
            log[self.durable_until..position].iter().rposition(|entry| matches!(entry, Entry::Flush));
        if let Some(last) = flushes {
            let until = self.durable_until + last + 1;
            for entry in &log[self.durable_until..until] {
                apply(entry, &mut self.durable, |_| true);
            }
            self.durable_until = until;
        }
        let mut image = self.durable.clone();
        for entry in &log[self.durable_until..position] {
            match survivors {
                Survivors::All => apply(entry, &mut image, |_| true),
                Survivors::Requests => {
                    if rng.one_in(2) {
                        apply(entry, &mut image, |_| true);
                    }
                }
                Survivors::Pages => apply_some(entry, &mut image, crate::harness::BLOCK, rng),
                Survivors::Sectors => apply_some(entry, &mut image, SECTOR_BYTES, rng),
            }
        }
        image
    }

    /// Returns the number of unflushed requests before `position`, as of the last [`cut`](Self::cut).
    pub fn volatile(&self, position: usize) -> usize {
        position - self.durable_until
    }
}

fn apply_some(entry: &Entry, image: &mut Image, unit_bytes: u64, rng: &mut Rng) {
    let mut last = None;
    apply(entry, image, |at| {
        let unit = if at < crate::harness::BLOCK { 0 } else { at / unit_bytes };
        match last {
            Some((number, kept)) if number == unit => kept,
            _ => {
                let kept = rng.one_in(2);
                last = Some((unit, kept));
                kept
            }
        }
    });
}

/// Applies the chosen sectors of a request.
fn apply(entry: &Entry, image: &mut Image, mut chosen: impl FnMut(u64) -> bool) {
    let (offset_bytes, len_bytes) = match entry {
        Entry::Write { offset_bytes, data } => (*offset_bytes, data.len() as u64),
        Entry::Zero { offset_bytes, len_bytes } => (*offset_bytes, *len_bytes),
        Entry::Flush => return,
    };
    let end = offset_bytes + len_bytes;
    let mut at = offset_bytes;
    while at < end {
        let mut to = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
        if !chosen(at) {
            at = to;
            continue;
        }
        // Adjacent sectors of a page are applied together, which is faster.
        while to < end && !to.is_multiple_of(crate::harness::BLOCK) && chosen(to) {
            to = (to + SECTOR_BYTES).min(end);
        }
        match entry {
            Entry::Write { data, .. } => {
                image.write(at, &data[(at - offset_bytes) as usize..(to - offset_bytes) as usize]);
            }
            _ => image.zero(at, to - at),
        }
        at = to;
    }
}
