//! Planning of a backup: its base, its blocks, and the restart without what is gone.
//!
//! The base of a backup comes from this host's manifest cache, which is exact, as manifests never
//! change. Its existence is checked once, after the commit, because only that counts (see "Committing" in the
//! format's description); if it is gone, the backup restarts as a full one under another name. If a donor is
//! gone, it restarts without donors.

use crate::{
    backup::{
        deduplication::{claimed, damaged_in, deduplicated, lost_of},
        doubts::{doubt, doubt_of_restart, may_be_listed, remove_leftovers},
        plan::{Decision, Plan, decide},
        work::BackupWork,
    },
    error::{ServiceError, blocking},
    fingerprints,
    ids::random_id,
    repositories::opening::is_unusable_base,
    tasks::{LiveTask, clean_files},
    volumes::registry::VolumeEntry,
};
use blockd_catalog::{BackupTask, Chain, DbError, DbManifestCache, ProofRow, SnapshotRow, TaskRow};
use blockd_cloud::{
    BackupSpec, CloudError, CloudSnapshotId, Deduplicated, Delta, Manifest, ManifestCache, ManifestKey,
    References, Repository, Unchanged, new_delta_salt, unchanged_since,
};
use blockd_extent::{BlockSet, Epoch, SnapshotId, VolumeId};
use blockd_volume::{Changes, Volume, VolumeErrorKind};
use jiff::Timestamp;
use std::{collections::BTreeSet, sync::Arc};
use uuid::Uuid;

/// Reason for a backup without references to other snapshots, after a restart.
pub(super) const RESTARTED: &str = "a snapshot that the backup needed was deleted or damaged";
const BASE_UNREADABLE: &str = "the last backup is gone from the store or cannot be read";
const INDEX_UNREADABLE: &str = "an index of the last backup is gone from the store or cannot be read";

/// Frozen snapshot with its request and store settings.
pub(crate) struct FrozenBackup<'a> {
    pub(crate) asked: &'a BackupTask,
    pub(crate) entry: Arc<VolumeEntry>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) snapshot: SnapshotRow,
    /// The store supports create-if-absent.
    pub(crate) write_once: bool,
    /// The plan is that of an estimate, which changes nothing.
    pub(crate) dry: bool,
}

pub(crate) fn ids(row: &TaskRow) -> Result<(VolumeId, SnapshotId), ServiceError> {
    match (row.volume, row.snapshot) {
        (Some(volume), Some(snapshot)) => Ok((volume, snapshot)),
        _ => Err(ServiceError::Internal("a backup without volume or snapshot".into())),
    }
}

/// Plan with the manifest of its base and its references.
pub(crate) type Planned = (Plan, Option<Manifest>, References);

/// Returns the plan of an earlier run or a new one.
pub(crate) async fn planned(
    work: &BackupWork,
    live: &LiveTask,
    frozen: &FrozenBackup<'_>,
    repository: &Repository,
    manifests: &DbManifestCache,
) -> Result<Planned, ServiceError> {
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
            Some(id) => Some(existing_manifest(repository, manifests, id).await?),
            None => None,
        };
        let mut named: Vec<Manifest> = base.iter().cloned().collect();
        for donor in &plan.donors {
            named.push(existing_manifest(repository, manifests, *donor).await?);
        }
        let references = match plan.references.is_empty() {
            true => References::default(),
            false => References::from_bytes(&plan.references, live.view().cloudsnap, &named)?,
        };
        return Ok((plan, base, references));
    }
    let ((plan, base, references), note) = make_plan(work, live, frozen, repository, manifests).await?;
    tracing::info!(
        data_blocks = plan.data.len_blocks(),
        zero_blocks = plan.zero.len_blocks(),
        base = plan.base.map(tracing::field::display),
        synthetic = plan.synthetic,
        deduplicated_blocks = plan.deduplicated.len_blocks(),
        donors = plan.donors.len(),
        why = note,
        "backup planned"
    );
    live.detail(|detail| detail.note = Some(note.to_owned()));
    let (saved, dir) = (plan.clone(), work.host.data_dir.task_dir(live.id));
    blocking(move || saved.save(&dir)).await?;
    Ok((plan, base, references))
}

/// Returns the manifest of the base or a donor of an interrupted backup.
async fn existing_manifest(
    repository: &Repository,
    manifests: &DbManifestCache,
    id: CloudSnapshotId,
) -> Result<Manifest, ServiceError> {
    match base_manifest(repository, manifests, id).await {
        // An unreadable base is no proof of its deletion: a restart would delete a commit based on it.
        Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::SnapshotNotFound { .. }) => {
            tracing::warn!(needed = %id, %error, "a snapshot that the interrupted backup needs is gone");
            Err(CloudError::NeededDeleted { needed: id }.into())
        }
        found => found,
    }
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

/// Changes since a base.
struct Based {
    changes: Changes,
    /// Blocks whose stored content is not to be used.
    again: BlockSet,
    base: Manifest,
    /// References of a synthetic full backup.
    synthetic: Option<References>,
}

/// Plans a new backup. Its reasons for a full one besides those of [`decide`] are in [`based_on`] and in
/// [`restart_without`].
pub(crate) async fn make_plan(
    work: &BackupWork,
    live: &LiveTask,
    frozen: &FrozenBackup<'_>,
    repository: &Repository,
    manifests: &DbManifestCache,
) -> Result<(Planned, &'static str), ServiceError> {
    let FrozenBackup { asked, volume, snapshot, .. } = frozen;
    let row = live.view();
    let (volume_id, credential, until) = (snapshot.volume, row.credential, snapshot.epoch);
    let chain = work.db.run(move |tx| Chain::find(tx, volume_id, credential)).await?;
    let (found, note) = match decide(chain.as_ref(), &asked.options, work.host.settings.full_every, until) {
        // Its restart removed the chain.
        Decision::Full { .. } if row.detail.note.as_deref() == Some(RESTARTED) => (None, RESTARTED),
        Decision::Full { why } => (None, why),
        Decision::Incremental { base } => {
            based_on(work, &row, frozen, repository, manifests, base, None).await?
        }
        Decision::Synthetic { base, why } => {
            based_on(work, &row, frozen, repository, manifests, base, Some(why)).await?
        }
    };
    let stores_all = found.is_none();
    // What cannot be read is not to be referenced, and may be the content of all other snapshots.
    let is_copy =
        note == BASE_UNREADABLE || note == INDEX_UNREADABLE || (asked.options.full && asked.options.reupload);
    let (changes, again, base, synthetic) = match found {
        Some(Based { changes, again, base, synthetic }) => (changes, again, Some(base), synthetic),
        None => {
            let volume = Arc::clone(volume);
            (blocking(move || volume.changes(None, until)).await?, BlockSet::new(), None, None)
        }
    };
    let (salt, references) = (new_delta_salt()?, synthetic.clone().unwrap_or_default());
    let found =
        deduplicated(work, live, frozen, repository, (salt, &changes.data, again), base.as_ref(), is_copy)
            .await?;
    let found = claimed(work, live, found.unwrap_or_else(|| Deduplicated::none(changes.data))).await?;
    // Before the first upload and after the search, which may take hours: an unmounted disk is an empty
    // directory that accepts everything. The base is checked after the commit in every case.
    if stores_all || !work.repositories.was_proven_recently(credential).await? {
        prove(work, frozen, credential, repository).await?;
    }
    let deduplicated = found.references.blocks();
    let Deduplicated { data, references, donors, .. } = found.with(references);
    let plan = Plan {
        task: live.id,
        epoch: until,
        frozen: snapshot.created,
        base: base.as_ref().map(Manifest::id),
        synthetic: synthetic.is_some(),
        salt,
        // In microseconds, as in the plan's file: each run must put the same time into the manifest.
        started: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(snapshot.created),
        data,
        zero: changes.zero,
        references: if references.is_empty() { Vec::new() } else { references.to_bytes() },
        donors,
        deduplicated,
    };
    Ok(((plan, base, references), note))
}

/// Proves the location; an estimate records nothing.
async fn prove(
    work: &BackupWork,
    frozen: &FrozenBackup<'_>,
    credential: Uuid,
    repository: &Repository,
) -> Result<(), ServiceError> {
    match frozen.dry {
        true => work.repositories.check_location(credential, repository).await,
        false => work.repositories.prove_location(credential, repository).await,
    }
}

/// Plans a backup on a base, a synthetic full one for the given reason. Without a result, the reason for a
/// full backup that stores all blocks is returned.
async fn based_on(
    work: &BackupWork,
    row: &TaskRow,
    frozen: &FrozenBackup<'_>,
    repository: &Repository,
    manifests: &DbManifestCache,
    base: &Chain,
    full: Option<&'static str>,
) -> Result<(Option<Based>, &'static str), ServiceError> {
    let FrozenBackup { volume, snapshot, dry, .. } = frozen;
    let (credential, since, until) = (row.credential, base.epoch, snapshot.epoch);
    let manifest = match base_manifest(repository, manifests, base.cloudsnap).await {
        Ok(manifest) => manifest,
        Err(ServiceError::Cloud(error)) if is_unusable_base(&error) => {
            // An unavailable repository is no reason to remove records.
            prove(work, frozen, credential, repository).await?;
            tracing::warn!(base = %base.cloudsnap, %error, "a full backup is made instead of one on the last backup");
            if !dry {
                forget_chain(work, credential, base.cloudsnap).await?;
            }
            return Ok((None, BASE_UNREADABLE));
        }
        Err(error) => return Err(error),
    };
    let is_longest = !manifest.may_have_incremental();
    let full = full.or(is_longest.then_some("the last backup needs the maximum number of others"));
    let changed = Arc::clone(volume);
    let changes = match blocking(move || changed.changes(Some(since), until)).await {
        Ok(changes) => changes,
        Err(ServiceError::Volume(error)) if error.kind() == VolumeErrorKind::IntervalsGone => {
            tracing::warn!(base = %base.cloudsnap, %error, "a full backup is made instead of one on the last backup");
            return Ok((None, "the blocks changed since the last backup are no longer known"));
        }
        Err(error) => return Err(error),
    };
    let proofs = work.db.run(move |tx| ProofRow::of_repository(tx, credential)).await?;
    let (changes, mut again) = heal(volume, &manifest, until, changes, &proofs).await?;
    let Some(why) = full else {
        let found = Based { changes, again, base: manifest, synthetic: None };
        return Ok((Some(found), "incremental to the last backup"));
    };
    let needed = needed_by_owners(work, credential, snapshot.volume, &manifest).await?;
    match referenced(volume, repository, &manifest, until, changes, (&proofs, &needed)).await {
        Ok((changes, references, sparse)) => {
            again.union_with(&sparse);
            Ok((Some(Based { changes, again, base: manifest, synthetic: Some(references) }), why))
        }
        Err(ServiceError::Cloud(error)) if is_unusable_base(&error) => {
            tracing::warn!(base = %base.cloudsnap, %error, "the full backup stores all data again");
            if !dry {
                fingerprints::forget_unreadable(&work.host.data_dir, &error);
            }
            Ok((None, INDEX_UNREADABLE))
        }
        Err(error) => Err(error),
    }
}

/// Adds the blocks that verifications found damaged in the base, and returns them: the volume still has their
/// content.
async fn heal(
    volume: &Arc<Volume>,
    base: &Manifest,
    until: Epoch,
    changes: Changes,
    proofs: &[ProofRow],
) -> Result<(Changes, BlockSet), ServiceError> {
    let lost = lost_of(base, proofs);
    Ok((store_again(volume, until, changes, lost.clone()).await?, lost))
}

/// Returns the deltas of other volumes that these volumes need themselves. Those that only further volumes
/// need are left out: if each of them kept a delta for the others, it would stay for ever.
async fn needed_by_owners(
    work: &BackupWork,
    credential: Uuid,
    own: VolumeId,
    base: &Manifest,
) -> Result<BTreeSet<CloudSnapshotId>, ServiceError> {
    let own = (work.host.cluster, own);
    let owners: BTreeSet<_> = base.deltas().map(|delta| (delta.cluster, delta.volume)).collect();
    let mut needed = BTreeSet::new();
    for (cluster, volume) in owners.into_iter().filter(|owner| *owner != own) {
        let of_owner = work.db.run(move |tx| DbManifestCache::needed_by(tx, credential, cluster, volume));
        needed.extend(of_owner.await?);
    }
    Ok(needed)
}

/// Finds the stored content of the blocks that did not change since the base. Blocks that verifications
/// found damaged in a source are stored again, and returned with those of sparse sources. The deltas of
/// `needed` are not sparse: they stay.
async fn referenced(
    volume: &Arc<Volume>,
    repository: &Repository,
    base: &Manifest,
    until: Epoch,
    changes: Changes,
    (proofs, needed): (&[ProofRow], &BTreeSet<CloudSnapshotId>),
) -> Result<(Changes, References, BlockSet), ServiceError> {
    let mut changed = changes.data.clone();
    changed.union_with(&changes.zero);
    let stays = |delta: &Delta| needed.contains(&delta.cloud_snapshot());
    let unchanged = unchanged_since(repository, base, &changed, stays).await?;
    let Unchanged { references, again } = unchanged.without(|source| damaged_in(source, proofs));
    Ok((store_again(volume, until, changes, again.clone()).await?, references, again))
}

/// Adds blocks of the volume to its changes.
async fn store_again(
    volume: &Arc<Volume>,
    until: Epoch,
    mut changes: Changes,
    mut again: BlockSet,
) -> Result<Changes, ServiceError> {
    if again.is_empty() {
        return Ok(changes);
    }
    let volume = Arc::clone(volume);
    let all = blocking(move || volume.changes(None, until)).await?;
    again.subtract(&changes.data);
    again.subtract(&changes.zero);
    tracing::info!(
        blocks = again.len_blocks(),
        "uploading blocks again that are damaged in the store or have a source too many"
    );
    let mut data = again.clone();
    data.intersect_with(&all.data);
    again.subtract(&data);
    changes.data.union_with(&data);
    changes.zero.union_with(&again);
    Ok(changes)
}

/// Returns the bytes of the data that changed since the last backup. A backup on a base stores other blocks
/// again: those that are damaged in the store, or have a source too many.
pub(crate) async fn changed_bytes(
    volume: &Arc<Volume>,
    before: Option<&Chain>,
    spec: &BackupSpec,
    until: Epoch,
) -> u64 {
    let stored = spec.data.len_bytes() + spec.deduplicated.len_bytes();
    let Some(before) = before.filter(|_| spec.base.is_some()) else { return stored };
    let (volume, since) = (Arc::clone(volume), before.epoch);
    let changes = blocking(move || volume.changes(Some(since), until)).await;
    changes.map_or(stored, |changes| changes.data.len_bytes().min(stored))
}

async fn forget_chain(work: &BackupWork, credential: Uuid, tip: CloudSnapshotId) -> Result<(), ServiceError> {
    work.db.run(move |tx| forget_tip(tx, credential, tip)).await?;
    Ok(())
}

fn forget_tip(tx: &rusqlite::Transaction<'_>, credential: Uuid, tip: CloudSnapshotId) -> Result<(), DbError> {
    Chain::remove_tip(tx, &tip)?;
    DbManifestCache::remove(tx, credential, &tip.manifest_key())
}

/// Restarts a backup of the same snapshot without donors: its base or a donor is gone, or a source damaged.
/// Without its base it is a full one.
///
/// It gets another name, because objects under the current one may remain, sealed with another salt. If
/// nothing is gone, a manifest under the current name stays, in doubt: it may be a whole backup. Objects
/// without a possible manifest are deleted. If the daemon dies before the plan is deleted, the plan still
/// names the missing base, and the restart is repeated.
///
/// # Errors
/// The store is not the one that was opened, so the base may still exist; or the store or the database
/// fails.
pub(crate) async fn restart_without(
    work: &BackupWork,
    live: &LiveTask,
    gone: Option<CloudSnapshotId>,
) -> Result<(), ServiceError> {
    let row = live.view();
    let (volume, _) = ids(&row)?;
    let (repository, requests) = work.repositories.task_repository(row.credential).await?;
    let repository = live.limited(&repository, &requests);
    live.count(requests);
    work.repositories.prove_location(row.credential, &repository).await?;
    let (task, dir) = (live.id, work.host.data_dir.task_dir(live.id));
    let plan = blocking(move || Plan::load(&dir, task)).await?;
    let former =
        CloudSnapshotId { incremental: plan.is_none_or(|plan| plan.is_incremental()), ..row.cloudsnap };
    if gone.is_some() {
        // An earlier run may have committed it without checking its base.
        repository.store().delete(&former.manifest_key()).await?;
    }
    let listed = may_be_listed(work, &row).await;
    let missing = gone.map(tracing::field::display);
    tracing::warn!(missing, %former, "the backup restarts without a snapshot that is gone or damaged");
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
        row.detail.donors.clear();
        // Only this run of the daemon knows the new name.
        row.detail.run = Some(run);
        row.detail.may_be_committed = false;
        row.detail.backup_type = None;
        row.detail.note = Some(RESTARTED.to_owned());
    });
    let (stored, credential) = (live.view(), row.credential);
    work.db
        .run(move |tx| -> Result<(), DbError> {
            gone.map_or(Ok(()), |gone| forget_tip(tx, credential, gone))?;
            // A put request may still be in flight.
            match (gone, listed) {
                (Some(_), _) => doubt_of_restart(credential, former).put(tx)?,
                (None, Some(_)) => doubt(credential, former).put(tx)?,
                (None, None) => {}
            }
            TaskRow::put(&stored, tx)
        })
        .await?;
    if gone.is_none() {
        remove_leftovers(work, &row);
    }
    clean_files(&work.tasks, live.id).await?;
    live.abandon_commit();
    Ok(())
}
