//! Test server on its own socket, and a small blocking client.
#![allow(dead_code, unused_imports, reason = "each test uses a part")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod device;
mod wire;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockd_nbd::constants::*;
use blockd_nbd::{Server, ServerConfig};

pub use device::{Behaviour, Catalog, MemDevice, TIMEOUT};
pub use wire::{ReplyMode, Request, info_request, meta_request, option_request, pattern};

/// Server with a socket in a temporary directory.
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
            // Long, so that it does not hide a missing close.
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
        Self::start(MemDevice::new(size_bytes, Behaviour::Instant))
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///vol?socket={}", self.socket.display())
    }

    pub fn connect(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// Returns a client in transmission.
    pub fn attach(&self) -> Client {
        let mut client = self.connect();
        client.go("vol");
        client
    }

    /// Asserts that the server accepts and serves a connection.
    pub fn assert_serves(&self) {
        let mut client = self.attach();
        assert_eq!(client.read(0, 1).0, 0);
        client.disconnect();
    }

    /// Waits until the server has dropped the device.
    pub fn wait_until_detached(&self) {
        self.wait_until_count(0);
    }

    /// Waits until the server holds `count` references to the device, without those of the test and catalog.
    pub fn wait_until_count(&self, count: usize) {
        let deadline = std::time::Instant::now() + TIMEOUT;
        while Arc::strong_count(&self.device) != 2 + count {
            assert!(std::time::Instant::now() < deadline, "timeout: the server keeps the device");
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

/// Option reply: type and data.
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

    /// Asserts that the server closes the connection without further bytes.
    pub fn assert_closed(&mut self) {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("connection still open: {other:?}"),
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

    /// Sends an option; returns all replies, up to the ACK or error.
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

    /// Receives a simple reply; returns its error number and cookie.
    pub fn reply(&mut self) -> (u32, u64) {
        let bytes = self.receive(16);
        assert_eq!(bytes[0..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        let errno = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (errno, u64::from_be_bytes(bytes[8..16].try_into().unwrap()))
    }

    /// Sends a request without payload; returns the error number of its reply.
    pub fn command(&mut self, command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> u32 {
        let cookie = self.request(command, flags, offset_bytes, len_bytes);
        let (errno, got) = self.reply();
        assert_eq!(got, cookie);
        errno
    }

    /// Receives the replies to `count` reads of the same length; returns the error number of the last.
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
