//! Fields of backup locations, as Stork's custom resource writes them.

use super::{
    foreign::read_secret_dir,
    values::{SecretSource, absolute},
};
use crate::cli::credentials::{Provider, Settings};
use blockd_api::{DailyLimit, Secret, SecretRef};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Names of providers.
#[derive(Deserialize)]
#[serde(remote = "Provider", rename_all = "lowercase")]
enum StoreType {
    #[serde(alias = "nfs")]
    Local,
    S3,
    Azure,
    #[serde(alias = "gcs")]
    Google,
    Swift,
}

/// Section of an S3 bucket.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct S3Config {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    #[serde(rename = "accessKeyID")]
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<SecretSource>,
    #[serde(rename = "useIAM")]
    pub use_iam: bool,
    #[serde(rename = "disableSSL")]
    pub disable_ssl: bool,
    pub disable_path_style: bool,
    pub storage_class: Option<String>,
    #[serde(rename = "roleARN")]
    pub role_arn: Option<String>,
    #[serde(rename = "externalID")]
    pub external_id: Option<String>,
    pub sts_endpoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AzureConfig {
    storage_account_name: Option<String>,
    storage_account_key: Option<SecretSource>,
    sas_token: Option<SecretSource>,
    #[serde(default)]
    use_managed_identity: bool,
    endpoint: Option<String>,
    #[serde(rename = "clientID")]
    client_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GoogleConfig {
    #[serde(rename = "projectID")]
    project_id: Option<String>,
    account_key: Option<SecretSource>,
    #[serde(rename = "useIAM", default)]
    use_iam: bool,
    endpoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SwiftConfig {
    auth_version: Option<u8>,
    #[serde(rename = "authURL")]
    auth_url: Option<String>,
    user: Option<String>,
    key: Option<SecretSource>,
    token: Option<SecretSource>,
    region: Option<String>,
    project: Option<String>,
    tenant_name: Option<String>,
    #[serde(rename = "tenantID")]
    tenant_id: Option<String>,
    user_domain_name: Option<String>,
    project_domain_name: Option<String>,
    #[serde(rename = "storageURL")]
    storage_url: Option<String>,
}

/// Backup location as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocationSpec {
    #[serde(rename = "type", with = "StoreType")]
    pub provider: Provider,
    pub path: String,
    pub prefix: Option<String>,
    /// Backups of other hosts are always visible.
    #[serde(rename = "sync")]
    pub _sync: Option<bool>,
    pub secret_config: Option<PathBuf>,
    pub s3_config: Option<S3Config>,
    pub azure_config: Option<AzureConfig>,
    pub google_config: Option<GoogleConfig>,
    pub swift_config: Option<SwiftConfig>,
    pub proxy: Option<String>,
    pub ca_certificate: Option<PathBuf>,
    pub limit_upload: Option<DailyLimit>,
    pub limit_download: Option<DailyLimit>,
    pub limit_time_zone: Option<String>,
    pub encrypted: Option<bool>,
    pub encryption_key: Option<SecretSource>,
}

impl LocationSpec {
    /// Checks the fields that depend on each other.
    fn check(&self) -> Result<(), String> {
        let given = [
            (Provider::S3, "s3Config", self.s3_config.is_some()),
            (Provider::Azure, "azureConfig", self.azure_config.is_some()),
            (Provider::Google, "googleConfig", self.google_config.is_some()),
            (Provider::Swift, "swiftConfig", self.swift_config.is_some()),
        ];
        let is_foreign =
            |(provider, _, is_given): &&(Provider, &str, bool)| *is_given && *provider != self.provider;
        if let Some((_, name, _)) = given.iter().find(is_foreign) {
            return Err(format!("{name} does not belong to a location of this type"));
        }
        let account_key = self.google_config.as_ref().and_then(|config| config.account_key.as_ref());
        let message =
            if self.provider == Provider::S3 && self.s3_config.is_none() && self.secret_config.is_none() {
                "missing field `s3Config`"
            } else if matches!(account_key, Some(SecretSource::Value(_) | SecretSource::Variable(_))) {
                "googleConfig.accountKey: give `file: PATH`, or a reference such as `from: command:PATH`"
            } else if self.proxy.as_deref().is_some_and(has_user) {
                "proxy: a user or password in the URL would be shown: leave it out"
            } else if self.encryption_key.is_some() && self.encrypted == Some(false) {
                "encrypted: a location with an encryptionKey is encrypted"
            } else {
                return Ok(());
            };
        Err(message.to_owned())
    }

    /// Converts the location to settings; paths are relative to a directory.
    ///
    /// # Errors
    /// Field and cause.
    pub fn into_settings(self, dir: &Path) -> Result<Settings, String> {
        self.check()?;
        let prefix = self.prefix.map(|prefix| prefix.trim_matches('/').to_owned());
        let mut settings = Settings {
            provider: Some(self.provider),
            prefix: prefix.filter(|prefix| !prefix.is_empty()),
            proxy: self.proxy,
            ca_certificate: self.ca_certificate.map(|path| absolute(dir, &path)),
            limit_upload: self.limit_upload,
            limit_download: self.limit_download,
            limit_time_zone: self.limit_time_zone,
            ..Settings::default()
        };
        match self.provider {
            Provider::Local => settings.path = Some(absolute(dir, Path::new(&self.path))),
            _ => settings.bucket = Some(self.path),
        }
        if let Some(secret) = self.secret_config {
            read_secret_dir(&mut settings, &absolute(dir, &secret))?;
        }
        let one = &mut settings;
        if let Some(config) = self.s3_config {
            config.put(dir, one)?;
        }
        if let Some(config) = self.azure_config {
            config.put(dir, one)?;
        }
        if let Some(config) = self.google_config {
            config.put(dir, one)?;
        }
        if let Some(config) = self.swift_config {
            config.put(dir, one)?;
        }
        let slots = (
            &mut one.encryption_passphrase,
            &mut one.encryption_passphrase_file,
            &mut one.encryption_passphrase_from,
        );
        put_secret(dir, "encryptionKey", self.encryption_key, slots)?;
        Ok(settings)
    }
}

impl S3Config {
    fn put(self, dir: &Path, one: &mut Settings) -> Result<(), String> {
        put(&mut one.s3_endpoint, self.endpoint);
        put(&mut one.s3_region, self.region);
        put(&mut one.s3_access_key, self.access_key_id);
        one.s3_disable_ssl |= self.disable_ssl;
        one.disable_path_style = self.disable_path_style;
        one.s3_storage_class = self.storage_class;
        one.use_iam = self.use_iam;
        (one.s3_role_arn, one.s3_external_id) = (self.role_arn, self.external_id);
        one.s3_sts_endpoint = self.sts_endpoint;
        let slots = (&mut one.s3_secret_key, &mut one.s3_secret_key_file, &mut one.s3_secret_key_from);
        put_secret(dir, "s3Config.secretAccessKey", self.secret_access_key, slots)
    }
}

impl AzureConfig {
    fn put(self, dir: &Path, one: &mut Settings) -> Result<(), String> {
        put(&mut one.azure_account_name, self.storage_account_name);
        (one.azure_endpoint, one.azure_client_id) = (self.endpoint, self.client_id);
        one.use_iam = self.use_managed_identity;
        let slots =
            (&mut one.azure_account_key, &mut one.azure_account_key_file, &mut one.azure_account_key_from);
        put_secret(dir, "azureConfig.storageAccountKey", self.storage_account_key, slots)?;
        let slots = (&mut one.azure_sas_token, &mut one.azure_sas_token_file, &mut one.azure_sas_token_from);
        put_secret(dir, "azureConfig.sasToken", self.sas_token, slots)
    }
}

impl GoogleConfig {
    fn put(self, dir: &Path, one: &mut Settings) -> Result<(), String> {
        put(&mut one.google_project_id, self.project_id);
        one.google_endpoint = self.endpoint;
        one.use_iam = self.use_iam;
        let slots = (&mut None, &mut one.google_json_key_file, &mut one.google_json_key_from);
        put_secret(dir, "googleConfig.accountKey", self.account_key, slots)
    }
}

impl SwiftConfig {
    fn put(self, dir: &Path, one: &mut Settings) -> Result<(), String> {
        one.swift_auth_version = self.auth_version;
        put(&mut one.swift_auth_url, self.auth_url);
        put(&mut one.swift_user, self.user);
        put(&mut one.swift_region, self.region);
        put(&mut one.swift_project_name, self.project);
        put(&mut one.swift_tenant_name, self.tenant_name);
        put(&mut one.swift_tenant_id, self.tenant_id);
        put(&mut one.swift_user_domain_name, self.user_domain_name);
        put(&mut one.swift_project_domain_name, self.project_domain_name);
        put(&mut one.swift_storage_url, self.storage_url);
        let slots = (&mut one.swift_key, &mut one.swift_key_file, &mut one.swift_key_from);
        put_secret(dir, "swiftConfig.key", self.key, slots)?;
        let slots = (&mut one.swift_token, &mut one.swift_token_file, &mut one.swift_token_from);
        put_secret(dir, "swiftConfig.token", self.token, slots)
    }
}

/// Replaces a setting, which a secret directory may have set, by a given field.
fn put<T>(slot: &mut Option<T>, given: Option<T>) {
    if given.is_some() {
        *slot = given;
    }
}

type SecretSlots<'a> = (&'a mut Option<Secret>, &'a mut Option<PathBuf>, &'a mut Option<SecretRef>);

/// Puts a secret into the setting of its source.
fn put_secret(
    dir: &Path,
    field: &str,
    secret: Option<SecretSource>,
    (value, file, from): SecretSlots<'_>,
) -> Result<(), String> {
    match secret {
        Some(SecretSource::Value(secret)) => *value = Some(secret),
        Some(SecretSource::File(path)) => *file = Some(absolute(dir, &path)),
        Some(SecretSource::Reference(reference)) => *from = Some(reference),
        Some(SecretSource::Variable(name)) => match std::env::var(&name) {
            Ok(text) if !text.is_empty() => *value = Some(Secret::new(text)),
            _ => return Err(format!("{field}: the environment variable {name} is empty or unset")),
        },
        None => {}
    }
    Ok(())
}

/// Returns true if a URL has a user, and perhaps a password.
fn has_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}
