//! S3 and what speaks like it.

use super::{
    bucket::{BucketStore, no_retries},
    endpoint::Endpoint,
    http::{HttpOptions, misconfigured},
    sts::{RoleCredentials, S3Role, amazons},
};
use crate::StoreError;
use object_store::aws::AmazonS3Builder;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Authentication for an S3 bucket.
#[derive(Clone)]
pub enum S3Access {
    /// An access key.
    Key {
        /// Id.
        access_key: Zeroizing<String>,
        /// Its secret.
        secret_key: Zeroizing<String>,
    },
    /// The identity of the machine, from its metadata service.
    Instance,
}

/// Settings of a bucket.
#[derive(Clone)]
pub struct S3Options {
    /// `host`, `host:port`, or either with `http://` or `https://`; Amazon's own for the region if there is
    /// none.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Authentication.
    pub access: S3Access,
    /// Role to assume.
    pub role: Option<S3Role>,
    /// Plain HTTP where the endpoint names no scheme.
    pub disable_ssl: bool,
    /// The bucket is part of the host name, not of the path.
    pub virtual_hosted_style: bool,
    /// Storage class of new objects; without one the bucket's own.
    pub storage_class: Option<String>,
    /// HTTP options.
    pub http: HttpOptions,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

impl S3Options {
    /// Makes a client; asks the server nothing yet.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which says which setting is
    /// wrong.
    pub fn open(&self) -> Result<BucketStore, StoreError> {
        let wrong = |detail: String| misconfigured("S3", &self.bucket, detail);
        let mut needed = vec![("the region", self.region.as_str())];
        if let S3Access::Key { access_key, secret_key } = &self.access {
            needed.extend([("the access key", access_key.as_str()), ("the secret key", secret_key.as_str())]);
        }
        for (name, value) in needed {
            if value.trim().is_empty() {
                return Err(wrong(format!("{name} is empty")));
            }
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if self.bucket.is_empty() || !self.bucket.bytes().all(plain) {
            return Err(wrong("the bucket's name has letters, digits, '-', '.' and '_' only".into()));
        }
        let class = self.storage_class.as_deref();
        if class.is_some_and(|class| {
            class.is_empty() || !class.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        }) {
            return Err(wrong("the storage class is a name like STANDARD_IA".into()));
        }
        let endpoint = self.endpoint.as_deref().map(|given| Endpoint::parse(given, self.disable_ssl));
        let endpoint = endpoint.transpose().map_err(wrong)?;
        let description = match &endpoint {
            Some(endpoint) => format!("bucket {} at {}", self.bucket, endpoint.url()),
            None => format!("bucket {} at Amazon S3, region {}", self.bucket, self.region),
        };
        // The metadata service speaks plain HTTP.
        let allow_http = endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls)
            || matches!(self.access, S3Access::Instance);
        let mut builder = AmazonS3Builder::new()
            .with_region(&self.region)
            .with_bucket_name(&self.bucket)
            .with_virtual_hosted_style_request(self.virtual_hosted_style)
            .with_disable_bulk_delete(true)
            .with_retry(no_retries())
            .with_http_connector(self.http.connector(allow_http).map_err(wrong)?);
        if let S3Access::Key { access_key, secret_key } = &self.access {
            builder =
                builder.with_access_key_id(access_key.as_str()).with_secret_access_key(secret_key.as_str());
        }
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(match self.virtual_hosted_style {
                true => endpoint.url_of_host_below(&self.bucket).map_err(wrong)?,
                false => endpoint.url(),
            });
        }
        let mut client = builder.clone().build().map_err(|error| wrong(error.to_string()))?;
        if let Some(role) = &self.role {
            role.check().map_err(wrong)?;
            let given = role.endpoint.as_deref().map(|given| Endpoint::parse(given, false));
            let own = endpoint.as_ref().filter(|endpoint| !endpoint.is_amazons());
            let service = given.transpose().map_err(wrong)?.or_else(|| own.cloned());
            let allow_http = service.as_ref().is_some_and(|service| !service.tls);
            let url = service.map_or_else(|| amazons(&self.region), |service| service.url());
            let http = self.http.client(allow_http).map_err(wrong)?;
            let base = client.credentials().clone();
            let credentials = RoleCredentials::new(role.clone(), url, &self.region, base, http);
            let builder = builder.with_credentials(Arc::new(credentials));
            client = builder.build().map_err(|error| wrong(error.to_string()))?;
        }
        Ok(BucketStore::new(client, description, class, self.http.stall_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobStore, StoreErrorKind};

    fn options() -> S3Options {
        S3Options {
            endpoint: Some("127.0.0.1:9".into()),
            region: "us-east-1".into(),
            bucket: "bkt".into(),
            access: S3Access::Key {
                access_key: "AKIAEXAMPLE".to_owned().into(),
                secret_key: "very-secret".to_owned().into(),
            },
            role: None,
            disable_ssl: true,
            virtual_hosted_style: false,
            storage_class: None,
            http: HttpOptions::default(),
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |change: fn(&mut S3Options), word: &str| {
            let mut options = options();
            change(&mut options);
            let error = options.open().err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
        };
        refused(|o| o.endpoint = Some("ftp://x".into()), "scheme");
        refused(|o| o.endpoint = Some("https://x".into()), "TLS is disabled");
        refused(|o| o.endpoint = Some("a b".into()), "HOST");
        refused(|o| o.endpoint = Some("127.0.0.1:999999".into()), "HOST:PORT");
        refused(|o| o.virtual_hosted_style = true, "--disable-path-style");
        refused(|o| o.bucket = "a/b".into(), "bucket");
        refused(
            |o| {
                let access_key = "a".to_owned().into();
                o.access = S3Access::Key { access_key, secret_key: String::new().into() };
            },
            "secret key",
        );
        refused(|o| o.storage_class = Some("a b".into()), "storage class");
        refused(|o| o.http.proxy = Some("nonsense".into()), "proxy");
        refused(|o| o.region = String::new(), "region");
    }

    #[tokio::test]
    async fn closed_endpoint_is_unreachable_and_named() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let store = S3Options { endpoint: Some(format!("127.0.0.1:{port}")), ..options() }.open().unwrap();
        let error = store.get("a", 10).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains(&format!("http://127.0.0.1:{port}")), "{error}");
    }

    #[test]
    fn s3_debug_output_has_no_secret() {
        let shown = format!("{:?}", options());
        assert!(!shown.contains("very-secret") && !shown.contains("AKIAEXAMPLE"), "{shown}");
    }
}
