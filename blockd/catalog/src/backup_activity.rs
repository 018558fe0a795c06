//! Rows of the activity of backups, and the content profiles that it is measured against.

use crate::{DbError, json, latest_credible, parsed, rows, stored, to_json};
use blockd_anomaly::{BackupActivity, ContentProfile};
use blockd_extent::{BlockSet, VolumeId};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension, Transaction, params};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Age at which activities are deleted: the detector compares eight weeks.
const KEPT: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Maximum number of activities of a volume and credential.
const MAX_ROWS: u32 = 2000;

/// Activity of a volume's backups to a credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActivityRow {
    /// The volume.
    pub volume: VolumeId,
    /// The credential.
    pub credential: Uuid,
}

impl ActivityRow {
    /// Returns the activities, ascending.
    ///
    /// # Errors
    /// The database fails.
    pub fn history(&self, tx: &Transaction<'_>) -> Result<Vec<BackupActivity>, DbError> {
        let sql = "SELECT activity FROM backup_activity WHERE volume = ?1 AND credential = ?2
            ORDER BY point_in_time";
        rows(tx, sql, [self.volume.to_string(), self.credential.to_string()], |row| json(row, 0))
    }

    /// Deletes the activities of a clock that was set back since: they would be newer than each later one.
    ///
    /// # Errors
    /// The database fails.
    pub fn forget_ahead(&self, tx: &Transaction<'_>, now: Timestamp) -> Result<(), DbError> {
        let latest = latest_credible(now);
        tx.execute(
            "DELETE FROM backup_activity WHERE volume = ?1 AND credential = ?2 AND point_in_time > ?3",
            [self.volume.to_string(), self.credential.to_string(), sortable(latest)],
        )?;
        Ok(())
    }

    /// Returns the start of the history of each volume; of several locations, which are judged separately,
    /// that of the last one.
    ///
    /// # Errors
    /// The database fails.
    pub fn starts_of_volumes(tx: &Transaction<'_>) -> Result<BTreeMap<VolumeId, Timestamp>, DbError> {
        let sql = "SELECT volume, max(start) FROM (SELECT volume, min(point_in_time) AS start
            FROM backup_activity GROUP BY volume, credential) GROUP BY volume";
        Ok(rows(tx, sql, [], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?.into_iter().collect())
    }

    fn last(&self, tx: &Transaction<'_>) -> Result<Option<BackupActivity>, DbError> {
        let sql = "SELECT activity FROM backup_activity WHERE volume = ?1 AND credential = ?2
            ORDER BY point_in_time DESC LIMIT 1";
        let key = [self.volume.to_string(), self.credential.to_string()];
        Ok(tx.query_row(sql, key, |row| json(row, 0)).optional()?)
    }

    /// Adds an activity and deletes the oldest ones; does nothing if the volume or credential is gone. Those
    /// of one hour are merged, so that frequent backups do not push out the older ones.
    ///
    /// # Errors
    /// The database fails.
    pub fn add(&self, tx: &Transaction<'_>, activity: &BackupActivity) -> Result<(), DbError> {
        let (volume, credential) = (self.volume.to_string(), self.credential.to_string());
        let mut activity = *activity;
        if let Some(last) = self.last(tx)?.filter(|last| hour(last) == hour(&activity)) {
            activity = last.merged_with(activity);
            tx.execute(
                "DELETE FROM backup_activity WHERE volume = ?1 AND credential = ?2 AND point_in_time = ?3",
                [&volume, &credential, &sortable(last.point_in_time)],
            )?;
        }
        tx.execute(
            "INSERT OR REPLACE INTO backup_activity (volume, credential, point_in_time, activity)
             SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM volumes WHERE id = ?1)
                 AND EXISTS (SELECT 1 FROM credentials WHERE uuid = ?2)",
            params![
                volume,
                credential,
                sortable(activity.point_in_time),
                to_json("backup activity", &activity)?
            ],
        )?;
        let oldest = activity.point_in_time.saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        tx.execute(
            "DELETE FROM backup_activity WHERE volume = ?1 AND credential = ?2 AND (point_in_time < ?3
                 OR point_in_time NOT IN (SELECT point_in_time FROM backup_activity
                     WHERE volume = ?1 AND credential = ?2 ORDER BY point_in_time DESC LIMIT ?4))",
            params![volume, credential, sortable(oldest), MAX_ROWS],
        )?;
        Ok(())
    }

    /// Returns the content profile; `None` before the first backup, or if it is unreadable.
    ///
    /// # Errors
    /// The database fails.
    pub fn profile(&self, tx: &Transaction<'_>) -> Result<Option<ContentProfile>, DbError> {
        let sql = "SELECT compressible, files, replaced FROM content_profiles WHERE volume = ?1 AND credential = ?2";
        let read = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, bool>(2)?))
        };
        let key = [self.volume.to_string(), self.credential.to_string()];
        let Some((bytes, files, is_replaced)) = tx.query_row(sql, key, read).optional()? else {
            return Ok(None);
        };
        let files = files.and_then(|files| u64::try_from(files).ok());
        let compressible = BlockSet::from_bytes(&bytes).ok();
        Ok(compressible.map(|compressible| ContentProfile { compressible, files, is_replaced }))
    }

    /// Marks the content profiles of a volume, whose content was replaced.
    ///
    /// # Errors
    /// The database fails.
    pub fn mark_replaced(tx: &Transaction<'_>, volume: VolumeId) -> Result<(), DbError> {
        tx.execute("UPDATE content_profiles SET replaced = 1 WHERE volume = ?1", [volume.to_string()])?;
        Ok(())
    }

    /// Stores the content profile; does nothing if the volume or credential is gone.
    ///
    /// # Errors
    /// The database fails.
    pub fn put_profile(&self, tx: &Transaction<'_>, profile: &ContentProfile) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO content_profiles (volume, credential, compressible, files, replaced)
             SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM volumes WHERE id = ?1)
                 AND EXISTS (SELECT 1 FROM credentials WHERE uuid = ?2)",
            params![
                self.volume.to_string(),
                self.credential.to_string(),
                profile.compressible.to_bytes(),
                profile.files.map(stored),
                profile.is_replaced
            ],
        )?;
        Ok(())
    }
}

/// Returns the hour of an activity.
fn hour(activity: &BackupActivity) -> i64 {
    activity.point_in_time.as_second().div_euclid(3600)
}

/// Returns a time as text that sorts by time.
fn sortable(at: Timestamp) -> String {
    format!("{at:.9}")
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db, VolumeRow};
    use super::*;
    use blockd_extent::{BlockIndex, Extent};

    fn activity(second: i64) -> BackupActivity {
        BackupActivity {
            point_in_time: Timestamp::from_second(second).unwrap(),
            interval_s: 60,
            dirty_bytes: second.unsigned_abs(),
            turned_incompressible_bytes: 0,
            compressible_bytes: 0,
            files_before: None,
            files: None,
            usual_at_any_time: false,
        }
    }

    #[test]
    fn history_is_ascending_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let of = ActivityRow { volume: VolumeId::from_u64(7), credential: Uuid::from_u128(8) };
        db.transaction::<_, DbError>(|tx| {
            of.add(tx, &activity(1))?;
            assert_eq!(of.history(tx)?, [], "neither volume nor credential exists");
            VolumeRow::new(of.volume, "data".parse().unwrap(), 1 << 20).insert(tx)?;
            CredentialRow::sample(of.credential, "/backup", Uuid::nil()).insert(tx)?;
            let times = |tx: &_| -> Result<Vec<i64>, DbError> {
                Ok(of.history(tx)?.iter().map(|one| one.point_in_time.as_second()).collect())
            };
            for second in [9, 10, 4000, 9_000] {
                of.add(tx, &activity(second))?;
            }
            assert_eq!(times(tx)?, [10, 4000, 9000], "those of one hour are merged");
            of.add(tx, &activity(4000 + KEPT.as_secs()))?;
            assert_eq!(times(tx)?, [4000, 9000, 4000 + KEPT.as_secs()]);

            let other = ActivityRow { credential: Uuid::from_u128(9), ..of };
            CredentialRow::sample(other.credential, "/other", Uuid::nil()).insert(tx)?;
            other.add(tx, &activity(20_000))?;
            let start = ActivityRow::starts_of_volumes(tx)?[&of.volume];
            assert_eq!(start.as_second(), 20_000, "the other location is still learning");

            let profile = ContentProfile {
                compressible: BlockSet::from_iter([Extent::new(BlockIndex(3), 5)]),
                files: Some(9),
                is_replaced: false,
            };
            assert_eq!(of.profile(tx)?, None);
            of.put_profile(tx, &profile)?;
            assert_eq!(of.profile(tx)?.as_ref(), Some(&profile));
            ActivityRow::mark_replaced(tx, of.volume)?;
            assert_eq!(of.profile(tx)?, Some(ContentProfile { is_replaced: true, ..profile }));
            Ok(())
        })
        .unwrap();
    }
}
