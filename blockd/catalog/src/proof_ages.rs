//! Age of the last proof of each volume at each location.

use crate::{DbError, LastProof, NewestBackup, latest_credible, newest_backups::manifest_keys_of};
use blockd_api::events::EventKind;
use blockd_cloud::CloudSnapshotId;
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Age of the last proof of a volume at a location that has backups of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProofAge {
    /// The volume.
    pub volume: VolumeId,
    /// The credential.
    pub credential: Uuid,
    /// Newest backup that is not known to be damaged.
    pub newest: CloudSnapshotId,
    /// Time of the last verification that read a backup and found it sound.
    pub proven: Option<Timestamp>,
    /// That time, or without one that of the first known backup.
    pub since: Timestamp,
}

impl ProofAge {
    /// Returns the ages of these volumes of a cluster.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(
        tx: &Transaction<'_>,
        cluster: Uuid,
        volumes: &BTreeSet<VolumeId>,
        now: Timestamp,
    ) -> Result<Vec<Self>, DbError> {
        let proofs = LastProof::of_content(tx, None, now)?;
        let mut ages = Vec::new();
        for backup in NewestBackup::all(tx, cluster, volumes)? {
            let NewestBackup { volume, credential, cloudsnap: newest, created, .. } = backup;
            let proven = proofs.get(&(credential, volume)).map(|proof| proof.proven);
            let since = match proven {
                Some(proven) => proven,
                None => {
                    first_backup(tx, cluster, credential, volume)?.map_or(created, |first| first.min(created))
                }
            };
            ages.push(Self { volume, credential, newest, proven, since });
        }
        Ok(ages)
    }

    /// Returns true if there is an event that the age exceeds a limit since `exceeded`. One that is later
    /// than now is of a clock that was set back since.
    ///
    /// # Errors
    /// The database fails.
    pub fn is_reported(
        &self,
        tx: &Transaction<'_>,
        exceeded: Timestamp,
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let last = event_time(tx, EventKind::ProofTooOld, self.credential, self.volume, "DESC")?;
        Ok(last.is_some_and(|last| (exceeded..=latest_credible(now)).contains(&last)))
    }
}

/// Returns the point in time of the oldest cached backup, or the time of the first known backup, which
/// retention may have deleted.
fn first_backup(
    tx: &Transaction<'_>,
    cluster: Uuid,
    credential: Uuid,
    volume: VolumeId,
) -> Result<Option<Timestamp>, DbError> {
    let (first, last) = manifest_keys_of(cluster, volume);
    let sql = "SELECT min(created_ns) FROM catalog WHERE credential = ?1 AND key BETWEEN ?2 AND ?3";
    let oldest: Option<i64> =
        tx.query_row(sql, params![credential.to_string(), first, last], |row| row.get(0))?;
    let oldest = oldest.and_then(|at| Timestamp::from_nanosecond(at.into()).ok());
    let done = event_time(tx, EventKind::BackupDone, credential, volume, "ASC")?;
    Ok(oldest.into_iter().chain(done).min())
}

/// Returns the time of the first (`ASC`) or last (`DESC`) event of a kind.
fn event_time(
    tx: &Transaction<'_>,
    kind: EventKind,
    credential: Uuid,
    volume: VolumeId,
    order: &str,
) -> Result<Option<Timestamp>, DbError> {
    let sql = format!(
        "SELECT at FROM events WHERE kind = ?1 AND credential_id = ?2 AND volume_id = ?3 ORDER BY id {order} LIMIT 1"
    );
    let of = params![kind.as_str(), credential.to_string(), volume.to_string()];
    let at: Option<String> = tx.query_row(&sql, of, |row| row.get(0)).optional()?;
    Ok(at.and_then(|at| at.parse().ok()))
}
