//! Verification of abandoned backups that may be listed.
//!
//! A backup interrupted between its commit and the check of its base is listed, and repeats the check when it
//! resumes. An abandoned one never does, so its objects are checked here: as soon as the store answers, and
//! again an hour later, because the store may execute an abandoned request or a running deletion late.
//! Nothing is deleted. An incomplete backup is shown as damaged, like other findings of a verification;
//! complete or not, this host does not use it as a base.

use crate::{
    backup::{plan::Plan, work::BackupWork},
    error::{ServiceError, blocking, spawned},
    fingerprints,
    tasks::findings::proofs,
};
use blockd_api::{
    events::{EventKind, Severity},
    tasks::TaskKind,
};
use blockd_catalog::{CredentialRow, DbError, DbManifestCache, Doubt, NewEvent, ProofRow, TaskRow};
use blockd_cloud::{
    CancelToken, CloudSnapshotId, ManifestKey, Progress, VerifyDepth, VerifyOptions, VerifyReport,
    remove_leftovers_of, verify,
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// Time after which no request of an abandoned backup is in flight: their timeouts are minutes.
const LATE_S: i64 = 3600;
/// Time after which an unresolved doubt is dropped; a later verification finds the damage.
const LIFETIME_S: i64 = 30 * 24 * 3600;
/// Timeout of one check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);
/// First and maximum pause after a failure of a store.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// Failed stores with the time of the next attempt and the pause after it.
pub type Failing = HashMap<Uuid, (Instant, Duration)>;

/// Returns the name under which an abandoned backup may be listed: its commit may have started.
pub(crate) async fn may_be_listed(work: &BackupWork, row: &TaskRow) -> Option<CloudSnapshotId> {
    if row.kind() != TaskKind::Backup {
        return None;
    }
    // Another run of the daemon may have started the commit and died before it recorded that.
    if row.detail.run == Some(work.host.run) && !row.detail.may_be_committed {
        return None;
    }
    // The row may be older than the plan, without which no objects are stored.
    let (dir, task) = (work.host.data_dir.task_dir(row.id), row.id);
    let plan = blocking(move || Plan::load(&dir, task)).await;
    match plan {
        Ok(Some(plan)) => Some(CloudSnapshotId { incremental: plan.is_incremental(), ..row.cloudsnap }),
        Ok(None) => row.detail.backup_type.is_some().then_some(row.cloudsnap),
        Err(error) => {
            tracing::warn!(task = %row.id, %error, "reading the plan of an abandoned backup failed; its name may be listed");
            Some(row.cloudsnap)
        }
    }
}

/// Deletes the objects of a backup that cannot be committed any more: its commit never started, and only this
/// run of the daemon knows its name. All other objects wait for garbage collection.
pub(crate) fn remove_leftovers(work: &BackupWork, row: &TaskRow) {
    if row.detail.run != Some(work.host.run)
        || row.detail.may_be_committed
        || row.detail.backup_type.is_none()
    {
        return;
    }
    let (host, repositories) = (Arc::clone(&work.host), Arc::clone(&work.repositories));
    let (task, credential, id) = (row.id, row.credential, row.cloudsnap);
    // A failure loses only space, so it runs in the background.
    tokio::spawn(async move {
        let removed = async {
            let (repository, _) = repositories.task_repository(credential).await?;
            Ok::<_, ServiceError>(remove_leftovers_of(&repository, id.cluster, id.volume, id.snapshot).await?)
        };
        let removed = tokio::select! {
            removed = removed => removed,
            () = host.stopping.cancelled() => return,
        };
        match removed {
            Ok(objects) => {
                tracing::info!(%task, cloudsnap = %id, objects, "objects of the abandoned backup deleted");
            }
            Err(error) => {
                tracing::warn!(%task, cloudsnap = %id, %error, "deleting the objects of the abandoned backup failed; garbage collection deletes them");
            }
        }
    });
}

/// Returns the doubt about an abandoned backup.
pub(crate) fn doubt(credential: Uuid, cloudsnap: CloudSnapshotId) -> Doubt {
    Doubt { credential, cloudsnap, since: Timestamp::now(), abandoned: true, checked: false }
}

/// Returns the doubt about the former name of a restarted backup: its manifest was deleted, but a late put
/// may create it again.
pub(crate) fn doubt_of_restart(credential: Uuid, former: CloudSnapshotId) -> Doubt {
    Doubt { checked: true, ..doubt(credential, former) }
}

/// Marks a cloud snapshot as no base for anything on this host, such as a volume restored from it.
pub(super) fn committed_in_doubt(credential: Uuid, cloudsnap: CloudSnapshotId) -> Doubt {
    Doubt { abandoned: false, ..doubt(credential, cloudsnap) }
}

impl BackupWork {
    /// Verifies abandoned backups in reachable stores; a failing store delays only its own.
    ///
    /// # Errors
    /// The database fails.
    pub async fn check_doubts(&self, now: Timestamp, failing: &mut Failing) -> Result<(), ServiceError> {
        for doubt in self.db.run(Doubt::abandoned).await? {
            let age_s = now.as_second().saturating_sub(doubt.since.as_second());
            if doubt.checked && age_s < LATE_S {
                continue;
            }
            let credential = doubt.credential;
            let failed = failing.get(&credential).copied();
            if failed.is_some_and(|(again, _)| Instant::now() < again) && age_s < LIFETIME_S {
                continue;
            }
            if age_s >= LIFETIME_S {
                tracing::warn!(cloudsnap = %doubt.cloudsnap, "abandoned backup was not checked, because its store failed for too long");
                self.db.run(move |tx| Doubt { abandoned: false, ..doubt }.put(tx)).await?;
                continue;
            }
            let id = doubt.cloudsnap;
            let checked =
                tokio::time::timeout(CHECK_TIMEOUT, self.check_doubt(&doubt, now, age_s >= LATE_S)).await;
            let error = match checked {
                Ok(Ok(())) => {
                    failing.remove(&credential);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the store does not answer".to_owned(),
            };
            let pause = failed.map_or(RETRY_PAUSE.0, |(_, pause)| (pause * 2).min(RETRY_PAUSE.1));
            failing.insert(credential, (Instant::now() + pause, pause));
            tracing::warn!(cloudsnap = %id, %error, "check of an abandoned backup failed; it is retried later");
        }
        Ok(())
    }

    async fn check_doubt(&self, doubt: &Doubt, now: Timestamp, is_late: bool) -> Result<(), ServiceError> {
        let (credential, id) = (doubt.credential, doubt.cloudsnap);
        let (repository, requests) = self.repositories.task_repository(credential).await?;
        let manifests = DbManifestCache::new(Arc::clone(&self.db), credential);
        let options = VerifyOptions { depth: VerifyDepth::Quick, download_concurrency: 1, cpu_threads: 1 };
        let location = self.repositories.location_now(credential).await;
        let checked = repository.clone();
        let report = spawned(async move {
            let (progress, cancel) = (Arc::new(Progress::new(requests)), CancelToken::new());
            verify(&checked, &[id], &options, &|_| None, &manifests, progress, &cancel).await
        })
        .await?;
        // The directory of an unmounted disk is empty. If it is mounted during the check, the result is wrong
        // until the next check.
        repository.prove_key_slot().await?;
        let manifests = DbManifestCache::new(Arc::clone(&self.db), credential);
        fingerprints::forget_reported(&self.host.data_dir, &manifests, &report);
        let stored = doubt.clone();
        self.db
            .run(move |tx| -> Result<(), DbError> {
                note(tx, &stored, location, &report, now)?;
                // A listed backup stays in doubt, so that it never becomes a base.
                match (is_late, report.snapshots.is_empty()) {
                    (true, true) => Doubt::remove(tx, credential, &id),
                    (true, false) => Doubt { abandoned: false, checked: true, ..stored }.put(tx),
                    (false, _) => Doubt { checked: true, ..stored }.put(tx),
                }
            })
            .await?;
        self.events.wake();
        Ok(())
    }
}

/// Stores the result like a verification.
fn note(
    tx: &rusqlite::Transaction<'_>,
    doubt: &Doubt,
    location: Option<Uuid>,
    report: &VerifyReport,
    now: Timestamp,
) -> Result<(), DbError> {
    let (credential, id) = (doubt.credential, doubt.cloudsnap);
    let Some(found) = report.snapshots.first() else {
        return DbManifestCache::remove(tx, credential, &id.manifest_key());
    };
    let known: BTreeMap<CloudSnapshotId, ProofRow> =
        ProofRow::of_repository(tx, credential)?.into_iter().map(|proof| (proof.cloudsnap, proof)).collect();
    let proofs = proofs(report, &known, (credential, location), VerifyDepth::Quick, now);
    proofs.iter().try_for_each(|proof| proof.put(tx))?;
    if found.is_sound() {
        tracing::info!(cloudsnap = %id, "abandoned backup is complete in the store and stays listed");
        return Ok(());
    }
    if known.get(&id).is_some_and(|proof| !proof.sound) {
        return Ok(());
    }
    let what = report.findings.first().map_or("", |finding| finding.what.as_str());
    let message = format!("abandoned backup is listed but incomplete: {what}");
    let name = CredentialRow::all(tx)?
        .into_iter()
        .find(|row| row.uuid == credential)
        .map(|row| row.name.to_string());
    let event = NewEvent {
        credential: name,
        cloudsnap: Some(id),
        ..NewEvent::new(now, Severity::Error, EventKind::DamageFound, message)
    };
    event.insert(tx)
}
