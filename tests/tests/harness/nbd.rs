//! Small blocking NBD client with the constants of the NBD protocol document.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
};

/// Commands of the transmission phase.
pub mod command {
    /// `NBD_CMD_READ`.
    pub const READ: u16 = 0;
    /// `NBD_CMD_WRITE`.
    pub const WRITE: u16 = 1;
    /// `NBD_CMD_DISC`.
    pub const DISC: u16 = 2;
    /// `NBD_CMD_FLUSH`.
    pub const FLUSH: u16 = 3;
    /// `NBD_CMD_TRIM`.
    pub const TRIM: u16 = 4;
    /// `NBD_CMD_WRITE_ZEROES`.
    pub const WRITE_ZEROES: u16 = 6;
}

/// Flags of a command.
pub mod flag {
    /// `NBD_CMD_FLAG_FUA`: the data is durable before the reply.
    pub const FUA: u16 = 1;
    /// `NBD_CMD_FLAG_NO_HOLE`: the zeroes stay allocated.
    pub const NO_HOLE: u16 = 2;
    /// `NBD_CMD_FLAG_FAST_ZERO`: fails unless zeroing is fast.
    pub const FAST_ZERO: u16 = 16;
}

/// Error numbers of a reply.
pub mod errno {
    /// I/O error.
    pub const EIO: u32 = 5;
    /// Invalid argument.
    pub const EINVAL: u32 = 22;
    /// No space left.
    pub const ENOSPC: u32 = 28;
    /// Value too large.
    pub const EOVERFLOW: u32 = 75;
}

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection to an NBD server.
pub struct Nbd {
    stream: Box<dyn Stream>,
    next_cookie: u64,
    size_bytes: u64,
    flags: u16,
}

/// Failure of a request: an error of the server, or a broken connection.
#[derive(Debug)]
pub enum Failure {
    /// The server's error number.
    Refused(u32),
    /// The connection broke.
    Broken(io::Error),
}

/// Returns the error number of a request that must be refused.
pub fn refused<T>(result: Result<T, Failure>) -> u32 {
    match result {
        Err(Failure::Refused(errno)) => errno,
        Err(Failure::Broken(error)) => panic!("the connection broke: {error}"),
        Ok(_) => panic!("the request succeeded"),
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Returns the bytes of an option request.
pub fn option_request(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Returns the data of an INFO or GO option without information requests.
pub fn info_data(export: &str) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(0u16.to_be_bytes());
    data
}

/// Returns the bytes of a request without payload.
pub fn request(command: u16, flags: u16, cookie: u64, offset_bytes: u64, len_bytes: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset_bytes.to_be_bytes());
    bytes.extend(len_bytes.to_be_bytes());
    bytes
}

impl Nbd {
    fn with(stream: Box<dyn Stream>) -> Self {
        Self { stream, next_cookie: 1, size_bytes: 0, flags: 0 }
    }

    /// Connects over a unix socket and sends nothing.
    pub fn raw(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(crate::harness::TIMEOUT))?;
        stream.set_write_timeout(Some(crate::harness::TIMEOUT))?;
        Ok(Self::with(Box::new(stream)))
    }

    /// Connects over a unix socket and enters transmission.
    pub fn open(socket: &Path, export: &str) -> Self {
        Self::try_open(socket, export)
            .unwrap_or_else(|error| panic!("open failed on export {export:?}: {error}"))
    }

    /// As [`open`](Self::open), but returns the error.
    pub fn try_open(socket: &Path, export: &str) -> io::Result<Self> {
        let mut client = Self::raw(socket)?;
        client.go(export)?;
        Ok(client)
    }

    /// Connects over TCP and enters transmission.
    pub fn try_open_tcp(address: SocketAddr, export: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(crate::harness::TIMEOUT))?;
        let mut client = Self::with(Box::new(stream));
        client.go(export)?;
        Ok(client)
    }

    /// Sends raw bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Receives this number of bytes.
    pub fn receive(&mut self, len_bytes: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len_bytes];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives until the server closes the connection.
    pub fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset after the last byte also ends the connection.
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }

    /// Receives the greeting and sends the client flags.
    pub fn hello(&mut self) -> io::Result<()> {
        let greeting = self.receive(18)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT", "not the greeting of a fixed newstyle server");
        self.send(&3u32.to_be_bytes())
    }

    /// Receives one reply to an option: its type and data.
    pub fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let header = self.receive(20)?;
        assert_eq!(&header[..8], &0x0003_e889_0455_65a9u64.to_be_bytes(), "not the reply to an option");
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(header[16..20].try_into().unwrap());
        Ok((kind, self.receive(len as usize)?))
    }

    fn go(&mut self, export: &str) -> io::Result<()> {
        self.hello()?;
        self.send(&option_request(OPT_GO, &info_data(export)))?;
        loop {
            match self.option_reply()? {
                (REP_ACK, _) => return Ok(()),
                (REP_INFO, data) if data[..2] == [0, 0] => {
                    self.size_bytes = u64::from_be_bytes(data[2..10].try_into().unwrap());
                    self.flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
                }
                (REP_INFO, _) => {}
                (kind, data) => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::other(format!("the server refuses with {kind:#x}: {text}")));
                }
            }
        }
    }

    /// The size of the export, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Sends a request without waiting for its reply. Returns its cookie.
    pub fn start(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        len_bytes: u64,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let len = u32::try_from(len_bytes).expect("a length of 32 bits");
        self.send(&request(command, flags, cookie, offset_bytes, len))?;
        self.send(payload)?;
        Ok(cookie)
    }

    /// Receives the next simple reply, without payload: its error number and cookie.
    pub fn reply(&mut self) -> io::Result<(u32, u64)> {
        let bytes = self.receive(16)?;
        assert_eq!(&bytes[..4], &REPLY_MAGIC.to_be_bytes(), "not a simple reply");
        let errno = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        Ok((errno, u64::from_be_bytes(bytes[8..16].try_into().unwrap())))
    }

    /// Sends a request and receives its reply.
    pub fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset_bytes: u64,
        len_bytes: u64,
        payload: &[u8],
    ) -> Result<(), Failure> {
        let sent = self.start(command, flags, offset_bytes, len_bytes, payload)?;
        let (errno, cookie) = self.reply()?;
        assert_eq!(cookie, sent, "the reply to another request");
        if errno == 0 { Ok(()) } else { Err(Failure::Refused(errno)) }
    }

    /// Reads in one request.
    pub fn try_read(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<u8>, Failure> {
        self.call(command::READ, 0, offset_bytes, len_bytes, &[])?;
        Ok(self.receive(len_bytes as usize)?)
    }

    /// Reads any length, in requests of 4 MiB.
    pub fn read(&mut self, offset_bytes: u64, len_bytes: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len_bytes as usize);
        while (bytes.len() as u64) < len_bytes {
            let done = bytes.len() as u64;
            let len = (len_bytes - done).min(4 << 20);
            bytes.extend(self.try_read(offset_bytes + done, len).expect("read"));
        }
        bytes
    }

    /// Reads the whole export.
    pub fn read_all(&mut self) -> Vec<u8> {
        self.read(0, self.size_bytes)
    }

    /// Writes in one request.
    pub fn write(&mut self, offset_bytes: u64, data: &[u8]) {
        self.call(command::WRITE, 0, offset_bytes, data.len() as u64, data).expect("write");
    }

    /// Writes any length, in requests of 1 MiB.
    pub fn write_long(&mut self, offset_bytes: u64, data: &[u8]) {
        for (nth, chunk) in data.chunks(1 << 20).enumerate() {
            self.write(offset_bytes + ((nth as u64) << 20), chunk);
        }
    }

    /// Flushes: completed writes are durable afterwards.
    pub fn flush(&mut self) {
        self.try_flush().expect("flush");
    }

    /// As [`flush`](Self::flush), but returns the error.
    pub fn try_flush(&mut self) -> Result<(), Failure> {
        self.call(command::FLUSH, 0, 0, 0, &[])
    }

    /// Writes zeroes.
    pub fn zero(&mut self, offset_bytes: u64, len_bytes: u64) {
        self.call(command::WRITE_ZEROES, 0, offset_bytes, len_bytes, &[]).expect("write zeroes");
    }

    /// Disconnects and waits until the server has closed the connection.
    pub fn close(mut self) {
        self.start(command::DISC, 0, 0, 0, &[]).expect("disconnect");
        self.drain();
    }
}
