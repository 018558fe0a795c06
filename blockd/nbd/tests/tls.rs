//! TLS over sockets: authentication, real clients, and isolation of misbehaving clients. The tools of libnbd
//! and qemu must be installed.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use crate::certs::Authority;
use crate::common::*;
use blockd_nbd::constants::*;
use blockd_nbd::{NbdError, Server, ServerConfig, TlsError, TlsFiles, TlsIdentity, TlsMode};
use rustls::ClientConnection;

const MIB: usize = 1 << 20;

struct TlsServer {
    server: TestServer,
    authority: Authority,
    identity: Arc<TlsIdentity>,
}

impl TlsServer {
    fn start(device: MemDevice, mode: TlsMode, wants_certificates: bool) -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.server();
        let client_ca = wants_certificates.then(|| authority.ca());
        let identity =
            Arc::new(TlsIdentity::load(TlsFiles { certificate, key, client_ca, client_crl: None }).unwrap());
        let tls = Arc::clone(&identity);
        let server = TestServer::with(device, |config| {
            config.tcp = vec!["127.0.0.1:0".parse().unwrap()];
            config.tls = Some(tls);
            config.tcp_tls = mode;
        });
        Self { server, authority, identity }
    }

    fn addr(&self) -> std::net::SocketAddr {
        self.server.server.local_addrs()[0]
    }

    fn uri(&self, dir: &Path) -> String {
        format!("nbds://localhost:{}/vol?tls-certificates={}", self.addr().port(), dir.display())
    }

    /// Connects a client and starts TLS.
    fn try_connect(&self, config: Arc<rustls::ClientConfig>) -> Result<Client, std::io::Error> {
        let mut client = Client::tcp(self.addr());
        client.hello(3);
        self.start_tls(client, config)
    }

    /// Starts TLS on a connection in negotiation.
    fn start_tls(
        &self,
        mut client: Client,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<Client, std::io::Error> {
        assert_eq!(client.option(NBD_OPT_STARTTLS, b""), [(NBD_REP_ACK, Vec::new())]);
        let session = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut stream =
            rustls::StreamOwned::new(session, std::mem::replace(&mut client.stream, Box::new(Nothing)));
        // The first reply shows if the server accepts the client certificate.
        stream.write_all(&option_request(NBD_OPT_LIST, b""))?;
        let mut first = [0; 8];
        stream.read_exact(&mut first)?;
        assert_eq!(first, OPTION_REPLY_MAGIC.to_be_bytes());
        client.stream = Box::new(stream);
        let mut rest = client.receive(12);
        while rest[4..8] != NBD_REP_ACK.to_be_bytes() {
            client.receive(u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize);
            rest = client.receive(20).split_off(8);
        }
        Ok(client)
    }

    fn attach(&self, dir: Option<&Path>) -> Client {
        let mut client = self.try_connect(self.authority.client_config(dir)).unwrap();
        let replies = client.option(NBD_OPT_GO, &info_request(b"vol", &[]));
        assert_eq!(replies.last().unwrap().0, NBD_REP_ACK, "{replies:?}");
        client
    }
}

/// Placeholder for a stream that is being wrapped.
struct Nothing;

impl Read for Nothing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
}

impl Write for Nothing {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Ok(0)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("running {program} failed ({error}): install the tests' packages"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn libnbd_requires_a_valid_certificate() {
    let server = TlsServer::start(MemDevice::new(64 * MIB, Behaviour::Instant), TlsMode::Require, true);
    let good = server.authority.client_dir("alice", false);
    let output = run("nbdinfo", &["--json", &server.uri(&good)]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("\"TLS\": true"), "{}", text(&output));
    let plain = format!("nbd://localhost:{}/vol", server.addr().port());
    let stranger = Authority::new();
    let strange = stranger.client_dir("alice", false);
    std::fs::copy(server.authority.ca(), strange.join("ca-cert.pem")).unwrap();
    for (uri, case) in [
        (plain, "plaintext"),
        (server.uri(&server.authority.anonymous_dir()), "no certificate"),
        (server.uri(&server.authority.client_dir("old", true)), "expired certificate"),
        (server.uri(&strange), "certificate of another CA"),
        (server.uri(&stranger.client_dir("bob", false)), "client that trusts another CA"),
    ] {
        let output = run("nbdinfo", &[&uri]);
        assert!(!output.status.success(), "{case}: {}", text(&output));
    }
    server.server.assert_serves();
}

#[test]
fn nbdcopy_round_trip_preserves_data() {
    let server = TlsServer::start(MemDevice::new(256 * MIB, Behaviour::Mixed), TlsMode::Require, true);
    let uri = server.uri(&server.authority.client_dir("alice", false));
    let dir = tempfile::tempdir().unwrap();
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    let mut data = pattern(3, 256 * MIB);
    data[20 * MIB..40 * MIB].fill(0);
    std::fs::write(&image, &data).unwrap();
    let output = run("nbdcopy", &["--flush", "--connections=3", image.to_str().unwrap(), &uri]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(*server.server.device.data.lock().unwrap() == data);
    let output = run("nbdcopy", &["--connections=3", &uri, copy.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(std::fs::read(&copy).unwrap() == data);
    server.server.wait_until_detached();
}

#[test]
fn qemu_reads_back_its_writes_over_tls() {
    let server = TlsServer::start(MemDevice::new(8 * MIB, Behaviour::Mixed), TlsMode::Require, true);
    let dir = server.authority.client_dir("alice", false);
    let secret = format!("tls-creds-x509,id=t,endpoint=client,dir={}", dir.display());
    let image = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export=vol,tls-creds=t",
        server.addr().port()
    );
    let output = run("qemu-img", &["info", "--object", &secret, "--image-opts", &image]);
    assert!(output.status.success() && text(&output).contains("8 MiB"), "{}", text(&output));
    let args =
        ["--object", &secret, "--image-opts", "-c", "write -P 7 1M 5M", "-c", "read -P 7 2M 4M", &image];
    let output = run("qemu-io", &args);
    assert!(output.status.success() && !text(&output).contains("failed"), "{}", text(&output));
}

#[test]
fn server_without_client_ca_admits_any_client() {
    let server = TlsServer::start(MemDevice::new(MIB, Behaviour::Instant), TlsMode::Allow, false);
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let config = server.authority.client_config_of(None, versions);
        let mut client = server.try_connect(config).unwrap();
        client.option(NBD_OPT_GO, &info_request(b"vol", &[]));
        assert_eq!(client.write(0, 100, &[9; 300_000]), 0);
        assert_eq!(client.read(100, 300_000), (0, vec![9; 300_000]));
        client.disconnect();
    }
    let mut plain = Client::tcp(server.addr());
    plain.go("vol");
    assert_eq!(plain.read(100, 2), (0, vec![9; 2]), "TLS is allowed, not required");
    let mut local = server.server.connect();
    local.hello(3);
    assert_eq!(local.option(NBD_OPT_STARTTLS, b"")[0].0, NBD_REP_ERR_POLICY, "the Unix socket has no TLS");
}

#[test]
fn idle_or_stalled_sessions_do_not_block_others() {
    let server = TlsServer::start(MemDevice::new(8 * MIB, Behaviour::Mixed), TlsMode::Require, true);
    let dir = server.authority.client_dir("alice", false);
    let mut idle: Vec<Client> = (0..200).map(|_| server.attach(Some(&dir))).collect();
    let mut slow = server.attach(Some(&dir));
    for _ in 0..100 {
        slow.request(NBD_CMD_READ, 0, 0, 1 << 20);
    }
    let mut busy = server.attach(Some(&dir));
    for round in 0..50 {
        assert_eq!(busy.write(0, 0, &vec![round; 1 << 20]), 0);
        assert_eq!(busy.read(0, 1 << 20), (0, vec![round; 1 << 20]));
    }
    for client in &mut idle {
        assert_eq!(client.read(5 << 20, 1), (0, vec![0]));
    }
    drop(slow);
    for client in idle {
        client.disconnect();
    }
    busy.disconnect();
    server.server.wait_until_detached();
}

#[test]
fn reloaded_certificates_apply_to_new_connections() {
    let server = TlsServer::start(MemDevice::new(MIB, Behaviour::Instant), TlsMode::Require, true);
    let alice = server.authority.client_dir("alice", false);
    let mut before = server.attach(Some(&alice));
    assert!(!server.identity.has_changed());
    // Another CA replaces the first, for the server and its clients.
    let next = Authority::new();
    let (certificate, key) = next.server();
    std::fs::copy(certificate, server.authority.dir.path().join("server-cert.pem")).unwrap();
    assert!(server.identity.has_changed());
    let error = server.identity.reload().unwrap_err();
    assert!(matches!(error, TlsError::Pair { .. }), "{error}");
    assert!(!server.identity.has_changed(), "a failed reload records the stamps");
    server.attach(Some(&alice)).disconnect();
    std::fs::copy(key, server.authority.dir.path().join("server-key.pem")).unwrap();
    std::fs::copy(next.ca(), server.authority.ca()).unwrap();
    server.identity.reload().unwrap();
    assert!(server.try_connect(server.authority.client_config(Some(&alice))).is_err());
    let bob = next.client_config(Some(&next.client_dir("bob", false)));
    server.try_connect(bob).unwrap().option(NBD_OPT_ABORT, b"");
    assert_eq!(before.read(0, 1).0, 0, "an established connection stays");
}

#[test]
fn revoked_certificate_is_refused() {
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let files = TlsFiles {
        certificate,
        key,
        client_ca: Some(authority.ca()),
        client_crl: Some(authority.revoke(&["mallory"])),
    };
    let identity = Arc::new(TlsIdentity::load(files).unwrap());
    let tls = Arc::clone(&identity);
    let server = TestServer::with(MemDevice::new(MIB, Behaviour::Instant), |config| {
        config.tcp = vec!["127.0.0.1:0".parse().unwrap()];
        config.tls = Some(tls);
        config.tcp_tls = TlsMode::Require;
    });
    let server = TlsServer { server, authority, identity };
    let config = |name| server.authority.client_config(Some(&server.authority.client_dir(name, false)));
    let (alice, mallory) = (config("alice"), config("mallory"));
    server.try_connect(Arc::clone(&alice)).unwrap().option(NBD_OPT_ABORT, b"");
    let refused = |config| server.try_connect(config).map(|_| ()).unwrap_err().to_string();
    let error = refused(Arc::clone(&mallory));
    assert!(error.contains("CertificateRevoked"), "{error}");

    // A renewed CRL applies to later connections. With a CRL of another CA only, all clients are refused.
    server.authority.revoke(&["mallory", "alice"]);
    assert!(server.identity.has_changed());
    server.identity.reload().unwrap();
    assert!(refused(Arc::clone(&alice)).contains("CertificateRevoked"));
    let other = Authority::new();
    std::fs::copy(other.revoke(&[]), server.authority.dir.path().join("crl.pem")).unwrap();
    server.identity.reload().unwrap();
    refused(alice);
    std::fs::write(server.authority.dir.path().join("crl.pem"), "nothing").unwrap();
    let error = server.identity.reload().unwrap_err();
    assert!(error.to_string().contains("it contains no X509 CRL"), "{error}");
}

#[test]
fn invalid_tls_files_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let files = TlsFiles { certificate, key, client_ca: Some(authority.ca()), client_crl: None };
    let load = |files: TlsFiles| TlsIdentity::load(files).map(|_| ()).unwrap_err();
    let error = load(TlsFiles { certificate: "/nowhere/cert.pem".into(), ..files.clone() });
    assert_eq!(error.to_string(), "read failed on server certificate /nowhere/cert.pem");
    let error = load(TlsFiles { certificate: files.key.clone(), ..files.clone() });
    assert!(error.to_string().contains("no CERTIFICATE"), "{error}");
    let error = load(TlsFiles { key: files.certificate.clone(), ..files.clone() });
    assert!(matches!(error, TlsError::KeyMode { .. } | TlsError::Content { .. }), "{error}");
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = load(files);
    assert!(matches!(error, TlsError::KeyMode { mode: 0o644, .. }), "{error}");
    let config = ServerConfig {
        tcp: vec!["127.0.0.1:0".parse().unwrap()],
        tcp_tls: TlsMode::Require,
        ..ServerConfig::default()
    };
    let error = Server::start(config, Arc::new(Catalog(Vec::new()))).unwrap_err();
    assert!(matches!(error, NbdError::InvalidConfig { setting: "tcp_tls", .. }), "{error}");
}

#[test]
fn plaintext_negotiation_is_reset_by_tls() {
    let server = TlsServer::start(MemDevice::new(MIB, Behaviour::Instant), TlsMode::Allow, false);
    let mut client = Client::tcp(server.addr());
    client.hello(3);
    assert_eq!(client.option(NBD_OPT_STRUCTURED_REPLY, b"")[0].0, NBD_REP_ACK);
    let mut client = server.start_tls(client, server.authority.client_config(None)).unwrap();
    client.option(NBD_OPT_GO, &info_request(b"vol", &[]));
    // `read` requires a simple reply: structured replies were not negotiated over TLS.
    assert_eq!(client.read(0, 7), (0, vec![0; 7]));
    client.disconnect();
}

#[test]
fn client_without_a_certificate_is_refused() {
    let server = TlsServer::start(MemDevice::new(MIB, Behaviour::Instant), TlsMode::Require, true);
    let error = server.try_connect(server.authority.client_config(None)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[test]
fn disconnect_at_any_point_releases_the_session() {
    let server = TlsServer::start(MemDevice::new(MIB, Behaviour::Mixed), TlsMode::Require, true);
    let dir = server.authority.client_dir("alice", false);
    for cut in (0..400).step_by(7) {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        let mut sent = 3_u32.to_be_bytes().to_vec();
        sent.extend(option_request(NBD_OPT_STARTTLS, b""));
        stream.write_all(&sent).unwrap();
        stream.read_exact(&mut [0; 38]).unwrap();
        let config = server.authority.client_config(Some(&dir));
        let mut session = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut client_hello = Vec::new();
        session.write_tls(&mut client_hello).unwrap();
        stream.write_all(&client_hello[..cut.min(client_hello.len())]).unwrap();
    }
    let mut client = server.attach(Some(&dir));
    for _ in 0..20 {
        client.request(NBD_CMD_READ, 0, 0, 500_000);
    }
    drop(client);
    server.server.wait_until_detached();
    server.server.assert_serves();
}
