//! Rows of credentials.

use crate::{DbError, json, number, parsed, parsed_if_there, rows, stored, to_json};
use blockd_api::{
    CredentialName, Labels, SecretRef,
    credentials::{Connection, StoreConfig},
};
use blockd_cloud::{KnownKeys, WriteKey};
use blockd_store::StoreCapabilities;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Settings of a store. A secret is a reference; values are stored encrypted in a separate column.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreRow {
    /// Provider, location and authentication.
    pub config: StoreConfig,
    /// Connection settings.
    pub connection: Connection,
}

/// Credential: a store and the access to it.
#[derive(Clone, Debug)]
pub struct CredentialRow {
    /// Its id.
    pub uuid: Uuid,
    /// Its name.
    pub name: CredentialName,
    /// Creation time.
    pub created: Timestamp,
    /// The store.
    pub store: StoreRow,
    /// Sealed secret of the account.
    pub store_secret: Option<Vec<u8>>,
    /// Sealed keys of the repository; empty with an external passphrase.
    pub data_keys: Vec<u8>,
    /// Reference of an external passphrase.
    pub passphrase_from: Option<SecretRef>,
    /// Backups are encrypted.
    pub encrypted: bool,
    /// Capabilities that the probe found.
    pub capabilities: StoreCapabilities,
    /// Last intact key slots of the repository, to repair the store. Not secret.
    pub key_slots: Vec<u8>,
    /// Data key of new backups: the newest that this host created or accepted.
    pub write_key: WriteKey,
    /// Labels.
    pub labels: Labels,
}

const COLUMNS: &str = "uuid, name, created, store, store_secret, data_keys, encrypted, capabilities, \
    passphrase_from, key_slots, write_key, write_key_created, labels";

/// Encodes the settings of a store, which have no secret in clear.
fn store_json(store: &StoreRow) -> Result<String, DbError> {
    if store.config.has_secret_value() {
        let source = serde::ser::Error::custom("a secret would be stored in clear");
        return Err(DbError::Encode { what: "store", source });
    }
    to_json("store", store)
}

impl CredentialRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            uuid: parsed(row, 0)?,
            name: parsed(row, 1)?,
            created: parsed(row, 2)?,
            store: json(row, 3)?,
            store_secret: row.get(4)?,
            data_keys: row.get(5)?,
            encrypted: row.get(6)?,
            capabilities: json(row, 7)?,
            passphrase_from: parsed_if_there(row, 8)?,
            key_slots: row.get(9)?,
            write_key: WriteKey { key_id: parsed(row, 10)?, created_unix_s: number(row, 11)? },
            labels: json(row, 12)?,
        })
    }

    /// Returns all credentials by name.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM credentials ORDER BY name"), [], Self::read)
    }

    /// Returns the names of all credentials.
    ///
    /// # Errors
    /// The database fails.
    pub fn names(tx: &Transaction<'_>) -> Result<BTreeMap<Uuid, CredentialName>, DbError> {
        let name = |row: &Row<'_>| Ok((parsed(row, 0)?, parsed(row, 1)?));
        Ok(rows(tx, "SELECT uuid, name FROM credentials", [], name)?.into_iter().collect())
    }

    /// Adds the row.
    ///
    /// # Errors
    /// The database fails; a conflict if the name is taken.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            &format!(
                "INSERT INTO credentials ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
            ),
            params![
                self.uuid.to_string(),
                self.name.as_str(),
                self.created.to_string(),
                store_json(&self.store)?,
                self.store_secret,
                self.data_keys,
                self.encrypted,
                to_json("capabilities", &self.capabilities)?,
                self.passphrase_from.as_ref().map(ToString::to_string),
                self.key_slots,
                self.write_key.key_id.to_string(),
                stored(self.write_key.created_unix_s),
                to_json("labels", &self.labels)?,
            ],
        )?;
        Ok(())
    }

    /// Returns the keys and slots that are known before the repository is opened.
    pub fn known_keys(&self) -> KnownKeys {
        KnownKeys { write_key: Some(self.write_key), slots: KnownKeys::decode_slots(&self.key_slots) }
    }

    /// Stores intact key slots.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_key_slots(tx: &Transaction<'_>, uuid: Uuid, key_slots: &[u8]) -> Result<(), DbError> {
        tx.execute(
            "UPDATE credentials SET key_slots = ?2 WHERE uuid = ?1",
            params![uuid.to_string(), key_slots],
        )?;
        Ok(())
    }

    /// Sets the sealed data keys or the passphrase's reference, and the key of new backups.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_data_keys(
        tx: &Transaction<'_>,
        uuid: Uuid,
        data_keys: &[u8],
        passphrase_from: Option<&SecretRef>,
        write_key: WriteKey,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE credentials SET data_keys = ?2, passphrase_from = ?3, write_key = ?4, write_key_created = ?5 \
                WHERE uuid = ?1",
            params![
                uuid.to_string(),
                data_keys,
                passphrase_from.map(ToString::to_string),
                write_key.key_id.to_string(),
                stored(write_key.created_unix_s),
            ],
        )?;
        Ok(())
    }

    /// Replaces the labels.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_labels(tx: &Transaction<'_>, uuid: Uuid, labels: &Labels) -> Result<(), DbError> {
        let sql = "UPDATE credentials SET labels = ?2 WHERE uuid = ?1";
        tx.execute(sql, params![uuid.to_string(), to_json("labels", labels)?])?;
        Ok(())
    }

    /// Returns true if the row has sealed secrets.
    pub fn has_sealed(&self) -> bool {
        self.store_secret.is_some() || !self.data_keys.is_empty()
    }

    /// Stores the capabilities of a later probe.
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

    /// Replaces the settings of the store.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_store(tx: &Transaction<'_>, uuid: Uuid, store: &StoreRow) -> Result<(), DbError> {
        tx.execute(
            "UPDATE credentials SET store = ?2 WHERE uuid = ?1",
            params![uuid.to_string(), store_json(store)?],
        )?;
        Ok(())
    }

    /// Replaces the access to the store atomically.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_access(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "UPDATE credentials SET store = ?2, store_secret = ?3, data_keys = ?4, passphrase_from = ?5, \
                capabilities = ?6 WHERE uuid = ?1",
            params![
                self.uuid.to_string(),
                store_json(&self.store)?,
                self.store_secret,
                self.data_keys,
                self.passphrase_from.as_ref().map(ToString::to_string),
                to_json("capabilities", &self.capabilities)?,
            ],
        )?;
        Ok(())
    }

    /// Returns true for equal access, regardless of limits.
    pub fn is_opened_as(&self, other: &Self) -> bool {
        let connection = |row: &Self| {
            let connection = &row.store.connection;
            (connection.prefix.clone(), connection.proxy.clone(), connection.ca_certificates.clone())
        };
        self.store.config == other.store.config
            && connection(self) == connection(other)
            && self.store_secret == other.store_secret
            && (&self.data_keys, &self.passphrase_from, self.write_key)
                == (&other.data_keys, &other.passphrase_from, other.write_key)
    }

    /// Stores the measured write throughput.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_write_speed(tx: &Transaction<'_>, uuid: Uuid, bytes_per_s: u64) -> Result<(), DbError> {
        let Some(mut row) = Self::all(tx)?.into_iter().find(|row| row.uuid == uuid) else { return Ok(()) };
        row.capabilities.write_bytes_per_s = bytes_per_s;
        Self::set_capabilities(tx, uuid, &row.capabilities)
    }

    /// Returns the credential that was chosen for requests without one; it may be deleted.
    ///
    /// # Errors
    /// The database fails.
    pub fn default(tx: &Transaction<'_>) -> Result<Option<Uuid>, DbError> {
        let sql = "SELECT value FROM meta WHERE key = 'default_credential'";
        Ok(tx.query_row(sql, [], |row| parsed(row, 0)).optional()?)
    }

    /// Chooses the credential for requests without one.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_default(tx: &Transaction<'_>, uuid: Uuid) -> Result<(), DbError> {
        let sql = "INSERT OR REPLACE INTO meta (key, value) VALUES ('default_credential', ?1)";
        tx.execute(sql, [uuid.to_string()])?;
        Ok(())
    }

    /// Removes the row with its chains and cached manifests.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, uuid: Uuid) -> Result<(), DbError> {
        tx.execute("DELETE FROM credentials WHERE uuid = ?1", [uuid.to_string()])?;
        Ok(())
    }
}

#[cfg(test)]
impl CredentialRow {
    /// Returns a credential of a directory whose repository has a key with this id.
    pub fn sample(uuid: Uuid, path: &str, key_id: Uuid) -> Self {
        Self {
            uuid,
            name: format!("c-{uuid}").parse().unwrap(),
            created: Timestamp::UNIX_EPOCH,
            store: StoreRow {
                config: StoreConfig::Local { path: path.into() },
                connection: Connection::default(),
            },
            store_secret: None,
            data_keys: Vec::new(),
            passphrase_from: None,
            encrypted: false,
            capabilities: StoreCapabilities {
                conditional_put: true,
                write_bytes_per_s: 0,
                read_bytes_per_s: 0,
            },
            key_slots: Vec::new(),
            write_key: WriteKey { key_id, created_unix_s: 0 },
            labels: Labels::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Db;

    #[test]
    fn row_with_a_secret_in_clear_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let store = |auth: serde_json::Value| {
            let config = serde_json::json!({
                "type": "swift", "container": "c", "auth": auth, "key": "planted"
            });
            StoreRow { config: serde_json::from_value(config).unwrap(), connection: Connection::default() }
        };
        let row = CredentialRow::sample(Uuid::new_v4(), "/store", Uuid::new_v4());
        db.transaction(|tx| row.insert(tx)).unwrap();
        let clear = store(serde_json::json!({ "kind": "token", "storageUrl": "https://h/" }));
        let error = db.transaction(|tx| CredentialRow::set_store(tx, row.uuid, &clear)).unwrap_err();
        assert!(error.to_string().contains("in clear"), "{error}");
        let leaky = CredentialRow { store: clear, ..row.clone() };
        assert!(db.transaction(|tx| leaky.set_access(tx)).is_err());
        assert!(db.transaction(|tx| leaky.insert(tx)).is_err());
        let stored = db.transaction(CredentialRow::all).unwrap();
        assert!(stored.len() == 1 && stored[0].store == row.store);
    }
}
