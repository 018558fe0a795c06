//! What can be asked of secrets that lie elsewhere, and what the credentials need of them.

use crate::{
    core::Core,
    credentials::StoreKey,
    db::CredentialRow,
    error::ServiceError,
    references::{ReferenceError, Resolved},
};
use blockd_api::{
    ApiError, CredentialName, ErrorCode, SecretInput, SecretRef,
    secrets::{CheckSecret, SecretChecked, SecretInUse, SecretList, SecretPurpose, SecretUse},
};
use futures::{StreamExt, stream};
use std::{collections::BTreeMap, sync::Arc};

/// References that are resolved at once.
const AT_ONCE: usize = 4;

/// A secret that cannot be had, as callers see it.
pub(crate) fn unresolved(
    credential: Option<&CredentialName>,
    reference: &SecretRef,
    error: &ReferenceError,
) -> ServiceError {
    let whose = credential.map(|name| format!("credential {name}: ")).unwrap_or_default();
    let message = format!("{whose}the secret {reference} cannot be had: {error}");
    ServiceError::Refused(ApiError::new(error.code(), message))
}

/// What a credential refers to.
pub(crate) fn references_of(row: &CredentialRow) -> impl Iterator<Item = (&SecretRef, SecretPurpose)> {
    let store_key = row.store_secret_from.iter().map(|one| (one, SecretPurpose::StoreKey));
    let passphrase = row.passphrase_from.iter().map(|one| (one, SecretPurpose::EncryptionPassphrase));
    store_key.chain(passphrase)
}

impl Core {
    /// Forgets secrets that no credential refers to any more.
    pub(crate) async fn forget_unneeded_secrets(&self) {
        let rows = match self.credential_rows().await {
            Ok(rows) => rows,
            Err(error) => return tracing::debug!(%error, "secrets that nobody needs are not forgotten yet"),
        };
        let needed = rows.iter().flat_map(references_of).map(|(reference, _)| reference.clone());
        self.references.keep_only(&needed.collect());
    }

    /// What opens a store, of a request: a secret that lies elsewhere is fetched now.
    ///
    /// # Errors
    /// It cannot be had.
    pub(crate) async fn store_key(&self, given: Option<&SecretInput>) -> Result<StoreKey, ServiceError> {
        Ok(match given {
            None => StoreKey::None,
            Some(SecretInput::Value(secret)) => StoreKey::Value(secret.expose().to_owned().into()),
            Some(SecretInput::From(reference)) => {
                StoreKey::From(reference.clone(), self.resolved_anew(None, reference).await?)
            }
        })
    }

    /// A secret, fetched now.
    ///
    /// # Errors
    /// It cannot be had.
    pub(crate) async fn resolved_anew(
        &self,
        credential: Option<&CredentialName>,
        reference: &SecretRef,
    ) -> Result<Arc<Resolved>, ServiceError> {
        let resolved = self.references.resolve_anew(reference).await;
        resolved.map_err(|error| unresolved(credential, reference, &error))
    }

    /// All references in use, and whether what they lead to can be had now.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_secrets(&self) -> Result<SecretList, ServiceError> {
        let mut uses: BTreeMap<SecretRef, Vec<SecretUse>> = BTreeMap::new();
        for row in self.credential_rows().await? {
            for (reference, purpose) in references_of(&row) {
                let one = SecretUse { uuid: row.uuid, credential: row.name.clone(), purpose };
                uses.entry(reference.clone()).or_default().push(one);
            }
        }
        let looks = uses.into_iter().map(|(reference, used_by)| async move {
            let found = self.references.resolve_anew(&reference).await;
            SecretInUse {
                reference,
                used_by,
                resolvable: found.is_ok(),
                version: found.as_ref().ok().and_then(|resolved| resolved.version),
                error: found.err().map(|error| error.to_string()),
            }
        });
        Ok(SecretList { references: stream::iter(looks).buffered(AT_ONCE).collect().await })
    }

    /// Fetches a secret, and says nothing of it but that it is there.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn check_secret(&self, request: CheckSecret) -> Result<SecretChecked, ServiceError> {
        let CheckSecret { reference } = request;
        match self.references.check(&reference).await {
            Ok(version) => Ok(SecretChecked { reference, version }),
            Err(error) => Err(match unresolved(None, &reference, &error) {
                // It is what was asked for; of a credential it is only a part.
                ServiceError::Refused(told) if error.is_missing() => {
                    ServiceError::Refused(ApiError { code: ErrorCode::SecretNotFound, ..told })
                }
                told => told,
            }),
        }
    }
}
