//! Telling others of events.
//!
//! The events in the database are the queue: it survives a restart, and it is bounded, because the oldest events are forgotten. Each
//! webhook has a cursor there, which moves when an event was taken or given up. So an event is delivered in its order, and once;
//! or again, if the daemon ended between the answer and the cursor. Nothing waits for a webhook.

mod sender;

use crate::{
    config::{Config, WebhookConfig},
    core::Core,
    db::{DbError, EventReader, count_events_after},
    error::ServiceError,
    events::log_all,
    secrets::fill_random,
};
use blockd_api::{
    MAX_WAIT_MS,
    events::{Event, ListEvents},
    status::WebhookStatus,
};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use sender::{DeliveryError, Sender};
use std::{sync::Arc, time::Duration};
use tokio::task::{JoinHandle, JoinSet};

/// Events that are taken from the database at once.
const BATCH: u32 = 100;
/// How long to wait before the database is asked once more, if it failed.
const DATABASE_AGAIN: Duration = Duration::from_secs(5);
/// The longest time for which a receiver can ask to be left alone.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(3600);

/// Somebody who is told of events.
#[derive(Debug)]
pub(crate) struct Webhook {
    config: WebhookConfig,
    state: Mutex<State>,
}

/// How it does. Counts begin with the daemon.
#[derive(Clone, Debug)]
pub(crate) struct State {
    reader: EventReader,
    /// What the database knows of that.
    stored_until: u64,
    /// Events that were taken.
    pub(crate) delivered: u64,
    /// Attempts that failed.
    pub(crate) failed_attempts: u64,
    /// Events that were given up.
    pub(crate) given_up: u64,
    /// Events that were forgotten before.
    pub(crate) lost: u64,
    last_delivered: Option<Timestamp>,
    /// When the last one was given up, or found forgotten.
    last_untold: Option<Timestamp>,
    failing_since: Option<Timestamp>,
    error: Option<String>,
}

/// The name of a webhook among the readers of events.
pub(crate) fn reader_name(config: &WebhookConfig) -> String {
    format!("webhook {}", config.name)
}

/// All webhooks, each with its reader.
pub(crate) fn all(config: &Config, readers: &[EventReader]) -> Vec<Arc<Webhook>> {
    let reader = |name: String| readers.iter().find(|reader| reader.name == name).cloned();
    let known = config.webhook.iter().filter_map(|hook| Some((hook, reader(reader_name(hook))?)));
    let made = known.map(|(config, reader)| {
        let state = State {
            stored_until: reader.dealt_with_until,
            reader,
            delivered: 0,
            failed_attempts: 0,
            given_up: 0,
            lost: 0,
            last_delivered: None,
            last_untold: None,
            failing_since: None,
            error: None,
        };
        Arc::new(Webhook { config: config.clone(), state: Mutex::new(state) })
    });
    made.collect()
}

/// Tells all of them, and the log, until the daemon stops.
pub(crate) fn start(core: &Arc<Core>, log: Option<EventReader>) -> JoinHandle<()> {
    let core = Arc::clone(core);
    tokio::spawn(async move {
        let mut workers = JoinSet::new();
        if let Some(reader) = log {
            workers.spawn(log_all(Arc::clone(&core), reader));
        }
        for hook in &core.webhooks {
            let (core, hook) = (Arc::clone(&core), Arc::clone(hook));
            workers.spawn(async move {
                tokio::select! {
                    () = hook.work(&core) => {}
                    // What is under way is delivered again after the next start.
                    () = core.stopping.cancelled() => {}
                }
                // What was taken a moment ago is not told again.
                if let Err(error) = hook.store(&core).await {
                    tracing::warn!(webhook = hook.name(), %error, "how far it was told is not stored");
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "somebody is told of no more events");
            }
        }
    })
}

/// How long to wait between attempts.
struct Backoff {
    first: Duration,
    next: Duration,
    most: Duration,
}

impl Backoff {
    fn new(config: &WebhookConfig) -> Self {
        let (first, most) =
            (Duration::from_millis(config.retry_first_ms), Duration::from_millis(config.retry_most_ms));
        Self { first, next: first, most }
    }

    fn reset(&mut self) {
        self.next = self.first;
    }

    /// The time to wait now; about twice as long the next time. Half of it is left to chance, so that many daemons do not come
    /// back at the same moment.
    fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = self.next.saturating_mul(2).min(self.most);
        let mut random = [0; 4];
        // Without random bytes they do come back at the same moment.
        let _ = fill_random(&mut random);
        let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
        full / 2 + (full / 2).mul_f64(share)
    }
}

impl Webhook {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// How it does.
    pub(crate) fn state(&self) -> State {
        self.state.lock().clone()
    }

    async fn work(&self, core: &Arc<Core>) {
        let mut sender = Sender::new(self.config.clone(), core.node.clone());
        let mut backoff = Backoff::new(&self.config);
        loop {
            if let Err(error) = self.pass(core, &mut sender, &mut backoff).await {
                tracing::warn!(webhook = self.name(), %error, "events are told later");
                tokio::time::sleep(DATABASE_AGAIN).await;
            }
        }
    }

    /// Deals with the next events, or waits for some.
    async fn pass(
        &self,
        core: &Arc<Core>,
        sender: &mut Sender,
        backoff: &mut Backoff,
    ) -> Result<(), ServiceError> {
        let since = self.state.lock().reader.dealt_with_until;
        let query = ListEvents { since: Some(since), max: Some(BATCH), wait_ms: Some(MAX_WAIT_MS) };
        let events = core.list_events(&query).await?.events;
        for event in events {
            self.note_gap_before(&event);
            if self.config.wants(&event.kind, event.severity) {
                self.deliver(core, sender, backoff, &event).await;
                self.store(core).await?;
            } else {
                self.state.lock().reader.dealt_with_until = event.id;
            }
        }
        self.store(core).await
    }

    /// Events have numbers without gaps: what is missing was forgotten.
    fn note_gap_before(&self, event: &Event) {
        let mut state = self.state.lock();
        let forgotten = event.id.saturating_sub(state.reader.dealt_with_until).saturating_sub(1);
        if forgotten > 0 {
            state.lost += forgotten;
            state.last_untold = Some(Timestamp::now());
            tracing::error!(
                webhook = self.name(),
                events = forgotten,
                "events were forgotten before they were told"
            );
        }
    }

    /// Stores the cursor, if it moved.
    async fn store(&self, core: &Arc<Core>) -> Result<(), ServiceError> {
        let reader = {
            let state = self.state.lock();
            if state.stored_until == state.reader.dealt_with_until {
                return Ok(());
            }
            state.reader.clone()
        };
        let until = reader.dealt_with_until;
        core.db.run(move |tx| reader.put(tx)).await?;
        self.state.lock().stored_until = until;
        Ok(())
    }

    /// Delivers an event, or gives it up.
    async fn deliver(&self, core: &Arc<Core>, sender: &mut Sender, backoff: &mut Backoff, event: &Event) {
        let body = match serde_json::to_vec(event) {
            Ok(body) => Bytes::from(body),
            Err(error) => return self.give_up(event, &error.to_string()),
        };
        let id = format!("{}-{}", core.cluster, event.id);
        let keep = SignedDuration::from_secs(i64::try_from(self.config.give_up_after_s).unwrap_or(i64::MAX));
        loop {
            let now = Timestamp::now();
            // Who fails is not asked for each of the old ones.
            if let Some(error) = self.failing()
                && now.duration_since(event.at) > keep
            {
                return self.give_up(event, &error);
            }
            let error = match sender.send(&id, body.clone(), now).await {
                Ok(()) => {
                    backoff.reset();
                    return self.took(event);
                }
                Err(error) => error,
            };
            if !error.is_retryable() {
                // It is there, and takes others.
                backoff.reset();
                {
                    let mut state = self.state.lock();
                    state.failed_attempts += 1;
                    self.answered(&mut state);
                }
                return self.give_up(event, &error.to_string());
            }
            self.failed(event, &error, now);
            let wait = backoff.wait().max(error.retry_after().unwrap_or_default().min(RETRY_AFTER_MOST));
            tokio::time::sleep(wait).await;
        }
    }

    fn failing(&self) -> Option<String> {
        self.state.lock().error.clone()
    }

    fn took(&self, event: &Event) {
        tracing::debug!(webhook = self.name(), event = event.id, "an event was told");
        let mut state = self.state.lock();
        state.delivered += 1;
        state.last_delivered = Some(Timestamp::now());
        self.answered(&mut state);
        state.reader.dealt_with_until = event.id;
    }

    /// It does not fail any more.
    fn answered(&self, state: &mut State) {
        state.error = None;
        if state.failing_since.take().is_some() {
            tracing::info!(webhook = self.name(), "the webhook answers again");
        }
    }

    fn failed(&self, event: &Event, error: &DeliveryError, now: Timestamp) {
        let mut state = self.state.lock();
        state.failed_attempts += 1;
        let (text, name) = (error.to_string(), self.name());
        // Said when it changes, not at each attempt.
        if state.error.as_ref() == Some(&text) {
            tracing::debug!(webhook = name, event = event.id, %error, "the webhook still takes no event");
        } else {
            tracing::warn!(webhook = name, event = event.id, %error, "the webhook takes no event: it is tried again");
        }
        state.failing_since.get_or_insert(now);
        state.error = Some(text);
    }

    fn give_up(&self, event: &Event, error: &str) {
        tracing::error!(
            webhook = self.name(),
            event = event.id,
            kind = event.kind,
            error,
            "an event is not told"
        );
        let mut state = self.state.lock();
        state.given_up += 1;
        state.last_untold = Some(Timestamp::now());
        state.reader.dealt_with_until = event.id;
    }

    /// How it does, for people; `tx` is asked for what waits.
    pub(crate) fn status(&self, tx: &rusqlite::Transaction<'_>) -> Result<WebhookStatus, DbError> {
        let state = self.state();
        let counts = count_events_after(tx, state.reader.dealt_with_until)?;
        let wanted = counts.iter().filter(|(kind, severity, _)| self.config.wants(kind, *severity));
        Ok(WebhookStatus {
            name: self.config.name.clone(),
            origin: self.config.url.origin(),
            waiting: wanted.map(|(_, _, count)| count).sum(),
            delivered: state.delivered,
            given_up: state.given_up,
            lost: state.lost,
            last_delivered: state.last_delivered,
            last_untold: state.last_untold,
            failing_since: state.failing_since,
            error: state.error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff { first: ms(100), next: ms(100), most: ms(500) };
        for full in [100, 200, 400, 500, 500] {
            let wait = backoff.wait();
            assert!(wait >= ms(full / 2) && wait <= ms(full), "{wait:?} of {full} ms");
        }
        let mut waits: Vec<_> = (0..20).map(|_| backoff.wait()).collect();
        waits.dedup();
        assert!(waits.len() > 1, "chance has no part: {waits:?}");
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
    }
}
