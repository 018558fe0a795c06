//! The cached manifests of one credential.

use super::{Db, DbError, json, to_json};
use blockd_cloud::{CloudsnapId, Manifest, ManifestCache};
use blockd_extent::SnapshotId;
use rusqlite::{OptionalExtension, Transaction, params};
use std::sync::Arc;
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

    fn store_version(&self, key: &str, version: &str, manifest: &Manifest) {
        let stored = self.db.transaction(|tx| -> Result<(), DbError> {
            Self::put(tx, self.credential, key, manifest)?;
            tx.execute(
                "UPDATE catalog SET version = ?3 WHERE credential = ?1 AND key = ?2",
                params![self.credential.to_string(), key, version],
            )?;
            Ok(())
        });
        if let Err(error) = stored {
            tracing::warn!(%error, key, "a manifest is not cached");
        }
    }
}
