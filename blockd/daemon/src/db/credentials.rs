//! Rows of credentials.

use super::{DbError, json, parsed, to_json};
use blockd_api::CredentialName;
use blockd_cloud::store::StoreCapabilities;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// Everything of a store that is no secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ProviderRow {
    /// A directory.
    Local {
        /// Which one.
        path: PathBuf,
    },
    /// A bucket behind the S3 API.
    S3 {
        /// Host and port, or a URL.
        endpoint: String,
        /// The region.
        region: String,
        /// The bucket.
        bucket: String,
        /// The id of the access key.
        access_key: String,
        /// Plain HTTP.
        disable_ssl: bool,
        /// The bucket is part of the host name.
        disable_path_style: bool,
    },
}

/// A credential: a store, and what opens it.
#[derive(Clone, Debug)]
pub struct CredentialRow {
    /// Its id.
    pub uuid: Uuid,
    /// Its name.
    pub name: CredentialName,
    /// When it was made.
    pub created: Timestamp,
    /// The store.
    pub provider: ProviderRow,
    /// The account's secret, sealed.
    pub store_secret: Option<Vec<u8>>,
    /// The repository's keys, sealed.
    pub data_keys: Vec<u8>,
    /// Whether backups are encrypted.
    pub encrypted: bool,
    /// What the probe found.
    pub capabilities: StoreCapabilities,
}

const COLUMNS: &str = "uuid, name, created, provider, store_secret, data_keys, encrypted, capabilities";

impl CredentialRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            uuid: parsed(row, 0)?,
            name: parsed(row, 1)?,
            created: parsed(row, 2)?,
            provider: json(row, 3)?,
            store_secret: row.get(4)?,
            data_keys: row.get(5)?,
            encrypted: row.get(6)?,
            capabilities: json(row, 7)?,
        })
    }

    /// All credentials, by name.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM credentials ORDER BY name"))?;
        let rows = statement.query_map([], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Adds the row.
    ///
    /// # Errors
    /// The database fails; a conflict if the name is taken.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT INTO credentials (uuid, name, created, provider, store_secret, data_keys, encrypted, capabilities)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                self.uuid.to_string(),
                self.name.as_str(),
                self.created.to_string(),
                to_json("provider", &self.provider)?,
                self.store_secret,
                self.data_keys,
                self.encrypted,
                to_json("capabilities", &self.capabilities)?
            ],
        )?;
        Ok(())
    }

    /// Stores what a later probe found.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_capabilities(
        tx: &Transaction<'_>,
        uuid: Uuid,
        found: &StoreCapabilities,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE credentials SET capabilities = ?2 WHERE uuid = ?1",
            params![uuid.to_string(), to_json("capabilities", found)?],
        )?;
        Ok(())
    }

    /// Stores how fast a backup could write.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_write_speed(tx: &Transaction<'_>, uuid: Uuid, bytes_per_s: u64) -> Result<(), DbError> {
        let Some(mut row) = Self::all(tx)?.into_iter().find(|row| row.uuid == uuid) else { return Ok(()) };
        row.capabilities.write_bytes_per_s = bytes_per_s;
        Self::set_capabilities(tx, uuid, &row.capabilities)
    }

    /// Removes the row, with those of its chains and its part of the catalog.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, uuid: Uuid) -> Result<(), DbError> {
        tx.execute("DELETE FROM credentials WHERE uuid = ?1", [uuid.to_string()])?;
        Ok(())
    }
}
