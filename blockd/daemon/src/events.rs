//! Events: what happened that people should know of. They are stored in the transaction of what they tell of.

use crate::{
    core::Core,
    db::{DbError, EventReader, NewEvent, events_after, newest_events},
    error::ServiceError,
    logging::EVENT_TARGET,
    registry::EntryState,
};
use blockd_api::{
    MAX_WAIT_MS,
    events::{Event, EventKind, EventList, ListEvents, MAX_EVENTS, Severity},
};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::watch;

/// The name of the log among the readers of events.
pub(crate) const LOG_READER: &str = "journal";
/// Events that the log is told of at once.
const LOG_BATCH: u32 = 100;
/// How long to wait before the database is asked once more, if it failed.
const DATABASE_AGAIN: Duration = Duration::from_secs(5);
/// Events that a reply has when nothing else is asked for.
const DEFAULT_EVENTS: u32 = 100;

/// Who waits for events, and what was told already.
#[derive(Debug)]
pub(crate) struct Events {
    stored: watch::Sender<u64>,
    degraded: Mutex<HashSet<VolumeId>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { stored: watch::channel(0).0, degraded: Mutex::default() }
    }
}

impl Events {
    /// Events may have been stored: whoever waits for some looks again.
    pub(crate) fn wake(&self) {
        self.stored.send_modify(|looks| *looks = looks.wrapping_add(1));
    }
}

/// Tells the log of an event, with a field for everything that is known of it.
pub(crate) fn log_event(event: &Event) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: EVENT_TARGET,
                event = event.kind,
                message_id = EventKind::of(&event.kind).map(|kind| tracing::field::display(kind.message_id.simple())),
                volume = event.volume.as_ref().map(tracing::field::display),
                credential = event.credential.as_deref(),
                task = event.task.map(tracing::field::display),
                snapshot = event.cloudsnap.as_deref(),
                event_id = event.id,
                "{}",
                event.message
            )
        };
    }
    match event.severity {
        Severity::Info => line!(info),
        Severity::Warning => line!(warn),
        Severity::Error => line!(error),
    }
}

/// Tells the log of every event until the daemon stops, each once; or again, if the daemon was killed in
/// between.
pub(crate) async fn log_all(core: Arc<Core>, mut reader: EventReader) {
    let work = async {
        loop {
            if let Err(error) = log_next(&core, &mut reader).await {
                tracing::warn!(%error, "the log is told of events later");
                tokio::time::sleep(DATABASE_AGAIN).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = core.stopping.cancelled() => {}
    }
}

/// Tells the log of the next events, or waits for some.
async fn log_next(core: &Core, reader: &mut EventReader) -> Result<(), ServiceError> {
    let since = reader.dealt_with_until;
    let query = ListEvents { since: Some(since), max: Some(LOG_BATCH), wait_ms: Some(MAX_WAIT_MS) };
    let events = core.list_events(&query).await?.events;
    events.iter().for_each(log_event);
    if let Some(last) = events.last() {
        reader.dealt_with_until = last.id;
        let stored = reader.clone();
        core.db.run(move |tx| stored.put(tx)).await?;
    }
    Ok(())
}

impl Core {
    /// What happened.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_events(&self, query: &ListEvents) -> Result<EventList, ServiceError> {
        let max = query.max.unwrap_or(DEFAULT_EVENTS).min(MAX_EVENTS);
        let time_limit = Duration::from_millis(query.wait_ms.unwrap_or(0).min(MAX_WAIT_MS));
        let until = tokio::time::Instant::now() + time_limit;
        let mut stored = self.events.stored.subscribe();
        loop {
            stored.mark_unchanged();
            let since = query.since;
            let events = self.db.run(move |tx| -> Result<_, DbError> {
                match since {
                    Some(since) => events_after(tx, since, max),
                    None => newest_events(tx, max),
                }
            });
            let events = events.await?;
            if !events.is_empty() || query.since.is_none() || tokio::time::Instant::now() >= until {
                return Ok(EventList { events });
            }
            tokio::select! {
                changed = stored.changed() => if changed.is_err() { return Ok(EventList::default()) },
                () = tokio::time::sleep_until(until) => {}
                () = self.stopping.cancelled() => return Ok(EventList::default()),
            }
        }
    }

    /// Tells of volumes that stopped to serve requests since the last look.
    pub(crate) async fn tell_of_degraded_volumes(&self, now: Timestamp) -> Result<(), ServiceError> {
        let mut events = Vec::new();
        for entry in self.registry.all() {
            let view = entry.view();
            let reason = match view.state {
                EntryState::Failed(reason) => Some(reason),
                _ => view.fault,
            };
            let mut degraded = self.events.degraded.lock();
            let Some(reason) = reason else {
                degraded.remove(&entry.id);
                continue;
            };
            if degraded.insert(entry.id) {
                let message = format!("volume {} takes no more requests: {reason}", entry.name);
                let event = NewEvent::new(now, Severity::Error, "volume-degraded", message);
                events.push(NewEvent { volume: Some(entry.name.clone()), ..event });
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        let stored = self.db.run(move |tx| events.iter().try_for_each(|event| event.insert(tx))).await;
        self.events.wake();
        Ok(stored?)
    }
}
