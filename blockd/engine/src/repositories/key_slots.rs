//! Key slots: events about repaired and damaged ones and about refused write keys, and the local copies.

use crate::{error::ServiceError, repositories::Repositories};
use blockd_api::{
    CredentialRef,
    events::{EventKind, Severity},
};
use blockd_catalog::{CredentialRow, DbError, NewEvent};
use blockd_cloud::{Repository, SlotFinding};
use jiff::Timestamp;
use uuid::Uuid;

impl Repositories {
    /// Raises an event for each damaged key slot, and stores the repository's slots for the next repair. A
    /// failure is only logged: the store has the slots as well.
    pub async fn note_key_slots(&self, uuid: Uuid, repository: &Repository) {
        if let Err(error) = self.store_key_slots(uuid, repository).await {
            tracing::warn!(credential = %uuid, %error, "storing the key slots failed");
        }
    }

    async fn store_key_slots(&self, uuid: Uuid, repository: &Repository) -> Result<(), ServiceError> {
        let row = self.credential(Some(&CredentialRef::Id(uuid))).await?;
        let now = Timestamp::now();
        let findings = repository.take_slot_findings();
        let mut known = repository.known_keys();
        // A repository opened for a single lookup may know fewer.
        for slot in row.known_keys().slots {
            known.remember_missing(slot);
        }
        let slots = known.encode_slots();
        // An unrepaired slot is found again by each proof: one event until it is intact.
        let news = findings.iter().filter(|found| found.is_repaired() || self.note_damaged_slot(&row, found));
        let mut events: Vec<NewEvent> = news.map(|found| event_of(found, &row, now)).collect();
        events.extend(self.refusal(repository, &row, now));
        if events.is_empty() && slots == row.key_slots {
            return Ok(());
        }
        let stored = self.db.run(move |tx| -> Result<(), DbError> {
            CredentialRow::set_key_slots(tx, uuid, &slots)?;
            events.iter().try_for_each(|event| event.insert(tx))
        });
        stored.await?;
        self.events.wake();
        Ok(())
    }

    /// Returns the event that writes to a repository are refused, once for each reason.
    fn refusal(&self, repository: &Repository, row: &CredentialRow, now: Timestamp) -> Option<NewEvent> {
        let mut refused = self.refused.lock();
        let Err(error) = repository.check_writable() else {
            refused.remove(&row.uuid);
            return None;
        };
        let why = error.to_string();
        if refused.get(&row.uuid) == Some(&why) {
            return None;
        }
        let message = format!("backups to credential {} are refused: {why}", row.name);
        refused.insert(row.uuid, why);
        let event = NewEvent::new(now, Severity::Error, EventKind::WriteKeyRefused, message);
        Some(NewEvent { credential_id: Some(row.uuid), credential: Some(row.name.to_string()), ..event })
    }
}

fn event_of(found: &SlotFinding, row: &CredentialRow, now: Timestamp) -> NewEvent {
    let severity = if found.is_repaired() { Severity::Warning } else { Severity::Error };
    let message = format!("key slot of credential {}: {found}", row.name);
    let event = NewEvent::new(now, severity, EventKind::KeySlotDamaged, message);
    NewEvent { credential_id: Some(row.uuid), credential: Some(row.name.to_string()), ..event }
}
