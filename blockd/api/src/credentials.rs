//! Credentials: where backups go, and what opens that place.
//!
//! Secrets stand in the request types only; replies have none.

use crate::{CredentialName, DailyLimit, LimitWindow, Secret, SecretInput, SecretRef};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};
use uuid::Uuid;

/// Body of `POST /v1/credentials`. The daemon proves that the store works before it keeps anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateCredential {
    /// Its name.
    pub name: CredentialName,
    /// Where backups go.
    pub provider: ProviderRequest,
    /// How one gets there.
    #[serde(default)]
    pub connection: Connection,
    /// Encrypts all that is stored; without one it is checksummed only. The keys that a referenced one opens
    /// are not stored on the host either.
    #[serde(default)]
    pub encryption_passphrase: Option<SecretInput>,
}

/// Body of `POST /v1/credentials/{credential}/rekey`. With the first one only, the data keys that other hosts
/// made are found, to read with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RekeyCredential {
    /// The passphrase that opens what is stored now; the one that the credential refers to without it.
    #[serde(default)]
    pub passphrase: Option<Secret>,
    /// The one that is to open it from now on.
    #[serde(default)]
    pub new_passphrase: Option<SecretInput>,
    /// New backups get a data key of their own.
    #[serde(default)]
    pub new_data_key: bool,
    /// Id of the newest data key, which another host made: new backups get it.
    #[serde(default)]
    pub accept_key: Option<Uuid>,
}

/// Reply to `POST /v1/credentials/{credential}/rekey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRekeyed {
    /// Id of the credential.
    pub uuid: Uuid,
    /// Its name.
    pub name: CredentialName,
    /// Data keys that open with the new passphrase, and did not before.
    pub rewrapped: u64,
    /// Key slots that open with neither passphrase: somebody else's, left as they are.
    pub foreign: u64,
    /// Whether new backups have a new data key.
    pub new_data_key: bool,
    /// Data keys that this host has now.
    pub data_keys: u64,
}

/// How a store is reached, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Connection {
    /// Below which everything lies in the bucket, container or directory, such as `demo` or `hosts/a`;
    /// directly in it without one. It is part of the place: what lies below another prefix is another
    /// repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Certificates of further authorities that are trusted, as PEM.
    pub ca_certificates: Option<String>,
    /// URL of a proxy, without a password; without one, what the daemon's environment says.
    pub proxy: Option<String>,
    /// Bytes a second that are sent at most, by all tasks together.
    pub limit_upload_bytes_per_s: Option<u64>,
    /// Bytes a second that are received at most, by all tasks together.
    pub limit_download_bytes_per_s: Option<u64>,
    /// What is sent at most in parts of the day, in place of the limit for all of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_upload_windows: Vec<LimitWindow>,
    /// What is received at most in parts of the day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limit_download_windows: Vec<LimitWindow>,
    /// The time zone of the parts of the day, such as `Europe/Berlin`; UTC without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_time_zone: Option<String>,
}

/// Body of `POST /v1/credentials/{credential}/limits`: what all tasks of a credential together may move, from
/// now on and also for those that run. What is left out is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CredentialLimits {
    /// What is sent at most.
    #[serde(skip_serializing_if = "DailyLimit::is_none", deserialize_with = "some_limit")]
    #[schemars(with = "Option<DailyLimit>")]
    pub upload: DailyLimit,
    /// What is received at most.
    #[serde(skip_serializing_if = "DailyLimit::is_none", deserialize_with = "some_limit")]
    #[schemars(with = "Option<DailyLimit>")]
    pub download: DailyLimit,
    /// The time zone of parts of the day, such as `Europe/Berlin`; UTC without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
}

/// A limit, or `null` for none.
fn some_limit<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DailyLimit, D::Error> {
    Ok(Option::<DailyLimit>::deserialize(from)?.unwrap_or_default())
}

/// Where backups go, with what is needed to get there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ProviderRequest {
    /// A directory of the daemon's host.
    Local {
        /// The directory, absolute.
        path: PathBuf,
    },
    /// A bucket of an S3 server.
    S3 {
        /// `host:port` or `host` of the server.
        endpoint: String,
        /// Its region.
        region: String,
        /// The bucket, which must exist.
        bucket: String,
        /// Id of the access key; needed unless `use_iam` is set.
        #[serde(default)]
        access_key: Option<String>,
        /// The secret access key; needed unless `use_iam` is set.
        #[serde(default)]
        secret_key: Option<SecretInput>,
        /// Ask the instance metadata service who the machine is, in place of a key.
        #[serde(default)]
        use_iam: bool,
        /// A role that the key's owner, or the machine, takes first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<AssumedRole>,
        /// Talk plain HTTP.
        #[serde(default)]
        disable_ssl: bool,
        /// Address the bucket as `bucket.host`, not as `host/bucket`.
        #[serde(default)]
        disable_path_style: bool,
        /// Storage class of new objects, such as `STANDARD_IA`.
        #[serde(default)]
        storage_class: Option<String>,
    },
    /// A container of Azure Blob Storage.
    Azure {
        /// The storage account.
        account: String,
        /// The container, which must exist.
        container: String,
        /// What proves who asks.
        auth: AzureAuth,
        /// `host:port` or `host` of a server that is not Azure's own.
        #[serde(default)]
        endpoint: Option<String>,
        /// Talk plain HTTP to the endpoint.
        #[serde(default)]
        disable_ssl: bool,
    },
    /// A bucket of Google Cloud Storage.
    Google {
        /// The project, for information.
        #[serde(default)]
        project: Option<String>,
        /// The bucket, which must exist.
        bucket: String,
        /// Content of a service account's key file; without it, the identity of the machine.
        #[serde(default)]
        json_key: Option<SecretInput>,
        /// Ask the machine who it is, in place of a key.
        #[serde(default)]
        use_iam: bool,
        /// `host:port` or `host` of a server that is not Google's own.
        #[serde(default)]
        endpoint: Option<String>,
        /// Talk plain HTTP to the endpoint.
        #[serde(default)]
        disable_ssl: bool,
    },
    /// A container of OpenStack Swift.
    Swift {
        /// The container, which must exist.
        container: String,
        /// What proves who asks.
        auth: SwiftAuth,
    },
}

/// A role that is taken to reach a bucket of S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AssumedRole {
    /// Its name, such as `arn:aws:iam::123456789012:role/backup`.
    pub arn: String,
    /// What its owner wants to be told by those that take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// `host:port`, `host` or URL of the service that gives it; Amazon's, or the server of the bucket,
    /// without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// What proves to Azure who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum AzureAuth {
    /// A key of the account.
    AccountKey {
        /// The key, in base64.
        key: SecretInput,
    },
    /// A shared access signature.
    Sas {
        /// The query of a SAS URL.
        token: SecretInput,
    },
    /// The managed identity of the machine.
    ManagedIdentity {
        /// Which one, if it has several.
        #[serde(default)]
        client_id: Option<String>,
    },
}

/// What proves to Swift who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SwiftAuth {
    /// Auth v1.
    V1 {
        /// URL of the auth service.
        auth_url: String,
        /// The user, often `ACCOUNT:USER`.
        user: String,
        /// The user's key.
        key: SecretInput,
    },
    /// Keystone v2.
    V2 {
        /// URL of Keystone, such as `https://HOST:5000/v2.0`.
        auth_url: String,
        /// The user.
        user: String,
        /// The user's password.
        password: SecretInput,
        /// Name of the tenant.
        #[serde(default)]
        tenant_name: Option<String>,
        /// Id of the tenant.
        #[serde(default)]
        tenant_id: Option<String>,
        /// Region; the first of the catalog without it.
        #[serde(default)]
        region: Option<String>,
    },
    /// Keystone v3.
    V3 {
        /// URL of Keystone, such as `https://HOST:5000/v3`.
        auth_url: String,
        /// The user.
        user: String,
        /// The user's password.
        password: SecretInput,
        /// Domain of the user.
        user_domain: String,
        /// The project.
        project: String,
        /// Domain of the project.
        project_domain: String,
        /// Region; the first of the catalog without it.
        #[serde(default)]
        region: Option<String>,
    },
    /// A ready token, which is good until it ends.
    Token {
        /// URL of the account.
        storage_url: String,
        /// The token.
        token: SecretInput,
    },
}

/// Kind of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProviderKind {
    /// A directory.
    Local,
    /// A bucket of an S3 server.
    S3,
    /// A container of Azure Blob Storage.
    Azure,
    /// A bucket of Google Cloud Storage.
    Google,
    /// A container of OpenStack Swift.
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
    /// The credentials.
    pub credentials: Vec<Credential>,
}

/// A credential without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Its id.
    pub uuid: Uuid,
    /// Its name.
    pub name: CredentialName,
    /// Kind of its store.
    pub provider: ProviderKind,
    /// The directory, for a local store.
    pub path: Option<PathBuf>,
    /// The server: for S3, for others one that is not the provider's own, for Swift the URL that is asked
    /// first.
    pub endpoint: Option<String>,
    /// The region, for S3 and Keystone.
    pub region: Option<String>,
    /// The bucket or container.
    pub bucket: Option<String>,
    /// Below which everything lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Id of the access key, for S3; it is no secret.
    pub access_key: Option<String>,
    /// The role that is taken, for S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<AssumedRole>,
    /// The account, for Azure.
    pub account: Option<String>,
    /// The project, for Google and Keystone v3; the tenant, for Keystone v2.
    pub project: Option<String>,
    /// The user, for Swift.
    pub user: Option<String>,
    /// What proves who asks, in words, such as `access key`.
    pub auth: Option<String>,
    /// Whether it talks TLS.
    pub ssl_enabled: Option<bool>,
    /// Whether the bucket is addressed as `host/bucket`, for S3.
    pub path_style: Option<bool>,
    /// Storage class of new objects, for S3.
    pub storage_class: Option<String>,
    /// The proxy.
    pub proxy: Option<String>,
    /// Whether certificates of further authorities are trusted.
    #[serde(default)]
    pub has_ca_certificates: bool,
    /// Bytes a second that are sent at most.
    pub limit_upload_bytes_per_s: Option<u64>,
    /// Bytes a second that are received at most.
    pub limit_download_bytes_per_s: Option<u64>,
    /// What is sent at most in parts of the day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limit_upload_windows: Vec<LimitWindow>,
    /// What is received at most in parts of the day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limit_download_windows: Vec<LimitWindow>,
    /// The time zone of the parts of the day; UTC without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_time_zone: Option<String>,
    /// Whether what is stored is encrypted.
    pub encryption: bool,
    /// Where the secret lies that opens the store, if the daemon does not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_key_from: Option<SecretRef>,
    /// Where the passphrase lies, if the daemon does not keep the keys that it opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_key_from: Option<SecretRef>,
    /// Whether the store was seen to hold create-if-absent.
    pub conditional_put: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Kilobytes a second written in the last probe or backup; `None` if never measured.
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
    fn what_is_not_known_is_refused_by_name() {
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
