//! Rows of restore drills: their reports, also of cloud snapshots that were deleted since.

use crate::{
    DbError, json, latest_credible, parsed, parsed_if_there, repository_location::Aliases, rows, to_json,
};
use blockd_cloud::{CloudSnapshotId, DrillReport};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Maximum number of rows; older ones are removed.
const MAX_KEPT: u32 = 5_000;

/// Restore drill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrillRow {
    /// Its id: of this host, that of its task.
    pub id: Uuid,
    /// Credential of the location that was read.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Name of the volume at the backup.
    pub volume_name: String,
    /// Name of the host; `None` for this one.
    pub host: Option<String>,
    /// Version of blockd.
    pub version: String,
    /// End time.
    pub ended: Timestamp,
    /// No step failed.
    pub passed: bool,
    /// Report.
    pub report: DrillReport,
    /// Id of the location that was read; `None`: unknown.
    pub location: Option<Uuid>,
}

const COLUMNS: &str =
    "id, credential, cloudsnap, volume_name, host, version, ended, passed, report, location";

impl DrillRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            credential: parsed(row, 1)?,
            cloudsnap: parsed(row, 2)?,
            volume_name: row.get(3)?,
            host: row.get(4)?,
            version: row.get(5)?,
            ended: parsed(row, 6)?,
            passed: row.get(7)?,
            report: json(row, 8)?,
            location: parsed_if_there(row, 9)?,
        })
    }

    /// Finds a drill by its id.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, id: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM drills WHERE id = ?1");
        Ok(rows(tx, &sql, [id.to_string()], Self::read)?.pop())
    }

    /// Returns all drills, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM drills ORDER BY ended DESC, id"), [], Self::read)
    }

    /// Returns true for a result that is dated in the future, which shows nothing: the clock was ahead.
    #[must_use]
    pub fn is_ahead(&self, now: Timestamp) -> bool {
        self.ended > latest_credible(now)
    }

    /// Returns the newest drill of each cloud snapshot in the location of a credential, without those that
    /// are [ahead](Self::is_ahead).
    ///
    /// # Errors
    /// The database fails.
    pub fn newest_of_location(
        tx: &Transaction<'_>,
        credential: Uuid,
        now: Timestamp,
    ) -> Result<BTreeMap<CloudSnapshotId, Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM drills WHERE credential = ?1 ORDER BY ended");
        let mut newest: BTreeMap<CloudSnapshotId, Self> = BTreeMap::new();
        for credential in Aliases::all(tx)?.of_location(credential) {
            let drills = rows(tx, &sql, [credential.to_string()], Self::read)?;
            for drill in drills.into_iter().filter(|drill| !drill.is_ahead(now)) {
                let known = newest.get(&drill.cloudsnap);
                if known.is_none_or(|known| known.ended < drill.ended) {
                    newest.insert(drill.cloudsnap, drill);
                }
            }
        }
        Ok(newest)
    }

    /// Returns the last drill of each volume at each credential. A failed one stays the last one until a
    /// drill of the same or a newer point in time, or until its cloud snapshot is deleted. Those that are
    /// [ahead](Self::is_ahead) are left out.
    ///
    /// # Errors
    /// The database fails.
    pub fn last_of_volumes(tx: &Transaction<'_>, now: Timestamp) -> Result<Vec<Self>, DbError> {
        let sql = "SELECT id, credential, cloudsnap, ended, passed, json_extract(report, '$.created'),
                          EXISTS (SELECT 1 FROM catalog WHERE catalog.credential = drills.credential
                                  AND catalog.key = 'blockd/manifests/' || drills.cloudsnap)
                   FROM drills";
        let mut drills = rows(tx, sql, [], BriefDrill::read)?;
        drills.retain(|drill| drill.ended <= latest_credible(now));
        drills.sort_by_key(|drill| drill.ended);
        let mut last: BTreeMap<_, BriefDrill> = BTreeMap::new();
        for drill in drills {
            let is_older =
                |known: &BriefDrill| !known.passed && known.is_of_existing && drill.created < known.created;
            if !last.get(&drill.of).is_some_and(is_older) {
                last.insert(drill.of, drill);
            }
        }
        let found = last.into_values().map(|drill| Self::find(tx, drill.id));
        Ok(found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Returns the reference for the layout of a cloud snapshot with this point in time: of the drills of its
    /// volume that passed, the last one of the newest point in time until then.
    ///
    /// # Errors
    /// The database fails.
    pub fn layout_reference(
        tx: &Transaction<'_>,
        id: &CloudSnapshotId,
        created: Timestamp,
    ) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM drills WHERE passed AND cloudsnap LIKE ?1");
        let passed = rows(tx, &sql, [format!("{}/{}-%", id.cluster, id.volume)], Self::read)?;
        let until = passed.into_iter().filter(|row| row.report.created <= created);
        Ok(until.max_by_key(|row| (row.report.created, row.ended)))
    }

    /// Returns drills of this host at a location that are not published, the latest ones first.
    ///
    /// # Errors
    /// The database fails.
    pub fn unpublished(
        tx: &Transaction<'_>,
        credential: Uuid,
        location: Uuid,
        max: u32,
    ) -> Result<Vec<Self>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM drills WHERE credential = ?1 AND location = ?2 AND NOT published ORDER BY ended DESC LIMIT ?3"
        );
        rows(tx, &sql, params![credential.to_string(), location.to_string(), max], Self::read)
    }

    /// Notes that the location has the proof of this drill, or does not need it.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_published(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute("UPDATE drills SET published = 1 WHERE id = ?1", [self.id.to_string()])?;
        Ok(())
    }

    /// Adds or replaces the row, unless its credential is gone; removes the oldest ones beyond the limit.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            &format!(
                "INSERT OR REPLACE INTO drills ({COLUMNS}, published)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
                 WHERE EXISTS (SELECT 1 FROM credentials WHERE uuid = ?2)"
            ),
            params![
                self.id.to_string(),
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.volume_name,
                self.host,
                self.version,
                self.ended.to_string(),
                self.passed,
                to_json("drill", &self.report)?,
                self.location.map(|id| id.to_string()),
                self.host.is_some(),
            ],
        )?;
        let sql = "DELETE FROM drills WHERE id NOT IN (SELECT id FROM drills ORDER BY ended DESC LIMIT ?1)";
        tx.execute(sql, [MAX_KEPT])?;
        Ok(())
    }
}

/// Drill without its report.
struct BriefDrill {
    id: Uuid,
    /// Credential and source volume.
    of: (Uuid, Uuid, VolumeId),
    ended: Timestamp,
    passed: bool,
    created: Timestamp,
    /// The cloud snapshot is in the catalog.
    is_of_existing: bool,
}

impl BriefDrill {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (credential, cloudsnap): (_, CloudSnapshotId) = (parsed(row, 1)?, parsed(row, 2)?);
        Ok(Self {
            id: parsed(row, 0)?,
            of: (credential, cloudsnap.cluster, cloudsnap.volume),
            ended: parsed(row, 3)?,
            passed: row.get(4)?,
            created: parsed(row, 5)?,
            is_of_existing: row.get(6)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db};
    use super::*;
    use blockd_cloud::ManifestKey;

    const PLACE: Uuid = Uuid::from_u128(5);

    fn drill(number: u128, credential: Uuid, second: i64) -> DrillRow {
        DrillRow {
            id: Uuid::from_u128(number),
            credential,
            cloudsnap: "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap(),
            volume_name: "db".into(),
            host: None,
            version: "1.2.3".into(),
            ended: Timestamp::from_second(second).unwrap(),
            passed: true,
            report: DrillReport::new(Timestamp::UNIX_EPOCH, 1),
            location: Some(PLACE),
        }
    }

    /// Returns the times of the last drills of all volumes, in ascending order.
    fn last(tx: &Transaction<'_>) -> Vec<i64> {
        let last = DrillRow::last_of_volumes(tx, Timestamp::from_second(100).unwrap()).unwrap();
        let mut found: Vec<_> = last.into_iter().map(|row| row.ended.as_second()).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn newest_drill_of_each_snapshot_counts_at_its_location() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let [here, spelled, other] = [7, 8, 9].map(Uuid::from_u128);
        db.transaction::<_, DbError>(|tx| {
            for (credential, path) in [(here, "/backup"), (spelled, "/backup/."), (other, "/other")] {
                CredentialRow::sample(credential, path, Uuid::from_u128(1)).insert(tx)?;
            }
            let drills = [drill(1, here, 10), drill(2, spelled, 30), drill(3, other, 40)];
            drills.iter().try_for_each(|drill| drill.put(tx))?;
            drill(4, Uuid::from_u128(99), 50).put(tx)?;
            assert_eq!(DrillRow::all(tx)?.len(), 3, "its credential is gone");
            let of_59 = |id: &str| format!("2e4d4b67-95d7-481e-aec5-14223ac55170/{id}").parse().unwrap();
            let volumes = [("59-62-incr", 35), ("5-61", 2), ("591-61", 3)].map(|(id, second)| DrillRow {
                cloudsnap: of_59(id),
                ..drill(10 + second as u128, here, second)
            });
            volumes.iter().try_for_each(|drill| drill.put(tx))?;
            let now = Timestamp::from_second(100).unwrap();
            assert_eq!(last(tx), [2, 3, 30, 35, 40], "of each volume and credential");
            tx.execute(
                "DELETE FROM drills WHERE ended IN (?1, ?2, ?3)",
                volumes.map(|row| row.ended.to_string()),
            )?;
            let newest = DrillRow::newest_of_location(tx, here, now)?;
            assert_eq!(newest.into_values().collect::<Vec<_>>(), [drills[1].clone()]);
            let foreign = DrillRow { host: Some("db2".into()), ..drill(5, here, 60) };
            foreign.put(tx)?;
            DrillRow { location: None, ..drill(6, here, 70) }.put(tx)?;
            assert_eq!(DrillRow::unpublished(tx, here, PLACE, 9)?, [drills[0].clone()]);
            drills[0].set_published(tx)?;
            assert_eq!(DrillRow::unpublished(tx, here, PLACE, 9)?, []);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn failure_ends_with_a_drill_of_as_new_a_point_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let other = Uuid::from_u128(9);
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(other, "/other", Uuid::from_u128(1)).insert(tx)?;
            let now = Timestamp::from_second(100).unwrap();
            let point = |number, ended, created, passed| {
                let created = Timestamp::from_second(created).unwrap();
                DrillRow { passed, report: DrillReport::new(created, 1), ..drill(number, other, ended) }
            };
            tx.execute(
                "INSERT INTO catalog (credential, key, created_ns, deltas, manifest) VALUES (?1, ?2, 0, '', '')",
                [other.to_string(), drill(0, other, 0).cloudsnap.manifest_key()],
            )?;
            for (row, expected) in [
                (point(20, 50, 5, false), 50),
                (point(21, 100 + 9 * 86_400, 5, true), 50),
                (point(22, 51, 4, true), 50),
                (point(23, 52, 4, false), 50),
                (point(24, 53, 5, true), 53),
                (point(25, 54, 4, false), 54),
                (point(26, 55, 6, true), 55),
            ] {
                row.put(tx)?;
                assert_eq!(last(tx).pop(), Some(expected), "{row:?}");
            }
            point(27, 56, 8, false).put(tx)?;
            point(28, 57, 7, true).put(tx)?;
            assert_eq!(last(tx).pop(), Some(56));
            tx.execute("DELETE FROM catalog", [])?;
            assert_eq!(last(tx).pop(), Some(57), "the cloud snapshot of the failed drill is gone");
            let ahead = DrillRow::newest_of_location(tx, other, now)?.into_values().next();
            assert_eq!(ahead.map(|row| row.ended.as_second()), Some(57));
            Ok(())
        })
        .unwrap();
    }
}
