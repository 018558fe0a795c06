//! Request of `credentials create`, from options, a file, the environment and secret sources.

use super::{
    args::CreateArgs,
    settings::{Defaults, Settings, variable},
};
use crate::{failure::Failure, secrets::read_file};
use blockd_api::{
    Labels,
    credentials::{Connection, CreateCredential},
};
use std::path::Path;

/// Builds the request from options and file, and reads secrets.
///
/// # Errors
/// A setting is missing or contradictory, or a file cannot be read.
pub fn request(args: CreateArgs) -> Result<CreateCredential, Failure> {
    let CreateArgs { name, file, mut settings } = args;
    if let Some(file) = &file {
        settings = settings.completed(&read_settings(file)?)?;
    }
    let provider = settings
        .provider
        .ok_or_else(|| Failure::usage("--provider is missing: local, s3, azure, google or swift"))?;
    settings.refuse_foreign(provider, &format!("and --provider {provider} was given"))?;
    settings.refuse_two_on_stdin("secrets", file.as_deref())?;
    let encryption_passphrase = settings.passphrase(Defaults::Environment)?;
    let connection = connection(&settings)?;
    let (provider, labels) = (settings.config(provider)?, Labels::default());
    Ok(CreateCredential { name, provider, connection, encryption_passphrase, labels })
}

/// Reads settings in TOML or JSON.
///
/// # Errors
/// The file cannot be read, or has another form.
pub fn read_settings(path: &Path) -> Result<Settings, Failure> {
    let text = read_file("settings", path)?;
    let is_json = text.expose().trim_start().starts_with('{');
    let (line, what) = if is_json {
        match serde_json::from_str(text.expose()) {
            Ok(settings) => return Ok(settings),
            Err(error) => (error.line(), error.to_string()),
        }
    } else {
        match toml::from_str(text.expose()) {
            Ok(settings) => return Ok(settings),
            Err(error) => {
                let before = error.span().and_then(|span| text.expose().get(..span.start));
                (before.map_or(1, |before| before.matches('\n').count() + 1), error.message().to_owned())
            }
        }
    };
    // Other messages of the parser quote values, which may be secrets.
    let what = match what.strip_prefix("unknown field ").and_then(|rest| rest.split(',').next()) {
        Some(field) => format!("unknown setting {field}"),
        None => "invalid syntax".to_owned(),
    };
    Err(Failure::usage(format!("--file {}: line {line}: {what}", path.display())))
}

fn connection(settings: &Settings) -> Result<Connection, Failure> {
    let ca_certificates = settings.ca_certificate.as_deref().map(|path| read_file("CA certificate", path));
    let proxy =
        match (&settings.proxy, settings.use_proxy) {
            (Some(proxy), false) => Some(proxy.clone()),
            (None, false) => None,
            (None, true) => {
                let found = variable(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]);
                Some(found.ok_or_else(|| {
                    Failure::usage("--use-proxy: there is no HTTPS_PROXY in the environment")
                })?)
            }
            (Some(_), true) => {
                return Err(Failure::usage("--proxy and --use-proxy are both given: drop one of them"));
            }
        };
    let upload = settings.limit_upload.clone().unwrap_or_default();
    let download = settings.limit_download.clone().unwrap_or_default();
    Ok(Connection {
        prefix: settings.prefix.clone(),
        ca_certificates: ca_certificates.transpose()?.map(|text| text.expose().to_owned()),
        proxy,
        limit_upload_bytes_per_second: upload.otherwise_bytes_per_s,
        limit_download_bytes_per_second: download.otherwise_bytes_per_s,
        limit_upload_windows: upload.windows,
        limit_download_windows: download.windows,
        limit_time_zone: settings.limit_time_zone.clone(),
        compression: settings.compression.unwrap_or_default(),
        deduplicate: settings.deduplicate.unwrap_or_default(),
    })
}
