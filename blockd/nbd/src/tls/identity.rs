//! TLS identity of the server: certificate, key and client CAs from PEM files, which can be reloaded.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, SupportedCipherSuite};
use zeroize::Zeroizing;

/// Maximum size of a private key file, in bytes.
const MAX_KEY_FILE_LEN: u64 = 64 << 10;

/// Paths of the server's certificate, key, client CAs and CRLs, all in PEM format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain: the server's certificate, then the intermediate certificates.
    pub certificate: PathBuf,
    /// Private key of the certificate. Its mode must give no access to other users.
    pub key: PathBuf,
    /// CAs of client certificates. If set, each client must present a certificate of one of them.
    pub client_ca: Option<PathBuf>,
    /// CRLs of the client CAs. If set, a CRL of each CA on the path from a client certificate to a trusted CA
    /// is required. Outdated CRLs are applied too. Ignored without `client_ca`.
    pub client_crl: Option<PathBuf>,
}

/// TLS mode of a listening socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    #[default]
    Off,
    /// Clients may start TLS.
    Allow,
    /// Clients must start TLS.
    Require,
}

/// Failure to load certificates or keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read failed on {what} {path}")]
    Read {
        /// Expected content.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// System error.
        #[source]
        source: io::Error,
    },
    /// The mode of the private key gives access to other users.
    #[error("load failed on private key {path}: mode {mode:04o} gives other users access; run chmod 600")]
    KeyMode {
        /// Path.
        path: PathBuf,
        /// Mode of the file.
        mode: u32,
    },
    /// The content of a file is invalid.
    #[error("load failed on {what} {path}: {reason}")]
    Content {
        /// Expected content.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Violation.
        reason: String,
    },
    /// The private key does not match the certificate, or cannot be checked against it.
    #[error("load failed on certificate {certificate} with private key {key}")]
    Pair {
        /// Path of the certificate.
        certificate: PathBuf,
        /// Path of the private key.
        key: PathBuf,
        /// Violation.
        #[source]
        source: rustls::Error,
    },
}

impl TlsError {
    /// Returns true if a retry can succeed without a change of the files.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::Interrupted)
    }
}

/// TLS identity of a server. New connections use the last loaded files.
#[derive(Debug)]
pub struct TlsIdentity(RwLock<Loaded>);

#[derive(Debug)]
struct Loaded {
    files: TlsFiles,
    /// Stamps of the files before the last attempt to load them.
    stamps: Vec<Option<FileStamp>>,
    config: Arc<rustls::ServerConfig>,
}

impl Loaded {
    fn read(files: TlsFiles) -> Result<Self, TlsError> {
        // Precedes the read, so that a concurrent change is seen by the next check.
        let stamps = stamps(&files);
        let config = Arc::new(read(&files)?);
        Ok(Self { files, stamps, config })
    }
}

type FileStamp = (u64, u64, i64, i64, u64);

impl TlsIdentity {
    /// Loads the files.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, or the mode of the key gives access to other users.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Loaded::read(files)?)))
    }

    /// Reloads the files for new connections. Established connections are unaffected.
    ///
    /// # Errors
    /// As [`load`](Self::load); then the previous content stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let files = self.0.read().files.clone();
        // Precedes the read, so that a concurrent change is seen by the next check.
        let stamps = stamps(&files);
        let config = read(&files);
        let mut loaded = self.0.write();
        if loaded.files != files {
            return Ok(()); // A concurrent `reload_from` has loaded other files.
        }
        loaded.stamps = stamps;
        loaded.config = Arc::new(config?);
        Ok(())
    }

    /// Loads the files without applying them.
    ///
    /// # Errors
    /// See [`load`](Self::load).
    pub fn check(&self) -> Result<(), TlsError> {
        let files = self.0.read().files.clone();
        read(&files).map(drop)
    }

    /// Loads other files, which [`reload`](Self::reload) reads from then on.
    ///
    /// # Errors
    /// As [`load`](Self::load); then the previous content stays in use.
    pub fn reload_from(&self, files: TlsFiles) -> Result<(), TlsError> {
        let new = Loaded::read(files)?;
        *self.0.write() = new;
        Ok(())
    }

    /// Returns true if a file has changed since the last attempt to load it.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let (files, seen) = {
            let loaded = self.0.read();
            (loaded.files.clone(), loaded.stamps.clone())
        };
        seen != stamps(&files)
    }

    /// Returns the last loaded configuration, for a server of another protocol with the same identity.
    #[must_use]
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.0.read().config)
    }

    /// Creates the server side of a session.
    pub(crate) fn accept(&self) -> Result<UnbufferedServerConnection, rustls::Error> {
        UnbufferedServerConnection::new(self.server_config())
    }
}

fn stamps(files: &TlsFiles) -> Vec<Option<FileStamp>> {
    let stamp = |meta: Metadata| (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
    let paths =
        [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref(), files.client_crl.as_ref()];
    paths.into_iter().map(|path| path?.metadata().ok().map(stamp)).collect()
}

/// Returns the provider with the offered cipher suites. TLS 1.2 has no key update, and AES-GCM keys are
/// exhausted after 2^24 records (256 GiB), so only ChaCha20-Poly1305 is offered there. With TLS 1.3, rustls
/// updates keys.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| match suite {
        SupportedCipherSuite::Tls13(_) => true,
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit == u64::MAX,
    });
    provider
}

fn read(files: &TlsFiles) -> Result<rustls::ServerConfig, TlsError> {
    let chain = certificates("server certificate", &files.certificate)?;
    let provider = Arc::new(provider());
    let pair =
        |source| TlsError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            builder.with_client_cert_verifier(verifier(path, files.client_crl.as_deref(), provider)?)
        }
    };
    let certified = CertifiedKey::new(chain, private_key(&files.key)?);
    match certified.keys_match() {
        // Some key types cannot be compared.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(source) => return Err(pair(source)),
    }
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // Without resumption each connection proves its client certificate. It would save little, because
    // connections are long-lived.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Returns the verifier of client certificates.
fn verifier(
    authorities: &Path,
    revoked: Option<&Path>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let what = "client CA";
    let unusable =
        |what, path: &Path, reason: String| TlsError::Content { what, path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, authorities)? {
        roots.add(certificate).map_err(|error| unusable(what, authorities, error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let (builder, what, path) = match revoked {
        None => (builder, what, authorities),
        Some(path) => {
            let what = "client CRL";
            (builder.with_crls(pem_of(what, "X509 CRL", path)?), what, path)
        }
    };
    builder.build().map_err(|error| unusable(what, path, error.to_string()))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem_of(what, "CERTIFICATE", path)
}

/// Returns all sections of a kind in a PEM file, at least one.
fn pem_of<T: PemObject>(what: &'static str, kind: &str, path: &Path) -> Result<Vec<T>, TlsError> {
    let text =
        std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })?;
    let unusable = |reason: String| TlsError::Content { what, path: path.to_owned(), reason };
    let found: Vec<_> =
        T::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() {
        return Err(unusable(format!("it contains no {kind}")));
    }
    Ok(found)
}

/// Loads the private key. Buffers with its encoded form are zeroized.
fn private_key(path: &Path) -> Result<Arc<dyn SigningKey>, TlsError> {
    let what = "private key";
    let failed = |source| TlsError::Read { what, path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let mode = found.mode() & 0o7777;
    // A group with access to keys is common (`ssl-cert`); access for all users is not.
    if mode & 0o007 != 0 {
        return Err(TlsError::KeyMode { path: path.to_owned(), mode });
    }
    let unusable = |reason: String| TlsError::Content { what, path: path.to_owned(), reason };
    if found.len() > MAX_KEY_FILE_LEN {
        return Err(unusable(format!(
            "it has {} bytes, at most {MAX_KEY_FILE_LEN} are allowed",
            found.len()
        )));
    }
    // With full capacity: a growing buffer would leave copies in freed memory.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_LEN as usize));
    io::Read::read_to_end(&mut io::Read::take(&mut file, MAX_KEY_FILE_LEN), &mut text).map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| unusable(error.to_string()))?;
    let key = Zeroizing::new(key);
    any_supported_type(&key).map_err(|error| unusable(error.to_string()))
}
