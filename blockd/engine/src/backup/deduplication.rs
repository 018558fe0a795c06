//! Deduplication of a planned backup, and the fingerprint files of a location.
//!
//! A file below `fingerprints/<credential>/` has the fingerprints of a stored delta. The plan of a backup
//! makes its file beside the plan; the end of the backup moves it there. A missing one only costs space.

use crate::{
    backup::{
        planning::{FrozenBackup, RESTARTED, ids},
        work::BackupWork,
    },
    error::{ServiceError, blocking},
    tasks::{
        LiveTask,
        needs::{Untyped, untyped},
        priority::{on_thread, raise_nice},
    },
};
use blockd_api::{CredentialRef, Deduplication};
use blockd_catalog::{DbError, DbManifestCache, Doubt, KnownProofs, ProofRow, TaskRow, TaskSpec};
use blockd_cloud::{
    BACKUP_LIFETIME_S, BackupSpec, CloudError, CloudSnapshotId, DedupRequest, Deduplicated, Delta,
    FingerprintKey, Manifest, ManifestCache, ManifestKey, References, Repository, Unchanged, dedup_sources,
    deduplicate, fingerprint_file_name,
};
use blockd_extent::{BlockSet, BlockSource, Extent, SnapshotId, VolumeId};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use uuid::Uuid;

/// Volumes whose newest snapshot may name sources.
const MAX_VOLUMES: usize = 256;
/// Earlier snapshots of the own volume that may name sources, for content that returns after a full backup.
const MAX_OWN: usize = 16;
/// Newest snapshots of another volume that are tried until one may name sources.
const MAX_TRIED: usize = 4;
const KEY_FILE: &str = "key";

/// Returns the path of the fingerprint file of an unfinished backup.
fn new_file(task_dir: &Path) -> PathBuf {
    task_dir.join("fingerprints")
}

/// Turns those blocks of a backup into references whose content is stored, in a copy only those that it
/// stores itself. `None` if it stores all.
pub(super) async fn deduplicated(
    work: &BackupWork,
    live: &LiveTask,
    FrozenBackup { volume, snapshot, .. }: &FrozenBackup<'_>,
    repository: &Repository,
    (salt, data, again): ([u8; 32], &BlockSet, BlockSet),
    base: Option<&Manifest>,
    is_copy: bool,
) -> Result<Option<Deduplicated>, ServiceError> {
    let row = live.view();
    let (_, snapshot) = (ids(&row)?, snapshot.id);
    let credential = work.repositories.credential(Some(&CredentialRef::Id(row.credential))).await?;
    let scope = credential.store.connection.deduplicate;
    if scope == Deduplication::Off || data.is_empty() {
        return Ok(None);
    }
    let is_restart = row.detail.note.as_deref() == Some(RESTARTED);
    let unusable = unusable_sources(work, row.credential).await?;
    let (dir, task_dir) =
        (work.host.data_dir.fingerprints_dir(row.credential), work.host.data_dir.task_dir(live.id));
    let manifests = DbManifestCache::new(Arc::clone(&work.db), row.credential);
    let (repository, cancel, data) = (repository.clone(), live.cancel.clone(), data.clone());
    let (readers, volume, base) = (Arc::clone(&work.shared_readers), Arc::clone(volume), base.cloned());
    let (id, running) = (row.cloudsnap, Arc::clone(&live.search).lock_owned().await);
    // The thread writes files: an idle one could be preempted in the filesystem.
    let lower: fn() = if work.repositories.task_workers.work().yields() { raise_nice } else { || () };
    on_thread("dedup", lower, move || {
        let _running = running;
        let reader = readers.join(snapshot, || volume.view(snapshot))?;
        // The rest of a lazy volume is in a store: without a base, all of it would be fetched twice.
        let found = if base.is_none() && reader.may_wait() {
            Ok(None)
        } else {
            let usable = || {
                make_dirs(&[&dir, &task_dir])?;
                let key = FingerprintKey::open(&repository, &dir.join(KEY_FILE))?;
                let donors = if is_copy || is_restart {
                    Vec::new()
                } else {
                    prune(&dir, &manifests);
                    donors(&dir, id, scope, &manifests, &unusable)
                };
                let base = base.as_ref().filter(|_| !is_copy);
                let path_of = |delta: &Delta| match unusable.has_damage(&manifests, delta) {
                    // There is no such file.
                    true => PathBuf::new(),
                    false => dir.join(fingerprint_file_name(delta)),
                };
                let sources = dedup_sources(base, &donors, path_of);
                let path = new_file(&task_dir);
                let request =
                    DedupRequest { id, salt, data: &data, again: &again, sources: &sources, path: &path };
                deduplicate(&request, &key, &reader, &cancel)
            };
            usable().map(Some)
        };
        reader.close();
        match found {
            // A failed write of local files does not prevent a backup.
            Err(error @ CloudError::Journal { .. }) => {
                tracing::warn!(%error, "the backup is made without deduplication");
                let _ = std::fs::remove_file(new_file(&task_dir));
                Ok(None)
            }
            found => Ok::<_, ServiceError>(found?),
        }
    })
    .await?
}

/// Protects the donors of a planned backup from deletions by this host. Their choice may be hours old: blocks
/// whose sources were found damaged or are being deleted since become data.
pub(super) async fn claimed(
    work: &BackupWork,
    live: &LiveTask,
    found: Deduplicated,
) -> Result<Deduplicated, ServiceError> {
    if found.references.is_empty() {
        return Ok(found);
    }
    let credential = live.view().credential;
    let dir = work.host.data_dir.fingerprints_dir(credential);
    let manifests = DbManifestCache::new(Arc::clone(&work.db), credential);
    // Deletions start under this lock.
    let admission = work.snapshots.admission.lock().await;
    let unusable = unusable_sources(work, credential).await?;
    let claimed = blocking(move || {
        let is_unusable = |delta: &Delta| {
            unusable.has_damage(&manifests, delta) || !dir.join(fingerprint_file_name(delta)).exists()
        };
        let is_gone = |donor: &CloudSnapshotId| {
            unusable.snapshots.contains(&untyped(donor)) || manifests.load(&donor.manifest_key()).is_none()
        };
        Ok::<_, ServiceError>(found.without(is_unusable, is_gone))
    });
    let claimed = claimed.await?;
    live.detail(|detail| detail.donors.clone_from(&claimed.donors));
    work.tasks.store_progress(live).await;
    drop(admission);
    Ok(claimed)
}

/// Returns the blocks of a delta that verifications found damaged.
pub(super) fn damaged_in(source: &Delta, proofs: &[ProofRow]) -> BlockSet {
    let mut lost = BlockSet::new();
    let of_source = proofs.iter().filter(|proof| source.is_of(&proof.cloudsnap));
    of_source.for_each(|proof| lost.union_with(&proof.lost_blocks()));
    lost
}

/// Returns the blocks of a cloud snapshot that verifications with any credential of its repository found
/// damaged.
pub(super) fn lost_of(manifest: &Manifest, proofs: &[ProofRow]) -> BlockSet {
    let (id, mut lost) = (manifest.id(), BlockSet::new());
    let of_snapshot = proofs.iter().filter(|proof| proof.cloudsnap == id);
    of_snapshot.for_each(|proof| lost.union_with(&proof.lost_blocks()));
    lost.slice(Extent::whole(manifest.size_bytes))
}

/// Returns a check that fails if content that a planned backup needs was found damaged since. An earlier run
/// may have committed it: then it is too late, and a verification finds the damage in the backup.
///
/// Damage that another host found counts for deduplicated blocks only: it deletes the fingerprint files.
pub(super) fn sources_check(
    work: &BackupWork,
    row: &TaskRow,
    spec: &Arc<BackupSpec>,
) -> impl Fn() -> Result<(), CloudError> + Clone + Send + Sync + 'static {
    let (db, credential, spec) = (Arc::clone(&work.db), row.credential, Arc::clone(spec));
    let dir = work.host.data_dir.fingerprints_dir(credential);
    // A synthetic full backup needs its base only as a source.
    let needs_base = spec.base.is_some() && !spec.synthetic;
    let is_checked = !row.detail.may_be_committed && (needs_base || !spec.references.is_empty());
    move || {
        if !is_checked {
            return Ok(());
        }
        let proofs = db.transaction::<_, DbError>(|tx| ProofRow::of_repository(tx, credential));
        let proofs = proofs.map_err(|error| CloudError::Internal {
            what: "reading the results of verifications",
            detail: error.to_string(),
        })?;
        let is_forgotten = |source: &&Delta| !dir.join(fingerprint_file_name(source)).exists();
        if spec.references.sources_of(&spec.deduplicated).iter().any(is_forgotten)
            || references_damage(&spec.references, &proofs)
            || spec.base.as_ref().is_some_and(|base| needs_base && needs_damage(&spec, base, &proofs))
        {
            return Err(CloudError::SourceDamaged { id: spec.id() });
        }
        Ok(())
    }
}

fn references_damage(references: &References, proofs: &[ProofRow]) -> bool {
    let damaged = |source: &Delta| damaged_in(source, proofs);
    references.sources().iter().any(|source| !damaged(source).is_empty()) && {
        let unchanged = Unchanged { references: references.clone(), again: BlockSet::new() };
        !unchanged.without(damaged).again.is_empty()
    }
}

/// Returns true if the backup leaves damaged blocks to its base.
fn needs_damage(spec: &BackupSpec, base: &Manifest, proofs: &[ProofRow]) -> bool {
    let mut lost = lost_of(base, proofs);
    if !lost.is_empty() {
        lost.subtract(&spec.data);
        lost.subtract(&spec.zero);
        lost.subtract(&spec.references.blocks());
    }
    !lost.is_empty()
}

fn make_dirs(dirs: &[&Path]) -> Result<(), CloudError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CloudError::Journal { path, what: "creation", source }
    };
    dirs.iter().try_for_each(|dir| std::fs::create_dir_all(dir).map_err(failed(dir)))
}

/// Snapshots that provide no sources.
struct Unusable {
    /// In doubt, unfinished, or being deleted.
    snapshots: BTreeSet<Untyped>,
    /// With damage that this host or another one found.
    damaged: Vec<CloudSnapshotId>,
    /// Deltas of the damaged ones.
    deltas: std::sync::OnceLock<BTreeSet<(VolumeId, SnapshotId)>>,
}

impl Unusable {
    /// Returns true for a delta of a snapshot with damage, which may be in any of its deltas.
    fn has_damage(&self, manifests: &DbManifestCache, delta: &Delta) -> bool {
        let deltas = self.deltas.get_or_init(|| {
            let named = self.damaged.iter().filter_map(|id| manifests.load(&id.manifest_key()));
            let named: Vec<Manifest> = named.collect();
            let own = self.damaged.iter().map(|id| (id.volume, id.snapshot));
            named
                .iter()
                .flat_map(Manifest::deltas)
                .map(|delta| (delta.volume, delta.snapshot))
                .chain(own)
                .collect()
        });
        deltas.contains(&(delta.volume, delta.snapshot))
    }
}

/// Returns the snapshots that must not provide sources: other hosts may delete those in doubt, this one
/// deletes some now, and unfinished backups, like the own one, may never be complete.
async fn unusable_sources(work: &BackupWork, credential: Uuid) -> Result<Unusable, ServiceError> {
    let found = work.db.run(move |tx| -> Result<Unusable, DbError> {
        let doubts = Doubt::all(tx)?.into_iter().map(|doubt| doubt.cloudsnap);
        let tasks = TaskRow::unfinished(tx)?.into_iter().chain(TaskRow::resumable(tx)?);
        let of_task = tasks.filter(|task| {
            matches!(task.spec, TaskSpec::Backup(_) | TaskSpec::Delete(_) | TaskSpec::Repair(_))
        });
        let snapshots = doubts.chain(of_task.map(|task| task.cloudsnap)).map(|id| untyped(&id)).collect();
        let known = KnownProofs::of_repository(tx, credential, Timestamp::now())?;
        let damaged = known.ids().into_iter().filter(|id| known.damage(id).is_some()).collect();
        Ok(Unusable { snapshots, damaged, deltas: std::sync::OnceLock::new() })
    });
    Ok(found.await?)
}

/// Returns the fingerprint files of a location with their deltas, newest first.
fn files(dir: &Path) -> Vec<(SystemTime, VolumeId, SnapshotId, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let (volume, snapshot) = entry
                .file_name()
                .to_str()?
                .split_once('-')
                .map(|(volume, snapshot)| (volume.parse::<u64>().ok(), snapshot.parse::<u64>().ok()))?;
            let written = entry.metadata().ok()?.modified().ok()?;
            Some((written, VolumeId::from_u64(volume?), SnapshotId::from_u64(snapshot?), entry.path()))
        })
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    files
}

/// Removes the files of deltas that no snapshot names any more.
fn prune(dir: &Path, manifests: &DbManifestCache) {
    let least_age = Duration::from_secs(BACKUP_LIFETIME_S.unsigned_abs());
    let mut old = files(dir);
    old.retain(|(written, ..)| written.elapsed().is_ok_and(|age| age > least_age));
    if old.is_empty() {
        return;
    }
    let Ok(named) = manifests.deltas() else { return };
    let named: BTreeSet<SnapshotId> = named.into_iter().collect();
    for (.., path) in old.iter().filter(|(_, _, snapshot, _)| !named.contains(snapshot)) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(%error, path = %path.display(), "an unneeded fingerprint file stays");
        }
    }
}

/// Returns snapshots that name sources, preferred ones first: earlier ones of the volume, then the newest one
/// of each other volume.
fn donors(
    dir: &Path,
    own: CloudSnapshotId,
    scope: Deduplication,
    manifests: &DbManifestCache,
    unusable: &Unusable,
) -> Vec<Manifest> {
    let (mut of_own, mut others) = (Vec::new(), Vec::new());
    let mut tried: BTreeMap<VolumeId, (usize, bool)> = BTreeMap::new();
    for (_, volume, snapshot, _) in files(dir) {
        let is_own = volume == own.volume;
        let (count, is_found) = tried.entry(volume).or_default();
        let is_enough = if is_own { *count == MAX_OWN } else { *is_found || *count == MAX_TRIED };
        if is_enough || (!is_own && (scope == Deduplication::Volume || others.len() == MAX_VOLUMES)) {
            continue;
        }
        *count += 1;
        let id = |incremental| CloudSnapshotId { cluster: own.cluster, volume, snapshot, incremental };
        let found = [id(true), id(false)].into_iter().filter(|id| !unusable.snapshots.contains(&untyped(id)));
        let Some(manifest) = found.filter_map(|id| manifests.load(&id.manifest_key())).next() else {
            continue;
        };
        *is_found = true;
        if is_own { of_own.push(manifest) } else { others.push(manifest) }
    }
    of_own.append(&mut others);
    of_own
}

/// Keeps the fingerprint file of a stored backup. A failure only costs space.
pub(super) async fn keep_fingerprints(work: &BackupWork, task: Uuid, credential: Uuid, delta: &Delta) {
    let from = new_file(&work.host.data_dir.task_dir(task));
    let to = work.host.data_dir.fingerprints_dir(credential).join(fingerprint_file_name(delta));
    let moved = blocking(move || {
        if from.exists()
            && let Err(error) = std::fs::rename(&from, &to)
        {
            tracing::warn!(%error, path = %to.display(), "later backups cannot refer to this one");
        }
        Ok::<_, ServiceError>(())
    });
    if let Err(error) = moved.await {
        tracing::warn!(%error, "later backups cannot refer to this one");
    }
}
