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
use blockd_anomaly::{BackupActivity, ContentProfile, Observation, detect};
use blockd_api::{
    ErrorCode, List, VolumeName, VolumeRef,
    anomalies::{AcknowledgeAnomaly, AnomalyPolicy, BackupAnomaly, ListAnomalies, describe},
    events::{EventKind, Severity},
};
use blockd_catalog::{ActivityRow, AnomalyRow, Chain, Db, DbError, NewEvent};
use blockd_cloud::{BackupType, Manifest};
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
#[derive(Default)]
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
    pub(crate) blocks: ObservedBlocks,
    pub(crate) dirty_bytes: u64,
    pub(crate) zero: BlockSet,
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
                of.add(tx, &row.activity)?;
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
        let history = of.history(tx)?;
        let profile = of.profile(tx)?;
        let activity = self.activity(&profile);
        // A backup of an older local snapshot says nothing about the present.
        if history.last().is_some_and(|last| last.point_in_time >= activity.point_in_time) {
            return Ok(());
        }
        let mut next = if activity.is_full() { ContentProfile::default() } else { profile };
        next.apply(&self.blocks.classes, self.zero.extents());
        next.files = self.blocks.files;
        of.put_profile(tx, &next)?;
        let findings = detect(&history, &activity);
        if findings.is_empty() {
            return of.add(tx, &activity);
        }
        // During an attack, the backup before the first anomaly is the last normal one.
        let is_of_chain = |row: &AnomalyRow| (row.volume, row.credential) == (of.volume, of.credential);
        let earlier = AnomalyRow::all(tx, false)?.into_iter().find(is_of_chain);
        let before = || self.before.as_ref().map(|chain| chain.cloudsnap);
        let row = AnomalyRow {
            id: Uuid::new_v4(),
            volume: of.volume,
            volume_name: self.volume_name.clone(),
            credential: of.credential,
            credential_name: self.credential_name.clone(),
            cloudsnap: self.manifest.id(),
            last_normal: earlier.map_or_else(before, |earlier| earlier.last_normal),
            detected: Timestamp::now(),
            findings,
            activity,
            protects: self.protects,
            acknowledged: None,
        };
        row.insert(tx)?;
        event_of(&row, self.task).insert(tx)
    }

    fn activity(&self, profile: &ContentProfile) -> BackupActivity {
        let created = self.manifest.description.created;
        let base = self.before.as_ref().filter(|_| self.manifest.backup_type == BackupType::Incremental);
        let since = base.map(|base| created.duration_since(base.point_in_time).as_secs());
        BackupActivity {
            point_in_time: created,
            interval_s: since.map_or(0, |since| u64::try_from(since).unwrap_or(0).max(1)),
            dirty_bytes: self.dirty_bytes,
            incompressible_bytes: self.blocks.classes.incompressible_bytes(),
            turned_incompressible_bytes: self.blocks.classes.turned_incompressible_bytes(profile),
            compressible_bytes: profile.compressible_bytes(),
            files_before: profile.files,
            files: self.blocks.files,
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
