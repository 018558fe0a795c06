//! Backup locations: settings of credentials.

use super::{
    document::{Document, Problem},
    foreign,
    location_fields::{LocationFields, STORK},
    values::view,
};
use crate::{
    commands::credentials::{
        args::CreateArgs,
        create,
        settings::{Settings, is_secret},
        update,
    },
    failure::Failure,
};
use blockd_api::{
    CredentialName, DailyLimit, LimitWindow, SecretRef,
    credential_update::UpdateCredential,
    credentials::{CreateCredential, Credential, CredentialLimits, ProviderKind},
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::path::Path;

/// Hint for errors of the credential builder, which names command line flags.
const FLAGS_HINT: &str = "in a file, a flag is a field of s3Config, azureConfig, googleConfig or swiftConfig, or a file in the directory of \
    secretConfig or storageSecretName, such as secretAccessKey or AWS_SECRET_ACCESS_KEY for --s3-secret-key-file";
/// Fields of a location that describe access.
const ACCESS_FIELDS: &str = "\
    s3Config.accessKeyID s3Config.secretAccessKey s3Config.storageClass s3Config.useIAM s3Config.roleARN \
    s3Config.externalID azureConfig.storageAccountKey azureConfig.sasToken azureConfig.useManagedIdentity \
    googleConfig.accountKey googleConfig.useIAM swiftConfig.key swiftConfig.token proxy encryptionKey secretConfig";
/// Stands for a given secret, which is not shown.
const STORE_KEY: &str = "location.secretConfig";
const PASSPHRASE: &str = "location.encryptionKey";

/// Returns true for the path of a field that describes access.
pub fn is_access(path: &str) -> bool {
    ACCESS_FIELDS.split(' ').any(|field| {
        let rest = path.strip_prefix("location.").and_then(|path| path.strip_prefix(field));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Backup location.
#[derive(Debug)]
pub struct Location {
    settings: Settings,
    encrypted: Option<bool>,
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.view().serialize(serializer)
    }
}

impl Location {
    /// Takes a location, or a storage section, from a document; paths are relative to its directory.
    pub fn take(document: &mut Document, dir: &Path) -> Result<Self, Problem> {
        let (field, fields) = match document.has("spec") {
            true => ("spec", foreign::storage(document, dir)?),
            false => ("location", LocationFields::take(document, STORK, dir)?),
        };
        let (settings, encrypted) = fields.into_settings(document)?;
        let location = Self { settings, encrypted };
        let message = if location.settings.proxy.as_deref().is_some_and(has_user) {
            "proxy: a user or password in the URL would be shown: leave it out"
        } else if location.has_passphrase() && encrypted == Some(false) {
            "encrypted: a location with an encryptionKey is encrypted"
        } else {
            return Ok(location);
        };
        Err(document.problem(field, message))
    }

    fn has_passphrase(&self) -> bool {
        self.gives_passphrase() || self.settings.encryption_passphrase_from.is_some()
    }

    fn gives_passphrase(&self) -> bool {
        self.settings.encryption_passphrase.is_some() || self.settings.encryption_passphrase_file.is_some()
    }

    /// Returns true if the file gives a secret of the store, which cannot be compared with the stored one.
    pub fn gives_store_key(&self) -> bool {
        let given = self.settings.given();
        let mut secrets = given.keys().map(|option| option.trim_end_matches("-file"));
        secrets.any(|secret| is_secret(secret) && secret != "encryption-passphrase")
    }

    /// Returns the paths of secrets in the file for which the daemon has a reference or identity, and these.
    pub fn moved(&self, current: &Credential) -> Vec<(&'static str, String)> {
        let is_identity = current.store.auth.as_deref().is_some_and(|auth| auth.ends_with(" identity"));
        let key = current.store.store_key_from.as_ref().map(ToString::to_string);
        let key = key.or_else(|| is_identity.then(|| "the identity of the machine".to_owned()));
        let key = key.filter(|_| self.gives_store_key()).map(|was| (STORE_KEY, was));
        let passphrase = current.encryption_key_from.as_ref().filter(|_| self.gives_passphrase());
        key.into_iter().chain(passphrase.map(|was| (PASSPHRASE, was.to_string()))).collect()
    }

    /// Returns the request that creates the credential, with its secrets.
    pub fn request(&self, name: &CredentialName) -> Result<CreateCredential, Failure> {
        let args = CreateArgs { name: name.clone(), file: None, settings: self.settings.clone() };
        let request = create::request(args).map_err(|error| match error {
            Failure::Usage { message, .. } => Failure::Usage {
                message: format!("BackupLocation/{name}: {message}"),
                hint: Some(FLAGS_HINT.to_owned()),
            },
            error => error,
        })?;
        if self.encrypted.is_some_and(|wanted| wanted != request.encryption_passphrase.is_some()) {
            return Err(Failure::usage(format!(
                "BackupLocation/{name}: {PASSPHRASE}: an encrypted location needs a passphrase, and only such a location"
            )));
        }
        Ok(request)
    }

    /// Returns the request that sets the access of this location, with its secrets; unset fields stay.
    pub fn update(&self, kept: ProviderKind) -> Result<UpdateCredential, Failure> {
        update::request(&self.settings, kept)
    }

    /// Returns the bandwidth limits: those that are given, and the current ones.
    pub fn limits(&self, current: &Credential) -> CredentialLimits {
        let one = &self.settings;
        let [upload, download] = limits_of(current);
        CredentialLimits {
            upload: one.limit_upload.clone().unwrap_or(upload),
            download: one.limit_download.clone().unwrap_or(download),
            time_zone: one.limit_time_zone.clone().or_else(|| current.limit_time_zone.clone()),
        }
    }

    /// Returns the location without secrets, spelled as the daemon reports it.
    fn view(&self) -> Value {
        let one = &self.settings;
        let host = |endpoint: &Option<String>| {
            let endpoint = endpoint.as_deref()?;
            let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
            Some(host.strip_suffix('/').unwrap_or(host).to_owned())
        };
        let identity = one.use_iam.then_some(true);
        let config = match one.provider {
            Some(ProviderKind::S3) => {
                let scheme = one.s3_endpoint.as_deref().and_then(|url| Some(url.split_once("://")?.0));
                let is_plain = one.s3_disable_ssl || scheme == Some("http");
                json!({
                    "endpoint": host(&one.s3_endpoint), "region": one.s3_region,
                    "accessKeyID": one.s3_access_key, "secretAccessKey": from(&one.s3_secret_key_from),
                    "useIAM": identity, "storageClass": one.s3_storage_class,
                    "disableSSL": is_plain.then_some(true).or((scheme == Some("https")).then_some(false)),
                    "disablePathStyle": one.disable_path_style.then_some(true),
                    "roleARN": one.s3_role_arn, "externalID": one.s3_external_id
                })
            }
            Some(ProviderKind::Azure) => json!({
                "storageAccountName": one.azure_account_name, "endpoint": host(&one.azure_endpoint),
                "storageAccountKey": from(&one.azure_account_key_from),
                "sasToken": from(&one.azure_sas_token_from), "useManagedIdentity": identity
            }),
            Some(ProviderKind::Google) => json!({
                "projectID": one.google_project_id, "endpoint": host(&one.google_endpoint),
                "accountKey": from(&one.google_json_key_from), "useIAM": identity
            }),
            Some(ProviderKind::Swift) => json!({
                "authURL": one.swift_auth_url, "user": one.swift_user, "region": one.swift_region,
                "project": one.swift_project_name, "key": from(&one.swift_key_from),
                "token": from(&one.swift_token_from)
            }),
            _ => Value::Null,
        };
        let provider = one.provider.map(ProviderKind::name).unwrap_or_default();
        view(&json!({
            "type": provider, "path": one.path.as_ref().map(|path| path.display().to_string()).or(one.bucket.clone()),
            "prefix": one.prefix, (format!("{provider}Config")): config, "proxy": one.proxy,
            "limitUpload": one.limit_upload, "limitDownload": one.limit_download,
            "limitTimeZone": one.limit_time_zone, "encryptionKey": from(&one.encryption_passphrase_from),
            "encrypted": self.has_passphrase().then_some(true).or(self.encrypted)
        }))
    }
}

fn from(reference: &Option<SecretRef>) -> Option<Value> {
    reference.as_ref().map(|reference| json!({ "from": reference }))
}

fn limits_of(one: &Credential) -> [DailyLimit; 2] {
    let limit = |otherwise_bytes_per_s, windows: &[LimitWindow]| DailyLimit {
        otherwise_bytes_per_s,
        windows: windows.to_vec(),
    };
    [
        limit(one.limit_upload_bytes_per_s, &one.limit_upload_windows),
        limit(one.limit_download_bytes_per_s, &one.limit_download_windows),
    ]
}

/// Returns a credential of the daemon as a location.
pub fn view_of(one: &Credential) -> Value {
    let key_from = |is_this: bool| from(&one.store.store_key_from).filter(|_| is_this);
    let auth = one.store.auth.as_deref().unwrap_or_default();
    let identity = auth.ends_with(" identity").then_some(true);
    let config = match one.store.provider {
        ProviderKind::S3 => json!({
            "endpoint": one.store.endpoint, "region": one.store.region, "accessKeyID": one.store.s3.access_key,
            "secretAccessKey": key_from(true), "useIAM": identity, "storageClass": one.store.s3.storage_class,
            "disableSSL": one.store.ssl_enabled.map(|is_enabled| !is_enabled),
            "disablePathStyle": one.store.s3.path_style.map(|is_enabled| !is_enabled),
            "roleARN": one.store.s3.role.as_ref().map(|role| &role.arn),
            "externalID": one.store.s3.role.as_ref().and_then(|role| role.external_id.as_ref())
        }),
        ProviderKind::Azure => json!({
            "storageAccountName": one.store.account, "endpoint": one.store.endpoint,
            "storageAccountKey": key_from(auth == "account key"), "sasToken": key_from(auth != "account key"),
            "useManagedIdentity": identity
        }),
        ProviderKind::Google => json!({
            "projectID": one.store.project, "endpoint": one.store.endpoint, "accountKey": key_from(true), "useIAM": identity
        }),
        ProviderKind::Swift => json!({
            "authURL": one.store.endpoint, "user": one.store.user, "region": one.store.region, "project": one.store.project,
            "key": key_from(one.store.user.is_some()), "token": key_from(one.store.user.is_none())
        }),
        _ => Value::Null,
    };
    let path = one.store.path.as_ref().map(|path| path.display().to_string()).or(one.store.bucket.clone());
    let [upload, download] = limits_of(one).map(|limit| (!limit.is_none()).then_some(limit));
    view(&json!({
        "type": one.store.provider, "path": path.unwrap_or_default(), "prefix": one.prefix,
        (format!("{}Config", one.store.provider)): config, "proxy": one.proxy, "limitUpload": upload,
        "limitDownload": download, "limitTimeZone": one.limit_time_zone,
        "encryptionKey": from(&one.encryption_key_from), "encrypted": one.encryption
    }))
}

/// Returns true if a URL has a user, and perhaps a password.
fn has_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}
