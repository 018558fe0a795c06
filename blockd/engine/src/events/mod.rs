//! Events. Each is stored in the transaction of the change that it reports. What is no change of the database
//! (failed volumes, stopped retention, free space) is reported until its event is stored.

pub mod webhook_config;
pub mod webhooks;

use crate::{error::ServiceError, host::Host, volumes::registry::Registry};
use blockd_api::{
    List, MAX_WAIT_MILLIS,
    events::{Event, EventKind, ListEvents, MAX_EVENTS, Severity},
};
use blockd_catalog::{Db, DbError, EventReader, NewEvent, events_after, newest_events};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Target of the log lines of events.
pub const EVENT_TARGET: &str = "blockd::event";
/// Name of the log among the event readers.
pub const LOG_READER: &str = "journal";
/// Maximum number of events logged per database query.
const LOG_BATCH: u32 = 100;
/// Delay before a failed database query is repeated.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Default number of events in a reply.
const DEFAULT_EVENTS: u32 = 100;

/// Waiters for events, and the volumes already reported as degraded.
#[derive(Debug)]
pub struct EventLog {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) stored: watch::Sender<u64>,
    pub(crate) degraded: Mutex<HashSet<VolumeId>>,
}

impl EventLog {
    /// Wakes the waiters after events may have been stored.
    pub fn wake(&self) {
        self.stored.send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// Writes an event to the log, with a field for each of its attributes.
pub fn log_event(event: &Event) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: EVENT_TARGET,
                event = event.kind,
                message_id = EventKind::of(&event.kind).map(|kind| tracing::field::display(kind.message_id().simple())),
                volume = event.volume_name.as_ref().map(tracing::field::display),
                credential = event.credential_name.as_deref(),
                task = event.task_id.map(tracing::field::display),
                snapshot = event.cloud_snapshot_id.as_deref(),
                event_id = event.event_id,
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

/// Logs every event until the daemon stops: once each, or twice if the daemon is killed in between.
pub async fn log_all(events: Arc<EventLog>, mut reader: EventReader) {
    let work = async {
        loop {
            if let Err(error) = log_next(&events, &mut reader).await {
                tracing::warn!(%error, "logging events failed; retrying");
                tokio::time::sleep(DATABASE_RETRY_DELAY).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = events.host.stopping.cancelled() => {}
    }
}

/// Logs the next events, or waits for some.
async fn log_next(log: &EventLog, reader: &mut EventReader) -> Result<(), ServiceError> {
    let since = reader.processed_until;
    let query = ListEvents { since: Some(since), max: Some(LOG_BATCH), wait_millis: Some(MAX_WAIT_MILLIS) };
    let events = log.list_events(&query).await?.items;
    events.iter().for_each(log_event);
    if let Some(last) = events.last() {
        reader.processed_until = last.event_id;
        let stored = reader.clone();
        log.db.run(move |tx| stored.put(tx)).await?;
    }
    Ok(())
}

impl EventLog {
    /// Lists events, optionally waiting for new ones.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_events(&self, query: &ListEvents) -> Result<List<Event>, ServiceError> {
        let max = query.max.unwrap_or(DEFAULT_EVENTS).min(MAX_EVENTS);
        let time_limit = Duration::from_millis(query.wait_millis.unwrap_or(0).min(MAX_WAIT_MILLIS));
        let until = tokio::time::Instant::now() + time_limit;
        let mut stored = self.stored.subscribe();
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
                let next = events.last().map(|event| event.event_id).or(query.since);
                return Ok(List { items: events, next });
            }
            tokio::select! {
                changed = stored.changed() => if changed.is_err() { return Ok(List { items: Vec::new(), next: query.since }) },
                () = tokio::time::sleep_until(until) => {}
                () = self.host.stopping.cancelled() => return Ok(List { items: Vec::new(), next: query.since }),
            }
        }
    }

    /// Raises an event for each volume that has failed since the last call.
    pub async fn report_degraded_volumes(&self, now: Timestamp) -> Result<(), ServiceError> {
        let (mut failed, mut events) = (HashSet::new(), Vec::new());
        let reported = self.degraded.lock().clone();
        for entry in self.registry.all() {
            let view = entry.view();
            let Some(reason) = view.failure() else { continue };
            failed.insert(entry.id);
            if !reported.contains(&entry.id) {
                let message = format!("volume {} does not accept requests: {reason}", entry.name);
                let event = NewEvent::new(now, Severity::Error, EventKind::VolumeDegraded, message);
                events.push(event.of_volume(entry.id, Some(entry.name.clone())));
            }
        }
        if !events.is_empty() {
            self.db.run(move |tx| events.iter().try_for_each(|event| event.insert(tx))).await?;
            self.wake();
        }
        *self.degraded.lock() = failed;
        Ok(())
    }
}
