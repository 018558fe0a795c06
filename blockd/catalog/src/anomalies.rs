//! Rows of anomalies.

use crate::{DbError, json, parsed, parsed_if_there, rows, to_json};
use blockd_anomaly::{Anomaly, BackupActivity};
use blockd_api::VolumeName;
use blockd_cloud::CloudSnapshotId;
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::HashSet;
use uuid::Uuid;

/// Maximum number of acknowledged anomalies.
const MAX_ACKNOWLEDGED: u32 = 1000;

/// Anomaly of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnomalyRow {
    /// Its id.
    pub id: Uuid,
    /// The volume.
    pub volume: VolumeId,
    /// Name of the volume at that time.
    pub volume_name: VolumeName,
    /// The credential.
    pub credential: Uuid,
    /// Name of the credential at that time.
    pub credential_name: String,
    /// The backup.
    pub cloudsnap: CloudSnapshotId,
    /// The backup before it.
    pub last_normal: Option<CloudSnapshotId>,
    /// Time of detection.
    pub detected: Timestamp,
    /// Figures.
    pub findings: Vec<Anomaly>,
    /// Activity of the backup.
    pub activity: BackupActivity,
    /// Holds the backups of the volume until it is acknowledged.
    pub protects: bool,
    /// Time of the acknowledgement.
    pub acknowledged: Option<Timestamp>,
}

const COLUMNS: &str =
    "id, volume, volume_name, credential, credential_name, cloudsnap, last_normal, detected,
    findings, activity, protects, acknowledged";

impl AnomalyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            volume: parsed(row, 1)?,
            volume_name: parsed(row, 2)?,
            credential: parsed(row, 3)?,
            credential_name: row.get(4)?,
            cloudsnap: parsed(row, 5)?,
            last_normal: parsed_if_there(row, 6)?,
            detected: parsed(row, 7)?,
            findings: json(row, 8)?,
            activity: json(row, 9)?,
            protects: row.get(10)?,
            acknowledged: parsed_if_there(row, 11)?,
        })
    }

    /// Returns the anomalies, newest first: those without an acknowledgement, or all.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, acknowledged: bool) -> Result<Vec<Self>, DbError> {
        let sql =
            format!("SELECT {COLUMNS} FROM anomalies WHERE ?1 OR acknowledged IS NULL ORDER BY rowid DESC");
        rows(tx, &sql, [acknowledged], Self::read)
    }

    /// Returns an anomaly.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, id: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM anomalies WHERE id = ?1");
        Ok(tx.query_row(&sql, [id.to_string()], Self::read).optional()?)
    }

    /// Adds the anomaly.
    ///
    /// # Errors
    /// The database fails.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let sql = format!(
            "INSERT INTO anomalies ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
        );
        tx.execute(
            &sql,
            params![
                self.id.to_string(),
                self.volume.to_string(),
                self.volume_name.to_string(),
                self.credential.to_string(),
                self.credential_name,
                self.cloudsnap.to_string(),
                self.last_normal.map(|id| id.to_string()),
                self.detected.to_string(),
                to_json("anomalies", &self.findings)?,
                to_json("backup activity", &self.activity)?,
                self.protects,
                self.acknowledged.map(|at| at.to_string()),
            ],
        )?;
        Ok(())
    }

    /// Stores figures and activity of the anomaly, which goes on in a later backup.
    ///
    /// # Errors
    /// The database fails.
    pub fn put_figures(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "UPDATE anomalies SET findings = ?2, activity = ?3, protects = ?4 WHERE id = ?1",
            params![
                self.id.to_string(),
                to_json("anomalies", &self.findings)?,
                to_json("backup activity", &self.activity)?,
                self.protects
            ],
        )?;
        Ok(())
    }

    /// Holds the cloud snapshot that replaces the last normal backup of anomalies.
    ///
    /// # Errors
    /// The database fails.
    pub fn replace_last_normal(
        tx: &Transaction<'_>,
        credential: Uuid,
        old: &CloudSnapshotId,
        new: &CloudSnapshotId,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE anomalies SET last_normal = ?3 WHERE last_normal = ?1 AND credential = ?2",
            [old.to_string(), credential.to_string(), new.to_string()],
        )?;
        Ok(())
    }

    /// Acknowledges an anomaly, and deletes the oldest acknowledged ones.
    ///
    /// # Errors
    /// The database fails.
    pub fn acknowledge(tx: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<(), DbError> {
        tx.execute(
            "UPDATE anomalies SET acknowledged = ?2 WHERE id = ?1 AND acknowledged IS NULL",
            [id.to_string(), now.to_string()],
        )?;
        tx.execute(
            "DELETE FROM anomalies WHERE acknowledged IS NOT NULL AND rowid NOT IN
                 (SELECT rowid FROM anomalies WHERE acknowledged IS NOT NULL ORDER BY rowid DESC LIMIT ?1)",
            [MAX_ACKNOWLEDGED],
        )?;
        Ok(())
    }
}

/// Backups that anomalies without an acknowledgement hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnomalyHolds {
    volumes: HashSet<VolumeId>,
    last_normal: HashSet<CloudSnapshotId>,
}

impl AnomalyHolds {
    /// Returns the holds.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Self, DbError> {
        let mut holds = Self::default();
        for row in AnomalyRow::all(tx, false)?.into_iter().filter(|row| row.protects) {
            holds.volumes.insert(row.volume);
            // Without the backup type, like pins.
            holds.last_normal.extend(row.last_normal.map(|id| CloudSnapshotId { incremental: false, ..id }));
        }
        Ok(holds)
    }

    /// Returns true if no backup of the volume expires.
    pub fn is_held(&self, volume: VolumeId) -> bool {
        self.volumes.contains(&volume)
    }

    /// Returns true if the backup is the last one before an anomaly.
    pub fn is_last_normal(&self, id: &CloudSnapshotId) -> bool {
        self.last_normal.contains(&CloudSnapshotId { incremental: false, ..*id })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;
    use blockd_anomaly::AnomalyKind;

    #[test]
    fn anomaly_holds_until_it_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let snap = |rest: &str| format!("2e4d4b67-95d7-481e-aec5-14223ac55170/{rest}").parse().unwrap();
        let row = AnomalyRow {
            id: Uuid::from_u128(1),
            volume: VolumeId::from_u64(59),
            volume_name: "data".parse().unwrap(),
            credential: Uuid::from_u128(2),
            credential_name: "offsite".into(),
            cloudsnap: snap("59-62-incr"),
            last_normal: Some(snap("59-61-incr")),
            detected: Timestamp::UNIX_EPOCH,
            findings: vec![Anomaly { kind: AnomalyKind::ChangeRate, observed: 9, usual: 1, threshold: 6 }],
            activity: BackupActivity {
                point_in_time: Timestamp::UNIX_EPOCH,
                interval_s: 60,
                dirty_bytes: 9,
                turned_incompressible_bytes: 0,
                compressible_bytes: 1,
                files_before: None,
                files: None,
                usual_at_any_time: false,
            },
            protects: true,
            acknowledged: None,
        };
        let observed = AnomalyRow {
            id: Uuid::from_u128(3),
            volume: VolumeId::from_u64(60),
            protects: false,
            ..row.clone()
        };
        db.transaction::<_, DbError>(|tx| {
            row.insert(tx)?;
            observed.insert(tx)?;
            assert_eq!(AnomalyRow::all(tx, false)?, [observed.clone(), row.clone()]);
            let larger = vec![Anomaly { observed: 99, ..row.findings[0] }];
            AnomalyRow { findings: larger.clone(), ..row.clone() }.put_figures(tx)?;
            assert_eq!(AnomalyRow::find(tx, row.id)?.map(|row| row.findings), Some(larger));
            let holds = AnomalyHolds::all(tx)?;
            assert!(holds.is_held(row.volume) && !holds.is_held(observed.volume));
            assert!(holds.is_last_normal(&snap("59-61")) && !holds.is_last_normal(&row.cloudsnap));
            AnomalyRow::replace_last_normal(tx, row.credential, &snap("59-61-incr"), &snap("59-63-incr"))?;
            let holds = AnomalyHolds::all(tx)?;
            assert!(holds.is_last_normal(&snap("59-63")) && !holds.is_last_normal(&snap("59-61")));

            AnomalyRow::acknowledge(tx, row.id, Timestamp::UNIX_EPOCH)?;
            assert_eq!(AnomalyHolds::all(tx)?, AnomalyHolds::default());
            assert_eq!(AnomalyRow::all(tx, false)?.len(), 1);
            assert_eq!(
                AnomalyRow::find(tx, row.id)?.and_then(|row| row.acknowledged),
                Some(Timestamp::UNIX_EPOCH)
            );
            Ok(())
        })
        .unwrap();
    }
}
