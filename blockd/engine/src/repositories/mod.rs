//! Credentials: probing of stores, storage of their secrets, and opening of repositories.

pub mod deleted_backups;
pub mod external_secrets;
mod health;
pub mod key_slots;
pub mod limit_changes;
pub mod limits;
pub mod locate;
pub mod location;
pub mod opening;
pub mod preflight;
pub mod provider_update;
pub mod referenced_client;
pub mod references;
pub mod stores;

use crate::{
    error::{ServiceError, blocking},
    events::EventLog,
    health::ComponentHealth,
    host::Host,
    ids::only_one,
    metrics::Meters,
    repositories::{
        limits::{LimitPlan, PlannedBandwidth, limited, limits_of},
        opening::{StoreKey, decode_keys, not_opened, open_existing, open_store},
        preflight::observed,
        references::unresolved,
    },
    tasks::workers::TaskWorkers,
};
use blockd_api::{CredentialRef, ErrorCode, SecretRef, credentials::StoreConfig, first_names};
use blockd_catalog::{CredentialRow, Db, StoreRow};
use blockd_cloud::{CloudError, Repository};
use blockd_secrets::{Fingerprint, Purpose, References, Secrets};
use blockd_store::{BlobStore, MeterStore, ReloadStore, Requests, Work, task_store};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Maximum number of threads that write to a local directory store.
const MAX_WRITERS: usize = 8;
/// Validity of a key slot proof.
const PROOF_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// Delay before an external passphrase that failed to open a repository is tried again.
const UNOPENED_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Repositories opened since the start, by credential.
pub struct Repositories {
    pub(crate) bandwidth: Arc<PlannedBandwidth>,
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) task_workers: Arc<TaskWorkers>,
    pub(crate) references: Arc<References>,
    pub(crate) secrets: Arc<Secrets>,
    /// Time of the last key slot proof, and the identity of the directory.
    pub proven: Mutex<HashMap<Uuid, (Instant, DirectoryIdentity)>>,
    /// Opened repositories, each with the limits of its credential.
    pub opened: Mutex<HashMap<Uuid, (Repository, Arc<PlannedBandwidth>)>>,
    /// References and fingerprints of the external passphrases that opened them.
    pub opened_with: Mutex<HashMap<Uuid, (SecretRef, Fingerprint)>>,
    /// Time at which an external passphrase was last found to open nothing.
    pub(crate) unopened: Mutex<HashMap<Uuid, Instant>>,
    /// Repositories refused for writing because of their keys, with the reported reason.
    pub refused: Mutex<HashMap<Uuid, String>>,
    /// Store client of each, shared by all users, so that a key rotation takes effect for all of them at
    /// once.
    pub(crate) stores: Mutex<HashMap<Uuid, Arc<ReloadStore>>>,
    /// Number of access changes: a task that opened a repository with an outdated row opens it again.
    pub(crate) changes: AtomicU64,
}

/// Identity of a local store directory (device and inode), which changes when another filesystem is mounted.
/// `None` for a remote store, or a directory that cannot be accessed.
pub type DirectoryIdentity = Option<(u64, u64)>;

fn identity_of(store: &StoreRow) -> DirectoryIdentity {
    let StoreConfig::Local { path } = &store.config else { return None };
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Repositories {
    /// Returns the shared store of a credential: the existing one, which may have newer keys, or this one.
    pub(crate) fn store(&self, uuid: Uuid, opened: Arc<ReloadStore>) -> Arc<ReloadStore> {
        Arc::clone(self.stores.lock().entry(uuid).or_insert(opened))
    }

    /// Replaces the client of a credential's store from the next request on.
    pub fn renew_store(&self, uuid: Uuid, opened: &Arc<ReloadStore>) {
        self.store(uuid, Arc::clone(opened)).renew(opened);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Replaces an opened repository, and the reference and fingerprint of its external passphrase.
    pub fn replace(
        &self,
        uuid: Uuid,
        repository: Repository,
        bandwidth: Arc<PlannedBandwidth>,
        opened_with: Option<(SecretRef, Fingerprint)>,
    ) {
        let mut opened = self.opened.lock();
        match opened_with {
            Some(opened_with) => self.opened_with.lock().insert(uuid, opened_with),
            None => self.opened_with.lock().remove(&uuid),
        };
        opened.insert(uuid, (repository, bandwidth));
        self.unopened.lock().remove(&uuid);
        // The proof was of the previous repository.
        self.proven.lock().remove(&uuid);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Drops the state of a deleted credential.
    pub(crate) fn forget(&self, uuid: Uuid) {
        self.opened.lock().remove(&uuid);
        self.opened_with.lock().remove(&uuid);
        self.unopened.lock().remove(&uuid);
        self.refused.lock().remove(&uuid);
        self.proven.lock().remove(&uuid);
        self.stores.lock().remove(&uuid);
    }

    /// Drops all key slot proofs, as after a start.
    pub fn forget_proofs(&self) {
        self.proven.lock().clear();
    }

    /// Drops all opened repositories; they are opened again on demand.
    pub fn forget_all(&self) {
        self.opened.lock().clear();
        self.stores.lock().clear();
    }
}

/// Returns the names of the first credentials.
fn names(rows: &[CredentialRow]) -> String {
    first_names(rows.iter().map(|row| &row.name))
}

impl Repositories {
    /// Returns the rows of all credentials.
    ///
    /// # Errors
    /// The database fails.
    pub async fn credential_rows(&self) -> Result<Vec<CredentialRow>, ServiceError> {
        Ok(self.db.run(CredentialRow::all).await?)
    }

    /// Looks up a credential by its name, its UUID or a unique prefix of it; without one, returns the default
    /// or the only credential.
    ///
    /// # Errors
    /// There is no such credential, or none is named and there is no default and not exactly one.
    pub async fn credential(&self, wanted: Option<&CredentialRef>) -> Result<CredentialRow, ServiceError> {
        let mut rows = self.credential_rows().await?;
        let Some(wanted) = wanted else { return self.default_credential(rows).await };
        let is_wanted = |row: &CredentialRow| match wanted {
            CredentialRef::Id(uuid) => row.uuid == *uuid,
            CredentialRef::Name(name) => row.name == *name,
        };
        let known = names(&rows);
        let found = match (rows.iter().position(is_wanted), wanted) {
            (Some(at), _) => Some(rows.swap_remove(at)),
            (None, CredentialRef::Name(name)) => {
                let all = rows.into_iter().map(|row| (row.uuid.to_string(), row));
                only_one("credentials", name.as_str(), all)?
            }
            (None, CredentialRef::Id(_)) => None,
        };
        found.ok_or_else(|| {
            let others = if known.is_empty() { known } else { format!(": the credentials are {known}") };
            ServiceError::refused(ErrorCode::CredentialNotFound, format!("no credential {wanted}{others}"))
        })
    }

    async fn default_credential(&self, mut rows: Vec<CredentialRow>) -> Result<CredentialRow, ServiceError> {
        let required = |message: String| ServiceError::refused(ErrorCode::CredentialRequired, message);
        if let Some(default) = self.db.run(CredentialRow::default).await?
            && let Some(at) = rows.iter().position(|row| row.uuid == default)
        {
            return Ok(rows.swap_remove(at));
        }
        match rows.pop() {
            Some(only) if rows.is_empty() => Ok(only),
            None => Err(required(
                "no credentials exist: create one first (blockctl credentials create)".to_owned(),
            )),
            Some(last) => {
                rows.push(last);
                Err(required(format!(
                    "several credentials exist ({}): select one with --cred-id, or choose a default (blockctl credentials set-default)",
                    names(&rows)
                )))
            }
        }
    }

    /// Proves that a credential's store is the one that was opened: the mount point of an unmounted disk is
    /// an empty directory that accepts all writes.
    ///
    /// # Errors
    /// It is another store, or the store fails.
    pub async fn prove_location(&self, uuid: Uuid, repository: &Repository) -> Result<(), ServiceError> {
        // Read before the proof: a filesystem mounted since is not proven.
        let identity = self.directory_identity(uuid).await?;
        self.check_location(uuid, repository).await?;
        self.proven.lock().insert(uuid, (Instant::now(), identity));
        Ok(())
    }

    /// Proves the same for an estimate: the next backup proves it again if it would have without that.
    ///
    /// # Errors
    /// It is another store, or the store fails.
    pub async fn check_location(&self, uuid: Uuid, repository: &Repository) -> Result<(), ServiceError> {
        let proven = repository.prove_key_slot().await;
        self.note_key_slots(uuid, repository).await;
        self.note_location(uuid, &proven).await;
        Ok(proven?)
    }

    /// Returns true if the proof is less than a day old and the directory is still the same. For a local
    /// directory the key slot is read each time, because disks that alternate at one mount point may have the
    /// same device and inode numbers; this reads one small local file and is not a request of the task.
    ///
    /// # Errors
    /// The credential no longer exists.
    pub async fn was_proven_recently(&self, uuid: Uuid) -> Result<bool, ServiceError> {
        let proven = self.proven.lock().get(&uuid).copied();
        let Some((at, identity)) = proven.filter(|(at, _)| at.elapsed() < PROOF_VALIDITY) else {
            return Ok(false);
        };
        let now = self.directory_identity(uuid).await?;
        if now != identity {
            tracing::info!(credential = %uuid, since_s = at.elapsed().as_secs(), "the directory of the store has changed");
        }
        if now != identity || identity.is_none() {
            return Ok(now == identity);
        }
        let (repository, _) = self.opened_repository(uuid).await?;
        let proven = repository.prove_key_slot().await;
        self.note_location(uuid, &proven).await;
        if let Err(error) = &proven {
            tracing::info!(credential = %uuid, %error, "the content of the store's directory has changed");
        }
        Ok(proven.is_ok())
    }

    async fn directory_identity(&self, uuid: Uuid) -> Result<DirectoryIdentity, ServiceError> {
        let row = self.credential(Some(&CredentialRef::Id(uuid))).await?;
        blocking(move || Ok::<_, ServiceError>(identity_of(&row.store))).await
    }

    /// Returns the repository of a credential with a store that retries and counts the caller's requests.
    ///
    /// # Errors
    /// The credential does not exist, or its secrets cannot be opened.
    pub async fn task_repository(&self, uuid: Uuid) -> Result<(Repository, Arc<Requests>), ServiceError> {
        let (repository, requests) = self.guest_repository(uuid).await?;
        let repository = limited(&repository, Arc::clone(self.bandwidth.bandwidth()));
        Ok((repository.with_work(self.task_workers.work()), requests))
    }

    /// Returns the repository for reads that a guest or user waits for: they neither yield to guests nor are
    /// subject to the host's bandwidth limits of tasks.
    ///
    /// # Errors
    /// The errors of [`task_repository`](Self::task_repository).
    pub async fn guest_repository(&self, uuid: Uuid) -> Result<(Repository, Arc<Requests>), ServiceError> {
        let (repository, bandwidth) = self.opened_repository(uuid).await?;
        let store = observed(Arc::clone(repository.store()));
        let (store, requests) = task_store(store, self.host.settings.retry_policy());
        // Also without a limit: one may be set while the task runs.
        let repository = limited(&repository.with_store(store), Arc::clone(bandwidth.bandwidth()));
        Ok((repository.with_work(Work::default()), requests))
    }

    /// Returns the write scheduling of a local directory store.
    pub(crate) fn store_writing(&self, store: &StoreRow) -> Result<Option<Work>, ServiceError> {
        let StoreConfig::Local { .. } = store.config else { return Ok(None) };
        let writing = self.task_workers.writing(self.host.settings.upload_concurrency.min(MAX_WRITERS));
        writing.map(Some).map_err(|error| ServiceError::Internal(error.to_string()))
    }

    /// Returns the opened repository of a credential. If its external passphrase has changed and no longer
    /// opens the repository, the open keys stay in use: backups continue, and a warning asks for a
    /// correction.
    pub async fn opened_repository(
        &self,
        uuid: Uuid,
    ) -> Result<(Repository, Arc<PlannedBandwidth>), ServiceError> {
        let opened = self.opened.lock().get(&uuid).cloned();
        let Some(opened) = opened else { return self.open_with_current_secrets(uuid).await };
        let unopened = self.unopened.lock().get(&uuid).copied();
        if unopened.is_some_and(|at| at.elapsed() < UNOPENED_RETRY_DELAY) {
            return Ok(opened);
        }
        match self.open_with_current_secrets(uuid).await {
            Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::WrongPassphrase { .. }) => {
                tracing::warn!(credential = %uuid, %error, "the external passphrase was changed and no longer opens the repository: the open keys are used until the daemon stops; restore the old passphrase, or use credentials rekey");
                self.unopened.lock().insert(uuid, Instant::now());
                Ok(opened)
            }
            found => {
                self.unopened.lock().remove(&uuid);
                found
            }
        }
    }

    /// Returns the opened repository only if its current external passphrase opens it.
    pub(crate) async fn open_with_current_secrets(
        &self,
        uuid: Uuid,
    ) -> Result<(Repository, Arc<PlannedBandwidth>), ServiceError> {
        let opened = self.opened.lock().get(&uuid).cloned();
        if let Some(opened) = &opened
            && self.opens_with_current_secrets(uuid).await?
        {
            return Ok(opened.clone());
        }
        loop {
            let changes = self.changes.load(Ordering::SeqCst);
            let (repository, bandwidth, opened_with) = self.reopen(uuid).await?;
            let opened = {
                let mut all = self.opened.lock();
                if self.changes.load(Ordering::SeqCst) != changes {
                    continue;
                }
                match opened_with {
                    Some(opened_with) => {
                        self.opened_with.lock().insert(uuid, opened_with);
                        // Users of the previous keys share its bandwidth limit.
                        let bandwidth = all.get(&uuid).map_or(bandwidth, |(_, shared)| Arc::clone(shared));
                        all.insert(uuid, (repository.clone(), Arc::clone(&bandwidth)));
                        (repository, bandwidth)
                    }
                    // A concurrent task may have opened it: both share one bandwidth limit.
                    None => all.entry(uuid).or_insert((repository, bandwidth)).clone(),
                }
            };
            self.apply_stored_limits(uuid, &opened.1).await?;
            self.note_key_slots(uuid, &opened.0).await;
            return Ok(opened);
        }
    }

    /// Applies the stored limits, which may have changed while the repository was opened.
    async fn apply_stored_limits(
        &self,
        uuid: Uuid,
        bandwidth: &PlannedBandwidth,
    ) -> Result<(), ServiceError> {
        let row = self.credential(Some(&CredentialRef::Id(uuid))).await?;
        bandwidth.replace(LimitPlan::of(&limits_of(&row.store.connection))?, Timestamp::now());
        Ok(())
    }

    /// Returns true if the repository was opened with the current external passphrase, or has none.
    async fn opens_with_current_secrets(&self, uuid: Uuid) -> Result<bool, ServiceError> {
        let opened_with = self.opened_with.lock().get(&uuid).cloned();
        let Some((reference, fingerprint)) = opened_with else { return Ok(true) };
        match self.references.resolve(&reference).await {
            Ok(now) => Ok(now.fingerprint == fingerprint),
            Err(error) => {
                let row = self.credential(Some(&CredentialRef::Id(uuid))).await?;
                Err(unresolved(Some(&row.name), &reference, &error))
            }
        }
    }

    /// Returns the secret of a stored credential's store.
    ///
    /// # Errors
    /// The secret cannot be unsealed, or the external secret cannot be read.
    pub async fn store_key_of(&self, row: &CredentialRow) -> Result<StoreKey, ServiceError> {
        Ok(match (row.store.config.reference(), &row.store_secret) {
            (Some(reference), _) => {
                let resolved = self.references.resolve(reference).await;
                let resolved = resolved.map_err(|error| unresolved(Some(&row.name), reference, &error))?;
                StoreKey::From(reference.clone(), resolved)
            }
            (None, Some(sealed)) => {
                let secret = self.secrets.open(row.uuid, Purpose::StoreSecret, sealed);
                let secret = secret.map_err(|error| not_opened(row, &error))?;
                let text = std::str::from_utf8(&secret)
                    .map_err(|_| ServiceError::Internal("a stored secret is not valid UTF-8".into()))?;
                StoreKey::Value(text.to_owned().into())
            }
            (None, None) => StoreKey::None,
        })
    }

    /// Creates a store client without sending a request.
    ///
    /// # Errors
    /// A setting is invalid, or the directory does not exist.
    pub async fn client_of(
        &self,
        store: StoreRow,
        key: Arc<StoreKey>,
    ) -> Result<Arc<ReloadStore>, ServiceError> {
        let writing = self.store_writing(&store)?;
        let references = Arc::clone(&self.references);
        blocking(move || open_store(&store, &key, writing, &references)).await
    }

    /// Returns the store of a stored credential, which follows key rotations; sends no request.
    ///
    /// # Errors
    /// The secret cannot be unsealed, or the external secret cannot be read.
    pub async fn store_of(&self, row: &CredentialRow) -> Result<Arc<dyn BlobStore>, ServiceError> {
        let key = Arc::new(self.store_key_of(row).await?);
        let client = self.client_of(row.store.clone(), key).await?;
        let shared = self.store(row.uuid, client);
        Ok(Arc::new(MeterStore::new(shared, self.meters.of(row.uuid))))
    }

    /// Opens a stored credential's repository again; sends store requests only for an external passphrase.
    async fn reopen(&self, uuid: Uuid) -> Result<Reopened, ServiceError> {
        let row = self.credential(Some(&CredentialRef::Id(uuid))).await?;
        let bandwidth = stores::bandwidth(&row.store)?;
        let store = self.store_of(&row).await?;
        let Some(reference) = &row.passphrase_from else {
            let keys = self.secrets.open(uuid, Purpose::DataKeys, &row.data_keys);
            let keys = decode_keys(&keys.map_err(|error| not_opened(&row, &error))?)?;
            let repository = Repository::from_saved_keys(store, keys, &row.known_keys())?;
            return Ok((repository, bandwidth, None));
        };
        let passphrase = self.references.resolve(reference).await;
        let passphrase = passphrase.map_err(|error| unresolved(Some(&row.name), reference, &error))?;
        let (retrying, _) = task_store(Arc::clone(&store), self.host.settings.retry_policy());
        let passphrase_text = passphrase.expose().to_owned().into();
        let repository = open_existing(retrying, Some(passphrase_text), row.known_keys()).await?;
        let opened_with = (reference.clone(), passphrase.fingerprint);
        Ok((repository.with_store(store), bandwidth, Some(opened_with)))
    }
}

/// Repository, bandwidth limits, and the reference and fingerprint of its external passphrase.
type Reopened = (Repository, Arc<PlannedBandwidth>, Option<(SecretRef, Fingerprint)>);
