//! Rotation of the passphrase and the data key of a repository.

use crate::{
    credentials::Credentials,
    error::{ServiceError, spawned},
    repositories::{limits::PlannedBandwidth, opening::StoreKey, stores},
};
use blockd_api::{
    CredentialRef, ErrorCode, Secret, SecretRef,
    credentials::{CredentialRekeyed, RekeyCredential},
    tasks::TaskKind,
};
use blockd_catalog::CredentialRow;
use blockd_cloud::{DataKey, KdfParams, Rekey, Repository, WriteKey};
use blockd_store::{BlobStore, task_store};
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

impl Credentials {
    /// Rotates the passphrase, the data key of new backups, or both; with neither, finds data keys of other
    /// hosts.
    ///
    /// # Errors
    /// The passphrase opens no key slot, or the data key would change during a running backup.
    pub async fn rekey_credential(
        self: &Arc<Self>,
        wanted: &CredentialRef,
        request: RekeyCredential,
    ) -> Result<CredentialRekeyed, ServiceError> {
        let _admission = self.admission.lock().await;
        let row = self.repositories.credential(Some(wanted)).await?;
        let uuid = row.uuid;
        let is_backup = |kind, credential| kind == TaskKind::Backup && credential == uuid;
        let changes_write_key = request.new_data_key || request.accept_key.is_some();
        if changes_write_key {
            let tasks = self.tasks.unfinished_tasks().await?;
            if let Some(task) = tasks.into_iter().find(|task| is_backup(task.kind(), task.credential)) {
                let message =
                    format!("credential {} is used by backup task {}: wait for it to end", row.name, task.id);
                return Err(ServiceError::refused(ErrorCode::CredentialInUse, message));
            }
        }
        let (base, before, bandwidth) = self.store_to_rekey(&row, &request).await?;
        let passphrase = self.current_passphrase(&row, request.passphrase.as_ref()).await?;
        let new_passphrase = self.repositories.store_key(request.new_passphrase.as_ref()).await?;
        let rekey = Rekey {
            passphrase,
            new_passphrase: new_passphrase.text(),
            new_data_key: request.new_data_key,
            accept_key: request.accept_key,
            kdf: KdfParams::default(),
            known: row.known_keys(),
        };
        let (store, _) = task_store(Arc::clone(&base), self.host.settings.retry_policy());
        let (repository, done) = spawned(async move { blockd_cloud::rekey(store, &rekey).await }).await?;
        if changes_write_key {
            // Their objects are sealed with the previous key. Not earlier: the passphrase might have been
            // wrong.
            self.runner.abandon_matching(|task| is_backup(task.kind(), task.credential)).await?;
        }
        let keys = known_and_opened(&before, repository.keys());
        let lost = keys.len() - repository.keys().len();
        let known = repository.known_keys();
        let repository = Repository::from_saved_keys(base, keys, &known)?;
        let passphrase_from = match new_passphrase {
            // Only this process has the keys of missing slots.
            _ if lost > 0 => None,
            StoreKey::From(reference, _) => Some(reference),
            StoreKey::Value(_) => None,
            StoreKey::None => row.passphrase_from.clone(),
        };
        let data_keys = repository.keys().len() as u64;
        let write_key = known.write_key.unwrap_or(row.write_key);
        self.store_rekeyed(uuid, repository, bandwidth, write_key, passphrase_from).await?;
        let wants_reference = request.new_passphrase.is_some_and(|one| one.reference().is_some());
        if lost > 0 && (row.passphrase_from.is_some() || wants_reference) {
            let message = format!(
                "the passphrase is valid, but {lost} data keys of credential {} have no key slot in the store: all its data keys are stored sealed on this host",
                row.name
            );
            return Err(ServiceError::refused(ErrorCode::StoreFailed, message));
        }
        tracing::info!(credential = %uuid, name = %row.name, rewrapped = done.rewrapped, new_data_key = done.new_data_key, "repository keys rotated");
        Ok(CredentialRekeyed {
            credential_id: uuid,
            name: row.name,
            rewrapped: done.rewrapped as u64,
            foreign: done.foreign as u64,
            new_data_key: done.new_data_key,
            data_keys,
        })
    }

    /// Returns the store of a credential with the data keys that this process knows.
    async fn store_to_rekey(
        &self,
        row: &CredentialRow,
        request: &RekeyCredential,
    ) -> Result<(Arc<dyn BlobStore>, Vec<DataKey>, Arc<PlannedBandwidth>), ServiceError> {
        match self.repositories.opened_repository(row.uuid).await {
            Ok((before, bandwidth)) => Ok((Arc::clone(before.store()), before.keys().to_vec(), bandwidth)),
            // The reference may already return the new passphrase, or be gone.
            Err(_) if row.passphrase_from.is_some() && request.passphrase.is_some() => {
                let store = self.repositories.store_of(row).await?;
                // Keys that were opened since may exist in this process only.
                let opened = self.repositories.opened.lock().get(&row.uuid).cloned();
                Ok(match opened {
                    Some((opened, bandwidth)) => (store, opened.keys().to_vec(), bandwidth),
                    None => (store, Vec::new(), stores::bandwidth(&row.store)?),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the given passphrase, or the external one of a credential.
    async fn current_passphrase(
        &self,
        row: &CredentialRow,
        given: Option<&Secret>,
    ) -> Result<Zeroizing<String>, ServiceError> {
        Ok(match (given, &row.passphrase_from) {
            (Some(passphrase), _) => Zeroizing::new(passphrase.expose().to_owned()),
            (None, Some(reference)) => Zeroizing::new(
                self.repositories.resolve_again(Some(&row.name), reference).await?.expose().to_owned(),
            ),
            (None, None) => {
                let message = "give the current passphrase: it is not stored on this host";
                return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
            }
        })
    }

    /// Stores the keys of a repository, or the reference to their passphrase, and uses them from now on.
    async fn store_rekeyed(
        &self,
        uuid: Uuid,
        repository: Repository,
        bandwidth: Arc<PlannedBandwidth>,
        write_key: WriteKey,
        passphrase_from: Option<SecretRef>,
    ) -> Result<(), ServiceError> {
        let keys = self.seal_keys(uuid, repository.keys(), passphrase_from.is_some())?;
        let opened_with = match &passphrase_from {
            Some(reference) => {
                let now = self.references.resolve(reference).await;
                // If the reference is unavailable, its next use fails.
                Some((reference.clone(), now.map(|now| now.fingerprint).unwrap_or_default()))
            }
            None => None,
        };
        let store = move |tx: &rusqlite::Transaction<'_>| {
            CredentialRow::set_data_keys(tx, uuid, &keys, passphrase_from.as_ref(), write_key)
        };
        self.db.run(store).await?;
        self.repositories.note_key_slots(uuid, &repository).await;
        self.repositories.replace(uuid, repository, bandwidth, opened_with);
        Ok(())
    }
}

/// Returns the known keys, followed by newly opened ones. A known key is kept although its slot may be gone:
/// data sealed with it could not be read without it.
pub(crate) fn known_and_opened(known: &[DataKey], opened: &[DataKey]) -> Vec<DataKey> {
    // A repository has one mode: a key of the other one is not of this repository.
    let fits = |key: &&DataKey| opened.first().is_none_or(|first| first.mode() == key.mode());
    let mut keys: Vec<DataKey> = known.iter().filter(fits).cloned().collect();
    for key in opened {
        if keys.iter().all(|known| known.key_id() != key.key_id()) {
            keys.push(key.clone());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(mode: u8, number: u8) -> DataKey {
        let mut bytes = vec![1, mode];
        bytes.extend([number; 48]);
        DataKey::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn known_keys_take_precedence_over_opened_slots() {
        let ids = |keys: Vec<DataKey>| keys.iter().map(|key| key.key_id().as_bytes()[0]).collect::<Vec<_>>();
        let opened = [key(1, 9), key(1, 2)];
        let before = [key(1, 2), key(1, 1), key(0, 5)];
        assert_eq!(ids(known_and_opened(&before, &opened)), [2, 1, 9]);
        assert_eq!(ids(known_and_opened(&[], &opened)), [9, 2]);
    }
}
