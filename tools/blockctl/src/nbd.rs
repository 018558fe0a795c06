//! NBD client for image copies: blocking, one request at a time.

use std::{
    fmt,
    io::{self, Read, Write},
    net::TcpStream,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    str::FromStr,
};

const HANDSHAKE_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, no zeroes.
const FLAGS: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Maximum length of an option reply.
const MAX_REPLY_BYTES: usize = 64 << 10;
const DEFAULT_PORT: u16 = 10809;

/// Maximum length of one request, which all servers accept.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// Command of a request.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// Address of an export, as a URI without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    server: Server,
    export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Unix(PathBuf),
    Tcp(String),
}

/// Text that is not such a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an NBD URI: expected nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
pub struct BadUri {
    given: String,
}

impl FromStr for NbdUri {
    type Err = BadUri;

    fn from_str(text: &str) -> Result<Self, BadUri> {
        let bad = || BadUri { given: text.to_owned() };
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?').ok_or_else(bad)?;
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket=")).ok_or_else(bad)?;
            let socket = decoded(socket).ok_or_else(bad)?;
            let export = decoded(export).ok_or_else(bad)?;
            return Ok(Self { server: Server::Unix(socket.into()), export });
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(bad)?;
        let (address, export) = rest.split_once('/').unwrap_or((rest, ""));
        if address.is_empty() {
            return Err(bad());
        }
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if has_port { address.to_owned() } else { format!("{address}:{DEFAULT_PORT}") };
        Ok(Self { server: Server::Tcp(address), export: decoded(export).ok_or_else(bad)? })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Server::Unix(socket) => write!(f, "export {:?} at {}", self.export, socket.display()),
            Server::Tcp(address) => write!(f, "export {:?} at {address}", self.export),
        }
    }
}

/// Decodes percent-encoded UTF-8.
pub fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let (high, low) = (digit()?, digit()?);
                high << 4 | low
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

trait Stream: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send> Stream for T {}

/// Connection to an export.
pub struct NbdClient {
    stream: Box<dyn Stream>,
    size_bytes: u64,
    cookie: u64,
}

fn invalid<T>(what: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, what.into()))
}

impl NbdClient {
    /// Connects to an export.
    ///
    /// # Errors
    /// The server cannot be reached, has no such export, or is not an NBD server.
    pub fn connect(uri: &NbdUri) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match &uri.server {
            Server::Unix(socket) => Box::new(UnixStream::connect(socket)?),
            Server::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        Self::negotiate(stream, &uri.export)
    }

    fn negotiate(stream: Box<dyn Stream>, export: &str) -> io::Result<Self> {
        let mut client = Self { stream, size_bytes: 0, cookie: 0 };
        if client.u64()? != HANDSHAKE_MAGIC || client.u64()? != OPTION_MAGIC {
            return invalid("the server does not speak NBD");
        }
        let _offered = client.u16()?;
        let name_len =
            u32::try_from(export.len()).or_else(|_| invalid("the name of the export is too long"))?;
        let mut request = FLAGS.to_be_bytes().to_vec();
        request.extend(OPTION_MAGIC.to_be_bytes());
        request.extend(OPTION_GO.to_be_bytes());
        request.extend((name_len + 6).to_be_bytes());
        request.extend(name_len.to_be_bytes());
        request.extend(export.as_bytes());
        request.extend(0_u16.to_be_bytes());
        client.stream.write_all(&request)?;
        client.stream.flush()?;
        while client.option_reply()? {}
        Ok(client)
    }

    /// Reads one reply to `NBD_OPT_GO`; returns false after the last one.
    fn option_reply(&mut self) -> io::Result<bool> {
        if self.u64()? != OPTION_REPLY_MAGIC {
            return invalid("invalid reply of the NBD server");
        }
        let (_option, kind, len) = (self.u32()?, self.u32()?, self.u32()? as usize);
        if len > MAX_REPLY_BYTES {
            return invalid("reply of the NBD server too long");
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data)?;
        match kind {
            REPLY_ACK => return Ok(false),
            REPLY_INFO => {
                if let (Some(kind), Some(size)) = (data.first_chunk::<2>(), data.get(2..10))
                    && u16::from_be_bytes(*kind) == INFO_EXPORT
                    && let Some(size) = size.first_chunk::<8>()
                {
                    self.size_bytes = u64::from_be_bytes(*size);
                }
            }
            kind if kind & REPLY_ERROR != 0 => {
                let reason = String::from_utf8_lossy(&data);
                return invalid(format!("the NBD server refuses the export (error {kind:#x}) {reason}"));
            }
            _ => {}
        }
        Ok(true)
    }

    /// Returns the size of the export.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns another descriptor of the connection, whose shutdown ends it.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn connection(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Reads at most [`MAX_REQUEST_BYTES`].
    ///
    /// # Errors
    /// The server fails, or the connection breaks.
    pub fn read(&mut self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.request(Command::Read, offset_bytes, buffer.len(), &[])?;
        self.stream.read_exact(buffer)
    }

    /// Writes at most [`MAX_REQUEST_BYTES`].
    ///
    /// # Errors
    /// The server fails, or the connection breaks.
    pub fn write(&mut self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.request(Command::Write, offset_bytes, data.len(), data)
    }

    /// Makes all writes durable, and disconnects.
    ///
    /// # Errors
    /// The server fails, or the connection breaks.
    pub fn finish(mut self) -> io::Result<()> {
        self.request(Command::Flush, 0, 0, &[])?;
        self.disconnect()
    }

    /// Disconnects without a flush.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(Command::Disconnect, 0, 0, &[])
    }

    fn send(&mut self, command: Command, offset_bytes: u64, len: usize, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let len = u32::try_from(len).or_else(|_| invalid("request too long"))?;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0_u16.to_be_bytes());
        request.extend((command as u16).to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset_bytes.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        self.stream.flush()
    }

    fn request(&mut self, command: Command, offset_bytes: u64, len: usize, data: &[u8]) -> io::Result<()> {
        self.send(command, offset_bytes, len, data)?;
        let (magic, error, cookie) = (self.u32()?, self.u32()?, self.u64()?);
        if magic != REPLY_MAGIC || cookie != self.cookie {
            return invalid("invalid reply of the NBD server");
        }
        match i32::try_from(error) {
            Ok(0) => Ok(()),
            // The numbers of NBD are those of Linux.
            Ok(number) => Err(io::Error::from_raw_os_error(number)),
            Err(_) => invalid("invalid error of the NBD server"),
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.bytes()?))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::thread::{self, JoinHandle};

    /// Content of a fake export after its client has left, and the extents that were written.
    type Served = (Vec<u8>, Vec<(u64, usize)>);

    /// Serves an export to one client.
    pub fn serve(mut content: Vec<u8>) -> (NbdClient, JoinHandle<Served>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut server = NbdClient { stream: Box::new(theirs), size_bytes: 0, cookie: 0 };
            server.stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
            assert_eq!((server.u32().unwrap(), server.u64().unwrap()), (FLAGS, OPTION_MAGIC));
            assert_eq!(server.u32().unwrap(), OPTION_GO);
            let mut request = vec![0; server.u32().unwrap() as usize];
            server.stream.read_exact(&mut request).unwrap();
            assert_eq!(request, b"\0\0\0\x01v\0\0");
            let mut info = INFO_EXPORT.to_be_bytes().to_vec();
            info.extend((content.len() as u64).to_be_bytes());
            info.extend(1_u16.to_be_bytes());
            for (kind, data) in [(REPLY_INFO, info), (REPLY_ACK, Vec::new())] {
                let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                for number in [OPTION_GO, kind, data.len() as u32] {
                    reply.extend(number.to_be_bytes());
                }
                server.stream.write_all(&[reply, data].concat()).unwrap();
            }
            let mut written = Vec::new();
            loop {
                assert_eq!((server.u32().unwrap(), server.u16().unwrap()), (REQUEST_MAGIC, 0));
                let (command, cookie) = (server.u16().unwrap(), server.u64().unwrap());
                let (offset, len) = (server.u64().unwrap(), server.u32().unwrap() as usize);
                let at = offset as usize;
                let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
                reply.extend(0_u32.to_be_bytes());
                reply.extend(cookie.to_be_bytes());
                match command {
                    0 => reply.extend(&content[at..at + len]),
                    1 => {
                        server.stream.read_exact(&mut content[at..at + len]).unwrap();
                        written.push((offset, len));
                    }
                    2 => return (content, written),
                    3 => {}
                    other => panic!("command {other}"),
                }
                server.stream.write_all(&reply).unwrap();
            }
        });
        (NbdClient::negotiate(Box::new(ours), "v").unwrap(), server)
    }

    #[test]
    fn export_is_read_and_written() {
        let (mut client, server) = serve(vec![7; 8192]);
        assert_eq!(client.size_bytes(), 8192);
        client.write(4096, &[9; 512]).unwrap();
        let mut read = [0; 1024];
        client.read(4096, &mut read).unwrap();
        assert_eq!(read, [[9; 512], [7; 512]].concat()[..]);
        client.finish().unwrap();
        assert_eq!(server.join().unwrap().1, [(4096, 512)]);
    }

    #[test]
    fn uris_are_parsed() {
        let parse = |text: &str| text.parse::<NbdUri>();
        let unix =
            |path: &str, export: &str| NbdUri { server: Server::Unix(path.into()), export: export.into() };
        let tcp = |at: &str, export: &str| NbdUri { server: Server::Tcp(at.into()), export: export.into() };
        assert_eq!(parse("nbd+unix:///db%40s?socket=/a%20b/s"), Ok(unix("/a b/s", "db@s")));
        assert_eq!(parse("nbd://h"), Ok(tcp("h:10809", "")));
        assert_eq!(parse("nbd://h:7/x"), Ok(tcp("h:7", "x")));
        assert_eq!(parse("nbd://[::1]/x"), Ok(tcp("[::1]:10809", "x")));
        for bad in ["nbd://", "nbd+unix:///a", "nbds://h/x", "http://h", "nbd://h/%4", "nbd://h/%FF"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
