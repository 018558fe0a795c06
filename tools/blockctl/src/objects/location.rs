//! Backup locations: settings of `blockctl credentials create`, under the names of their fields.

use super::{
    document::{Document, Problem},
    location_table::{
        DEFAULT, ENCRYPTED, FIELDS, SECRET, SECTIONS, STORE_TYPE, SYNC, UNREPORTED, fields_of, with_fields,
    },
    secret::SecretSet,
    values::{absolute, view},
};
use crate::{
    commands::{
        credentials::{
            args::CreateArgs,
            create,
            settings::{Settings, is_secret},
            update,
        },
        limits::{changed_limits, limits_of},
    },
    failure::Failure,
};
use blockd_api::{
    ApiError, ClientError, CredentialName, Labels, SecretRef,
    credential_update::UpdateCredential,
    credentials::{CreateCredential, Credential, CredentialLimits, ProviderKind},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::{path::Path, sync::Arc};

/// Content of a location in a document.
const ROOT: &str = "location";
/// Placeholder for a given secret.
const STORE_KEY: &str = "location.secretConfig";
pub const PASSPHRASE: &str = "location.encryptionKey";

/// File of a secret with the keys of a profile.
#[derive(Deserialize)]
struct CredentialsFile {
    /// Secret; unset for one that need not exist.
    name: Option<String>,
    key: String,
    profile: String,
}

impl CredentialsFile {
    /// Returns the values of a file by setting.
    fn settings(&self, provider: &str, text: &str) -> Vec<(&'static str, String)> {
        if provider == "google" {
            return vec![("google-json-key", text.to_owned())];
        }
        let mut is_meant = true;
        let mut found = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(profile) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                is_meant = profile.trim() == self.profile;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| is_meant) else { continue };
            let setting = match name.trim() {
                "aws_access_key_id" => "s3-access-key",
                "aws_secret_access_key" => "s3-secret-key",
                "AZURE_STORAGE_ACCOUNT_ACCESS_KEY" => "azure-account-key",
                _ => continue,
            };
            found.push((setting, value.trim().to_owned()));
        }
        found
    }
}

/// Values of a location by setting.
struct Fields<'a> {
    dir: &'a Path,
    /// Sections that are given.
    sections: Vec<String>,
    values: Map<String, Value>,
    /// Certificates in the document.
    ca_certificates: Option<String>,
    /// Keys of the secret by the paths of their fields, and if they are given.
    keys: Vec<(&'static str, String, bool)>,
}

impl<'a> Fields<'a> {
    /// Takes the fields of a location; paths are relative to a directory.
    fn take(document: &mut Document, dir: &'a Path) -> Result<Self, Problem> {
        let (sections, values) = (Vec::new(), Map::new());
        let mut fields = Self { dir, sections, values, ca_certificates: None, keys: Vec::new() };
        for (name, value) in document.take::<Map<String, Value>>(ROOT)? {
            let is_section = SECTIONS.contains(&name.as_str());
            match value {
                Value::Object(inner) if is_section => {
                    for (field, value) in inner {
                        fields.put(document, &format!("{name}.{field}"), value)?;
                    }
                    fields.sections.push(name);
                }
                _ if is_section => return Err(problem(document, &name, "a mapping is expected")),
                Value::Object(mut inner) if name == "caCertificate" => match inner.remove("pem") {
                    Some(Value::String(text)) => fields.ca_certificates = Some(text),
                    _ => return Err(problem(document, &name, "a path, or `pem` is expected")),
                },
                value => fields.put(document, &name, value)?,
            }
        }
        Ok(fields)
    }

    /// Sets the setting of a field.
    fn put(&mut self, document: &mut Document, path: &str, value: Value) -> Result<(), Problem> {
        let Some((setting, ..)) = FIELDS.iter().find(|(_, field, _)| *field == path) else {
            if document.is_foreign {
                document.ignore(&format!("{ROOT}.{path}"));
                return Ok(());
            }
            let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
            let siblings = FIELDS.iter().map(|(_, field, _)| field.rsplit_once('.').unwrap_or(("", field)));
            let siblings = siblings.filter(|(of, _)| *of == section).map(|(_, field)| field);
            let sections = SECTIONS.into_iter().filter(|_| section.is_empty());
            let known = siblings.chain(sections).collect::<Vec<_>>().join("`, `");
            return Err(problem(
                document,
                path,
                format!("unknown field `{name}`, expected one of `{known}`"),
            ));
        };
        let (form, value) = match is_secret(setting) {
            true => source(self.dir, value).map_err(|message| problem(document, path, message))?,
            false => ("", value),
        };
        self.values.insert(format!("{setting}{form}"), value);
        Ok(())
    }

    fn text(&self, setting: &str) -> Option<&str> {
        self.values.get(setting).and_then(Value::as_str)
    }

    /// Checks the sections, makes paths absolute, and adds the keys of a secret.
    fn complete(&mut self, secrets: &SecretSet) -> Result<(), String> {
        let provider = match self.text(STORE_TYPE).ok_or_else(|| "missing field `type`".to_owned())? {
            "nfs" => "local".to_owned(),
            "gcs" => "google".to_owned(),
            provider => provider.to_owned(),
        };
        self.values.insert(STORE_TYPE.to_owned(), provider.as_str().into());
        let is_foreign = |section: &&String| section.strip_suffix("Config").is_some_and(|of| of != provider);
        if let Some(section) = self.sections.iter().find(is_foreign) {
            return Err(format!("{section} does not belong to a location of this type"));
        }
        if provider == "s3" && !self.values.contains_key(SECRET) && self.sections.is_empty() {
            return Err("missing field `s3Config`".to_owned());
        }
        let path = self.values.remove("path").ok_or_else(|| "missing field `path`".to_owned())?;
        self.values.insert(if provider == "local" { "path" } else { "bucket" }.to_owned(), path);
        for setting in ["path", "ca-certificate"] {
            if let Some(path) = self.text(setting).map(|path| absolute(self.dir, Path::new(path))) {
                self.values.insert(setting.to_owned(), path.display().to_string().into());
            }
        }
        if let Some(prefix) = self.text("prefix").map(|prefix| prefix.trim_matches('/').to_owned()) {
            self.values.insert("prefix".to_owned(), Some(prefix).filter(|prefix| !prefix.is_empty()).into());
        }
        let name = match self.values.remove(SECRET) {
            None => return Ok(()),
            Some(Value::String(name)) => name,
            Some(file) => {
                let file =
                    CredentialsFile::deserialize(file).map_err(|error| format!("secretConfig: {error}"))?;
                return self.read_credentials(&provider, &file, secrets);
            }
        };
        let secret = secrets.keys(&name, self.dir).map_err(|error| format!("secretConfig: {error}"))?;
        // Keys of the secret are for settings that no field sets.
        for (setting, path, keys) in FIELDS {
            let of = setting.split('-').next().unwrap_or_default();
            for key in keys.split_whitespace().filter(|_| [provider.as_str(), "encryption"].contains(&of)) {
                let value = secret.get(key, is_secret(setting));
                let value = value.map_err(|error| format!("secretConfig: {error}"))?;
                let is_given = value.is_some_and(|value| self.set(setting, value.expose()));
                self.keys.push((path, format!("{key} of Secret/{name}"), is_given));
            }
        }
        Ok(())
    }

    /// Sets a setting that no field sets; false if one does.
    fn set(&mut self, setting: &str, value: &str) -> bool {
        let mut forms = ["", "-file", "-from"].iter().map(|form| format!("{setting}{form}"));
        if forms.any(|form| self.values.contains_key(&form)) {
            return false;
        }
        let value = if setting == "s3-disable-ssl" { (value == "true").into() } else { value.into() };
        self.values.insert(setting.to_owned(), value);
        true
    }

    /// Makes messages about settings of a secret name its keys: those that are given, and all those of a
    /// converted document without a field.
    fn name_keys(&self, document: &mut Document) {
        let is_converted = document.origin(ROOT).is_some();
        for (path, key, is_given) in &self.keys {
            let path = format!("{ROOT}.{path}");
            if *is_given || (is_converted && document.origin(&path).is_none()) {
                document.set_origin(&path, key);
            }
        }
    }

    /// Reads the keys of a profile from a file of a secret.
    fn read_credentials(
        &mut self,
        provider: &str,
        file: &CredentialsFile,
        secrets: &SecretSet,
    ) -> Result<(), String> {
        let name = file.name.as_deref().unwrap_or(DEFAULT_SECRET);
        let secret = match secrets.keys(name, self.dir) {
            Err(_) if file.name.is_none() => return Ok(()),
            secret => secret.map_err(|error| format!("secretConfig: {error}"))?,
        };
        let missing = || format!("secretConfig: the secret has no key {}", file.key);
        let text = secret.get(&file.key, true).map_err(|error| format!("secretConfig: {error}"))?;
        let text = text.ok_or_else(missing)?;
        for (setting, value) in file.settings(provider, text.expose()) {
            self.set(setting, &value);
        }
        let of_provider =
            FIELDS.iter().filter(|(setting, ..)| setting.starts_with(provider) && is_secret(setting));
        self.keys.extend(
            of_provider.map(|(_, path, _)| (*path, format!("key {} of Secret/{name}", file.key), false)),
        );
        Ok(())
    }
}

/// Returns the form of a secret's setting and its value: a value, a file or variable that blockctl reads, or
/// a reference that the daemon resolves.
fn source(dir: &Path, value: Value) -> Result<(&'static str, Value), String> {
    let (source, text) = match value {
        Value::String(_) => return Ok(("", value)),
        Value::Object(fields) if fields.len() == 1 => fields.into_iter().next().unwrap_or_default(),
        Value::Object(_) => Default::default(),
        // YAML has changed the spelling of a plain number, and serde's message would show it.
        _ => return Err("a secret is text: write it in quotes".to_owned()),
    };
    let wrong = || "one of `file`, `env`, `systemd`, `command` and `from` is expected".to_owned();
    let text = text.as_str().ok_or_else(wrong)?;
    let reference = match source.as_str() {
        "file" => return Ok(("-file", absolute(dir, Path::new(text)).display().to_string().into())),
        "env" => {
            let value = std::env::var(text).ok().filter(|value| !value.is_empty());
            let missing = || format!("the environment variable {text} is empty or unset");
            return Ok(("", value.ok_or_else(missing)?.into()));
        }
        "from" => text.to_owned(),
        "systemd" | "command" => format!("{source}:{text}"),
        _ => return Err(wrong()),
    };
    let reference: SecretRef = reference.parse().map_err(|error| format!("{error}"))?;
    Ok(("-from", reference.to_string().into()))
}

/// Secret of locations that name none.
const DEFAULT_SECRET: &str = "cloud-credentials";

/// Returns a problem of a field of a location.
fn problem(document: &Document, path: &str, message: impl Into<String>) -> Problem {
    let dot = if path.is_empty() { "" } else { "." };
    document.problem(&format!("{ROOT}{dot}{path}"), message)
}

/// Backup location.
#[derive(Debug)]
pub struct Location {
    settings: Settings,
    encrypted: Option<bool>,
    ca_certificates: Option<String>,
    /// It is the location of backups that name none, or not.
    default: Option<bool>,
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.view().serialize(serializer)
    }
}

impl Location {
    /// Takes a location from a document; paths are relative to its directory.
    pub fn take(document: &mut Document, secrets: &SecretSet) -> Result<Self, Problem> {
        let source = Arc::clone(&document.source);
        let mut fields = Fields::take(document, &source.dir)?;
        fields.complete(secrets).map_err(|message| problem(document, "", message))?;
        fields.name_keys(document);
        fields.values.remove(SYNC);
        let default = fields.values.remove(DEFAULT).map(bool::deserialize).transpose();
        let default = default.map_err(|error| problem(document, DEFAULT, error.to_string()))?;
        let encrypted = fields.values.remove(ENCRYPTED).map(bool::deserialize).transpose();
        let encrypted = encrypted.map_err(|error| problem(document, ENCRYPTED, error.to_string()))?;
        let provider = fields.text(STORE_TYPE).unwrap_or_default().to_owned();
        let values = Value::from(std::mem::take(&mut fields.values));
        let settings: Result<Settings, _> = serde_path_to_error::deserialize(values);
        let settings = settings.map_err(|error| {
            let setting = error.path().to_string();
            let is_it = |(known, path, _): &&(&str, &str, &str)| {
                *known == setting && path.split_once("Config.").is_none_or(|(of, _)| of == provider)
            };
            let path = FIELDS.iter().find(is_it).map_or("", |(_, path, _)| path);
            problem(document, path, error.inner().to_string())
        })?;
        let location = Self { settings, encrypted, ca_certificates: fields.ca_certificates, default };
        if location.settings.proxy.as_deref().is_some_and(has_user) {
            let message = "the URL must not have a user or password, because listings show it";
            return Err(problem(document, "proxy", message));
        }
        if location.has_passphrase() && encrypted == Some(false) {
            return Err(problem(document, ENCRYPTED, "a location with an encryptionKey is encrypted"));
        }
        Ok(location)
    }

    /// Returns true if it is to be the location of backups that name none.
    pub fn is_default(&self) -> bool {
        self.default == Some(true)
    }

    /// Returns true if it is not to be that location.
    pub fn is_other(&self) -> bool {
        self.default == Some(false)
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
        let key = key.or_else(|| is_identity.then(|| "the instance identity".to_owned()));
        let key = key.filter(|_| self.gives_store_key()).map(|was| (STORE_KEY, was));
        let passphrase = current.encryption_key_from.as_ref().filter(|_| self.gives_passphrase());
        key.into_iter().chain(passphrase.map(|was| (PASSPHRASE, was.to_string()))).collect()
    }

    /// Returns the request that creates the credential, with its secrets.
    pub fn request(&self, name: &CredentialName, labels: &Labels) -> Result<CreateCredential, Failure> {
        let args = CreateArgs { name: name.clone(), file: None, settings: self.settings.clone() };
        let mut request = create::request(args)?;
        request.labels = labels.clone();
        if self.ca_certificates.is_some() {
            request.connection.ca_certificates = self.ca_certificates.clone();
        }
        if self.encrypted.is_some_and(|wanted| wanted != request.encryption_passphrase.is_some()) {
            let message =
                "--encryption-passphrase: an encrypted location needs a passphrase, and only such a location";
            return Err(Failure::usage(message));
        }
        Ok(request)
    }

    /// Returns a failure with the fields of the document in place of the options of a command.
    pub fn in_fields(&self, failure: Failure, document: &Document) -> Failure {
        let provider = self.settings.provider.unwrap_or_default().name();
        let typed = |text: &str| text.replace(&format!("--provider {provider}"), &format!("type {provider}"));
        let named = |text: &str| with_fields(&typed(text), provider, document);
        match failure {
            // Its keys have other names in a converted document.
            Failure::Usage { hint, .. }
                if document.origin(STORE_KEY).is_some() && !self.gives_store_key() =>
            {
                let message =
                    document.at(STORE_KEY, "a secret with the access keys of the store is expected");
                Failure::Usage { message, hint }
            }
            Failure::Usage { message, hint } => {
                Failure::Usage { message: document.at(ROOT, named(&message)), hint }
            }
            Failure::Client(ClientError::Api(error)) => {
                let hint = error.next_action(&fields_of(&error.settings, provider, document));
                let message = document.at(ROOT, error.message);
                ApiError { hint, ..ApiError::new(error.code, message) }.into()
            }
            other => other,
        }
    }

    /// Returns the request that sets the access of this location, with its secrets; unset fields stay.
    pub fn update(&self, kept: ProviderKind) -> Result<UpdateCredential, Failure> {
        update::request(&self.settings, kept)
    }

    /// Returns the bandwidth limits: those that are given, and the current ones.
    pub fn limits(&self, current: &Credential) -> CredentialLimits {
        let Settings { limit_upload, limit_download, limit_time_zone, .. } = self.settings.clone();
        changed_limits(current, limit_upload, limit_download, limit_time_zone)
    }

    /// Returns the location without secrets, in the form that the daemon reports.
    fn view(&self) -> Value {
        let mut values = self.settings.given();
        let scheme = values.get("s3-endpoint").and_then(Value::as_str);
        let scheme = scheme.and_then(|url| Some(url.split_once("://")?.0.to_owned()));
        let is_plain = self.settings.s3_disable_ssl || scheme.as_deref() == Some("http");
        if is_plain || scheme.as_deref() == Some("https") {
            values.insert("s3-disable-ssl".to_owned(), is_plain.into());
        }
        for endpoint in ["s3-endpoint", "azure-endpoint", "google-endpoint"] {
            if let Some(Value::String(url)) = values.get_mut(endpoint) {
                let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
                *url = host.strip_suffix('/').unwrap_or(host).to_owned();
            }
        }
        values.retain(|setting, _| !is_secret(setting) && UNREPORTED.split(' ').all(|one| one != setting));
        if let Some(bucket) = values.remove("bucket") {
            values.insert("path".to_owned(), bucket);
        }
        let encrypted = self.has_passphrase().then_some(true).or(self.encrypted);
        values.insert(ENCRYPTED.to_owned(), encrypted.into());
        // The defaults are not reported.
        values.retain(|setting, value| setting != "compression" || *value != "auto");
        values.retain(|setting, value| setting != "deduplicate" || *value != "repository");
        values.insert(DEFAULT.to_owned(), self.default.filter(|is_it| *is_it).into());
        spelled(self.settings.provider.unwrap_or_default(), &values)
    }
}

/// Returns the values of settings as the fields of a location. A secret is its reference.
fn spelled(provider: ProviderKind, values: &Map<String, Value>) -> Value {
    let config = format!("{provider}Config");
    let is_local = provider == ProviderKind::Local;
    let mut whole = if is_local { json!({}) } else { json!({ (config.as_str()): {} }) };
    for (setting, path, _) in FIELDS {
        let from = || Some(json!({ "from": values.get(&format!("{setting}-from"))? }));
        let Some(value) = values.get(*setting).cloned().or_else(from) else { continue };
        match path.split_once('.') {
            None => whole[*path] = value,
            Some((section, name)) if section == config => whole[section][name] = value,
            Some(_) => {}
        }
    }
    view(&whole)
}

/// Returns a credential of the daemon as a location.
pub fn view_of(one: &Credential) -> Value {
    let (store, auth) = (&one.store, one.store.auth.as_deref().unwrap_or_default());
    let key = match store.provider {
        // It has no secret.
        ProviderKind::Local => "",
        ProviderKind::S3 => "s3-secret-key-from",
        ProviderKind::Azure if auth == "account key" => "azure-account-key-from",
        ProviderKind::Azure => "azure-sas-token-from",
        ProviderKind::Google => "google-json-key-from",
        ProviderKind::Swift if store.user.is_some() => "swift-key-from",
        ProviderKind::Swift => "swift-token-from",
    };
    let path = store.path.as_ref().map(|path| path.display().to_string()).or(store.bucket.clone());
    let [upload, download] = limits_of(one).map(|limit| (!limit.is_none()).then_some(limit));
    let role = store.s3.role.as_ref();
    let values = json!({
        "provider": store.provider, "path": path.unwrap_or_default(), "prefix": one.prefix, "proxy": one.proxy,
        "limit-upload": upload, "limit-download": download, "limit-time-zone": one.limit_time_zone,
        "compression": (!one.compression.is_auto()).then_some(one.compression),
        "deduplicate": (!one.deduplicate.is_default()).then_some(one.deduplicate),
        "encrypted": one.encrypted, "default": one.is_default.then_some(true), "use-iam": auth.ends_with(" identity").then_some(true),
        "s3-endpoint": store.endpoint, "azure-endpoint": store.endpoint, "google-endpoint": store.endpoint,
        "s3-region": store.region, "s3-access-key": store.s3.access_key, "s3-storage-class": store.s3.storage_class,
        "s3-disable-ssl": store.ssl_enabled.map(|is_enabled| !is_enabled),
        "disable-path-style": store.s3.path_style.map(|is_enabled| !is_enabled),
        "s3-role-arn": role.map(|role| &role.arn), "s3-external-id": role.and_then(|role| role.external_id.as_ref()),
        "azure-account-name": store.account, "google-project-id": store.project, "swift-auth-url": store.endpoint,
        "swift-user": store.user, "swift-region": store.region, "swift-project-name": store.project
    });
    let Value::Object(mut values) = values else { return Value::Null };
    let passphrase = "encryption-passphrase-from";
    for (setting, from) in [(key, &store.store_key_from), (passphrase, &one.encryption_key_from)] {
        values.extend(from.as_ref().map(|from| (setting.to_owned(), json!(from))));
    }
    spelled(store.provider, &values)
}

/// Returns true if a URL has a user, and perhaps a password.
fn has_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}
