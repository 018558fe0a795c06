//! Client side of the negotiation, over the Unix socket of a server.
//!
//! It negotiates simple replies, because the kernel's driver supports no others.

use crate::error::DialError;
use blockd_nbd::constants::*;
use std::{
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

/// Timeout of each read and write.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of an option reply, in bytes.
const MAX_REPLY_LEN_BYTES: u32 = 64 << 10;

/// Connections in the transmission phase.
#[derive(Debug)]
pub struct Dialed {
    /// The sockets.
    pub sockets: Vec<OwnedFd>,
    /// Size of the export, in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
}

/// Opens connections to an export: `wanted` if the server supports multi-conn, otherwise one.
///
/// # Errors
/// No server listens on the path, it refuses the export or violates the protocol.
pub fn dial(path: &Path, export: &str, wanted: usize) -> Result<Dialed, DialError> {
    let first = negotiate(path, export)?;
    let mut dialed =
        Dialed { sockets: vec![first.stream.into()], size_bytes: first.size_bytes, flags: first.flags };
    let wanted = if dialed.flags & NBD_FLAG_CAN_MULTI_CONN == 0 { 1 } else { wanted };
    while dialed.sockets.len() < wanted {
        let next = negotiate(path, export)?;
        // The export may grow between negotiations: the kernel gets the size that all connections have.
        dialed.size_bytes = dialed.size_bytes.min(next.size_bytes);
        dialed.sockets.push(next.stream.into());
    }
    Ok(dialed)
}

struct Negotiated {
    stream: UnixStream,
    size_bytes: u64,
    flags: u16,
}

fn negotiate(path: &Path, export: &str) -> Result<Negotiated, DialError> {
    let socket = |operation| move |source| DialError::Socket { operation, path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(socket("connect"))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(socket("socket setup"))?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(socket("socket setup"))?;
    let (size_bytes, flags) = match go(&mut stream, export) {
        Ok(found) => found,
        Err(Bad::Io(source)) => return Err(socket("negotiation")(source)),
        Err(Bad::Protocol(violation)) => {
            return Err(DialError::Protocol { path: path.to_owned(), violation });
        }
        Err(Bad::Refused(reason)) => return Err(DialError::Refused { export: export.to_owned(), reason }),
    };
    // The kernel applies its own timeouts.
    stream.set_read_timeout(None).map_err(socket("socket setup"))?;
    stream.set_write_timeout(None).map_err(socket("socket setup"))?;
    Ok(Negotiated { stream, size_bytes, flags })
}

#[derive(Debug)]
enum Bad {
    Io(io::Error),
    Protocol(&'static str),
    Refused(String),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Negotiates with `NBD_OPT_GO`; returns the size in bytes and the transmission flags.
fn go(stream: &mut (impl Read + Write), export: &str) -> Result<(u64, u16), Bad> {
    let (magic, option_magic, flags): ([u8; 8], [u8; 8], [u8; 2]) =
        (take(stream)?, take(stream)?, take(stream)?);
    if u64::from_be_bytes(magic) != NBD_MAGIC || u64::from_be_bytes(option_magic) != OPTION_MAGIC {
        return Err(Bad::Protocol("the greeting is not newstyle"));
    }
    let flags = u16::from_be_bytes(flags);
    if flags & NBD_FLAG_FIXED_NEWSTYLE == 0 {
        return Err(Bad::Protocol("the server does not support fixed newstyle"));
    }
    let mut client_flags = NBD_FLAG_C_FIXED_NEWSTYLE;
    if flags & NBD_FLAG_NO_ZEROES != 0 {
        client_flags |= NBD_FLAG_C_NO_ZEROES;
    }
    let name = export.as_bytes();
    let name_len =
        u32::try_from(name.len()).map_err(|_| Bad::Refused("the export name is too long".into()))?;
    let mut request = client_flags.to_be_bytes().to_vec();
    request.extend(OPTION_MAGIC.to_be_bytes());
    request.extend(NBD_OPT_GO.to_be_bytes());
    request.extend((name_len.saturating_add(6)).to_be_bytes());
    request.extend(name_len.to_be_bytes());
    request.extend(name);
    // No information requests: the server always sends NBD_INFO_EXPORT.
    request.extend(0u16.to_be_bytes());
    stream.write_all(&request)?;
    let mut found = None;
    loop {
        let (kind, data) = option_reply(stream)?;
        match kind {
            NBD_REP_ACK => {
                return found.ok_or(Bad::Protocol("NBD_OPT_GO succeeded without NBD_INFO_EXPORT"));
            }
            NBD_REP_INFO => {
                if let [0, 0, size @ .., high, low] = &data[..]
                    && let Ok(size) = size.try_into()
                {
                    found = Some((u64::from_be_bytes(size), u16::from_be_bytes([*high, *low])));
                }
            }
            _ if kind & (1 << 31) != 0 => {
                let text = String::from_utf8_lossy(&data).replace('\n', " ");
                return Err(Bad::Refused(if text.is_empty() { format!("error {kind:#x}") } else { text }));
            }
            _ => return Err(Bad::Protocol("unexpected type of an option reply")),
        }
    }
}

fn option_reply(stream: &mut impl Read) -> Result<(u32, Vec<u8>), Bad> {
    let (magic, _option, kind, len): ([u8; 8], [u8; 4], [u8; 4], [u8; 4]) =
        (take(stream)?, take(stream)?, take(stream)?, take(stream)?);
    if u64::from_be_bytes(magic) != OPTION_REPLY_MAGIC {
        return Err(Bad::Protocol("wrong magic in an option reply"));
    }
    let len_bytes = u32::from_be_bytes(len);
    if len_bytes > MAX_REPLY_LEN_BYTES {
        return Err(Bad::Protocol("an option reply is too long"));
    }
    let mut data = vec![0; len_bytes as usize];
    stream.read_exact(&mut data)?;
    Ok((u32::from_be_bytes(kind), data))
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Scripted server that records the received bytes.
    struct Script {
        output: io::Cursor<Vec<u8>>,
        received: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.output.read(buf)
        }
    }

    impl Write for Script {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.received.extend(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn run(output: Vec<u8>) -> (Result<(u64, u16), Bad>, Vec<u8>) {
        let mut script = Script { output: io::Cursor::new(output), received: Vec::new() };
        let result = go(&mut script, "vol");
        (result, script.received)
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend([0, 3]);
        bytes
    }

    fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(NBD_OPT_GO.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn go_returns_size_and_flags() {
        let info = [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 0x6d];
        let output = [
            greeting(),
            reply(NBD_REP_INFO, &[0, 3, 9, 9]),
            reply(NBD_REP_INFO, &info),
            reply(NBD_REP_ACK, &[]),
        ];
        let (result, received) = run(output.concat());
        assert_eq!(result.unwrap(), (1 << 30, 0x16d));
        assert_eq!(received, b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0");
    }

    #[test]
    fn refused_export_has_the_server_message() {
        let (result, _) = run([greeting(), reply(NBD_REP_ERR_UNKNOWN, b"no such export")].concat());
        assert!(matches!(result, Err(Bad::Refused(reason)) if reason == "no such export"));
        let (result, _) = run([greeting(), reply(NBD_REP_ACK, &[])].concat());
        assert!(matches!(result, Err(Bad::Protocol(_))));
        let (result, _) = run(b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec());
        assert!(matches!(result, Err(Bad::Protocol(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_server_output_never_panics(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = run([greeting(), tail.clone()].concat());
            let _ = run(tail);
        }
    }
}
