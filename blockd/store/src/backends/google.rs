//! Google Cloud Storage.

use super::{
    bucket::{BucketStore, no_retries},
    bucket_creation::BucketCreation,
    endpoint::{ServerAddress, secret_value},
    http::{HttpOptions, misconfigured},
};
use crate::StoreError;
use blockd_store_config::GoogleConfig;
use bytes::Bytes;
use object_store::{
    client::HttpRequest,
    gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder},
};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Address without a custom endpoint.
const STORAGE_URL: &str = "https://storage.googleapis.com";

/// Required members of a key file. Others are ignored, as some would redirect the client.
#[derive(Deserialize)]
struct KeyFile {
    private_key: String,
    private_key_id: String,
    client_email: String,
}

impl KeyFile {
    /// Returns the file reduced to the required members.
    fn parse(text: &str) -> Result<Zeroizing<String>, String> {
        let wrong = |why: &str| format!("the key file is not the JSON key of a service account: {why}");
        // serde's message may repeat a part of the text.
        let file: Self = serde_json::from_str(text)
            .map_err(|_| wrong("private_key, private_key_id and client_email are needed"))?;
        if !file.private_key.contains("PRIVATE KEY-----") {
            return Err(wrong("its private_key is not in PEM"));
        }
        let only = serde_json::json!({
            "private_key": file.private_key,
            "private_key_id": file.private_key_id,
            "client_email": file.client_email,
        });
        Ok(Zeroizing::new(only.to_string()))
    }
}

/// Creates a client, without a request to the server.
///
/// # Errors
/// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which names the invalid setting.
pub(super) fn open(config: &GoogleConfig, http: &HttpOptions) -> Result<BucketStore, StoreError> {
    let GoogleClient { client, description, .. } = GoogleClient::of(config, http)?;
    Ok(BucketStore::new(client, description, None, http.stall_timeout))
}

/// Creates the bucket in the project, in the default location of Google; returns false if it exists already.
///
/// # Errors
/// The project is not set, or the store cannot be reached, or refuses the creation.
pub(super) async fn create_bucket(config: &GoogleConfig, http: &HttpOptions) -> Result<bool, StoreError> {
    let GoogleClient { client, description, url, allow_http } = GoogleClient::of(config, http)?;
    let wrong = |detail: String| misconfigured("Google", &config.bucket, detail);
    let creation = BucketCreation {
        provider: "Google",
        bucket: &config.bucket,
        store: &description,
        client: http.client(allow_http).map_err(wrong)?,
        timeout: http.stall_timeout,
    };
    let credential = client.credentials().get_credential().await;
    let credential = credential.map_err(|error| creation.failed(&error))?;
    let request = creation_request(config, &url, &credential.bearer).map_err(wrong)?;
    creation.send(request, Bytes::new()).await
}

/// Returns the request that creates a bucket. The error is one line.
fn creation_request(config: &GoogleConfig, url: &str, bearer: &str) -> Result<HttpRequest, String> {
    let project = config.project.as_deref().ok_or("a new bucket needs the project's id")?;
    let header =
        |text: &str| HeaderValue::from_str(text).map_err(|_| "the project's id is invalid".to_owned());
    let mut request = HttpRequest::new(Bytes::new().into());
    let uri = format!("{url}/{}", config.bucket);
    *request.uri_mut() = uri.parse().map_err(|_| "the endpoint is not a URL".to_owned())?;
    let mut token = header(&format!("Bearer {bearer}"))?;
    token.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, token);
    request.headers_mut().insert("x-goog-project-id", header(project)?);
    Ok(request)
}

/// Client of a bucket.
struct GoogleClient {
    client: GoogleCloudStorage,
    /// Bucket and server, as in messages.
    description: String,
    /// Address of the server.
    url: String,
    allow_http: bool,
}

impl GoogleClient {
    fn of(config: &GoogleConfig, http: &HttpOptions) -> Result<Self, StoreError> {
        let GoogleConfig { bucket, access, .. } = config;
        let wrong = |detail: String| misconfigured("Google", bucket, detail);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if bucket.is_empty() || !bucket.bytes().all(plain) {
            return Err(wrong("the bucket's name has letters, digits, '-', '.' and '_' only".into()));
        }
        let endpoint =
            config.endpoint.as_deref().map(|given| ServerAddress::parse(given, config.disable_ssl));
        let endpoint = endpoint.transpose().map_err(wrong)?;
        let server = endpoint.as_ref().map_or_else(|| "Google Cloud Storage".to_owned(), ServerAddress::url);
        let allow_http = endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls) || access.use_iam;
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(bucket)
            .with_retry(no_retries())
            .with_http_connector(http.connector(allow_http).map_err(wrong)?);
        if !access.use_iam {
            let key = KeyFile::parse(secret_value(access.json_key.as_ref())).map_err(wrong)?;
            builder = builder.with_service_account_key(key.as_str());
        }
        if let Some(endpoint) = &endpoint {
            builder = builder.with_base_url(&endpoint.url());
        }
        let client = builder.build().map_err(|_| {
            let message = match access.use_iam {
                true => "the application default credentials cannot be used",
                false => "the key file's private_key cannot be used: an RSA key in PEM is expected",
            };
            wrong(message.to_owned())
        })?;
        let url = endpoint.as_ref().map_or_else(|| STORAGE_URL.to_owned(), ServerAddress::url);
        Ok(Self { client, description: format!("bucket {bucket} at {server}"), url, allow_http })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreErrorKind;
    use blockd_store_config::{GoogleAccess, Secret};
    use blockd_testkit::store::{FakeHttpServer, HttpReply};

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        for (bucket, key, word) in [
            ("a/b", "{}", "bucket"),
            ("b", "planted", "private_key"),
            ("b", r#"{"private_key":"planted","private_key_id":"i","client_email":"e"}"#, "PEM"),
            (
                "b",
                r#"{"private_key":"-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----","private_key_id":"i","client_email":"e"}"#,
                "RSA",
            ),
        ] {
            let config = GoogleConfig {
                project: None,
                bucket: bucket.into(),
                endpoint: None,
                disable_ssl: false,
                access: GoogleAccess {
                    json_key: Some(Secret::new(key.to_owned()).into()),
                    ..GoogleAccess::default()
                },
            };
            let error = open(&config, &HttpOptions::default()).err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("planted"), "{error}");
        }
    }

    #[test]
    fn key_file_cannot_redirect_the_client() {
        let text = r#"{"private_key":"-----BEGIN PRIVATE KEY-----","private_key_id":"i","client_email":"e",
            "gcs_base_url":"http://evil.example","disable_oauth":true}"#;
        let only = KeyFile::parse(text).unwrap();
        assert!(!only.contains("evil") && !only.contains("disable_oauth"), "{}", *only);
    }

    #[tokio::test]
    async fn bucket_is_created_in_the_project() {
        let config = |project: Option<&str>| GoogleConfig {
            project: project.map(Into::into),
            bucket: "bkt".into(),
            endpoint: None,
            disable_ssl: false,
            access: GoogleAccess::default(),
        };
        let xml = "<Error><Code>BucketAlreadyOwnedByYou</Code><Message>m</Message></Error>";
        for (reply, expected) in [
            (HttpReply::status(200), Ok(true)),
            (HttpReply::status(409).body(xml.to_owned()), Ok(false)),
            (HttpReply::status(403), Err(StoreErrorKind::Unauthorized)),
        ] {
            let server = FakeHttpServer::start(move |_| reply.clone()).await;
            let request = creation_request(&config(Some("px-test")), &server.url(), "token").unwrap();
            let creation = BucketCreation {
                provider: "Google",
                bucket: "bkt",
                store: "bucket bkt",
                client: HttpOptions::default().client(true).unwrap(),
                timeout: HttpOptions::default().stall_timeout,
            };
            let created = creation.send(request, Bytes::new()).await;
            assert_eq!(created.map_err(|error| error.kind), expected);
            let seen = server.seen();
            assert_eq!((seen.len(), seen[0].method.as_str(), seen[0].path.as_str()), (1, "PUT", "/bkt"));
            assert_eq!(seen[0].header("authorization"), "Bearer token");
            assert_eq!(seen[0].header("x-goog-project-id"), "px-test");
        }
        assert!(creation_request(&config(None), STORAGE_URL, "token").unwrap_err().contains("project"));
    }
}
