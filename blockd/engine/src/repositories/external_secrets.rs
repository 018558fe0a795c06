//! External secrets of credentials.

use crate::{
    error::ServiceError,
    repositories::{
        Repositories,
        opening::StoreKey,
        references::{references_of, unresolved},
    },
};
use blockd_api::{CredentialName, SecretInput, SecretRef};
use blockd_secrets::Resolved;
use std::sync::Arc;

impl Repositories {
    /// Drops cached secrets that no credential refers to.
    pub async fn forget_unneeded_secrets(&self) {
        let rows = match self.credential_rows().await {
            Ok(rows) => rows,
            Err(error) => return tracing::debug!(%error, "dropping unused secrets from the cache failed"),
        };
        let needed = rows.iter().flat_map(references_of).cloned();
        self.references.keep_only(&needed.collect());
    }

    /// Returns the store secret of a request; an external one is fetched now.
    ///
    /// # Errors
    /// It is unavailable.
    pub async fn store_key(&self, given: Option<&SecretInput>) -> Result<StoreKey, ServiceError> {
        Ok(match given {
            None => StoreKey::None,
            Some(SecretInput::Value(secret)) => StoreKey::Value(secret.expose().to_owned().into()),
            Some(SecretInput::From(reference)) => {
                StoreKey::From(reference.clone(), self.resolve_again(None, reference).await?)
            }
        })
    }

    /// Fetches a secret now.
    ///
    /// # Errors
    /// It is unavailable.
    pub async fn resolve_again(
        &self,
        credential: Option<&CredentialName>,
        reference: &SecretRef,
    ) -> Result<Arc<Resolved>, ServiceError> {
        let resolved = self.references.resolve_uncached(reference).await;
        resolved.map_err(|error| unresolved(credential, reference, &error))
    }
}
