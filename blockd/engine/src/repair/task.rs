//! Task of a repair.
//!
//! The committed manifest is the only durable state: before it, an interrupted repair leaves garbage, and
//! begins again; after it, the repetition finds the repaired cloud snapshot. The maintenance deletes the
//! damaged one.

use super::{lost::lost_files, sources::check_cancelled};
use crate::{
    backup::task::drop_snapshot_of,
    damaged_files::first_files,
    error::{ServiceError, blocking, spawned},
    host::Host,
    ids::random_id,
    repositories::Repositories,
    snapshots::Snapshots,
    tasks::{LiveTask, Tasks, findings::unrecovered, secrets},
    volumes::registry::Registry,
};
use blockd_api::{ApiError, CredentialRef, ErrorCode, tasks::Findings};
use blockd_catalog::{
    AnomalyRow, Chain, Db, DbError, DbManifestCache, RepairTask, RetentionOverride, RunRow, SnapshotRow,
    SnapshotState, TaskRow,
};
use blockd_cloud::{
    BackupType, CloudError, CloudSnapshotId, Manifest, ManifestCache, ManifestFilter, ManifestKey,
    MemoryJournal, Progress, Repair, Repository, UploadOptions, check_repaired, new_delta_salt,
};
use blockd_extent::{BlockSet, SnapshotId};
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc};

/// Work of repairs.
pub struct RepairWork {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

/// Cloud snapshots of a volume at a location.
pub(super) struct Known {
    manifests: Vec<Manifest>,
    /// Known damage: blocks, or none if only the manifest or its index is damaged.
    pub(super) damaged: BTreeMap<CloudSnapshotId, BlockSet>,
    /// Cloud snapshots whose manifest is damaged.
    pub(super) unreadable: Vec<CloudSnapshotId>,
}

impl Known {
    fn is_readable(&self, id: &CloudSnapshotId) -> bool {
        !self.unreadable.contains(id)
    }

    pub(super) fn repaired(&self, id: &CloudSnapshotId) -> Option<&Manifest> {
        self.manifests.iter().find(|manifest| manifest.repairs.as_ref() == Some(id))
    }

    /// Returns the damaged cloud snapshot and the later ones that need its delta, oldest first.
    pub(super) fn to_repair(&self, id: &CloudSnapshotId) -> Result<Vec<Manifest>, ServiceError> {
        let Some(own) = self.manifests.iter().find(|manifest| manifest.id() == *id) else {
            let message = format!(
                "repair failed on cloud snapshot {id}: its manifest is damaged, and this host has no copy of it"
            );
            return Err(ServiceError::refused(ErrorCode::CloudsnapDamaged, message));
        };
        if !self.damaged.contains_key(id) && self.repaired(id).is_none() {
            return Err(super::not_damaged(id));
        }
        let needs = |manifest: &&Manifest| {
            manifest.deltas().skip(1).any(|delta| *delta == own.delta)
                && self.damaged.contains_key(&manifest.id())
        };
        let mut later: Vec<_> = self.manifests.iter().filter(needs).cloned().collect();
        later.sort_by_key(|manifest| (manifest.description.created, manifest.id()));
        later.insert(0, own.clone());
        Ok(later)
    }
}

pub(crate) async fn run(
    work: &Arc<RepairWork>,
    live: &Arc<LiveTask>,
    asked: RepairTask,
) -> Result<TaskRow, ServiceError> {
    let result = repair_all(work, live, asked).await;
    drop_own_snapshot(work, &live.view()).await;
    let (findings, note, later_full) = result?;
    let lost = findings.damage.iter().flat_map(|damage| &damage.affects).map(|affected| affected.lost_bytes);
    let (lost, count) = (lost.sum::<u64>(), findings.damaged_snapshots.len());
    let files = first_files(&findings.damage);
    let object = match findings.damaged_snapshots.as_slice() {
        [only] => format!("cloud snapshot {only}"),
        _ => format!("{count} damaged cloud snapshots"),
    };
    live.detail(|detail| {
        detail.findings = Some(findings);
        detail.note = Some(note);
    });
    if count == 0 {
        return work.tasks.finish(live, |_| Ok(())).await;
    }
    let message = format!(
        "{lost} bytes of {object} cannot be recovered: neither the volume nor another location has these blocks of their points in time{files}"
    );
    let error = ApiError::new(ErrorCode::CloudsnapDamaged, message);
    Err(ServiceError::Refused(match later_full.filter(|_| live.view().volume.is_some()) {
        Some(full) => error.with_hint(format!(
            "the later full backup {full} does not record which blocks changed before it, so that the volume proves no block of an earlier one; local snapshots (`cloudsnap backup --keep-local`) or backups to a second location are sources for such repairs"
        )),
        None => error,
    }))
}

/// Returns the first full backup of the volume after a point in time.
fn full_after(manifests: &[Manifest], created: Timestamp) -> Option<CloudSnapshotId> {
    let is_later = |one: &&Manifest| one.backup_type == BackupType::Full && one.description.created > created;
    let first = manifests.iter().filter(is_later).min_by_key(|one| one.description.created);
    first.map(Manifest::id)
}

/// Repairs the cloud snapshot of a task and later ones; returns what was repaired, what is left, and the full
/// backup that separates lost blocks from the volume.
async fn repair_all(
    work: &Arc<RepairWork>,
    live: &Arc<LiveTask>,
    asked: RepairTask,
) -> Result<(Findings, String, Option<CloudSnapshotId>), ServiceError> {
    let _slot = secrets::slot(&work.tasks, live).await?;
    let (repository, requests) = secrets::repository(&work.tasks, live).await?;
    let repository = work.host.failpoints.repository(live.limited(&repository, &requests));
    let progress = Arc::new(Progress::new(requests));
    live.begin(Arc::clone(&progress));
    work.tasks.store_progress(live).await;
    repository.check_writable()?;
    work.repositories.prove_location(live.view().credential, &repository).await?;
    let mut known = work.known(live, &repository).await?;
    let (mut findings, mut stored, mut later_full) = (Findings::default(), Vec::new(), None);
    let affected = work.examine(live, &repository, &mut known, &progress).await?;
    if affected.is_empty() {
        let note = "all frames of the cloud snapshot can be read: nothing is damaged".to_owned();
        return Ok((findings, note, None));
    }
    for damaged in affected {
        check_cancelled(live)?;
        // Of an earlier run, or by another host.
        if let Some(manifest) = known.repaired(&damaged.id()).filter(|_| !asked.dry_run) {
            let blocks = known.damaged.get(&damaged.id()).cloned().unwrap_or_default();
            work.record(live, &repository, manifest, &blocks, true).await?;
            continue;
        }
        let repair = work.planned(live, &repository, &damaged, &known, asked).await?;
        findings.snapshots += 1;
        let missing = repair.missing().clone();
        if !missing.is_empty() {
            let files = lost_files(live, &repository, &damaged, &missing).await?;
            unrecovered(&mut findings, &damaged.id(), &missing, files);
            later_full = later_full.or_else(|| full_after(&known.manifests, damaged.description.created));
            continue;
        }
        findings.repaired_bytes += repair.wanted().len_bytes();
        work.host.failpoints.reached("repair planned")?;
        if asked.dry_run {
            continue;
        }
        let manifest = work.store(live, &repository, repair, Arc::clone(&progress)).await?;
        stored.push(manifest.id().to_string());
        known.manifests.push(manifest);
    }
    let bytes = findings.repaired_bytes;
    let note = match (asked.dry_run, stored.as_slice()) {
        (true, _) => format!("{bytes} bytes can be stored again; nothing was stored"),
        (false, []) => "nothing is left to repair".to_owned(),
        (false, all) => format!("{bytes} bytes stored again in {}", all.join(", ")),
    };
    Ok((findings, note, later_full))
}

impl RepairWork {
    /// Lists the cloud snapshots of the volume, and their known damage. This host's copy replaces a damaged
    /// manifest.
    async fn known(&self, live: &LiveTask, repository: &Repository) -> Result<Known, ServiceError> {
        let row = live.view();
        let (id, credential) = (row.cloudsnap, row.credential);
        let cache = DbManifestCache::new(Arc::clone(&self.db), credential);
        let filter = ManifestFilter { cluster: Some(id.cluster), volume: Some(id.volume) };
        let (mut manifests, mut unreadable) = (Vec::new(), Vec::new());
        for listed in repository.list_manifests(&filter, &cache).await? {
            let Some(id) = listed.id else { continue };
            // The listing takes unchanged objects from the cache: this one may be damaged since.
            let read = match id == row.cloudsnap {
                true => repository.manifest(&id).await,
                false => listed.manifest,
            };
            match read {
                Ok(manifest) => manifests.push(manifest),
                Err(error) if crate::repositories::opening::is_missing_or_damaged(&error) => {
                    let (cache, key) = (cache.clone(), id.manifest_key());
                    let copy = blocking(move || Ok::<_, ServiceError>(cache.load(&key))).await?;
                    manifests.extend(copy.filter(|copy| copy.id() == id));
                    unreadable.push(id);
                }
                // Without its key, the repair can neither read nor replace it.
                Err(CloudError::UnknownKey { .. }) if id != row.cloudsnap => {}
                Err(error) => return Err(error.into()),
            }
        }
        let damaged = self.damage(live, &unreadable).await?;
        Ok(Known { manifests, damaged, unreadable })
    }

    /// Plans the repair of one cloud snapshot, with all sources.
    async fn planned(
        &self,
        live: &LiveTask,
        repository: &Repository,
        damaged: &Manifest,
        known: &Known,
        asked: RepairTask,
    ) -> Result<Repair, ServiceError> {
        live.detail(|detail| detail.phase = "planning".to_owned());
        let nothing = BlockSet::new();
        let blocks = known.damaged.get(&damaged.id()).unwrap_or(&nothing);
        let mut repair = Repair::plan(repository, damaged, blocks, &known.manifests).await?;
        if repair.changes_nothing() && known.is_readable(&damaged.id()) {
            let id = damaged.id();
            let message = format!(
                "no damaged block of cloud snapshot {id} is known: `blockctl cloudsnap verify {id}` reads it"
            );
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        if asked.from.is_none() {
            self.add_local(live, repository, damaged, &known.manifests, &mut repair).await?;
        }
        check_cancelled(live)?;
        repair.add_readable(repository).await?;
        let own = live.view().credential;
        self.add_other_locations(damaged, own, asked.from, &mut repair).await?;
        Ok(repair)
    }

    /// Stores a repair, reads its blocks back, and records it in place of the damaged cloud snapshot.
    async fn store(
        &self,
        live: &LiveTask,
        repository: &Repository,
        repair: Repair,
        progress: Arc<Progress>,
    ) -> Result<Manifest, ServiceError> {
        let credential = live.view().credential;
        let row = self.repositories.credential(Some(&CredentialRef::Id(credential))).await?;
        let options = UploadOptions {
            upload_concurrency: self.host.settings.upload_concurrency,
            cpu_threads: self.host.settings.cpu_threads,
            write_once: row.capabilities.conditional_put,
            resumed: false,
            compression: row.store.connection.compression,
            ..UploadOptions::default()
        };
        let blocks = repair.wanted().clone();
        // As the manifest has it.
        let started = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or_default();
        let (spec, reader) =
            repair.into_backup(SnapshotId::from_u64(random_id()?), started, new_delta_salt()?)?;
        let (to, cancel, in_doubt) = (repository.clone(), live.cancel.clone(), Arc::clone(&progress));
        let stored = spawned(async move {
            let journal = Arc::new(MemoryJournal::default());
            blockd_cloud::backup(&to, Arc::new(spec), reader, journal, &options, progress, &cancel).await
        })
        .await;
        live.abandon_commit();
        let manifest = stored?;
        self.host.failpoints.reached("repair stored")?;
        let recorded = self.record(live, repository, &manifest, &blocks, in_doubt.was_in_doubt()).await;
        if recorded.as_ref().is_err_and(|error| error.to_api().code == ErrorCode::CloudsnapDamaged) {
            // It hides the damaged one, which still exists.
            repository.store().delete(&manifest.id().manifest_key()).await?;
        }
        recorded?;
        Ok(manifest)
    }

    /// Reads the blocks of a stored repair back, and records it in place of the damaged cloud snapshot.
    async fn record(
        &self,
        live: &LiveTask,
        repository: &Repository,
        manifest: &Manifest,
        blocks: &BlockSet,
        in_doubt: bool,
    ) -> Result<(), ServiceError> {
        let (credential, id) = (live.view().credential, manifest.id());
        let unreadable = check_repaired(repository, manifest, blocks).await?;
        if !unreadable.is_empty() {
            let message = format!(
                "repair failed on cloud snapshot {id}: {} stored bytes cannot be read back",
                unreadable.len_bytes()
            );
            let error = ApiError::new(ErrorCode::CloudsnapDamaged, message);
            return Err(ServiceError::Refused(error.with_hint(format!(
                "if it is listed, run blockctl cloudsnap verify {id}, then blockctl cloudsnap repair {id}"
            ))));
        }
        let (replaced, recorded) = (manifest.repairs, manifest.clone());
        self.db
            .run(move |tx| replaced.map_or(Ok(()), |old| replace(tx, credential, &old, &recorded, in_doubt)))
            .await?;
        self.host.failpoints.reached("repair recorded")?;
        tracing::info!(
            cloudsnap = %id,
            repairs = manifest.repairs.map(tracing::field::display),
            bytes = blocks.len_bytes(),
            "cloud snapshot repaired"
        );
        Ok(())
    }
}

/// Records a repaired cloud snapshot: it is the base of the next backup, unless its commit is in doubt, and
/// has the schedule, the pin, the expiry date and the hold of an anomaly of the damaged one.
fn replace(
    tx: &rusqlite::Transaction<'_>,
    credential: uuid::Uuid,
    old: &CloudSnapshotId,
    new: &Manifest,
    in_doubt: bool,
) -> Result<(), DbError> {
    let id = new.id();
    DbManifestCache::put(tx, credential, &id.manifest_key(), new)?;
    for chain in Chain::all(tx, None)? {
        if !in_doubt && chain.credential == credential && chain.cloudsnap == *old {
            Chain { cloudsnap: id, ..chain }.put(tx)?;
        }
    }
    RunRow::replace_cloudsnap(tx, credential, old, &id)?;
    AnomalyRow::replace_last_normal(tx, credential, old, &id)?;
    if let Some(mark) = RetentionOverride::find(tx, old, credential)? {
        RetentionOverride { cloudsnap: id, ..mark }.put(tx)?;
        RetentionOverride::remove(tx, old, credential)?;
    }
    Ok(())
}

/// Deletes the snapshot that was taken for the repair.
async fn drop_own_snapshot(work: &RepairWork, row: &TaskRow) {
    let Some(snapshot) = row.snapshot else { return };
    let marked = work.db.run(move |tx| SnapshotRow::set_state(tx, snapshot, SnapshotState::Deleting)).await;
    let dropped = match marked {
        Ok(_) => drop_snapshot_of(&work.snapshots, row).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = dropped {
        tracing::warn!(%error, "deleting the snapshot of the repair failed; the next start retries");
    }
}
