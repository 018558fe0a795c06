//! Newest backup of each volume with each credential, for reports.

use crate::{Chain, CredentialRow, DbError, Doubt, ProofRow, rows};
use blockd_cloud::{CloudSnapshotId, Manifest, ManifestKey};
use blockd_extent::{SnapshotId, VolumeId};
use jiff::Timestamp;
use rusqlite::{Transaction, params};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Newest backup of a volume with a credential. The base of the next incremental backup, its [`Chain`], may
/// be another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewestBackup {
    /// The volume.
    pub volume: VolumeId,
    /// The credential.
    pub credential: Uuid,
    /// The backup.
    pub cloudsnap: CloudSnapshotId,
    /// Number of incrementals since the last full backup, including this one.
    pub incrementals: u64,
    /// Point in time.
    pub created: Timestamp,
}

impl NewestBackup {
    /// Returns the newest backups of these volumes of a cluster, newest first. Backups whose commit is in
    /// doubt count, and after the deletion of the newest one the cached manifests, but none that was found
    /// damaged.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(
        tx: &Transaction<'_>,
        cluster: Uuid,
        volumes: &BTreeSet<VolumeId>,
    ) -> Result<Vec<Self>, DbError> {
        let mut newest: BTreeMap<(VolumeId, Uuid), Self> = BTreeMap::new();
        let useless = useless_backups(tx)?;
        let is_wanted = |chain: &Chain| {
            volumes.contains(&chain.volume) && !useless.contains(&(chain.credential, chain.cloudsnap))
        };
        for chain in Chain::all(tx, None)?.into_iter().filter(is_wanted) {
            newest.insert((chain.volume, chain.credential), chain.into());
        }
        for credential in CredentialRow::all(tx)?.into_iter().map(|row| row.uuid) {
            for &volume in volumes {
                if newest.contains_key(&(volume, credential)) {
                    continue;
                }
                let last = newest_cached(tx, credential, cluster, volume, &useless)?;
                newest.extend(last.map(|manifest| ((volume, credential), Self::of(credential, &manifest))));
            }
        }
        for Doubt { cloudsnap, credential, .. } in Doubt::all(tx)? {
            let key = (cloudsnap.volume, credential);
            if cloudsnap.cluster != cluster || !volumes.contains(&cloudsnap.volume) {
                continue;
            }
            let manifest_key = cloudsnap.manifest_key();
            if let Some(manifest) = newest_between(tx, credential, &manifest_key, &manifest_key, &useless)? {
                let found = Self::of(credential, &manifest);
                if newest.get(&key).is_none_or(|known| known.created < found.created) {
                    newest.insert(key, found);
                }
            }
        }
        let mut all: Vec<_> = newest.into_values().collect();
        all.sort_by_key(|backup| std::cmp::Reverse(backup.created));
        Ok(all)
    }

    fn of(credential: Uuid, manifest: &Manifest) -> Self {
        Self {
            volume: manifest.volume,
            credential,
            cloudsnap: manifest.id(),
            incrementals: manifest.chain.len() as u64,
            created: manifest.description.created,
        }
    }
}

impl From<Chain> for NewestBackup {
    fn from(chain: Chain) -> Self {
        let Chain { volume, credential, cloudsnap, incrementals, point_in_time: created, .. } = chain;
        Self { volume, credential, cloudsnap, incrementals, created }
    }
}

/// Returns the backups that protect nothing, by credential: abandoned in doubt, or found damaged.
fn useless_backups(tx: &Transaction<'_>) -> Result<BTreeSet<(Uuid, CloudSnapshotId)>, DbError> {
    let abandoned = Doubt::all(tx)?.into_iter().filter(|doubt| doubt.abandoned);
    let mut useless: BTreeSet<_> = abandoned.map(|doubt| (doubt.credential, doubt.cloudsnap)).collect();
    for row in CredentialRow::all(tx)? {
        let damaged = ProofRow::all(tx, row.uuid)?.into_iter().filter(|proof| !proof.sound);
        useless.extend(damaged.map(|proof| (row.uuid, proof.cloudsnap)));
    }
    Ok(useless)
}

/// Returns the newest cached manifest of a volume that protects it.
fn newest_cached(
    tx: &Transaction<'_>,
    credential: Uuid,
    cluster: Uuid,
    volume: VolumeId,
    useless: &BTreeSet<(Uuid, CloudSnapshotId)>,
) -> Result<Option<Manifest>, DbError> {
    let (first, last) = manifest_keys_of(cluster, volume);
    newest_between(tx, credential, &first, &last, useless)
}

/// Returns bounds of the keys of the manifests of a volume.
pub(crate) fn manifest_keys_of(cluster: Uuid, volume: VolumeId) -> (String, String) {
    let bound = |snapshot| {
        let snapshot = SnapshotId::from_u64(snapshot);
        CloudSnapshotId { cluster, volume, snapshot, incremental: false }.manifest_key()
    };
    // The keys continue with a decimal number, and those of incrementals with a suffix.
    (bound(1), format!("{}~", bound(9)))
}

/// Returns the newest cached manifest whose key is in a range, without useless and unreadable ones.
fn newest_between(
    tx: &Transaction<'_>,
    credential: Uuid,
    first: &str,
    last: &str,
    useless: &BTreeSet<(Uuid, CloudSnapshotId)>,
) -> Result<Option<Manifest>, DbError> {
    let sql =
        "SELECT key FROM catalog WHERE credential = ?1 AND key BETWEEN ?2 AND ?3 ORDER BY created_ns DESC";
    let of = credential.to_string();
    let keys: Vec<String> = rows(tx, sql, params![of, first, last], |row| row.get(0))?;
    for key in keys {
        let id = CloudSnapshotId::from_manifest_key(&key);
        if id.is_some_and(|id| useless.contains(&(credential, id))) {
            continue;
        }
        let sql = "SELECT manifest FROM catalog WHERE credential = ?1 AND key = ?2";
        let text: String = tx.prepare_cached(sql)?.query_row([&of, &key], |row| row.get(0))?;
        if let Ok(manifest) = serde_json::from_str(&text) {
            return Ok(Some(manifest));
        }
    }
    Ok(None)
}
