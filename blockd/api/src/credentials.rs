//! Credentials: where backups go, and what opens that place.
//!
//! Secrets stand in the request types only; replies have none.

use crate::{CredentialName, Secret};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};
use uuid::Uuid;

/// Body of `POST /v1/credentials`. The daemon proves that the store works before it keeps anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateCredential {
    /// Its name.
    pub name: CredentialName,
    /// Where backups go.
    pub provider: ProviderRequest,
    /// Encrypts all that is stored; without one it is checksummed only.
    #[serde(default)]
    pub encryption_passphrase: Option<Secret>,
}

/// Where backups go, with what is needed to get there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        /// Id of the access key.
        access_key: String,
        /// The secret access key.
        secret_key: Secret,
        /// Talk plain HTTP.
        #[serde(default)]
        disable_ssl: bool,
        /// Address the bucket as `bucket.host`, not as `host/bucket`.
        #[serde(default)]
        disable_path_style: bool,
    },
}

/// Kind of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProviderKind {
    /// A directory.
    Local,
    /// A bucket of an S3 server.
    S3,
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::S3 => "s3",
        })
    }
}

/// Reply to `GET /v1/credentials`, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialList {
    /// The credentials.
    pub credentials: Vec<Credential>,
}

/// A credential without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The server, for S3.
    pub endpoint: Option<String>,
    /// The region, for S3.
    pub region: Option<String>,
    /// The bucket, for S3.
    pub bucket: Option<String>,
    /// Id of the access key, for S3; it is no secret.
    pub access_key: Option<String>,
    /// Whether it talks TLS, for S3.
    pub ssl_enabled: Option<bool>,
    /// Whether the bucket is addressed as `host/bucket`, for S3.
    pub path_style: Option<bool>,
    /// Whether what is stored is encrypted.
    pub encryption: bool,
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
        assert_eq!((secret_key.expose(), *disable_ssl, *disable_path_style), ("hunter2", true, false));
        assert!(!format!("{request:?}").contains("hunter"), "{request:?}");
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<CreateCredential>(&again).unwrap(), request);
        let local = r#"{"name":"n","provider":{"type":"local","path":"/srv"}}"#;
        assert!(serde_json::from_str::<CreateCredential>(local).is_ok());
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
