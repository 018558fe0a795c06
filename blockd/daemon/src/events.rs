//! Events: what happened that people should know of. They are stored in the transaction of what they tell of.

use crate::{
    core::Core,
    db::{DbError, NewEvent, events_after, newest_events},
    error::ServiceError,
    registry::EntryState,
};
use blockd_api::{
    MAX_WAIT_MS,
    events::{EventList, ListEvents, MAX_EVENTS, Severity},
};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashSet, time::Duration};
use tokio::sync::watch;

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

impl Core {
    /// What happened.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_events(&self, query: &ListEvents) -> Result<EventList, ServiceError> {
        let max = query.max.unwrap_or(DEFAULT_EVENTS).min(MAX_EVENTS);
        let patience = Duration::from_millis(query.wait_ms.unwrap_or(0).min(MAX_WAIT_MS));
        let until = tokio::time::Instant::now() + patience;
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
