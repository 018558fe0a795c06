//! Credential updates: new store credentials, and a new source of the passphrase. The backup location stays
//! the same.

use crate::{
    credentials::{Credentials, rekey::known_and_opened},
    error::ServiceError,
    repositories::{
        limits::{keep, limits_of},
        opening::{StoreKey, cannot_be_opened, decode_keys, not_opened, open_existing},
        provider_update::{hint, renew},
        stores,
    },
};
use blockd_api::{
    ApiError, CredentialRef, ErrorCode, SecretRef,
    credential_update::UpdateCredential,
    credentials::{Credential, SecretChange},
};
use blockd_catalog::CredentialRow;
use blockd_cloud::{CloudError, DataKey, KnownKeys, Repository};
use blockd_secrets::{Fingerprint, Purpose};
use blockd_store::{BlobStore, ReloadStore, probe, task_store};
use std::sync::Arc;

/// Repository keys, and the new source of their passphrase.
struct Passphrase {
    keys: Vec<DataKey>,
    known: KnownKeys,
    /// Reference to the passphrase and its fingerprint; `None` if the keys are stored sealed.
    from: Option<(SecretRef, Fingerprint)>,
}

impl Credentials {
    /// Changes the labels of a credential, or its access, which is first verified to open the same
    /// repository.
    ///
    /// Running operations continue and use the new access from their next request on.
    ///
    /// # Errors
    /// The new access does not work, or leads to another repository; nothing was changed then.
    pub async fn update_credential(
        self: &Arc<Self>,
        wanted: &CredentialRef,
        mut request: UpdateCredential,
    ) -> Result<Credential, ServiceError> {
        let Some(labels) = request.labels.take() else { return self.update_access(wanted, request).await };
        let updated = match request.is_empty() {
            true => self.inspect_credential(wanted).await?,
            false => self.update_access(wanted, request).await?,
        };
        let (uuid, stored) = (updated.credential_id, labels.clone());
        self.db.run(move |tx| CredentialRow::set_labels(tx, uuid, &stored)).await?;
        Ok(Credential { labels, ..updated })
    }

    async fn update_access(
        self: &Arc<Self>,
        wanted: &CredentialRef,
        request: UpdateCredential,
    ) -> Result<Credential, ServiceError> {
        let is_lost = |row: &CredentialRow| cannot_be_opened(&self.secrets, row).is_some();
        // The keys of an unencrypted repository can be read from the store again without any input.
        if request.is_empty()
            && !self
                .repositories
                .credential(Some(wanted))
                .await
                .is_ok_and(|row| !row.encrypted && is_lost(&row))
        {
            return stores::invalid("no change requested: give at least one flag");
        }
        // Keys that a concurrent request adds must not get lost. Without a passphrase, the lock is not held
        // during store requests.
        let mut admission = match request.encryption_passphrase {
            Some(_) => Some(self.admission.lock().await),
            None => None,
        };
        let before = self.repositories.credential(Some(wanted)).await?;
        let mut row = before.clone();
        let change = renew(&mut row.store, &request)?;
        let key = Arc::new(match change {
            SecretChange::Stays => self.repositories.store_key_of(&before).await?,
            SecretChange::Dropped => StoreKey::None,
            SecretChange::Replaced => self.repositories.store_key(row.store.config.secret()).await?,
        });
        let passphrase = self.repositories.store_key(request.encryption_passphrase.as_ref()).await?;
        let proven = self.prove_access(&before, &mut row, key, passphrase).await;
        let (client, passphrase) = proven.map_err(|error| {
            let kind = before.store.config.kind();
            let mut error = explained(error, &before).with_hint(|code, _| hint(kind, code)).to_api();
            error.message = format!("{}; nothing was changed", error.message);
            ServiceError::Refused(error)
        })?;

        if admission.is_none() {
            admission = Some(self.admission.lock().await);
        }
        let now = self.unchanged_since(&before).await?;
        let is_other_store = row.store != before.store || change != SecretChange::Stays;
        keep(&mut row.store.connection, limits_of(&now.store.connection));
        self.seal_access(&now, &mut row, change, passphrase.as_ref()).await?;
        let stored = row.clone();
        self.db.run(move |tx| stored.set_access(tx)).await?;
        if is_other_store {
            self.repositories.renew_store(row.uuid, &client);
        }
        if let Some(passphrase) = passphrase {
            self.replace_keys(&row, passphrase).await?;
        }
        drop(admission);
        if let Err(error) = self.repositories.check_credentials().await {
            tracing::warn!(%error, "checking the secrets of all credentials failed");
        }
        self.repositories.forget_unneeded_secrets().await;
        tracing::info!(
            credential = %row.uuid,
            name = %row.name,
            store = is_other_store,
            store_key = change != SecretChange::Stays,
            passphrase = request.encryption_passphrase.is_some(),
            "credential updated"
        );
        self.described(&row).await
    }

    /// Returns the stored row of a credential.
    ///
    /// # Errors
    /// Its access was changed concurrently.
    async fn unchanged_since(&self, before: &CredentialRow) -> Result<CredentialRow, ServiceError> {
        let now = self.repositories.credential(Some(&CredentialRef::Id(before.uuid))).await?;
        if now.is_opened_as(before) {
            return Ok(now);
        }
        let message = format!(
            "credential {} was changed concurrently: check it (blockctl credentials inspect), and try again",
            now.name
        );
        Err(ServiceError::refused(ErrorCode::CredentialInUse, message))
    }

    /// Proves that new access opens the repository of a credential, and probes the store.
    async fn prove_access(
        &self,
        before: &CredentialRow,
        row: &mut CredentialRow,
        key: Arc<StoreKey>,
        passphrase: StoreKey,
    ) -> Result<(Arc<ReloadStore>, Option<Passphrase>), ServiceError> {
        let client = self.repositories.client_of(row.store.clone(), key).await?;
        let (store, _) = task_store(client.clone(), self.host.settings.verify_policy());
        let passphrase = self.prove_same(before, passphrase, Arc::clone(&store)).await?;
        row.capabilities = probe(store.as_ref()).await?;
        Ok((client, passphrase))
    }

    /// Seals the new secrets of a credential, whose stored row is `now`.
    async fn seal_access(
        &self,
        now: &CredentialRow,
        row: &mut CredentialRow,
        change: SecretChange,
        passphrase: Option<&Passphrase>,
    ) -> Result<(), ServiceError> {
        // An update that replaces all secrets needs no old key; a lost sealing key cannot open those of other
        // credentials either.
        let has_old_secret = change == SecretChange::Stays && now.store_secret.is_some();
        let replaces_all_secrets = passphrase.is_some() && !has_old_secret;
        if !replaces_all_secrets
            && self.repositories.credential_rows().await?.iter().any(CredentialRow::has_sealed)
        {
            self.secrets.must_not_be_new()?;
        }
        if change != SecretChange::Stays {
            row.store_secret = self.seal_store_secret(row.uuid, &mut row.store)?;
        }
        if let Some(Passphrase { keys, from, .. }) = passphrase {
            row.passphrase_from = from.as_ref().map(|(reference, _)| reference.clone());
            row.data_keys = self.seal_keys(row.uuid, keys, from.is_some())?;
        }
        Ok(())
    }

    /// Uses other keys for the repository of a credential from now on.
    async fn replace_keys(&self, row: &CredentialRow, passphrase: Passphrase) -> Result<(), ServiceError> {
        let Passphrase { keys, known, from } = passphrase;
        let opened = self.repositories.opened.lock().get(&row.uuid).cloned();
        let (store, bandwidth) = match opened {
            Some((opened, bandwidth)) => (Arc::clone(opened.store()), bandwidth),
            None => (self.repositories.store_of(row).await?, stores::bandwidth(&row.store)?),
        };
        let repository = Repository::from_saved_keys(store, keys, &known)?;
        self.repositories.replace(row.uuid, repository, bandwidth, from);
        Ok(())
    }

    /// Proves that a store holds the key slots of a credential's repository and, if a passphrase is given,
    /// that it opens them.
    async fn prove_same(
        &self,
        row: &CredentialRow,
        passphrase: StoreKey,
        store: Arc<dyn BlobStore>,
    ) -> Result<Option<Passphrase>, ServiceError> {
        let opened = self.repositories.opened.lock().get(&row.uuid).map(|(opened, _)| opened.keys().to_vec());
        let known = match (opened, &row.passphrase_from) {
            (Some(keys), _) => Some(keys),
            (None, None) => {
                match (self.secrets.open(row.uuid, Purpose::DataKeys, &row.data_keys), &passphrase) {
                    (Ok(keys), _) => Some(decode_keys(&keys)?),
                    // The keys are in the store, too, where the passphrase opens them.
                    (Err(_), StoreKey::Value(_) | StoreKey::From(..)) => None,
                    (Err(_), StoreKey::None) if !row.encrypted => {
                        let opened = open_existing(store, None, row.known_keys()).await?;
                        let (keys, known) = (opened.keys().to_vec(), opened.known_keys());
                        return Ok(Some(Passphrase { keys, known, from: None }));
                    }
                    (Err(error), StoreKey::None) => return Err(not_opened(row, &error)),
                }
            }
            (None, Some(_)) => None,
        };
        if let Some(keys) = &known {
            let opened = Repository::from_saved_keys(Arc::clone(&store), keys.clone(), &row.known_keys())?;
            let proven = opened.prove_key_slot().await;
            self.repositories.note_key_slots(row.uuid, &opened).await;
            proven?;
        }
        let from = passphrase.reference();
        let Some(text) = passphrase.text() else {
            // Only the passphrase of the reference can open the repository.
            if let (None, Some(reference)) = (known, &row.passphrase_from) {
                let resolved = self.repositories.resolve_again(Some(&row.name), reference).await?;
                let text = resolved.expose().to_owned().into();
                open_existing(store, Some(text), row.known_keys()).await?;
            }
            return Ok(None);
        };
        let opened = open_existing(store, Some(text), row.known_keys()).await?;
        self.repositories.note_key_slots(row.uuid, &opened).await;
        let all = known_and_opened(known.as_deref().unwrap_or_default(), opened.keys());
        let lost = all.len() - opened.keys().len();
        if lost > 0 && from.is_some() {
            let message = format!(
                "{lost} data keys of credential {} exist on this host only, and no passphrase opens them: they cannot be kept in an external secret",
                row.name
            );
            return Err(ServiceError::refused(ErrorCode::WrongPassphrase, message));
        }
        Ok(Some(Passphrase { keys: all, known: opened.known_keys(), from }))
    }
}

/// Explains, for a credential update, an error that means another store or another passphrase.
fn explained(error: ServiceError, row: &CredentialRow) -> ServiceError {
    let ServiceError::Cloud(cloud) = &error else { return error };
    match &**cloud {
        CloudError::WrongPassphrase { store, .. } => {
            let message = format!("the passphrase does not open the repository at {store}");
            let rekey = format!("`blockctl credentials rekey {}` sets another one", row.name);
            let error = ApiError::new(ErrorCode::WrongPassphrase, message).with_hint(rekey);
            ServiceError::Refused(error.with_settings(&["encryption-passphrase"]))
        }
        CloudError::KeySlotMissing { store, key } => {
            let message = format!(
                "{store} with these settings does not hold the repository of credential {}: {key} is missing; another backup location needs its own credential (blockctl credentials create)",
                row.name
            );
            ServiceError::refused(ErrorCode::StoreFailed, message)
        }
        _ => error,
    }
}
