//! Webhooks of a running daemon, with a real HTTP server on the other side.

use super::Host;
use crate::config::WebhookConfig;
use Answer::{Hold, Status};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use blockd_api::{
    events::{Event, ListEvents, Severity},
    status::WebhookStatus,
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

/// A webhook that does not take its time.
pub(super) fn hook(url: &str) -> WebhookConfig {
    let text = format!(
        "name = \"ops\"\nurl = \"{url}\"\ntimeout_ms = 20000\nretry_first_ms = 10\nretry_most_ms = 40\n"
    );
    toml::from_str(&text).unwrap()
}

/// What the receiver does with a delivery.
#[derive(Clone, Copy)]
enum Answer {
    /// Takes it, or not.
    Status(u16),
    /// Says nothing.
    Hold,
}

struct Delivery {
    headers: HeaderMap,
    body: Bytes,
}

impl Delivery {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn event(&self) -> Event {
        serde_json::from_slice(&self.body).unwrap()
    }
}

struct Receiver {
    address: SocketAddr,
    /// What it does with the next ones; it takes those after.
    answers: Arc<Mutex<VecDeque<Answer>>>,
    deliveries: UnboundedReceiver<Delivery>,
    server: JoinHandle<()>,
}

type Shared = (Arc<Mutex<VecDeque<Answer>>>, UnboundedSender<Delivery>);

async fn take((answers, sender): Shared, delivery: Delivery) -> StatusCode {
    let answer = answers.lock().pop_front();
    let _ = sender.send(delivery);
    match answer {
        None => StatusCode::NO_CONTENT,
        Some(Status(status)) => StatusCode::from_u16(status).unwrap(),
        Some(Hold) => std::future::pending().await,
    }
}

impl Receiver {
    async fn at(address: SocketAddr, answers: &[Answer]) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
        let (sender, deliveries) = unbounded_channel();
        let handler = |State(shared): State<Shared>, headers: HeaderMap, body: Bytes| {
            take(shared, Delivery { headers, body })
        };
        let router = Router::new().fallback(handler).with_state((Arc::clone(&answers), sender));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, answers, deliveries, server }
    }

    async fn new(answers: &[Answer]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), answers).await
    }

    fn url(&self) -> String {
        format!("http://{}/planted-path?token=planted", self.address)
    }

    async fn next(&mut self) -> Delivery {
        self.deliveries.recv().await.unwrap()
    }

    /// It is gone when this is done.
    async fn stop(self) -> SocketAddr {
        self.server.abort();
        let _ = self.server.await;
        self.address
    }
}

impl Host {
    async fn with_webhook(webhook: WebhookConfig) -> Self {
        let mut host = Self::new().await;
        host.stop().await;
        host.webhooks = vec![webhook];
        host.start().await;
        host.create_credential().await;
        host
    }

    /// Something happens.
    fn tell(&self, kind: &str, severity: Severity) {
        let event =
            crate::db::NewEvent::new(jiff::Timestamp::now(), severity, kind, format!("this is {kind}"));
        self.core().db.transaction(|tx| event.insert(tx)).unwrap();
        self.core().events.wake();
    }

    async fn webhook(&self) -> WebhookStatus {
        self.client.status().await.unwrap().webhooks.remove(0)
    }

    /// Waits until the webhook is as it should be.
    async fn webhook_when(&self, is_right: impl Fn(&WebhookStatus) -> bool) -> WebhookStatus {
        for _ in 0..6000 {
            let status = self.webhook().await;
            if is_right(&status) {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the webhook is otherwise: {:?}", self.webhook().await);
    }
}

fn secret_file(dir: &Path, secret: &str) -> PathBuf {
    let path = dir.join("secret");
    std::fs::write(&path, secret).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_told_as_others_see_it_and_signed() {
    let (dir, mut receiver) = (tempfile::tempdir().unwrap(), Receiver::new(&[]).await);
    let path = secret_file(dir.path(), "planted-planted-planted");
    let mut host =
        Host::with_webhook(WebhookConfig { secret_file: Some(path.clone()), ..hook(&receiver.url()) }).await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let done = host.backup("v", false).await;
    let told = receiver.next().await;
    assert_eq!((told.event().kind.as_str(), told.event().task), ("backup-done", Some(done.name)));
    let query = ListEvents::default();
    assert_eq!(host.client.list_events(&query).await.unwrap().events, [told.event()]);
    assert_eq!(told.header("content-type"), "application/json");
    assert_eq!(told.header("webhook-id"), format!("{}-{}", host.core().cluster, told.event().id));
    assert_eq!(told.header("blockd-node"), host.core().node);

    // Signed with what the file holds at the moment; `openssl` computes it anew.
    let is_signed = |told: &Delivery, secret: &str| {
        let signed = dir.path().join("signed");
        let mut text =
            format!("{}.{}.", told.header("webhook-id"), told.header("webhook-timestamp")).into_bytes();
        text.extend_from_slice(&told.body);
        std::fs::write(&signed, text).unwrap();
        let line =
            format!("openssl dgst -sha256 -hmac {secret} -binary {} | openssl base64", signed.display());
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        format!("v1,{}", String::from_utf8(output.stdout).unwrap().trim()) == told.header("webhook-signature")
    };
    assert!(is_signed(&told, "planted-planted-planted"), "{:?}", told.headers);
    secret_file(dir.path(), "another-secret-that-is-new");
    host.tell("run-failed", Severity::Error);
    let told = receiver.next().await;
    assert!(is_signed(&told, "another-secret-that-is-new"), "{:?}", told.headers);

    // Never without a signature.
    std::fs::remove_file(&path).unwrap();
    host.tell("run-skipped", Severity::Warning);
    let status = host.webhook_when(|status| status.error.is_some()).await;
    assert!(status.error.as_ref().is_some_and(|error| error.contains("/secret")), "{status:?}");
    assert_eq!((status.waiting, status.delivered), (1, 2));
    secret_file(dir.path(), "another-secret-that-is-new");
    assert_eq!(receiver.next().await.event().kind, "run-skipped");
    let status = host.webhook_when(|status| status.delivered == 3).await;
    assert_eq!((status.waiting, status.error, status.failing_since), (0, None, None));
    assert!(!format!("{:?}{:?}", host.core().config, host.webhook().await).contains("planted"));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_tried_again_in_order_and_what_is_not_understood_holds_up_nothing() {
    let mut receiver = Receiver::new(&[Status(500), Status(429), Status(302), Status(422)]).await;
    let webhook = WebhookConfig {
        kinds: vec!["*-failed".into(), "damage-found".into()],
        min_severity: Severity::Warning,
        ..hook(&receiver.url())
    };
    let mut host = Host::with_webhook(webhook).await;
    host.tell("backup-failed", Severity::Error);
    host.tell("run-skipped", Severity::Error);
    host.tell("run-failed", Severity::Info);
    host.tell("damage-found", Severity::Warning);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let told = receiver.next().await;
        seen.push((told.event().kind, told.header("webhook-id").to_owned()));
    }
    let kinds: Vec<_> = seen.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["backup-failed", "backup-failed", "backup-failed", "backup-failed", "damage-found"]);
    assert!(seen[..4].iter().all(|(_, id)| *id == seen[0].1) && seen[4].1 != seen[0].1, "{seen:?}");
    let status = host.webhook_when(|status| status.delivered == 1).await;
    // What was told since is later than what was not.
    assert!(status.last_untold.is_some() && status.last_untold <= status.last_delivered, "{status:?}");
    assert_eq!((status.given_up, status.waiting, status.error), (1, 0, None));
    assert!(receiver.deliveries.try_recv().is_err(), "nothing else was wanted");

    // Too old, and nobody takes it: it is given up, and so are those behind it, and all goes on.
    receiver.answers.lock().extend([Status(503)]);
    let old = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(48);
    for message in ["one", "two"] {
        let event = crate::db::NewEvent::new(old, Severity::Error, "run-failed", message);
        host.core().db.transaction(|tx| event.insert(tx)).unwrap();
    }
    host.core().events.wake();
    assert_eq!(receiver.next().await.event().message, "one");
    host.webhook_when(|status| status.given_up == 3).await;
    host.tell("verify-failed", Severity::Error);
    assert_eq!(receiver.next().await.event().kind, "verify-failed");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_slow_or_gone_holds_up_nobody_and_is_told_after_a_restart() {
    let mut receiver = Receiver::new(&[Hold]).await;
    // Time enough for an answer on a busy machine: what is answered late comes again.
    let webhook = WebhookConfig { timeout_ms: 5_000, ..hook(&receiver.url()) };
    let mut host = Host::with_webhook(webhook.clone()).await;
    host.tell("run-failed", Severity::Error);
    receiver.next().await;
    // It came again, because the first answer did not.
    assert_eq!(receiver.next().await.event().kind, "run-failed");
    host.webhook_when(|status| status.delivered == 1).await;

    // One that never answers.
    host.stop().await;
    host.webhooks = vec![WebhookConfig { timeout_ms: 300_000, ..webhook.clone() }];
    host.start().await;
    receiver.answers.lock().extend([Hold]);
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    host.backup("v", false).await;
    assert_eq!(receiver.next().await.event().kind, "backup-done");
    host.backup("v", false).await;
    let began = std::time::Instant::now();
    host.stop().await;
    assert!(began.elapsed() < std::time::Duration::from_secs(120), "a stop waits for nobody");

    // One that is gone.
    let address = receiver.stop().await;
    host.webhooks = vec![webhook];
    host.start().await;
    let status = host.webhook_when(|status| status.error.is_some()).await;
    assert!(status.error.as_ref().is_some_and(|error| error.starts_with("no answer: ")), "{status:?}");
    assert_eq!((status.waiting, status.origin), (2, format!("http://{address}")));
    assert!(!format!("{:?}", status.error).contains("planted"));
    host.backup("v", false).await;
    host.stop().await;
    let mut receiver = Receiver::at(address, &[]).await;
    host.start().await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(receiver.next().await.event());
    }
    assert!(told.iter().all(|event| event.kind == "backup-done") && told.is_sorted_by_key(|event| event.id));
    host.webhook_when(|status| status.delivered == 3).await;

    // What was told is not told again, and who is new hears nothing of the past.
    host.stop().await;
    let mut other = Receiver::new(&[]).await;
    host.webhooks.push(WebhookConfig { name: "other".into(), ..hook(&other.url()) });
    host.start().await;
    host.tell("run-skipped", Severity::Warning);
    assert_eq!(receiver.next().await.event().kind, "run-skipped");
    assert_eq!(other.next().await.event().kind, "run-skipped");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forgotten_before_it_was_told_is_counted() {
    let receiver = Receiver::new(&[]).await;
    let (url, address) = (receiver.url(), receiver.stop().await);
    let mut host = Host::with_webhook(hook(&url)).await;
    for _ in 0..5 {
        host.tell("run-failed", Severity::Error);
    }
    host.webhook_when(|status| status.error.is_some()).await;
    host.stop().await;
    host.start().await;
    host.sql("DELETE FROM events WHERE id <= 3");
    host.stop().await;
    let mut receiver = Receiver::at(address, &[]).await;
    host.start().await;
    assert_eq!(receiver.next().await.event().id, 4);
    assert_eq!(receiver.next().await.event().id, 5);
    let status = host.webhook_when(|status| status.delivered == 2).await;
    assert_eq!((status.lost, status.given_up), (3, 0));
    host.stop().await;
}

/// A receiver whose certificate only a private authority vouches for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authority_is_trusted_if_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let ca = dir.path().join("ca.pem");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let (sender, mut heads) = unbounded_channel();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust it goes at once.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut bytes = vec![0; 4096];
            let Ok(len) = stream.read(&mut bytes).await else { continue };
            if len == 0 {
                continue;
            }
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
            let _ = sender.send(String::from_utf8_lossy(&bytes[..len]).into_owned());
        }
    });
    std::fs::write(&ca, "no certificate").unwrap();
    let mut host = Host::with_webhook(WebhookConfig { ca: Some(ca.clone()), ..hook(&url) }).await;
    host.tell("run-failed", Severity::Error);
    let status = host.webhook_when(|status| status.error.is_some()).await;
    assert!(status.error.as_ref().is_some_and(|error| error.contains("/ca.pem")), "{status:?}");
    // Another authority's.
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, other.cert.pem()).unwrap();
    let is_untrusted = |status: &WebhookStatus| {
        status
            .error
            .as_ref()
            .is_some_and(|error| error.starts_with("no answer: ") && error.contains("certificate"))
    };
    host.webhook_when(is_untrusted).await;
    assert!(heads.try_recv().is_err());
    std::fs::write(&ca, made.cert.pem()).unwrap();
    assert!(heads.recv().await.unwrap().starts_with("POST / HTTP/1.1"));
    host.webhook_when(|status| status.delivered == 1).await;
    server.abort();
    host.stop().await;
}
