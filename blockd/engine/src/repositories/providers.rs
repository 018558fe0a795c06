//! Providers: conversion of requests, opening of stores, and their description.

use crate::{
    error::{ServiceError, store_hint},
    repositories::limits::{LimitPlan, PlannedBandwidth, limits_of},
};
use blockd_api::{
    ErrorCode, SecretInput,
    credentials::{AzureAuth, Connection, Credential, ProviderKind, ProviderRequest, SwiftAuth},
};
use blockd_catalog::{AzureAuthRow, CredentialRow, ProviderRow, StoreRow, SwiftAuthRow};
use blockd_store::{
    AzureAccess, AzureOptions, BlobStore, GoogleAccess, GoogleOptions, HttpOptions, LocalStore, S3Access,
    S3Options, S3Role, StoreErrorKind, SwiftAccess, SwiftOptions, Work, plain_prefix,
};
use jiff::Timestamp;
use std::{path::Path, sync::Arc};
use zeroize::Zeroizing;

/// Returns the provider of a request.
pub fn kind_of(request: &ProviderRequest) -> ProviderKind {
    match request {
        ProviderRequest::Local { .. } => ProviderKind::Local,
        ProviderRequest::S3 { .. } => ProviderKind::S3,
        ProviderRequest::Azure { .. } => ProviderKind::Azure,
        ProviderRequest::Google { .. } => ProviderKind::Google,
        ProviderRequest::Swift { .. } => ProviderKind::Swift,
    }
}

/// The kind that is kept.
pub fn kind(row: &ProviderRow) -> ProviderKind {
    match row {
        ProviderRow::Local { .. } => ProviderKind::Local,
        ProviderRow::S3 { .. } => ProviderKind::S3,
        ProviderRow::Azure { .. } => ProviderKind::Azure,
        ProviderRow::Google { .. } => ProviderKind::Google,
        ProviderRow::Swift { .. } => ProviderKind::Swift,
    }
}

/// Returns the hint for an error of a store of this provider.
pub fn hint(kind: ProviderKind, code: ErrorCode, store: Option<StoreErrorKind>) -> Option<&'static str> {
    // The store's own message is more specific than the kind of the error.
    let said = store.filter(|_| kind == ProviderKind::S3 || store == Some(StoreErrorKind::WrongClock));
    if let Some(hint) = said.and_then(store_hint) {
        return Some(hint);
    }
    Some(match (code, kind) {
        (ErrorCode::StoreUnauthorized, ProviderKind::S3) => {
            "look at --s3-access-key and --s3-secret-key, or --use-iam, and at --s3-role-arn and --s3-external-id if a role is taken"
        }
        (ErrorCode::StoreUnauthorized, ProviderKind::Azure) => {
            "look at --azure-account-name and --azure-account-key, or --azure-sas-token, or --use-iam"
        }
        (ErrorCode::StoreUnauthorized, ProviderKind::Google) => {
            "look at --google-json-key-file, or --use-iam, and at the roles of that account"
        }
        (ErrorCode::StoreUnauthorized, ProviderKind::Swift) => {
            "look at --swift-user and --swift-key, or --swift-token"
        }
        (ErrorCode::StoreUnreachable, ProviderKind::S3) => {
            "look at --s3-endpoint, --s3-disable-ssl, --disable-path-style, --ca-certificate and --proxy, and whether the server runs"
        }
        (ErrorCode::StoreUnreachable, ProviderKind::Azure) => {
            "look at --azure-account-name, --azure-endpoint, --ca-certificate and --proxy, and whether the server runs"
        }
        (ErrorCode::StoreUnreachable, ProviderKind::Google) => {
            "look at --google-endpoint, --ca-certificate and --proxy, and whether the server runs"
        }
        (ErrorCode::StoreUnreachable, ProviderKind::Swift) => {
            "look at --swift-auth-url, --ca-certificate and --proxy, and whether the server runs"
        }
        (ErrorCode::BucketMissing, ProviderKind::Local) => "make the directory first, or look at --path",
        (ErrorCode::BucketMissing, ProviderKind::S3) => {
            "make the bucket first, or look at --bucket and --disable-path-style"
        }
        (ErrorCode::StoreFailed, ProviderKind::S3) => {
            "look at whether --s3-endpoint is a server that speaks S3, with TLS or, with --s3-disable-ssl, without it"
        }
        (ErrorCode::StoreFull, ProviderKind::Local) => {
            "make room on the filesystem of --path, or name another one"
        }
        (ErrorCode::InvalidRequest, ProviderKind::S3) if store.is_some() => {
            "look at --s3-endpoint, --bucket, --disable-path-style and --s3-storage-class"
        }
        (ErrorCode::BucketMissing, _) => "make the bucket or container first, or look at --bucket",
        _ => return None,
    })
}

pub(crate) fn invalid<T>(message: impl Into<String>) -> Result<T, ServiceError> {
    Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
}

/// A value that a kind of store needs, by the name of its flag.
pub fn given(flag: &str, value: String) -> Result<String, ServiceError> {
    if value.trim().is_empty() {
        return invalid(format!("{flag} is empty: the store needs it"));
    }
    Ok(value)
}

pub(crate) fn given_secret(flag: &str, secret: Option<SecretInput>) -> Result<SecretInput, ServiceError> {
    match secret {
        Some(secret) if !secret.is_blank() => Ok(secret),
        _ => invalid(format!("{flag} is empty: the store needs it")),
    }
}

/// Returns the settings of a request to store, and its secret, which is sealed or referenced.
///
/// # Errors
/// A setting is missing, contradictory or invalid.
pub fn take(
    request: ProviderRequest,
    mut connection: Connection,
    data_dir: &Path,
) -> Result<(StoreRow, Option<SecretInput>), ServiceError> {
    let prefix = plain_prefix(connection.prefix.as_deref().unwrap_or_default());
    connection.prefix = prefix.or_else(|error| invalid(format!("--prefix: {error}")))?;
    if matches!(request, ProviderRequest::Local { .. })
        && (connection.proxy.is_some() || connection.ca_certificates.is_some())
    {
        return invalid("--proxy and --ca-certificate are for stores on the network, a directory has none");
    }
    LimitPlan::of(&limits_of(&connection))?;
    if let ProviderRequest::Local { path } = &request {
        check_directory(path, connection.prefix.as_deref(), data_dir)?;
    }
    let (provider, secret) = take_provider(request)?;
    Ok((StoreRow { provider, connection }, secret))
}

fn take_provider(request: ProviderRequest) -> Result<(ProviderRow, Option<SecretInput>), ServiceError> {
    let both = |flag: &str| {
        invalid(format!(
            "--use-iam and {flag} are both given: the identity of the machine takes the place of it"
        ))
    };
    Ok(match request {
        ProviderRequest::Local { path } => (ProviderRow::Local { path }, None),
        ProviderRequest::S3 {
            endpoint,
            region,
            bucket,
            access_key,
            secret_key,
            use_iam,
            role,
            disable_ssl,
            disable_path_style,
            storage_class,
        } => {
            if use_iam && (access_key.is_some() || secret_key.is_some()) {
                return both("an access key");
            }
            let (access_key, secret_key) = match use_iam {
                true => (String::new(), None),
                false => (
                    given("--s3-access-key", access_key.unwrap_or_default())?,
                    Some(given_secret("--s3-secret-key", secret_key)?),
                ),
            };
            let row = ProviderRow::S3 {
                endpoint: given("--s3-endpoint", endpoint)?,
                region: given("--s3-region", region)?,
                bucket: given("--bucket", bucket)?,
                access_key,
                disable_ssl,
                disable_path_style,
                use_iam,
                role,
                storage_class,
            };
            (row, secret_key)
        }
        ProviderRequest::Azure { account, container, auth, endpoint, disable_ssl } => {
            let (auth, secret) = match auth {
                AzureAuth::AccountKey { key } => {
                    (AzureAuthRow::AccountKey, Some(given_secret("--azure-account-key", Some(key))?))
                }
                AzureAuth::Sas { token } => {
                    (AzureAuthRow::Sas, Some(given_secret("--azure-sas-token", Some(token))?))
                }
                AzureAuth::ManagedIdentity { client_id } => {
                    (AzureAuthRow::ManagedIdentity { client_id }, None)
                }
            };
            let account = given("--azure-account-name", account)?;
            let container = given("--bucket", container)?;
            (ProviderRow::Azure { account, container, auth, endpoint, disable_ssl }, secret)
        }
        ProviderRequest::Google { project, bucket, json_key, use_iam, endpoint, disable_ssl } => {
            if use_iam && json_key.is_some() {
                return both("--google-json-key-file");
            }
            let secret = match use_iam {
                true => None,
                false => Some(given_secret("--google-json-key-file", json_key)?),
            };
            let bucket = given("--bucket", bucket)?;
            (ProviderRow::Google { project, bucket, use_iam, endpoint, disable_ssl }, secret)
        }
        ProviderRequest::Swift { container, auth } => {
            let (auth, secret) = take_swift(auth)?;
            (ProviderRow::Swift { container: given("--bucket", container)?, auth }, Some(secret))
        }
    })
}

fn take_swift(auth: SwiftAuth) -> Result<(SwiftAuthRow, SecretInput), ServiceError> {
    let secret = |secret| given_secret("--swift-key", Some(secret));
    Ok(match auth {
        SwiftAuth::V1 { auth_url, user, key } => {
            let auth_url = given("--swift-auth-url", auth_url)?;
            (SwiftAuthRow::V1 { auth_url, user: given("--swift-user", user)? }, secret(key)?)
        }
        SwiftAuth::V2 { auth_url, user, password, tenant_name, tenant_id, region } => {
            let auth_url = given("--swift-auth-url", auth_url)?;
            let user = given("--swift-user", user)?;
            (SwiftAuthRow::V2 { auth_url, user, tenant_name, tenant_id, region }, secret(password)?)
        }
        SwiftAuth::V3 { auth_url, user, password, user_domain, project, project_domain, region } => {
            let row = SwiftAuthRow::V3 {
                auth_url: given("--swift-auth-url", auth_url)?,
                user: given("--swift-user", user)?,
                user_domain: given("--swift-user-domain-name", user_domain)?,
                project: given("--swift-project-name", project)?,
                project_domain: given("--swift-project-domain-name", project_domain)?,
                region,
            };
            (row, secret(password)?)
        }
        SwiftAuth::Token { storage_url, token } => {
            let storage_url = given("--swift-storage-url", storage_url)?;
            (SwiftAuthRow::Token { storage_url }, given_secret("--swift-token", Some(token))?)
        }
    })
}

fn check_directory(path: &Path, prefix: Option<&str>, data_dir: &Path) -> Result<(), ServiceError> {
    if !path.is_absolute() {
        return invalid(format!("the path {} is relative: give an absolute one", path.display()));
    }
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (path, data_dir) = (real(&real(path).join(prefix.unwrap_or_default())), real(data_dir));
    if path.starts_with(&data_dir) {
        return invalid(format!(
            "{} lies in blockd's own data directory {}: a backup there is lost with it; choose a directory on another disk",
            path.display(),
            data_dir.display()
        ));
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
    let http = HttpOptions {
        ca_certificates_pem: row.connection.ca_certificates.clone(),
        proxy: row.connection.proxy.clone(),
        ..HttpOptions::default()
    };
    let secret = || Zeroizing::new(secret.unwrap_or_default().to_owned());
    Ok(match &row.provider {
        ProviderRow::Local { path } => {
            let store = LocalStore::open(path)?;
            Arc::new(match writing {
                Some(writing) => store.with_work(writing),
                None => store,
            })
        }
        ProviderRow::S3 {
            endpoint,
            region,
            bucket,
            access_key,
            disable_ssl,
            disable_path_style,
            use_iam,
            role,
            storage_class,
        } => {
            let options = S3Options {
                endpoint: Some(endpoint.clone()),
                region: region.clone(),
                bucket: bucket.clone(),
                access: match use_iam {
                    true => S3Access::Instance,
                    false => {
                        S3Access::Key { access_key: Zeroizing::new(access_key.clone()), secret_key: secret() }
                    }
                },
                role: role.as_ref().map(|role| S3Role {
                    arn: role.arn.clone(),
                    external_id: role.external_id.clone(),
                    endpoint: role.endpoint.clone(),
                }),
                disable_ssl: *disable_ssl,
                virtual_hosted_style: *disable_path_style,
                storage_class: storage_class.clone(),
                http,
            };
            Arc::new(options.open()?)
        }
        ProviderRow::Azure { account, container, auth, endpoint, disable_ssl } => {
            let options = AzureOptions {
                account: account.clone(),
                container: container.clone(),
                access: match auth {
                    AzureAuthRow::AccountKey => AzureAccess::AccountKey(secret()),
                    AzureAuthRow::Sas => AzureAccess::SharedAccessSignature(secret()),
                    AzureAuthRow::ManagedIdentity { client_id } => {
                        AzureAccess::ManagedIdentity { client_id: client_id.clone() }
                    }
                },
                endpoint: endpoint.clone(),
                disable_ssl: *disable_ssl,
                http,
            };
            Arc::new(options.open()?)
        }
        ProviderRow::Google { bucket, use_iam, endpoint, disable_ssl, project: _ } => {
            let options = GoogleOptions {
                bucket: bucket.clone(),
                access: match use_iam {
                    true => GoogleAccess::Instance,
                    false => GoogleAccess::ServiceAccountKey(secret()),
                },
                endpoint: endpoint.clone(),
                disable_ssl: *disable_ssl,
                http,
            };
            Arc::new(options.open()?)
        }
        ProviderRow::Swift { container, auth } => {
            let access = swift_access(auth.clone(), secret());
            Arc::new(SwiftOptions { container: container.clone(), access, http }.open()?)
        }
    })
}

fn swift_access(auth: SwiftAuthRow, secret: Zeroizing<String>) -> SwiftAccess {
    match auth {
        SwiftAuthRow::V1 { auth_url, user } => SwiftAccess::V1 { auth_url, user, key: secret },
        SwiftAuthRow::V2 { auth_url, user, tenant_name, tenant_id, region } => {
            SwiftAccess::V2 { auth_url, user, password: secret, tenant_name, tenant_id, region }
        }
        SwiftAuthRow::V3 { auth_url, user, user_domain, project, project_domain, region } => {
            SwiftAccess::V3 { auth_url, user, password: secret, user_domain, project, project_domain, region }
        }
        SwiftAuthRow::Token { storage_url } => SwiftAccess::Token { storage_url, token: secret },
    }
}

/// Returns the bandwidth limit that all tasks of a credential share.
///
/// # Errors
/// The stored limits are invalid.
pub fn bandwidth(row: &StoreRow) -> Result<Arc<PlannedBandwidth>, ServiceError> {
    Ok(PlannedBandwidth::new(LimitPlan::of(&limits_of(&row.connection))?, Timestamp::now()))
}

/// A credential as callers see it.
pub fn describe(row: &CredentialRow) -> Credential {
    let connection = &row.store.connection;
    let mut reply = Credential {
        uuid: row.uuid,
        name: row.name.clone(),
        provider: kind(&row.store.provider),
        path: None,
        endpoint: None,
        region: None,
        bucket: None,
        prefix: connection.prefix.clone(),
        access_key: None,
        role: None,
        account: None,
        project: None,
        user: None,
        auth: None,
        ssl_enabled: None,
        path_style: None,
        storage_class: None,
        proxy: connection.proxy.clone(),
        has_ca_certificates: connection.ca_certificates.is_some(),
        limit_upload_bytes_per_s: connection.limit_upload_bytes_per_s,
        limit_download_bytes_per_s: connection.limit_download_bytes_per_s,
        limit_upload_windows: connection.limit_upload_windows.clone(),
        limit_download_windows: connection.limit_download_windows.clone(),
        limit_time_zone: connection.limit_time_zone.clone(),
        encryption: row.encrypted,
        store_key_from: row.store_secret_from.clone(),
        encryption_key_from: row.passphrase_from.clone(),
        conditional_put: row.capabilities.conditional_put,
        created: row.created,
        write_throughput_kbps: match row.capabilities.write_bytes_per_s {
            0 => None,
            measured => Some((measured / 1000).max(1)),
        },
    };
    let auth = |words: &str| Some(words.to_owned());
    match &row.store.provider {
        ProviderRow::Local { path } => reply.path = Some(path.clone()),
        ProviderRow::S3 {
            endpoint,
            region,
            bucket,
            access_key,
            disable_ssl,
            disable_path_style,
            use_iam,
            role,
            storage_class,
        } => {
            reply.role = role.clone();
            reply.endpoint = Some(endpoint.clone());
            reply.region = Some(region.clone());
            reply.bucket = Some(bucket.clone());
            reply.access_key = Some(access_key.clone()).filter(|_| !use_iam);
            reply.auth = auth(if *use_iam { "instance identity" } else { "access key" });
            reply.ssl_enabled = Some(!disable_ssl);
            reply.path_style = Some(!disable_path_style);
            reply.storage_class = storage_class.clone();
        }
        ProviderRow::Azure { account, container, auth: proof, endpoint, disable_ssl } => {
            reply.account = Some(account.clone());
            reply.bucket = Some(container.clone());
            reply.endpoint = endpoint.clone();
            reply.ssl_enabled = Some(!disable_ssl);
            reply.auth = auth(match proof {
                AzureAuthRow::AccountKey => "account key",
                AzureAuthRow::Sas => "shared access signature",
                AzureAuthRow::ManagedIdentity { .. } => "managed identity",
            });
        }
        ProviderRow::Google { project, bucket, use_iam, endpoint, disable_ssl } => {
            reply.project = project.clone();
            reply.bucket = Some(bucket.clone());
            reply.endpoint = endpoint.clone();
            reply.ssl_enabled = Some(!disable_ssl);
            reply.auth = auth(if *use_iam { "instance identity" } else { "service account key" });
        }
        ProviderRow::Swift { container, auth: proof } => {
            reply.bucket = Some(container.clone());
            let url = match proof {
                SwiftAuthRow::V1 { auth_url, user } => {
                    reply.auth = auth("auth v1");
                    reply.user = Some(user.clone());
                    auth_url
                }
                SwiftAuthRow::V2 { auth_url, user, tenant_name, tenant_id, region } => {
                    reply.auth = auth("Keystone v2");
                    reply.user = Some(user.clone());
                    reply.project = tenant_name.clone().or_else(|| tenant_id.clone());
                    reply.region = region.clone();
                    auth_url
                }
                SwiftAuthRow::V3 { auth_url, user, project, region, .. } => {
                    reply.auth = auth("Keystone v3");
                    reply.user = Some(user.clone());
                    reply.project = Some(project.clone());
                    reply.region = region.clone();
                    auth_url
                }
                SwiftAuthRow::Token { storage_url } => {
                    reply.auth = auth("token");
                    storage_url
                }
            };
            reply.endpoint = Some(url.clone());
            reply.ssl_enabled = Some(url.starts_with("https://"));
        }
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repositories::{StoreKey, open_store};
    use blockd_secrets::{References, SecretsConfig};

    fn refused(request: ProviderRequest, connection: Connection) -> String {
        take(request, connection, Path::new("/var/lib/blockd")).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn invalid_setting_is_refused_by_its_flag() {
        let local = || ProviderRequest::Local { path: "/srv".into() };
        for (connection, flag) in [
            (Connection { proxy: Some("http://p:1".into()), ..Connection::default() }, "--proxy"),
            (Connection { limit_upload_bytes_per_s: Some(1), ..Connection::default() }, "--limit-upload"),
            (Connection { limit_download_bytes_per_s: Some(0), ..Connection::default() }, "--limit-download"),
        ] {
            let message = refused(local(), connection);
            assert!(message.contains(flag), "{message}");
        }
        let google = |json_key: Option<&str>, use_iam| ProviderRequest::Google {
            project: None,
            bucket: "b".into(),
            json_key: json_key.map(|key| blockd_api::Secret::new(key.into()).into()),
            use_iam,
            endpoint: None,
            disable_ssl: false,
        };
        for request in [google(None, false), google(Some(" "), false), google(Some("planted"), true)] {
            let message = refused(request, Connection::default());
            assert!(message.contains("--google-json-key-file") && !message.contains("planted"), "{message}");
        }
        assert!(take(google(None, true), Connection::default(), Path::new("/x")).is_ok());
    }

    #[test]
    fn prefix_is_normalized_and_part_of_the_place() {
        let prefix = |prefix: &str| Connection { prefix: Some(prefix.to_owned()), ..Connection::default() };
        let local = |path: &Path| ProviderRequest::Local { path: path.to_owned() };
        let (dir, data_dir) = (tempfile::tempdir().unwrap(), Path::new("/var/lib/blockd"));
        let (row, _) = take(local(dir.path()), prefix("/demo/"), data_dir).unwrap();
        assert_eq!(row.connection.prefix.as_deref(), Some("demo"));
        let references = References::new(&SecretsConfig::default(), None);
        let opened = open_store(&row, &StoreKey::None, None, &references).unwrap();
        assert!(opened.describe().ends_with(", below demo"));
        let (row, _) = take(local(dir.path()), prefix("/"), data_dir).unwrap();
        assert_eq!(row.connection, Connection::default());
        for bad in ["a//b", "../x", "a b"] {
            assert!(refused(local(dir.path()), prefix(bad)).contains("--prefix"), "{bad}");
        }
        // A directory in which the data directory is, and the prefix that leads there.
        assert!(refused(local(Path::new("/")), prefix("var/lib/blockd/x")).contains("data directory"));
    }

    #[test]
    fn provider_errors_name_their_own_flags() {
        for (kind, flag) in [
            (ProviderKind::S3, "--s3-secret-key"),
            (ProviderKind::Azure, "--azure-account-key"),
            (ProviderKind::Google, "--google-json-key-file"),
            (ProviderKind::Swift, "--swift-key"),
        ] {
            assert!(hint(kind, ErrorCode::StoreUnauthorized, None).is_some_and(|hint| hint.contains(flag)));
        }
        assert_eq!(hint(ProviderKind::Local, ErrorCode::Internal, None), None);
        for (store, word) in [
            (StoreErrorKind::WrongStyle, "--disable-path-style"),
            (StoreErrorKind::WrongRegion, "--s3-region"),
            (StoreErrorKind::WrongClock, "clock"),
            (StoreErrorKind::Unauthorized, "--s3-secret-key"),
        ] {
            let told = hint(ProviderKind::S3, ErrorCode::StoreUnauthorized, Some(store)).unwrap();
            assert!(told.contains(word), "{told}");
        }
        let told = hint(ProviderKind::Swift, ErrorCode::StoreUnreachable, Some(StoreErrorKind::WrongScheme));
        assert!(told.is_some_and(|told| told.contains("--swift-auth-url")), "{told:?}");
    }
}
