//! The cached manifests of one credential.

use super::{Db, DbError, json, to_json};
use blockd_cloud::{CloudsnapId, Manifest, ManifestCache, store::ObjectInfo};
use blockd_extent::SnapshotId;
use rusqlite::{OptionalExtension, Transaction, params};
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Manifests read from one credential's store. A failure of the database only makes it fetch more.
#[derive(Debug, Clone)]
pub struct Catalog {
    db: Arc<Db>,
    credential: Uuid,
}

impl Catalog {
    /// The cache of this credential.
    pub fn new(db: Arc<Db>, credential: Uuid) -> Self {
        Self { db, credential }
    }

    /// Adds a manifest, in a transaction of the caller's.
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

    /// Removes a manifest, in a transaction of the caller's.
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

    /// The cached manifests of every volume, but for that of one snapshot.
    ///
    /// # Errors
    /// The database fails.
    pub fn all_but(&self, snapshot: &CloudsnapId) -> Result<Vec<Manifest>, DbError> {
        let key = snapshot.manifest_key();
        self.db.transaction(|tx| {
            let mut statement =
                tx.prepare("SELECT manifest FROM catalog WHERE credential = ?1 AND key <> ?2")?;
            let rows = statement.query_map(params![self.credential.to_string(), key], |row| json(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The deltas that the cached manifests need.
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

    /// Removes the manifests whose keys are not among these: what is no longer in the store.
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
}

impl ManifestCache for Catalog {
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

    fn load_versions(&self, objects: &[ObjectInfo]) -> HashMap<String, Manifest> {
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
        // Read when the database is free for others again.
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

    fn store_version(&self, key: &str, version: &str, manifest: &Manifest) {
        let stored = self.db.transaction(|tx| self.put_version(tx, key, version, manifest));
        if let Err(error) = stored {
            tracing::warn!(%error, key, "a manifest is not cached");
        }
    }

    fn store_versions(&self, manifests: &[(&ObjectInfo, &Manifest)]) {
        let stored = self.db.transaction(|tx| {
            let put = |(object, manifest): &(&ObjectInfo, &Manifest)| {
                self.put_version(tx, &object.key, &object.version, manifest)
            };
            manifests.iter().try_for_each(put)
        });
        if let Err(error) = stored {
            tracing::warn!(%error, manifests = manifests.len(), "manifests are not cached");
        }
    }
}
