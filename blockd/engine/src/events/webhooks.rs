//! Webhooks: delivers events to HTTP receivers, in order and at least once.
//!
//! The event log in the database is the queue. It survives restarts, and it is bounded: the oldest events
//! expire. Each webhook has a cursor in the log that moves after each delivery. An event is delivered again
//! if the daemon ends between the answer and the commit of the cursor; `webhook-id` stays the same, so that
//! receivers can drop duplicates. Headers and signature follow the Standard Webhooks specification.

use crate::{
    error::ServiceError,
    events::{
        EventLog, log_all,
        webhook_config::{WebhookConfig, WebhookUrl},
    },
    host::Host,
};
use backon::{BackoffBuilder, ExponentialBuilder};
use blockd_api::{
    Document, MAX_WAIT_MILLIS,
    events::{Event, ListEvents},
    status::WebhookStatus,
    with_sources,
};
use blockd_catalog::{Db, DbError, EventReader, count_events_after};
use blockd_secrets::References;
use jiff::Timestamp;
use parking_lot::Mutex;
use reqwest::{Client, StatusCode, header, redirect::Policy};
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::task::JoinSet;

/// Events read from the database at once.
const BATCH: u32 = 100;
/// Wait after a failed attempt to deliver; doubles up to [`MAX_RETRY_WAIT`].
const FIRST_RETRY_WAIT: Duration = Duration::from_millis(500);
const MAX_RETRY_WAIT: Duration = Duration::from_secs(300);
/// Longest `Retry-After` that is honoured.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Wait after a failed database operation.
const DATABASE_RETRY_WAIT: Duration = Duration::from_secs(5);

/// Delivers events to webhooks.
pub struct WebhookDelivery {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) host: Arc<Host>,
    /// Position of the log among the event readers; `None` if events are not logged.
    pub(crate) log_reader: Option<EventReader>,
    pub(crate) references: Arc<References>,
    /// Webhooks.
    pub webhooks: Vec<Arc<Webhook>>,
}

/// A receiver of events.
#[derive(Debug)]
pub struct Webhook {
    config: WebhookConfig,
    /// Created at the first attempt that can.
    client: OnceLock<Client>,
    state: Mutex<WebhookState>,
}

/// Progress of a webhook. Counters start with the daemon.
#[derive(Clone, Debug, Default)]
pub struct WebhookState {
    cursor: EventReader,
    /// Position of the cursor in the database.
    stored_until: u64,
    /// Events that the receiver accepted.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Events that the receiver rejected permanently, or that expired before their delivery.
    pub undelivered: u64,
    last_delivered: Option<Timestamp>,
    last_undelivered: Option<Timestamp>,
    failing_since: Option<Timestamp>,
    error: Option<String>,
}

impl WebhookState {
    fn count_undelivered(&mut self, events: u64) {
        self.undelivered += events;
        self.last_undelivered = Some(Timestamp::now());
    }

    fn fail(&mut self, error: String) {
        self.failing_since.get_or_insert_with(Timestamp::now);
        self.error = Some(error);
    }
}

/// A failed attempt. Messages contain neither the path of the address nor the secret.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error("the HTTP client cannot be created: {0}")]
    Client(String),
    #[error("the secret of the webhook cannot be read: {0}")]
    Secret(#[from] blockd_secrets::ReferenceError),
    #[error("the secret of the webhook is not valid: {0}")]
    Signature(#[from] standardwebhooks::WebhookError),
    #[error("the event cannot be encoded: {0}")]
    Encoding(#[from] serde_json::Error),
    #[error("no answer: {0}")]
    Unreachable(String),
    #[error("the receiver answered {status}{}", if status.is_redirection() { "; redirects are not followed" } else { "" })]
    Rejected { status: StatusCode, retry_after: Option<Duration> },
}

impl DeliveryError {
    /// Returns true if the receiver will never accept this event: retries would block all later ones.
    fn is_permanent(&self) -> bool {
        let permanent =
            [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNPROCESSABLE_ENTITY];
        matches!(self, Self::Rejected { status, .. } if permanent.contains(status))
    }

    fn retry_after(&self) -> Duration {
        match self {
            Self::Rejected { retry_after: Some(wait), .. } => MAX_RETRY_AFTER.min(*wait),
            _ => Duration::ZERO,
        }
    }
}

/// Returns the name of a webhook's cursor in the event log.
pub fn reader_name(config: &WebhookConfig) -> String {
    format!("webhook {}", config.name)
}

/// Creates the configured webhooks, each with its cursor. One without an HTTP client reports that and creates
/// it at its next delivery.
pub fn all(webhooks: &[WebhookConfig], readers: &[EventReader]) -> Vec<Arc<Webhook>> {
    let cursor = |name: String| readers.iter().find(|reader| reader.name == name).cloned();
    let known = webhooks.iter().filter_map(|config| Some((config, cursor(reader_name(config))?)));
    let webhook = |(config, cursor): (&WebhookConfig, EventReader)| {
        let state = WebhookState { stored_until: cursor.processed_until, cursor, ..WebhookState::default() };
        let webhook = Webhook { config: config.clone(), client: OnceLock::new(), state: Mutex::new(state) };
        if let Err(error) = webhook.client() {
            tracing::error!(webhook = webhook.name(), %error, "webhook cannot deliver events; retrying");
            webhook.state.lock().fail(error.to_string());
        }
        Arc::new(webhook)
    };
    known.map(webhook).collect()
}

/// Creates an HTTP client. It follows no redirects, which would send events to another receiver.
fn client(url: &WebhookUrl) -> Result<Client, reqwest::Error> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("blockd/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .redirect(Policy::none());
        if url.is_loopback() { builder.no_proxy() } else { builder }
    };
    match builder().build() {
        // A receiver without TLS needs no CA certificates of the host.
        Err(_) if url.url().scheme() == "http" => builder().tls_certs_only([]).build(),
        built => built,
    }
}

/// Delivers events to all webhooks and to the log until the daemon stops.
pub async fn run(delivery: Arc<WebhookDelivery>) {
    let mut workers = JoinSet::new();
    if let Some(reader) = delivery.log_reader.clone() {
        workers.spawn(log_all(Arc::clone(&delivery.events), reader));
    }
    for hook in &delivery.webhooks {
        let (delivery, hook) = (Arc::clone(&delivery), Arc::clone(hook));
        workers.spawn(async move {
            tokio::select! {
                () = hook.run(&delivery) => {}
                () = delivery.host.stopping.cancelled() => {}
            }
            if let Err(error) = hook.store_cursor(&delivery).await {
                tracing::warn!(webhook = hook.name(), %error, "storing the cursor in the event log failed");
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a reader of the event log panicked");
        }
    }
}

impl Webhook {
    pub(crate) fn name(&self) -> &str {
        self.config.name.as_str()
    }

    pub(crate) fn state(&self) -> WebhookState {
        self.state.lock().clone()
    }

    async fn run(&self, delivery: &WebhookDelivery) {
        loop {
            if let Err(error) = self.deliver_next(delivery).await {
                tracing::warn!(webhook = self.name(), %error, "reading the event log failed; retrying");
                tokio::time::sleep(DATABASE_RETRY_WAIT).await;
            }
        }
    }

    /// Returns the HTTP client, and creates it if an earlier attempt could not.
    fn client(&self) -> Result<&Client, DeliveryError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = client(&self.config.url).map_err(|error| DeliveryError::Client(with_sources(&error)))?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Delivers the next batch of events, or waits until there are some.
    async fn deliver_next(&self, delivery: &WebhookDelivery) -> Result<(), ServiceError> {
        let since = self.state.lock().cursor.processed_until;
        let query = ListEvents { since: Some(since), max: Some(BATCH), wait_millis: Some(MAX_WAIT_MILLIS) };
        for event in delivery.events.list_events(&query).await?.items {
            self.count_expired_before(&event);
            if self.config.wants(&event.kind, event.severity) {
                self.deliver(delivery, &event).await;
                self.state.lock().cursor.processed_until = event.event_id;
                self.store_cursor(delivery).await?;
            }
            self.state.lock().cursor.processed_until = event.event_id;
        }
        self.store_cursor(delivery).await
    }

    /// Counts the events that expired before this one: ids have no gaps, so missing ones have expired.
    fn count_expired_before(&self, event: &Event) {
        let mut state = self.state.lock();
        let expired = event.event_id.saturating_sub(state.cursor.processed_until).saturating_sub(1);
        if expired > 0 {
            state.count_undelivered(expired);
            tracing::error!(webhook = self.name(), events = expired, "events expired before their delivery");
        }
    }

    async fn store_cursor(&self, delivery: &WebhookDelivery) -> Result<(), ServiceError> {
        let WebhookState { cursor, stored_until, .. } = self.state();
        let until = cursor.processed_until;
        if until > stored_until {
            delivery.db.run(move |tx| cursor.put(tx)).await?;
            self.state.lock().stored_until = until;
        }
        Ok(())
    }

    /// Delivers an event; returns when the receiver has accepted it or rejected it permanently.
    async fn deliver(&self, delivery: &WebhookDelivery, event: &Event) {
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(FIRST_RETRY_WAIT)
            .with_max_delay(MAX_RETRY_WAIT)
            .without_max_times()
            .with_jitter()
            .build();
        loop {
            let result = self.post(delivery, event).await;
            self.note(event, &result);
            let Err(error) = result else { return };
            if error.is_permanent() {
                return;
            }
            let wait = waits.next().unwrap_or(MAX_RETRY_WAIT).max(error.retry_after());
            tokio::time::sleep(wait).await;
        }
    }

    /// Makes one attempt.
    async fn post(&self, delivery: &WebhookDelivery, event: &Event) -> Result<(), DeliveryError> {
        let body = serde_json::to_vec(&Document::new(event))?;
        let id = format!("{}-{}", delivery.host.cluster, event.event_id);
        let timestamp_s = Timestamp::now().as_second();
        let mut request = self
            .client()?
            .post(self.config.url.url().clone())
            .timeout(Duration::from_millis(self.config.timeout_ms))
            .header(header::CONTENT_TYPE, "application/json")
            .header(HEADER_WEBHOOK_ID, &id)
            .header(HEADER_WEBHOOK_TIMESTAMP, timestamp_s);
        // Host names may contain bytes that are not valid in a header.
        if let Ok(node) = header::HeaderValue::from_str(&delivery.host.node) {
            request = request.header("blockd-node", node);
        }
        if let Some(reference) = &self.config.secret {
            let secret = delivery.references.resolve(reference).await?;
            let signer = standardwebhooks::Webhook::new(secret.expose())?;
            request = request.header(HEADER_WEBHOOK_SIGNATURE, signer.sign(&id, timestamp_s, &body)?);
        }
        let answer = request
            .body(body)
            .send()
            .await
            .map_err(|error| DeliveryError::Unreachable(with_sources(&error.without_url())))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        Err(DeliveryError::Rejected { status, retry_after })
    }

    /// Records the result of an attempt.
    fn note(&self, event: &Event, result: &Result<(), DeliveryError>) {
        let mut state = self.state.lock();
        state.failed_attempts += u64::from(result.is_err());
        match result {
            Ok(()) => {
                state.delivered += 1;
                state.last_delivered = Some(Timestamp::now());
            }
            Err(error) if error.is_permanent() => {
                tracing::error!(webhook = self.name(), event = event.event_id, kind = event.kind, %error, "event not delivered");
                state.count_undelivered(1);
            }
            Err(error) => {
                let text = error.to_string();
                // Logged when it changes, not at each attempt.
                if state.error.as_ref() != Some(&text) {
                    tracing::warn!(webhook = self.name(), event = event.event_id, %error, "webhook delivery failed; retrying");
                }
                state.fail(text);
                return;
            }
        }
        state.error = None;
        if state.failing_since.take().is_some() {
            tracing::info!(webhook = self.name(), "webhook delivery works again");
        }
    }

    /// Returns the webhook's status; reads the number of waiting events from `tx`.
    pub fn status(&self, tx: &rusqlite::Transaction<'_>) -> Result<WebhookStatus, DbError> {
        let state = self.state();
        let counts = count_events_after(tx, state.cursor.processed_until)?;
        let wanted = counts.iter().filter(|(kind, severity, _)| self.config.wants(kind, *severity));
        Ok(WebhookStatus {
            name: self.config.name.to_string(),
            origin: self.config.url.origin(),
            waiting: wanted.map(|(_, _, count)| count).sum(),
            delivered: state.delivered,
            undelivered: state.undelivered,
            last_delivered_at: state.last_delivered,
            last_undelivered_at: state.last_undelivered,
            first_failed_at: state.failing_since,
            error: state.error,
        })
    }
}
