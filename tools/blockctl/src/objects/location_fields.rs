//! Fields of backup locations, by dialect: a table from fields to settings of `blockctl credentials create`,
//! whose types check the values.

use super::{
    document::{Document, Problem},
    values::{SecretSource, absolute},
};
use crate::{
    commands::credentials::settings::{Settings, is_secret},
    secrets::read_file,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Fields of locations of one system.
pub struct Dialect {
    /// Field of the content.
    pub root: &'static str,
    /// Fields with fields of their own.
    pub sections: &'static [&'static str],
    /// Paths of fields, where `*` is any section, and their settings.
    pub fields: &'static [(&'static str, &'static str)],
}

/// Directory with a file for each key of a secret.
pub const SECRET_DIR: &str = "secret-dir";
/// Field without a meaning here.
pub const IGNORED: &str = "ignored";
const ENCRYPTED: &str = "encrypted";
const STORE_TYPE: &str = "provider";

/// Location as Stork's custom resource writes it.
pub const STORK: &Dialect = &Dialect {
    root: "location",
    sections: &["s3Config", "azureConfig", "googleConfig", "swiftConfig"],
    fields: STORK_FIELDS,
};
const STORK_FIELDS: &[(&str, &str)] = &[
    ("type", STORE_TYPE),
    ("path", "path"),
    ("prefix", "prefix"),
    // Backups of other hosts are always visible.
    ("sync", IGNORED),
    ("secretConfig", SECRET_DIR),
    ("encrypted", ENCRYPTED),
    ("encryptionKey", "encryption-passphrase"),
    ("proxy", "proxy"),
    ("caCertificate", "ca-certificate"),
    ("limitUpload", "limit-upload"),
    ("limitDownload", "limit-download"),
    ("limitTimeZone", "limit-time-zone"),
    ("s3Config.endpoint", "s3-endpoint"),
    ("s3Config.region", "s3-region"),
    ("s3Config.accessKeyID", "s3-access-key"),
    ("s3Config.secretAccessKey", "s3-secret-key"),
    ("s3Config.useIAM", "use-iam"),
    ("s3Config.disableSSL", "s3-disable-ssl"),
    ("s3Config.disablePathStyle", "disable-path-style"),
    ("s3Config.storageClass", "s3-storage-class"),
    ("s3Config.roleARN", "s3-role-arn"),
    ("s3Config.externalID", "s3-external-id"),
    ("s3Config.stsEndpoint", "s3-sts-endpoint"),
    ("azureConfig.storageAccountName", "azure-account-name"),
    ("azureConfig.storageAccountKey", "azure-account-key"),
    ("azureConfig.sasToken", "azure-sas-token"),
    ("azureConfig.useManagedIdentity", "use-iam"),
    ("azureConfig.endpoint", "azure-endpoint"),
    ("azureConfig.clientID", "azure-client-id"),
    ("googleConfig.projectID", "google-project-id"),
    ("googleConfig.accountKey", "google-json-key"),
    ("googleConfig.useIAM", "use-iam"),
    ("googleConfig.endpoint", "google-endpoint"),
    ("swiftConfig.authVersion", "swift-auth-version"),
    ("swiftConfig.authURL", "swift-auth-url"),
    ("swiftConfig.user", "swift-user"),
    ("swiftConfig.key", "swift-key"),
    ("swiftConfig.token", "swift-token"),
    ("swiftConfig.region", "swift-region"),
    ("swiftConfig.project", "swift-project-name"),
    ("swiftConfig.tenantName", "swift-tenant-name"),
    ("swiftConfig.tenantID", "swift-tenant-id"),
    ("swiftConfig.userDomainName", "swift-user-domain-name"),
    ("swiftConfig.projectDomainName", "swift-project-domain-name"),
    ("swiftConfig.storageURL", "swift-storage-url"),
];
/// Settings of the keys of a secret directory, as `kubectl create secret generic --from-file` takes it.
const SECRET_KEYS: [(&str, &str, &str); 21] = [
    ("s3", "AWS_ACCESS_KEY_ID accessKeyID", "s3-access-key"),
    ("s3", "AWS_SECRET_ACCESS_KEY secretAccessKey", "s3-secret-key"),
    ("s3", "region", "s3-region"),
    ("s3", "endpoint", "s3-endpoint"),
    ("s3", "disableSSL", "s3-disable-ssl"),
    ("azure", "AZURE_ACCOUNT_NAME storageAccountName", "azure-account-name"),
    ("azure", "AZURE_ACCOUNT_KEY storageAccountKey", "azure-account-key"),
    ("google", "GOOGLE_PROJECT_ID projectID", "google-project-id"),
    ("google", "GOOGLE_SERVICE_ACCOUNT_JSON_KEY accountKey", "google-json-key"),
    ("swift", "ST_AUTH OS_AUTH_URL", "swift-auth-url"),
    ("swift", "ST_USER OS_USERNAME", "swift-user"),
    ("swift", "ST_KEY OS_PASSWORD", "swift-key"),
    ("swift", "OS_REGION_NAME", "swift-region"),
    ("swift", "OS_TENANT_NAME", "swift-tenant-name"),
    ("swift", "OS_TENANT_ID", "swift-tenant-id"),
    ("swift", "OS_USER_DOMAIN_NAME", "swift-user-domain-name"),
    ("swift", "OS_PROJECT_NAME", "swift-project-name"),
    ("swift", "OS_PROJECT_DOMAIN_NAME", "swift-project-domain-name"),
    ("swift", "OS_STORAGE_URL", "swift-storage-url"),
    ("swift", "OS_AUTH_TOKEN", "swift-token"),
    ("", "encryptionKey", "encryption-passphrase"),
];

/// Returns the section of a path, and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

fn is_in(known: &str, section: &str) -> bool {
    split(known).0 == section || (split(known).0 == "*" && !section.is_empty())
}

/// Values of a location by setting.
pub struct LocationFields<'a> {
    dir: &'a Path,
    dialect: &'static Dialect,
    /// Sections that are given.
    pub sections: Vec<String>,
    values: Map<String, Value>,
}

impl<'a> LocationFields<'a> {
    /// Takes the fields of a location; paths are relative to a directory.
    pub fn take(document: &mut Document, dialect: &'static Dialect, dir: &'a Path) -> Result<Self, Problem> {
        let mut fields = Self { dir, dialect, sections: Vec::new(), values: Map::new() };
        for (name, value) in document.take::<Map<String, Value>>(dialect.root)? {
            let is_section = dialect.sections.contains(&name.as_str());
            match value {
                Value::Object(inner) if is_section => {
                    for (field, value) in inner {
                        fields.put(document, &format!("{name}.{field}"), value)?;
                    }
                    fields.sections.push(name);
                }
                _ if is_section => return Err(fields.problem(document, &name, "a mapping is expected")),
                value => fields.put(document, &name, value)?,
            }
        }
        Ok(fields)
    }

    /// Returns a problem of a field.
    fn problem(&self, document: &Document, path: &str, message: impl Into<String>) -> Problem {
        let dot = if path.is_empty() { "" } else { "." };
        document.problem(&format!("{}{dot}{path}", self.dialect.root), message)
    }

    /// Sets the setting of a field; an unknown field is an error in all dialects so far.
    fn put(&mut self, document: &Document, path: &str, value: Value) -> Result<(), Problem> {
        let (section, name) = split(path);
        let siblings = || self.dialect.fields.iter().filter(|(known, _)| is_in(known, section));
        let Some((_, setting)) = siblings().find(|(known, _)| split(known).1 == name) else {
            let mut known: Vec<&str> = siblings().map(|(known, _)| split(known).1).collect();
            known.extend(self.dialect.sections.iter().filter(|_| section.is_empty()));
            let message = format!("unknown field `{name}`, expected one of `{}`", known.join("`, `"));
            return Err(self.problem(document, path, message));
        };
        if !is_secret(setting) {
            self.values.insert((*setting).to_owned(), value);
            return Ok(());
        }
        let refused = |message: String| self.problem(document, "", format!("{path}: {message}"));
        let secret = SecretSource::deserialize(value);
        let secret = secret.map_err(|error| self.problem(document, path, error.to_string()))?;
        let (suffix, value) = match secret {
            SecretSource::File(path) => ("-file", absolute(self.dir, &path).display().to_string()),
            SecretSource::Reference(from) => ("-from", from.to_string()),
            _ if *setting == "google-json-key" => {
                return Err(refused(
                    "give `file: PATH`, or a reference such as `from: command:PATH`".to_owned(),
                ));
            }
            SecretSource::Value(secret) => ("", secret.expose().to_owned()),
            SecretSource::Variable(name) => match std::env::var(&name) {
                Ok(text) if !text.is_empty() => ("", text),
                _ => return Err(refused(format!("the environment variable {name} is empty or unset"))),
            },
        };
        self.values.insert(format!("{setting}{suffix}"), value.into());
        Ok(())
    }

    /// Sets the provider, for dialects without a field for it.
    pub fn set_provider(&mut self, provider: &str) {
        self.values.insert(STORE_TYPE.to_owned(), provider.into());
    }

    /// Returns true if a setting is given.
    pub fn has(&self, setting: &str) -> bool {
        self.values.contains_key(setting)
    }

    fn text(&self, setting: &str) -> Option<&str> {
        self.values.get(setting).and_then(Value::as_str)
    }

    /// Checks the sections, makes paths absolute, and adds the keys of a secret directory.
    fn complete(&mut self) -> Result<(), String> {
        let provider = match self.text(STORE_TYPE) {
            Some("nfs") => "local",
            Some("gcs") => "google",
            Some(provider) => provider,
            None => return Err("missing field `type`".to_owned()),
        }
        .to_owned();
        self.set_provider(&provider);
        let is_foreign = |section: &&String| section.strip_suffix("Config").is_some_and(|of| of != provider);
        if let Some(section) = self.sections.iter().find(is_foreign) {
            return Err(format!("{section} does not belong to a location of this type"));
        }
        if provider == "s3" && !self.has(SECRET_DIR) && self.sections.is_empty() {
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
        match self.values.remove(SECRET_DIR) {
            Some(Value::String(dir)) => self.read_secret(&provider, &absolute(self.dir, Path::new(&dir))),
            Some(_) => Err("the directory of a secret is text".to_owned()),
            None => Ok(()),
        }
    }

    /// Reads the keys of a secret directory for settings that no field sets.
    fn read_secret(&mut self, provider: &str, dir: &Path) -> Result<(), String> {
        if !dir.is_dir() {
            let what = "is no directory: a secret is one, with a file for each of its keys";
            return Err(format!("secret {} {what}", dir.display()));
        }
        for (_, keys, setting) in SECRET_KEYS.iter().filter(|(of, ..)| of.is_empty() || *of == provider) {
            let mut files = keys.split(' ').map(|key| dir.join(key)).filter(|path| path.is_file());
            let mut forms = ["", "-file", "-from"].iter().map(|form| format!("{setting}{form}"));
            let Some(path) = files.next().filter(|_| !forms.any(|form| self.has(&form))) else { continue };
            if is_secret(setting) {
                self.values.insert(format!("{setting}-file"), path.display().to_string().into());
            } else if let Ok(text) = read_file("key of a secret", &path) {
                let is_flag = *setting == "s3-disable-ssl";
                let value = if is_flag { (text.expose() == "true").into() } else { text.expose().into() };
                self.values.insert((*setting).to_owned(), value);
            }
        }
        Ok(())
    }

    /// Converts the fields to settings, and the field `encrypted`.
    pub fn into_settings(mut self, document: &Document) -> Result<(Settings, Option<bool>), Problem> {
        self.complete().map_err(|message| self.problem(document, "", message))?;
        self.values.remove(IGNORED);
        let encrypted = self.values.remove(ENCRYPTED).map(bool::deserialize).transpose();
        let encrypted = encrypted.map_err(|error| self.problem(document, ENCRYPTED, error.to_string()))?;
        let provider = self.text(STORE_TYPE).unwrap_or_default().to_owned();
        let values = Value::from(std::mem::take(&mut self.values));
        let settings: Result<Settings, _> = serde_path_to_error::deserialize(values);
        let settings = settings.map_err(|error| {
            let setting = error.path().to_string();
            let is_it = |(path, known): &&(&str, &str)| {
                *known == setting && path.split_once("Config.").is_none_or(|(of, _)| of == provider)
            };
            let field = self.dialect.fields.iter().find(is_it);
            self.problem(document, field.map_or("", |(path, _)| path), error.inner().to_string())
        })?;
        Ok((settings, encrypted))
    }
}
