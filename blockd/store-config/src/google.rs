//! Google Cloud Storage.

use crate::{
    InvalidConfig, SecretChange, SecretInput,
    settings::{one_identity, required_secret},
};
use serde::{Deserialize, Serialize};

const KEY: &str = "google-json-key";

/// Google Cloud Storage bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoogleConfig {
    /// Project of a new bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Existing bucket. By default one named after the cluster, which a new credential creates in the project
    /// if needed.
    #[serde(default)]
    pub bucket: String,
    /// Custom endpoint, `host:port` or `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Use plain HTTP to the endpoint.
    #[serde(default)]
    pub disable_ssl: bool,
    /// Authentication.
    #[serde(flatten)]
    pub access: GoogleAccess,
}

/// Changeable settings of a Google bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GoogleAccess {
    /// Content of a service account's key file; required unless `useIam` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_key: Option<SecretInput>,
    /// Use the instance identity instead of a key: the application default credentials of the daemon's user,
    /// or the metadata service.
    pub use_iam: bool,
}

impl GoogleConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        if self.bucket.trim().is_empty() {
            let message = "a bucket, or the project of a new bucket is required";
            return Err(InvalidConfig::new(message, &["bucket", "google-project-id"]));
        }
        one_identity(self.access.use_iam, self.access.json_key.is_some(), KEY)
    }
}

impl GoogleAccess {
    pub(crate) fn update(&mut self, new: Self) -> Result<SecretChange, InvalidConfig> {
        one_identity(new.use_iam, new.json_key.is_some(), KEY)?;
        if !new.use_iam {
            required_secret(KEY, new.json_key.as_ref())?;
        }
        *self = new;
        Ok(if self.use_iam { SecretChange::Dropped } else { SecretChange::Replaced })
    }
}
