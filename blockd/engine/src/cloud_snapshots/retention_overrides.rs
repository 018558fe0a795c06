//! Pins and expiry dates of cloud snapshots.
//!
//! They are in the database of this host: manifests never change, and retention runs only on the host whose
//! schedules made the backups. They do not prevent a manual deletion on another host.

use crate::{
    cloud_snapshots::delete_requests::Deletions,
    error::ServiceError,
    repositories::preflight::check_cancelled,
    schedules::{known_health::KnownHealth, retention_checks::is_relied_on, uses::Uses},
    tasks::requests::refuse_past,
};
use blockd_api::{
    ErrorCode,
    cloudsnaps::{CloudsnapMark, MarkCloudsnap, StartDelete},
    tasks::TaskStarted,
};
use blockd_catalog::{DbError, RetentionOverride, RunRow, ScheduleRow};
use blockd_cloud::{CloudError, CloudSnapshotId, Manifest};
use blockd_extent::VolumeId;
use blockd_schedule::{Retention, Snapshot, Verdict, decide};
use jiff::Timestamp;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Pause before a store with undeleted expired snapshots is checked again.
const RECHECK_PAUSE: Duration = Duration::from_secs(3_600);

/// Times of the last checks of expired cloud snapshots, by credential and volume.
pub type RecentListings = HashMap<(Uuid, Uuid, VolumeId), (Instant, BTreeSet<CloudSnapshotId>)>;

impl Deletions {
    /// Sets or removes the pin and expiry date of a cloud snapshot.
    ///
    /// # Errors
    /// There is no such cloud snapshot, it is being deleted, an anomaly pins it, or the date is past. Without
    /// `force`, also a date of one that another host made.
    pub async fn mark_cloudsnap(&self, request: &MarkCloudsnap) -> Result<CloudsnapMark, ServiceError> {
        let invalid = |message: &str| Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        if request.expires_at.is_some() && request.never_expires {
            return invalid("expires and neverExpires contradict each other");
        }
        if request.pinned.is_none() && request.expires_at.is_none() && !request.never_expires {
            return invalid("no change requested: give pinned, expires or neverExpires");
        }
        refuse_past(request.expires_at)?;
        let id = request.cloud_snapshot_id;
        if let Some(at) = request.expires_at.filter(|_| !request.force) {
            // A date causes a deletion.
            let hint = format!("blockctl cloudsnap expire {id} --at {at} --force");
            self.refuse_of_other_host(&id, hint)?;
        }
        let (credential, _) = self.cloud_snapshots.find_manifest(&id, request.credential.as_ref()).await?;
        self.host.failpoints.reached("override requested")?;
        // Deletions check for pins under the same lock.
        let _admission = self.admission.lock().await;
        self.tasks.refuse_if_deleting(&id).await?;
        // A running deletion may have ended since.
        self.repositories.preflight_manifest(credential.uuid, &id).await?;
        check_cancelled()?;
        if request.pinned == Some(false) {
            self.checks.refuse_if_pinned_by_anomaly(&id).await?;
        }
        let request = request.clone();
        let stored = self.db.run(move |tx| -> Result<_, DbError> {
            let new = RetentionOverride {
                cloudsnap: id,
                credential: credential.uuid,
                pinned: false,
                expires: None,
            };
            let mut mark = RetentionOverride::find(tx, &id, credential.uuid)?.unwrap_or(new);
            mark.pinned = request.pinned.unwrap_or(mark.pinned);
            mark.expires = if request.never_expires { None } else { request.expires_at.or(mark.expires) };
            mark.put(tx)?;
            Ok(RetentionOverride::all(tx)?.of(&id, mark.credential, Timestamp::now()))
        });
        // The effective mark, including other credentials of the repository.
        let holds = stored.await?;
        let (pinned, expires) = (holds.is_some_and(|mark| mark.pinned), holds.and_then(|mark| mark.expires));
        tracing::info!(cloudsnap = %id, pinned, expires = expires.map(tracing::field::display), "pin and expiry date set");
        // The schedules evaluate their retention again.
        self.scheduler.wake();
        Ok(CloudsnapMark { cloud_snapshot_id: id, pinned, expires_at: expires })
    }

    /// Starts the deletion of expired backups that no schedule made; those of schedules are subject to their
    /// retention. The last good backup of a volume in a location is never deleted, and none while the newest
    /// is known to be damaged.
    pub async fn delete_expired(
        self: &Arc<Self>,
        now: impl Fn() -> Timestamp,
        recent: &mut RecentListings,
    ) -> Result<(), ServiceError> {
        let mut expired: HashMap<_, BTreeSet<CloudSnapshotId>> = HashMap::new();
        let at = now();
        for mark in self.db.run(move |tx| expired_by_hand(tx, at)).await? {
            let id = mark.cloudsnap;
            expired.entry((mark.credential, id.cluster, id.volume)).or_default().insert(id);
        }
        recent.retain(|of, _| expired.contains_key(of));
        for (of, ids) in expired {
            // An unchanged situation needs no check of the store every minute.
            if recent.get(&of).is_some_and(|(at, known)| at.elapsed() < RECHECK_PAUSE && *known == ids) {
                continue;
            }
            recent.insert(of, (Instant::now(), ids.clone()));
            let (credential, _, volume) = of;
            if let Err(error) = self.delete_expired_of(credential, &ids, &now).await {
                if matches!(error, ServiceError::Stopping) {
                    return Err(error);
                }
                // The store may be unreachable.
                tracing::warn!(%volume, %error, "deletion of expired cloud snapshots failed; it is retried later");
            }
        }
        Ok(())
    }

    async fn delete_expired_of(
        self: &Arc<Self>,
        credential: Uuid,
        ids: &BTreeSet<CloudSnapshotId>,
        now: impl Fn() -> Timestamp,
    ) -> Result<(), ServiceError> {
        let Some(like) = ids.first() else { return Ok(()) };
        self.checks.check_clock_of(credential).await?;
        let now = now();
        let Some(mut proven) = self.checks.prove_for_retention(credential, like).await? else {
            return Ok(());
        };
        let manifests: Vec<Manifest> =
            std::mem::take(&mut proven.listed).into_iter().filter_map(|item| item.manifest.ok()).collect();
        let judged = self.judge_expired(credential, &manifests, now).await?;
        self.host.failpoints.reached("expired judged")?;
        let is_meant = |id: &CloudSnapshotId| {
            ids.iter()
                .any(|one| (one.cluster, one.volume, one.snapshot) == (id.cluster, id.volume, id.snapshot))
        };
        let relied_on = judged.iter().filter(|one| is_relied_on(&one.verdict));
        let relied_on = relied_on.map(|one| one.id).collect();
        let (surplus, kept): (Vec<VerdictOfOverride>, Vec<VerdictOfOverride>) =
            judged.into_iter().filter(|one| is_meant(&one.id)).partition(|one| one.verdict.is_delete());
        for VerdictOfOverride { id, verdict, .. } in kept {
            tracing::info!(cloudsnap = %id, %verdict, "expired cloud snapshot kept");
        }
        if !surplus.is_empty() && !self.checks.check_relied_on(proven, relied_on).await? {
            return Ok(());
        }
        for VerdictOfOverride { id, verdict, mark } in surplus {
            match self.start_judged_delete(&id, credential, mark).await {
                Ok(Some(started)) => {
                    tracing::info!(cloudsnap = %id, task = %started.task_id, %verdict, "deletion of an expired cloud snapshot started");
                }
                Ok(None) => {
                    tracing::info!(cloudsnap = %id, "deletion skipped: pin or expiry date changed concurrently");
                }
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                // It may be in use, unlike the others.
                Err(error) => {
                    tracing::warn!(cloudsnap = %id, %error, "deletion of an expired cloud snapshot failed; it is retried later");
                }
            }
        }
        let gone =
            ids.iter().filter(|one| !manifests.iter().any(|manifest| manifest.snapshot == one.snapshot));
        for id in gone {
            if let Err(error) = self.forget_mark_of(credential, *id).await {
                // A failure of one does not affect the others.
                tracing::warn!(cloudsnap = %id, %error, "removing the expiry date of a deleted cloud snapshot failed");
            }
        }
        Ok(())
    }

    /// Judges the cloud snapshots of a volume by their dates only.
    async fn judge_expired(
        &self,
        credential: Uuid,
        manifests: &[Manifest],
        now: Timestamp,
    ) -> Result<Vec<VerdictOfOverride>, ServiceError> {
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            Ok((KnownHealth::of(tx, credential, now)?, RetentionOverride::all(tx)?, Uses::all(tx)?))
        });
        let (known, marks, uses) = known.await?;
        let snapshots: Vec<_> = manifests
            .iter()
            .map(|manifest| {
                let id = manifest.id();
                let mark = marks.of(&id, credential, now);
                let (condition, health) = known.judge(&id, uses.condition(credential, &id));
                Snapshot {
                    id,
                    created: manifest.description.created,
                    condition,
                    health,
                    pinned: mark.is_some_and(|mark| mark.pinned),
                    held: marks.is_held(id.volume),
                    expires: mark.and_then(|mark| mark.expires),
                }
            })
            .collect();
        let verdicts = decide(&snapshots, &Retention::default(), now).into_iter();
        let judged = |(id, verdict)| VerdictOfOverride { id, verdict, mark: marks.of(&id, credential, now) };
        Ok(verdicts.map(judged).collect())
    }

    /// Starts a deletion that was decided with this mark; does nothing if the mark has changed since.
    pub async fn start_judged_delete(
        self: &Arc<Self>,
        id: &CloudSnapshotId,
        credential: Uuid,
        judged_by: Option<RetentionOverride>,
    ) -> Result<Option<TaskStarted>, ServiceError> {
        let request = StartDelete::of(*id).under(credential);
        self.start_delete_if(&request, Some(judged_by)).await
    }

    /// Returns true if the mark is the one of the decision, and neither a pin nor an anomaly keeps the
    /// backup. Requires the admission lock.
    pub async fn is_judged_by(
        &self,
        id: &CloudSnapshotId,
        credential: Uuid,
        judged_by: Option<RetentionOverride>,
    ) -> Result<bool, ServiceError> {
        let marks = self.db.run(RetentionOverride::all).await?;
        let mark = marks.of(id, credential, Timestamp::now());
        let said = |mark: Option<RetentionOverride>| mark.map(|mark| (mark.pinned, mark.expires));
        let is_kept = marks.is_held(id.volume) || mark.is_some_and(|mark| mark.pinned);
        Ok(!is_kept && said(mark) == said(judged_by))
    }

    /// Removes the mark of a cloud snapshot that its store no longer holds.
    async fn forget_mark_of(&self, credential: Uuid, id: CloudSnapshotId) -> Result<(), ServiceError> {
        let (repository, _) = self.repositories.task_repository(credential).await?;
        // A listing may lag behind, and may contain unreadable manifests.
        for incremental in [false, true] {
            match Box::pin(repository.manifest(&CloudSnapshotId { incremental, ..id })).await {
                Err(CloudError::SnapshotNotFound { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
        // The disk of the store may have been unmounted since it was proven.
        repository.prove_key_slot().await?;
        Ok(self.db.run(move |tx| RetentionOverride::remove(tx, &id, credential)).await?)
    }
}

/// Decision about a cloud snapshot.
struct VerdictOfOverride {
    id: CloudSnapshotId,
    verdict: Verdict,
    /// Mark of the decision.
    mark: Option<RetentionOverride>,
}

/// Returns the expired marks of cloud snapshots that no schedule made.
fn expired_by_hand(
    tx: &rusqlite::Transaction<'_>,
    now: Timestamp,
) -> Result<Vec<RetentionOverride>, DbError> {
    let marks = RetentionOverride::all(tx)?;
    let mut expired: Vec<RetentionOverride> = marks.expired(now).copied().collect();
    if expired.is_empty() {
        return Ok(expired);
    }
    let mut scheduled = HashSet::new();
    for schedule in ScheduleRow::all(tx)? {
        let runs = RunRow::kept(tx, schedule.uuid)?;
        scheduled.extend(runs.iter().filter_map(|run| Some(run.cloudsnap.as_ref()?.snapshot)));
    }
    expired.retain(|mark| !scheduled.contains(&mark.cloudsnap.snapshot));
    Ok(expired)
}
