//! Deletion of a snapshot: its manifest first, then each delta that no other manifest references, and its
//! proofs.
//!
//! Before that, the manifests of the volume's other snapshots are read: if one is unreadable, this snapshot
//! may be the last one that can be restored. After the deletion of the manifest the snapshot does not exist;
//! an interruption only leaves garbage, which a repeated call with the manifest deletes.

use crate::{
    CloudError, CloudSnapshotId, ManifestKey, Repository,
    error::random,
    listing::ManifestCache,
    manifest::{MANIFEST, Manifest},
    names::DeltaId,
    plan::PACK_FRAMES,
    proof::ProofId,
    repository::delete_objects,
    verify::is_whole,
};
use blockd_extent::SnapshotId;
use blockd_store::PutMode;
use std::collections::HashSet;
use uuid::Uuid;

/// Result of a deletion.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DeleteReport {
    /// Deltas whose objects were deleted.
    pub deltas_deleted: u32,
    /// Deleted objects, including the manifest, as far as the store reports.
    pub objects_deleted: u64,
    /// Owners of the kept deltas.
    pub kept: Vec<SnapshotId>,
    /// Reason for keeping them, if other than use by snapshots.
    pub kept_reason: Option<String>,
}

/// Treatment of obstacles to a deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteMode {
    /// Refuses it with [`CloudError::SiblingUnreadable`] if another manifest of the same volume cannot be
    /// read, because the snapshot may be the last one that can be restored; and with [`CloudError::Leased`]
    /// if a lazy volume of another host than this one needs it. A snapshot with a damaged manifest of its own
    /// cannot be restored, so that the other manifests do not matter for it.
    Checked {
        /// Installation of this host.
        host: Uuid,
    },
    /// Deletes the manifest regardless, on the administrator's explicit request. Keeps all deltas if another
    /// manifest cannot be read.
    Forced,
}

/// Deletes a snapshot. Deltas of the snapshots in `protected` stay: running backups use them.
///
/// Before any delta is deleted, the store must prove that it is the one that was opened: in the empty
/// directory of an unmounted disk no manifest would reference a delta.
///
/// A snapshot with a damaged manifest is deleted too, but only with its own delta, because the others are
/// unknown.
///
/// # Errors
/// [`CloudError::SnapshotNotFound`]; [`CloudError::KeySlotMissing`]; [`CloudError::SiblingUnreadable`];
/// [`CloudError::Leased`]; errors of the store. A repeated call, or [`delete_with_manifest`] once the
/// manifest is gone, completes the work.
pub async fn delete_snapshot(
    repo: &Repository,
    id: &CloudSnapshotId,
    protected: &[SnapshotId],
    cache: &dyn ManifestCache,
    mode: DeleteMode,
) -> Result<DeleteReport, CloudError> {
    match repo.manifest(id).await {
        Ok(manifest) => delete_with_manifest(repo, &manifest, protected, cache, mode).await,
        Err(CloudError::Damaged { .. }) => delete_damaged(repo, id, protected, cache, mode).await,
        Err(error) => Err(error),
    }
}

/// Deletes a snapshot with a given manifest, even if the manifest object no longer exists.
///
/// # Errors
/// [`CloudError::KeySlotMissing`]; [`CloudError::SiblingUnreadable`] and [`CloudError::Leased`], after which
/// the snapshot still exists; errors of the store.
pub async fn delete_with_manifest(
    repo: &Repository,
    manifest: &Manifest,
    protected: &[SnapshotId],
    cache: &dyn ManifestCache,
    mode: DeleteMode,
) -> Result<DeleteReport, CloudError> {
    let id = manifest.id();
    if let DeleteMode::Checked { host } = mode {
        check_siblings(repo, &id, cache).await?;
        refuse_if_leased(repo, manifest, host).await?;
    }
    let there = repo.store().delete(&id.manifest_key()).await?;
    if let DeleteMode::Checked { host } = mode {
        // A host that stored its lease since the first check may have found the manifest.
        refuse_if_leased(repo, manifest, host).await?;
    }
    let mut report = DeleteReport { objects_deleted: u64::from(there), ..DeleteReport::default() };
    let deleted = delete_unneeded(repo, manifest, protected, cache, &mut report).await;
    // Also after a partial failure, or without deltas: a backup may have stored the manifest again.
    let proofs = delete_proofs(repo, &id).await;
    let recommit = refuse_recommit(repo, &id).await;
    deleted?;
    report.objects_deleted += proofs?;
    recommit?;
    Ok(report)
}

/// Refuses the deletion of an existing snapshot while another manifest of its volume is unreadable.
async fn check_siblings(
    repo: &Repository,
    id: &CloudSnapshotId,
    cache: &dyn ManifestCache,
) -> Result<(), CloudError> {
    let listed = repo.list_for_deletion(None, cache).await?;
    if !listed.iter().any(|found| found.id.as_ref() == Some(id)) {
        // An earlier attempt deleted the manifest, so the snapshot cannot be restored.
        return Ok(());
    }
    let is_sibling =
        |found: &CloudSnapshotId| (found.cluster, found.volume) == (id.cluster, id.volume) && found != id;
    for found in listed {
        if !found.id.as_ref().is_some_and(is_sibling) {
            continue;
        }
        match found.manifest {
            Ok(_) => {}
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                return Err(CloudError::SiblingUnreadable {
                    id: *id,
                    key: found.key,
                    source: Box::new(error),
                });
            }
        }
    }
    Ok(())
}

/// Refuses the deletion of a snapshot that a lazy volume of another host needs. If its manifest is deleted
/// but all objects exist, stores it again.
///
/// A host stores its lease before it reads the manifest. So if no lease is listed after the deletion of the
/// manifest, each host that stores one later finds the manifest missing: objects are deleted only then, and
/// a snapshot without all of its objects has no holder.
async fn refuse_if_leased(repo: &Repository, manifest: &Manifest, host: Uuid) -> Result<(), CloudError> {
    let id = manifest.id();
    let Err(leased) = repo.refuse_if_leased(&id, host).await else { return Ok(()) };
    if !matches!(leased, CloudError::Leased { .. }) {
        return Err(leased);
    }
    match repo.manifest(&id).await {
        Ok(_) => return Err(leased),
        Err(CloudError::SnapshotNotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    if !is_whole(repo, manifest).await? {
        tracing::warn!(snapshot = %id, %leased, "an earlier attempt deleted objects of the snapshot: its deletion continues");
        return Ok(());
    }
    let object = manifest.encode(repo.key(), &random()?)?;
    repo.put_manifest(manifest.clone(), object.into(), || 0).await?;
    Err(leased)
}

/// Deletes the deltas of a deleted snapshot that no other one needs.
async fn delete_unneeded(
    repo: &Repository,
    manifest: &Manifest,
    protected: &[SnapshotId],
    cache: &dyn ManifestCache,
    report: &mut DeleteReport,
) -> Result<(), CloudError> {
    let needed = match still_needed(repo, &manifest.id(), protected, cache).await? {
        Ok(needed) => needed,
        Err(reason) => {
            report.kept = manifest.deltas().map(|delta| delta.snapshot).collect();
            report.kept_reason = Some(reason);
            return Ok(());
        }
    };
    if manifest.deltas().any(|delta| !needed.contains(&delta.snapshot)) {
        repo.prove_key_slot().await?;
    }
    debug_assert!(report.kept.is_empty() && report.deltas_deleted == 0, "the report is of another deletion");
    let (kept, unneeded): (Vec<_>, Vec<_>) =
        manifest.deltas().partition(|delta| needed.contains(&delta.snapshot));
    for delta in &unneeded {
        assert!(!protected.contains(&delta.snapshot), "a running backup uses {}", delta.snapshot);
        debug_assert_eq!(u64::from(delta.pack_count), delta.frames.div_ceil(PACK_FRAMES));
    }
    let keys = unneeded.iter().flat_map(|delta| delta.id().keys(delta.pack_count));
    report.objects_deleted += delete_objects(repo, keys).await?;
    report.kept = kept.iter().map(|delta| delta.snapshot).collect();
    report.deltas_deleted = u32::try_from(unneeded.len()).unwrap_or(u32::MAX);
    debug_assert_eq!(report.kept.len() + report.deltas_deleted as usize, manifest.deltas().count());
    Ok(())
}

/// Deletes the proofs of a deleted snapshot. A host that is verifying it may store another one, which is
/// garbage like those that a store refuses to delete.
async fn delete_proofs(repo: &Repository, id: &CloudSnapshotId) -> Result<u64, CloudError> {
    let listed = repo.store().list(&ProofId::prefix(id)).await?;
    let keys = listed.into_iter().map(|object| object.key);
    // Skips foreign objects.
    match delete_objects(repo, keys.filter(|key| ProofId::from_key(key).is_some())).await {
        Err(error) if !error.is_retryable() => {
            tracing::warn!(snapshot = %id, %error, "proofs of a deleted cloud snapshot stay");
            Ok(0)
        }
        deleted => deleted,
    }
}

/// Deletes a manifest again once its objects may be gone.
///
/// A backup that did not know of its commit may have stored the manifest again. Such a backup then checks all
/// objects and deletes the manifest if one is missing: either that check follows the deletions, or the
/// manifest was stored before this call.
async fn refuse_recommit(repo: &Repository, id: &CloudSnapshotId) -> Result<(), CloudError> {
    if repo.store().delete(&id.manifest_key()).await? {
        tracing::debug!(snapshot = %id, "deleted the manifest of the cloud snapshot again: a backup stored it again, or the store does not report missing objects");
    }
    Ok(())
}

/// Deletes a snapshot with a damaged manifest, which an earlier attempt may have deleted. Only its own delta
/// is deleted, as the others are unknown. While another manifest is unreadable, only the manifest is deleted.
///
/// # Errors [`CloudError::KeySlotMissing`]; [`CloudError::Leased`], after which the manifest still exists as
/// it was, unless it is too long to be read; errors of the store. A repeated call completes the work.
pub async fn delete_damaged(
    repo: &Repository,
    id: &CloudSnapshotId,
    protected: &[SnapshotId],
    cache: &dyn ManifestCache,
    mode: DeleteMode,
) -> Result<DeleteReport, CloudError> {
    let key = id.manifest_key();
    let there = match mode {
        DeleteMode::Forced => repo.store().delete(&key).await?,
        DeleteMode::Checked { host } => {
            repo.refuse_if_leased(id, host).await?;
            let object = match MANIFEST.get(&**repo.store(), &key).await {
                // Too long to be stored again.
                Err(CloudError::Damaged { .. }) => None,
                object => object?,
            };
            let there = repo.store().delete(&key).await?;
            let leased = repo.refuse_if_leased(id, host).await;
            // A lease that was not seen may exist: without the manifest it would hold nothing.
            if let (Err(_), Some(object)) = (&leased, object) {
                repo.store().put(&key, object, PutMode::Overwrite).await?;
            }
            leased?;
            there
        }
    };
    let mut report = DeleteReport { objects_deleted: u64::from(there), ..DeleteReport::default() };
    let deleted = delete_own(repo, id, protected, cache, &mut report).await;
    let proofs = delete_proofs(repo, id).await;
    let recommit = refuse_recommit(repo, id).await;
    deleted?;
    report.objects_deleted += proofs?;
    recommit?;
    Ok(report)
}

/// Deletes the delta of a deleted snapshot, unless another one needs it.
async fn delete_own(
    repo: &Repository,
    id: &CloudSnapshotId,
    protected: &[SnapshotId],
    cache: &dyn ManifestCache,
    report: &mut DeleteReport,
) -> Result<(), CloudError> {
    let reason = match still_needed(repo, id, protected, cache).await? {
        Ok(needed) if needed.contains(&id.snapshot) => None,
        Ok(_) => {
            assert!(!protected.contains(&id.snapshot), "a running backup uses {id}");
            repo.prove_key_slot().await?;
            let delta = DeltaId { cluster: id.cluster, volume: id.volume, snapshot: id.snapshot };
            report.objects_deleted +=
                delete_objects(repo, objects_of(repo, delta).await?.into_iter()).await?;
            report.deltas_deleted = 1;
            return Ok(());
        }
        Err(reason) => Some(reason),
    };
    report.kept = vec![id.snapshot];
    report.kept_reason = reason;
    Ok(())
}

/// Returns the owners of deltas that must stay after a deletion, or the reason why they are unknown.
async fn still_needed(
    repo: &Repository,
    gone: &CloudSnapshotId,
    protected: &[SnapshotId],
    cache: &dyn ManifestCache,
) -> Result<Result<HashSet<SnapshotId>, String>, CloudError> {
    // Manifests of all volumes: a volume created from a snapshot of this one references its deltas.
    let mut needed: HashSet<SnapshotId> = protected.iter().copied().collect();
    for left in repo.list_for_deletion(Some(gone), cache).await? {
        match left.manifest {
            Ok(left) => needed.extend(left.deltas().map(|delta| delta.snapshot)),
            Err(error) if error.is_retryable() => return Err(error),
            // Its key is not that of a manifest, so no backup stored it.
            Err(_) if left.id.is_none() => {}
            // The deltas that it references are unknown, so all stay.
            Err(error) => return Ok(Err(format!("a manifest cannot be read: {error}"))),
        }
    }
    Ok(Ok(needed))
}

/// Lists the objects of a delta. Foreign objects below its prefix are skipped.
pub(crate) async fn objects_of(repo: &Repository, delta: DeltaId) -> Result<Vec<String>, CloudError> {
    let listed = repo.store().list(&delta.prefix()).await?;
    let keys = listed.into_iter().map(|object| object.key);
    Ok(keys.filter(|key| DeltaId::of_object(key) == Some(delta)).collect())
}
