//! Deletion of a cloud snapshot: its manifest first, then the data that no other snapshot needs.
//!
//! The manifest is copied to the task's directory before it is deleted from the store, so that an interrupted
//! deletion still knows the objects.

use crate::{
    error::{ServiceError, blocking},
    host::Host,
    repositories::opening::is_unusable_base,
    restore::lazy::LazyVolumes,
    snapshots::Snapshots,
    tasks::{
        LiveTask, Tasks, clean_files,
        needs::{needed_by, untyped},
        secrets,
    },
    volumes::registry::Registry,
};
use blockd_api::{
    ErrorCode,
    tasks::{TaskKind, ways_to_end},
};
use blockd_catalog::{
    Chain, Db, DbManifestCache, DeleteTask, Doubt, ProofRow, RetentionOverride, RunRow, TaskRow,
};
use blockd_cloud::{
    CloudError, CloudSnapshotId, DeleteMode, Manifest, ManifestCache, ManifestKey, Progress, Repository,
    delete_damaged, delete_with_manifest,
};
use blockd_extent::SnapshotId;
use blockd_store::StoreErrorKind;
use std::{path::Path, sync::Arc};

/// Work of deletions.
pub struct DeleteWork {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

impl DeleteWork {
    /// Refuses to delete a cloud snapshot that a lazy volume, or a running or resumable task needs. Requires
    /// the admission lock.
    pub(crate) async fn refuse_if_used(&self, id: &CloudSnapshotId) -> Result<(), ServiceError> {
        self.lazy.refuse_if_needed(id).await?;
        let chains = self.db.run(|tx| Chain::all(tx, None)).await?;
        let uses = |task: &TaskRow| needed_by(task, &chains).contains(&untyped(id));
        let tasks =
            self.tasks.unfinished_tasks().await?.into_iter().chain(self.tasks.resumable_tasks().await?);
        let Some(task) = tasks.into_iter().find(uses) else { return Ok(()) };
        let how = match task.state.is_over() {
            true => ways_to_end(task.id),
            false => "wait for it to end".to_owned(),
        };
        let message = format!("cloud snapshot {id} is used by {} task {}: {how}", task.kind(), task.id);
        Err(ServiceError::refused(ErrorCode::CloudsnapInUse, message))
    }
}

pub(crate) async fn run(
    work: &Arc<DeleteWork>,
    live: &Arc<LiveTask>,
    asked: DeleteTask,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let (repository, requests) = secrets::repository(&work.tasks, live).await?;
    let progress = Arc::new(Progress::new(requests));
    live.begin(progress);
    work.tasks.store_progress(live).await;
    if asked.by_retention && (row.detail.run != Some(work.host.run) || row.detail.resumed > 0) {
        refuse_unstarted(&repository, &row).await?;
    }
    // The directory of an unmounted disk is empty, so that no object would seem to be needed.
    repository.prove_key_slot().await?;
    let manifest_cache = DbManifestCache::new(Arc::clone(&work.db), row.credential);
    // The location may be on the full disk: its deletion frees space there.
    let keep = || kept_manifest(work, live, &repository, (row.cloudsnap, asked.damaged));
    let manifest = work.snapshots.with_space_reserve(keep).await?;
    work.host.failpoints.reached("delete accepted")?;
    let mut protected = protected(work).await?;
    protected.extend(needed_deltas(work, &row, &repository, &manifest_cache).await?);
    let mode = match asked.force {
        true => DeleteMode::Forced,
        false => DeleteMode::Checked { host: work.host.cluster },
    };
    let delete = async {
        match &manifest {
            Some(manifest) => {
                delete_with_manifest(&repository, manifest, &protected, &manifest_cache, mode).await
            }
            None => delete_damaged(&repository, &row.cloudsnap, &protected, &manifest_cache, mode).await,
        }
    };
    let report = tokio::select! {
        deleted = delete => match deleted {
            Ok(report) => report,
            Err(error) => return Err(refusal(&repository, error, &row.cloudsnap, asked).await),
        },
        // All steps so far can be repeated.
        () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
    };
    tracing::info!(
        deltas_deleted = report.deltas_deleted,
        objects_deleted = report.objects_deleted,
        kept = report.kept.len(),
        kept_reason = report.kept_reason,
        "cloud snapshot deleted"
    );
    work.host.failpoints.reached("delete removed objects")?;
    let (task, id, credential) = (row.id, row.cloudsnap, row.credential);
    let finish = || {
        work.tasks.finish(live, move |tx| {
            Chain::remove_tip(tx, &id)?;
            ProofRow::remove(tx, credential, &id)?;
            Doubt::remove(tx, credential, &id)?;
            RetentionOverride::remove(tx, &id, credential)?;
            RunRow::expire(tx, credential, &id, &format!("deleted by task {task}"))?;
            DbManifestCache::remove(tx, credential, &id.manifest_key())
        })
    };
    let done = work.snapshots.with_space_reserve(finish).await?;
    if let Some(entry) = work.registry.by_id(id.volume) {
        work.snapshots.drop_unneeded_intervals(&entry).await;
    }
    if let Err(error) = clean_files(&work.tasks, done.id).await {
        tracing::warn!(%error, "cleanup of the deletion failed; the next start retries");
    }
    Ok(done)
}

/// Adds a possible retention lock, and the next action, to the error of a location that refuses to delete a
/// manifest: nothing is deleted, so that a new task can delete it as well. After the manifest was deleted,
/// only this task can complete the deletion, and the error keeps it resumable.
async fn refusal(
    repository: &Repository,
    error: CloudError,
    id: &CloudSnapshotId,
    asked: DeleteTask,
) -> ServiceError {
    let is_refused = matches!(&error, CloudError::Store(store) if store.kind == StoreErrorKind::Unauthorized);
    let error = ServiceError::from(error);
    if !is_refused || !matches!(repository.manifest(id).await, Ok(_) | Err(CloudError::Damaged { .. })) {
        return error;
    }
    let mut refused = error.to_api();
    let hint = refused.hint.map(|hint| format!("{hint}; ")).unwrap_or_default();
    let lock = format!("if the location has a retention lock, cloud snapshot {id} stays until the lock ends");
    let force = if asked.force { " --force" } else { "" };
    refused.hint = Some(match asked.by_retention {
        true => format!("{hint}{lock}; the daemon tries again"),
        false => format!("{hint}{lock}; then repeat `blockctl cloudsnap delete {id}{force}`"),
    });
    ServiceError::Refused(refused)
}

/// Refuses a deletion that retention decided before a restart of the daemon or a stop, unless it has deleted
/// something: the decision may be outdated.
async fn refuse_unstarted(repository: &Repository, row: &TaskRow) -> Result<(), ServiceError> {
    let id = row.cloudsnap;
    match repository.manifest(&id).await {
        Err(CloudError::SnapshotNotFound { .. }) => Ok(()),
        Err(error @ CloudError::Store(_)) => Err(error.into()),
        _ => {
            let message = format!(
                "deletion of cloud snapshot {id} was interrupted before it deleted an object; retention evaluates it again"
            );
            Err(ServiceError::refused(ErrorCode::TaskStopped, message))
        }
    }
}

/// Returns the manifest after copying it to this host; `None` if it was damaged at the request and is still
/// damaged or gone.
async fn kept_manifest(
    work: &DeleteWork,
    live: &LiveTask,
    repository: &Repository,
    (wanted, damaged): (CloudSnapshotId, bool),
) -> Result<Option<Manifest>, ServiceError> {
    let dir = work.host.data_dir.task_dir(live.id);
    let path = dir.join("manifest.json");
    let load = path.clone();
    let kept = blocking(move || read_manifest(&load)).await?;
    if let Some(manifest) = kept.filter(|manifest| manifest.id() == wanted) {
        return Ok(Some(manifest));
    }
    let manifest = match repository.manifest(&wanted).await {
        Err(CloudError::Damaged { .. } | CloudError::SnapshotNotFound { .. }) if damaged => {
            return Ok(None);
        }
        read => read?,
    };
    let text = serde_json::to_vec(&manifest)
        .map_err(|error| ServiceError::Internal(format!("cannot encode a manifest: {error}")))?;
    blocking(move || {
        let written =
            blockd_files::make_dir(&dir).and_then(|()| blockd_files::write_atomically(&path, &text));
        written.map_err(|source| ServiceError::File { action: "write", path, source })
    })
    .await?;
    Ok(Some(manifest))
}

fn read_manifest(path: &Path) -> Result<Option<Manifest>, ServiceError> {
    match std::fs::read(path) {
        // An incomplete copy is fetched again.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ServiceError::File { action: "read", path: path.to_owned(), source }),
    }
}

/// Returns the deltas that running backups use or create, of all volumes: a volume restored from a snapshot
/// uses its deltas.
async fn protected(work: &DeleteWork) -> Result<Vec<SnapshotId>, ServiceError> {
    let backups =
        work.tasks.unfinished_tasks().await?.into_iter().filter(|task| task.kind() == TaskKind::Backup);
    let needed = |task: TaskRow| {
        let ids = [Some(task.cloudsnap), task.base].into_iter().flatten().chain(task.detail.donors);
        ids.map(|id| id.snapshot)
    };
    Ok(backups.flat_map(needed).collect())
}

/// Returns the deltas that the cached manifests need, of all volumes: a volume restored from a snapshot uses
/// its deltas. Listings of some stores lag behind (Swift), and a delta must not be lost by that.
async fn needed_deltas(
    work: &DeleteWork,
    row: &TaskRow,
    repository: &Repository,
    manifest_cache: &DbManifestCache,
) -> Result<Vec<SnapshotId>, ServiceError> {
    let (gone, credential) = (row.cloudsnap, row.credential);
    let cache = manifest_cache.clone();
    let mut manifests = blocking(move || Ok::<_, ServiceError>(cache.all_but(&gone)?)).await?;
    let chains = work.db.run(|tx| Chain::all(tx, None)).await?;
    let tips = chains.into_iter().filter(|chain| chain.credential == credential && chain.cloudsnap != gone);
    for tip in tips.map(|chain| chain.cloudsnap) {
        if manifests.iter().any(|known| known.id() == tip) {
            continue;
        }
        let catalog_key = tip.manifest_key();
        let cache = manifest_cache.clone();
        if let Some(known) = blocking(move || Ok::<_, ServiceError>(cache.load(&catalog_key))).await? {
            manifests.push(known);
            continue;
        }
        match repository.manifest(&tip).await {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if is_unusable_base(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let left = manifests.iter().filter(|manifest| manifest.id() != gone);
    Ok(left.flat_map(Manifest::deltas).map(|delta| delta.snapshot).collect())
}
