//! Update of a credential: authentication and connection settings, but never the location.

use crate::{Labels, SecretInput};
use blockd_store_config::{Compression, Deduplication, StoreAccess};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of `PATCH /v1/credentials/{credential}`; omitted fields stay. Unless labels alone change,
/// the daemon first verifies access to the store, and that it holds the same repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpdateCredential {
    /// Authentication and other settings of the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<StoreAccess>,
    /// Additional CA certificates, PEM; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    /// URL of a proxy, without a password; empty for the daemon's environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Compression of new backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// New deduplication of new backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<Deduplication>,
    /// Current passphrase in another form: a reference, or the passphrase itself, whose keys are then stored
    /// sealed. Another passphrase is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_passphrase: Option<SecretInput>,
    /// New labels; they replace all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

impl UpdateCredential {
    /// Returns true if the request changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_form() {
        for json in [
            r#"{"access":{"type":"s3","accessKey":"a","secretKey":"hunter2"}}"#,
            r#"{"access":{"type":"azure","auth":{"kind":"sas","token":"hunter2"}},"proxy":""}"#,
            r#"{"access":{"type":"google","jsonKey":{"from":"systemd:key"}}}"#,
            r#"{"access":{"type":"swift","key":"hunter2"},"encryptionPassphrase":"hunter3"}"#,
        ] {
            let request: UpdateCredential = serde_json::from_str(json).unwrap();
            assert!(!request.is_empty() && !format!("{request:?}").contains("hunter"), "{request:?}");
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<UpdateCredential>(&again).unwrap(), request);
        }
        assert!(serde_json::from_str::<UpdateCredential>("{}").unwrap().is_empty());
        for place in ["bucket", "endpoint", "path", "provider"] {
            let json = format!(r#"{{"{place}":"b"}}"#);
            let error = serde_json::from_str::<UpdateCredential>(&json).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
    }
}
