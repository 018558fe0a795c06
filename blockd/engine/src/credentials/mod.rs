//! Credential requests: create, list, inspect, validate, limit and delete.

mod rekey;
mod update;

use crate::{
    error::{ServiceError, spawned},
    health::{self, ComponentHealth},
    host::{Admission, Host},
    metrics::Meters,
    readers::SnapshotReaders,
    repositories::{
        Repositories,
        limits::{LimitPlan, keep},
        opening::{StoreKey, encode_keys, open_store},
        preflight::observed,
        references::references_of,
        stores,
    },
    restore::lazy::LazyVolumes,
    schedules::requests::Schedules,
    snapshots::Snapshots,
    tasks::{Tasks, runner::Runner},
    volumes::registry::Registry,
};
use blockd_api::{
    CredentialRef, Deleted, ErrorCode, List, Secret, SecretInput,
    credentials::{CreateCredential, Credential, CredentialLimits},
};
use blockd_catalog::{CredentialRow, Db, DbError, StoreRow};
use blockd_cloud::{DataKey, OpenOptions, Repository};
use blockd_secrets::{Fingerprint, Purpose, References, Secrets};
use blockd_store::{MeterStore, ReloadStore, StoreCapabilities, probe, task_store};
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

/// Warning of the creation of an unencrypted repository.
const UNENCRYPTED: &str = "backups are stored unencrypted: the credential has no encryption passphrase";

/// Credentials of repositories.
pub struct Credentials {
    pub(crate) admission: Arc<Admission>,
    pub(crate) readers: Arc<dyn SnapshotReaders>,
    pub(crate) db: Arc<Db>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) references: Arc<References>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

fn described(row: &CredentialRow, default: Option<Uuid>) -> Credential {
    Credential { is_default: default == Some(row.uuid), ..stores::describe(row) }
}

impl Credentials {
    async fn described(&self, row: &CredentialRow) -> Result<Credential, ServiceError> {
        Ok(described(row, self.db.run(CredentialRow::default).await?))
    }

    /// Creates a credential after probing the store and opening or creating its repository.
    ///
    /// # Errors
    /// The name is taken, the store lacks a required feature, or the passphrase does not open the repository.
    pub async fn create_credential(&self, request: CreateCredential) -> Result<Credential, ServiceError> {
        let mut provider = request.provider;
        let kind = provider.kind();
        let has_default_bucket = provider.name_bucket(&self.host.cluster.to_string());
        let mut store_row = stores::checked(provider, request.connection, &self.host.data_dir)?;
        let is_empty = |input: &SecretInput| input.value().is_some_and(Secret::is_empty);
        if request.encryption_passphrase.as_ref().is_some_and(is_empty) {
            let message = "the encryption passphrase is empty: give one, or omit the flag";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        let taken = |name: &_| {
            let message = format!("credential {name} already exists: choose another name");
            ServiceError::refused(ErrorCode::CredentialExists, message)
        };
        let rows = self.repositories.credential_rows().await?;
        if rows.iter().any(|row| row.name == request.name) {
            return Err(taken(&request.name));
        }
        if rows.iter().any(CredentialRow::has_sealed) {
            self.secrets.must_not_be_new()?;
        }
        let key = self.repositories.store_key(store_row.config.secret()).await?;
        let passphrase = self.repositories.store_key(request.encryption_passphrase.as_ref()).await?;
        let explain = |error: ServiceError| error.with_hint(|code, store| stores::hint(kind, code, store));
        let has_new_bucket =
            has_default_bucket && stores::create_bucket(&store_row, key.text()).await.map_err(explain)?;
        let opened = self.open_new(&store_row, &key, &passphrase).await.map_err(|error| {
            let error = explain(error);
            if has_new_bucket { stores::with_kept_bucket(&error, &store_row) } else { error }
        });
        let (base, capabilities, repository) = opened?;

        let known = repository.known_keys();
        let write_key =
            known.write_key.ok_or_else(|| ServiceError::Internal("a repository without a key".into()))?;
        let uuid = Uuid::new_v4();
        let store_secret = self.seal_store_secret(uuid, &mut store_row)?;
        let opened_with = passphrase.reference();
        let row = CredentialRow {
            uuid,
            name: request.name,
            created: Timestamp::now(),
            store: store_row,
            store_secret,
            data_keys: self.seal_keys(uuid, repository.keys(), opened_with.is_some())?,
            passphrase_from: opened_with.as_ref().map(|(reference, _)| reference.clone()),
            encrypted: repository.is_encrypted(),
            capabilities,
            key_slots: known.encode_slots(),
            write_key,
            labels: request.labels,
        };
        let mut reply = stores::describe(&row);
        reply.warnings.extend((!row.encrypted).then(|| UNENCRYPTED.to_owned()));
        let bandwidth = stores::bandwidth(&row.store)?;
        let name = row.name.clone();
        let inserted = self.db.run(move |tx| row.insert(tx)).await;
        inserted.map_err(|error: DbError| if error.is_conflict() { taken(&name) } else { error.into() })?;
        let shared = self.repositories.store(uuid, base);
        let metered = Arc::new(MeterStore::new(shared, self.meters.of(uuid)));
        if let Some(opened_with) = opened_with {
            self.repositories.opened_with.lock().insert(uuid, opened_with);
        }
        self.repositories.opened.lock().insert(uuid, (repository.with_store(metered), bandwidth));
        tracing::info!(credential = %uuid, name = %name, encrypted = reply.encrypted, "credential created");
        Ok(reply)
    }

    /// Probes a store, and opens or creates its repository.
    async fn open_new(
        &self,
        store: &StoreRow,
        key: &StoreKey,
        passphrase: &StoreKey,
    ) -> Result<(Arc<ReloadStore>, StoreCapabilities, Repository), ServiceError> {
        let base = open_store(store, key, self.repositories.store_writing(store)?, &self.references)?;
        let (store, _) = task_store(base.clone(), self.host.settings.verify_policy());
        let capabilities = probe(store.as_ref()).await?;
        let passphrase = passphrase.text();
        let repository = spawned(async move {
            let passphrase = passphrase.as_ref().map(|text| text.as_str());
            Repository::open(store, passphrase, &OpenOptions::default()).await
        });
        Ok((base, capabilities, repository.await?))
    }

    /// Removes the value of a store's secret from its settings, and seals it.
    pub(crate) fn seal_store_secret(
        &self,
        uuid: Uuid,
        store: &mut StoreRow,
    ) -> Result<Option<Vec<u8>>, ServiceError> {
        let secret = store.config.take_secret_value();
        let seal = |secret: Secret| self.secrets.seal(uuid, Purpose::StoreSecret, secret.expose().as_bytes());
        Ok(secret.map(seal).transpose()?)
    }

    /// Seals data keys; those of an external passphrase are not stored on this host.
    pub(crate) fn seal_keys(
        &self,
        uuid: Uuid,
        keys: &[DataKey],
        is_external: bool,
    ) -> Result<Vec<u8>, ServiceError> {
        match is_external {
            true => Ok(Vec::new()),
            false => Ok(self.secrets.seal(uuid, Purpose::DataKeys, &encode_keys(keys)?)?),
        }
    }

    /// Lists all credentials.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_credentials(&self) -> Result<List<Credential>, ServiceError> {
        let default = self.db.run(CredentialRow::default).await?;
        let rows = self.repositories.credential_rows().await?;
        Ok(rows.iter().map(|row| described(row, default)).collect())
    }

    /// Describes one credential.
    ///
    /// # Errors
    /// There is no such credential, or the database fails.
    pub async fn inspect_credential(&self, wanted: &CredentialRef) -> Result<Credential, ServiceError> {
        let row = self.repositories.credential(Some(wanted)).await?;
        self.described(&row).await
    }

    /// Makes a credential the default of requests that name none.
    ///
    /// # Errors
    /// There is no such credential, or the database fails.
    pub async fn set_default_credential(&self, wanted: &CredentialRef) -> Result<Credential, ServiceError> {
        let row = self.repositories.credential(Some(wanted)).await?;
        let uuid = row.uuid;
        self.db.run(move |tx| CredentialRow::set_default(tx, uuid)).await?;
        tracing::info!(credential = %uuid, name = %row.name, "default credential set");
        Ok(described(&row, Some(uuid)))
    }

    /// Verifies that a credential's store works and that its keys can be opened; a failure is a problem until
    /// the next success.
    ///
    /// # Errors
    /// The cause of the failure.
    pub async fn validate_credential(&self, wanted: &CredentialRef) -> Result<Credential, ServiceError> {
        let row = self.repositories.credential(Some(wanted)).await?;
        let check = Box::pin(self.check_location(row.clone()));
        let checked = self.repositories.while_store_answers(&row, check).await;
        self.repositories.note_check(&row, checked.as_ref().err());
        checked
    }

    async fn check_location(&self, mut row: CredentialRow) -> Result<Credential, ServiceError> {
        for reference in references_of(&row) {
            self.repositories.resolve_again(Some(&row.name), reference).await?;
        }
        // Forces the passphrase to be checked again.
        self.repositories
            .opened_with
            .lock()
            .entry(row.uuid)
            .and_modify(|(_, seen)| *seen = Fingerprint::default());
        // Without bandwidth limits, since the store is to be examined.
        let (opened, _) = self.repositories.open_with_current_secrets(row.uuid).await?;
        let store = observed(Arc::clone(opened.store()));
        let (store, _) = task_store(store, self.host.settings.verify_policy());
        let repository = opened.with_store(store);
        let kind = row.store.config.kind();
        // A location in use existed: its bucket or directory is not to be created.
        let hint = |code, store| {
            (code != ErrorCode::BucketMissing).then(|| stores::hint(kind, code, store)).flatten()
        };
        let explain = |error: ServiceError| error.with_hint(hint);
        let slots = repository.check_key_slots().await;
        let proven = repository.prove_key_slot().await;
        self.repositories.note_key_slots(row.uuid, &repository).await;
        self.repositories.note_location(row.uuid, &proven).await;
        if let Ok(found) = &slots {
            self.repositories.end_slot_problems(row.uuid, found);
        }
        slots.and(proven).and(repository.check_writable()).map_err(|error| explain(error.into()))?;
        let capabilities = probe(repository.store().as_ref()).await.map_err(|error| explain(error.into()))?;
        row.capabilities = capabilities.clone();
        let uuid = row.uuid;
        match self.db.run(move |tx| CredentialRow::set_capabilities(tx, uuid, &capabilities)).await {
            // Not a fault of the location, whose stored capabilities stay.
            Err(error) if error.is_full() => {
                tracing::warn!(credential = %row.name, %error, "storing the capabilities of a location failed");
            }
            stored => stored?,
        }
        self.described(&row).await
    }

    /// Changes the bandwidth limits of a credential, also for its running tasks.
    ///
    /// # Errors
    /// There is no such credential, a limit is invalid, or the database fails.
    pub async fn limit_credential(
        &self,
        wanted: &CredentialRef,
        limits: CredentialLimits,
    ) -> Result<Credential, ServiceError> {
        let plan = LimitPlan::of(&limits)?;
        let _admission = self.admission.lock().await;
        let mut row = self.repositories.credential(Some(wanted)).await?;
        keep(&mut row.store.connection, limits);
        let (uuid, store) = (row.uuid, row.store.clone());
        self.db.run(move |tx| CredentialRow::set_store(tx, uuid, &store)).await?;
        // No store request under the lock: a repository opened later reads the new limits.
        let opened = self.repositories.opened.lock().get(&uuid).cloned();
        if let Some((_, bandwidth)) = opened {
            bandwidth.replace(plan, Timestamp::now());
        }
        tracing::info!(credential = %uuid, name = %row.name, "limits changed");
        self.described(&row).await
    }

    /// Deletes a credential and the local state of its backups; the backups stay in the store.
    ///
    /// # Errors
    /// A task uses it.
    pub async fn delete_credential(
        self: &Arc<Self>,
        wanted: &CredentialRef,
    ) -> Result<Deleted, ServiceError> {
        let _admission = self.admission.lock().await;
        let row = self.repositories.credential(Some(wanted)).await?;
        self.lazy.refuse_if_credential_needed(row.uuid, row.name.as_str()).await?;
        self.schedules.refuse_if_scheduled(row.uuid, row.name.as_str()).await?;
        if let Some(task) =
            self.tasks.unfinished_tasks().await?.into_iter().find(|task| task.credential == row.uuid)
        {
            let message = format!(
                "credential {} is used by {} task {}: wait for it to end",
                row.name,
                task.kind(),
                task.id
            );
            return Err(ServiceError::refused(ErrorCode::CredentialInUse, message));
        }
        let uuid = row.uuid;
        self.runner.abandon_matching(|task| task.credential == uuid).await?;
        self.db.run(move |tx| CredentialRow::remove(tx, uuid)).await?;
        if let Err(error) = blockd_files::remove_dir(&self.host.data_dir.fingerprints_dir(uuid)) {
            tracing::warn!(%error, "fingerprint files of the deleted credential stay");
        }
        self.repositories.forget(uuid);
        self.meters.forget(uuid);
        self.readers.forget(uuid);
        for kind in [health::CREDENTIAL, health::CLOCK, health::GARBAGE, health::LOCATION] {
            self.health.clear(kind, &uuid.to_string());
        }
        self.repositories.end_slot_problems(uuid, &[]);
        self.repositories.end_failed_check(uuid);
        self.repositories.forget_unneeded_secrets().await;
        for entry in self.registry.all() {
            self.snapshots.drop_unneeded_intervals(&entry).await;
        }
        tracing::info!(credential = %uuid, name = %row.name, "credential deleted");
        let name = Some(row.name.to_string());
        Ok(Deleted { credential_id: Some(uuid), name, ..Deleted::default() })
    }
}
