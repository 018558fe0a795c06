//! Stores: validation of their settings, opening, and description for the API.

use crate::{
    error::{Advice, ServiceError, spawned, store_hint},
    repositories::limits::{LimitPlan, PlannedBandwidth, limits_of},
};
use blockd_api::{
    ApiError, ErrorCode,
    credentials::{Connection, Credential, ProviderKind, StoreConfig, StoreView},
};
use blockd_catalog::{CredentialRow, StoreRow};
use blockd_store::{BlobStore, HttpOptions, StoreErrorKind, Work, plain_prefix};
use jiff::Timestamp;
use std::{path::Path, sync::Arc};
use zeroize::Zeroizing;

/// Advice on the access of an S3 server.
pub(super) const S3_ACCESS: Advice =
    Advice::check(&["s3-access-key", "s3-secret-key", "use-iam", "s3-role-arn", "s3-external-id"]);
/// Advice on the access of Google's storage.
pub(super) const GOOGLE_ACCESS: Advice =
    Advice::check(&["google-json-key", "use-iam"]).or("check the roles of that account");
/// Advice on a server that does not reply.
pub(super) const SERVER: &str = "check whether the server runs";

/// Returns the advice on an error of a store of this provider.
pub fn hint(kind: ProviderKind, code: ErrorCode, store: Option<StoreErrorKind>) -> Option<Advice> {
    // The store's own message is more specific than the kind of the error.
    let specific = |store: &StoreErrorKind| {
        kind == ProviderKind::S3 || matches!(store, StoreErrorKind::WrongClock | StoreErrorKind::Archived)
    };
    if let Some(advice) = store.filter(specific).and_then(store_hint) {
        return Some(advice);
    }
    if code == ErrorCode::InvalidRequest && store.is_none() {
        return None;
    }
    let bucket = "create the bucket or container first, if it is missing";
    let settings: &'static [&'static str] = match (kind, code) {
        (ProviderKind::Local, ErrorCode::BucketMissing) => {
            return Some(Advice::check(&["path"]).or("create the directory first, if it is missing"));
        }
        (ProviderKind::Local, ErrorCode::StoreFull) => {
            return Some(Advice::check(&["path"]).or("free space on its filesystem, or use another one"));
        }
        (ProviderKind::S3, ErrorCode::StoreUnauthorized) => return Some(S3_ACCESS),
        (ProviderKind::Google, ErrorCode::StoreUnauthorized) => return Some(GOOGLE_ACCESS),
        (ProviderKind::Azure, ErrorCode::StoreUnauthorized) => {
            &["azure-account-name", "azure-account-key", "azure-sas-token", "use-iam"]
        }
        (ProviderKind::Swift, ErrorCode::StoreUnauthorized) => &["swift-user", "swift-key", "swift-token"],
        (ProviderKind::S3, ErrorCode::BucketMissing) => {
            return Some(Advice::check(&["bucket", "disable-path-style"]).or(bucket));
        }
        (_, ErrorCode::BucketMissing) => return Some(Advice::check(&["bucket"]).or(bucket)),
        (ProviderKind::S3, ErrorCode::StoreUnreachable) => {
            &["s3-endpoint", "s3-disable-ssl", "disable-path-style", "ca-certificate", "proxy"]
        }
        (ProviderKind::Azure, ErrorCode::StoreUnreachable) => {
            &["azure-account-name", "azure-endpoint", "ca-certificate", "proxy"]
        }
        (ProviderKind::Google, ErrorCode::StoreUnreachable) => {
            &["google-endpoint", "ca-certificate", "proxy"]
        }
        (ProviderKind::Swift, ErrorCode::StoreUnreachable) => &["swift-auth-url", "ca-certificate", "proxy"],
        (ProviderKind::S3, ErrorCode::StoreFailed) => {
            let text = "it must be an S3 server, with TLS or without it as the settings say";
            return Some(Advice::check(&["s3-endpoint", "s3-disable-ssl"]).or(text));
        }
        (ProviderKind::S3, ErrorCode::InvalidRequest) => {
            &["s3-endpoint", "bucket", "disable-path-style", "s3-storage-class"]
        }
        (ProviderKind::Azure, ErrorCode::InvalidRequest) => {
            &["azure-account-name", "azure-account-key", "azure-sas-token", "azure-endpoint", "bucket"]
        }
        (ProviderKind::Google, ErrorCode::InvalidRequest) => {
            &["google-json-key", "google-endpoint", "bucket"]
        }
        (ProviderKind::Swift, ErrorCode::InvalidRequest) => {
            &["swift-auth-url", "swift-storage-url", "bucket"]
        }
        _ => return None,
    };
    let text = if code == ErrorCode::StoreUnreachable { SERVER } else { "" };
    Some(Advice::check(settings).or(text))
}

/// Refuses settings, which the message does not name.
pub(crate) fn invalid_settings(message: impl Into<String>, settings: &[&str]) -> ServiceError {
    ServiceError::Refused(ApiError::new(ErrorCode::InvalidRequest, message).with_settings(settings))
}

pub(crate) fn invalid<T>(message: impl Into<String>) -> Result<T, ServiceError> {
    Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
}

/// Returns the settings of a request, checked.
///
/// # Errors
/// A setting is missing, contradictory or invalid.
pub(crate) fn checked(
    config: StoreConfig,
    mut connection: Connection,
    data_dir: &Path,
) -> Result<StoreRow, ServiceError> {
    let prefix = plain_prefix(connection.prefix.as_deref().unwrap_or_default());
    connection.prefix = prefix.map_err(|error| invalid_settings(error.to_string(), &["prefix"]))?;
    let is_on_network = connection.proxy.is_some() || connection.ca_certificates.is_some();
    check_network(config.kind(), is_on_network)?;
    LimitPlan::of(&limits_of(&connection))?;
    if let StoreConfig::Local { path } = &config {
        check_directory(path, connection.prefix.as_deref(), data_dir)?;
    }
    config.check()?;
    Ok(StoreRow { config, connection })
}

/// Refuses network settings for a directory store.
pub(crate) fn check_network(kind: ProviderKind, is_on_network: bool) -> Result<(), ServiceError> {
    match kind == ProviderKind::Local && is_on_network {
        true => {
            let message = "a proxy and certificates apply to network stores only: omit them for a directory";
            Err(invalid_settings(message, &["proxy", "ca-certificate"]))
        }
        false => Ok(()),
    }
}

fn check_directory(path: &Path, prefix: Option<&str>, data_dir: &Path) -> Result<(), ServiceError> {
    if !path.is_absolute() {
        let message = format!("the path {} is relative: give an absolute one", path.display());
        return Err(invalid_settings(message, &["path"]));
    }
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (path, data_dir) = (real(&real(path).join(prefix.unwrap_or_default())), real(data_dir));
    if path.starts_with(&data_dir) {
        let message = format!(
            "{} is inside blockd's data directory {}: a backup there is lost with it; choose a directory on another disk",
            path.display(),
            data_dir.display()
        );
        return Err(invalid_settings(message, &["path"]));
    }
    Ok(())
}

/// Creates the client of the whole store, without a request. `writing` applies to directories.
///
/// # Errors
/// A setting is invalid, or a directory is missing.
pub fn open(
    row: &StoreRow,
    secret: Option<&str>,
    writing: Option<Work>,
) -> Result<Arc<dyn BlobStore>, ServiceError> {
    Ok(blockd_store::open(&row.config.clone().with_secret_value(secret), &http_options(row), writing)?)
}

fn http_options(row: &StoreRow) -> HttpOptions {
    HttpOptions {
        ca_certificates_pem: row.connection.ca_certificates.clone(),
        proxy: row.connection.proxy.clone(),
        ..HttpOptions::default()
    }
}

/// Creates the bucket of a store, unless it exists; returns true if it was created.
///
/// # Errors
/// The store cannot be reached, or refuses the creation.
pub(crate) async fn create_bucket(
    row: &StoreRow,
    secret: Option<Zeroizing<String>>,
) -> Result<bool, ServiceError> {
    let config = row.config.clone().with_secret_value(secret.as_ref().map(|text| text.as_str()));
    let http = http_options(row);
    let created = spawned(async move { blockd_store::create_bucket(&config, &http).await }).await?;
    if created {
        tracing::info!(bucket = StoreView::from(&row.config).bucket, "bucket created");
    }
    Ok(created)
}

/// Adds to the error of a location that its new bucket stays: only the store knows whether it is in use by
/// now, so that a deletion would not be safe.
pub(crate) fn with_kept_bucket(error: &ServiceError, row: &StoreRow) -> ServiceError {
    let mut error = error.to_api();
    let bucket = StoreView::from(&row.config).bucket.unwrap_or_default();
    let kept = format!("bucket {bucket} exists now, and a repeated command uses it");
    error.hint = Some(error.hint.map_or_else(|| kept.clone(), |hint| format!("{hint}; {kept}")));
    ServiceError::Refused(error)
}

/// Returns the bandwidth limit that all tasks of a credential share.
///
/// # Errors
/// The stored limits are invalid.
pub fn bandwidth(row: &StoreRow) -> Result<Arc<PlannedBandwidth>, ServiceError> {
    Ok(PlannedBandwidth::new(LimitPlan::of(&limits_of(&row.connection))?, Timestamp::now()))
}

/// Describes a credential for the API.
pub fn describe(row: &CredentialRow) -> Credential {
    let connection = &row.store.connection;
    Credential {
        credential_id: row.uuid,
        name: row.name.clone(),
        store: StoreView::from(&row.store.config),
        prefix: connection.prefix.clone(),
        proxy: connection.proxy.clone(),
        has_ca_certificates: connection.ca_certificates.is_some(),
        limit_upload_bytes_per_second: connection.limit_upload_bytes_per_second,
        limit_download_bytes_per_second: connection.limit_download_bytes_per_second,
        limit_upload_windows: connection.limit_upload_windows.clone(),
        limit_download_windows: connection.limit_download_windows.clone(),
        limit_time_zone: connection.limit_time_zone.clone(),
        compression: connection.compression,
        deduplicate: connection.deduplicate,
        encrypted: row.encrypted,
        encryption_key_from: row.passphrase_from.clone(),
        conditional_put: row.capabilities.conditional_put,
        created_at: row.created,
        write_bytes_per_second: Some(row.capabilities.write_bytes_per_s).filter(|measured| *measured > 0),
        is_default: false,
        labels: row.labels.clone(),
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repositories::opening::{StoreKey, open_store};
    use blockd_secrets::{References, SecretsConfig};

    fn refused(config: StoreConfig, connection: Connection) -> ApiError {
        checked(config, connection, Path::new("/var/lib/blockd")).map(drop).unwrap_err().to_api()
    }

    #[test]
    fn invalid_setting_is_refused_by_its_name() {
        let local = || StoreConfig::Local { path: "/srv".into() };
        for (connection, setting) in [
            (Connection { proxy: Some("http://p:1".into()), ..Connection::default() }, "proxy"),
            (Connection { limit_upload_bytes_per_second: Some(1), ..Connection::default() }, "limit-upload"),
            (
                Connection { limit_download_bytes_per_second: Some(0), ..Connection::default() },
                "limit-download",
            ),
        ] {
            let error = refused(local(), connection);
            assert!(error.settings.iter().any(|one| one == setting), "{error:?}");
        }
        let google: StoreConfig = serde_json::from_str(r#"{"type":"google","bucket":"b"}"#).unwrap();
        assert_eq!(refused(google, Connection::default()).settings, ["google-json-key"]);
    }

    #[test]
    fn prefix_is_normalized_and_part_of_the_place() {
        let prefix = |prefix: &str| Connection { prefix: Some(prefix.to_owned()), ..Connection::default() };
        let local = |path: &Path| StoreConfig::Local { path: path.to_owned() };
        let (dir, data_dir) = (tempfile::tempdir().unwrap(), Path::new("/var/lib/blockd"));
        let row = checked(local(dir.path()), prefix("/demo/"), data_dir).unwrap();
        assert_eq!(row.connection.prefix.as_deref(), Some("demo"));
        let references = References::new(&SecretsConfig::default(), None);
        let opened = open_store(&row, &StoreKey::None, None, &references).unwrap();
        assert!(opened.describe().ends_with(", below demo"));
        let row = checked(local(dir.path()), prefix("/"), data_dir).unwrap();
        assert_eq!(row.connection, Connection::default());
        for bad in ["a//b", "../x", "a b"] {
            assert_eq!(refused(local(dir.path()), prefix(bad)).settings, ["prefix"], "{bad}");
        }
        // A directory in which the data directory is, and the prefix that leads there.
        assert!(
            refused(local(Path::new("/")), prefix("var/lib/blockd/x")).message.contains("data directory")
        );
    }

    #[test]
    fn provider_errors_name_their_own_settings() {
        for (kind, setting) in [
            (ProviderKind::S3, "s3-secret-key"),
            (ProviderKind::Azure, "azure-account-key"),
            (ProviderKind::Google, "google-json-key"),
            (ProviderKind::Swift, "swift-key"),
        ] {
            let told = hint(kind, ErrorCode::StoreUnauthorized, None).unwrap();
            assert!(told.settings.contains(&setting), "{told:?}");
        }
        assert_eq!(hint(ProviderKind::Local, ErrorCode::Internal, None), None);
        for (store, word) in [
            (StoreErrorKind::WrongStyle, "disable-path-style"),
            (StoreErrorKind::WrongRegion, "s3-region"),
            (StoreErrorKind::WrongClock, "clock"),
            (StoreErrorKind::Archived, "s3-storage-class"),
            (StoreErrorKind::Unauthorized, "s3-secret-key"),
        ] {
            let told = hint(ProviderKind::S3, ErrorCode::StoreUnauthorized, Some(store)).unwrap();
            assert!(told.settings.contains(&word) || told.text.contains(word), "{told:?}");
        }
        for (kind, setting) in [
            (ProviderKind::Azure, "azure-account-key"),
            (ProviderKind::Google, "google-json-key"),
            (ProviderKind::Swift, "swift-auth-url"),
        ] {
            let told = hint(kind, ErrorCode::InvalidRequest, Some(StoreErrorKind::Misconfigured));
            assert!(told.is_some_and(|told| told.settings.contains(&setting)), "{told:?}");
        }
        let told = hint(ProviderKind::Swift, ErrorCode::StoreUnreachable, Some(StoreErrorKind::WrongScheme));
        assert!(told.is_some_and(|told| told.settings.contains(&"swift-auth-url")), "{told:?}");
    }
}
