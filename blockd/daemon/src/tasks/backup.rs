//! A backup: freeze, decide, plan, upload, commit.
//!
//! What is durable after each step, and where a run that was cut off goes on:
//!
//! 1. the task's row, with the id of the snapshot to be taken: nothing else happened yet, so freeze;
//! 2. the snapshot's row, `ready`: the point in time is fixed, so decide and plan;
//! 3. the plan's file: what is uploaded is fixed, byte for byte, so upload what the journal does not have;
//! 4. the manifest in the store: the backup exists; putting the same one again is found to be no conflict;
//! 5. one transaction: chain, catalog, task done, snapshot `deleting`; what is left is cleaned up by every start.

use super::{
    LiveTask, clean_files,
    frozen::frozen,
    plan::{Decision, Plan, decide},
};
use crate::{
    cloud,
    core::Core,
    credentials::is_gone_or_damaged,
    db::{Catalog, Chain, CredentialRow, DbError, Proof, SnapshotRow, SnapshotState, TaskRow},
    error::{ServiceError, blocking},
};
use blockd_api::{CredentialRef, ErrorCode};
use blockd_cloud::{
    BackupJournal, BackupOptions, BackupSpec, BackupType, BlockReader, CloudError, CloudsnapId, FileJournal,
    JournalBinding, Manifest, ManifestCache, Progress, Repository, check_base, new_delta_salt,
};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_volume::{Changes, Volume, VolumeError, VolumeErrorKind};
use jiff::Timestamp;
use std::{io, path::Path, sync::Arc};
use uuid::Uuid;

/// A volume's error as an I/O error; the kind of a full disk is kept.
pub(super) fn to_io(error: VolumeError) -> io::Error {
    let kind = match error.kind() {
        VolumeErrorKind::NoSpace => io::ErrorKind::StorageFull,
        VolumeErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn ids(row: &TaskRow) -> Result<(VolumeId, SnapshotId), ServiceError> {
    match (row.volume, row.snapshot) {
        (Some(volume), Some(snapshot)) => Ok((volume, snapshot)),
        _ => Err(ServiceError::Internal("a backup without volume or snapshot".into())),
    }
}

pub(super) async fn run(core: &Arc<Core>, live: &Arc<LiveTask>) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let (volume_id, snapshot_id) = ids(&row)?;
    let entry = core.registry.by_id(volume_id).ok_or_else(|| {
        ServiceError::refused(ErrorCode::VolumeNotFound, format!("there is no volume {volume_id} any more"))
    })?;
    let volume = entry.volume()?;
    core.reached("backup accepted")?;
    let snapshot = frozen(core, live, &entry, snapshot_id).await?;
    live.detail(|detail| {
        detail.frozen = true;
        detail.freeze_stall_micros = snapshot.freeze_stall_micros;
    });
    core.store_progress(live).await;
    core.reached("backup frozen")?;

    let _slot = core.tasks.slot(&live.cancel).await?;
    let (repository, requests) = core.task_repository(row.credential).await?;
    let repository = live.limited(&repository);
    let write_once =
        core.credential(Some(&CredentialRef::Id(row.credential))).await?.capabilities.conditional_put;
    let committed = match write_once {
        true => None,
        false => committed_before(core, live, &repository).await?,
    };
    let progress = Arc::new(Progress::new(requests));
    live.begin(Arc::clone(&progress));
    let catalog = Catalog::new(Arc::clone(&core.db), row.credential);
    let (plan, base) = planned(core, live, &volume, &snapshot, &repository, &catalog).await?;
    core.reached("backup planned")?;

    // The volume may have grown since the freeze.
    let frozen_volume = Arc::clone(&volume);
    let size_bytes = blocking(move || frozen_volume.view(snapshot_id).map(|view| view.size_bytes())).await?;
    let spec = Arc::new(BackupSpec {
        cluster: core.cluster,
        volume: volume_id,
        snapshot: row.cloudsnap.snapshot,
        volume_name: entry.name.to_string(),
        snapshot_name: snapshot.name.to_string(),
        labels: entry.tags().labels.as_map().clone(),
        size_bytes,
        created: snapshot.created,
        started: plan.started,
        data: plan.data,
        zero: plan.zero,
        base,
        delta_salt: plan.salt,
        freeze_stall_micros: snapshot.freeze_stall_micros,
        trigger: "Manual".into(),
    });
    live.update(|row| {
        row.cloudsnap = spec.id();
        row.base = spec.base.as_ref().map(Manifest::id);
        row.detail.backup_type =
            Some(if spec.base.is_some() { BackupType::Incremental } else { BackupType::Full });
        row.detail.bytes_dirty = spec.data.len_bytes() + spec.zero.len_bytes();
    });
    core.store_progress(live).await;

    // Of one that was found nobody knows how often it was put.
    let was_found = committed.is_some();
    let manifest = match committed {
        Some(manifest) => match &spec.base {
            Some(base) => {
                let checked = check_base(repository.store().as_ref(), &manifest, base).await;
                checked.map(|()| manifest).map_err(ServiceError::from)
            }
            None => Ok(manifest),
        },
        None => upload(core, &volume, &spec, &repository, Arc::clone(&progress), live, write_once).await,
    };
    if let Err(ServiceError::Cloud(error)) = &manifest
        && let CloudError::BaseDeleted { base } = **error
    {
        forget_chain(core, row.credential, base).await?;
    }
    let manifest = manifest?;
    core.reached("backup in the store")?;
    let in_doubt = was_found || progress.was_in_doubt();
    let done = commit(core, live, &snapshot, manifest, in_doubt).await?;
    core.reached("backup committed")?;
    if let Err(error) = clean_up(core, &done).await {
        tracing::warn!(%error, "what the backup left behind is removed at the next start");
    }
    Ok(done)
}

/// The manifest that an earlier run put into a store whose objects can be replaced, if it did.
///
/// There, nothing tells a daemon that goes on after a restart from a copy of it that does the same: what else may be in the
/// store already is given up. The next backup has another name there and carries everything.
async fn committed_before(
    core: &Core,
    live: &LiveTask,
    repository: &Repository,
) -> Result<Option<Manifest>, ServiceError> {
    let task = live.view();
    let (volume, _) = ids(&task)?;
    let dir = core.task_dir(live.id);
    if task.detail.run == Some(core.run) {
        return Ok(None);
    }
    // Without a plan nothing was put yet, but the copy has the same id, and would make a plan of its own.
    if let Some(plan) = blocking(move || Plan::load(&dir, task.id, volume)).await? {
        let id = CloudsnapId { incremental: plan.base.is_some(), ..task.cloudsnap };
        match repository.manifest(&id).await {
            Ok(manifest) if manifest.delta.salt == plan.salt => return Ok(Some(manifest)),
            Err(error) if !is_gone_or_damaged(&error) => return Err(error.into()),
            _ => {}
        }
    }
    let message = format!(
        "the backup was interrupted, and {} cannot create an object only if it is absent, so that it is not safe to go on with it: start it again",
        repository.store().describe()
    );
    Err(ServiceError::refused(ErrorCode::StoreFailed, message))
}

/// The plan that an earlier run kept, or a new one, and the manifest that it builds on.
async fn planned(
    core: &Core,
    live: &LiveTask,
    volume: &Arc<Volume>,
    snapshot: &SnapshotRow,
    repository: &Repository,
    catalog: &Catalog,
) -> Result<(Plan, Option<Manifest>), ServiceError> {
    let (task, volume_id, dir) = (live.id, snapshot.volume, core.task_dir(live.id));
    let kept = blocking(move || Plan::load(&dir, task, volume_id)).await?;
    if let Some(plan) = &kept
        && !plan.is_of(snapshot)
    {
        tracing::warn!(
            planned = %plan.epoch,
            frozen = %snapshot.epoch,
            "the kept plan of the backup is of another freeze: it is made anew, and everything is sent again"
        );
        clean_files(core, task).await?;
    }
    if let Some(plan) = kept.filter(|plan| plan.is_of(snapshot)) {
        core.prove_place(live.view().credential, repository).await?;
        let base = match plan.base {
            Some(id) => Some(base_manifest(repository, catalog, id).await?),
            None => None,
        };
        return Ok((plan, base));
    }
    let (plan, base, note) = make_plan(core, live, volume, snapshot, repository).await?;
    tracing::info!(
        data_blocks = plan.data.len_blocks(),
        zero_blocks = plan.zero.len_blocks(),
        base = plan.base.map(tracing::field::display),
        why = note,
        "backup planned"
    );
    live.detail(|detail| detail.note = Some(note.to_owned()));
    let (saved, dir) = (plan.clone(), core.task_dir(live.id));
    blocking(move || saved.save(&dir)).await?;
    Ok((plan, base))
}

async fn base_manifest(
    repository: &Repository,
    catalog: &Catalog,
    id: CloudsnapId,
) -> Result<Manifest, ServiceError> {
    let (cache, key) = (catalog.clone(), id.manifest_key());
    let cached = blocking(move || Ok::<_, ServiceError>(cache.load(&key))).await?;
    match cached {
        Some(manifest) => Ok(manifest),
        None => Ok(repository.manifest(&id).await?),
    }
}

async fn make_plan(
    core: &Core,
    live: &LiveTask,
    volume: &Arc<Volume>,
    snapshot: &SnapshotRow,
    repository: &Repository,
) -> Result<(Plan, Option<Manifest>, &'static str), ServiceError> {
    let row = live.view();
    let (volume_id, credential, until) = (snapshot.volume, row.credential, snapshot.epoch);
    let chain = core.db.run(move |tx| Chain::find(tx, volume_id, credential)).await?;
    let decision = decide(chain.as_ref(), row.detail.force_full, core.config.full_every, until);
    let mut note = "builds on the backup before";
    let mut found = None;
    match decision {
        Decision::Full { why } => note = why,
        Decision::Incremental { base } => {
            // One GET proves that what the incremental would build on is still there.
            match repository.manifest(&base.cloudsnap).await {
                Ok(manifest) => {
                    let (changed, since) = (Arc::clone(volume), base.epoch);
                    let changes = blocking(move || changed.changes(Some(since), until)).await;
                    match changes {
                        Ok(changes) => {
                            let changes = heal(core, volume, &row, base.cloudsnap, until, changes).await?;
                            found = Some((changes, Some(manifest)));
                        }
                        Err(ServiceError::Volume(error))
                            if error.kind() == VolumeErrorKind::IntervalsGone =>
                        {
                            note = "the blocks changed since the last backup are no longer known";
                            tracing::warn!(base = %base.cloudsnap, %error, "a full backup is made instead of an incremental one");
                        }
                        Err(error) => return Err(error),
                    }
                }
                Err(error) if is_gone_or_damaged(&error) => {
                    // Of a place that is not there, nothing is to be forgotten.
                    core.prove_place(credential, repository).await?;
                    note = "the last backup is gone from the store or cannot be read";
                    tracing::warn!(base = %base.cloudsnap, %error, "a full backup is made instead of an incremental one");
                    forget_chain(core, credential, base.cloudsnap).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    let (changes, base) = match found {
        Some(found) => {
            // Its base was there and opened: it is the right place. That others can open it as well is looked at now and then.
            if !core.was_proven_lately(credential) {
                core.prove_place(credential, repository).await?;
            }
            found
        }
        None => {
            core.prove_place(credential, repository).await?;
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
        // To the microsecond, as the plan's file has it: every run must put the same time into the manifest.
        started: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(snapshot.created),
        data: changes.data,
        zero: changes.zero,
    };
    Ok((plan, base, note))
}

/// Adds to what changed the blocks that the base has lost, as far as a verification found out: the volume has them.
async fn heal(
    core: &Core,
    volume: &Arc<Volume>,
    row: &TaskRow,
    base: CloudsnapId,
    until: Epoch,
    mut changes: Changes,
) -> Result<Changes, ServiceError> {
    let credential = row.credential;
    let proofs = core.db.run(move |tx| Proof::all(tx, credential)).await?;
    let lost = proofs.into_iter().find(|proof| proof.cloudsnap == base).map(|proof| proof.damaged);
    let Some(mut lost) = lost.filter(|lost| !lost.is_empty()) else { return Ok(changes) };
    let volume = Arc::clone(volume);
    let all = blocking(move || volume.changes(None, until)).await?;
    lost.subtract(&changes.data);
    lost.subtract(&changes.zero);
    tracing::info!(%base, blocks = lost.len_blocks(), "blocks that the backup before has lost are carried again");
    let mut data = lost.clone();
    data.intersect_with(&all.data);
    lost.subtract(&data);
    changes.data.union_with(&data);
    changes.zero.union_with(&lost);
    Ok(changes)
}

async fn forget_chain(core: &Core, credential: Uuid, tip: CloudsnapId) -> Result<(), ServiceError> {
    core.db
        .run(move |tx| -> Result<(), DbError> {
            Chain::remove_tip(tx, &tip)?;
            Catalog::remove(tx, credential, &tip.manifest_key())
        })
        .await?;
    Ok(())
}

async fn upload(
    core: &Core,
    volume: &Arc<Volume>,
    spec: &Arc<BackupSpec>,
    repository: &Repository,
    progress: Arc<Progress>,
    live: &LiveTask,
    write_once: bool,
) -> Result<Manifest, ServiceError> {
    let (task, cancel) = (live.id, live.cancel.clone());
    let row = live.view();
    let (volume, (_, snapshot)) = (Arc::clone(volume), ids(&row)?);
    let readers = Arc::clone(&core.tasks.readers);
    let path = core.task_dir(task).join("journal");
    let binding = JournalBinding::of(repository, spec);
    let (reader, journal) = blocking(move || -> Result<_, ServiceError> {
        let journal = open_journal(&path, &binding)?;
        Ok((Arc::new(readers.join(snapshot, || volume.view(snapshot))?), journal))
    })
    .await?;
    let options = BackupOptions {
        // Memory is bounded for all places together.
        upload_concurrency: (core.config.upload_concurrency / core.tasks.sharing(snapshot).max(1)).max(1),
        cpu_threads: core.config.cpu_threads,
        write_once,
        resumed: row.detail.run != Some(core.run) || row.detail.resumed > 0,
    };
    let result = cloud::backup(
        repository.clone(),
        Arc::clone(spec),
        Arc::clone(&reader) as Arc<dyn BlockReader>,
        Arc::new(journal),
        options,
        progress,
        cancel,
    );
    let result = result.await;
    let closed = blocking(move || {
        reader.close();
        Ok::<_, ServiceError>(())
    });
    if let Err(error) = closed.await {
        // The snapshot may be in the store: that must not be forgotten because of this.
        tracing::warn!(%error, "the snapshot of the backup is not closed");
    }
    result
}

/// The journal of this backup. One that belongs to another plan or is damaged is begun anew: it saves work, and says whether
/// the commit was begun. What is not known is taken for begun.
fn open_journal(path: &Path, binding: &JournalBinding) -> Result<FileJournal, CloudError> {
    match FileJournal::open(path, binding) {
        Err(CloudError::ForeignJournal { .. }) => {
            tracing::warn!(path = %path.display(), "the journal of the backup is not usable: everything is sent again");
            std::fs::remove_file(path).map_err(|source| CloudError::Journal {
                path: path.to_owned(),
                what: "removing it",
                source,
            })?;
            let journal = FileJournal::open(path, binding)?;
            journal.record_commit()?;
            Ok(journal)
        }
        other => other,
    }
}

/// The store lists the backup, so it must not fail any more: this ends when it is stored here too. If the daemon stops
/// before, the next start does the rest.
///
/// One whose commit was in doubt may be about to vanish by another host's deletion, with the deltas of whatever is made on it
/// by then. So nothing is: the next backup builds on the one that this one would have followed.
async fn commit(
    core: &Core,
    live: &LiveTask,
    snapshot: &SnapshotRow,
    manifest: Manifest,
    in_doubt: bool,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let id = manifest.id();
    let chain = Chain {
        volume: snapshot.volume,
        credential: row.credential,
        epoch: snapshot.epoch,
        cloudsnap: id,
        // One delta for the full backup at the bottom, and one for each incremental since.
        incrementals: manifest.chain.len() as u64,
        finished: snapshot.created,
    };
    if in_doubt {
        tracing::info!(cloudsnap = %id, "the backup may have been committed before without an answer: the next one is not built on it");
    }
    let measured = measured_write_speed(live);
    let (snapshot, task) = (snapshot.id, live.id);
    core.until_stored("the backup that is in the store", || {
        let (chain, manifest) = (chain.clone(), manifest.clone());
        core.finish(live, move |tx| {
            if !in_doubt {
                chain.put(tx)?;
            }
            Catalog::put(tx, row.credential, &id.manifest_key(), &manifest)?;
            if let Some(bytes_per_s) = measured {
                CredentialRow::set_write_speed(tx, row.credential, bytes_per_s)?;
            }
            release_snapshot(tx, task, snapshot)
        })
    })
    .await
}

/// Lets go of the snapshot that was taken for a backup, unless another backup goes on with it or may.
fn release_snapshot(tx: &rusqlite::Transaction<'_>, task: Uuid, snapshot: SnapshotId) -> Result<(), DbError> {
    match TaskRow::others_need(tx, task, snapshot)? {
        true => Ok(()),
        false => SnapshotRow::set_state(tx, snapshot, SnapshotState::Deleting),
    }
}

/// How fast the store took data, if enough was sent to tell.
fn measured_write_speed(live: &LiveTask) -> Option<u64> {
    const ENOUGH_BYTES: u64 = 16 << 20;
    let (bytes, seconds) = live.upload();
    (bytes >= ENOUGH_BYTES && seconds > 0.0).then(|| (bytes as f64 / seconds) as u64)
}

pub(super) fn mark_failed(tx: &rusqlite::Transaction<'_>, row: &TaskRow) -> Result<(), DbError> {
    match row.snapshot {
        Some(snapshot) => release_snapshot(tx, row.id, snapshot),
        None => Ok(()),
    }
}

/// Takes the snapshot off its volume that a task made for itself.
pub(super) async fn drop_snapshot_of(core: &Core, row: &TaskRow) -> Result<(), ServiceError> {
    let (volume, snapshot) = ids(row)?;
    let Some(volume) = core.registry.by_id(volume).and_then(|entry| entry.volume().ok()) else {
        return Ok(());
    };
    core.drop_snapshot(volume, snapshot).await
}

/// Drops the snapshot that was taken for the backup, the block sets that nobody needs any more, and the task's files.
pub(super) async fn clean_up(core: &Core, row: &TaskRow) -> Result<(), ServiceError> {
    let (volume, snapshot) = ids(row)?;
    let mut dropped = Ok(());
    if let Some(entry) = core.registry.by_id(volume)
        && let Ok(volume) = entry.volume()
    {
        let task = row.id;
        let others_need = core.db.run(move |tx| TaskRow::others_need(tx, task, snapshot)).await?;
        if !others_need {
            dropped = core.drop_snapshot(volume, snapshot).await;
        }
        core.forget_intervals(&entry).await;
    }
    clean_files(core, row.id).await?;
    dropped
}
