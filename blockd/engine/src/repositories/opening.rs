//! Secrets of stores and repositories, and the opening of both.

use crate::{
    error::{ServiceError, spawned},
    repositories::{referenced_client::ReferencedClient, stores},
};
use blockd_api::{ErrorCode, SecretRef, credentials::StoreConfig};
use blockd_catalog::{CredentialRow, StoreRow};
use blockd_cloud::{CloudError, DataKey, KnownKeys, Repository};
use blockd_secrets::{Fingerprint, Purpose, References, Resolved, Secrets, SecretsError};
use blockd_store::{BlobStore, ReloadStore, Work};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

/// Secret of a store.
pub enum StoreKey {
    /// No secret is needed.
    None,
    /// Secret stored on this host.
    Value(Zeroizing<String>),
    /// External secret, as it was read.
    From(SecretRef, Arc<Resolved>),
}

impl StoreKey {
    fn as_str(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Value(text) => Some(text),
            Self::From(_, resolved) => Some(resolved.expose()),
        }
    }

    /// Returns a copy of the secret.
    pub(crate) fn text(&self) -> Option<Zeroizing<String>> {
        self.as_str().map(|text| Zeroizing::new(text.to_owned()))
    }

    /// Returns the reference and fingerprint of an external secret.
    pub(crate) fn reference(&self) -> Option<(SecretRef, Fingerprint)> {
        match self {
            Self::From(reference, resolved) => Some((reference.clone(), resolved.fingerprint)),
            Self::None | Self::Value(_) => None,
        }
    }
}

/// Encodes the keys as one secret: for each its length (u16, little-endian) and its bytes.
pub fn encode_keys(keys: &[DataKey]) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
    let mut encoded = Zeroizing::new(Vec::new());
    for key in keys {
        let bytes = key.to_bytes();
        let len = u16::try_from(bytes.len())
            .map_err(|_| ServiceError::Internal("a data key is too long".into()))?;
        encoded.extend_from_slice(&len.to_le_bytes());
        encoded.extend_from_slice(&bytes);
    }
    Ok(encoded)
}

pub(crate) fn decode_keys(mut encoded: &[u8]) -> Result<Vec<DataKey>, ServiceError> {
    let cut = || ServiceError::Internal("the stored data keys are truncated".into());
    let mut keys = Vec::new();
    while !encoded.is_empty() {
        let (len, rest) = encoded.split_first_chunk::<2>().ok_or_else(cut)?;
        let (bytes, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into()).ok_or_else(cut)?;
        keys.push(DataKey::from_bytes(bytes)?);
        encoded = rest;
    }
    Ok(keys)
}

/// Opens an existing repository.
pub async fn open_existing(
    store: Arc<dyn BlobStore>,
    passphrase: Option<Zeroizing<String>>,
    known: KnownKeys,
) -> Result<Repository, ServiceError> {
    spawned(async move {
        let passphrase = passphrase.as_ref().map(|text| text.as_str());
        Repository::open_existing(store, passphrase, &known).await
    })
    .await
}

/// Creates a store client. Its connections belong to the runtime of the caller.
pub fn open_store(
    store: &StoreRow,
    key: &StoreKey,
    writing: Option<Work>,
    references: &Arc<References>,
) -> Result<Arc<ReloadStore>, ServiceError> {
    let client = stores::open(store, key.as_str(), writing)?;
    let opened = ReloadStore::new(Arc::clone(&client), store.connection.prefix.as_deref());
    let opened = match store.config {
        StoreConfig::Local { .. } => opened,
        _ => opened.with_runtime(Handle::current()),
    };
    let StoreKey::From(reference, resolved) = key else { return Ok(Arc::new(opened)) };
    Ok(Arc::new(opened.with_source(Arc::new(ReferencedClient {
        row: store.clone(),
        reference: reference.clone(),
        references: Arc::clone(references),
        client: Mutex::new((resolved.fingerprint, client)),
    }))))
}

/// Returns the error of unsealing a credential's secrets, if they cannot be unsealed.
pub fn cannot_be_opened(secrets: &Secrets, row: &CredentialRow) -> Option<SecretsError> {
    let keys = (!row.data_keys.is_empty()).then_some((Purpose::DataKeys, &row.data_keys));
    let secret = row.store_secret.as_ref().map(|sealed| (Purpose::StoreSecret, sealed));
    let mut sealed = keys.into_iter().chain(secret);
    sealed.find_map(|(purpose, sealed)| secrets.open(row.uuid, purpose, sealed).err())
}

/// Converts the error of a secret that cannot be unsealed.
pub fn not_opened(row: &CredentialRow, error: &SecretsError) -> ServiceError {
    let message = format!("credential {}: {error}", row.name);
    ServiceError::refused(ErrorCode::SecretUnavailable, message)
}

/// Returns true if an object is missing or damaged. One under an unknown key is neither: another host reads
/// it.
pub fn is_missing_or_damaged(error: &CloudError) -> bool {
    matches!(error, CloudError::SnapshotNotFound { .. } | CloudError::Damaged { .. })
}

/// Returns true if this host can base no incremental backup on a manifest with this error.
pub fn is_unusable_base(error: &CloudError) -> bool {
    is_missing_or_damaged(error) || matches!(error, CloudError::UnknownKey { .. })
}
