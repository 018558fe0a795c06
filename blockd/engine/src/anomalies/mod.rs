//! Anomalies of backups: ransomware, runaway jobs and mass deletions show in the changes of a volume.
//!
//! Each backup observes a sample of the blocks that it reads anyway. After its commit, its activity is
//! compared with earlier ones to the same location. The result never fails a backup. A resumed backup
//! observes only the blocks that it still reads.

pub(crate) mod observed;

use crate::{
    error::ServiceError,
    host::Host,
    schedules::wake::Scheduler,
    volumes::registry::{Registry, VolumeEntry},
};
use blockd_anomaly::{Anomaly, BackupActivity, ContentProfile, Observation, detect};
use blockd_api::{
    ErrorCode, List, VolumeName, VolumeRef,
    anomalies::{AcknowledgeAnomaly, AnomalyPolicy, BackupAnomaly, ListAnomalies, describe},
    events::{EventKind, Severity},
};
use blockd_catalog::{ActivityRow, AnomalyRow, Chain, Db, DbError, NewEvent};
use blockd_cloud::{BackupSpec, Manifest};
use blockd_extent::BlockSet;
use jiff::Timestamp;
use rusqlite::Transaction;
use std::sync::Arc;
use uuid::Uuid;

/// Detects, lists and acknowledges anomalies.
pub struct Anomalies {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) scheduler: Arc<Scheduler>,
}

/// Blocks of a backup as they were read.
pub(crate) struct ObservedBlocks {
    pub(crate) classes: Observation,
    /// Files of the frozen snapshot, if its filesystem is known.
    pub(crate) files: Option<u64>,
}

/// Backup with the observation of its blocks, at its commit.
pub(crate) struct ObservedBackup {
    pub(crate) task: Uuid,
    pub(crate) volume_name: VolumeName,
    pub(crate) credential: Uuid,
    pub(crate) credential_name: String,
    pub(crate) manifest: Manifest,
    /// Backup before it to the same location.
    pub(crate) before: Option<Chain>,
    /// `None` if the blocks were not observed.
    pub(crate) blocks: Option<ObservedBlocks>,
    pub(crate) spec: Arc<BackupSpec>,
    /// Bytes of its data that changed since the backup before it.
    pub(crate) changed_bytes: u64,
    /// An anomaly holds the backups of the volume.
    pub(crate) protects: bool,
}

impl Anomalies {
    /// Returns the policy of a volume.
    pub(crate) fn policy(&self, entry: &VolumeEntry) -> AnomalyPolicy {
        AnomalyPolicy::of(&entry.tags().labels, self.host.settings.anomaly_policy)
    }

    /// Lists anomalies, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_anomalies(&self, query: ListAnomalies) -> Result<List<BackupAnomaly>, ServiceError> {
        let all = query.all;
        let mut rows = self.db.run(move |tx| AnomalyRow::all(tx, all)).await?;
        if let Some(volume) = query.volume {
            let present = self.registry.find(&volume).ok().map(|entry| entry.id);
            rows.retain(|row| match &volume {
                VolumeRef::Id(id) => row.volume == *id,
                VolumeRef::Name(name) => Some(row.volume) == present || row.volume_name == *name,
            });
        }
        Ok(rows.into_iter().map(to_api).collect())
    }

    /// Acknowledges an anomaly, which ends its hold on the backups of the volume.
    ///
    /// # Errors
    /// There is no such anomaly, or the database fails.
    pub async fn acknowledge(
        &self,
        id: Uuid,
        request: AcknowledgeAnomaly,
    ) -> Result<BackupAnomaly, ServiceError> {
        let now = Timestamp::now();
        let stored = self.db.run(move |tx| -> Result<_, DbError> {
            let Some(row) = AnomalyRow::find(tx, id)? else { return Ok(None) };
            AnomalyRow::acknowledge(tx, id, now)?;
            if request.usual {
                let of = ActivityRow { volume: row.volume, credential: row.credential };
                of.add(tx, &BackupActivity { usual_at_any_time: true, ..row.activity })?;
            }
            AnomalyRow::find(tx, id)
        });
        let Some(row) = stored.await? else {
            return Err(ServiceError::refused(
                ErrorCode::AnomalyNotFound,
                format!("there is no anomaly {id}"),
            ));
        };
        tracing::info!(anomaly = %id, volume = %row.volume_name, usual = request.usual, "anomaly acknowledged");
        self.scheduler.wake();
        Ok(to_api(row))
    }
}

impl ObservedBackup {
    /// Records the activity and its anomalies. A failure does not fail the backup.
    pub(crate) fn record(&self, tx: &Transaction<'_>) {
        if let Err(error) = self.try_record(tx) {
            let cloudsnap = self.manifest.id();
            tracing::warn!(%cloudsnap, %error, "recording the activity of the backup failed; its anomalies stay unknown");
        }
    }

    fn try_record(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let of = ActivityRow { volume: self.manifest.volume, credential: self.credential };
        let known = of.profile(tx)?;
        let Some(blocks) = &self.blocks else {
            // Their classes are unknown now.
            let Some(mut profile) = known else { return Ok(()) };
            let written = [&self.spec.data, &self.spec.deduplicated, &self.spec.zero];
            profile.forget(written.into_iter().flat_map(BlockSet::extents));
            return of.put_profile(tx, &profile);
        };
        of.forget_ahead(tx, Timestamp::now())?;
        let history = of.history(tx)?;
        let is_older = |last: &BackupActivity| last.point_in_time >= self.manifest.description.created;
        // A backup of an older local snapshot says nothing about the present.
        if history.last().is_some_and(is_older) {
            return Ok(());
        }
        let mut profile = known.unwrap_or_default();
        profile.restrict(blocks.classes.sample());
        let activity = self.activity(blocks, &profile);
        let is_replaced = std::mem::take(&mut profile.is_replaced);
        // A full backup that was read as a whole shows what was discarded.
        let is_whole = blocks.classes.observed_bytes() / 3 >= self.data_bytes() / 4;
        if activity.is_full() && is_whole {
            profile.compressible = BlockSet::new();
        }
        profile.apply(&blocks.classes, self.spec.zero.extents());
        profile.files = blocks.files;
        of.put_profile(tx, &profile)?;
        if is_replaced {
            return Ok(());
        }
        let findings = detect(&history, &activity);
        match findings.is_empty() {
            true => of.add(tx, &activity),
            false => self.report(tx, findings, activity),
        }
    }

    /// Stores an anomaly and its event, or adds to the open anomaly of the volume at the location: during an
    /// attack, the backup before the first anomaly is the last normal one.
    fn report(
        &self,
        tx: &Transaction<'_>,
        findings: Vec<Anomaly>,
        activity: BackupActivity,
    ) -> Result<(), DbError> {
        let is_of_chain =
            |row: &AnomalyRow| (row.volume, row.credential) == (self.manifest.volume, self.credential);
        if let Some(mut open) = AnomalyRow::all(tx, false)?.into_iter().find(is_of_chain) {
            for finding in findings {
                match open.findings.iter_mut().find(|one| one.kind == finding.kind) {
                    Some(known) => known.observed = known.observed.max(finding.observed),
                    None => open.findings.push(finding),
                }
            }
            open.activity = open.activity.merged_with(activity);
            open.protects |= self.protects;
            return open.put_figures(tx);
        }
        let row = AnomalyRow {
            id: Uuid::new_v4(),
            volume: self.manifest.volume,
            volume_name: self.volume_name.clone(),
            credential: self.credential,
            credential_name: self.credential_name.clone(),
            cloudsnap: self.manifest.id(),
            last_normal: self.before.as_ref().map(|chain| chain.cloudsnap),
            detected: Timestamp::now(),
            findings,
            activity,
            protects: self.protects,
            acknowledged: None,
        };
        row.insert(tx)?;
        event_of(&row, self.task).insert(tx)
    }

    /// Returns the bytes of the blocks with data.
    fn data_bytes(&self) -> u64 {
        self.spec.data.len_bytes() + self.spec.deduplicated.len_bytes()
    }

    fn activity(&self, blocks: &ObservedBlocks, profile: &ContentProfile) -> BackupActivity {
        let created = self.manifest.description.created;
        // A synthetic full backup reads the changes only, as an incremental does.
        let base = self.before.as_ref().filter(|_| self.spec.base.is_some());
        let since = base.map(|base| created.duration_since(base.point_in_time).as_secs());
        let sample = blocks.classes.sample();
        BackupActivity {
            point_in_time: created,
            interval_s: since.map_or(0, |since| u64::try_from(since).unwrap_or(0).max(1)),
            // A resumed backup does not read what was uploaded before.
            dirty_bytes: self.changed_bytes.min(blocks.classes.observed_bytes().saturating_mul(2)),
            turned_incompressible_bytes: blocks.classes.turned_incompressible_bytes(profile),
            compressible_bytes: profile.compressible_bytes(sample),
            files_before: profile.files,
            files: blocks.files,
            usual_at_any_time: false,
        }
    }
}

/// Returns the event of an anomaly.
fn event_of(row: &AnomalyRow, task: Uuid) -> NewEvent {
    let what: Vec<_> = row.findings.iter().map(describe).collect();
    let effect = match (row.protects, &row.last_normal) {
        (true, Some(last)) => format!(
            "; {last} before it is pinned, and no backup of the volume expires until `blockctl anomaly acknowledge`"
        ),
        (true, None) => "; no backup of the volume expires until `blockctl anomaly acknowledge`".to_owned(),
        (false, _) => String::new(),
    };
    let message =
        format!("unusual changes in a backup of volume {}: {}{effect}", row.volume_name, what.join("; "));
    NewEvent {
        volume_id: Some(row.volume),
        volume: Some(row.volume_name.clone()),
        credential_id: Some(row.credential),
        credential: Some(row.credential_name.clone()),
        task: Some(task),
        cloudsnap: Some(row.cloudsnap),
        ..NewEvent::new(row.detected, Severity::Error, EventKind::AnomalyFound, message)
    }
}

fn to_api(row: AnomalyRow) -> BackupAnomaly {
    BackupAnomaly {
        anomaly_id: row.id,
        volume_id: row.volume,
        volume_name: row.volume_name,
        credential_id: row.credential,
        credential_name: row.credential_name,
        cloud_snapshot_id: row.cloudsnap,
        last_normal_cloud_snapshot_id: row.last_normal,
        detected_at: row.detected,
        findings: row.findings,
        protecting: row.protects && row.acknowledged.is_none(),
        acknowledged_at: row.acknowledged,
    }
}
