//! Planning of a backup: its base, its blocks, and the restart as a full one.
//!
//! The base of an incremental comes from this host's manifest cache, which is exact, as manifests never
//! change. Its existence is checked once, after the commit, because only that counts (see "Committing" in the
//! format's description); if it is gone, the backup restarts as a full one under another name.

use crate::{
    backup::{
        doubts::doubt_of_restart,
        plan::{Decision, Plan, decide},
        work::BackupWork,
    },
    error::{ServiceError, blocking},
    ids::random_id,
    repositories::opening::is_missing_or_damaged,
    tasks::{LiveTask, clean_files},
    volumes::registry::VolumeEntry,
};
use blockd_catalog::{BackupTask, Chain, DbError, DbManifestCache, ProofRow, SnapshotRow, TaskRow};
use blockd_cloud::{
    CloudError, CloudSnapshotId, MAX_CHAIN, Manifest, ManifestCache, ManifestKey, Repository, new_delta_salt,
};
use blockd_extent::{BlockSet, Epoch, SnapshotId, VolumeId};
use blockd_volume::{Changes, Volume, VolumeErrorKind};
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

/// Reason for the full backup of a restart.
const BASE_DELETED: &str = "the base of the incremental backup was deleted";

/// Frozen snapshot with its request and store settings.
pub(crate) struct FrozenBackup<'a> {
    pub(crate) asked: &'a BackupTask,
    pub(crate) entry: Arc<VolumeEntry>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) snapshot: SnapshotRow,
    /// The store supports create-if-absent.
    pub(crate) write_once: bool,
}

pub(crate) fn ids(row: &TaskRow) -> Result<(VolumeId, SnapshotId), ServiceError> {
    match (row.volume, row.snapshot) {
        (Some(volume), Some(snapshot)) => Ok((volume, snapshot)),
        _ => Err(ServiceError::Internal("a backup without volume or snapshot".into())),
    }
}

/// Returns the plan of an earlier run or a new one, with the manifest of its base.
pub(crate) async fn planned(
    work: &BackupWork,
    live: &LiveTask,
    frozen: &FrozenBackup<'_>,
    repository: &Repository,
    manifests: &DbManifestCache,
) -> Result<(Plan, Option<Manifest>), ServiceError> {
    let snapshot = &frozen.snapshot;
    repository.check_writable()?;
    let (task, dir) = (live.id, work.host.data_dir.task_dir(live.id));
    let kept = blocking(move || Plan::load(&dir, task)).await?;
    if let Some(plan) = &kept
        && !plan.is_of(snapshot)
    {
        tracing::warn!(
            planned = %plan.epoch,
            frozen = %snapshot.epoch,
            "backup plan belongs to another freeze; replacing it and uploading all blocks again"
        );
        clean_files(&work.tasks, task).await?;
    }
    if let Some(plan) = kept.filter(|plan| plan.is_of(snapshot)) {
        work.repositories.prove_location(live.view().credential, repository).await?;
        let base = match plan.base {
            Some(id) => match base_manifest(repository, manifests, id).await {
                Ok(base) => Some(base),
                // An unreadable base is no proof of its deletion: a restart would delete a commit based on
                // it.
                Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::SnapshotNotFound { .. }) => {
                    tracing::warn!(base = %id, %error, "base of the interrupted backup is gone");
                    return Err(CloudError::BaseDeleted { base: id }.into());
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        return Ok((plan, base));
    }
    let (plan, base, note) = make_plan(work, live, frozen, repository, manifests).await?;
    tracing::info!(
        data_blocks = plan.data.len_blocks(),
        zero_blocks = plan.zero.len_blocks(),
        base = plan.base.map(tracing::field::display),
        why = note,
        "backup planned"
    );
    live.detail(|detail| detail.note = Some(note.to_owned()));
    let (saved, dir) = (plan.clone(), work.host.data_dir.task_dir(live.id));
    blocking(move || saved.save(&dir)).await?;
    Ok((plan, base))
}

/// Returns the manifest of a base.
async fn base_manifest(
    repository: &Repository,
    manifests: &DbManifestCache,
    id: CloudSnapshotId,
) -> Result<Manifest, ServiceError> {
    let (cache, key) = (manifests.clone(), id.manifest_key());
    let cached = blocking(move || Ok::<_, ServiceError>(cache.load(&key))).await?;
    match cached.filter(|manifest| manifest.id() == id) {
        Some(manifest) => Ok(manifest),
        None => Ok(repository.manifest(&id).await?),
    }
}

/// Plans a new backup. Its reasons for a full one besides those of [`decide`] are here and in
/// [`restart_as_full`].
async fn make_plan(
    work: &BackupWork,
    live: &LiveTask,
    FrozenBackup { asked, volume, snapshot, .. }: &FrozenBackup<'_>,
    repository: &Repository,
    manifests: &DbManifestCache,
) -> Result<(Plan, Option<Manifest>, &'static str), ServiceError> {
    let row = live.view();
    let (volume_id, credential, until) = (snapshot.volume, row.credential, snapshot.epoch);
    let chain = work.db.run(move |tx| Chain::find(tx, volume_id, credential)).await?;
    let decision = decide(chain.as_ref(), asked.options.full, work.host.settings.full_every, until);
    let mut note = "incremental to the last backup";
    let mut found = None;
    match decision {
        // Its restart removed the chain.
        Decision::Full { .. } if row.detail.note.as_deref() == Some(BASE_DELETED) => note = BASE_DELETED,
        Decision::Full { why } => note = why,
        Decision::Incremental { base } => match base_manifest(repository, manifests, base.cloudsnap).await {
            Ok(manifest) if manifest.chain.len() + 1 > MAX_CHAIN => {
                note = "the chain of the last backup has its maximum length";
            }
            Ok(manifest) => {
                let (changed, since) = (Arc::clone(volume), base.epoch);
                match blocking(move || changed.changes(Some(since), until)).await {
                    Ok(changes) => {
                        let changes = heal(work, volume, &row, base.cloudsnap, until, changes).await?;
                        found = Some((changes, Some(manifest)));
                    }
                    Err(ServiceError::Volume(error)) if error.kind() == VolumeErrorKind::IntervalsGone => {
                        note = "the blocks changed since the last backup are no longer known";
                        tracing::warn!(base = %base.cloudsnap, %error, "a full backup is made instead of an incremental one");
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(ServiceError::Cloud(error)) if is_missing_or_damaged(&error) => {
                // An unavailable repository is no reason to remove records.
                work.repositories.prove_location(credential, repository).await?;
                note = "the last backup is gone from the store or cannot be read";
                tracing::warn!(base = %base.cloudsnap, %error, "a full backup is made instead of an incremental one");
                forget_chain(work, credential, base.cloudsnap).await?;
            }
            Err(error) => return Err(error),
        },
    }
    // Before the first upload: an unmounted disk is an empty directory that accepts everything. The base of
    // an incremental is checked after the commit in every case.
    if found.is_none() || !work.repositories.was_proven_recently(credential).await? {
        work.repositories.prove_location(credential, repository).await?;
    }
    let (changes, base) = match found {
        Some(found) => found,
        None => {
            let volume = Arc::clone(volume);
            (blocking(move || volume.changes(None, until)).await?, None)
        }
    };
    let plan = Plan {
        task: live.id,
        epoch: until,
        frozen: snapshot.created,
        base: base.as_ref().map(Manifest::id),
        salt: new_delta_salt()?,
        // In microseconds, as in the plan's file: each run must put the same time into the manifest.
        started: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(snapshot.created),
        data: changes.data,
        zero: changes.zero,
    };
    Ok((plan, base, note))
}

/// Adds the blocks that verifications found damaged in the base: the volume still has their content.
async fn heal(
    work: &BackupWork,
    volume: &Arc<Volume>,
    row: &TaskRow,
    base: CloudSnapshotId,
    until: Epoch,
    mut changes: Changes,
) -> Result<Changes, ServiceError> {
    let credential = row.credential;
    let proofs = work.db.run(move |tx| ProofRow::of_repository(tx, credential)).await?;
    // Any credential of the repository may have found damage.
    let mut lost = BlockSet::new();
    proofs.iter().filter(|proof| proof.cloudsnap == base).for_each(|proof| lost.union_with(&proof.damaged));
    if lost.is_empty() {
        return Ok(changes);
    }
    let volume = Arc::clone(volume);
    let all = blocking(move || volume.changes(None, until)).await?;
    lost.subtract(&changes.data);
    lost.subtract(&changes.zero);
    tracing::info!(%base, blocks = lost.len_blocks(), "uploading blocks again that are damaged in the base");
    let mut data = lost.clone();
    data.intersect_with(&all.data);
    lost.subtract(&data);
    changes.data.union_with(&data);
    changes.zero.union_with(&lost);
    Ok(changes)
}

async fn forget_chain(work: &BackupWork, credential: Uuid, tip: CloudSnapshotId) -> Result<(), ServiceError> {
    work.db.run(move |tx| forget_tip(tx, credential, tip)).await?;
    Ok(())
}

fn forget_tip(tx: &rusqlite::Transaction<'_>, credential: Uuid, tip: CloudSnapshotId) -> Result<(), DbError> {
    Chain::remove_tip(tx, &tip)?;
    DbManifestCache::remove(tx, credential, &tip.manifest_key())
}

/// Restarts an incremental backup whose base is gone as a full backup of the same snapshot.
///
/// The full backup gets another name, because objects under the current one remain, sealed with another
/// salt. If the daemon dies before the plan is deleted, the plan still names the missing base, and the
/// restart is repeated.
///
/// # Errors
/// The store is not the one that was opened, so the base may still exist; or the store or the database
/// fails.
pub(crate) async fn restart_as_full(
    work: &BackupWork,
    live: &LiveTask,
    base: CloudSnapshotId,
) -> Result<(), ServiceError> {
    let row = live.view();
    let (volume, _) = ids(&row)?;
    let (repository, _) = work.repositories.task_repository(row.credential).await?;
    work.repositories.prove_location(row.credential, &repository).await?;
    // An earlier run may have committed it without checking its base.
    let former = CloudSnapshotId { incremental: true, ..row.cloudsnap };
    repository.store().delete(&former.manifest_key()).await?;
    tracing::warn!(%base, %former, "the backup restarts as a full one, because its base is gone from the store");
    let name = CloudSnapshotId {
        cluster: work.host.cluster,
        volume,
        snapshot: SnapshotId::from_u64(random_id()?),
        incremental: false,
    };
    let run = work.host.run;
    live.detach();
    live.update(|row| {
        row.cloudsnap = name;
        row.base = None;
        // Only this run of the daemon knows the new name.
        row.detail.run = Some(run);
        row.detail.may_be_committed = false;
        row.detail.backup_type = None;
        row.detail.note = Some(BASE_DELETED.to_owned());
    });
    let (stored, credential) = (live.view(), row.credential);
    work.db
        .run(move |tx| -> Result<(), DbError> {
            forget_tip(tx, credential, base)?;
            // A put request may still be in flight.
            doubt_of_restart(credential, former).put(tx)?;
            TaskRow::put(&stored, tx)
        })
        .await?;
    clean_files(&work.tasks, live.id).await?;
    live.abandon_commit();
    Ok(())
}
