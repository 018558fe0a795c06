//! Checks before a retention pass deletes anything.

use crate::{
    error::{ServiceError, spawned},
    events::EventLog,
    fingerprints,
    health::{self, ComponentHealth},
    host::Host,
    leases::Leases,
    repositories::Repositories,
    schedules::judgement::Judgement,
    volumes::registry::Registry,
};
use blockd_api::{
    ApiError, CredentialRef, ErrorCode,
    events::{EventKind, Severity},
};
use blockd_catalog::{AnomalyRow, Db, DbManifestCache, NewEvent, RetentionOverride, RunRow};
use blockd_cloud::{
    CloudError, CloudSnapshotId, ListedManifest, Manifest, ManifestFilter, ManifestKey, Progress, Repository,
    VerifyDepth, VerifyFinding, VerifyOptions, check_clock, verify,
};
use blockd_schedule::{KeepReason, Verdict};
use blockd_store::Requests;
use jiff::Timestamp;
use std::{collections::HashSet, sync::Arc};
use uuid::Uuid;

/// Checks before retention deletes: stores, clocks, and the backups that it relies on.
pub struct RetentionChecks {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
}

/// State of the backups that a pass would keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RetentionCheck {
    /// All exist with readable manifests, and those relied on have all objects.
    Whole,
    /// Some are gone, and were removed from the records.
    Fewer,
    /// A manifest is unreadable, or objects of one relied on are missing: nothing may be deleted.
    Doubtful,
}

/// Proven location with the readable manifests of a volume.
pub struct ProvenRepository {
    credential: Uuid,
    like: CloudSnapshotId,
    repository: Repository,
    requests: Arc<Requests>,
    manifest_cache: DbManifestCache,
    pub(crate) listed: Vec<ListedManifest>,
}

/// Cause why retention stops for a volume, and the remedy.
struct Obstacle {
    what: String,
    hint: String,
}

impl RetentionChecks {
    /// Proves a location and reads the manifests of a volume there, before retention decides. Returns `None`
    /// and stops retention if one is unreadable.
    ///
    /// # Errors
    /// The key slot is missing, or the store fails.
    pub async fn prove_for_retention(
        &self,
        credential: Uuid,
        like: &CloudSnapshotId,
    ) -> Result<Option<ProvenRepository>, ServiceError> {
        let (repository, requests) = self.repositories.task_repository(credential).await?;
        // The directory of an unmounted disk is empty.
        repository.prove_key_slot().await?;
        self.host.failpoints.reached("location proven")?;
        let filter = ManifestFilter { cluster: Some(like.cluster), volume: Some(like.volume) };
        let manifest_cache = DbManifestCache::new(Arc::clone(&self.db), credential);
        let listed = Box::pin(repository.list_manifests(&filter, &manifest_cache)).await?;
        if let Some(obstacle) = unreadable(&listed)? {
            self.stop_retention(credential, like, obstacle).await?;
            return Ok(None);
        }
        Ok(Some(ProvenRepository { credential, like: *like, repository, requests, manifest_cache, listed }))
    }

    /// Checks that the backups that retention [relies on](is_relied_on) have all objects. Otherwise
    /// retention stops, and nothing of the volume may be deleted.
    ///
    /// # Errors
    /// The store fails.
    pub async fn check_relied_on(
        &self,
        proven: ProvenRepository,
        relied_on: Vec<CloudSnapshotId>,
    ) -> Result<bool, ServiceError> {
        let (credential, like) = (proven.credential, proven.like);
        if let Some(what) = self.check_quickly(proven, relied_on).await? {
            let hint = "verify its cloud snapshots, make a full backup with `--full --reupload`, then delete the damaged ones with `blockctl cloudsnap delete`";
            self.stop_retention(credential, &like, Obstacle { what, hint: hint.to_owned() }).await?;
            return Ok(false);
        }
        self.health.clear(health::RETENTION, &stopped_key(credential, &like));
        Ok(true)
    }

    /// Checks the backups of a volume that a pass keeps in a location, before it deletes others.
    pub(super) async fn check_kept(
        &self,
        credential: Uuid,
        like: &CloudSnapshotId,
        kept: &[Judgement],
    ) -> Result<RetentionCheck, ServiceError> {
        let is_selected = |judgement: &&Judgement| {
            let id = judgement.cloudsnap;
            judgement.credential == credential && (id.cluster, id.volume) == (like.cluster, like.volume)
        };
        let Some(proven) = self.prove_for_retention(credential, like).await? else {
            return Ok(RetentionCheck::Doubtful);
        };
        let listed: HashSet<&String> = proven.listed.iter().map(|manifest| &manifest.key).collect();
        let mut found = RetentionCheck::Whole;
        for judgement in kept.iter().filter(is_selected) {
            let id = judgement.cloudsnap;
            if listed.contains(&id.manifest_key()) {
                continue;
            }
            // A listing may lag behind.
            match Box::pin(proven.repository.manifest(&id)).await {
                Err(CloudError::SnapshotNotFound { .. }) => {
                    tracing::warn!(cloudsnap = %id, run = judgement.run.id, "a backup that retention keeps is missing from its store");
                    self.expire_run_of_deleted(credential, id).await?;
                    found = RetentionCheck::Fewer;
                }
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        if found == RetentionCheck::Fewer {
            return Ok(found);
        }
        let relied_on = kept.iter().filter(is_selected).filter(|one| is_relied_on(&one.verdict));
        let relied_on = relied_on.map(|judgement| judgement.cloudsnap).collect();
        match self.check_relied_on(proven, relied_on).await? {
            true => Ok(RetentionCheck::Whole),
            false => Ok(RetentionCheck::Doubtful),
        }
    }

    /// Marks the run of a missing backup as expired.
    ///
    /// # Errors
    /// The location cannot be proven: its disk may have been unmounted since the listing.
    pub(super) async fn expire_run_of_deleted(
        &self,
        credential: Uuid,
        id: CloudSnapshotId,
    ) -> Result<(), ServiceError> {
        let (repository, _) = self.repositories.task_repository(credential).await?;
        repository.prove_key_slot().await?;
        let expired = move |tx: &rusqlite::Transaction<'_>| {
            RunRow::expire(tx, credential, &id, "it is no longer in its store")
        };
        Ok(self.db.run(expired).await?)
    }

    /// [`check_store_clock`](Self::check_store_clock) of a credential, after a proof of its location: the
    /// directory of an unmounted disk must not get a probe object. Then imports the leases of the location,
    /// which the decision considers.
    pub async fn check_clock_of(&self, credential: Uuid) -> Result<(), ServiceError> {
        let (repository, _) = self.repositories.task_repository(credential).await?;
        repository.prove_key_slot().await?;
        self.check_store_clock(&repository, credential).await?;
        self.leases.import(credential, &repository, &ManifestFilter::default()).await
    }

    /// Refuses deletions if the clocks of this host and of a store differ, and reports it once. The time of a
    /// decision is taken after this check.
    pub async fn check_store_clock(
        &self,
        repository: &Repository,
        credential: Uuid,
    ) -> Result<(), ServiceError> {
        let of = credential.to_string();
        let checked = self
            .repositories
            .preflight(credential, async { Ok(check_clock(&**repository.store(), Timestamp::now).await?) })
            .await;
        let Err(error) = checked else {
            self.health.clear(health::CLOCK, &of);
            return Ok(());
        };
        let kind = match &error {
            ServiceError::Cloud(error) => match **error {
                CloudError::ClockDiffers { .. } => Some(EventKind::ClockDiffers),
                CloudError::ClockUnknown { .. } => Some(EventKind::ClockUnknown),
                _ => None,
            },
            _ => None,
        };
        let (message, hint) = (error.to_string(), error.cloud_hint().unwrap_or_default());
        if let Some(kind) = kind
            && self.health.note(health::CLOCK, &of, message.clone(), hint)
        {
            tracing::error!(%credential, "{message}");
            let event = NewEvent::new(Timestamp::now(), Severity::Error, kind, message);
            self.db.run(move |tx| event.insert(tx)).await?;
            self.events.wake();
        }
        Err(error)
    }

    /// Checks that these cloud snapshots and their objects are in the store; returns the first problem.
    async fn check_quickly(
        &self,
        proven: ProvenRepository,
        ids: Vec<CloudSnapshotId>,
    ) -> Result<Option<String>, ServiceError> {
        if ids.is_empty() {
            return Ok(Some("no backup of it is known to be good".to_owned()));
        }
        let readable = proven.listed.iter().filter_map(|listed| listed.manifest.as_ref().ok());
        let checked = readable.filter(|manifest| ids.contains(&manifest.id()));
        let indexes: HashSet<String> = checked.flat_map(Manifest::layer_indexes).collect();
        let options = VerifyOptions { depth: VerifyDepth::Quick, ..VerifyOptions::default() };
        let (checked, cancel) = (ids.clone(), self.host.stopping.clone().into());
        let manifests = proven.manifest_cache.clone();
        let report = spawned(async move {
            let progress = Arc::new(Progress::new(proven.requests));
            let manifest_cache = proven.manifest_cache;
            verify(&proven.repository, &checked, &options, &|_| None, &manifest_cache, progress, &cancel)
                .await
        })
        .await?;
        fingerprints::forget_reported(&self.host.data_dir, &manifests, &report);
        let is_repaired =
            |object: &str| report.slots.iter().any(|one| one.object == object && one.is_repaired());
        // Newer deltas hide the damage from all cloud snapshots, such as that of a repaired one.
        let is_slot = |object: &str| report.slots.iter().any(|one| one.object == object);
        let is_needed = |object: &str| is_slot(object) || indexes.contains(object);
        let is_hidden = |one: &&VerifyFinding| one.affects.is_empty() && !is_needed(&one.object);
        let mut findings = report.findings.iter().filter(|one| !is_hidden(one));
        if let Some(finding) = findings.find(|finding| !is_repaired(&finding.object)) {
            return Ok(Some(format!("object {} is damaged: {}", finding.object, finding.what)));
        }
        // A missing manifest is no finding.
        let is_sound =
            |id: &&CloudSnapshotId| report.snapshots.iter().any(|one| one.id == **id && one.is_sound());
        let unproven = ids.iter().find(|id| !is_sound(id));
        Ok(unproven.map(|id| format!("cloud snapshot {id} is listed, but its manifest is missing")))
    }

    /// Reports once that retention has stopped for a volume in a location.
    async fn stop_retention(
        &self,
        credential: Uuid,
        like: &CloudSnapshotId,
        obstacle: Obstacle,
    ) -> Result<(), ServiceError> {
        let volume = self.registry.by_id(like.volume).map(|entry| entry.name.clone());
        let name = volume.as_ref().map_or_else(|| like.volume.to_string(), ToString::to_string);
        let Obstacle { what, hint } = obstacle;
        let message = format!("retention stopped on volume {name}: {what}; none of its backups is deleted");
        let of = stopped_key(credential, like);
        if !self.health.is_noted(health::RETENTION, &of, &message) {
            tracing::error!(volume = %like.volume, %credential, %hint, "{message}");
            let text = format!("{message}; {hint}");
            let event = NewEvent::new(Timestamp::now(), Severity::Error, EventKind::RetentionStopped, text);
            let event = event.of_volume(like.volume, volume);
            // Noted after its event is stored: a failed pass reports it again.
            self.db.run(move |tx| event.insert(tx)).await?;
            self.events.wake();
        }
        self.health.note(health::RETENTION, &of, message, hint);
        Ok(())
    }
}

/// Returns true for the backups that remain restorable if all others are lost: the last good one, and the
/// last verified one, because the content of the last good one may be unverified.
pub fn is_relied_on(verdict: &Verdict) -> bool {
    verdict.is_kept_as(KeepReason::LastGood) || verdict.is_kept_as(KeepReason::LastVerified)
}

/// Returns the cause of an unreadable manifest of a volume. An object with an unknown name counts as well, as
/// it may belong to the volume.
///
/// # Errors
/// A read failed with a temporary error.
fn unreadable(listed: &[ListedManifest]) -> Result<Option<Obstacle>, ServiceError> {
    let mut temporary = None;
    for found in listed {
        let error = match &found.manifest {
            Ok(_) => continue,
            Err(error) if error.is_retryable() => {
                temporary = Some(error);
                continue;
            }
            Err(error) => error,
        };
        let what = format!("manifest {} cannot be read: {error}", found.key);
        let hint = match (&found.id, error) {
            (Some(id), CloudError::Damaged { .. }) => {
                format!(
                    "make a full backup with `--full --reupload`, then delete the damaged one: {}",
                    delete_command(id)
                )
            }
            (Some(_), _) => "make a new full backup, and check the credentials of the store".to_owned(),
            (None, _) => "if blockd did not create the object, remove it with a tool of the store".to_owned(),
        };
        return Ok(Some(Obstacle { what, hint }));
    }
    temporary.map_or(Ok(None), |error| Err(ServiceError::refused(ErrorCode::StoreFailed, error.to_string())))
}

/// Returns the command that deletes a cloud snapshot with a damaged manifest.
pub fn delete_command(id: &CloudSnapshotId) -> String {
    format!("blockctl cloudsnap delete --snap {id} --force")
}

fn stopped_key(credential: Uuid, like: &CloudSnapshotId) -> String {
    format!("{credential}/{}", like.volume)
}

impl RetentionChecks {
    /// Refuses to unpin the last cloud snapshot before an anomaly.
    pub async fn refuse_if_pinned_by_anomaly(&self, id: &CloudSnapshotId) -> Result<(), ServiceError> {
        let open = self.db.run(|tx| AnomalyRow::all(tx, false)).await?;
        let is_it = |last: &CloudSnapshotId| {
            (last.cluster, last.volume, last.snapshot) == (id.cluster, id.volume, id.snapshot)
        };
        let holds = |row: &&AnomalyRow| row.protects && row.last_normal.as_ref().is_some_and(is_it);
        let Some(anomaly) = open.iter().find(holds) else { return Ok(()) };
        let message = format!("cloud snapshot {id} is pinned as the last one before an anomaly");
        let error = ApiError::new(ErrorCode::CloudsnapPinned, message);
        Err(ServiceError::Refused(error.with_hint(format!("blockctl anomaly acknowledge {}", anomaly.id))))
    }

    /// Refuses to delete a pinned cloud snapshot. Requires the admission lock.
    pub async fn refuse_if_pinned(&self, id: &CloudSnapshotId, credential: Uuid) -> Result<(), ServiceError> {
        let marks = self.db.run(RetentionOverride::all).await?;
        if marks.is_pinned_by_anomaly(id) {
            let message = format!(
                "cloud snapshot {id} is the last one before an anomaly: acknowledge that first (`blockctl anomaly list`), or delete it by force"
            );
            return Err(ServiceError::refused(ErrorCode::CloudsnapPinned, message));
        }
        let Some(under) = marks.pinned_under(id, credential) else { return Ok(()) };
        let under = self.repositories.credential(Some(&CredentialRef::Id(under))).await?.name;
        let message = format!(
            "cloud snapshot {id} is pinned under credential {under}: unpin it there first, or delete it by force"
        );
        Err(ServiceError::refused(ErrorCode::CloudsnapPinned, message))
    }
}
