//! Webhooks of a running daemon, with a real HTTP server on the other side.

use super::Host;
use Answer::{Hold, Status};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use blockd::config::WebhookConfig;
use blockd_api::{
    events::{Event, ListEvents, Severity},
    operations::*,
    status::WebhookStatus,
};
use parking_lot::Mutex;
use std::{collections::VecDeque, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

/// A webhook with default settings, but time for a slow machine.
pub(super) fn hook(url: &str) -> WebhookConfig {
    toml::from_str(&format!("name = \"ops\"\nurl = \"{url}\"\ntimeout_ms = 20000\n")).unwrap()
}

/// Action of the receiver.
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
    /// Actions for the next deliveries; later ones are accepted.
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

    fn emit(&self, kind: &str, severity: Severity) {
        let event =
            blockd_catalog::NewEvent::new(jiff::Timestamp::now(), severity, kind, format!("this is {kind}"));
        self.engine().db.transaction(|tx| event.insert(tx)).unwrap();
        self.engine().events.wake();
    }

    async fn webhook(&self) -> WebhookStatus {
        self.call(GET_STATUS, &()).await.webhooks.remove(0)
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

fn write_secret(host: &Host, secret: &str) -> PathBuf {
    let path = host.dir.path().join("secrets/webhook.secret");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, secret).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_hold_the_event_and_are_signed() {
    let mut receiver = Receiver::new(&[]).await;
    let mut host = Host::with_webhook(hook(&receiver.url())).await;
    host.stop().await;
    let path = write_secret(&host, "whsec_cGxhbnRlZC1zZWNyZXQtb25l");
    host.webhooks[0].secret = Some(format!("file:{}", path.display()).parse().unwrap());
    host.start().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let done = host.backup("v", false).await;
    let delivery = receiver.next().await;
    assert_eq!((delivery.event().kind.as_str(), delivery.event().task), ("backup-done", Some(done.name)));
    let query = ListEvents::default();
    assert_eq!(host.call(LIST_EVENTS, &query).await.events, [delivery.event()]);
    assert_eq!(delivery.header("content-type"), "application/json");
    assert_eq!(
        delivery.header("webhook-id"),
        format!("{}-{}", host.engine().host.cluster, delivery.event().id)
    );
    assert_eq!(delivery.header("blockd-node"), host.engine().host.node);
    let verified = |secret: &str, delivery: &Delivery| {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&delivery.body, &delivery.headers)
    };
    verified("whsec_cGxhbnRlZC1zZWNyZXQtb25l", &delivery).unwrap();
    verified("whsec_cGxhbnRlZC1zZWNyZXQtdHdv", &delivery).unwrap_err();

    // Never without a signature. An acknowledgement that a stop interrupts would be repeated.
    host.webhook_when(|status| status.delivered == 1).await;
    host.stop().await;
    std::fs::remove_file(&path).unwrap();
    host.start().await;
    host.emit("run-skipped", Severity::Warning);
    let status = host.webhook_when(|status| status.error.is_some()).await;
    assert!(status.error.as_ref().is_some_and(|error| error.contains("webhook.secret")), "{status:?}");
    assert_eq!((status.waiting, status.delivered), (1, 0));
    write_secret(&host, "cGxhbnRlZC1zZWNyZXQtdHdv");
    let delivery = receiver.next().await;
    verified("whsec_cGxhbnRlZC1zZWNyZXQtdHdv", &delivery).unwrap();
    let status = host.webhook_when(|status| status.delivered == 1).await;
    assert_eq!((status.waiting, status.error, status.failing_since), (0, None, None));
    assert!(
        !format!("{:?}{:?}", host.engine().webhook_delivery.webhooks, host.webhook().await)
            .contains("planted")
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_deliveries_are_retried_and_rejected_ones_skipped() {
    let mut receiver = Receiver::new(&[Status(500), Status(429), Status(302), Status(422)]).await;
    let webhook = WebhookConfig {
        kinds: vec!["*-failed".into(), "damage-found".into()],
        min_severity: Severity::Warning,
        ..hook(&receiver.url())
    };
    let mut host = Host::with_webhook(webhook).await;
    host.emit("backup-failed", Severity::Error);
    host.emit("run-skipped", Severity::Error);
    host.emit("run-failed", Severity::Info);
    host.emit("damage-found", Severity::Warning);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let told = receiver.next().await;
        seen.push((told.event().kind, told.header("webhook-id").to_owned()));
    }
    let kinds: Vec<_> = seen.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["backup-failed", "backup-failed", "backup-failed", "backup-failed", "damage-found"]);
    assert!(seen[..4].iter().all(|(_, id)| *id == seen[0].1) && seen[4].1 != seen[0].1, "{seen:?}");
    let status = host.webhook_when(|status| status.delivered == 1).await;
    assert!(
        status.last_undelivered.is_some() && status.last_undelivered <= status.last_delivered,
        "{status:?}"
    );
    assert_eq!((status.undelivered, status.waiting, status.error), (1, 0, None));
    assert!(receiver.deliveries.try_recv().is_err(), "nothing else was wanted");

    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_receiver_gets_its_events_after_a_restart() {
    let mut receiver = Receiver::new(&[Hold]).await;
    // Time enough for an answer on a busy machine: what is answered late comes again.
    let webhook = WebhookConfig { timeout_ms: 5_000, ..hook(&receiver.url()) };
    let mut host = Host::with_webhook(webhook.clone()).await;
    host.emit("run-failed", Severity::Error);
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
    assert!(began.elapsed() < std::time::Duration::from_secs(120), "the stop waits for a receiver");

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

    // Deliveries are not repeated, and new receivers get no past events.
    host.stop().await;
    let mut other = Receiver::new(&[]).await;
    host.webhooks.push(WebhookConfig { name: "other".into(), ..hook(&other.url()) });
    host.start().await;
    host.emit("run-skipped", Severity::Warning);
    assert_eq!(receiver.next().await.event().kind, "run-skipped");
    assert_eq!(other.next().await.event().kind, "run-skipped");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_events_are_counted_as_undelivered() {
    let receiver = Receiver::new(&[]).await;
    let (url, address) = (receiver.url(), receiver.stop().await);
    let mut host = Host::with_webhook(hook(&url)).await;
    for _ in 0..5 {
        host.emit("run-failed", Severity::Error);
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
    assert_eq!(status.undelivered, 3);
    host.stop().await;
}
