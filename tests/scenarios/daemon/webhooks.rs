//! Webhooks of a running daemon, delivered to a real HTTP server.

use super::*;
use Reaction::{Hold, Reply};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use blockd_api::{
    events::{Event, EventKind, Severity},
    status::WebhookStatus,
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

/// Returns a webhook with default settings and a timeout for slow machines.
pub(super) fn hook(url: &str) -> WebhookConfig {
    toml::from_str(&format!("name = \"ops\"\nurl = \"{url}\"\ntimeout_ms = 20000\n")).unwrap()
}

/// Reaction of the receiver to a delivery.
#[derive(Clone, Copy)]
enum Reaction {
    /// Replies with this status.
    Reply(u16),
    /// Sends no reply.
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
    /// Reactions to the next deliveries; later ones are accepted.
    reactions: Arc<Mutex<VecDeque<Reaction>>>,
    deliveries: UnboundedReceiver<Delivery>,
    server: JoinHandle<()>,
}

type Shared = (Arc<Mutex<VecDeque<Reaction>>>, UnboundedSender<Delivery>);

async fn take((reactions, sender): Shared, delivery: Delivery) -> StatusCode {
    let reaction = reactions.lock().pop_front();
    let _ = sender.send(delivery);
    match reaction {
        None => StatusCode::NO_CONTENT,
        Some(Reply(status)) => StatusCode::from_u16(status).unwrap(),
        Some(Hold) => std::future::pending().await,
    }
}

impl Receiver {
    async fn at(address: SocketAddr, reactions: &[Reaction]) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let reactions = Arc::new(Mutex::new(reactions.iter().copied().collect()));
        let (sender, deliveries) = unbounded_channel();
        let handler = |State(shared): State<Shared>, headers: HeaderMap, body: Bytes| {
            take(shared, Delivery { headers, body })
        };
        let router = Router::new().fallback(handler).with_state((Arc::clone(&reactions), sender));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, reactions, deliveries, server }
    }

    async fn new(reactions: &[Reaction]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), reactions).await
    }

    fn url(&self) -> String {
        format!("http://{}/planted-path?token=planted", self.address)
    }

    async fn next(&mut self) -> Delivery {
        self.deliveries.recv().await.unwrap()
    }

    /// Stops the server and returns its address.
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

    fn emit(&self, kind: EventKind, severity: Severity) {
        let message = format!("this is {}", kind.as_str());
        let event = blockd_catalog::NewEvent::new(jiff::Timestamp::now(), severity, kind, message);
        self.engine().db.transaction(|tx| event.insert(tx)).unwrap();
        self.engine().events.wake();
    }

    async fn webhook(&self) -> WebhookStatus {
        self.call(GET_STATUS, &()).await.webhooks.remove(0)
    }

    /// Waits until a condition holds on the webhook.
    async fn webhook_when(&self, condition: impl Fn(&WebhookStatus) -> bool) -> WebhookStatus {
        eventually(async || {
            let status = self.webhook().await;
            if condition(&status) { Ok(status) } else { Err(status) }
        })
        .await
    }
}

fn write_secret(host: &Host, secret: &str) -> PathBuf {
    let path = host.dir.path().join("secrets/webhook.secret");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, secret).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
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
    assert_eq!(
        (delivery.event().kind.as_str(), delivery.event().task_id),
        ("backup-done", Some(done.task_id))
    );
    assert_eq!(host.events_since(0, 0).await, [delivery.event()]);
    assert_eq!(delivery.header("content-type"), "application/json");
    assert_eq!(
        delivery.header("webhook-id"),
        format!("{}-{}", host.engine().host.cluster, delivery.event().event_id)
    );
    assert_eq!(delivery.header("blockd-node"), host.engine().host.node);
    let verified = |secret: &str, delivery: &Delivery| {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&delivery.body, &delivery.headers)
    };
    verified("whsec_cGxhbnRlZC1zZWNyZXQtb25l", &delivery).unwrap();
    verified("whsec_cGxhbnRlZC1zZWNyZXQtdHdv", &delivery).unwrap_err();

    // Without its secret, no delivery is sent. A delivery that the stop interrupts would be repeated.
    host.webhook_when(|status| status.delivered == 1).await;
    host.stop().await;
    fs::remove_file(&path).unwrap();
    host.start().await;
    host.emit(EventKind::RunSkipped, Severity::Warning);
    let status = host.webhook_when(|status| status.error.is_some()).await;
    assert!(status.error.as_ref().is_some_and(|error| error.contains("webhook.secret")), "{status:?}");
    assert_eq!((status.waiting, status.delivered), (1, 0));
    write_secret(&host, "cGxhbnRlZC1zZWNyZXQtdHdv");
    let delivery = receiver.next().await;
    verified("whsec_cGxhbnRlZC1zZWNyZXQtdHdv", &delivery).unwrap();
    let status = host.webhook_when(|status| status.delivered == 1).await;
    assert_eq!((status.waiting, status.error, status.first_failed_at), (0, None, None));
    assert!(
        !format!("{:?}{:?}", host.engine().webhook_delivery.webhooks, host.webhook().await)
            .contains("planted")
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_deliveries_are_retried_and_rejected_ones_skipped() {
    let mut receiver = Receiver::new(&[Reply(500), Reply(429), Reply(302), Reply(422)]).await;
    let webhook = WebhookConfig {
        kinds: vec!["*-failed".into(), "damage-found".into()],
        min_severity: Severity::Warning,
        ..hook(&receiver.url())
    };
    let mut host = Host::with_webhook(webhook).await;
    host.emit(EventKind::BackupFailed, Severity::Error);
    host.emit(EventKind::RunSkipped, Severity::Error);
    host.emit(EventKind::RunFailed, Severity::Info);
    host.emit(EventKind::DamageFound, Severity::Warning);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let delivery = receiver.next().await;
        seen.push((delivery.event().kind, delivery.header("webhook-id").to_owned()));
    }
    let kinds: Vec<_> = seen.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["backup-failed", "backup-failed", "backup-failed", "backup-failed", "damage-found"]);
    assert!(seen[..4].iter().all(|(_, id)| *id == seen[0].1) && seen[4].1 != seen[0].1, "{seen:?}");
    let status = host.webhook_when(|status| status.delivered == 1).await;
    assert!(
        status.last_undelivered_at.is_some() && status.last_undelivered_at <= status.last_delivered_at,
        "{status:?}"
    );
    assert_eq!((status.undelivered, status.waiting, status.error), (1, 0, None));
    assert!(receiver.deliveries.try_recv().is_err(), "events that do not match are not delivered");

    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unresponsive_receiver_gets_its_events_after_a_restart() {
    let mut receiver = Receiver::new(&[Hold]).await;
    // Long enough for a busy machine: a delivery with a late reply is repeated.
    let webhook = WebhookConfig { timeout_ms: 5_000, ..hook(&receiver.url()) };
    let mut host = Host::with_webhook(webhook.clone()).await;
    host.emit(EventKind::RunFailed, Severity::Error);
    receiver.next().await;
    // Without a reply, the delivery is repeated.
    assert_eq!(receiver.next().await.event().kind, "run-failed");
    host.webhook_when(|status| status.delivered == 1).await;

    // A receiver that never replies.
    host.stop().await;
    host.webhooks = vec![WebhookConfig { timeout_ms: 300_000, ..webhook.clone() }];
    host.start().await;
    receiver.reactions.lock().extend([Hold]);
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    host.backup("v", false).await;
    // A reply later than the timeout repeats the first event once more.
    while receiver.next().await.event().kind != "backup-done" {}
    host.backup("v", false).await;
    let began = Instant::now();
    host.stop().await;
    assert!(began.elapsed() < Duration::from_secs(120), "the stop waits for a receiver");

    // A receiver that does not run.
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
    let mut delivered = Vec::new();
    for _ in 0..3 {
        delivered.push(receiver.next().await.event());
    }
    assert!(delivered.iter().all(|event| event.kind == "backup-done"), "{delivered:?}");
    assert!(delivered.is_sorted_by_key(|event| event.event_id), "{delivered:?}");
    host.webhook_when(|status| status.delivered == 3).await;

    // Deliveries are not repeated, and new receivers get no past events.
    host.stop().await;
    let mut other = Receiver::new(&[]).await;
    host.webhooks.push(WebhookConfig { name: "other".parse().unwrap(), ..hook(&other.url()) });
    host.start().await;
    host.emit(EventKind::RunSkipped, Severity::Warning);
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
        host.emit(EventKind::RunFailed, Severity::Error);
    }
    host.webhook_when(|status| status.error.is_some()).await;
    host.stop().await;
    host.start().await;
    host.sql("DELETE FROM events WHERE id <= 3");
    host.stop().await;
    let mut receiver = Receiver::at(address, &[]).await;
    host.start().await;
    assert_eq!(receiver.next().await.event().event_id, 4);
    assert_eq!(receiver.next().await.event().event_id, 5);
    let status = host.webhook_when(|status| status.delivered == 2).await;
    assert_eq!(status.undelivered, 3);
    host.stop().await;
}
