//! Configuration without secrets.

use crate::{ProviderKind, S3View, SecretRef, StoreConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Store of a credential, as replies have it. Fields of other providers are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StoreView {
    /// Provider.
    pub provider: ProviderKind,
    /// Directory of a local store.
    pub path: Option<PathBuf>,
    /// Server: for S3; a custom endpoint for others; the auth URL for Swift.
    pub endpoint: Option<String>,
    /// Region, for S3 and Keystone.
    pub region: Option<String>,
    /// Bucket or container.
    pub bucket: Option<String>,
    /// Account, for Azure.
    pub account: Option<String>,
    /// Project, for Google and Keystone v3; tenant, for Keystone v2.
    pub project: Option<String>,
    /// User, for Swift.
    pub user: Option<String>,
    /// Kind of authentication, such as `access key`.
    pub auth: Option<String>,
    /// True if TLS is used.
    pub ssl_enabled: Option<bool>,
    /// Fields of S3 only.
    #[serde(flatten)]
    pub s3: S3View,
    /// Reference to the store's secret, if external.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_key_from: Option<SecretRef>,
}

impl From<&StoreConfig> for StoreView {
    fn from(config: &StoreConfig) -> Self {
        let view = match config {
            StoreConfig::Local { path } => Self { path: Some(path.clone()), ..Self::default() },
            StoreConfig::S3(s3) => s3.view(),
            StoreConfig::Azure(azure) => azure.view(),
            StoreConfig::Google(google) => google.view(),
            StoreConfig::Swift(swift) => swift.view(),
        };
        Self { provider: config.kind(), store_key_from: config.reference().cloned(), ..view }
    }
}
