//! Manifest cache of a credential.

use crate::{Db, DbError, json, newest_backups::manifest_keys_of, number, parsed_if_there, rows, to_json};
use blockd_cloud::{CloudSnapshotId, Manifest, ManifestCache, ManifestKey};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_store::ObjectInfo;
use futures::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params, types::Type};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use uuid::Uuid;

/// Manifests per transaction: other users of the database run in between, and a cancelled listing leaves at
/// most this much work on its thread.
const AT_ONCE: usize = 256;

/// Content of a location as this host knows it: backups and deletions of this host, and those of other hosts
/// at the last listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KnownContent {
    /// Number of cloud snapshots.
    pub cloud_snapshots: u64,
    /// Bytes of all packs and indexes that they need, also of deleted cloud snapshots.
    pub stored_bytes: u64,
    /// Last complete listing.
    pub listed_at: Option<Timestamp>,
}

/// Manifest cache of one credential. A database error only causes more requests.
#[derive(Debug, Clone)]
pub struct DbManifestCache {
    db: Arc<Db>,
    credential: Uuid,
}

impl DbManifestCache {
    /// Creates the cache of a credential.
    pub fn new(db: Arc<Db>, credential: Uuid) -> Self {
        Self { db, credential }
    }

    /// Adds a manifest in the caller's transaction.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(
        tx: &Transaction<'_>,
        credential: Uuid,
        key: &str,
        manifest: &Manifest,
    ) -> Result<(), DbError> {
        Self::insert(tx, credential, key, None, manifest)
    }

    fn insert(
        tx: &Transaction<'_>,
        credential: Uuid,
        key: &str,
        version: Option<&str>,
        manifest: &Manifest,
    ) -> Result<(), DbError> {
        let deltas: BTreeMap<String, u64> =
            manifest.deltas().map(|delta| (delta.cloud_snapshot().to_string(), delta.stored_bytes)).collect();
        let sql = "INSERT OR REPLACE INTO catalog (credential, key, version, created_ns, deltas, manifest)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        tx.prepare_cached(sql)?.execute(params![
            credential.to_string(),
            key,
            version,
            // Saturates in the year 2262.
            i64::try_from(manifest.description.created.as_nanosecond()).unwrap_or(i64::MAX),
            to_json("deltas", &deltas)?,
            to_json("manifest", manifest)?
        ])?;
        Ok(())
    }

    /// Removes a manifest in the caller's transaction.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, credential: Uuid, key: &str) -> Result<(), DbError> {
        tx.execute(
            "DELETE FROM catalog WHERE credential = ?1 AND key = ?2",
            params![credential.to_string(), key],
        )?;
        Ok(())
    }

    /// Returns all cached manifests. Blocks.
    ///
    /// # Errors
    /// The database fails, or a manifest cannot be read.
    pub fn all(&self) -> Result<Vec<Manifest>, DbError> {
        let mut manifests = Vec::new();
        self.for_each(|manifest| manifests.push(manifest))?;
        Ok(manifests)
    }

    /// Passes on each cached manifest. Blocks.
    fn for_each(&self, mut take: impl FnMut(Manifest)) -> Result<(), DbError> {
        let mut last = String::new();
        loop {
            let part: Vec<(String, String)> = self.db.transaction::<_, DbError>(|tx| {
                let sql = "SELECT key, manifest FROM catalog WHERE credential = ?1 AND key > ?2 ORDER BY key LIMIT ?3";
                let mut statement = tx.prepare_cached(sql)?;
                let of = params![self.credential.to_string(), last, AT_ONCE as i64];
                let rows = statement.query_map(of, |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })?;
            let Some((key, _)) = part.last() else { return Ok(()) };
            last.clone_from(key);
            // Parsed after the database lock is released.
            for (_, text) in part {
                let unreadable =
                    |error| rusqlite::Error::FromSqlConversionFailure(1, Type::Text, Box::new(error));
                take(serde_json::from_str(&text).map_err(unreadable)?);
            }
        }
    }

    /// Returns the content of the location. Blocks.
    ///
    /// # Errors
    /// The database fails.
    pub fn content(&self) -> Result<KnownContent, DbError> {
        // Manifests of a chain share deltas. Any holder of an unencrypted location can write sizes, whose sum
        // may be above the largest integer.
        let sql = "SELECT
            (SELECT count(*) FROM catalog WHERE credential = ?1),
            (SELECT CAST(min(total(stored_bytes), 9e18) AS INTEGER) FROM (
                SELECT max(delta.value) AS stored_bytes FROM catalog, json_each(deltas) AS delta
                WHERE credential = ?1 GROUP BY delta.key)),
            (SELECT listed FROM credentials WHERE uuid = ?1)";
        self.db.transaction(|tx| {
            Ok(tx.query_row(sql, [self.credential.to_string()], |row| {
                let (cloud_snapshots, stored_bytes) = (number(row, 0)?, number(row, 1)?);
                Ok(KnownContent { cloud_snapshots, stored_bytes, listed_at: parsed_if_there(row, 2)? })
            })?)
        })
    }

    /// Returns the cached manifests of all volumes, except that of one snapshot.
    ///
    /// # Errors
    /// The database fails.
    pub fn all_but(&self, snapshot: &CloudSnapshotId) -> Result<Vec<Manifest>, DbError> {
        let key = snapshot.manifest_key();
        self.db.transaction(|tx| {
            let mut statement =
                tx.prepare("SELECT manifest FROM catalog WHERE credential = ?1 AND key <> ?2")?;
            let rows = statement.query_map(params![self.credential.to_string(), key], |row| json(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Returns the deltas that the cached manifests need.
    ///
    /// # Errors
    /// The database fails.
    pub fn deltas(&self) -> Result<Vec<SnapshotId>, DbError> {
        let mut deltas = Vec::new();
        self.for_each(|manifest| deltas.extend(manifest.deltas().map(|delta| delta.snapshot)))?;
        Ok(deltas)
    }

    /// Returns the deltas that the cached manifests of a volume need, as
    /// [`cloud_snapshot`](blockd_cloud::Delta::cloud_snapshot) names them.
    ///
    /// # Errors
    /// The database fails.
    pub fn needed_by(
        tx: &Transaction<'_>,
        credential: Uuid,
        cluster: Uuid,
        volume: VolumeId,
    ) -> Result<BTreeSet<CloudSnapshotId>, DbError> {
        let (first, last) = manifest_keys_of(cluster, volume);
        let sql = "SELECT DISTINCT delta.key FROM catalog, json_each(deltas) AS delta
            WHERE credential = ?1 AND catalog.key BETWEEN ?2 AND ?3";
        let needed: Vec<String> = rows(tx, sql, [credential.to_string(), first, last], |row| row.get(0))?;
        Ok(needed.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Returns a cloud snapshot of any location that repairs this one, if its manifest is cached.
    ///
    /// # Errors
    /// The database fails.
    pub fn repaired(
        tx: &Transaction<'_>,
        damaged: &CloudSnapshotId,
    ) -> Result<Option<CloudSnapshotId>, DbError> {
        let (first, last) = manifest_keys_of(damaged.cluster, damaged.volume);
        let sql = "SELECT key FROM catalog WHERE key BETWEEN ?1 AND ?2
            AND CASE WHEN json_valid(manifest) THEN manifest ->> 'repairs' END = ?3";
        let keys: Vec<String> = rows(tx, sql, [first, last, damaged.to_string()], |row| row.get(0))?;
        Ok(keys.iter().find_map(|key| CloudSnapshotId::from_manifest_key(key)))
    }

    /// Returns the keys of the cached manifests.
    ///
    /// # Errors
    /// The database fails.
    pub fn keys(tx: &Transaction<'_>, credential: Uuid) -> Result<Vec<String>, DbError> {
        rows(tx, "SELECT key FROM catalog WHERE credential = ?1", [credential.to_string()], |row| row.get(0))
    }

    /// Records the time of a complete listing.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_listed(tx: &Transaction<'_>, credential: Uuid, at: Timestamp) -> Result<(), DbError> {
        let sql = "UPDATE credentials SET listed = ?2 WHERE uuid = ?1";
        tx.execute(sql, [credential.to_string(), at.to_string()])?;
        Ok(())
    }

    /// Returns the cached manifests of adjacent objects by key.
    fn load_part(&self, objects: &[ObjectInfo]) -> HashMap<String, Manifest> {
        let keys = || objects.iter().map(|object| object.key.as_str());
        let (Some(first), Some(last)) = (keys().min(), keys().max()) else { return HashMap::new() };
        let wanted: HashMap<&str, &str> =
            objects.iter().map(|object| (object.key.as_str(), object.version.as_str())).collect();
        let found = self.db.transaction::<_, DbError>(|tx| {
            let sql =
                "SELECT key, version, manifest FROM catalog WHERE credential = ?1 AND key BETWEEN ?2 AND ?3";
            let mut statement = tx.prepare_cached(sql)?;
            let mut rows = statement.query(params![self.credential.to_string(), first, last])?;
            let mut texts = Vec::new();
            while let Some(row) = rows.next()? {
                let (key, version): (String, Option<String>) = (row.get(0)?, row.get(1)?);
                if version.is_some() && wanted.get(key.as_str()).copied() == version.as_deref() {
                    let text: String = row.get(2)?;
                    texts.push((key, text));
                }
            }
            Ok(texts)
        });
        // Parsed after the database lock is released.
        let read = |(key, text): (String, String)| match serde_json::from_str(&text) {
            Ok(manifest) => Some((key, manifest)),
            Err(error) => {
                tracing::warn!(%error, key, "a cached manifest is not used");
                None
            }
        };
        match found {
            Ok(texts) => texts.into_iter().filter_map(read).collect(),
            Err(error) => {
                tracing::warn!(%error, "cached manifests are not used");
                HashMap::new()
            }
        }
    }

    fn store_part(&self, manifests: &[(ObjectInfo, Manifest)]) {
        let stored = self.db.transaction(|tx| {
            let put = |(object, manifest): &(ObjectInfo, Manifest)| {
                Self::insert(tx, self.credential, &object.key, Some(&object.version), manifest)
            };
            manifests.iter().try_for_each(put)
        });
        if let Err(error) = stored {
            tracing::warn!(%error, manifests = manifests.len(), "manifests are not cached");
        }
    }
}

impl ManifestCache for DbManifestCache {
    fn load(&self, key: &str) -> Option<Manifest> {
        let found = self.db.transaction::<_, DbError>(|tx| {
            let sql = "SELECT manifest FROM catalog WHERE credential = ?1 AND key = ?2";
            Ok(tx.query_row(sql, params![self.credential.to_string(), key], |row| json(row, 0)).optional()?)
        });
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, key, "a cached manifest is not used");
            None
        })
    }

    fn load_version(&self, key: &str, version: &str) -> Option<Manifest> {
        let found = self.db.transaction::<_, DbError>(|tx| {
            let sql = "SELECT manifest FROM catalog WHERE credential = ?1 AND key = ?2 AND version = ?3";
            let params = params![self.credential.to_string(), key, version];
            Ok(tx.query_row(sql, params, |row| json(row, 0)).optional()?)
        });
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, key, "a cached manifest is not used");
            None
        })
    }

    fn load_versions<'a>(&'a self, objects: &'a [ObjectInfo]) -> BoxFuture<'a, HashMap<String, Manifest>> {
        Box::pin(async move {
            let mut found = HashMap::with_capacity(objects.len());
            for part in objects.chunks(AT_ONCE) {
                let (catalog, part) = (self.clone(), part.to_vec());
                match tokio::task::spawn_blocking(move || catalog.load_part(&part)).await {
                    Ok(manifests) => found.extend(manifests),
                    Err(error) => tracing::warn!(%error, "cached manifests are not used"),
                }
            }
            found
        })
    }

    fn store_version(&self, key: &str, version: &str, manifest: &Manifest) {
        let stored =
            self.db.transaction(|tx| Self::insert(tx, self.credential, key, Some(version), manifest));
        if let Err(error) = stored {
            tracing::warn!(%error, key, "a manifest is not cached");
        }
    }

    fn store_versions<'a>(&'a self, manifests: &'a [(&'a ObjectInfo, &'a Manifest)]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for part in manifests.chunks(AT_ONCE) {
                let catalog = self.clone();
                let part: Vec<(ObjectInfo, Manifest)> =
                    part.iter().map(|&(object, manifest)| (object.clone(), manifest.clone())).collect();
                if let Err(error) = tokio::task::spawn_blocking(move || catalog.store_part(&part)).await {
                    tracing::warn!(%error, "manifests are not cached");
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_cloud::{Delta, NoCache, OpenOptions, Repository};
    use blockd_testkit::cloud::put_many_snapshots;
    use blockd_testkit::store::MemoryStore;
    use std::cell::Cell;

    const MANIFESTS: u64 = 2 * AT_ONCE as u64 + 3;

    /// Returns how often other tasks ran on the thread during the work.
    async fn turns_during<T>(work: impl Future<Output = T>) -> (T, u32) {
        let (done, turns) = (Cell::new(false), Cell::new(0));
        let work = async {
            let result = work.await;
            done.set(true);
            result
        };
        let others = async {
            while !done.get() {
                turns.set(turns.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let (result, ()) = futures::join!(work, others);
        (result, turns.get())
    }

    /// Returns an empty catalog with a credential.
    fn catalog(dir: &std::path::Path) -> DbManifestCache {
        let db = Arc::new(Db::open(&dir.join("blockd.db")).unwrap());
        let credential = Uuid::from_u128(7);
        db.transaction::<_, DbError>(|tx| {
            let sql =
                "INSERT INTO credentials (uuid, name, created, store, data_keys, encrypted, capabilities, key_slots, write_key, write_key_created)
                VALUES (?1, 'here', '', '{}', x'', 0, '{}', x'', '', 0)";
            tx.execute(sql, [credential.to_string()])?;
            Ok(())
        })
        .unwrap();
        DbManifestCache::new(db, credential)
    }

    #[tokio::test]
    async fn deltas_that_a_volume_needs_are_found() {
        let store = Arc::new(MemoryStore::default());
        let repository = Repository::open(store, None, &OpenOptions::default()).await.unwrap();
        put_many_snapshots(&repository, 3, 2).await.unwrap();
        let listed = repository.list_manifests(&Default::default(), &NoCache).await.unwrap();
        let mut manifests: Vec<Manifest> = listed.into_iter().map(|one| one.manifest.unwrap()).collect();
        manifests.sort_unstable_by_key(Manifest::id);
        // The newest of the second volume references blocks of the first one.
        let of_first = manifests[0].delta.clone();
        manifests[3].sources.push(of_first.clone());
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let DbManifestCache { db, credential } = catalog(dir.path());
        let needed_by = |volume: u64| {
            let (cluster, volume) = (of_first.cluster, VolumeId::from_u64(volume));
            let needed = |tx: &Transaction<'_>| DbManifestCache::needed_by(tx, credential, cluster, volume);
            db.transaction::<_, DbError>(needed).unwrap()
        };
        let put = |tx: &Transaction<'_>, one: &Manifest| {
            DbManifestCache::put(tx, credential, &one.id().manifest_key(), one)
        };
        db.transaction::<_, DbError>(|tx| manifests[..4].iter().try_for_each(|one| put(tx, one))).unwrap();
        let deltas = |of: &[Manifest]| {
            of.iter().flat_map(Manifest::deltas).map(Delta::cloud_snapshot).collect::<BTreeSet<_>>()
        };
        assert_eq!(needed_by(1), deltas(&manifests[..2]));
        assert_eq!(needed_by(2), deltas(&manifests[2..4]));
        assert!(needed_by(2).contains(&of_first.cloud_snapshot()), "a source");
        assert_eq!(needed_by(3), BTreeSet::new(), "not cached");
    }

    #[tokio::test]
    async fn thousands_are_read_and_written_beside_the_runtime_in_pieces() {
        let store = Arc::new(MemoryStore::default());
        let repository = Repository::open(store, None, &OpenOptions::default()).await.unwrap();
        put_many_snapshots(&repository, 1, MANIFESTS).await.unwrap();
        let listed = repository.list_manifests(&Default::default(), &NoCache).await.unwrap();
        let known: Vec<(ObjectInfo, Manifest)> = listed
            .into_iter()
            .map(|one| {
                let version = format!("version of {}", one.key);
                let object = ObjectInfo { key: one.key, size_bytes: 1, version, modified_unix_s: None };
                (object, one.manifest.unwrap())
            })
            .collect();
        // In memory: each of the many commits would be synced.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let catalog = catalog(dir.path());
        let parts: Vec<(&ObjectInfo, &Manifest)> =
            known.iter().map(|(object, manifest)| (object, manifest)).collect();
        let ((), turns) = turns_during(catalog.store_versions(&parts)).await;
        assert!(turns >= 3, "{turns} turns while it was written");

        let mut objects: Vec<ObjectInfo> = known.iter().map(|(object, _)| object.clone()).collect();
        objects[1].version = "another".into();
        let (found, turns) = turns_during(catalog.load_versions(&objects)).await;
        assert!(turns >= 3, "{turns} turns while it was read");
        assert_eq!(found.len(), known.len() - 1);
        for (nth, (object, manifest)) in known.iter().enumerate() {
            assert_eq!(found.get(&object.key).map(Manifest::id), (nth != 1).then(|| manifest.id()));
        }
    }
}
