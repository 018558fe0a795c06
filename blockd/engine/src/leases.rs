//! Leases of cloud snapshots: this host stores them for its lazy volumes, and respects those of others.
//!
//! Its own needs are known from the rows of the lazy volumes; its own leases are for other hosts only. The
//! argument is in `FORMAT.md` of `blockd_cloud`, "Leases".

use crate::{
    error::ServiceError,
    events::EventLog,
    health::{self, ComponentHealth},
    host::Host,
    repositories::{Repositories, preflight},
    volumes::registry::Registry,
};
use blockd_api::{
    cloudsnaps,
    events::{EventKind, Severity},
};
use blockd_catalog::{CredentialRow, Db, LazyRow, LeaseRow, NewEvent, VolumeRow};
use blockd_cloud::{
    CloudError, CloudSnapshotId, LEASE_LIFETIME, Lease, LeaseHolder, LeaseId, ManifestFilter, Repository,
};
use blockd_extent::VolumeId;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Age at which a lease is renewed: several attempts fail before it expires.
const RENEWAL_AGE: SignedDuration = SignedDuration::from_hours(12);
/// Pause after a failed renewal.
const RETRY_PAUSE: Duration = Duration::from_secs(3600);
/// Age at which a lease that cannot be renewed is reported, days before it expires.
const REPORT_AGE: SignedDuration = SignedDuration::from_hours(3 * 24);
/// Age at which a volume whose lease was never stored is reported: no lease holds its cloud snapshot, but an
/// outage of the location is shorter.
const FIRST_REPORT_AGE: SignedDuration = SignedDuration::from_hours(24);
/// Maximum time that the creation of a lazy volume waits for its lease.
const CREATION_TIME_LIMIT: Duration = Duration::from_secs(5);
/// Maximum time that a listing waits for the import.
const LISTING_TIME_LIMIT: Duration = Duration::from_secs(5);
/// Maximum time of a removal; the garbage collection removes what is left.
const REMOVAL_TIME_LIMIT: Duration = Duration::from_secs(60);
/// Maximum number of leases that an import reads for the names of their hosts; the others show their ids.
const MAX_READ: usize = 256;
/// Maximum number of characters of this host's name in a lease.
const MAX_NAME_CHARS: usize = 63;

/// Stores, renews and imports leases.
pub struct Leases {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    /// Times of the last failed renewals.
    pub(crate) failed: Mutex<HashMap<VolumeId, Instant>>,
}

/// Renewal of the lease of a lazy volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The location has the lease and the cloud snapshot.
    Leased,
    /// The cloud snapshot was deleted from the location of this description.
    Gone(String),
}

/// Returns a lease for lists.
pub fn shown(row: &LeaseRow) -> cloudsnaps::CloudsnapLease {
    cloudsnaps::CloudsnapLease {
        host: if row.host_name.is_empty() { row.host.to_string() } else { row.host_name.clone() },
        volume_id: row.volume,
        expires_at: row.stored.and_then(|stored| stored.checked_add(LEASE_LIFETIME).ok()),
    }
}

impl Leases {
    fn lease(&self, cloudsnap: CloudSnapshotId, volume: VolumeId) -> Lease {
        let name = self.host.node.chars().filter(|char| !char.is_control()).take(MAX_NAME_CHARS);
        Lease {
            cloudsnap,
            host: self.host.cluster,
            volume,
            host_name: name.collect(),
            renewed: Timestamp::now(),
        }
    }

    async fn put(
        &self,
        credential: Uuid,
        cloudsnap: CloudSnapshotId,
        volume: VolumeId,
    ) -> Result<(Repository, Timestamp), ServiceError> {
        let repository = self.repositories.repository_for_client(credential).await?;
        // The mount point of an unmounted disk accepts all writes.
        repository.prove_key_slot().await?;
        let lease = self.lease(cloudsnap, volume);
        repository.put_lease(&lease).await?;
        Ok((repository, lease.renewed))
    }

    /// Stores the lease of a volume that is about to be created; returns its time. Returns `None` if the
    /// location refuses it or does not respond: a restore from a full or read-only location must succeed.
    /// The maintenance then tries again.
    pub(crate) async fn take(
        &self,
        credential: Uuid,
        cloudsnap: CloudSnapshotId,
        volume: VolumeId,
    ) -> Option<Timestamp> {
        let put = Box::pin(self.put(credential, cloudsnap, volume));
        match preflight::in_time(CREATION_TIME_LIMIT, put).await {
            Ok((_, at)) => Some(at),
            Err(error) => {
                tracing::warn!(%cloudsnap, %volume, %error, "storing a lease failed; the maintenance tries again");
                None
            }
        }
    }

    /// Stores the lease of a lazy volume again. It counts only if the cloud snapshot exists afterwards:
    /// another host may have deleted that before the first lease, or after the last one expired.
    async fn renew(&self, row: &LazyRow) -> Result<Renewal, ServiceError> {
        let (repository, at) = self.put(row.credential, row.cloudsnap, row.volume).await?;
        match Box::pin(repository.manifest(&row.cloudsnap)).await {
            // Damage is no deletion.
            Ok(_) | Err(CloudError::Damaged { .. }) => {}
            Err(CloudError::SnapshotNotFound { store, .. }) => {
                repository.prove_key_slot().await?;
                return Ok(Renewal::Gone(store));
            }
            Err(error) => return Err(error.into()),
        }
        let volume = row.volume;
        self.db.run(move |tx| LazyRow::set_leased(tx, volume, at)).await?;
        Ok(Renewal::Leased)
    }

    /// Renews the leases that are due; returns the results. One that cannot be renewed is a problem, and one
    /// event, days before it expires.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn renew_due(&self, now: Timestamp) -> Result<Vec<(VolumeId, Renewal)>, ServiceError> {
        let mut renewed = Vec::new();
        let rows = self.db.run(LazyRow::all).await?;
        let volumes: BTreeSet<_> = rows.iter().map(|row| row.volume).collect();
        self.failed.lock().retain(|volume, _| volumes.contains(volume));
        self.health.retain(health::LEASE, |of| volumes.iter().any(|volume| volume.to_string() == of));
        let mut silent = HashSet::new();
        for row in rows {
            // The clock may have been set back since.
            let is_recent = row.leased.is_some_and(|at| at <= now && now.duration_since(at) < RENEWAL_AGE);
            let has_failed = self.failed.lock().get(&row.volume).is_some_and(|at| at.elapsed() < RETRY_PAUSE);
            if is_recent || has_failed || silent.contains(&row.credential) {
                continue;
            }
            match Box::pin(self.renew(&row)).await {
                Ok(renewal) => {
                    match renewal {
                        Renewal::Leased => drop(self.failed.lock().remove(&row.volume)),
                        // Its objects may be brought back.
                        Renewal::Gone(_) => drop(self.failed.lock().insert(row.volume, Instant::now())),
                    }
                    renewed.push((row.volume, renewal));
                    self.health.clear(health::LEASE, &row.volume.to_string());
                }
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) => {
                    self.failed.lock().insert(row.volume, Instant::now());
                    if error.is_retryable() {
                        silent.insert(row.credential);
                    }
                    self.report_failure(&row, &error, now).await?;
                }
            }
        }
        Ok(renewed)
    }

    /// Lets the next pass try failed renewals again.
    pub fn forget_failures(&self) {
        self.failed.lock().clear();
    }

    async fn report_failure(
        &self,
        row: &LazyRow,
        error: &ServiceError,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        let (volume, of) = (row.volume, row.volume.to_string());
        tracing::warn!(%volume, %error, "renewing a lease failed; each hour tries again");
        let (since, limit) = match row.leased {
            Some(at) => (at, REPORT_AGE),
            None => {
                let rows = self.db.run(VolumeRow::all).await?;
                let created = rows.iter().find(|row| row.id == volume).map(|row| row.created);
                (created.unwrap_or(now), FIRST_REPORT_AGE)
            }
        };
        if now.duration_since(since) < limit {
            return Ok(());
        }
        let name = self.registry.by_id(volume).map(|entry| entry.name.clone());
        let since = match row.leased {
            Some(at) => format!("was not renewed since {}", blockd_api::format_time(at)),
            None => "could not be stored".to_owned(),
        };
        let shown = name.as_ref().map_or_else(|| of.clone(), ToString::to_string);
        let id = row.cloudsnap;
        let cause = format!(
            "the lease of lazy volume {shown} on cloud snapshot {id} {since}, so that other hosts may delete it: {error}"
        );
        let action = format!(
            "allow this host to write below blockd/leases/ there, or pin {id} on the host that made it"
        );
        if self.health.has(health::LEASE, &of) {
            return Ok(());
        }
        let event = NewEvent {
            credential_id: Some(row.credential),
            cloudsnap: Some(id),
            ..NewEvent::new(now, Severity::Warning, EventKind::LeaseNotRenewed, format!("{cause}; {action}"))
        };
        let event = event.of_volume(volume, name);
        self.db.run(move |tx| event.insert(tx)).await?;
        self.events.wake();
        self.health.note(health::LEASE, &of, cause, action);
        Ok(())
    }

    /// Removes the lease of a volume that no longer needs its cloud snapshot, in the background. The garbage
    /// collection removes it after a day if the location does not respond.
    pub(crate) fn release(self: &Arc<Self>, credential: Uuid, cloudsnap: CloudSnapshotId, volume: VolumeId) {
        let leases = Arc::clone(self);
        tokio::spawn(async move {
            let remove = leases.remove(credential, cloudsnap, volume);
            match tokio::time::timeout(REMOVAL_TIME_LIMIT, remove).await {
                Ok(Ok(())) => tracing::debug!(%cloudsnap, %volume, "lease removed"),
                Ok(Err(error)) => tracing::warn!(%cloudsnap, %volume, %error, "removing a lease failed"),
                Err(_) => tracing::warn!(%cloudsnap, %volume, "removing a lease failed: no response"),
            }
        });
    }

    async fn remove(
        &self,
        credential: Uuid,
        cloudsnap: CloudSnapshotId,
        volume: VolumeId,
    ) -> Result<(), ServiceError> {
        // A clone of the volume may have no lease of its own yet.
        for row in self.db.run(LazyRow::all).await? {
            if row.cloudsnap == cloudsnap && row.leased.is_none() {
                Box::pin(self.renew(&row)).await?;
            }
        }
        let repository = self.repositories.repository_for_client(credential).await?;
        Ok(repository.remove_lease(&LeaseId { cloudsnap, host: self.host.cluster, volume }).await?)
    }

    /// Returns the lazy volumes of other hosts that hold a cloud snapshot, as its location lists them now.
    pub(crate) async fn holders(
        &self,
        credential: Uuid,
        id: &CloudSnapshotId,
    ) -> Result<Vec<LeaseHolder>, ServiceError> {
        let listed = Box::pin(async {
            let repository = self.repositories.repository_for_client(credential).await?;
            Ok(repository.holders_of(id, self.host.cluster).await?)
        });
        self.repositories.preflight(credential, listed).await
    }

    /// Replaces the known leases of other hosts by those that a location lists; one listing.
    ///
    /// # Errors
    /// The store or the database fails.
    pub(crate) async fn import(
        &self,
        credential: Uuid,
        repository: &Repository,
        filter: &ManifestFilter,
    ) -> Result<(), ServiceError> {
        let mut listed = repository.list_leases(filter).await?;
        listed.retain(|lease| lease.id.host != self.host.cluster);
        let known = self.db.run(LeaseRow::all).await?.into_iter().filter(|row| row.credential == credential);
        let known: BTreeMap<LeaseId, String> = known.map(|row| (row.id(), row.host_name)).collect();
        let is_unnamed = |id: &LeaseId| known.get(id).is_none_or(String::is_empty);
        let unnamed = listed.iter().filter(|lease| is_unnamed(&lease.id)).copied().take(MAX_READ).collect();
        let read = Box::pin(repository.lease_holders(unnamed)).await.into_iter();
        let read: BTreeMap<LeaseId, String> = read.map(|one| (one.lease.id, one.host_name)).collect();
        let rows: Vec<LeaseRow> = listed
            .into_iter()
            .map(|lease| {
                let LeaseId { cloudsnap, host, volume } = lease.id;
                let host_name = read.get(&lease.id).or_else(|| known.get(&lease.id));
                let host_name = host_name.cloned().unwrap_or_default();
                LeaseRow { credential, cloudsnap, host, volume, host_name, stored: lease.stored }
            })
            .collect();
        let filter = *filter;
        let is_in_scope = move |id: &CloudSnapshotId| {
            filter.cluster.is_none_or(|cluster| cluster == id.cluster)
                && filter.volume.is_none_or(|volume| volume == id.volume)
        };
        Ok(self.db.run(move |tx| LeaseRow::replace(tx, credential, is_in_scope, &rows)).await?)
    }

    /// Imports leases after a listing of the manifests. Waits for some seconds at most; errors are logged.
    pub(crate) async fn import_after_listing(
        &self,
        credential: &CredentialRow,
        repository: &Repository,
        filter: &ManifestFilter,
    ) {
        let import = self.import(credential.uuid, repository, filter);
        if let Err(error) = preflight::in_time(LISTING_TIME_LIMIT, import).await {
            tracing::warn!(credential = %credential.name, %error, "importing leases failed");
        }
    }

    /// Imports the leases of all locations.
    ///
    /// # Errors
    /// The database fails.
    pub async fn import_all(&self) -> Result<(), ServiceError> {
        for credential in self.repositories.credential_rows().await? {
            let import = async {
                let (repository, _) = self.repositories.task_repository(credential.uuid).await?;
                self.import(credential.uuid, &repository, &ManifestFilter::default()).await
            };
            if let Err(error) = import.await {
                tracing::warn!(credential = %credential.name, %error, "importing leases failed");
            }
        }
        Ok(())
    }
}
