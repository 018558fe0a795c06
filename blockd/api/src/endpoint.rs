//! Endpoints of a daemon: its Unix socket, or a TLS address with a client certificate.

use crate::fd_passing::Handing;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Default port of the control API.
const DEFAULT_PORT: u16 = 9440;

/// PEM files of mutual TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// CA certificates of the daemon.
    pub ca: PathBuf,
    /// Client certificate and its chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Invalid endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Invalid address.
    #[error("invalid address `{given}`: expected HOST or HOST:PORT")]
    Address {
        /// Given text.
        given: String,
    },
    /// A file cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// Expected content.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// A file has unexpected content.
    #[error("the {what} {} cannot be used: {reason}", path.display())]
    Content {
        /// Expected content.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Description of the violation.
        reason: String,
    },
}

impl EndpointError {
    /// Returns true if a retry can succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::Interrupted)
    }
}

/// Endpoint of a daemon.
#[derive(Clone)]
pub struct Endpoint(Kind);

#[derive(Clone)]
enum Kind {
    Unix(PathBuf),
    Tls { host: String, port: u16, name: ServerName<'static>, config: Arc<ClientConfig> },
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Unix(path) => write!(f, "{}", path.display()),
            Kind::Tls { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Kind::Tls { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// Creates an endpoint of a control socket.
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self(Kind::Unix(socket.into()))
    }

    /// Creates an endpoint of `HOST` or `HOST:PORT` (an IPv6 address in brackets); the daemon needs a
    /// certificate for `HOST`.
    ///
    /// # Errors
    /// The address or one of the files is invalid.
    pub fn tls(address: &str, files: &TlsFiles) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Address { given: address.to_owned() };
        let (host, port) = split(address).ok_or_else(bad)?;
        let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
        let config = Arc::new(client_config(files)?);
        Ok(Self(Kind::Tls { host, port, name, config }))
    }

    /// Returns the Unix socket, if it is one.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Unix(path) => Some(path),
            Kind::Tls { .. } => None,
        }
    }

    /// Returns the value of the `Host` header.
    pub(crate) fn host(&self) -> String {
        match &self.0 {
            Kind::Unix(_) => "blockd".to_owned(),
            Kind::Tls { .. } => self.to_string(),
        }
    }

    /// Connects, including the TLS handshake.
    pub(crate) async fn connect(&self) -> io::Result<Stream> {
        match &self.0 {
            Kind::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            Kind::Tls { host, port, name, config } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(Arc::clone(config));
                let session = connector.connect(name.clone(), stream).await?;
                Ok(Stream::Tls(Box::new(session)))
            }
        }
    }
}

/// Splits an address into host and port.
fn split(address: &str) -> Option<(String, u16)> {
    let address = address.strip_prefix("https://").unwrap_or(address);
    let address = address.strip_suffix('/').unwrap_or(address);
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
        }
        // Several colons without brackets: an IPv6 address without a port.
        None if address.matches(':').count() > 1 => (address, ""),
        None => address.split_once(':').unwrap_or((address, "")),
    };
    let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().ok().filter(|port| *port > 0)? };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, EndpointError> {
    let unusable =
        |what, path: &Path, reason: String| EndpointError::Content { what, path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    let what = "certificate authority";
    for certificate in certificates(what, &files.ca)? {
        roots.add(certificate).map_err(|error| unusable(what, &files.ca, error.to_string()))?;
    }
    let chain = certificates("client certificate", &files.cert)?;
    let what = "client key";
    let text = read(what, &files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| unusable(what, &files.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(what, &files.key, error.to_string()))?
        .with_root_certificates(roots);
    builder.with_client_auth_cert(chain, key).map_err(|error| unusable(what, &files.key, error.to_string()))
}

fn read(what: &'static str, path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, EndpointError> {
    let text = std::fs::read(path);
    text.map(zeroize::Zeroizing::new).map_err(|source| EndpointError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, EndpointError> {
    let text = read(what, path)?;
    let unusable = |reason: String| EndpointError::Content { what, path: path.to_owned(), reason };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() { Err(unusable("there is no CERTIFICATE in it".to_owned())) } else { Ok(found) }
}

/// Connection to an endpoint.
pub(crate) enum Stream {
    Unix(UnixStream),
    /// A connection that passes a descriptor with the first bytes.
    Handing(Handing),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Handing(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Handing(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Handing(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Handing(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_or_without_ports() {
        let some = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(split("vault.example"), some("vault.example", DEFAULT_PORT));
        assert_eq!(split("vault.example:7"), some("vault.example", 7));
        assert_eq!(split("https://10.0.0.1:7/"), some("10.0.0.1", 7));
        assert_eq!(split("[::1]:7"), some("::1", 7));
        assert_eq!(split("[::1]"), some("::1", DEFAULT_PORT));
        assert_eq!(split("fe80::1"), some("fe80::1", DEFAULT_PORT));
        for wrong in ["", ":7", "host:x", "host:0", "host:70000", "[::1", "[::1]7", "[]:7"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = TlsFiles { ca: path("ca"), cert: path("cert"), key: path("key") };
        let told = || Endpoint::tls("host", &files).unwrap_err().to_string();
        assert!(told().starts_with(&format!("cannot read the certificate authority {}", files.ca.display())));
        std::fs::write(&files.ca, "nothing").unwrap();
        assert!(told().ends_with("there is no CERTIFICATE in it"), "{}", told());
        let error = Endpoint::tls("ho st", &files).unwrap_err();
        assert!(error.to_string().contains("HOST:PORT"), "{error}");
    }
}
