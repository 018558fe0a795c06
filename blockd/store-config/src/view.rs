//! Configuration without secrets.

use crate::{
    AssumedRole, AzureAuth, AzureConfig, GoogleConfig, ProviderKind, S3Config, SecretRef, StoreConfig,
    SwiftAuth, SwiftConfig,
};
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

/// Fields of a view that only S3 has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct S3View {
    /// Id of the access key, for S3; not secret.
    pub access_key: Option<String>,
    /// Assumed role, for S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<AssumedRole>,
    /// True for addresses of the form `host/bucket`, for S3.
    pub path_style: Option<bool>,
    /// Storage class of new objects, for S3.
    pub storage_class: Option<String>,
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

impl S3Config {
    fn view(&self) -> StoreView {
        let access = &self.access;
        StoreView {
            endpoint: Some(self.endpoint.clone()),
            region: Some(self.region.clone()),
            bucket: Some(self.bucket.clone()),
            auth: Some(if access.use_iam { "instance identity" } else { "access key" }.to_owned()),
            ssl_enabled: Some(!self.disable_ssl),
            s3: S3View {
                access_key: access.access_key.clone(),
                role: access.role.clone(),
                path_style: Some(!self.disable_path_style),
                storage_class: access.storage_class.clone(),
            },
            ..StoreView::default()
        }
    }
}

impl AzureConfig {
    fn view(&self) -> StoreView {
        let auth = match self.access.auth {
            AzureAuth::AccountKey { .. } => "account key",
            AzureAuth::Sas { .. } => "shared access signature",
            AzureAuth::ManagedIdentity { .. } => "managed identity",
        };
        StoreView {
            account: Some(self.account.clone()),
            bucket: Some(self.container.clone()),
            endpoint: self.endpoint.clone(),
            ssl_enabled: Some(!self.disable_ssl),
            auth: Some(auth.to_owned()),
            ..StoreView::default()
        }
    }
}

impl GoogleConfig {
    fn view(&self) -> StoreView {
        let auth = if self.access.use_iam { "instance identity" } else { "service account key" };
        StoreView {
            project: self.project.clone(),
            bucket: Some(self.bucket.clone()),
            endpoint: self.endpoint.clone(),
            ssl_enabled: Some(!self.disable_ssl),
            auth: Some(auth.to_owned()),
            ..StoreView::default()
        }
    }
}

impl SwiftConfig {
    fn view(&self) -> StoreView {
        let url = self.auth.url();
        let view = StoreView {
            bucket: Some(self.container.clone()),
            endpoint: Some(url.to_owned()),
            ssl_enabled: Some(url.starts_with("https://")),
            ..StoreView::default()
        };
        let (auth, user, project, region) = match &self.auth {
            SwiftAuth::V1 { user, .. } => ("auth v1", Some(user), None, None),
            SwiftAuth::V2 { user, tenant_name, tenant_id, region, .. } => {
                ("Keystone v2", Some(user), tenant_name.as_ref().or(tenant_id.as_ref()), region.as_ref())
            }
            SwiftAuth::V3 { user, project, region, .. } => {
                ("Keystone v3", Some(user), Some(project), region.as_ref())
            }
            SwiftAuth::Token { .. } => ("token", None, None, None),
        };
        let [user, project, region] = [user, project, region].map(|text| text.cloned());
        StoreView { auth: Some(auth.to_owned()), user, project, region, ..view }
    }
}
