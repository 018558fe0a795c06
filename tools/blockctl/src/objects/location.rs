//! Backup locations: credentials, as the custom resources of such systems write them, or with the storage
//! blocks of KubeDB's.

use super::{Fields, fields::SecretSource};
use crate::{
    cli::credentials::{CreateArgs, Provider, Settings},
    commands::stores,
    failure::Failure,
    secrets::read_file,
};
use blockd_api::{
    CredentialName, DailyLimit, LimitWindow, SecretRef,
    credentials::{CreateCredential, Credential, ProviderKind},
};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// How flags, which messages name, are written in a file.
const FLAGS_HINT: &str = "in a file, a flag is a field of s3Config, azureConfig, googleConfig or swiftConfig, or a file in the directory of \
    secretConfig or storageSecretName, such as secretAccessKey or AWS_SECRET_ACCESS_KEY for --s3-secret-key-file";

/// Where backups go.
#[derive(Debug)]
pub struct Location {
    pub(super) settings: Settings,
    /// It is said whether what is stored is encrypted.
    encrypted: Option<bool>,
}

/// The credential of which this is the location, as a location is written.
pub fn view_of(one: &Credential) -> Value {
    let text = |value: &Option<String>| value.as_deref().map(Value::from);
    let path = one.path.as_ref().map(|path| path.display().to_string().into()).or_else(|| text(&one.bucket));
    let disable_ssl = one.ssl_enabled.map(|enabled| Value::from(!enabled));
    let key_from = |is_this: bool| one.store_key_from.as_ref().filter(|_| is_this).map(elsewhere);
    let auth = one.auth.as_deref().unwrap_or_default();
    let by_machine = auth.ends_with(" identity").then_some(Value::from(true));
    let (config, fields) = match one.provider {
        ProviderKind::S3 => (
            "s3Config",
            vec![
                ("endpoint", text(&one.endpoint)),
                ("region", text(&one.region)),
                ("accessKeyID", text(&one.access_key)),
                ("secretAccessKey", key_from(true)),
                ("useIAM", by_machine),
                ("disableSSL", disable_ssl),
                ("disablePathStyle", one.path_style.map(|yes| Value::from(!yes))),
                ("storageClass", text(&one.storage_class)),
                ("roleARN", one.role.as_ref().map(|role| role.arn.as_str().into())),
                (
                    "externalID",
                    one.role.as_ref().and_then(|role| role.external_id.as_deref()).map(Value::from),
                ),
            ],
        ),
        ProviderKind::Azure => (
            "azureConfig",
            vec![
                ("storageAccountName", text(&one.account)),
                ("storageAccountKey", key_from(auth == "account key")),
                ("sasToken", key_from(auth != "account key")),
                ("useManagedIdentity", by_machine),
                ("endpoint", text(&one.endpoint)),
            ],
        ),
        ProviderKind::Google => (
            "googleConfig",
            vec![
                ("projectID", text(&one.project)),
                ("accountKey", key_from(true)),
                ("useIAM", by_machine),
                ("endpoint", text(&one.endpoint)),
            ],
        ),
        ProviderKind::Swift => (
            "swiftConfig",
            vec![
                ("authURL", text(&one.endpoint)),
                ("user", text(&one.user)),
                ("key", key_from(one.user.is_some())),
                ("token", key_from(one.user.is_none())),
                ("region", text(&one.region)),
                ("project", text(&one.project)),
            ],
        ),
        _ => ("", Vec::new()),
    };
    let limit = |otherwise_bytes_per_s: Option<u64>, windows: &[LimitWindow]| {
        let limit = DailyLimit { otherwise_bytes_per_s, windows: windows.to_vec() };
        (!limit.is_none()).then(|| limit.to_string().into())
    };
    let config = (config, object(fields));
    object(vec![
        ("type", Some(one.provider.to_string().into())),
        ("path", path),
        ("prefix", text(&one.prefix)),
        (config.0, config.1.as_object().is_some_and(|fields| !fields.is_empty()).then_some(config.1.clone())),
        ("proxy", text(&one.proxy)),
        ("limitUpload", limit(one.limit_upload_bytes_per_s, &one.limit_upload_windows)),
        ("limitDownload", limit(one.limit_download_bytes_per_s, &one.limit_download_windows)),
        ("limitTimeZone", text(&one.limit_time_zone)),
        ("encrypted", Some(one.encryption.into())),
        ("encryptionKey", one.encryption_key_from.as_ref().map(elsewhere)),
    ])
}

/// Where a secret lies, as a location says it.
fn elsewhere(reference: &SecretRef) -> Value {
    object(vec![("from", Some(reference.to_string().into()))])
}

/// Whether a URL says who asks, with a password maybe.
fn has_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

fn object(fields: Vec<(&str, Option<Value>)>) -> Value {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// A server without its scheme, as the daemon has it.
fn host(endpoint: &str) -> &str {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    host.strip_suffix('/').unwrap_or(host)
}

impl Location {
    /// What it says, without secrets. What it does not say is not there: that stays as it is.
    pub fn view(&self) -> Value {
        let one = &self.settings;
        let text = |value: &Option<String>| value.as_deref().map(Value::from);
        let server = |value: &Option<String>| value.as_deref().map(|value| Value::from(host(value)));
        let from = |reference: &Option<SecretRef>| reference.as_ref().map(elsewhere);
        let by_machine = one.use_iam.then_some(Value::from(true));
        let (kind, config, fields) = match one.provider {
            Some(Provider::S3) => {
                let plain = one.s3_endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
                let tls = one.s3_endpoint.as_deref().is_some_and(|url| url.starts_with("https://"));
                let disable_ssl = (one.s3_disable_ssl || plain).then_some(Value::from(true));
                (
                    "s3",
                    "s3Config",
                    vec![
                        ("endpoint", server(&one.s3_endpoint)),
                        ("region", text(&one.s3_region)),
                        ("accessKeyID", text(&one.s3_access_key)),
                        ("secretAccessKey", from(&one.s3_secret_key_from)),
                        ("useIAM", by_machine),
                        ("disableSSL", disable_ssl.or(tls.then_some(Value::from(false)))),
                        ("disablePathStyle", one.disable_path_style.then_some(Value::from(true))),
                        ("storageClass", text(&one.s3_storage_class)),
                        ("roleARN", text(&one.s3_role_arn)),
                        ("externalID", text(&one.s3_external_id)),
                    ],
                )
            }
            Some(Provider::Azure) => (
                "azure",
                "azureConfig",
                vec![
                    ("storageAccountName", text(&one.azure_account_name)),
                    ("storageAccountKey", from(&one.azure_account_key_from)),
                    ("sasToken", from(&one.azure_sas_token_from)),
                    ("useManagedIdentity", by_machine),
                    ("endpoint", server(&one.azure_endpoint)),
                ],
            ),
            Some(Provider::Google) => (
                "google",
                "googleConfig",
                vec![
                    ("projectID", text(&one.google_project_id)),
                    ("accountKey", from(&one.google_json_key_from)),
                    ("useIAM", by_machine),
                    ("endpoint", server(&one.google_endpoint)),
                ],
            ),
            Some(Provider::Swift) => (
                "swift",
                "swiftConfig",
                vec![
                    ("authURL", text(&one.swift_auth_url)),
                    ("user", text(&one.swift_user)),
                    ("key", from(&one.swift_key_from)),
                    ("token", from(&one.swift_token_from)),
                    ("region", text(&one.swift_region)),
                    ("project", text(&one.swift_project_name)),
                ],
            ),
            _ => ("local", "", Vec::new()),
        };
        let config = (config, object(fields));
        let has_config = config.1.as_object().is_some_and(|fields| !fields.is_empty());
        let path = one.path.as_ref().map(|path| path.display().to_string().into());
        let limit = |limit: &Option<DailyLimit>| limit.as_ref().map(|limit| Value::from(limit.to_string()));
        object(vec![
            ("type", Some(kind.into())),
            ("path", path.or_else(|| text(&one.bucket))),
            ("prefix", text(&one.prefix)),
            (config.0, has_config.then_some(config.1.clone())),
            ("proxy", text(&one.proxy)),
            ("limitUpload", limit(&one.limit_upload)),
            ("limitDownload", limit(&one.limit_download)),
            ("limitTimeZone", text(&one.limit_time_zone)),
            ("encrypted", self.encrypted.map(Value::from)),
            ("encryptionKey", from(&one.encryption_passphrase_from)),
        ])
    }

    /// What makes it, with its secrets.
    ///
    /// # Errors
    /// Something that it needs is missing or cannot be read.
    pub fn request(&self, name: &CredentialName) -> Result<CreateCredential, Failure> {
        let must_be_encrypted = self.encrypted;
        let request =
            stores::request(CreateArgs { name: name.clone(), file: None, settings: self.settings.clone() })
                .map_err(|error| match error {
                Failure::Usage { message, .. } => Failure::Usage {
                    message: format!("BackupLocation/{name}: {message}"),
                    hint: Some(FLAGS_HINT.to_owned()),
                },
                error => error,
            })?;
        if must_be_encrypted.is_some_and(|wanted| wanted != request.encryption_passphrase.is_some()) {
            return Err(Failure::usage(format!(
                "BackupLocation/{name}: location.encryptionKey: the passphrase is needed to make it, and only if it is to be encrypted"
            )));
        }
        Ok(request)
    }

    /// The limits that it says.
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

/// Reads what is below `location`, or the storage blocks below `spec`.
pub fn read(fields: &mut Fields<'_>) -> Option<Location> {
    match (fields.has("location"), fields.has("spec")) {
        (true, false) => read_location(fields.fields("location")?),
        (false, true) => read_blocks(fields.fields("spec")?),
        _ => {
            let line = fields.line;
            fields.wrong(line, "location", "one of `location` and `spec` is expected");
            let _ = (fields.node("location"), fields.node("spec"));
            None
        }
    }
}

/// Takes text that may be elsewhere, as secrets are.
fn text_from(fields: &mut Fields<'_>, name: &'static str) -> Option<String> {
    let line = fields.line;
    match fields.secret(name)? {
        SecretSource::Value(text) => Some(text.expose().to_owned()),
        SecretSource::File(path) => match read_file("value", &path) {
            Ok(text) => Some(text.expose().to_owned()),
            Err(error) => {
                fields.wrong(line, name, error.to_string());
                None
            }
        },
        SecretSource::Elsewhere(_) => {
            fields.wrong(line, name, "this is no secret, and blockd keeps it: give it, or `file` or `env`");
            None
        }
    }
}

/// Takes a secret into the settings that can have it.
macro_rules! take_secret {
    ($fields:expr, $name:literal, $settings:ident . $value:ident, $file:ident, $from:ident) => {
        match $fields.secret($name) {
            Some(SecretSource::Value(secret)) => $settings.$value = Some(secret),
            Some(SecretSource::File(path)) => $settings.$file = Some(path),
            Some(SecretSource::Elsewhere(reference)) => $settings.$from = Some(reference),
            None => {}
        }
    };
}

fn read_location(mut fields: Fields<'_>) -> Option<Location> {
    let mut settings = Settings::default();
    let line = fields.line;
    let kind = fields.required_text("type");
    settings.provider = match kind.as_deref() {
        Some("local" | "nfs") => Some(Provider::Local),
        Some("s3") => Some(Provider::S3),
        Some("azure") => Some(Provider::Azure),
        Some("google" | "gcs") => Some(Provider::Google),
        Some("swift") => Some(Provider::Swift),
        Some(other) => {
            fields.wrong(
                line,
                "type",
                format!("{other:?} is no kind of store: there are local, s3, azure, google and swift"),
            );
            None
        }
        None => None,
    };
    let path = fields.required_text("path");
    if settings.provider == Some(Provider::Local) {
        settings.path = path.map(|path| fields.reading.file(&path));
    } else {
        settings.bucket = path;
    }
    settings.prefix = prefix(&mut fields);
    // What others stored is always to be seen.
    let _ = fields.flag("sync");
    if settings.provider == Some(Provider::S3) && !fields.has("s3Config") && !fields.has("secretConfig") {
        fields.missing("s3Config");
    }
    if let Some(dir) = fields.text("secretConfig") {
        read_secret_dir(&mut settings, &dir, "secretConfig", &fields);
    }
    for (provider, name) in [
        (Provider::S3, "s3Config"),
        (Provider::Azure, "azureConfig"),
        (Provider::Google, "googleConfig"),
        (Provider::Swift, "swiftConfig"),
    ] {
        if !fields.has(name) {
            let _ = fields.node(name);
            continue;
        }
        if settings.provider.is_some_and(|chosen| chosen != provider) {
            let kind = kind.as_deref().unwrap_or_default();
            fields.wrong(line, name, format!("this is not for a location of type {kind}"));
        }
        let Some(mut config) = fields.fields(name) else { continue };
        match provider {
            Provider::S3 => read_s3(&mut config, &mut settings),
            Provider::Azure => read_azure(&mut config, &mut settings),
            Provider::Google => read_google(&mut config, &mut settings),
            _ => read_swift(&mut config, &mut settings),
        }
        config.finish();
    }
    read_common(&mut fields, &mut settings);
    let said = fields.flag("encrypted");
    take_secret!(
        fields,
        "encryptionKey",
        settings.encryption_passphrase,
        encryption_passphrase_file,
        encryption_passphrase_from
    );
    let has_key = has_passphrase(&settings);
    let encrypted = if has_key { Some(true) } else { said };
    if has_key && said == Some(false) {
        fields.wrong(line, "encrypted", "there is an encryptionKey, so it is");
    }
    fields.finish();
    Some(Location { settings, encrypted })
}

/// Takes the prefix below which everything lies, without slashes around it, as it is kept.
fn prefix(fields: &mut Fields<'_>) -> Option<String> {
    let prefix = fields.text("prefix")?.trim_matches('/').to_owned();
    (!prefix.is_empty()).then_some(prefix)
}

fn read_common(fields: &mut Fields<'_>, settings: &mut Settings) {
    let line = fields.peek("proxy").map_or(fields.line, |node| node.line);
    settings.proxy = fields.text("proxy");
    if settings.proxy.as_deref().is_some_and(has_user) {
        fields.wrong(line, "proxy", "a user or password in it would be shown: leave it out");
        settings.proxy = None;
    }
    settings.ca_certificate = fields.text("caCertificate").map(|path| fields.reading.file(&path));
    settings.limit_upload = fields.parsed("limitUpload");
    settings.limit_download = fields.parsed("limitDownload");
    settings.limit_time_zone = fields.text("limitTimeZone");
}

fn read_s3(fields: &mut Fields<'_>, settings: &mut Settings) {
    let given = |text: Option<String>, before: &mut Option<String>| {
        if text.is_some() {
            *before = text;
        }
    };
    given(fields.text("region"), &mut settings.s3_region);
    given(fields.text("endpoint"), &mut settings.s3_endpoint);
    given(text_from(fields, "accessKeyID"), &mut settings.s3_access_key);
    take_secret!(fields, "secretAccessKey", settings.s3_secret_key, s3_secret_key_file, s3_secret_key_from);
    settings.s3_disable_ssl |= fields.flag("disableSSL").unwrap_or(false);
    settings.disable_path_style = fields.flag("disablePathStyle").unwrap_or(false);
    settings.s3_storage_class = fields.text("storageClass");
    settings.use_iam = fields.flag("useIAM").unwrap_or(false);
    settings.s3_role_arn = fields.text("roleARN");
    settings.s3_external_id = fields.text("externalID");
    settings.s3_sts_endpoint = fields.text("stsEndpoint");
    if settings.s3_endpoint.is_none() {
        fields.missing("endpoint");
    }
}

fn read_azure(fields: &mut Fields<'_>, settings: &mut Settings) {
    settings.azure_account_name =
        text_from(fields, "storageAccountName").or(settings.azure_account_name.take());
    take_secret!(
        fields,
        "storageAccountKey",
        settings.azure_account_key,
        azure_account_key_file,
        azure_account_key_from
    );
    take_secret!(fields, "sasToken", settings.azure_sas_token, azure_sas_token_file, azure_sas_token_from);
    settings.azure_endpoint = fields.text("endpoint");
    settings.use_iam = fields.flag("useManagedIdentity").unwrap_or(false);
    settings.azure_client_id = fields.text("clientID");
}

fn read_google(fields: &mut Fields<'_>, settings: &mut Settings) {
    settings.google_project_id = text_from(fields, "projectID").or(settings.google_project_id.take());
    let line = fields.line;
    match fields.secret("accountKey") {
        Some(SecretSource::File(path)) => settings.google_json_key_file = Some(path),
        Some(SecretSource::Elsewhere(reference)) => settings.google_json_key_from = Some(reference),
        Some(SecretSource::Value(_)) => {
            fields.wrong(
                line,
                "accountKey",
                "the key of a service account is taken from a file only, `file: PATH`, or by a reference, `from: command:PATH`",
            );
        }
        None => {}
    }
    settings.google_endpoint = fields.text("endpoint");
    settings.use_iam = fields.flag("useIAM").unwrap_or(false);
}

fn read_swift(fields: &mut Fields<'_>, settings: &mut Settings) {
    settings.swift_auth_version =
        fields.number("authVersion", 1).and_then(|version| u8::try_from(version).ok());
    settings.swift_auth_url = fields.text("authURL");
    settings.swift_user = text_from(fields, "user");
    take_secret!(fields, "key", settings.swift_key, swift_key_file, swift_key_from);
    settings.swift_region = fields.text("region");
    settings.swift_tenant_name = fields.text("tenantName");
    settings.swift_tenant_id = fields.text("tenantID");
    settings.swift_user_domain_name = fields.text("userDomainName");
    settings.swift_project_name = fields.text("project");
    settings.swift_project_domain_name = fields.text("projectDomainName");
    settings.swift_storage_url = fields.text("storageURL");
    take_secret!(fields, "token", settings.swift_token, swift_token_file, swift_token_from);
}

/// The storage blocks of KubeDB's snapshots: one of `s3`, `gcs`, `azure`, `swift` and `local`.
fn read_blocks(mut fields: Fields<'_>) -> Option<Location> {
    let mut settings = Settings::default();
    let line = fields.line;
    let mut found = Vec::new();
    for (name, provider) in [
        ("s3", Provider::S3),
        ("gcs", Provider::Google),
        ("azure", Provider::Azure),
        ("swift", Provider::Swift),
        ("local", Provider::Local),
    ] {
        let Some(mut block) = fields.fields(name) else { continue };
        found.push(name);
        settings.provider = Some(provider);
        if provider == Provider::Local {
            let reading = block.reading;
            settings.path = block.required_text("path").map(|path| reading.file(&path));
            settings.prefix = prefix(&mut block);
            block.ignore("volumeSource", "the directory is one of this host, and must be there");
            block.finish();
            continue;
        }
        settings.bucket = block.required_text(if matches!(provider, Provider::S3 | Provider::Google) {
            "bucket"
        } else {
            "container"
        });
        if provider == Provider::S3 {
            settings.s3_endpoint = block.required_text("endpoint");
            settings.s3_region = block.text("region");
        }
        settings.prefix = prefix(&mut block);
        block.finish();
    }
    if found.len() != 1 {
        fields.wrong(
            line,
            "s3",
            format!("one of s3, gcs, azure, swift and local is expected, and there are {}", found.len()),
        );
    }
    fields.ignore("databaseName", "a location is for all volumes; a VolumeBackup names one");
    fields.ignore("resources", "blockd makes no pods; see limitUpload and limitDownload");
    if let Some(dir) = fields.text("storageSecretName") {
        read_secret_dir(&mut settings, &dir, "storageSecretName", &fields);
    }
    read_common(&mut fields, &mut settings);
    take_secret!(
        fields,
        "encryptionKey",
        settings.encryption_passphrase,
        encryption_passphrase_file,
        encryption_passphrase_from
    );
    let has_key = has_passphrase(&settings);
    fields.finish();
    Some(Location { settings, encrypted: has_key.then_some(true) })
}

/// A secret is a directory here, with a file for each of its keys, as `kubectl create secret generic
/// --from-file` takes it.
fn read_secret_dir(settings: &mut Settings, dir: &str, name: &str, fields: &Fields<'_>) {
    let dir = fields.reading.file(dir);
    if !dir.is_dir() {
        let what =
            format!("{} is no directory: a secret is one, with a file for each of its keys", dir.display());
        fields.wrong(fields.line, name, what);
        return;
    }
    let file = |key: &str| -> Option<PathBuf> { Some(dir.join(key)).filter(|path| path.is_file()) };
    let text = |key: &str| {
        file(key)
            .and_then(|path| read_file("key of a secret", &path).ok())
            .map(|text| text.expose().to_owned())
    };
    let either = |one: &str, other: &str| text(one).or_else(|| text(other));
    match settings.provider {
        Some(Provider::S3) => {
            settings.s3_access_key = either("AWS_ACCESS_KEY_ID", "accessKeyID");
            settings.s3_secret_key_file = file("AWS_SECRET_ACCESS_KEY").or_else(|| file("secretAccessKey"));
            settings.s3_region = settings.s3_region.take().or_else(|| text("region"));
            settings.s3_endpoint = settings.s3_endpoint.take().or_else(|| text("endpoint"));
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
    if let Some(path) = file("encryptionKey") {
        settings.encryption_passphrase_file = Some(path);
    }
}
