//! Changing what opens a store, and how it is reached: never where it is.

use crate::{
    CredentialRef, SecretInput,
    client::{Client, ClientError, STORE_CALL_TIMEOUT},
    credentials::{AssumedRole, AzureAuth, Credential},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of `PATCH /v1/credentials/{credential}`: what is not given stays. The daemon proves that the store
/// opens with it, and is the same one, before it keeps anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpdateCredential {
    /// What proves who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<NewAccess>,
    /// Storage class of new objects, for S3; empty for that of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Certificates of further authorities that are trusted, as PEM; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
    /// URL of a proxy, without a password; empty for what the daemon's environment says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The passphrase that holds, kept in another way from now on: where it lies, or the passphrase itself,
    /// and then the keys that it opens are kept sealed. Another passphrase is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_passphrase: Option<SecretInput>,
}

impl UpdateCredential {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What proves from now on who asks, by the kind of the store, which stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum NewAccess {
    /// For a bucket of an S3 server.
    S3 {
        /// Id of the access key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access_key: Option<String>,
        /// The secret access key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secret_key: Option<SecretInput>,
        /// Ask the instance metadata service who the machine is, in place of a key; a key takes its place
        /// again.
        #[serde(default)]
        use_iam: bool,
        /// The role that is taken first; none if its name is empty.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<AssumedRole>,
    },
    /// For a container of Azure Blob Storage.
    Azure {
        /// What proves who asks.
        auth: AzureAuth,
    },
    /// For a bucket of Google Cloud Storage.
    Google {
        /// Content of a service account's key file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        json_key: Option<SecretInput>,
        /// Ask the machine who it is, in place of a key.
        #[serde(default)]
        use_iam: bool,
    },
    /// For a container of OpenStack Swift. Users and tokens do not take each other's place.
    Swift {
        /// The key or password of the user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<SecretInput>,
        /// The token, where there is no user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<SecretInput>,
    },
}

impl Client {
    /// Changes what opens a credential's store, or how it is reached.
    ///
    /// # Errors
    /// The daemon refuses, or cannot be asked.
    pub async fn update_credential(
        &self,
        credential: &CredentialRef,
        request: &UpdateCredential,
    ) -> Result<Credential, ClientError> {
        let address = crate::paths::credential(credential);
        self.send(hyper::Method::PATCH, &address, request, STORE_CALL_TIMEOUT).await
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
