//! Manifest cache of a credential.

use crate::{Db, DbError, json, to_json};
use blockd_cloud::{CloudSnapshotId, Manifest, ManifestCache, ManifestKey};
use blockd_extent::SnapshotId;
use blockd_store::ObjectInfo;
use futures::future::BoxFuture;
use rusqlite::{OptionalExtension, Transaction, params};
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Manifests per transaction: other users of the database run in between, and a cancelled listing leaves at
/// most this much work on its thread.
const AT_ONCE: usize = 256;

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
        tx.execute(
            "INSERT OR REPLACE INTO catalog (credential, key, manifest) VALUES (?1, ?2, ?3)",
            params![credential.to_string(), key, to_json("manifest", manifest)?],
        )?;
        Ok(())
    }

    fn put_version(
        &self,
        tx: &Transaction<'_>,
        key: &str,
        version: &str,
        manifest: &Manifest,
    ) -> Result<(), DbError> {
        let text = to_json("manifest", manifest)?;
        let sql =
            "INSERT OR REPLACE INTO catalog (credential, key, manifest, version) VALUES (?1, ?2, ?3, ?4)";
        tx.prepare_cached(sql)?.execute(params![self.credential.to_string(), key, text, version])?;
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
        let mut last = String::new();
        loop {
            let part: Vec<(String, Manifest)> = self.db.transaction::<_, DbError>(|tx| {
                let sql = "SELECT key, manifest FROM catalog WHERE credential = ?1 AND key > ?2 ORDER BY key LIMIT ?3";
                let mut statement = tx.prepare_cached(sql)?;
                let rows = statement
                    .query_map(params![self.credential.to_string(), last, AT_ONCE as i64], |row| {
                        Ok((row.get(0)?, json(row, 1)?))
                    })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })?;
            let Some((key, _)) = part.last() else { return Ok(manifests) };
            last.clone_from(key);
            manifests.extend(part.into_iter().map(|(_, manifest)| manifest));
        }
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
        self.db.transaction(|tx| {
            let mut statement = tx.prepare("SELECT manifest FROM catalog WHERE credential = ?1")?;
            let rows = statement.query_map([self.credential.to_string()], |row| json::<Manifest>(row, 0))?;
            let mut deltas = Vec::new();
            for manifest in rows {
                deltas.extend(manifest?.deltas().map(|delta| delta.snapshot));
            }
            Ok(deltas)
        })
    }

    /// Removes the manifests whose keys are not in `keys`, because the store no longer has them.
    ///
    /// # Errors
    /// The database fails.
    pub fn keep_only(&self, keys: &std::collections::BTreeSet<String>) -> Result<(), DbError> {
        self.db.transaction(|tx| {
            let mut statement = tx.prepare("SELECT key FROM catalog WHERE credential = ?1")?;
            let cached: Vec<String> = statement
                .query_map([self.credential.to_string()], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for key in cached.iter().filter(|key| !keys.contains(*key)) {
                Self::remove(tx, self.credential, key)?;
            }
            Ok(())
        })
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
                self.put_version(tx, &object.key, &object.version, manifest)
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
        let stored = self.db.transaction(|tx| self.put_version(tx, key, version, manifest));
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
    use blockd_cloud::{NoCache, OpenOptions, Repository};
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
        let db = Arc::new(Db::open(&dir.path().join("blockd.db")).unwrap());
        let credential = Uuid::from_u128(7);
        db.transaction::<_, DbError>(|tx| {
            let sql =
                "INSERT INTO credentials (uuid, name, created, store, data_keys, encrypted, capabilities, key_slots, write_key, write_key_created)
                VALUES (?1, 'here', '', '{}', x'', 0, '{}', x'', '', 0)";
            tx.execute(sql, [credential.to_string()])?;
            Ok(())
        })
        .unwrap();
        let catalog = DbManifestCache::new(db, credential);
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
