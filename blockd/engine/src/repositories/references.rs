//! References of credentials to external secrets.

use crate::error::ServiceError;
use blockd_api::{ApiError, CredentialName, SecretRef};
use blockd_catalog::CredentialRow;
use blockd_secrets::ReferenceError;

/// Returns the error of an unavailable secret for callers.
pub fn unresolved(
    credential: Option<&CredentialName>,
    reference: &SecretRef,
    error: &ReferenceError,
) -> ServiceError {
    let whose = credential.map(|name| format!("credential {name}: ")).unwrap_or_default();
    let message = format!("{whose}resolving the secret {reference} failed: {error}");
    ServiceError::Refused(ApiError::new(error.code(), message))
}

/// The references of a credential: to the key of the store, and to the passphrase.
pub fn references_of(row: &CredentialRow) -> impl Iterator<Item = &SecretRef> {
    row.store.config.reference().into_iter().chain(&row.passphrase_from)
}
