//! Costs of a backup before it is made.
//!
//! The backup is planned for a temporary snapshot, which is deleted afterwards: the blocks since the last
//! backup stay the same. Nothing is stored in the location.

use crate::{
    backup::{
        BackupRequest, Backups, PointInTime, StartedBackup, check_options, local_name,
        planning::{FrozenBackup, make_plan},
        task::spec_of,
    },
    costs,
    error::{ServiceError, blocking},
    ids::random_id,
    owner,
    quiesce::rules::QuiesceRequest,
    repositories::preflight::until_cancelled,
    tasks::{
        LiveTask, clean_files,
        requests::{check_limits, refuse_past},
    },
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    ErrorCode, List, SnapshotName, SnapshotRef, VolumeRef,
    cloudsnaps::{BackupOptions, StartBackup, StartGroupBackup},
    costs::CostEstimate,
};
use blockd_catalog::{CredentialRow, DbManifestCache, SnapshotRow, SnapshotState};
use blockd_cloud::{Manifest, UploadOptions, estimate_backup};
use blockd_extent::{BlockSource, SnapshotId};
use blockd_store::RequestCounts;
use std::sync::Arc;

/// Maximum uncertainty that is not shown, in percent.
const MAX_HIDDEN_PERCENT: u32 = 5;

impl Backups {
    /// Estimates the costs of the backups that the request would start, one for each location.
    ///
    /// # Errors
    /// Those of [`start_backup`](Self::start_backup); the volume cannot be read, or a location does not
    /// answer.
    pub async fn estimate(
        self: &Arc<Self>,
        request: &StartBackup,
    ) -> Result<List<CostEstimate>, ServiceError> {
        check_limits(request.limits)?;
        check_options(&request.options)?;
        refuse_past(request.options.expires_at)?;
        let hooks = QuiesceRequest { hooks: request.hooks.clone(), scheduled: None };
        self.quiescer.check_hooks(&hooks).await?;
        let mut credentials = Vec::new();
        for credential in self.resolve_credentials(&request.credentials).await? {
            credentials.push(self.repositories.credential(Some(&credential)).await?);
        }
        let existing = self.existing_snapshot(request).await?;
        let entry = self.registry.find(&request.volume)?;
        self.refuse_unless_free(&entry, &credentials).await?;
        if let Some(name) = local_name(request.keep_local, &request.options)? {
            self.refuse_taken(&name, &[entry.id]).await?;
        }
        let started =
            StartedBackup { volume: entry.id, credentials: credentials.clone(), snapshot: existing };
        self.older_than(&[started], &owner::current()).await?;
        let _one = costs::begin_estimate(&entry)?;
        let point = match existing {
            Some(id) => self.existing_point(&entry, id).await?,
            None => self.temporary_point(&entry).await?,
        };
        let estimated = self.estimate_all(request, &entry, &point, &credentials).await;
        if existing.is_none() {
            self.drop_temporary(&entry, point.id).await?;
        }
        Ok(List::from(estimated?))
    }

    /// Estimates the costs of the backups of a group, one for each volume and location.
    ///
    /// # Errors
    /// Those of [`estimate`](Self::estimate); no volumes are selected, or too many.
    pub async fn estimate_group(
        self: &Arc<Self>,
        request: StartGroupBackup,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let mut all = Vec::new();
        for (entry, snapshot) in self.group_members(&request).await? {
            let one = StartBackup {
                volume: VolumeRef::Id(entry.id),
                snapshot: snapshot.map(SnapshotRef::Id),
                keep_local: request.keep_local,
                credentials: request.credentials.clone(),
                limits: request.limits,
                options: request.options.clone(),
                hooks: request.hooks.clone(),
            };
            all.extend(Box::pin(self.estimate(&one)).await?.items);
        }
        Ok(all.into())
    }

    async fn drop_temporary(&self, entry: &Arc<VolumeEntry>, point: SnapshotId) -> Result<(), ServiceError> {
        if let Err(error) = self.snapshots.drop_snapshot(entry.volume()?, point).await {
            tracing::warn!(snapshot = %point, %error, "deleting the snapshot of an estimate failed; the next start retries");
        }
        self.snapshots.drop_unneeded_intervals(entry).await;
        Ok(())
    }

    async fn existing_point(&self, entry: &VolumeEntry, id: SnapshotId) -> Result<SnapshotRow, ServiceError> {
        let volume = entry.id;
        let rows = self.snapshots.db.run(move |tx| SnapshotRow::all(tx, Some(volume))).await?;
        let found = rows.into_iter().find(|row| row.id == id && row.state == SnapshotState::Ready);
        found.ok_or_else(|| {
            let message = format!("snapshot {id} of volume {} no longer exists", entry.name);
            ServiceError::refused(ErrorCode::SnapshotNotFound, message)
        })
    }

    /// Takes a snapshot that the next start deletes if this run does not.
    async fn temporary_point(&self, entry: &Arc<VolumeEntry>) -> Result<SnapshotRow, ServiceError> {
        let id = SnapshotId::from_u64(random_id()?);
        let name: SnapshotName = format!("estimate-{id}").parse()?;
        let row = self.snapshots.freeze(entry, id, name).await?;
        let released = self.snapshots.db.run(move |tx| SnapshotRow::release(tx, id)).await;
        if let Err(error) = released {
            self.drop_temporary(entry, id).await?;
            return Err(error.into());
        }
        Ok(row)
    }

    async fn estimate_all(
        &self,
        request: &StartBackup,
        entry: &Arc<VolumeEntry>,
        point: &SnapshotRow,
        credentials: &[CredentialRow],
    ) -> Result<Vec<CostEstimate>, ServiceError> {
        let (options, limits) = (request.options.clone(), request.limits);
        let asked = BackupRequest { options, limits, ..BackupRequest::default() };
        let mut estimates = Vec::with_capacity(credentials.len());
        for credential in credentials {
            estimates.push(Box::pin(self.estimate_one(&asked, entry, point, credential)).await?);
        }
        Ok(estimates)
    }

    /// Estimates the backup to one location. If its base is gone, the backup finds that after its commit, and
    /// restarts as a full one.
    async fn estimate_one(
        &self,
        asked: &BackupRequest,
        entry: &Arc<VolumeEntry>,
        point: &SnapshotRow,
        credential: &CredentialRow,
    ) -> Result<CostEstimate, ServiceError> {
        let first = Box::pin(self.estimate_attempt(asked, entry, point, credential)).await?;
        let mut basis = format!("{}; compression estimated from a sample", first.note);
        let (mut counts, mut uncertainty) = (first.counts, first.uncertainty_percent);
        if first.base_is_deleted {
            let options = BackupOptions { full: true, reupload: true, ..asked.options.clone() };
            let asked = BackupRequest { options, ..asked.clone() };
            let second = Box::pin(self.estimate_attempt(&asked, entry, point, credential)).await?;
            // The restart proves the location again, and deletes the manifest of the first attempt.
            let restart = RequestCounts { delete: 1, ..second.planning };
            counts = counts.plus(restart).plus(second.counts);
            uncertainty = uncertainty.max(second.uncertainty_percent);
            basis.push_str("; the last backup was deleted, so that a full one follows");
        }
        let volume = Some(entry.name.clone());
        let estimate = costs::estimate(&self.host.settings, credential, volume, &counts, basis);
        let uncertainty_percent = Some(uncertainty).filter(|percent| *percent > MAX_HIDDEN_PERCENT);
        Ok(CostEstimate { uncertainty_percent, ..estimate })
    }

    async fn estimate_attempt(
        &self,
        asked: &BackupRequest,
        entry: &Arc<VolumeEntry>,
        point: &SnapshotRow,
        credential: &CredentialRow,
    ) -> Result<Attempt, ServiceError> {
        let work = &self.runner.backup_work;
        let alone = PointInTime { group_freeze: None, quiesce_rules: Vec::new() };
        let credentials = std::slice::from_ref(credential);
        let mut rows = self.rows_of(entry, credentials, Some(point.id), asked, &alone)?;
        let row = rows.swap_remove(0);
        let Some(backup) = row.spec.backup().cloned() else {
            return Err(ServiceError::Internal("an estimate of another task".into()));
        };
        let volume = entry.volume()?;
        let frozen = FrozenBackup {
            asked: &backup,
            entry: Arc::clone(entry),
            volume: Arc::clone(&volume),
            snapshot: point.clone(),
            write_once: credential.capabilities.conditional_put,
            dry: true,
        };
        let (repository, requests) = self.repositories.task_repository(credential.uuid).await?;
        repository.check_writable()?;
        let manifests = DbManifestCache::new(Arc::clone(&work.db), credential.uuid);
        let live = LiveTask::new(row.clone(), None);
        let planned = until_cancelled(make_plan(work, &live, &frozen, &repository, &manifests)).await;
        // The thread that searches for stored blocks outlives a cancelled plan by a read, and writes files.
        live.cancel.cancel();
        drop(live.search.lock().await);
        // The fingerprints of its blocks.
        if let Err(error) = clean_files(&work.tasks, live.id).await {
            tracing::warn!(%error, "deleting the files of an estimate failed; the next start retries");
        }
        let (planned, note) = planned?;
        let planning = requests.snapshot();
        let spec = Arc::new(spec_of(&row, &frozen, planned).await?);
        let base = spec.base.as_ref().map(Manifest::id);
        let (readers, id) = (Arc::clone(&work.shared_readers), point.id);
        let reader = blocking(move || readers.join(id, || volume.view(id))).await?;
        let reader = Arc::new(reader);
        let options = UploadOptions {
            cpu_threads: self.host.settings.cpu_threads,
            write_once: frozen.write_once,
            compression: backup.options.compression.unwrap_or_default(),
            ..UploadOptions::default()
        };
        let source = Arc::clone(&reader) as Arc<dyn BlockSource>;
        let stored =
            until_cancelled(async { Ok(estimate_backup(&repository, spec, source, &options).await?) }).await;
        blocking(move || {
            reader.close();
            Ok::<_, ServiceError>(())
        })
        .await?;
        let stored = stored?;
        let checks = checks_of_long_run(&stored.requests, credential.capabilities.write_bytes_per_s);
        Ok(Attempt {
            counts: planning.plus(stored.requests).plus(checks),
            planning,
            uncertainty_percent: stored.uncertainty_percent,
            // Without another snapshot that has sources, the backup restarts on its base.
            base_is_deleted: stored.deleted.is_some() && stored.deleted == base,
            note,
        })
    }
}

/// Estimated run of a backup.
struct Attempt {
    /// All its requests.
    counts: RequestCounts,
    /// Those of its plan.
    planning: RequestCounts,
    uncertainty_percent: u32,
    base_is_deleted: bool,
    note: &'static str,
}

/// Returns the requests after the commit of a backup that takes more than an hour: a byte of each object.
fn checks_of_long_run(requests: &RequestCounts, write_bytes_per_s: u64) -> RequestCounts {
    const LONG_RUN_S: u64 = 3600;
    if write_bytes_per_s == 0 || requests.bytes_up / write_bytes_per_s < LONG_RUN_S {
        return RequestCounts::default();
    }
    // The packs and the index; a long index has a multipart upload.
    let objects = requests.put - u64::from(requests.multipart == 0);
    RequestCounts { get: objects, bytes_down: objects, ..RequestCounts::default() }
}
