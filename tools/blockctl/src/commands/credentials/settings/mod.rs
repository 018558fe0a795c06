//! Settings of a store, from options or a file, and the configuration that they make.
//!
//! This file has all options, and the configuration of S3.

mod azure;
mod checks;
mod google;
mod swift;

pub use checks::is_changeable;

use crate::{failure::Failure, secrets::Sources};
use blockd_api::{
    Compression, DailyLimit, Deduplication, Secret, SecretInput, SecretRef,
    credentials::{AssumedRole, GoogleAccess, ProviderKind, S3Access, S3Config, StoreAccess, StoreConfig},
};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{convert::Infallible, path::PathBuf};

/// Default region.
const DEFAULT_REGION: &str = "us-east-1";

/// Settings of a store, on the command line or in a file.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Provider: a directory on the daemon's host, or an object store
    #[arg(long, value_name = "PROVIDER", value_parser = provider_parser())]
    pub provider: Option<ProviderKind>,
    /// Existing bucket or container [default: one named after the cluster, which is created; not for swift]
    #[arg(long, value_name = "BUCKET")]
    pub bucket: Option<String>,
    /// Prefix of all objects, such as hosts/a; part of the location
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Use the instance role or managed identity instead of a key (s3, azure, google)
    #[arg(long)]
    pub use_iam: bool,
    /// Directory for the backups (local)
    #[arg(long, value_name = "DIR", help_heading = "Local")]
    pub path: Option<PathBuf>,
    /// Server, as host or host:port; several of one store, separated by commas, are used in turn (s3)
    #[arg(long, value_name = "HOST:PORT,…", help_heading = "S3")]
    pub s3_endpoint: Option<String>,
    /// Access key [env: AWS_ACCESS_KEY_ID] (s3)
    #[arg(long, value_name = "KEY", help_heading = "S3")]
    pub s3_access_key: Option<String>,
    /// Secret key [env: AWS_SECRET_ACCESS_KEY] (s3)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, conflicts_with = "s3_secret_key_file", help_heading = "S3")]
    pub s3_secret_key: Option<Secret>,
    /// File with the secret key, - for stdin (s3)
    #[arg(long, value_name = "FILE", help_heading = "S3")]
    pub s3_secret_key_file: Option<PathBuf>,
    /// Reference to the secret key: systemd:NAME, file:/PATH or command:/PATH (s3)
    #[arg(long, value_name = "REF", conflicts_with_all = ["s3_secret_key", "s3_secret_key_file"], help_heading = "S3")]
    pub s3_secret_key_from: Option<SecretRef>,
    /// Region [default: us-east-1] (s3)
    #[arg(long, value_name = "REGION", help_heading = "S3")]
    pub s3_region: Option<String>,
    /// Role to assume, such as arn:aws:iam::123456789012:role/backup (s3)
    #[arg(long, value_name = "ARN", help_heading = "S3")]
    pub s3_role_arn: Option<String>,
    /// STS external ID for AssumeRole (s3)
    #[arg(long, value_name = "ID", requires = "s3_role_arn", help_heading = "S3")]
    pub s3_external_id: Option<String>,
    /// STS endpoint, if not Amazon's or the bucket's (s3)
    #[arg(long, value_name = "HOST:PORT", requires = "s3_role_arn", help_heading = "S3")]
    pub s3_sts_endpoint: Option<String>,
    /// Storage class of new objects, such as STANDARD_IA (s3)
    #[arg(long, value_name = "CLASS", help_heading = "S3")]
    pub s3_storage_class: Option<String>,
    /// Use plain HTTP (s3)
    #[arg(long, help_heading = "S3")]
    pub s3_disable_ssl: bool,
    /// Address the bucket as BUCKET.HOST, not HOST/BUCKET (s3)
    #[arg(long, help_heading = "S3")]
    pub disable_path_style: bool,
    /// Storage account [env: AZURE_STORAGE_ACCOUNT] (azure)
    #[arg(long, value_name = "NAME", help_heading = "Azure")]
    pub azure_account_name: Option<String>,
    /// Account key [env: AZURE_STORAGE_KEY] (azure)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, help_heading = "Azure")]
    pub azure_account_key: Option<Secret>,
    /// File with the account key, - for stdin (azure)
    #[arg(long, value_name = "FILE", conflicts_with = "azure_account_key", help_heading = "Azure")]
    pub azure_account_key_file: Option<PathBuf>,
    /// Reference to the account key (azure)
    #[arg(long, value_name = "REF", conflicts_with_all = ["azure_account_key", "azure_account_key_file"], help_heading = "Azure")]
    pub azure_account_key_from: Option<SecretRef>,
    /// Shared access signature: the query of a SAS URL [env: AZURE_STORAGE_SAS_TOKEN] (azure)
    #[arg(long, value_name = "QUERY", value_parser = parse_secret, help_heading = "Azure")]
    pub azure_sas_token: Option<Secret>,
    /// File with the shared access signature, - for stdin (azure)
    #[arg(long, value_name = "FILE", conflicts_with = "azure_sas_token", help_heading = "Azure")]
    pub azure_sas_token_file: Option<PathBuf>,
    /// Reference to the shared access signature (azure)
    #[arg(long, value_name = "REF", conflicts_with_all = ["azure_sas_token", "azure_sas_token_file"], help_heading = "Azure")]
    pub azure_sas_token_from: Option<SecretRef>,
    /// Client id of the managed identity, with --use-iam (azure)
    #[arg(long, value_name = "ID", help_heading = "Azure")]
    pub azure_client_id: Option<String>,
    /// Custom endpoint, URL or host:port (azure)
    #[arg(long, value_name = "HOST:PORT", help_heading = "Azure")]
    pub azure_endpoint: Option<String>,
    /// Project (google)
    #[arg(long, value_name = "ID", help_heading = "Google")]
    pub google_project_id: Option<String>,
    /// Key of a service account, only in files.
    #[arg(skip)]
    pub google_json_key: Option<Secret>,
    /// Key file of a service account, - for stdin [env: GOOGLE_APPLICATION_CREDENTIALS] (google)
    #[arg(long, value_name = "FILE", help_heading = "Google")]
    pub google_json_key_file: Option<PathBuf>,
    /// Reference to the service account key, JSON (google)
    #[arg(long, value_name = "REF", conflicts_with_all = ["google_json_key_file"], help_heading = "Google")]
    pub google_json_key_from: Option<SecretRef>,
    /// Custom endpoint, URL or host:port (google)
    #[arg(long, value_name = "HOST:PORT", help_heading = "Google")]
    pub google_endpoint: Option<String>,
    /// Version of the auth service: 1, 2 or 3 [default: by the other options] (swift)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3), help_heading = "Swift")]
    pub swift_auth_version: Option<u8>,
    /// URL of the auth service [env: ST_AUTH, OS_AUTH_URL] (swift)
    #[arg(long, value_name = "URL", help_heading = "Swift")]
    pub swift_auth_url: Option<String>,
    /// User [env: ST_USER, OS_USERNAME] (swift)
    #[arg(long, value_name = "USER", help_heading = "Swift")]
    pub swift_user: Option<String>,
    /// Key or password of the user [env: ST_KEY, OS_PASSWORD] (swift)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, help_heading = "Swift")]
    pub swift_key: Option<Secret>,
    /// File with the key or password, - for stdin (swift)
    #[arg(long, value_name = "FILE", conflicts_with = "swift_key", help_heading = "Swift")]
    pub swift_key_file: Option<PathBuf>,
    /// Reference to the key or password (swift)
    #[arg(long, value_name = "REF", conflicts_with_all = ["swift_key", "swift_key_file"], help_heading = "Swift")]
    pub swift_key_from: Option<SecretRef>,
    /// Region in Keystone's catalog [env: OS_REGION_NAME] (swift)
    #[arg(long, value_name = "REGION", help_heading = "Swift")]
    pub swift_region: Option<String>,
    /// Tenant, by name, for Keystone v2 [env: OS_TENANT_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_tenant_name: Option<String>,
    /// Tenant, by id, for Keystone v2 [env: OS_TENANT_ID] (swift)
    #[arg(long, value_name = "ID", help_heading = "Swift")]
    pub swift_tenant_id: Option<String>,
    /// Domain of the user, for Keystone v3 [env: OS_USER_DOMAIN_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_user_domain_name: Option<String>,
    /// Project, for Keystone v3 [env: OS_PROJECT_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_project_name: Option<String>,
    /// Domain of the project, for Keystone v3 [env: OS_PROJECT_DOMAIN_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_project_domain_name: Option<String>,
    /// URL of the account, with a token [env: OS_STORAGE_URL] (swift)
    #[arg(long, value_name = "URL", help_heading = "Swift")]
    pub swift_storage_url: Option<String>,
    /// Token, valid until it expires [env: OS_AUTH_TOKEN] (swift)
    #[arg(long, value_name = "TOKEN", value_parser = parse_secret, help_heading = "Swift")]
    pub swift_token: Option<Secret>,
    /// File with the token, - for stdin (swift)
    #[arg(long, value_name = "FILE", conflicts_with = "swift_token", help_heading = "Swift")]
    pub swift_token_file: Option<PathBuf>,
    /// Reference to the token (swift)
    #[arg(long, value_name = "REF", conflicts_with_all = ["swift_token", "swift_token_file"], help_heading = "Swift")]
    pub swift_token_from: Option<SecretRef>,
    /// PEM file of additional CA certificates
    #[arg(long, value_name = "FILE", value_parser = parse_path, help_heading = "Connection")]
    pub ca_certificate: Option<PathBuf>,
    /// Proxy, http://HOST:PORT without a password [default: the daemon's environment]
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub proxy: Option<String>,
    /// Use the proxy of HTTPS_PROXY in this environment
    #[arg(long, conflicts_with = "proxy", help_heading = "Connection")]
    pub use_proxy: bool,
    /// Upload limit of all tasks in bytes per second: 20MiB, or 20MiB@08:00-18:00,100MiB by time of day
    #[arg(long, value_name = "LIMIT", help_heading = "Connection")]
    pub limit_upload: Option<DailyLimit>,
    /// Download limit of all tasks in bytes per second
    #[arg(long, value_name = "LIMIT", help_heading = "Connection")]
    pub limit_download: Option<DailyLimit>,
    /// Time zone of the limits, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", help_heading = "Connection")]
    pub limit_time_zone: Option<String>,
    /// Compression of backups: auto, none, lz4 or zstd:1 to zstd:19 [default: auto]
    #[arg(long, value_name = "COMPRESSION", help_heading = "Backups")]
    pub compression: Option<Compression>,
    /// Stored blocks that backups share: off, volume or repository [default: repository]
    #[arg(long, value_name = "SCOPE", help_heading = "Backups")]
    pub deduplicate: Option<Deduplication>,
    /// Passphrase that encrypts the backups [env: BLOCKD_ENCRYPTION_PASSPHRASE]
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = parse_secret,
        conflicts_with = "encryption_passphrase_file",
        help_heading = "Encryption"
    )]
    pub encryption_passphrase: Option<Secret>,
    /// File with the passphrase, - for stdin
    #[arg(long, value_name = "FILE", help_heading = "Encryption")]
    pub encryption_passphrase_file: Option<PathBuf>,
    /// Reference to the passphrase; its keys are not stored on the host either
    #[arg(long, value_name = "REF", conflicts_with_all = ["encryption_passphrase", "encryption_passphrase_file"], help_heading = "Encryption")]
    pub encryption_passphrase_from: Option<SecretRef>,
}

/// Variable with the passphrase that encrypts the backups.
pub const PASSPHRASE: &str = "BLOCKD_ENCRYPTION_PASSPHRASE";

/// Settings with secrets; each has a variant `…-file` and `…-from`.
const SECRETS: [&str; 7] = [
    "encryption-passphrase",
    "s3-secret-key",
    "azure-account-key",
    "azure-sas-token",
    "google-json-key",
    "swift-key",
    "swift-token",
];

/// Returns true for a setting with a secret.
pub fn is_secret(setting: &str) -> bool {
    SECRETS.contains(&setting)
}

impl Settings {
    /// Returns the given settings by option.
    pub fn given(&self) -> Map<String, Value> {
        let Ok(Value::Object(all)) = serde_json::to_value(self) else { return Map::new() };
        all.into_iter().filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false))).collect()
    }

    /// Fills missing settings from a file. A secret with a source on the command line ignores other sources
    /// in the file.
    ///
    /// # Errors
    /// None: both are settings.
    pub fn completed(&self, file: &Self) -> Result<Self, Failure> {
        let (given, mut all) = (self.given(), file.given());
        for secret in SECRETS {
            let sources = ["", "-file", "-from"].map(|form| format!("{secret}{form}"));
            if sources.iter().any(|source| given.contains_key(source)) {
                sources.iter().for_each(|source| drop(all.remove(source)));
            }
        }
        all.extend(given);
        serde_json::from_value(all.into()).map_err(|_| Failure::usage("invalid settings"))
    }
}

pub fn parse_secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

/// Parses a path; unlike that of clap, it can be empty.
fn parse_path(text: &str) -> Result<PathBuf, Infallible> {
    Ok(text.into())
}

fn provider_parser() -> impl TypedValueParser<Value = ProviderKind> {
    let names = ProviderKind::ALL.map(ProviderKind::name);
    PossibleValuesParser::new(names).map(|name| {
        // The parser has accepted only these names.
        ProviderKind::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or_default()
    })
}

/// Source of settings that are not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defaults {
    /// The environment.
    Environment,
    /// None: a leftover variable must not change a credential.
    None,
}

impl Defaults {
    /// Returns a variable that is read.
    fn variable(self, name: &'static str) -> &'static str {
        if self == Self::Environment { name } else { "" }
    }

    /// Returns the given value, or the first non-empty variable.
    fn or_variable(self, given: &Option<String>, names: &[&str]) -> Option<String> {
        match self {
            Self::None => given.clone(),
            Self::Environment => given.clone().filter(|value| !value.is_empty()).or_else(|| variable(names)),
        }
    }
}

/// Returns the first non-empty variable.
pub fn variable(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

fn needs(provider: &str, what: &str) -> Failure {
    Failure::usage(format!("--provider {provider} needs {what}"))
}

impl Settings {
    /// Returns the configuration of a new credential, and reads secrets.
    ///
    /// # Errors
    /// A setting is missing or contradictory, or a file cannot be read.
    pub fn config(&self, provider: ProviderKind) -> Result<StoreConfig, Failure> {
        Ok(match provider {
            ProviderKind::Local => self.local_config()?,
            ProviderKind::S3 => StoreConfig::S3(self.s3_config()?),
            ProviderKind::Azure => StoreConfig::Azure(self.azure_config()?),
            ProviderKind::Google => StoreConfig::Google(self.google_config()?),
            ProviderKind::Swift => StoreConfig::Swift(self.swift_config()?),
        })
    }

    /// Returns the given changeable settings of a provider, and reads secrets.
    ///
    /// # Errors
    /// Settings are contradictory, or a file cannot be read.
    pub fn access(&self, provider: ProviderKind) -> Result<Option<StoreAccess>, Failure> {
        let given = |access, is_given: bool| is_given.then_some(access);
        Ok(match provider {
            ProviderKind::Local => None,
            ProviderKind::S3 => {
                let access = self.s3_access(Defaults::None)?;
                let is_given = access != S3Access::default();
                given(StoreAccess::S3(access), is_given)
            }
            ProviderKind::Azure => self.azure_access(Defaults::None)?.map(StoreAccess::Azure),
            ProviderKind::Google => {
                let access = self.google_access(Defaults::None)?;
                let is_given = access != GoogleAccess::default();
                given(StoreAccess::Google(access), is_given)
            }
            ProviderKind::Swift => self.swift_access()?.map(StoreAccess::Swift),
        })
    }

    fn local_config(&self) -> Result<StoreConfig, Failure> {
        let path = self.path.as_ref().ok_or_else(|| Failure::usage("--provider local needs --path DIR"))?;
        // The daemon has another working directory.
        let absolute = std::path::absolute(path)
            .map_err(|error| Failure::usage(format!("--path {}: {error}", path.display())))?;
        if absolute.to_str().is_none() {
            return Err(Failure::usage(format!("--path {} is not UTF-8", absolute.display())));
        }
        Ok(StoreConfig::Local { path: absolute })
    }

    fn s3_config(&self) -> Result<S3Config, Failure> {
        let needs = |what: &str| needs("s3", what);
        let endpoint = self.s3_endpoint.as_deref().ok_or_else(|| needs("--s3-endpoint HOST:PORT"))?;
        let (endpoint, disable_ssl) = servers("--s3-endpoint", endpoint, self.s3_disable_ssl)?;
        // Without a name, the daemon creates one named after its cluster.
        let bucket = self.bucket.clone().unwrap_or_default();
        let access = self.s3_access(Defaults::Environment)?;
        if !access.use_iam && access.access_key.is_none() {
            return Err(needs("--s3-access-key KEY, or AWS_ACCESS_KEY_ID in the environment, or --use-iam"));
        }
        if !access.use_iam && access.secret_key.is_none() {
            return Err(needs(
                "--s3-secret-key-file FILE, --s3-secret-key-from REF, --s3-secret-key KEY, or AWS_SECRET_ACCESS_KEY in the environment",
            ));
        }
        Ok(S3Config {
            endpoint,
            region: self.s3_region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned()),
            bucket,
            disable_ssl,
            disable_path_style: self.disable_path_style,
            access,
        })
    }

    fn s3_access(&self, defaults: Defaults) -> Result<S3Access, Failure> {
        // The instance identity replaces a key.
        let defaults = if self.use_iam { Defaults::None } else { defaults };
        let secret_key = Sources::new(
            "S3 secret key",
            &self.s3_secret_key,
            &self.s3_secret_key_file,
            &self.s3_secret_key_from,
            defaults.variable("AWS_SECRET_ACCESS_KEY"),
        )
        .input()?;
        let access_key = defaults.or_variable(&self.s3_access_key, &["AWS_ACCESS_KEY_ID"]);
        if self.use_iam && (access_key.is_some() || secret_key.is_some()) {
            return Err(Failure::usage("--use-iam and an access key are both given: drop one of them"));
        }
        let role = self.s3_role_arn.clone().map(|arn| AssumedRole {
            arn,
            external_id: self.s3_external_id.clone(),
            endpoint: self.s3_sts_endpoint.clone(),
        });
        // Dependencies between settings are not checked in files.
        if role.is_none() && (self.s3_external_id.is_some() || self.s3_sts_endpoint.is_some()) {
            return Err(Failure::usage(
                "--s3-external-id and --s3-sts-endpoint are for a role: give --s3-role-arn",
            ));
        }
        let storage_class = self.s3_storage_class.clone();
        Ok(S3Access { access_key, secret_key, use_iam: self.use_iam, role, storage_class })
    }

    /// Returns the passphrase of the repository.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn passphrase(&self, defaults: Defaults) -> Result<Option<SecretInput>, Failure> {
        Sources::new(
            "encryption passphrase",
            &self.encryption_passphrase,
            &self.encryption_passphrase_file,
            &self.encryption_passphrase_from,
            defaults.variable(PASSPHRASE),
        )
        .input()
    }
}

/// Parses a custom endpoint.
fn own_endpoint(flag: &str, given: Option<&String>) -> Result<(Option<String>, bool), Failure> {
    match given {
        Some(given) => {
            let (endpoint, disable_ssl) = plain_endpoint(flag, given, false)?;
            Ok((Some(endpoint), disable_ssl))
        }
        None => Ok((None, false)),
    }
}

/// Returns servers separated by commas, as [`plain_endpoint`] does for each.
fn servers(flag: &str, given: &str, disable_ssl: bool) -> Result<(String, bool), Failure> {
    let each: Vec<_> = given
        .split(',')
        .map(|server| plain_endpoint(flag, server.trim(), disable_ssl))
        .collect::<Result<_, _>>()?;
    let disables_ssl = each.iter().any(|(_, disable_ssl)| *disable_ssl);
    if each.iter().any(|(_, disable_ssl)| *disable_ssl != disables_ssl) {
        return Err(Failure::usage(format!("{flag} has servers with and without TLS: use one of them")));
    }
    let hosts: Vec<String> = each.into_iter().map(|(host, _)| host).collect();
    Ok((hosts.join(","), disables_ssl))
}

/// Returns the endpoint as `host:port` and whether it uses plain HTTP, by scheme or option.
fn plain_endpoint(flag: &str, given: &str, disable_ssl: bool) -> Result<(String, bool), Failure> {
    let wrong = |why: &str| Failure::usage(format!("{flag} {why}: expected HOST or HOST:PORT"));
    let (host, disable_ssl) = match given.split_once("://") {
        Some(("http", host)) => (host, true),
        Some(("https", _)) if disable_ssl => return Err(wrong("contradicts --s3-disable-ssl")),
        Some(("https", host)) => (host, false),
        Some(_) => return Err(wrong("has an unknown scheme")),
        None => (given, disable_ssl),
    };
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.is_empty() {
        return Err(wrong("has no host"));
    }
    if host.contains(',') {
        return Err(wrong("names several servers"));
    }
    if host
        .contains(|c: char| matches!(c, '/' | '?' | '#' | '@' | '\\') || c.is_whitespace() || c.is_control())
    {
        return Err(wrong("has more than a host and a port"));
    }
    Ok((host.to_owned(), disable_ssl))
}
