//! Listening sockets and the setup of accepted connections.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};

use crate::error::NbdError;

const BACKLOG: i32 = 1024;
/// Keep-alive idle time: with four probes, an unreachable TCP peer is dropped after two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// Timeout of unacknowledged data, during which TCP sends no keep-alive probes.
const UNACKNOWLEDGED_MS: u32 = 120_000;

/// Listening socket.
pub(crate) struct Listener {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) is_tcp: bool,
}

/// Peer of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Unix,
    Tcp(Option<SocketAddr>),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Tcp(Some(addr)) => write!(f, "tcp://{addr}"),
            Self::Tcp(None) => f.write_str("tcp"),
        }
    }
}

impl Listener {
    /// Listens on a TCP address; returns the bound address. It makes one attempt: a caller that replaces a
    /// killed process must retry, because the kernel releases the sockets of a dead ring with a delay.
    pub(crate) fn tcp(addr: SocketAddr) -> Result<(Self, SocketAddr), NbdError> {
        let bound = TcpListener::bind(addr);
        let bound = bound.and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (local_addr, socket) = bound.map_err(|source| NbdError::BindTcp { addr, source })?;
        Ok((Self { socket: Arc::new(OwnedFd::from(socket)), is_tcp: true }, local_addr))
    }

    /// Listens on a Unix socket with mode 0600. Replaces a stale socket at the path.
    pub(crate) fn unix(path: &Path) -> Result<(Self, UnixSocketFile), NbdError> {
        let failed = |reason| move |source| bind_error(path, reason, source);
        let addr =
            SocketAddrUnix::new(path).map_err(failed("a socket path has at most 107 bytes and no NUL"))?;
        remove_stale_socket(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed("socket creation failed"))?;
        // The file inherits its mode from the socket, so it is never accessible to others.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("chmod to 0600 failed"))?;
        bind(&socket, &addr).map_err(failed("the directory must exist and be writable"))?;
        let metadata = path
            .symlink_metadata()
            .map_err(|source| bind_error(path, "lookup of the new socket failed", source))?;
        let file = UnixSocketFile { path: path.to_owned(), identity: identity(&metadata) };
        listen(&socket, BACKLOG).map_err(failed("listen failed"))?;
        Ok((Self { socket: Arc::new(socket), is_tcp: false }, file))
    }

    /// Sets the options of an accepted connection; returns its peer.
    pub(crate) fn prepare(&self, socket: &OwnedFd) -> Peer {
        if !self.is_tcp {
            return Peer::Unix;
        }
        if let Err(error) = set_tcp_options(socket) {
            tracing::debug!(%error, "setting TCP options failed on a connection");
        }
        let addr = rustix::net::getpeername(socket).ok().flatten();
        Peer::Tcp(addr.and_then(|addr| SocketAddr::try_from(addr).ok()))
    }
}

fn set_tcp_options(socket: &OwnedFd) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?;
    sockopt::set_socket_keepalive(socket, true)
}

fn bind_error(path: &Path, reason: &'static str, source: impl Into<io::Error>) -> NbdError {
    NbdError::BindUnix { path: path.to_owned(), reason, source: source.into() }
}

/// Removes the socket that an earlier server left at `path`.
fn remove_stale_socket(path: &Path) -> Result<(), NbdError> {
    let failed = |reason| move |source: io::Error| bind_error(path, reason, source);
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("lookup of the path failed")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(NbdError::NotASocket { path: path.to_owned() });
    }
    match has_listener(path) {
        Ok(true) => Err(NbdError::SocketInUse { path: path.to_owned() }),
        Ok(false) => std::fs::remove_file(path).map_err(failed("removal of the stale socket failed")),
        Err(error) => Err(failed("probe for another server failed")(error)),
    }
}

/// Returns true if a Unix socket has a listener, without waiting for an accept.
fn has_listener(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// File of a Unix socket, removed on drop unless the path has been replaced.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    path: PathBuf,
    identity: [i64; 4],
}

/// Returns the identity of a file. The modification time tells it from a later file with the same inode.
fn identity(metadata: &Metadata) -> [i64; 4] {
    [metadata.dev().cast_signed(), metadata.ino().cast_signed(), metadata.mtime(), metadata.mtime_nsec()]
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        let is_ours = self.path.symlink_metadata().is_ok_and(|found| identity(&found) == self.identity);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "removing the socket failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn unix_socket_is_private_and_removed_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let (listener, file) = Listener::unix(&path).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::unix(&path), Err(NbdError::SocketInUse { .. })));
        drop(listener);
        assert!(path.exists());
        // Keeps the inode in use, so that the second file gets another one.
        std::fs::hard_link(&path, dir.path().join("kept")).unwrap();
        let (_listener, second) = Listener::unix(&path).expect("the socket is stale");
        drop(file);
        assert!(path.exists(), "the file belongs to the second listener");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn tcp_connection_has_keepalive_and_timeout() {
        let (listener, addr) = Listener::tcp(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let client = std::net::TcpStream::connect(addr).unwrap();
        let socket = rustix::net::accept(&listener.socket).unwrap();
        let peer = listener.prepare(&socket);
        assert_eq!(peer.to_string(), format!("tcp://{}", client.local_addr().unwrap()));
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), UNACKNOWLEDGED_MS);
        assert!(sockopt::socket_keepalive(&socket).unwrap());
    }

    #[test]
    fn non_socket_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"precious").unwrap();
        assert!(matches!(Listener::unix(&path), Err(NbdError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let missing = dir.path().join("missing/nbd.sock");
        let error = Listener::unix(&missing).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("missing/nbd.sock"), "{error}");
        let long = dir.path().join("x".repeat(200));
        let error = Listener::unix(&long).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("107 bytes"), "{error}");
    }
}
