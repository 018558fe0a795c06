//! Changes of a store: authentication and connection, but never its location.

use crate::{
    error::{Advice, ServiceError},
    repositories::stores::{GOOGLE_ACCESS, S3_ACCESS, SERVER, check_network},
};
use blockd_api::{
    ErrorCode,
    credential_update::UpdateCredential,
    credentials::{ProviderKind, SecretChange},
};
use blockd_catalog::StoreRow;

/// Returns the advice on a store error with new settings.
pub fn hint(kind: ProviderKind, code: ErrorCode) -> Option<Advice> {
    let keys = match kind {
        ProviderKind::S3 => S3_ACCESS,
        ProviderKind::Azure => Advice::check(&["azure-account-key", "azure-sas-token", "use-iam"]),
        ProviderKind::Google => GOOGLE_ACCESS,
        ProviderKind::Swift => Advice::check(&["swift-key", "swift-token"]),
        ProviderKind::Local => return None,
    };
    match code {
        // In some stores each account has its own buckets.
        ErrorCode::StoreUnauthorized | ErrorCode::BucketMissing => Some(keys),
        ErrorCode::StoreUnreachable => Some(Advice::check(&["proxy", "ca-certificate"]).or(SERVER)),
        _ => None,
    }
}

/// Applies the requested changes to the stored settings, and returns the change of the secret.
///
/// # Errors
/// A setting does not belong to this provider, contradicts another one, or is missing.
pub fn renew(store: &mut StoreRow, request: &UpdateCredential) -> Result<SecretChange, ServiceError> {
    check_network(store.config.kind(), request.proxy.is_some() || request.ca_certificates.is_some())?;
    let or_none = |text: &String| Some(text.clone()).filter(|text| !text.trim().is_empty());
    if let Some(proxy) = &request.proxy {
        store.connection.proxy = or_none(proxy);
    }
    if let Some(certificates) = &request.ca_certificates {
        store.connection.ca_certificates = or_none(certificates);
    }
    if let Some(compression) = request.compression {
        store.connection.compression = compression;
    }
    if let Some(deduplicate) = request.deduplicate {
        store.connection.deduplicate = deduplicate;
    }
    match request.access.clone() {
        Some(access) => Ok(store.config.update(access)?),
        None => Ok(SecretChange::Stays),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::credentials::{Connection, StoreConfig, StoreView};

    #[test]
    fn empty_setting_is_removed() {
        let json = r#"{"type":"s3","endpoint":"h:1","region":"r","bucket":"b","accessKey":"a","storageClass":"COLD"}"#;
        let connection = Connection { proxy: Some("http://p:1".into()), ..Connection::default() };
        let mut row = StoreRow { config: serde_json::from_str(json).unwrap(), connection };
        let request = r#"{"access":{"type":"s3","storageClass":""},"proxy":""}"#;
        let request = serde_json::from_str(request).unwrap();
        assert!(matches!(renew(&mut row, &request), Ok(SecretChange::Stays)));
        assert_eq!((StoreView::from(&row.config).s3.storage_class, row.connection.proxy), (None, None));
    }

    #[test]
    fn proxy_of_a_directory_is_refused() {
        let config = StoreConfig::Local { path: "/srv".into() };
        let mut row = StoreRow { config, connection: Connection::default() };
        let proxy = UpdateCredential { proxy: Some("http://p:1".into()), ..UpdateCredential::default() };
        assert!(renew(&mut row, &proxy).unwrap_err().to_api().settings.contains(&"proxy".to_owned()));
    }
}
