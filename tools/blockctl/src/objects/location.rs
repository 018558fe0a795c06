//! Backup locations: credentials, as Stork's custom resource writes them, or with the storage section of
//! KubeDB's snapshots.

use super::values::{SecretSource, absolute};
use crate::{
    cli::credentials::{CreateArgs, Provider, Settings},
    commands::stores,
    failure::Failure,
    secrets::read_file,
};
use blockd_api::{
    CredentialName, DailyLimit, LimitWindow, Secret, SecretRef,
    credentials::{CreateCredential, Credential, ProviderKind},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Hint for errors of the credential builder, which names command line flags.
const FLAGS_HINT: &str = "in a file, a flag is a field of s3Config, azureConfig, googleConfig or swiftConfig, or a file in the directory of \
    secretConfig or storageSecretName, such as secretAccessKey or AWS_SECRET_ACCESS_KEY for --s3-secret-key-file";

/// Kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoreType {
    #[serde(alias = "nfs")]
    Local,
    S3,
    Azure,
    #[serde(alias = "gcs")]
    Google,
    Swift,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct S3Config {
    endpoint: Option<String>,
    region: Option<String>,
    #[serde(rename = "accessKeyID")]
    access_key_id: Option<String>,
    secret_access_key: Option<SecretSource>,
    #[serde(rename = "useIAM")]
    use_iam: Option<bool>,
    #[serde(rename = "disableSSL")]
    disable_ssl: Option<bool>,
    disable_path_style: Option<bool>,
    storage_class: Option<String>,
    #[serde(rename = "roleARN")]
    role_arn: Option<String>,
    #[serde(rename = "externalID")]
    external_id: Option<String>,
    #[serde(skip_serializing)]
    sts_endpoint: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AzureConfig {
    storage_account_name: Option<String>,
    storage_account_key: Option<SecretSource>,
    sas_token: Option<SecretSource>,
    use_managed_identity: Option<bool>,
    endpoint: Option<String>,
    #[serde(rename = "clientID", skip_serializing)]
    client_id: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GoogleConfig {
    #[serde(rename = "projectID")]
    project_id: Option<String>,
    account_key: Option<SecretSource>,
    #[serde(rename = "useIAM")]
    use_iam: Option<bool>,
    endpoint: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SwiftConfig {
    #[serde(skip_serializing)]
    auth_version: Option<u8>,
    #[serde(rename = "authURL")]
    auth_url: Option<String>,
    user: Option<String>,
    key: Option<SecretSource>,
    token: Option<SecretSource>,
    region: Option<String>,
    project: Option<String>,
    #[serde(skip_serializing)]
    tenant_name: Option<String>,
    #[serde(rename = "tenantID", skip_serializing)]
    tenant_id: Option<String>,
    #[serde(skip_serializing)]
    user_domain_name: Option<String>,
    #[serde(skip_serializing)]
    project_domain_name: Option<String>,
    #[serde(rename = "storageURL", skip_serializing)]
    storage_url: Option<String>,
}

/// Backup location as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocationSpec {
    #[serde(rename = "type")]
    kind: StoreType,
    path: String,
    prefix: Option<String>,
    /// Backups of other hosts are always visible.
    #[serde(skip_serializing)]
    sync: Option<bool>,
    #[serde(skip_serializing)]
    secret_config: Option<PathBuf>,
    s3_config: Option<S3Config>,
    azure_config: Option<AzureConfig>,
    google_config: Option<GoogleConfig>,
    swift_config: Option<SwiftConfig>,
    proxy: Option<String>,
    #[serde(skip_serializing)]
    ca_certificate: Option<PathBuf>,
    limit_upload: Option<DailyLimit>,
    limit_download: Option<DailyLimit>,
    limit_time_zone: Option<String>,
    encrypted: Option<bool>,
    encryption_key: Option<SecretSource>,
}

/// Bucket, container or directory of a storage section.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bucket {
    #[serde(alias = "container", alias = "path")]
    bucket: String,
    endpoint: Option<String>,
    region: Option<String>,
    prefix: Option<String>,
    volume_source: Option<Value>,
}

/// Storage section of KubeDB's snapshots.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageSpec {
    storage_secret_name: Option<PathBuf>,
    s3: Option<Bucket>,
    gcs: Option<Bucket>,
    azure: Option<Bucket>,
    swift: Option<Bucket>,
    local: Option<Bucket>,
    database_name: Option<Value>,
    resources: Option<Value>,
    proxy: Option<String>,
    ca_certificate: Option<PathBuf>,
    limit_upload: Option<DailyLimit>,
    limit_download: Option<DailyLimit>,
    limit_time_zone: Option<String>,
    encryption_key: Option<SecretSource>,
}

impl StorageSpec {
    /// Returns the fields without a meaning outside of a cluster, and the reasons.
    pub fn ignored(&self) -> Vec<(&'static str, &'static str)> {
        let has_volume_source = self.local.as_ref().is_some_and(|local| local.volume_source.is_some());
        let fields = [
            (
                "databaseName",
                self.database_name.is_some(),
                "a location is for all volumes; a VolumeBackup names one",
            ),
            (
                "resources",
                self.resources.is_some(),
                "blockd makes no pods; see limitUpload and limitDownload",
            ),
            ("local.volumeSource", has_volume_source, "the directory is one of this host, and must exist"),
        ];
        fields.into_iter().filter_map(|(name, is_given, reason)| is_given.then_some((name, reason))).collect()
    }

    /// Converts the section to a location.
    ///
    /// # Errors
    /// Not exactly one store is given.
    pub fn into_location(self) -> Result<LocationSpec, String> {
        let stores = [
            (StoreType::S3, self.s3),
            (StoreType::Google, self.gcs),
            (StoreType::Azure, self.azure),
            (StoreType::Swift, self.swift),
            (StoreType::Local, self.local),
        ];
        let mut given = stores.into_iter().filter_map(|(kind, bucket)| Some((kind, bucket?)));
        let (Some((kind, bucket)), None) = (given.next(), given.next()) else {
            return Err("one of `s3`, `gcs`, `azure`, `swift` and `local` is expected".to_owned());
        };
        if kind == StoreType::S3 && bucket.endpoint.is_none() {
            return Err("s3: missing field `endpoint`".to_owned());
        }
        let s3 = S3Config { endpoint: bucket.endpoint, region: bucket.region, ..S3Config::default() };
        Ok(LocationSpec {
            kind,
            path: bucket.bucket,
            prefix: bucket.prefix,
            sync: None,
            secret_config: self.storage_secret_name,
            s3_config: (kind == StoreType::S3).then_some(s3),
            azure_config: None,
            google_config: None,
            swift_config: None,
            proxy: self.proxy,
            ca_certificate: self.ca_certificate,
            limit_upload: self.limit_upload,
            limit_download: self.limit_download,
            limit_time_zone: self.limit_time_zone,
            encrypted: None,
            encryption_key: self.encryption_key,
        })
    }
}

impl LocationSpec {
    /// Converts a credential of the daemon.
    pub fn of(one: &Credential) -> Self {
        let key_from =
            |is_this: bool| one.store_key_from.clone().filter(|_| is_this).map(SecretSource::Reference);
        let auth = one.auth.as_deref().unwrap_or_default();
        let has_identity = auth.ends_with(" identity").then_some(true);
        let limit = |otherwise_bytes_per_s: Option<u64>, windows: &[LimitWindow]| {
            let limit = DailyLimit { otherwise_bytes_per_s, windows: windows.to_vec() };
            (!limit.is_none()).then_some(limit)
        };
        let path = one.path.as_ref().map(|path| path.display().to_string());
        let (endpoint, region) = (one.endpoint.clone(), one.region.clone());
        let mut spec = Self {
            kind: StoreType::Local,
            path: path.or_else(|| one.bucket.clone()).unwrap_or_default(),
            prefix: one.prefix.clone(),
            sync: None,
            secret_config: None,
            s3_config: None,
            azure_config: None,
            google_config: None,
            swift_config: None,
            proxy: one.proxy.clone(),
            ca_certificate: None,
            limit_upload: limit(one.limit_upload_bytes_per_s, &one.limit_upload_windows),
            limit_download: limit(one.limit_download_bytes_per_s, &one.limit_download_windows),
            limit_time_zone: one.limit_time_zone.clone(),
            encrypted: Some(one.encryption),
            encryption_key: one.encryption_key_from.clone().map(SecretSource::Reference),
        };
        match one.provider {
            ProviderKind::S3 => {
                spec.kind = StoreType::S3;
                spec.s3_config = Some(S3Config {
                    endpoint,
                    region,
                    access_key_id: one.access_key.clone(),
                    secret_access_key: key_from(true),
                    use_iam: has_identity,
                    disable_ssl: one.ssl_enabled.map(|is_enabled| !is_enabled),
                    disable_path_style: one.path_style.map(|is_enabled| !is_enabled),
                    storage_class: one.storage_class.clone(),
                    role_arn: one.role.as_ref().map(|role| role.arn.clone()),
                    external_id: one.role.as_ref().and_then(|role| role.external_id.clone()),
                    sts_endpoint: None,
                });
            }
            ProviderKind::Azure => {
                spec.kind = StoreType::Azure;
                spec.azure_config = Some(AzureConfig {
                    storage_account_name: one.account.clone(),
                    storage_account_key: key_from(auth == "account key"),
                    sas_token: key_from(auth != "account key"),
                    use_managed_identity: has_identity,
                    endpoint,
                    client_id: None,
                });
            }
            ProviderKind::Google => {
                let (project_id, account_key) = (one.project.clone(), key_from(true));
                spec.kind = StoreType::Google;
                spec.google_config =
                    Some(GoogleConfig { project_id, account_key, use_iam: has_identity, endpoint });
            }
            ProviderKind::Swift => {
                spec.kind = StoreType::Swift;
                spec.swift_config = Some(SwiftConfig {
                    auth_url: endpoint,
                    user: one.user.clone(),
                    key: key_from(one.user.is_some()),
                    token: key_from(one.user.is_none()),
                    region,
                    project: one.project.clone(),
                    ..SwiftConfig::default()
                });
            }
            _ => {}
        }
        spec
    }

    /// Reads variables, makes paths absolute, and checks what the types do not.
    fn resolve(&mut self, dir: &Path) -> Result<(), String> {
        let s3 = self
            .s3_config
            .iter_mut()
            .map(|config| ("s3Config.secretAccessKey", &mut config.secret_access_key));
        let azure = self.azure_config.iter_mut().flat_map(|config| {
            [
                ("azureConfig.storageAccountKey", &mut config.storage_account_key),
                ("azureConfig.sasToken", &mut config.sas_token),
            ]
        });
        let google =
            self.google_config.iter_mut().map(|config| ("googleConfig.accountKey", &mut config.account_key));
        let swift = self.swift_config.iter_mut().flat_map(|config| {
            [("swiftConfig.key", &mut config.key), ("swiftConfig.token", &mut config.token)]
        });
        let secrets = s3.chain(azure).chain(google).chain(swift);
        for (name, secret) in secrets.chain([("encryptionKey", &mut self.encryption_key)]) {
            if let Some(source) = secret.take() {
                *secret = Some(source.resolve(dir).map_err(|message| format!("{name}: {message}"))?);
            }
        }
        let given = [
            (StoreType::S3, "s3Config", self.s3_config.is_some()),
            (StoreType::Azure, "azureConfig", self.azure_config.is_some()),
            (StoreType::Google, "googleConfig", self.google_config.is_some()),
            (StoreType::Swift, "swiftConfig", self.swift_config.is_some()),
        ];
        if let Some((_, name, _)) = given.iter().find(|(kind, _, is_given)| *is_given && *kind != self.kind) {
            return Err(format!("{name} does not belong to a location of this type"));
        }
        if self.kind == StoreType::S3 && self.s3_config.is_none() && self.secret_config.is_none() {
            return Err("missing field `s3Config`".to_owned());
        }
        if matches!(
            self.google_config.as_ref().and_then(|config| config.account_key.as_ref()),
            Some(SecretSource::Value(_))
        ) {
            return Err(
                "googleConfig.accountKey: give `file: PATH`, or a reference such as `from: command:PATH`"
                    .to_owned(),
            );
        }
        if self.proxy.as_deref().is_some_and(has_user) {
            return Err("proxy: a user or password in the URL would be shown: leave it out".to_owned());
        }
        if self.encryption_key.is_some() && self.encrypted == Some(false) {
            return Err("encrypted: a location with an encryptionKey is encrypted".to_owned());
        }
        if self.kind == StoreType::Local {
            self.path = absolute(dir, Path::new(&self.path)).display().to_string();
        }
        let prefix = self.prefix.take().map(|prefix| prefix.trim_matches('/').to_owned());
        self.prefix = prefix.filter(|prefix| !prefix.is_empty());
        self.ca_certificate = self.ca_certificate.take().map(|path| absolute(dir, &path));
        Ok(())
    }

    /// Spells the fields as the daemon reports them, to be compared.
    fn normalize(&mut self, settings: &Settings) {
        let host = |endpoint: &Option<String>| {
            let endpoint = endpoint.as_deref()?;
            let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
            Some(host.strip_suffix('/').unwrap_or(host).to_owned())
        };
        let set = |flag: bool| flag.then_some(true);
        match self.kind {
            StoreType::Local => {}
            StoreType::S3 => {
                let scheme = settings.s3_endpoint.as_deref().and_then(|url| Some(url.split_once("://")?.0));
                let is_plain = settings.s3_disable_ssl || scheme == Some("http");
                let config = self.s3_config.get_or_insert_default();
                config.endpoint = host(&settings.s3_endpoint);
                config.region = settings.s3_region.clone();
                config.access_key_id = settings.s3_access_key.clone();
                config.use_iam = set(settings.use_iam);
                config.disable_ssl = set(is_plain).or((scheme == Some("https")).then_some(false));
                config.disable_path_style = set(settings.disable_path_style);
            }
            StoreType::Azure => {
                let config = self.azure_config.get_or_insert_default();
                config.storage_account_name = settings.azure_account_name.clone();
                config.use_managed_identity = set(settings.use_iam);
                config.endpoint = host(&settings.azure_endpoint);
            }
            StoreType::Google => {
                let config = self.google_config.get_or_insert_default();
                config.project_id = settings.google_project_id.clone();
                config.use_iam = set(settings.use_iam);
                config.endpoint = host(&settings.google_endpoint);
            }
            StoreType::Swift => {
                let config = self.swift_config.get_or_insert_default();
                config.auth_url = settings.swift_auth_url.clone();
                config.user = settings.swift_user.clone();
                config.region = settings.swift_region.clone();
                config.project = settings.swift_project_name.clone();
            }
        }
        if has_passphrase(settings) {
            self.encrypted = Some(true);
        }
    }

    /// Returns the settings of the credential.
    fn settings(&self) -> Settings {
        let mut settings = Settings {
            prefix: self.prefix.clone(),
            proxy: self.proxy.clone(),
            ca_certificate: self.ca_certificate.clone(),
            limit_upload: self.limit_upload.clone(),
            limit_download: self.limit_download.clone(),
            limit_time_zone: self.limit_time_zone.clone(),
            ..Settings::default()
        };
        settings.provider = Some(match self.kind {
            StoreType::Local => Provider::Local,
            StoreType::S3 => Provider::S3,
            StoreType::Azure => Provider::Azure,
            StoreType::Google => Provider::Google,
            StoreType::Swift => Provider::Swift,
        });
        match self.kind {
            StoreType::Local => settings.path = Some(PathBuf::from(&self.path)),
            _ => settings.bucket = Some(self.path.clone()),
        }
        if let Some(dir) = &self.secret_config {
            read_secret_dir(&mut settings, dir);
        }
        let one = &mut settings;
        if let Some(config) = self.s3_config.clone() {
            one.s3_endpoint = config.endpoint.or(one.s3_endpoint.take());
            one.s3_region = config.region.or(one.s3_region.take());
            one.s3_access_key = config.access_key_id.or(one.s3_access_key.take());
            one.s3_disable_ssl |= config.disable_ssl.unwrap_or(false);
            one.disable_path_style = config.disable_path_style.unwrap_or(false);
            one.s3_storage_class = config.storage_class;
            one.use_iam = config.use_iam.unwrap_or(false);
            (one.s3_role_arn, one.s3_external_id) = (config.role_arn, config.external_id);
            one.s3_sts_endpoint = config.sts_endpoint;
            let slots = (&mut one.s3_secret_key, &mut one.s3_secret_key_file, &mut one.s3_secret_key_from);
            put(config.secret_access_key, slots);
        }
        if let Some(config) = self.azure_config.clone() {
            one.azure_account_name = config.storage_account_name.or(one.azure_account_name.take());
            (one.azure_endpoint, one.azure_client_id) = (config.endpoint, config.client_id);
            one.use_iam = config.use_managed_identity.unwrap_or(false);
            let slots = (
                &mut one.azure_account_key,
                &mut one.azure_account_key_file,
                &mut one.azure_account_key_from,
            );
            put(config.storage_account_key, slots);
            let slots =
                (&mut one.azure_sas_token, &mut one.azure_sas_token_file, &mut one.azure_sas_token_from);
            put(config.sas_token, slots);
        }
        if let Some(config) = self.google_config.clone() {
            one.google_project_id = config.project_id.or(one.google_project_id.take());
            one.google_endpoint = config.endpoint;
            one.use_iam = config.use_iam.unwrap_or(false);
            let slots = (&mut None, &mut one.google_json_key_file, &mut one.google_json_key_from);
            put(config.account_key, slots);
        }
        if let Some(config) = self.swift_config.clone() {
            one.swift_auth_version = config.auth_version;
            one.swift_auth_url = config.auth_url.or(one.swift_auth_url.take());
            one.swift_user = config.user.or(one.swift_user.take());
            one.swift_region = config.region.or(one.swift_region.take());
            one.swift_project_name = config.project.or(one.swift_project_name.take());
            one.swift_tenant_name = config.tenant_name.or(one.swift_tenant_name.take());
            one.swift_tenant_id = config.tenant_id.or(one.swift_tenant_id.take());
            one.swift_user_domain_name = config.user_domain_name.or(one.swift_user_domain_name.take());
            one.swift_project_domain_name =
                config.project_domain_name.or(one.swift_project_domain_name.take());
            one.swift_storage_url = config.storage_url.or(one.swift_storage_url.take());
            put(config.key, (&mut one.swift_key, &mut one.swift_key_file, &mut one.swift_key_from));
            put(config.token, (&mut one.swift_token, &mut one.swift_token_file, &mut one.swift_token_from));
        }
        let slots = (
            &mut one.encryption_passphrase,
            &mut one.encryption_passphrase_file,
            &mut one.encryption_passphrase_from,
        );
        put(self.encryption_key.clone(), slots);
        settings
    }
}

type SecretSlots<'a> = (&'a mut Option<Secret>, &'a mut Option<PathBuf>, &'a mut Option<SecretRef>);

/// Puts a secret into the setting of its source.
fn put(secret: Option<SecretSource>, (value, file, from): SecretSlots<'_>) {
    match secret {
        Some(SecretSource::Value(secret)) => *value = Some(secret),
        Some(SecretSource::File(path)) => *file = Some(path),
        Some(SecretSource::Reference(reference)) => *from = Some(reference),
        // Variables are resolved already.
        Some(SecretSource::Variable(_)) | None => {}
    }
}

/// Returns true if a URL has a user, and perhaps a password.
fn has_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

/// Backup location.
#[derive(Debug)]
pub struct Location {
    /// Fields, spelled as the daemon reports them.
    pub spec: LocationSpec,
    pub(super) settings: Settings,
}

impl Location {
    /// Checks a location; paths are relative to the directory of its file.
    ///
    /// # Errors
    /// Field and cause.
    pub fn new(mut spec: LocationSpec, dir: &Path) -> Result<Self, String> {
        spec.resolve(dir)?;
        spec.secret_config = spec.secret_config.take().map(|path| absolute(dir, &path));
        if let Some(path) = spec.secret_config.as_ref().filter(|path| !path.is_dir()) {
            let what = "is no directory: a secret is one, with a file for each of its keys";
            return Err(format!("secret {} {what}", path.display()));
        }
        let settings = spec.settings();
        spec.normalize(&settings);
        Ok(Self { spec, settings })
    }

    /// Returns the request that creates the credential, with its secrets.
    ///
    /// # Errors
    /// A required setting is missing or cannot be read.
    pub fn request(&self, name: &CredentialName) -> Result<CreateCredential, Failure> {
        let args = CreateArgs { name: name.clone(), file: None, settings: self.settings.clone() };
        let request = stores::request(args).map_err(|error| match error {
            Failure::Usage { message, .. } => Failure::Usage {
                message: format!("BackupLocation/{name}: {message}"),
                hint: Some(FLAGS_HINT.to_owned()),
            },
            error => error,
        })?;
        if self.spec.encrypted.is_some_and(|wanted| wanted != request.encryption_passphrase.is_some()) {
            return Err(Failure::usage(format!(
                "BackupLocation/{name}: location.encryptionKey: an encrypted location needs a passphrase, and only such a location"
            )));
        }
        Ok(request)
    }

    /// Returns the bandwidth limits that are given.
    pub fn limits(&self) -> (Option<&DailyLimit>, Option<&DailyLimit>, Option<&String>) {
        let one = &self.settings;
        (one.limit_upload.as_ref(), one.limit_download.as_ref(), one.limit_time_zone.as_ref())
    }
}

fn has_passphrase(settings: &Settings) -> bool {
    settings.encryption_passphrase.is_some()
        || settings.encryption_passphrase_file.is_some()
        || settings.encryption_passphrase_from.is_some()
}

/// Reads a secret: a directory with a file for each key, such as `kubectl create secret generic --from-file`
/// takes.
fn read_secret_dir(settings: &mut Settings, dir: &Path) {
    let file = |key: &str| Some(dir.join(key)).filter(|path| path.is_file());
    let text = |key: &str| Some(read_file("key of a secret", &file(key)?).ok()?.expose().to_owned());
    let either = |one: &str, other: &str| text(one).or_else(|| text(other));
    match settings.provider {
        Some(Provider::S3) => {
            settings.s3_access_key = either("AWS_ACCESS_KEY_ID", "accessKeyID");
            settings.s3_secret_key_file = file("AWS_SECRET_ACCESS_KEY").or_else(|| file("secretAccessKey"));
            settings.s3_region = text("region");
            settings.s3_endpoint = text("endpoint");
            settings.s3_disable_ssl = text("disableSSL").as_deref() == Some("true");
        }
        Some(Provider::Azure) => {
            settings.azure_account_name = either("AZURE_ACCOUNT_NAME", "storageAccountName");
            settings.azure_account_key_file = file("AZURE_ACCOUNT_KEY").or_else(|| file("storageAccountKey"));
        }
        Some(Provider::Google) => {
            settings.google_project_id = either("GOOGLE_PROJECT_ID", "projectID");
            settings.google_json_key_file =
                file("GOOGLE_SERVICE_ACCOUNT_JSON_KEY").or_else(|| file("accountKey"));
        }
        Some(Provider::Swift) => {
            settings.swift_auth_url = either("ST_AUTH", "OS_AUTH_URL");
            settings.swift_user = either("ST_USER", "OS_USERNAME");
            settings.swift_key_file = file("ST_KEY").or_else(|| file("OS_PASSWORD"));
            settings.swift_region = text("OS_REGION_NAME");
            settings.swift_tenant_name = text("OS_TENANT_NAME");
            settings.swift_tenant_id = text("OS_TENANT_ID");
            settings.swift_user_domain_name = text("OS_USER_DOMAIN_NAME");
            settings.swift_project_name = text("OS_PROJECT_NAME");
            settings.swift_project_domain_name = text("OS_PROJECT_DOMAIN_NAME");
            settings.swift_storage_url = text("OS_STORAGE_URL");
            settings.swift_token_file = file("OS_AUTH_TOKEN");
        }
        _ => {}
    }
    settings.encryption_passphrase_file = file("encryptionKey");
}
