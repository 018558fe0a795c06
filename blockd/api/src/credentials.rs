//! Credentials of backup locations.
//!
//! Only request types contain secrets; replies never do.

use crate::{CredentialName, DailyLimit, LimitWindow, Secret, SecretInput, SecretRef};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};
use uuid::Uuid;

/// Body of `POST /v1/credentials`. The daemon verifies access before it stores anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateCredential {
    /// Name.
    pub name: CredentialName,
    /// Provider and location.
    pub provider: ProviderRequest,
    /// Connection.
    #[serde(default)]
    pub connection: Connection,
    /// Passphrase of client-side encryption; without one, data has checksums only. Keys opened by a
    /// referenced passphrase are not stored on the host.
    #[serde(default)]
    pub encryption_passphrase: Option<SecretInput>,
}

/// Body of `POST /v1/credentials/{credential}/rekey`. With the passphrase alone, data keys made by other
/// hosts are loaded for reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RekeyCredential {
    /// Current passphrase; by default the one that the credential refers to.
    #[serde(default)]
    pub passphrase: Option<Secret>,
    /// New passphrase.
    #[serde(default)]
    pub new_passphrase: Option<SecretInput>,
    /// Create a data key for new backups.
    #[serde(default)]
    pub new_data_key: bool,
    /// Id of the newest data key, made by another host, to use for new backups.
    #[serde(default)]
    pub accept_key: Option<Uuid>,
}

/// Reply to `POST /v1/credentials/{credential}/rekey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRekeyed {
    /// Id of the credential.
    pub uuid: Uuid,
    /// Name.
    pub name: CredentialName,
    /// Data keys newly wrapped with the new passphrase.
    pub rewrapped: u64,
    /// Key slots that neither passphrase opens; left unchanged.
    pub foreign: u64,
    /// True if new backups have a new data key.
    pub new_data_key: bool,
    /// Data keys known to this host.
    pub data_keys: u64,
}

/// Connection settings of all providers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Connection {
    /// Prefix of all objects, such as `demo` or `hosts/a`. It is part of the location: another prefix is
    /// another repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Additional CA certificates, PEM.
    pub ca_certificates: Option<String>,
    /// URL of a proxy, without a password; by default from the daemon's environment.
    pub proxy: Option<String>,
    /// Upload limit of all tasks, in bytes per second.
    pub limit_upload_bytes_per_s: Option<u64>,
    /// Download limit of all tasks, in bytes per second.
    pub limit_download_bytes_per_s: Option<u64>,
    /// Upload limits by time of day, overriding the general one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_upload_windows: Vec<LimitWindow>,
    /// Download limits by time of day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_download_windows: Vec<LimitWindow>,
    /// Time zone of the limits, such as `Europe/Berlin`; UTC by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_time_zone: Option<String>,
}

/// Body of `POST /v1/credentials/{credential}/limits`: bandwidth limits of all tasks of a credential,
/// including running ones. Omitted ones are unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CredentialLimits {
    /// Upload limit.
    #[serde(skip_serializing_if = "DailyLimit::is_none", deserialize_with = "some_limit")]
    #[schemars(with = "Option<DailyLimit>")]
    pub upload: DailyLimit,
    /// Download limit.
    #[serde(skip_serializing_if = "DailyLimit::is_none", deserialize_with = "some_limit")]
    #[schemars(with = "Option<DailyLimit>")]
    pub download: DailyLimit,
    /// Time zone of the limits, such as `Europe/Berlin`; UTC by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
}

/// Parses a limit, or `null` for none.
fn some_limit<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DailyLimit, D::Error> {
    Ok(Option::<DailyLimit>::deserialize(from)?.unwrap_or_default())
}

/// Provider, location and authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ProviderRequest {
    /// Directory of the daemon's host.
    Local {
        /// Absolute path of the mount point.
        path: PathBuf,
    },
    /// S3 bucket.
    S3 {
        /// `host:port` or `host` of the server.
        endpoint: String,
        /// Region.
        region: String,
        /// Existing bucket.
        bucket: String,
        /// Id of the access key; required unless `use_iam` is set.
        #[serde(default)]
        access_key: Option<String>,
        /// Secret access key; required unless `use_iam` is set.
        #[serde(default)]
        secret_key: Option<SecretInput>,
        /// Use the instance role instead of a key.
        #[serde(default)]
        use_iam: bool,
        /// Role to assume with the key or the instance role.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<AssumedRole>,
        /// Use plain HTTP.
        #[serde(default)]
        disable_ssl: bool,
        /// Address the bucket as `bucket.host`, not as `host/bucket`.
        #[serde(default)]
        disable_path_style: bool,
        /// Storage class of new objects, such as `STANDARD_IA`.
        #[serde(default)]
        storage_class: Option<String>,
    },
    /// Azure Blob Storage container.
    Azure {
        /// Storage account.
        account: String,
        /// Existing container.
        container: String,
        /// Authentication.
        auth: AzureAuth,
        /// Custom endpoint, `host:port` or `host`.
        #[serde(default)]
        endpoint: Option<String>,
        /// Use plain HTTP to the endpoint.
        #[serde(default)]
        disable_ssl: bool,
    },
    /// Google Cloud Storage bucket.
    Google {
        /// Project, for information.
        #[serde(default)]
        project: Option<String>,
        /// Existing bucket.
        bucket: String,
        /// Content of a service account's key file; the instance identity by default.
        #[serde(default)]
        json_key: Option<SecretInput>,
        /// Use the instance identity instead of a key.
        #[serde(default)]
        use_iam: bool,
        /// Custom endpoint, `host:port` or `host`.
        #[serde(default)]
        endpoint: Option<String>,
        /// Use plain HTTP to the endpoint.
        #[serde(default)]
        disable_ssl: bool,
    },
    /// OpenStack Swift container.
    Swift {
        /// Existing container.
        container: String,
        /// Authentication.
        auth: SwiftAuth,
    },
}

/// AWS role to assume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AssumedRole {
    /// Name, such as `arn:aws:iam::123456789012:role/backup`.
    pub arn: String,
    /// STS external ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// STS endpoint, `host:port`, `host` or URL; by default Amazon's or the bucket's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Azure authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum AzureAuth {
    /// Account key.
    AccountKey {
        /// Key, in base64.
        key: SecretInput,
    },
    /// Shared access signature.
    Sas {
        /// Query of a SAS URL.
        token: SecretInput,
    },
    /// Managed identity.
    ManagedIdentity {
        /// Client id, if there are several.
        #[serde(default)]
        client_id: Option<String>,
    },
}

/// Swift authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SwiftAuth {
    /// Auth v1.
    V1 {
        /// URL of the auth service.
        auth_url: String,
        /// User, often `ACCOUNT:USER`.
        user: String,
        /// Key of the user.
        key: SecretInput,
    },
    /// Keystone v2.
    V2 {
        /// URL of Keystone, such as `https://HOST:5000/v2.0`.
        auth_url: String,
        /// User.
        user: String,
        /// Password of the user.
        password: SecretInput,
        /// Name of the tenant.
        #[serde(default)]
        tenant_name: Option<String>,
        /// Id of the tenant.
        #[serde(default)]
        tenant_id: Option<String>,
        /// Region; by default the first of the catalog.
        #[serde(default)]
        region: Option<String>,
    },
    /// Keystone v3.
    V3 {
        /// URL of Keystone, such as `https://HOST:5000/v3`.
        auth_url: String,
        /// User.
        user: String,
        /// Password of the user.
        password: SecretInput,
        /// Domain of the user.
        user_domain: String,
        /// Project.
        project: String,
        /// Domain of the project.
        project_domain: String,
        /// Region; by default the first of the catalog.
        #[serde(default)]
        region: Option<String>,
    },
    /// Token, valid until it expires.
    Token {
        /// URL of the account.
        storage_url: String,
        /// Token.
        token: SecretInput,
    },
}

/// Storage provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProviderKind {
    /// Directory.
    Local,
    /// S3 bucket.
    S3,
    /// Azure Blob Storage container.
    Azure,
    /// Google Cloud Storage bucket.
    Google,
    /// OpenStack Swift container.
    Swift,
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::S3 => "s3",
            Self::Azure => "azure",
            Self::Google => "google",
            Self::Swift => "swift",
        })
    }
}

/// Reply to `GET /v1/credentials`, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialList {
    /// Credentials.
    pub credentials: Vec<Credential>,
}

/// Credential without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Id.
    pub uuid: Uuid,
    /// Name.
    pub name: CredentialName,
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
    /// Prefix of all objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Id of the access key, for S3; not secret.
    pub access_key: Option<String>,
    /// Assumed role, for S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<AssumedRole>,
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
    /// True for addresses of the form `host/bucket`, for S3.
    pub path_style: Option<bool>,
    /// Storage class of new objects, for S3.
    pub storage_class: Option<String>,
    /// Proxy.
    pub proxy: Option<String>,
    /// True if additional CA certificates are trusted.
    #[serde(default)]
    pub has_ca_certificates: bool,
    /// Upload limit, in bytes per second.
    pub limit_upload_bytes_per_s: Option<u64>,
    /// Download limit, in bytes per second.
    pub limit_download_bytes_per_s: Option<u64>,
    /// Upload limits by time of day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limit_upload_windows: Vec<LimitWindow>,
    /// Download limits by time of day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limit_download_windows: Vec<LimitWindow>,
    /// Time zone of the limits; UTC by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_time_zone: Option<String>,
    /// True if the repository is encrypted.
    pub encryption: bool,
    /// Reference to the store's secret, if external.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_key_from: Option<SecretRef>,
    /// Reference to the passphrase, if external.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_key_from: Option<SecretRef>,
    /// True if the store supports create-if-absent, as tested.
    pub conditional_put: bool,
    /// Creation time.
    pub created: Timestamp,
    /// Kilobytes per second of the last probe or backup; `None` if never measured.
    pub write_throughput_kbps: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_form() {
        let json = r#"{"name":"s","provider":{"type":"s3","endpoint":"h:1","region":"r","bucket":"b","accessKey":"a",
            "secretKey":"hunter2","disableSsl":true},"encryptionPassphrase":"hunter3"}"#;
        let request: CreateCredential = serde_json::from_str(json).unwrap();
        let ProviderRequest::S3 { secret_key, disable_ssl, disable_path_style, .. } = &request.provider
        else {
            panic!("not S3")
        };
        let secret_key = secret_key.as_ref().and_then(SecretInput::value).unwrap();
        assert_eq!((secret_key.expose(), *disable_ssl, *disable_path_style), ("hunter2", true, false));
        assert!(!format!("{request:?}").contains("hunter"), "{request:?}");
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<CreateCredential>(&again).unwrap(), request);
        let local = r#"{"name":"n","provider":{"type":"local","path":"/srv"}}"#;
        assert!(serde_json::from_str::<CreateCredential>(local).is_ok());
        for json in [
            r#"{"type":"azure","account":"a","container":"c","auth":{"kind":"accountKey","key":"hunter2"}}"#,
            r#"{"type":"azure","account":"a","container":"c","auth":{"kind":"managedIdentity"},"endpoint":"h:1"}"#,
            r#"{"type":"google","project":"p","bucket":"b","jsonKey":"hunter2"}"#,
            r#"{"type":"swift","container":"c","auth":{"kind":"v1","authUrl":"u","user":"u","key":"hunter2"}}"#,
            r#"{"type":"swift","container":"c","auth":{"kind":"v3","authUrl":"u","user":"u","password":"hunter2",
                "userDomain":"d","project":"p","projectDomain":"d"}}"#,
        ] {
            let provider: ProviderRequest = serde_json::from_str(json).unwrap();
            assert!(!format!("{provider:?}").contains("hunter"), "{provider:?}");
            let again = serde_json::to_string(&provider).unwrap();
            assert_eq!(serde_json::from_str::<ProviderRequest>(&again).unwrap(), provider);
        }
    }

    #[test]
    fn unknown_field_is_refused_by_name() {
        for json in [
            r#"{"name":"n","provider":{"type":"local","path":"/srv","bucket":"b"}}"#,
            r#"{"name":"n","provider":{"type":"local","path":"/srv"},"bucket":"b"}"#,
        ] {
            let error = serde_json::from_str::<CreateCredential>(json).unwrap_err().to_string();
            assert!(error.contains("bucket"), "{error}");
        }
        let unknown = r#"{"name":"n","provider":{"type":"tape"}}"#;
        assert!(serde_json::from_str::<CreateCredential>(unknown).unwrap_err().to_string().contains("tape"));
    }
}
