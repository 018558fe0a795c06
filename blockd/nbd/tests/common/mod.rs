//! A memory device with moods, a catalog, a server on a socket of its own, and a small blocking client.
#![allow(dead_code, reason = "every test binary uses some of it")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use blockd_nbd::constants::*;
use blockd_nbd::request::Request;
use blockd_nbd::{
    BlockDevice, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress, Server,
    ServerConfig, StatusExtent, ZeroFlags,
};

/// Far beyond what any step takes: a test that would hang fails instead.
pub const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Answers at once.
    Instant,
    /// Everything would block.
    Blocking,
    /// Now this, now that.
    Mixed,
    /// Fails, at once where it can.
    Failing(DeviceErrorKind),
    /// Fails on the worker threads.
    FailingLater(DeviceErrorKind),
    Panicking,
    PanickingLater,
}

/// A gate that requests on worker threads wait at while it is closed.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        while *closed {
            closed = self.changed.wait(closed).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until `count` requests are at the gate.
    pub fn wait_for(&self, count: usize) {
        let closed = self.closed.lock().unwrap();
        let (_guard, timeout) = self
            .changed
            .wait_timeout_while(closed, TIMEOUT, |_| self.waiting.load(Ordering::SeqCst) < count)
            .unwrap();
        assert!(!timeout.timed_out(), "{count} requests never came to the gate");
    }
}

pub struct MemDevice {
    pub data: Mutex<Vec<u8>>,
    pub mood: Mood,
    pub read_only: bool,
    pub gate: Gate,
    pub flushes: AtomicUsize,
    pub fua_writes: AtomicUsize,
    pub no_hole_zeroes: AtomicUsize,
    pub fast_zeroes: AtomicUsize,
    pub cached_bytes: AtomicUsize,
    pub misaligned: AtomicBool,
    pub turn: AtomicUsize,
}

impl MemDevice {
    pub fn new(size_bytes: usize, mood: Mood) -> Self {
        Self {
            data: Mutex::new(vec![0; size_bytes]),
            mood,
            read_only: false,
            gate: Gate::default(),
            flushes: AtomicUsize::new(0),
            fua_writes: AtomicUsize::new(0),
            no_hole_zeroes: AtomicUsize::new(0),
            fast_zeroes: AtomicUsize::new(0),
            cached_bytes: AtomicUsize::new(0),
            misaligned: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    fn at_once(&self) -> Result<Progress, DeviceError> {
        match self.mood {
            Mood::Instant => Ok(Progress::Done),
            Mood::Blocking | Mood::FailingLater(_) | Mood::PanickingLater => Ok(Progress::WouldBlock),
            Mood::Mixed if self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => Ok(Progress::Done),
            Mood::Mixed => Ok(Progress::WouldBlock),
            Mood::Failing(kind) => Err(DeviceError::new(kind, "a failure that was asked for")),
            Mood::Panicking => panic!("a panic that was asked for"),
        }
    }

    fn later(&self) -> Result<(), DeviceError> {
        self.gate.pass();
        match self.mood {
            Mood::Failing(kind) | Mood::FailingLater(kind) => {
                Err(DeviceError::new(kind, "a failure that was asked for"))
            }
            Mood::Panicking | Mood::PanickingLater => panic!("a panic that was asked for"),
            Mood::Instant | Mood::Blocking | Mood::Mixed => Ok(()),
        }
    }

    fn is_zero(&self, offset_bytes: u64, len: usize) -> bool {
        let from = offset_bytes as usize;
        self.data.lock().unwrap()[from..from + len].iter().all(|byte| *byte == 0)
    }

    fn copy_out(&self, offset_bytes: u64, buf: &mut [u8]) {
        let from = offset_bytes as usize;
        buf.copy_from_slice(&self.data.lock().unwrap()[from..from + buf.len()]);
    }

    fn copy_in(&self, offset_bytes: u64, data: &[u8]) {
        let to = offset_bytes as usize;
        self.data.lock().unwrap()[to..to + data.len()].copy_from_slice(data);
    }

    fn check_alignment(&self, data: &[u8]) {
        if !data.as_ptr().addr().is_multiple_of(4096) {
            self.misaligned.store(true, Ordering::SeqCst);
        }
    }
}

impl BlockDevice for MemDevice {
    fn size_bytes(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let progress = self.at_once()?;
        if progress == Progress::Done && !self.is_zero(offset_bytes, buf.len()) {
            self.copy_out(offset_bytes, buf);
        } else {
            // What is in the buffer must not reach the client.
            buf.fill(0xee);
            if progress == Progress::Done {
                return Ok(Progress::Zeroes);
            }
        }
        Ok(progress)
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.check_alignment(buf);
        self.later()?;
        if self.is_zero(offset_bytes, buf.len()) {
            buf.fill(0xee);
            return Ok(Progress::Zeroes);
        }
        self.copy_out(offset_bytes, buf);
        Ok(Progress::Done)
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        let progress = self.at_once()?;
        if progress == Progress::Done {
            self.copy_in(offset_bytes, data);
        }
        Ok(progress)
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.check_alignment(data);
        self.later()?;
        self.copy_in(offset_bytes, data);
        self.fua_writes.fetch_add(usize::from(fua), Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.later()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.write_zeroes(offset_bytes, len_bytes, ZeroFlags { fua, ..ZeroFlags::default() })
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        self.later()?;
        if flags.fast && !offset_bytes.is_multiple_of(4096) {
            return Err(DeviceError::new(DeviceErrorKind::NotSupported, "that would be slow"));
        }
        let from = offset_bytes as usize;
        self.data.lock().unwrap()[from..from + len_bytes as usize].fill(0);
        self.fast_zeroes.fetch_add(usize::from(flags.fast), Ordering::SeqCst);
        self.no_hole_zeroes.fetch_add(usize::from(flags.no_hole), Ordering::SeqCst);
        self.fua_writes.fetch_add(usize::from(flags.fua), Ordering::SeqCst);
        Ok(())
    }

    fn cache(&self, _: u64, len_bytes: u64) -> Result<(), DeviceError> {
        self.later()?;
        self.cached_bytes.fetch_add(len_bytes as usize, Ordering::SeqCst);
        Ok(())
    }

    fn meta_contexts(&self) -> Vec<String> {
        vec!["base:allocation".to_owned(), "qemu:dirty-bitmap:7".to_owned()]
    }

    /// By blocks of 4 KiB: zeroes are holes, and every third block is dirty.
    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        self.later()?;
        let end = offset_bytes + len_bytes;
        let size = self.data.lock().unwrap().len() as u64;
        let mut at = offset_bytes;
        while at < end {
            let block = at / 4096;
            let next = ((block + 1) * 4096).min(end);
            let flags = if context == "base:allocation" {
                let block_end = ((block + 1) * 4096).min(size);
                3 * u32::from(self.is_zero(block * 4096, (block_end - block * 4096) as usize))
            } else {
                u32::from(block.is_multiple_of(3))
            };
            let is_full = extents.len() == max_extents;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += next - at,
                _ if is_full => return Ok(()),
                _ => extents.push(StatusExtent { len_bytes: next - at, flags }),
            }
            at = next;
        }
        Ok(())
    }
}

/// Exports by name; the empty name is the only one's. The name "busy" cannot be had, "panic" panics.
pub struct Catalog(pub Vec<(String, Arc<MemDevice>)>);

impl ExportCatalog for Catalog {
    fn open(&self, name: &str, _: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        assert!(name != "panic", "a panic that was asked for");
        if name == "busy" {
            return Err(ExportError::Unavailable { reason: "it is being restored".to_owned() });
        }
        let only = if name.is_empty() && self.0.len() == 1 { self.0.first() } else { None };
        let found = self.0.iter().find(|(known, _)| known == name).or(only);
        found.map(|(_, device)| Arc::clone(device) as Arc<dyn BlockDevice>).ok_or(ExportError::Unknown)
    }

    fn list(&self, _: &blockd_nbd::Client) -> Vec<ExportInfo> {
        let info = |(name, device): &(String, Arc<MemDevice>)| ExportInfo {
            name: name.clone(),
            description: format!("the volume {name}"),
            size_bytes: device.size_bytes(),
            read_only: device.read_only,
        };
        self.0.iter().map(info).collect()
    }
}

/// A server with a socket in a directory of its own.
pub struct TestServer {
    pub server: Server,
    pub socket: PathBuf,
    pub device: Arc<MemDevice>,
    _dir: tempfile::TempDir,
}

impl TestServer {
    pub fn start(device: MemDevice) -> Self {
        Self::with(device, |_| {})
    }

    pub fn with(device: MemDevice, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let mut config = ServerConfig {
            unix_path: Some(socket.clone()),
            ring_threads: 2,
            worker_threads: 4,
            // So that a connection that ought to be closed is not closed by this.
            handshake_timeout: Duration::from_secs(3600),
            ..ServerConfig::default()
        };
        change(&mut config);
        let device = Arc::new(device);
        let catalog = Catalog(vec![("vol".to_owned(), Arc::clone(&device))]);
        let server = Server::start(config, Arc::new(catalog)).unwrap();
        Self { server, socket, device, _dir: dir }
    }

    pub fn instant(size_bytes: usize) -> Self {
        Self::start(MemDevice::new(size_bytes, Mood::Instant))
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///vol?socket={}", self.socket.display())
    }

    pub fn connect(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// A client in transmission.
    pub fn attach(&self) -> Client {
        let mut client = self.connect();
        client.go("vol");
        client
    }

    /// The server still serves.
    pub fn assert_serves(&self) {
        let mut client = self.attach();
        assert_eq!(client.read(0, 1).0, 0);
        client.disconnect();
    }

    /// Waits until the server holds the device no more.
    pub fn wait_until_detached(&self) {
        self.wait_until_count(0);
    }

    /// Waits until the server holds the device so many times, beside the test's and the catalog's references.
    pub fn wait_until_count(&self, count: usize) {
        let deadline = std::time::Instant::now() + TIMEOUT;
        while Arc::strong_count(&self.device) != 2 + count {
            assert!(std::time::Instant::now() < deadline, "the server keeps the device");
            std::thread::yield_now();
        }
    }
}

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Client {
    pub stream: Box<dyn Stream>,
    next_cookie: u64,
}

/// An option reply: type and data.
pub type OptionReply = (u32, Vec<u8>);

impl Client {
    pub fn unix(path: &Path) -> Self {
        Self::over_unix(UnixStream::connect(path).unwrap())
    }

    pub fn over_unix(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: Box::new(stream), next_cookie: 1 }
    }

    pub fn tcp(addr: std::net::SocketAddr) -> Self {
        Self::over_tcp(TcpStream::connect(addr).unwrap())
    }

    pub fn over_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: Box::new(stream), next_cookie: 1 }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The server has closed the connection, with nothing more to say.
    pub fn assert_closed(&mut self) {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("the connection is not closed: {other:?}"),
        }
    }

    pub fn hello(&mut self, flags: u32) {
        let greeting = self.receive(18);
        assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(&option_request(option, data));
    }

    pub fn option_reply(&mut self, option: u32) -> OptionReply {
        let header = self.receive(20);
        assert_eq!(header[0..8], OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(header[8..12], option.to_be_bytes());
        let reply_type = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(header[16..20].try_into().unwrap());
        (reply_type, self.receive(len as usize))
    }

    /// All replies to an option, up to the ACK or the error.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let is_last = reply.0 == NBD_REP_ACK || reply.0 & 1 << 31 != 0;
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
    }

    pub fn go(&mut self, name: &str) {
        self.hello(3);
        let replies = self.option(NBD_OPT_GO, &info_request(name.as_bytes(), &[]));
        assert_eq!(replies.last().unwrap().0, NBD_REP_ACK, "{replies:?}");
    }

    pub fn request(&mut self, command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.send(
            &Request { flags, command, cookie, offset_bytes, len_bytes: u64::from(len_bytes) }.encode(),
        );
        cookie
    }

    /// Error number and cookie of the next reply.
    pub fn reply(&mut self) -> (u32, u64) {
        let bytes = self.receive(16);
        assert_eq!(bytes[0..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        let errno = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (errno, u64::from_be_bytes(bytes[8..16].try_into().unwrap()))
    }

    /// Sends a request without payload and takes its reply.
    pub fn command(&mut self, command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> u32 {
        let cookie = self.request(command, flags, offset_bytes, len_bytes);
        let (errno, got) = self.reply();
        assert_eq!(got, cookie);
        errno
    }

    /// Takes the replies to `count` reads of the same length; the last one's error number.
    pub fn command_among(&mut self, count: usize, len_bytes: u32) -> u32 {
        let mut last = 0;
        for _ in 0..count {
            last = self.reply().0;
            if last == 0 {
                self.receive(len_bytes as usize);
            }
        }
        last
    }

    pub fn read(&mut self, offset_bytes: u64, len_bytes: u32) -> (u32, Vec<u8>) {
        let errno = self.command(NBD_CMD_READ, 0, offset_bytes, len_bytes);
        let data = if errno == 0 { self.receive(len_bytes as usize) } else { Vec::new() };
        (errno, data)
    }

    pub fn write(&mut self, flags: u16, offset_bytes: u64, data: &[u8]) -> u32 {
        let cookie = self.request(NBD_CMD_WRITE, flags, offset_bytes, data.len() as u32);
        self.send(data);
        let (errno, got) = self.reply();
        assert_eq!(got, cookie);
        errno
    }

    pub fn disconnect(mut self) {
        self.request(NBD_CMD_DISC, 0, 0, 0);
        self.assert_closed();
    }
}

pub fn option_request(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn meta_request(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query.as_bytes())));
    data
}

pub fn info_request(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}
