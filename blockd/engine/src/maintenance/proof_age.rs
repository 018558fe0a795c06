//! Age of the last proofs: backups that no verification has read for too long are a problem.

use crate::{error::ServiceError, health, maintenance::Maintenance};
use blockd_api::events::{EventKind, Severity};
use blockd_catalog::{CredentialRow, DbError, NewEvent, ProofAge};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

impl Maintenance {
    /// Compares the age of the last proof of each volume at each location with `proof_max_age_days`. An
    /// exceeded one is a problem until the next proof, and one event.
    ///
    /// # Errors
    /// The database fails.
    pub async fn check_proof_ages(&self, now: Timestamp) -> Result<(), ServiceError> {
        let days = self.host.settings.proof_max_age_days;
        let max_age = SignedDuration::from_hours(24 * i64::from(days));
        let volumes: BTreeSet<_> = self.registry.all().iter().map(|entry| entry.id).collect();
        let cluster = self.host.cluster;
        let read = move |tx: &rusqlite::Transaction<'_>| -> Result<_, DbError> {
            let mut exceeded = Vec::new();
            for age in ProofAge::all(tx, cluster, &volumes, now)? {
                let limit = age.since + max_age;
                if days > 0 && limit < now {
                    let is_reported = age.is_reported(tx, limit, now)?;
                    exceeded.push((age, is_reported));
                }
            }
            Ok((exceeded, CredentialRow::all(tx)?))
        };
        let (exceeded, credentials) = self.db.run(read).await?;
        let mut noted = BTreeSet::new();
        for (age, is_reported) in exceeded {
            let volume = self.registry.by_id(age.volume).map(|entry| entry.name.clone());
            let location = credentials.iter().find(|row| row.uuid == age.credential);
            let (Some(volume), Some(location)) = (volume, location) else { continue };
            let location = location.name.to_string();
            let since = blockd_api::format_time(age.since);
            let what = match age.proven {
                Some(_) => format!("since {since}"),
                None => format!("yet; the first one is of {since}"),
            };
            let cause = format!(
                "no backup of volume {volume} at {location} was verified {what} (proof_max_age_days is {days})"
            );
            let action = format!("blockctl cloudsnap verify {} --cred-id {location}", age.newest);
            if !is_reported {
                let message = format!("{cause}; {action}");
                let event = NewEvent {
                    credential_id: Some(age.credential),
                    credential: Some(location),
                    cloudsnap: Some(age.newest),
                    ..NewEvent::new(now, Severity::Warning, EventKind::ProofTooOld, message)
                };
                let event = event.of_volume(age.volume, Some(volume));
                self.db.run(move |tx| event.insert(tx)).await?;
                self.events.wake();
            }
            let of = format!("{} {}", age.credential, age.volume);
            self.health.note(health::PROOF, &of, cause, action);
            noted.insert(of);
        }
        self.health.retain(health::PROOF, |of| noted.contains(of));
        Ok(())
    }
}
