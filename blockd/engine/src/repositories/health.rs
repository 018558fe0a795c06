//! Problems of credentials: secrets that cannot be unsealed, unmounted locations and damaged key slots.

use crate::{
    error::ServiceError,
    health::{CREDENTIAL, KEY_SLOT, LOCATION},
    repositories::{Repositories, opening::cannot_be_opened},
};
use blockd_api::CredentialRef;
use blockd_catalog::CredentialRow;
use blockd_cloud::{CloudError, SlotFinding};
use uuid::Uuid;

impl Repositories {
    /// Records a problem for each credential whose secrets cannot be unsealed: its backups will fail.
    pub async fn check_credentials(&self) -> Result<(), ServiceError> {
        let rows = self.credential_rows().await?;
        rows.iter().for_each(|row| self.check_credential(row));
        let is_there = |of: &String| rows.iter().any(|row| row.uuid.to_string() == *of);
        self.health.problems.lock().retain(|(kind, of), _| *kind != CREDENTIAL || is_there(of));
        Ok(())
    }

    fn check_credential(&self, row: &CredentialRow) {
        let of = row.uuid.to_string();
        match cannot_be_opened(&self.secrets, row) {
            None => drop(self.health.clear(CREDENTIAL, &of)),
            Some(error) => {
                let what = format!("credential {} cannot be used: {error}", row.name);
                let todo = format!(
                    "restore the key and restart blockd, or run blockctl credentials update {}",
                    row.name
                );
                if self.health.note(CREDENTIAL, &of, what, todo) {
                    tracing::error!(credential = %row.name, %error, "unsealing the secrets of a credential failed: its backups fail");
                }
            }
        }
    }

    /// Records a problem if a store is not that of its credential, or ends it after a successful proof.
    pub(crate) async fn note_location(&self, uuid: Uuid, proven: &Result<(), CloudError>) {
        let of = uuid.to_string();
        match proven {
            Ok(()) => drop(self.health.clear(LOCATION, &of)),
            Err(error @ CloudError::KeySlotMissing { .. }) => {
                let Ok(row) = self.credential(Some(&CredentialRef::Id(uuid))).await else { return };
                let what = format!("backup location {} cannot be used: {error}", row.name);
                let todo = format!("mount it, then run blockctl credentials validate {}", row.name);
                self.health.note(LOCATION, &of, what, todo);
            }
            Err(_) => {}
        }
    }

    /// Records a problem if a requested check of a location failed. A successful check or backup ends it, a
    /// mere proof does not: the store may refuse writes.
    pub(crate) fn note_check(&self, row: &CredentialRow, failure: Option<&ServiceError>) {
        // The problem of another store says more.
        let Some(error) = failure.filter(|_| !self.is_location_in_doubt(row.uuid)) else {
            return self.end_failed_check(row.uuid);
        };
        let what = format!("the check of backup location {} failed: {error}", row.name);
        let todo = format!("remove the cause, then run blockctl credentials validate {}", row.name);
        self.health.note(LOCATION, &failed_check(row.uuid), what, todo);
    }

    /// Ends the problem of a failed check.
    pub(crate) fn end_failed_check(&self, uuid: Uuid) {
        self.health.clear(LOCATION, &failed_check(uuid));
    }

    /// Returns true if the last proof found another store.
    pub(crate) fn is_location_in_doubt(&self, uuid: Uuid) -> bool {
        self.health.has(LOCATION, &uuid.to_string())
    }

    /// Records a key slot that was not repaired; returns true if the problem is new.
    pub(crate) fn note_damaged_slot(&self, row: &CredentialRow, found: &SlotFinding) -> bool {
        let what = format!("key slot of credential {}: {found}", row.name);
        let todo = format!(
            "remove the cause, then run blockctl credentials validate {}: it repairs and checks all key slots",
            row.name
        );
        self.health.note(KEY_SLOT, &slot_problem(row.uuid, &found.object), what, todo)
    }

    /// Ends the problems of key slots that a check of all copies did not find again.
    pub(crate) fn end_slot_problems(&self, uuid: Uuid, still_damaged: &[SlotFinding]) {
        let damaged = still_damaged.iter().filter(|found| !found.is_repaired());
        let damaged: Vec<String> = damaged.map(|found| slot_problem(uuid, &found.object)).collect();
        let prefix = slot_problem(uuid, "");
        let stays =
            |kind: &str, of: &String| kind != KEY_SLOT || !of.starts_with(&prefix) || damaged.contains(of);
        self.health.problems.lock().retain(|(kind, of), _| stays(kind, of));
    }
}

/// Returns the key of the problem of a failed check.
fn failed_check(uuid: Uuid) -> String {
    format!("{uuid} check")
}

/// Returns the key of the problem of one copy of a slot.
fn slot_problem(uuid: Uuid, object: &str) -> String {
    format!("{uuid} {object}")
}
