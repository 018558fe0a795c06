//! Azure Blob Storage.

use crate::{
    InvalidConfig, SecretChange, SecretInput,
    settings::{required, required_secret},
};
use serde::{Deserialize, Serialize};

/// Azure Blob Storage container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AzureConfig {
    /// Storage account.
    pub account: String,
    /// Existing container. By default one named after the cluster, which a new credential creates if needed.
    #[serde(default)]
    pub container: String,
    /// Custom endpoint, `host:port` or `host`; the account is then the first part of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Use plain HTTP to the endpoint.
    #[serde(default)]
    pub disable_ssl: bool,
    /// Authentication.
    #[serde(flatten)]
    pub access: AzureAccess,
}

/// Changeable settings of an Azure container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AzureAccess {
    /// Authentication.
    pub auth: AzureAuth,
}

/// Azure authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum AzureAuth {
    /// Account key.
    AccountKey {
        /// Key, in base64; required.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<SecretInput>,
    },
    /// Shared access signature. It must allow reading, writing, deleting and listing.
    Sas {
        /// Query of a SAS URL; required.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<SecretInput>,
    },
    /// Managed identity.
    ManagedIdentity {
        /// Client id, if there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_id: Option<String>,
    },
}

impl AzureConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        required([("azure-account-name", &self.account), ("bucket", &self.container)])
    }
}

impl AzureAccess {
    pub(crate) fn update(&mut self, new: Self) -> Result<SecretChange, InvalidConfig> {
        match &new.auth {
            AzureAuth::AccountKey { key } => required_secret("azure-account-key", key.as_ref())?,
            AzureAuth::Sas { token } => required_secret("azure-sas-token", token.as_ref())?,
            AzureAuth::ManagedIdentity { .. } => {
                *self = new;
                return Ok(SecretChange::Dropped);
            }
        }
        *self = new;
        Ok(SecretChange::Replaced)
    }
}
