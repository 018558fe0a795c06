//! Proofs of cloud snapshots in their locations: this host publishes its results and imports those of others.
//!
//! The rows of the database stay the input of every decision, and those of this host and of others are apart.
//! A result that cannot be published is kept and published later.
//! [`read_proofs`](Repository::read_proofs) opens proofs and checks them against their keys; `import` selects
//! those that are about this location. `FORMAT.md` of `blockd_cloud`, "Proofs", has the conditions.

mod import;
mod import_drills;
mod lost;

use crate::{
    error::ServiceError,
    events::EventLog,
    host::Host,
    repositories::{Repositories, location::location_of},
    volumes::registry::Registry,
};
use blockd_api::{CredentialRef, cloudsnaps};
use blockd_catalog::{CredentialRow, Db, DbError, DbManifestCache, DrillRow, LastProof, ProofRow};
use blockd_cloud::{
    CloudError, CloudSnapshotId, ManifestFilter, Proof, ProofId, ProofKind, Repository, VerifyDepth,
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use uuid::Uuid;

/// Maximum number of results that a verification, or a pass of the maintenance, publishes to a location.
pub const MAX_PUBLISHED_AT_ONCE: u32 = 100;
/// Maximum number of characters of this host's name in a proof.
const MAX_NAME_CHARS: usize = 63;

/// Publication and import of proofs.
pub struct Proofs {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    /// Proofs that were read since the start and need not be read again, by credential.
    pub(crate) seen: Mutex<HashMap<Uuid, Seen>>,
    /// Credentials whose location refused a proof, which is warned about once.
    pub(crate) refused: Mutex<HashSet<Uuid>>,
}

/// Proofs that were read from a location.
#[derive(Default)]
pub(crate) struct Seen {
    /// Location and keys with which they were read: with others, they may be usable.
    with: (Uuid, Vec<Uuid>),
    ids: HashSet<ProofId>,
    damaged: Damaged,
}

/// Damaged proofs of other hosts that are not reported yet.
#[derive(Clone, Default)]
pub(crate) struct Damaged {
    count: u64,
    /// Cause of the first.
    example: Option<String>,
}

/// Returns a proof for lists.
pub fn shown(last: LastProof, host: &Host) -> cloudsnaps::LastProof {
    cloudsnaps::LastProof {
        proven_at: last.proven,
        kind: match last.kind {
            VerifyDepth::Quick => cloudsnaps::VerifyDepth::Quick,
            VerifyDepth::Full => cloudsnaps::VerifyDepth::Full,
            VerifyDepth::Deep => cloudsnaps::VerifyDepth::Deep,
        },
        sound: last.sound,
        host: last.host.unwrap_or_else(|| host.node.clone()),
        version: last.version,
    }
}

/// Row of a result of this host.
trait Publishable: Send + 'static {
    fn credential(&self) -> Uuid;
    /// Returns the location that was read.
    fn location(&self) -> Option<Uuid>;
    fn proof(&self, host: Uuid, host_name: String, location: Uuid) -> Proof;
    fn set_published(&self, tx: &rusqlite::Transaction<'_>) -> Result<(), DbError>;
}

impl Publishable for ProofRow {
    fn credential(&self) -> Uuid {
        self.credential
    }

    fn location(&self) -> Option<Uuid> {
        self.location
    }

    fn proof(&self, host: Uuid, host_name: String, location: Uuid) -> Proof {
        Proof {
            cloudsnap: self.cloudsnap,
            kind: self.depth.into(),
            proven: self.verified,
            host,
            host_name,
            version: self.version.clone(),
            location,
            sound: self.sound,
            drill: None,
        }
    }

    fn set_published(&self, tx: &rusqlite::Transaction<'_>) -> Result<(), DbError> {
        Self::set_published(self, tx)
    }
}

impl Publishable for DrillRow {
    fn credential(&self) -> Uuid {
        self.credential
    }

    fn location(&self) -> Option<Uuid> {
        self.location
    }

    fn proof(&self, host: Uuid, host_name: String, location: Uuid) -> Proof {
        Proof {
            cloudsnap: self.cloudsnap,
            kind: ProofKind::Drill,
            proven: self.ended,
            host,
            host_name,
            version: self.version.clone(),
            location,
            sound: self.passed,
            drill: Some(self.report.clone()),
        }
    }

    fn set_published(&self, tx: &rusqlite::Transaction<'_>) -> Result<(), DbError> {
        Self::set_published(self, tx)
    }
}

impl Proofs {
    /// Publishes results of this host about the location that the credential has now. Those that the store
    /// refuses stay unpublished.
    ///
    /// # Errors
    /// The first error of the store that is permanent, after an attempt with each row; a temporary one at
    /// once. The location cannot be identified, or the database fails.
    pub async fn publish(&self, repository: &Repository, rows: Vec<ProofRow>) -> Result<(), ServiceError> {
        self.publish_all(repository, rows).await
    }

    /// Publishes drills of this host, as [`publish`](Self::publish) does results of verifications.
    ///
    /// # Errors
    /// Those of [`publish`](Self::publish).
    pub async fn publish_drills(
        &self,
        repository: &Repository,
        rows: Vec<DrillRow>,
    ) -> Result<(), ServiceError> {
        self.publish_all(repository, rows).await
    }

    async fn publish_all<R: Publishable>(
        &self,
        repository: &Repository,
        rows: Vec<R>,
    ) -> Result<(), ServiceError> {
        let Some(first) = rows.first() else { return Ok(()) };
        let location = self.location(first.credential()).await?;
        let name = self.host.node.chars().filter(|char| !char.is_control()).take(MAX_NAME_CHARS);
        let host_name: String = name.collect();
        let mut refused: Option<CloudError> = None;
        // The objects of another location, such as a copy at its address, were not read.
        for row in rows.into_iter().filter(|row| row.location() == Some(location)) {
            let proof = row.proof(self.host.cluster, host_name.clone(), location);
            match repository.publish_proof(&proof).await {
                Ok(_) => self.db.run(move |tx| row.set_published(tx)).await?,
                Err(error) if error.is_retryable() => return Err(error.into()),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Publishes the results that are not published yet, such as those of a location that did not respond,
    /// imports those of other hosts, and finds lost proofs of this host.
    ///
    /// # Errors
    /// The database fails.
    pub async fn exchange(&self) -> Result<(), ServiceError> {
        for credential in self.repositories.credential_rows().await? {
            if let Err(error) = self.exchange_with(&credential).await {
                tracing::warn!(credential = %credential.name, %error, "exchanging proofs failed");
            }
        }
        Ok(())
    }

    async fn exchange_with(&self, credential: &CredentialRow) -> Result<(), ServiceError> {
        let uuid = credential.uuid;
        let here = self.location(uuid).await?;
        // Before the listing, which then has their cloud snapshots.
        let pending = self.db.run(move |tx| -> Result<_, DbError> {
            let max = MAX_PUBLISHED_AT_ONCE;
            Ok((ProofRow::unpublished(tx, uuid, here, max)?, DrillRow::unpublished(tx, uuid, here, max)?))
        });
        let (proofs, drills) = pending.await?;
        let (repository, _) = self.repositories.task_repository(uuid).await?;
        let cache = DbManifestCache::new(Arc::clone(&self.db), uuid);
        let manifests = Box::pin(repository.list_manifests(&ManifestFilter::default(), &cache)).await?;
        let listed: HashSet<_> = manifests.iter().filter_map(|one| one.id).collect();
        match self.publish_pending(&repository, proofs, drills, &listed).await {
            Ok(()) => drop(self.refused.lock().remove(&uuid)),
            Err(error) if self.refused.lock().insert(uuid) => {
                tracing::warn!(credential = %credential.name, %error, "publishing proofs failed; each hour tries again");
            }
            Err(error) => tracing::debug!(credential = %credential.name, %error, "publishing proofs failed"),
        }
        self.import_all(credential, &repository, &manifests).await
    }

    /// Publishes results about listed cloud snapshots; those of deleted ones need no proof.
    async fn publish_pending(
        &self,
        repository: &Repository,
        mut proofs: Vec<ProofRow>,
        mut drills: Vec<DrillRow>,
        listed: &HashSet<CloudSnapshotId>,
    ) -> Result<(), ServiceError> {
        let credential = proofs.first().map(|row| row.credential);
        let Some(credential) = credential.or(drills.first().map(|row| row.credential)) else {
            return Ok(());
        };
        // The mount point of an unmounted disk accepts all writes.
        self.repositories.prove_location(credential, repository).await?;
        let gone_proofs: Vec<_> = proofs.extract_if(.., |row| !listed.contains(&row.cloudsnap)).collect();
        let gone_drills: Vec<_> = drills.extract_if(.., |row| !listed.contains(&row.cloudsnap)).collect();
        let settled = self.db.run(move |tx| -> Result<(), DbError> {
            gone_proofs.iter().try_for_each(|row| row.set_published(tx))?;
            gone_drills.iter().try_for_each(|row| row.set_published(tx))
        });
        settled.await?;
        let published = self.publish(repository, proofs).await;
        published.and(self.publish_drills(repository, drills).await)
    }

    async fn location(&self, credential: Uuid) -> Result<Uuid, ServiceError> {
        let row: CredentialRow = self.repositories.credential(Some(&CredentialRef::Id(credential))).await?;
        location_of(row, self.host.cluster).await
    }
}
