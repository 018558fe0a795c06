//! S3 and compatible servers.

use super::{
    bucket::{BucketStore, no_retries},
    endpoint::ServerAddress,
    http::{HttpOptions, misconfigured},
    secret_value,
    sts::RoleCredentials,
};
use crate::StoreError;
use blockd_store_config::S3Config;
use object_store::aws::AmazonS3Builder;
use std::sync::Arc;

/// Creates a client, without a request to the server.
///
/// # Errors
/// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which names the invalid setting.
pub(super) fn open(config: &S3Config, http: &HttpOptions) -> Result<BucketStore, StoreError> {
    let S3Config { bucket, region, access, .. } = config;
    let wrong = |detail: String| misconfigured("S3", bucket, detail);
    let key = access.access_key.as_deref().unwrap_or_default();
    let secret = secret_value(access.secret_key.as_ref());
    let needed = [("the region", region.as_str()), ("the access key", key), ("the secret key", secret)];
    let needed = &needed[..if access.use_iam { 1 } else { 3 }];
    if let Some((name, _)) = needed.iter().find(|(_, value)| value.trim().is_empty()) {
        return Err(wrong(format!("{name} is empty")));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if bucket.is_empty() || !bucket.bytes().all(plain) {
        return Err(wrong("the bucket's name has letters, digits, '-', '.' and '_' only".into()));
    }
    let class = access.storage_class.as_deref();
    if class.is_some_and(|class| {
        class.is_empty() || !class.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    }) {
        return Err(wrong("the storage class is a name like STANDARD_IA".into()));
    }
    let endpoint = ServerAddress::parse(&config.endpoint, config.disable_ssl).map_err(wrong)?;
    // The metadata service speaks plain HTTP.
    let allow_http = !endpoint.tls || access.use_iam;
    let mut builder = AmazonS3Builder::new()
        .with_region(region)
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(config.disable_path_style)
        .with_disable_bulk_delete(true)
        .with_retry(no_retries())
        .with_http_connector(http.connector(allow_http).map_err(wrong)?)
        .with_endpoint(match config.disable_path_style {
            true => endpoint.url_of_host_below(bucket).map_err(wrong)?,
            false => endpoint.url(),
        });
    if !access.use_iam {
        builder = builder.with_access_key_id(key).with_secret_access_key(secret);
    }
    let mut client = builder.clone().build().map_err(|error| wrong(error.to_string()))?;
    if let Some(role) = &access.role {
        let base = client.credentials().clone();
        let credentials = RoleCredentials::of(role, &endpoint, region, base, http).map_err(wrong)?;
        let builder = builder.with_credentials(Arc::new(credentials));
        client = builder.build().map_err(|error| wrong(error.to_string()))?;
    }
    let description = format!("bucket {bucket} at {}", endpoint.url());
    Ok(BucketStore::new(client, description, class, http.stall_timeout))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{BlobStore, StoreErrorKind};
    use blockd_store_config::{S3Access, Secret};

    /// Returns the configuration of a bucket at a server without TLS.
    pub(crate) fn config(endpoint: &str) -> S3Config {
        S3Config {
            endpoint: endpoint.to_owned(),
            region: "us-east-1".into(),
            bucket: "bkt".into(),
            disable_ssl: false,
            disable_path_style: false,
            access: S3Access {
                access_key: Some("AKIAEXAMPLE".to_owned()),
                secret_key: Some(Secret::new("very-secret".into()).into()),
                ..S3Access::default()
            },
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |change: fn(&mut S3Config, &mut HttpOptions), word: &str| {
            let (mut config, mut http) = (config("127.0.0.1:9"), HttpOptions::default());
            config.disable_ssl = true;
            change(&mut config, &mut http);
            let error = open(&config, &http).err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
        };
        refused(|c, _| c.endpoint = "ftp://x".into(), "scheme");
        refused(|c, _| c.endpoint = "https://x".into(), "TLS is disabled");
        refused(|c, _| c.endpoint = "a b".into(), "HOST");
        refused(|c, _| c.endpoint = "127.0.0.1:999999".into(), "HOST:PORT");
        refused(|c, _| c.disable_path_style = true, "--disable-path-style");
        refused(|c, _| c.bucket = "a/b".into(), "bucket");
        refused(|c, _| c.access.secret_key = None, "secret key");
        refused(|c, _| c.access.storage_class = Some("a b".into()), "storage class");
        refused(|_, http| http.proxy = Some("nonsense".into()), "proxy");
        refused(|c, _| c.region = String::new(), "region");
    }

    #[tokio::test]
    async fn closed_endpoint_is_unreachable_and_named() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}");
        let error = open(&config(&url), &HttpOptions::default()).unwrap().get("a", 10).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains(&url), "{error}");
    }
}
