//! Reports and acknowledgements of discarded writes.

use crate::{
    health,
    volumes::{
        Volumes,
        discarded::{describe, hint},
        registry::{EntryState, VolumeEntry},
    },
};
use blockd_api::events::{EventKind, Severity};
use blockd_catalog::NewEvent;
use blockd_volume::{Volume, VolumeError};
use jiff::Timestamp;

impl Volumes {
    /// Reports each unacknowledged loss of an open volume once: in the log, as an event, and in `status`.
    pub async fn report_discarded_writes(&self) {
        let mut events = Vec::new();
        for entry in self.registry.all() {
            let EntryState::Up(volume) = entry.view().state else { continue };
            let Some(loss) = volume.discarded_writes() else { continue };
            if !self.reported_losses.lock().insert(entry.id) {
                continue;
            }
            let message = format!("volume {}: {}", entry.name, describe(&loss));
            tracing::error!(volume = %entry.id, name = %entry.name, "{message}");
            self.health.note(health::DISCARDED_WRITES, &entry.id.to_string(), message.clone(), hint(&entry));
            let event = NewEvent::new(Timestamp::now(), Severity::Error, EventKind::WritesDiscarded, message);
            events.push(event.of_volume(entry.id, Some(entry.name.clone())));
        }
        if events.is_empty() {
            return;
        }
        let stored = self.db.run(move |tx| events.iter().try_for_each(|event| event.insert(tx))).await;
        if let Err(error) = stored {
            tracing::warn!(%error, "storing the events of discarded writes failed");
        }
        self.events.wake();
    }

    /// Deletes the record of a volume's loss.
    pub fn acknowledge_discarded_writes(
        &self,
        entry: &VolumeEntry,
        volume: &Volume,
    ) -> Result<(), VolumeError> {
        volume.acknowledge_discarded_writes()?;
        self.health.clear(health::DISCARDED_WRITES, &entry.id.to_string());
        tracing::info!(volume = %entry.id, name = %entry.name, "discarded writes acknowledged");
        Ok(())
    }
}
