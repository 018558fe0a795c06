//! Credentials of backup locations.
//!
//! Only request types contain secrets; replies never do.

use crate::{
    Compression, CredentialName, DailyLimit, Deduplication, Labels, LimitWindow, Secret, SecretInput,
    SecretRef,
};
pub use blockd_store_config::{
    AssumedRole, AzureAccess, AzureAuth, AzureConfig, GoogleAccess, GoogleConfig, InvalidConfig,
    ProviderKind, S3Access, S3Config, S3View, SecretChange, StoreAccess, StoreConfig, StoreView, SwiftAccess,
    SwiftAuth, SwiftConfig,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Body of `POST /v1/credentials`. The daemon verifies access before it stores anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateCredential {
    /// Name.
    pub name: CredentialName,
    /// Provider and location.
    pub provider: StoreConfig,
    /// Connection.
    #[serde(default)]
    pub connection: Connection,
    /// Passphrase of client-side encryption; without one, data has checksums only. Keys opened by a
    /// referenced passphrase are not stored on the host.
    pub encryption_passphrase: Option<SecretInput>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Body of `POST /v1/credentials/{credential}/rekey`. With the passphrase alone, data keys made by other
/// hosts are loaded for reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RekeyCredential {
    /// Current passphrase; by default the one that the credential refers to.
    pub passphrase: Option<Secret>,
    /// New passphrase.
    pub new_passphrase: Option<SecretInput>,
    /// Create a data key for new backups.
    #[serde(default)]
    pub new_data_key: bool,
    /// Id of the newest data key, made by another host, to use for new backups.
    pub accept_key: Option<Uuid>,
}

/// Reply to `POST /v1/credentials/{credential}/rekey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRekeyed {
    /// Id of the credential.
    pub credential_id: Uuid,
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
    pub limit_upload_bytes_per_second: Option<u64>,
    /// Download limit of all tasks, in bytes per second.
    pub limit_download_bytes_per_second: Option<u64>,
    /// Upload limits by time of day, overriding the general one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_upload_windows: Vec<LimitWindow>,
    /// Download limits by time of day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_download_windows: Vec<LimitWindow>,
    /// Time zone of the limits, such as `Europe/Berlin`; UTC by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_time_zone: Option<String>,
    /// Compression of backups, unless their request or schedule has another one.
    #[serde(skip_serializing_if = "Compression::is_auto")]
    pub compression: Compression,
    /// Stored blocks that backups refer to instead of storing equal ones.
    #[serde(skip_serializing_if = "Deduplication::is_default")]
    pub deduplicate: Deduplication,
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

/// Credential without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Id.
    pub credential_id: Uuid,
    /// Name.
    pub name: CredentialName,
    /// Store.
    #[serde(flatten)]
    pub store: StoreView,
    /// Prefix of all objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Proxy.
    pub proxy: Option<String>,
    /// True if additional CA certificates are trusted.
    #[serde(default)]
    pub has_ca_certificates: bool,
    /// Upload limit, in bytes per second.
    pub limit_upload_bytes_per_second: Option<u64>,
    /// Download limit, in bytes per second.
    pub limit_download_bytes_per_second: Option<u64>,
    /// Upload limits by time of day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limit_upload_windows: Vec<LimitWindow>,
    /// Download limits by time of day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limit_download_windows: Vec<LimitWindow>,
    /// Time zone of the limits; UTC by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_time_zone: Option<String>,
    /// Compression of backups.
    #[serde(default, skip_serializing_if = "Compression::is_auto")]
    pub compression: Compression,
    /// Stored blocks that backups refer to instead of storing equal ones.
    #[serde(default, skip_serializing_if = "Deduplication::is_default")]
    pub deduplicate: Deduplication,
    /// True if the repository is encrypted.
    pub encrypted: bool,
    /// Reference to the passphrase, if external.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key_from: Option<SecretRef>,
    /// True if the store supports create-if-absent, as tested.
    pub conditional_put: bool,
    /// Creation time.
    pub created_at: Timestamp,
    /// Write throughput of the last probe or backup, in bytes per second; `None` if never measured.
    pub write_bytes_per_second: Option<u64>,
    /// Used by requests that name no credential, in lists and inspections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_default: bool,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Warnings of its creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_form() {
        let json = r#"{"name":"s","provider":{"type":"s3","endpoint":"h:1","region":"r","bucket":"b","accessKey":"a",
            "secretKey":"hunter2","disableSsl":true},"encryptionPassphrase":"hunter3"}"#;
        let request: CreateCredential = serde_json::from_str(json).unwrap();
        assert!(!format!("{request:?}").contains("hunter"), "{request:?}");
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<CreateCredential>(&again).unwrap(), request);
        let unknown = r#"{"name":"n","provider":{"type":"local","path":"/srv"},"bucket":"b"}"#;
        let error = serde_json::from_str::<CreateCredential>(unknown).unwrap_err().to_string();
        assert!(error.contains("bucket"), "{error}");
    }

    #[test]
    fn store_is_part_of_the_reply() {
        let json = r#"{"credentialId":"af563a4d-afd7-48df-90f7-8e8f9414ff77","name":"weed","provider":"s3","bucket":"b",
            "pathStyle":true,"encrypted":false,"conditionalPut":true,"createdAt":"2026-11-24T00:00:00Z","later":1}"#;
        let reply: Credential = serde_json::from_str(json).unwrap();
        assert_eq!((reply.store.provider, reply.store.s3.path_style), (ProviderKind::S3, Some(true)));
        let again = serde_json::to_value(&reply).unwrap();
        assert_eq!((&again["provider"], &again["pathStyle"]), (&"s3".into(), &true.into()));
    }
}
