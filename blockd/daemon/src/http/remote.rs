//! Control API over TCP: mutual TLS, with roles by the names in the client's certificate.
//!
//! Any host can open connections, so all work before the client's certificate is bounded and never delays
//! later clients: with too many handshakes, the oldest ones are dropped.

use super::{
    caller::Caller,
    connections::{ACCEPT_PAUSE, KeepAlive, serve_one},
    passed_fds::PassedFds,
};
use crate::config::ControlConfig;
use axum::Router;
use blockd_engine::quota::Quota;
use blockd_nbd::{TlsIdentity, certificate_names};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Maximum number of connections of one name.
const MAX_CONNECTIONS_OF_ONE: usize = 32;
/// Maximum number of connections of all names.
const MAX_CONNECTIONS: usize = 256;
/// Maximum number of handshakes of one address.
const MAX_HANDSHAKES_OF_ONE: usize = 16;
const MAX_HANDSHAKES: usize = 256;
/// Timeout of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// TLS listener of the control API.
pub(crate) struct Remote {
    router: Router,
    identity: Arc<TlsIdentity>,
    roles: Arc<RwLock<ControlConfig>>,
    handshakes: Handshakes,
    connected: Quota<String, MAX_CONNECTIONS_OF_ONE, MAX_CONNECTIONS>,
    stop: CancellationToken,
}

impl Remote {
    pub(crate) fn new(
        router: Router,
        identity: Arc<TlsIdentity>,
        roles: Arc<RwLock<ControlConfig>>,
        stop: CancellationToken,
    ) -> Self {
        let (handshakes, connected) = (Handshakes::default(), Quota::default());
        Self { router, identity, roles, handshakes, connected, stop }
    }

    /// Serves until the stop, and ends after the running requests.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => break,
                next = listener.accept() => next,
            };
            // Ended connections are removed.
            while connections.try_join_next().is_some() {}
            match next {
                Ok((stream, peer)) => {
                    let span = tracing::info_span!("control", %peer);
                    connections.spawn(Arc::clone(&self).connection(stream, peer).instrument(span));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on control address");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // Replies are small, and a client waits for each.
        let _ = stream.set_nodelay(true);
        let (number, pushed_out) = self.handshakes.begin(peer.ip());
        let acceptor = TlsAcceptor::from(self.identity.server_config());
        let session = tokio::select! {
            () = self.stop.cancelled() => None,
            () = pushed_out.cancelled() => None,
            session = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => Some(session),
        };
        self.handshakes.end(number);
        // Any host can cause this, so it is not logged by default.
        let session = match session {
            Some(Ok(Ok(session))) => session,
            Some(Ok(Err(error))) => return tracing::debug!(%error, "control connection refused"),
            Some(Err(_)) => return tracing::debug!("timeout of a handshake on a control connection"),
            None => return,
        };
        let certificate = session.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = certificate.map(|der| certificate_names(der)).unwrap_or_default();
        let role = self.roles.read().role_of(&names);
        let name = if names.is_empty() { format!("the certificate of {peer}") } else { names.join(", ") };
        let Some(_slot) = self.connected.take(name.clone()) else {
            return tracing::debug!(name, "too many control connections");
        };
        tracing::debug!(name, ?role, "a control connection");
        let caller = Caller { role, name, user: None };
        let caller = (move || caller.clone(), KeepAlive::No);
        serve_one(session, caller, PassedFds::default(), self.router.clone(), &self.stop).await;
    }
}

/// Running handshakes, oldest first.
#[derive(Default)]
struct Handshakes(Mutex<HandshakeQueue>);

#[derive(Default)]
struct HandshakeQueue {
    next: u64,
    queue: VecDeque<(u64, IpAddr, CancellationToken)>,
}

impl Handshakes {
    /// Adds a handshake; returns its number and the token that drops it for a newer one.
    fn begin(&self, peer: IpAddr) -> (u64, CancellationToken) {
        let mut waiting = self.0.lock();
        let of_peer = waiting.queue.iter().filter(|(_, from, _)| *from == peer).count();
        let oldest = if of_peer >= MAX_HANDSHAKES_OF_ONE {
            waiting.queue.iter().position(|(_, from, _)| *from == peer)
        } else {
            (waiting.queue.len() >= MAX_HANDSHAKES).then_some(0)
        };
        if let Some((_, _, push_out)) = oldest.and_then(|oldest| waiting.queue.remove(oldest)) {
            push_out.cancel();
        }
        let (number, push_out) = (waiting.next, CancellationToken::new());
        waiting.next += 1;
        waiting.queue.push_back((number, peer, push_out.clone()));
        (number, push_out)
    }

    fn end(&self, number: u64) {
        self.0.lock().queue.retain(|(other, _, _)| *other != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_nbd::TlsFiles;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use std::{fs, os::unix::fs::PermissionsExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{
        TlsConnector,
        rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::PrivateKeyDer},
    };

    /// Certificate authority of a test.
    struct Authority(Issuer<'static, KeyPair>);

    impl Authority {
        fn new(roots: &mut RootCertStore) -> (Self, String) {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            roots.add(certificate.der().clone()).unwrap();
            (Self(Issuer::new(params, key)), certificate.pem())
        }

        fn sign(&self, name: &str, hosts: &[String]) -> (rcgen::Certificate, KeyPair) {
            let mut params = CertificateParams::new(hosts).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.0).unwrap(), key)
        }

        /// Sends a request with a certificate of this name; returns the reply, which is empty if the
        /// connection is refused.
        async fn request(&self, roots: &RootCertStore, address: SocketAddr, name: &str) -> String {
            let (certificate, key) = self.sign(name, &[]);
            let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let stream = TcpStream::connect(address).await.unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            let mut session = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            let mut reply = Vec::new();
            // The refusal may come before the request.
            let _ = session.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            let _ = session.read_to_end(&mut reply).await;
            String::from_utf8(reply).unwrap()
        }
    }

    #[tokio::test]
    async fn connections_of_one_certificate_name_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let mut roots = RootCertStore::empty();
        let (authority, ca) = Authority::new(&mut roots);
        let (certificate, key) = authority.sign("server", &["localhost".to_owned()]);
        let file = |name: &str, pem: String| {
            let path = dir.path().join(name);
            fs::write(&path, pem).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let files = TlsFiles {
            certificate: file("server.pem", certificate.pem()),
            key: file("server.key", key.serialize_pem()),
            client_ca: Some(file("ca.pem", ca)),
            client_crl: None,
        };
        let identity = Arc::new(TlsIdentity::load(files).unwrap());
        let stop = CancellationToken::new();
        let remote = Arc::new(Remote::new(Router::new(), identity, Arc::default(), stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(Arc::clone(&remote).serve(listener));
        let request = async |name: &str| authority.request(&roots, address, name).await;

        let one = || remote.connected.take("one".to_owned());
        let mut slots: Vec<_> = std::iter::from_fn(one).collect();
        assert_eq!(slots.len(), MAX_CONNECTIONS_OF_ONE);
        assert_eq!(request("one").await, "");
        assert!(request("two").await.starts_with("HTTP/1.1 404"));
        slots.pop();
        assert!(request("one").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        served.await.unwrap();
    }

    #[test]
    fn oldest_handshake_of_an_address_is_dropped_first() {
        let handshakes = Handshakes::default();
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let (quiet, quiet_pushed) = handshakes.begin(address(1));
        let noisy: Vec<_> = (0..=MAX_HANDSHAKES_OF_ONE).map(|_| handshakes.begin(address(2)).1).collect();
        assert!(noisy[0].is_cancelled() && !noisy[1].is_cancelled() && !quiet_pushed.is_cancelled());
        // Of all addresses: the oldest one.
        for other in 0..MAX_HANDSHAKES {
            let [high, low] = u16::try_from(other).unwrap().to_be_bytes();
            handshakes.begin(IpAddr::from([10, 1, high, low]));
        }
        assert!(quiet_pushed.is_cancelled());
        assert_eq!(handshakes.0.lock().queue.len(), MAX_HANDSHAKES);
        handshakes.end(quiet);
        let newest = handshakes.begin(address(3)).0;
        handshakes.end(newest);
        assert_eq!(handshakes.0.lock().queue.len(), MAX_HANDSHAKES - 1);
    }
}
