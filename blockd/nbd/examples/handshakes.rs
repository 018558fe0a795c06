//! Read latency of a client during a flood of TLS handshakes: `handshakes [SECONDS] [THREADS]`.
//!
//! The flood is cheap for its clients: each sends the same `ClientHello` on new connections and disconnects
//! after the first reply. The server computes a key exchange and a signature (RSA with 2048 bits, the slowest
//! common one). One ring thread serves all sockets, so any computation on it delays the reader.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockd_nbd::{
    BlockDevice, Client, DeviceError, ExportCatalog, ExportError, ExportInfo, Progress, Server, ServerConfig,
    TlsFiles, TlsIdentity, TlsMode,
};

const SIZE_BYTES: u64 = 1 << 20;
const READ_BYTES: usize = 4096;

/// Device and catalog of zeroes.
struct Zeroes;

impl BlockDevice for Zeroes {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.read(offset_bytes, buf)
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        buf.fill(0);
        Ok(Progress::Done)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl ExportCatalog for Zeroes {
    fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        Ok(Arc::new(Self))
    }

    fn list(&self, _: &Client) -> Vec<ExportInfo> {
        Vec::new()
    }
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Creates an identity with a self-signed certificate.
fn identity(dir: &Path) -> Outcome<TlsIdentity> {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    let files = TlsFiles {
        certificate: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        client_ca: None,
        client_crl: None,
    };
    std::fs::write(&files.certificate, params.self_signed(&key)?.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600))?;
    Ok(TlsIdentity::load(files)?)
}

/// Returns the `ClientHello` of a handshake.
fn first_message() -> Outcome<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    let mut message = Vec::new();
    client.write_tls(&mut message)?;
    Ok(message)
}

/// Encodes client flags and one option.
fn hello(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = 3_u32.to_be_bytes().to_vec();
    out.extend(b"IHAVEOPT");
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// Starts a handshake, and disconnects after the first reply of the server.
fn begin_handshake(address: SocketAddr, message: &[u8]) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&hello(5, b""))?;
    // The greeting and the acknowledgement.
    stream.read_exact(&mut [0; 18 + 20])?;
    stream.write_all(message)?;
    stream.read_exact(&mut [0; 100])?;
    Ok(())
}

/// Reads sequentially for `duration`; returns the latencies in ascending order.
fn read_for(stream: &mut UnixStream, duration: Duration) -> Outcome<Vec<Duration>> {
    let mut request = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 20]].concat();
    request.extend((READ_BYTES as u32).to_be_bytes());
    let mut reply = vec![0; 16 + READ_BYTES];
    let mut latencies = Vec::new();
    let start = Instant::now();
    while start.elapsed() < duration {
        let sent_at = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut reply)?;
        latencies.push(sent_at.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies)
}

fn show(load: &str, latencies: &[Duration], duration: Duration, handshakes: u64) {
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).or(latencies.last()).copied();
    let micros = |share| at(share).unwrap_or_default().as_secs_f64() * 1e6;
    println!(
        "{load:24} {:8.0} reads/s   p50 {:6.0} us   p99 {:6.0} us   p99.9 {:6.0} us   max {:7.0} us   {:6.0} handshakes/s",
        latencies.len() as f64 / duration.as_secs_f64(),
        micros(0.5),
        micros(0.99),
        micros(0.999),
        micros(1.0),
        handshakes as f64 / duration.as_secs_f64(),
    );
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(3), |text| text.parse())?;
    let threads: usize = args.next().map_or(Ok(8), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let config = ServerConfig {
        unix_path: Some(dir.path().join("nbd.sock")),
        tcp: vec!["127.0.0.1:0".parse()?],
        ring_threads: 1,
        tls: Some(Arc::new(identity(dir.path())?)),
        tcp_tls: TlsMode::Require,
        ..ServerConfig::default()
    };
    let mut server = Server::start(config, Arc::new(Zeroes))?;
    let address = *server.local_addrs().first().ok_or("no address")?;
    let mut reader = UnixStream::connect(dir.path().join("nbd.sock"))?;
    reader.write_all(&hello(1, b"zeroes"))?;
    reader.read_exact(&mut [0; 18 + 10])?;

    let duration = Duration::from_secs(seconds);
    show("no handshakes", &read_for(&mut reader, duration)?, duration, 0);
    let (stop, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
    let message = first_message()?;
    let latencies = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Failed handshakes are not counted.
                    if begin_handshake(address, &message).is_ok() {
                        handshakes.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let latencies = read_for(&mut reader, duration);
        stop.store(true, Ordering::Relaxed);
        latencies
    });
    show(&format!("{threads} handshake clients"), &latencies?, duration, handshakes.load(Ordering::Relaxed));
    drop(reader);
    server.shutdown()?;
    Ok(())
}
