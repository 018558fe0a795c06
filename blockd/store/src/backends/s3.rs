//! S3 and compatible servers.

use super::{
    bucket::{BucketStore, no_retries},
    bucket_creation::BucketCreation,
    endpoint::{ServerAddress, secret_value},
    http::{HttpOptions, misconfigured},
    sts::RoleCredentials,
};
use crate::{BlobStore, DELETE_MAX_KEYS, FailoverStore, StoreError};
use blockd_store_config::S3Config;
use bytes::Bytes;
use object_store::{
    aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer},
    client::HttpRequest,
};
use reqwest::Method;
use std::sync::Arc;

/// Separates the servers of an endpoint.
const SEPARATOR: char = ',';

/// Creates the client of a bucket, with failover if the endpoint names several servers, without a request.
///
/// # Errors
/// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which names the invalid setting.
pub(super) fn open_servers(config: &S3Config, http: &HttpOptions) -> Result<Arc<dyn BlobStore>, StoreError> {
    let mut clients = Vec::new();
    for config in servers(config) {
        clients.push(Arc::new(open(&config, http)?) as Arc<dyn BlobStore>);
    }
    // A text has at least one part.
    let first = clients.remove(0);
    if clients.is_empty() {
        return Ok(first);
    }
    let description = format!("bucket {} at {}", config.bucket, config.endpoint);
    Ok(Arc::new(FailoverStore::new(first, clients, description)))
}

/// Returns the configuration of each server.
fn servers(config: &S3Config) -> impl Iterator<Item = S3Config> + '_ {
    let endpoints = config.endpoint.split(SEPARATOR);
    endpoints.map(|endpoint| S3Config { endpoint: endpoint.trim().to_owned(), ..config.clone() })
}

/// Creates the client of a bucket at one server, without a request.
///
/// # Errors
/// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which names the invalid setting.
pub(super) fn open(config: &S3Config, http: &HttpOptions) -> Result<BucketStore, StoreError> {
    let Clients { client, batches, endpoint } = Clients::of(config, http)?;
    let description = describe(config, &endpoint);
    let class = config.access.storage_class.as_deref();
    let store = BucketStore::new(client, description, class, http.stall_timeout);
    Ok(store.with_batches(batches, DELETE_MAX_KEYS))
}

fn describe(config: &S3Config, endpoint: &ServerAddress) -> String {
    let server = match config.disable_path_style {
        // The host of the requests, which may not resolve although that of the endpoint does.
        true => endpoint.url_of_host_below(&config.bucket).unwrap_or_else(|_| endpoint.url()),
        false => endpoint.url(),
    };
    format!("bucket {} at {server}", config.bucket)
}

/// Clients of a bucket with the same credentials.
struct Clients {
    client: AmazonS3,
    /// Deletes several objects with one request, which not every server has.
    batches: AmazonS3,
    endpoint: ServerAddress,
}

impl Clients {
    fn of(config: &S3Config, http: &HttpOptions) -> Result<Self, StoreError> {
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
            let builder = builder.clone().with_credentials(Arc::new(credentials));
            client = builder.build().map_err(|error| wrong(error.to_string()))?;
        }
        let batches = builder.with_disable_bulk_delete(false).with_credentials(client.credentials().clone());
        let batches = batches.build().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { client, batches, endpoint })
    }
}

/// Creates the bucket; returns false if it exists already.
///
/// # Errors
/// The store cannot be reached, or refuses the creation.
pub(super) async fn create_bucket(config: &S3Config, http: &HttpOptions) -> Result<bool, StoreError> {
    let mut servers = servers(config).peekable();
    loop {
        let Some(config) = servers.next() else {
            return Err(misconfigured("S3", &config.bucket, "the endpoint is empty".into()));
        };
        match create_bucket_at(&config, http).await {
            Err(error) if error.kind.is_without_response() && servers.peek().is_some() => {}
            result => return result,
        }
    }
}

async fn create_bucket_at(config: &S3Config, http: &HttpOptions) -> Result<bool, StoreError> {
    let Clients { client, endpoint, .. } = Clients::of(config, http)?;
    let wrong = |detail: String| misconfigured("S3", &config.bucket, detail);
    let url = match config.disable_path_style {
        true => format!("{}/", endpoint.url_of_host_below(&config.bucket).map_err(wrong)?),
        false => format!("{}/{}", endpoint.url(), config.bucket),
    };
    if !config.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(wrong("the region has letters, digits and '-' only".into()));
    }
    let creation = BucketCreation {
        provider: "S3",
        bucket: &config.bucket,
        store: &describe(config, &endpoint),
        client: http.client(!endpoint.tls).map_err(wrong)?,
        timeout: http.stall_timeout,
    };
    let failed = |error: object_store::Error| creation.failed(&error);
    let credential = client.credentials().get_credential().await.map_err(failed)?;
    let body = match config.region.as_str() {
        // The default of the API, which refuses it in a body.
        "us-east-1" => Bytes::new(),
        region => format!(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        )
        .into(),
    };
    let mut request = HttpRequest::new(body.clone().into());
    *request.method_mut() = Method::PUT;
    *request.uri_mut() = url.parse().map_err(|_| wrong("the endpoint is not a URL".into()))?;
    AwsAuthorizer::new(&credential, "s3", &config.region)
        .try_authorize(&mut request, None)
        .map_err(failed)?;
    creation.send(request, body).await
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{BlobStore, StoreErrorKind};
    use blockd_store_config::{S3Access, Secret};
    use blockd_testkit::store::{FakeHttpServer, HttpReply};

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
        let closed = ClosedPort::bind();
        let url = closed.url();
        let error = open(&config(&url), &HttpOptions::default()).unwrap().get("a", 10).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains(&url), "{error}");
    }

    /// Port that refuses connections: bound, so that no other test gets it, and without a listener.
    struct ClosedPort(tokio::net::TcpSocket);

    impl ClosedPort {
        fn bind() -> Self {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            Self(socket)
        }

        fn url(&self) -> String {
            format!("http://{}", self.0.local_addr().unwrap())
        }
    }

    #[tokio::test]
    async fn request_goes_to_the_next_server_of_several() {
        let server = FakeHttpServer::start(|_| {
            HttpReply::status(200)
                .header("ETag", "\"tag\"")
                .header("Last-Modified", "Sat, 21 Nov 2026 12:00:00 GMT")
                .body("hello")
        });
        let server = server.await;
        let closed = [ClosedPort::bind(), ClosedPort::bind()];
        let endpoint = format!("{}, {}", closed[0].url(), server.url());
        let store = open_servers(&config(&endpoint), &HttpOptions::default()).unwrap();
        assert_eq!(store.get("a", 10).await.unwrap(), b"hello"[..]);
        assert!(store.describe().contains(&server.url()), "{}", store.describe());
        let all_closed = config(&format!("{},{}", closed[0].url(), closed[1].url()));
        let store = open_servers(&all_closed, &HttpOptions::default()).unwrap();
        assert_eq!(store.get("a", 10).await.unwrap_err().kind, StoreErrorKind::Unreachable);
        let empty = config(&format!("{},", server.url()));
        assert!(open_servers(&empty, &HttpOptions::default()).is_err());
    }

    #[test]
    fn description_has_the_host_of_the_requests() {
        let described = |disable_path_style| {
            let config = S3Config { disable_path_style, ..config("https://s3.example:9000") };
            open(&config, &HttpOptions::default()).unwrap().describe().to_owned()
        };
        assert_eq!(described(false), "bucket bkt at https://s3.example:9000");
        assert_eq!(described(true), "bucket bkt at https://bkt.s3.example:9000");
    }

    #[tokio::test]
    async fn missing_bucket_is_created_once() {
        let xml = |status, code: &str| {
            HttpReply::status(status).body(format!("<Error><Code>{code}</Code><Message>m</Message></Error>"))
        };
        let closed = ClosedPort::bind();
        for (reply, expected) in [
            (HttpReply::status(200), Ok(true)),
            (xml(409, "BucketAlreadyOwnedByYou"), Ok(false)),
            (xml(409, "BucketAlreadyExists"), Ok(false)),
            (xml(403, "AccessDenied"), Err(StoreErrorKind::Unauthorized)),
        ] {
            let server = FakeHttpServer::start(move |_| reply.clone()).await;
            let config = S3Config {
                region: "eu-central-1".into(),
                ..config(&format!("{},{}", closed.url(), server.url()))
            };
            let created = create_bucket(&config, &HttpOptions::default()).await;
            assert_eq!(created.map_err(|error| error.kind), expected);
            let seen = server.seen();
            assert_eq!((seen.len(), seen[0].method.as_str(), seen[0].path.as_str()), (1, "PUT", "/bkt"));
            assert!(seen[0].header("authorization").starts_with("AWS4-HMAC-SHA256 "), "{:?}", seen[0]);
            let body = String::from_utf8_lossy(&seen[0].body);
            assert!(body.contains("<LocationConstraint>eu-central-1<"), "{body}");
        }
    }
}
