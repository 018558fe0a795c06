//! Repairs of damaged cloud snapshots: the lost blocks are stored again, from the volume or from another
//! location, in a new cloud snapshot of the same point in time, which replaces the damaged one.

mod examine;
mod lost;
mod sources;
pub(crate) mod task;

use crate::{
    cloud_snapshots::delete_requests::Deletions,
    error::{ServiceError, blocking},
    host::{Admission, Host},
    repositories::{Repositories, locate::Purpose},
    tasks::{Tasks, runner::Runner},
    volumes::registry::Registry,
};
use blockd_api::{
    CredentialRef, ErrorCode,
    cloudsnaps::StartRepair,
    tasks::{TaskKind, TaskStarted},
};
use blockd_catalog::{
    Db, DbError, DbManifestCache, KnownDamage, KnownProofs, ProofRow, RepairTask, RetentionOverride, TaskRow,
    TaskSpec,
};
use blockd_cloud::{CloudError, CloudSnapshotId, Manifest, VerifyDepth};
use blockd_extent::{SnapshotId, VolumeId};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Requests for repairs.
pub struct Repairs {
    pub(crate) admission: Arc<Admission>,
    pub(crate) db: Arc<Db>,
    pub(crate) deletions: Arc<Deletions>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) tasks: Arc<Tasks>,
    /// Times of the last deletions of repaired cloud snapshots.
    pub(crate) deletions_started: Mutex<HashMap<(Uuid, CloudSnapshotId), Instant>>,
}

/// Time after which a deletion of a repaired cloud snapshot is tried again: a retention lock of the location
/// refuses it for days.
const DELETE_AGAIN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Findings whose repair the maintenance has started, with the times of their proofs.
pub type RepairAttempts = HashMap<(Uuid, CloudSnapshotId), Timestamp>;

/// Returns the refusal of a cloud snapshot that is not known to be damaged.
pub(super) fn not_damaged(id: &CloudSnapshotId) -> ServiceError {
    let message =
        format!("cloud snapshot {id} is not known to be damaged: `blockctl cloudsnap verify {id}` reads it");
    ServiceError::refused(ErrorCode::InvalidRequest, message)
}

impl Repairs {
    /// Starts the repair of a cloud snapshot, and of the later ones that need its damaged blocks.
    ///
    /// # Errors
    /// There is no such cloud snapshot or credential, or a task deletes or repairs it.
    pub async fn start_repair(&self, request: &StartRepair) -> Result<TaskStarted, ServiceError> {
        let id = request.cloud_snapshot_id;
        let credential =
            self.repositories.credential_with(&id, request.credential.as_ref(), Purpose::Read).await?;
        let from = match &request.from {
            Some(from) => Some(self.repositories.credential(Some(from)).await?.uuid),
            None => None,
        };
        match self.repositories.preflight_manifest(credential.uuid, &id).await {
            // This host may have a copy of it.
            Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::Damaged { .. }) => {}
            answer => {
                answer?;
                self.refuse_undamaged(credential.uuid, id).await?;
            }
        }
        let _admission = self.admission.lock().await;
        crate::repositories::preflight::check_cancelled()?;
        self.tasks.refuse_if_deleting(&id).await?;
        let is_same = |task: &TaskRow| {
            task.kind() == TaskKind::Repair
                && (task.cloudsnap.cluster, task.cloudsnap.volume) == (id.cluster, id.volume)
                && task.credential == credential.uuid
        };
        if let Some(task) = self.tasks.unfinished_tasks().await?.into_iter().find(is_same) {
            let message =
                format!("task {} repairs cloud snapshots of the volume: wait for it to end", task.id);
            return Err(ServiceError::refused(ErrorCode::CloudsnapInUse, message));
        }
        let spec = TaskSpec::Repair(RepairTask { from, dry_run: request.dry_run });
        let mut row = TaskRow::new(spec, credential.uuid, id, crate::owner::current());
        row.volume = self.own_volume(&id);
        row.snapshot = match row.volume {
            Some(_) => Some(SnapshotId::from_u64(crate::ids::random_id()?)),
            None => None,
        };
        row.detail.volume_name = self.registry.source_name(&id, self.host.cluster);
        row.detail.credential_name = credential.name.to_string();
        self.runner.store_and_launch(row, |_| Ok(())).await
    }

    /// Refuses a cloud snapshot with a readable manifest that is not known to be damaged or repaired.
    async fn refuse_undamaged(&self, credential: Uuid, id: CloudSnapshotId) -> Result<(), ServiceError> {
        let now = Timestamp::now();
        let is_known = self.db.run(move |tx| -> Result<_, DbError> {
            let proofs = ProofRow::of_repository(tx, credential)?;
            Ok(proofs.iter().any(|proof| proof.cloudsnap == id && !proof.sound)
                || KnownProofs::of_location(tx, credential, now)?.damage_of_others(&id).is_some()
                || DbManifestCache::repaired(tx, &id)?.is_some())
        });
        if is_known.await? { Ok(()) } else { Err(not_damaged(&id)) }
    }

    fn own_volume(&self, id: &CloudSnapshotId) -> Option<VolumeId> {
        let entry = (id.cluster == self.host.cluster).then(|| self.registry.by_id(id.volume)).flatten();
        entry.map(|entry| entry.id)
    }

    /// Deletes the repaired cloud snapshots of this host, and starts the repair of the next damaged one of
    /// its volumes. Each finding is tried once.
    ///
    /// # Errors
    /// The database or a store fails.
    pub async fn repair_next(&self, attempts: &mut RepairAttempts) -> Result<(), ServiceError> {
        if self.tasks.unfinished_tasks().await?.iter().any(|task| task.kind() == TaskKind::Repair) {
            return Ok(());
        }
        self.delete_repaired().await?;
        let now = Timestamp::now();
        for damage in self.db.run(move |tx| KnownDamage::all(tx, now)).await? {
            let key = (damage.credential, damage.cloudsnap);
            if self.own_volume(&damage.cloudsnap).is_none()
                || attempts.get(&key) == Some(&damage.proof.proven)
            {
                continue;
            }
            attempts.insert(key, damage.proof.proven);
            let request = StartRepair {
                cloud_snapshot_id: damage.cloudsnap,
                credential: Some(CredentialRef::Id(damage.credential)),
                from: None,
                dry_run: false,
            };
            match self.start_repair(&request).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::warn!(cloudsnap = %damage.cloudsnap, %error, "starting a repair failed");
                }
            }
        }
        Ok(())
    }

    /// Starts the deletion of damaged cloud snapshots of this host that have a repaired one of the same point
    /// in time. This host has found the damage and read the repaired one completely. Those in use stay.
    ///
    /// # Errors
    /// The database fails.
    pub async fn delete_repaired(&self) -> Result<(), ServiceError> {
        for credential in self.repositories.credential_rows().await? {
            let cache = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
            let known = blocking(move || cache.all()).await?;
            let uuid = credential.uuid;
            let proofs = self.db.run(move |tx| ProofRow::of_repository(tx, uuid)).await?;
            let is_damaged =
                |id: &CloudSnapshotId| proofs.iter().any(|proof| proof.cloudsnap == *id && !proof.sound);
            let reads = |proof: &&ProofRow| proof.sound && proof.depth > VerifyDepth::Quick;
            let is_proven =
                |id: &CloudSnapshotId| proofs.iter().filter(reads).any(|proof| proof.cloudsnap == *id);
            let is_of_same_point = |id: &CloudSnapshotId, repaired: &Manifest| {
                let point = |one: &Manifest| (one.description.created, one.size_bytes);
                known.iter().any(|one| one.id() == *id && point(one) == point(repaired))
            };
            for repaired in &known {
                let Some(damaged) = repaired.repairs else { continue };
                let is_own = damaged.cluster == self.host.cluster && is_damaged(&damaged);
                if !is_own || !is_proven(&repaired.id()) || !is_of_same_point(&damaged, repaired) {
                    continue;
                }
                // Another host may have deleted it since the last listing.
                let is_stored = self.repositories.preflight_manifest(credential.uuid, &repaired.id()).await;
                let deleted = match is_stored {
                    Ok(_) => self.delete(credential.uuid, &damaged).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = deleted {
                    tracing::info!(cloudsnap = %damaged, %error, "a repaired cloud snapshot is not deleted yet");
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, credential: Uuid, damaged: &CloudSnapshotId) -> Result<(), ServiceError> {
        let (id, now) = (*damaged, Timestamp::now());
        let last = self.deletions_started.lock().get(&(credential, id)).copied();
        if last.is_some_and(|at| at.elapsed() < DELETE_AGAIN_AFTER) {
            return Ok(());
        }
        let marks = self.db.run(RetentionOverride::all).await?;
        let judged_by = marks.of(&id, credential, now);
        if self.deletions.start_delete_repaired(credential, &id, judged_by).await?.is_some() {
            self.deletions_started.lock().insert((credential, id), Instant::now());
        }
        Ok(())
    }
}
