//! A backup: freeze, decide, plan, upload, commit.
//!
//! Durable state after each step, from which an interrupted run resumes:
//!
//! 1. the task's row, with the id of the future snapshot: resume with the freeze;
//! 2. the snapshot's row, `ready`: the point in time is fixed; resume with the decision and the plan;
//! 3. the plan's file: the uploaded bytes are fixed; resume with the packs that the journal lacks;
//! 4. the manifest in the store: the backup exists; a repeated put of the same manifest is no conflict;
//! 5. one transaction: chain, manifest, task done, snapshot `deleting`; each start removes the leftovers.
//!
//! If its base or a donor is gone after step 4, or when a resumed run reads the plan, or if a source was
//! found damaged before step 4, the backup resumes from step 2 under another name without donors, as a full
//! one without its base.
//!
//! Facts about earlier attempts of the commit:
//!
//! - `TaskDetail::run` is another run of the daemon: that one created the task or its name, and may have put
//!   the manifest. So there is no resume without create-if-absent; an abandoned backup is in doubt, and its
//!   objects stay.
//! - `TaskDetail::may_be_committed`: a run started the commit. An abandoned backup is in doubt, and its
//!   objects stay.
//! - `BackupJournal::may_be_committed`: the journal has the start of a commit, or was lost or damaged.
//! - `Progress::was_in_doubt`: because of the journal, or of a put without a clear reply, the manifest may
//!   have existed before. The backup is no base.
//! - `UploadOptions::resumed`: an earlier run of the task may have stored objects. The writer checks all
//!   objects after the commit.

use crate::{
    anomalies::{ObservedBackup, ObservedBlocks, observed::ObservedSource},
    backup::{
        deduplication::{keep_fingerprints, sources_check},
        doubts::committed_in_doubt,
        freeze::snapshot_for_backup,
        plan::{Plan, journal_path},
        planning::{FrozenBackup, Planned, changed_bytes, ids, planned, restart_without},
        work::BackupWork,
    },
    error::{ServiceError, blocking, spawned},
    repositories::opening::is_unusable_base,
    snapshots::Snapshots,
    tasks::{LiveTask, clean_files, secrets},
};
use blockd_api::{CredentialRef, ErrorCode, ORIGIN_LABELS, anomalies::AnomalyPolicy};
use blockd_catalog::{
    BackupTask, Chain, CredentialRow, DbError, DbManifestCache, RetentionOverride, SnapshotRow, TaskRow,
};
use blockd_cloud::{
    BackupJournal, BackupSpec, BackupType, CancelToken, CloudError, CloudSnapshotId, FileJournal,
    JournalBinding, Manifest, ManifestKey, Progress, Repository, SnapshotDescription, TRANSFER_MEMORY_BYTES,
    UploadOptions, check_base,
};
use blockd_extent::{BlockSource, SnapshotId, VolumeId};
use rusqlite::Transaction;
use std::{path::Path, sync::Arc};
use uuid::Uuid;

/// Returns the trigger of a backup for its manifest and listings.
pub fn trigger_of(asked: &BackupTask) -> &'static str {
    if asked.schedule.is_some() { "Scheduled" } else { "Manual" }
}

/// Maximum number of restarts: without donors, then without the base.
const MAX_RESTARTS: u32 = 2;

pub(crate) async fn run(
    work: &Arc<BackupWork>,
    live: &Arc<LiveTask>,
    asked: &BackupTask,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let (volume_id, snapshot_id) = ids(&row)?;
    let entry = work.registry.by_id(volume_id).ok_or_else(|| {
        ServiceError::refused(ErrorCode::VolumeNotFound, format!("volume {volume_id} no longer exists"))
    })?;
    let volume = entry.volume()?;
    work.host.failpoints.reached("backup accepted")?;
    let snapshot = snapshot_for_backup(work, live, &entry, snapshot_id, asked).await?;
    live.detail(|detail| {
        detail.frozen = true;
        detail.freeze_stall_micros = snapshot.freeze_stall_micros;
        detail.quiesce.clone_from(&snapshot.quiesce);
    });
    work.tasks.store_progress(live).await;
    work.host.failpoints.reached("backup frozen")?;

    let _slot = secrets::slot(&work.tasks, live).await?;
    let write_once = work
        .repositories
        .credential(Some(&CredentialRef::Id(row.credential)))
        .await?
        .capabilities
        .conditional_put;
    let frozen = FrozenBackup { asked, entry, volume, snapshot, write_once, dry: false };
    let credential = row.credential;
    let before = work.db.run(move |tx| Chain::find(tx, volume_id, credential)).await?;
    let mut restarts = 0;
    let uploaded = loop {
        let gone = match attempt(work, live, &frozen).await {
            Err(ServiceError::Cloud(error)) if restarts < MAX_RESTARTS => match *error {
                CloudError::NeededDeleted { needed } => Some(needed),
                CloudError::SourceDamaged { .. } => None,
                other => return Err(other.into()),
            },
            result => break result?,
        };
        restart_without(work, live, gone).await?;
        work.host.failpoints.reached("backup restarted")?;
        restarts += 1;
    };
    work.host.failpoints.reached("backup stored")?;
    let delta = uploaded.manifest.delta.clone();
    let done = commit(work, live, &frozen, uploaded, before).await?;
    keep_fingerprints(work, live.id, row.credential, &delta).await;
    work.host.failpoints.reached("backup committed")?;
    if let Err(error) = clean_up(work, &done).await {
        tracing::warn!(%error, "cleanup of the backup failed; the next start retries");
    }
    Ok(done)
}

/// Uploaded backup.
struct Uploaded {
    manifest: Manifest,
    /// The manifest may have existed before.
    in_doubt: bool,
    /// `None` if the blocks were not observed.
    blocks: Option<ObservedBlocks>,
    spec: Arc<BackupSpec>,
}

/// Returns the specification of a planned backup.
pub(crate) async fn spec_of(
    row: &TaskRow,
    frozen: &FrozenBackup<'_>,
    (plan, base, references): Planned,
) -> Result<BackupSpec, ServiceError> {
    let FrozenBackup { asked, entry, volume, snapshot, .. } = frozen;
    let (volume_id, snapshot_id) = ids(row)?;
    // The volume may have grown since the freeze.
    let frozen_volume = Arc::clone(volume);
    let size_bytes = blocking(move || frozen_volume.view(snapshot_id).map(|view| view.size_bytes())).await?;
    Ok(BackupSpec {
        cluster: row.cloudsnap.cluster,
        volume: volume_id,
        snapshot: row.cloudsnap.snapshot,
        description: SnapshotDescription {
            volume_name: entry.name.to_string(),
            // The local snapshot is deleted after the backup; the backup's name stays.
            snapshot_name: asked.options.name.as_ref().map_or(snapshot.name.to_string(), ToString::to_string),
            labels: entry.tags().labels.without(&ORIGIN_LABELS).as_map().clone(),
            backup_labels: asked.options.labels.as_map().clone(),
            created: snapshot.created,
            trigger: trigger_of(asked).into(),
            freeze_stall_micros: snapshot.freeze_stall_micros,
        },
        size_bytes,
        started: plan.started,
        data: plan.data,
        zero: plan.zero,
        base,
        references,
        donors: plan.donors,
        deduplicated: plan.deduplicated,
        synthetic: plan.synthetic,
        repair: None,
        delta_salt: plan.salt,
    })
}

/// Uploads the frozen snapshot under the task's name.
async fn attempt(
    work: &BackupWork,
    live: &LiveTask,
    frozen: &FrozenBackup<'_>,
) -> Result<Uploaded, ServiceError> {
    let row = live.view();
    let (repository, requests) = work.repositories.task_repository(row.credential).await?;
    let repository = work.host.failpoints.repository(live.limited(&repository, &requests));
    let committed = match frozen.write_once {
        true => None,
        false => committed_before(work, live, &repository).await?,
    };
    let progress = Arc::new(Progress::new(requests));
    live.begin(Arc::clone(&progress));
    let manifests = DbManifestCache::new(Arc::clone(&work.db), row.credential);
    let planned = planned(work, live, frozen, &repository, &manifests).await?;
    let spec = Arc::new(spec_of(&row, frozen, planned).await?);
    let check = sources_check(work, &row, &spec);
    if committed.is_none() {
        blocking(check.clone()).await?;
    }
    work.host.failpoints.reached("backup planned")?;

    live.update(|row| {
        row.cloudsnap = spec.id();
        row.base = spec.base.as_ref().map(Manifest::id);
        row.detail.donors.clone_from(&spec.donors);
        row.detail.backup_type =
            Some(if spec.id().incremental { BackupType::Incremental } else { BackupType::Full });
        row.detail.bytes_dirty = spec.dirty_bytes();
    });
    work.tasks.store_progress(live).await;

    // An existing manifest may have been put more than once: its commit is in doubt.
    let Some(manifest) = committed else {
        let cancel = live.cancel.with_commit_check(check);
        let (manifest, blocks) =
            upload(work, frozen, &spec, &repository, Arc::clone(&progress), (live, cancel)).await?;
        return Ok(Uploaded { manifest, in_doubt: progress.was_in_doubt(), blocks, spec });
    };
    for owner in spec.owners() {
        check_base(repository.store().as_ref(), &manifest, owner).await?;
    }
    Ok(Uploaded { manifest, in_doubt: true, blocks: None, spec })
}

/// Returns the manifest that an earlier run put into a store without create-if-absent.
///
/// In such a store, a restarted daemon cannot be distinguished from a copy of it. So an interrupted backup
/// without a manifest fails, and its objects are abandoned; the next backup has another name, and includes
/// the same blocks again.
async fn committed_before(
    work: &BackupWork,
    live: &LiveTask,
    repository: &Repository,
) -> Result<Option<Manifest>, ServiceError> {
    let task = live.view();
    let dir = work.host.data_dir.task_dir(live.id);
    if task.detail.run == Some(work.host.run) {
        return Ok(None);
    }
    // Without a plan nothing was put yet, but a copy has the same id and would make its own plan.
    if let Some(plan) = blocking(move || Plan::load(&dir, task.id)).await? {
        let id = CloudSnapshotId { incremental: plan.is_incremental(), ..task.cloudsnap };
        match repository.manifest(&id).await {
            Ok(manifest) if manifest.delta.salt == plan.salt => return Ok(Some(manifest)),
            Err(error) if !is_unusable_base(&error) => return Err(error.into()),
            _ => {}
        }
    }
    // An unavailable repository gives no information.
    work.repositories.prove_location(task.credential, repository).await?;
    let message = format!(
        "resume failed on the backup: {} has no create-if-absent, without which a resume is not safe; start a new backup",
        repository.store().describe()
    );
    Err(ServiceError::refused(ErrorCode::StoreFailed, message))
}

/// Uploads the blocks and commits the manifest; also returns the blocks as they were read, if they are
/// observed.
async fn upload(
    work: &BackupWork,
    frozen: &FrozenBackup<'_>,
    spec: &Arc<BackupSpec>,
    repository: &Repository,
    progress: Arc<Progress>,
    (live, cancel): (&LiveTask, CancelToken),
) -> Result<(Manifest, Option<ObservedBlocks>), ServiceError> {
    let task = live.id;
    let row = live.view();
    let (volume, (_, snapshot)) = (Arc::clone(&frozen.volume), ids(&row)?);
    let readers = Arc::clone(&work.shared_readers);
    let path = journal_path(&work.host.data_dir.task_dir(task));
    let write_once = frozen.write_once;
    let binding = JournalBinding::of(repository, spec);
    let (reader, journal) = blocking(move || -> Result<_, ServiceError> {
        let journal = open_journal(&path, &binding, write_once)?;
        Ok((Arc::new(readers.join(snapshot, || volume.view(snapshot))?), journal))
    })
    .await?;
    // The locations of a snapshot divide the packs in flight; the other memory is needed by each.
    let sharing = work.tasks.sharing(snapshot).max(1);
    let options = UploadOptions {
        upload_concurrency: (work.host.settings.upload_concurrency / sharing).max(1),
        memory_bytes: TRANSFER_MEMORY_BYTES / sharing,
        cpu_threads: work.host.settings.cpu_threads,
        write_once: frozen.write_once,
        resumed: row.detail.run != Some(work.host.run) || row.detail.resumed > 0,
        compression: row.spec.backup().and_then(|asked| asked.options.compression).unwrap_or_default(),
    };
    let (repository, spec) = (repository.clone(), Arc::clone(spec));
    let observed = match work.anomalies.policy(&frozen.entry) {
        AnomalyPolicy::Off => None,
        _ => Some(ObservedSource::of_backup(Arc::clone(&reader), &spec, cancel.clone()).await?),
    };
    let blocks = match &observed {
        Some(observed) => Arc::clone(observed) as Arc<dyn BlockSource>,
        None => Arc::clone(&reader) as Arc<dyn BlockSource>,
    };
    let result = spawned(async move {
        blockd_cloud::backup(&repository, spec, blocks, Arc::new(journal), &options, progress, &cancel).await
    })
    .await;
    let is_done = result.is_ok();
    let closed = blocking(move || {
        let blocks = observed.filter(|_| is_done).map(|observed| observed.finish());
        reader.close();
        Ok::<_, ServiceError>(blocks)
    });
    let blocks = closed.await.unwrap_or_else(|error| {
        // The snapshot may be in the store: this error must not hide that.
        tracing::warn!(%error, "closing the snapshot of the backup failed");
        None
    });
    Ok((result?, blocks))
}

/// Opens the journal of this backup. With create-if-absent, a lost or damaged journal, or one of another
/// plan, is recreated: it saves work and records the start of the commit, which is assumed if unknown.
/// Without the levels that it records for `auto`, packs may differ from the stored ones, which ends the
/// backup. Without create-if-absent that goes unnoticed, and a late put of an earlier run replaces a pack:
/// there, a loss of the journal ends the backup.
fn open_journal(path: &Path, binding: &JournalBinding, write_once: bool) -> Result<FileJournal, CloudError> {
    if !write_once {
        return FileJournal::open_complete(path, binding);
    }
    let is_missing = !path.exists();
    match FileJournal::open(path, binding) {
        // It existed before the plan.
        Ok(journal) if is_missing => {
            journal.record_commit()?;
            Ok(journal)
        }
        Err(CloudError::ForeignJournal { .. }) => {
            tracing::warn!(path = %path.display(), "journal of the backup unusable; uploading all blocks again");
            std::fs::remove_file(path).map_err(|source| CloudError::Journal {
                path: path.to_owned(),
                what: "removal",
                source,
            })?;
            let journal = FileJournal::open(path, binding)?;
            journal.record_commit()?;
            Ok(journal)
        }
        other => other,
    }
}

/// Returns the number of incrementals since the last full backup. The chain of the base is still stored,
/// unless it was forgotten meanwhile.
fn incrementals(
    tx: &Transaction<'_>,
    volume: VolumeId,
    credential: Uuid,
    manifest: &Manifest,
) -> Result<u64, DbError> {
    let of_base = match manifest.base {
        Some(base) => Chain::find(tx, volume, credential)?.filter(|chain| chain.cloudsnap == base),
        None => None,
    };
    // One delta for the full backup, and one for each incremental.
    Ok(of_base.map_or(manifest.chain.len() as u64, |chain| chain.next_incremental()))
}

/// Records a committed backup. The store lists it, so it must not fail any more: this retries until the
/// database has it, and the next start completes it if the daemon stops.
///
/// Another host may be deleting a backup whose commit is in doubt, together with the deltas of backups based
/// on it. So it is not used as a base: the next backup uses the last backup before it.
async fn commit(
    work: &BackupWork,
    live: &LiveTask,
    FrozenBackup { asked, entry, volume, snapshot, .. }: &FrozenBackup<'_>,
    uploaded: Uploaded,
    before: Option<Chain>,
) -> Result<TaskRow, ServiceError> {
    let Uploaded { manifest, in_doubt, blocks, spec } = uploaded;
    let credential = live.view().credential;
    let id = manifest.id();
    let chain = Chain {
        volume: snapshot.volume,
        credential,
        epoch: snapshot.epoch,
        cloudsnap: id,
        incrementals: 0,
        point_in_time: snapshot.created,
    };
    if in_doubt {
        tracing::info!(cloudsnap = %id, "commit of the backup is in doubt; the next one does not use it as its base");
    }
    let mark = RetentionOverride {
        cloudsnap: id,
        credential,
        pinned: asked.options.pinned,
        expires: asked.options.expires_at,
    };
    let measured = measured_write_speed(live);
    let changed_bytes = changed_bytes(volume, before.as_ref(), &spec, snapshot.epoch).await;
    let observed = Arc::new(ObservedBackup {
        task: live.id,
        volume_name: entry.name.clone(),
        credential,
        credential_name: live.view().detail.credential_name,
        manifest: manifest.clone(),
        before,
        blocks,
        spec,
        changed_bytes,
        protects: work.anomalies.policy(entry) == AnomalyPolicy::Protect,
    });
    let (snapshot, task, is_existing) = (snapshot.id, live.id, asked.existing);
    work.tasks
        .until_stored("the committed backup", || {
            let (chain, manifest, observed) = (chain.clone(), manifest.clone(), Arc::clone(&observed));
            work.tasks.finish(live, move |tx| {
                let incrementals = incrementals(tx, chain.volume, credential, &manifest)?;
                let chain = Chain { incrementals, ..chain };
                match in_doubt {
                    false if is_existing => chain.put_unless_older(tx)?,
                    false => chain.put(tx)?,
                    true => committed_in_doubt(chain.credential, id).put(tx)?,
                }
                DbManifestCache::put(tx, credential, &id.manifest_key(), &manifest)?;
                put_mark(tx, mark)?;
                if let Some(bytes_per_s) = measured {
                    CredentialRow::set_write_speed(tx, credential, bytes_per_s)?;
                }
                // In this transaction, so that no retention pass comes between.
                observed.record(tx);
                release_snapshot(tx, task, snapshot)
            })
        })
        .await
        .inspect(|_| work.repositories.end_failed_check(credential))
}

/// Stores the requested pin and expiry date. A pin or date that was set during the backup stays.
fn put_mark(tx: &rusqlite::Transaction<'_>, asked: RetentionOverride) -> Result<(), DbError> {
    match RetentionOverride::find(tx, &asked.cloudsnap, asked.credential)? {
        Some(existing) => {
            let merged = RetentionOverride {
                pinned: existing.pinned || asked.pinned,
                expires: existing.expires.or(asked.expires),
                ..asked
            };
            merged.put(tx)
        }
        None => asked.put(tx),
    }
}

/// Releases the snapshot of a backup, unless another backup needs it.
fn release_snapshot(tx: &rusqlite::Transaction<'_>, task: Uuid, snapshot: SnapshotId) -> Result<(), DbError> {
    match TaskRow::others_need(tx, task, snapshot)? {
        true => Ok(()),
        false => SnapshotRow::release(tx, snapshot),
    }
}

/// Returns the write throughput of the store, if enough data was sent to measure it.
fn measured_write_speed(live: &LiveTask) -> Option<u64> {
    const ENOUGH_BYTES: u64 = 16 << 20;
    let (bytes, seconds) = live.upload();
    (bytes >= ENOUGH_BYTES && seconds > 0.0).then(|| (bytes as f64 / seconds) as u64)
}

pub(crate) fn mark_failed(tx: &rusqlite::Transaction<'_>, row: &TaskRow) -> Result<(), DbError> {
    match row.snapshot {
        Some(snapshot) => release_snapshot(tx, row.id, snapshot),
        None => Ok(()),
    }
}

/// Deletes the internal snapshot of a task.
pub(crate) async fn drop_snapshot_of(snapshots: &Snapshots, row: &TaskRow) -> Result<(), ServiceError> {
    let (volume, snapshot) = ids(row)?;
    let Some(volume) = snapshots.registry.by_id(volume).and_then(|entry| entry.volume().ok()) else {
        return Ok(());
    };
    snapshots.drop_snapshot(volume, snapshot).await
}

/// Deletes the snapshot of the backup, unneeded block sets and the task's files.
pub(crate) async fn clean_up(work: &BackupWork, row: &TaskRow) -> Result<(), ServiceError> {
    let (volume, snapshot) = ids(row)?;
    let mut dropped = Ok(());
    if let Some(entry) = work.registry.by_id(volume)
        && let Ok(volume) = entry.volume()
    {
        let task = row.id;
        let stays = work.db.run(move |tx| -> Result<bool, DbError> {
            Ok(TaskRow::others_need(tx, task, snapshot)? || SnapshotRow::find_kept(tx, snapshot)?.is_some())
        });
        if !stays.await? {
            dropped = work.snapshots.drop_snapshot(volume, snapshot).await;
        }
        work.snapshots.drop_unneeded_intervals(&entry).await;
    }
    clean_files(&work.tasks, row.id).await?;
    dropped
}
