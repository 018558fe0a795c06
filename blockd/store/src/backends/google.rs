//! Google Cloud Storage.

use super::{
    bucket::{BucketStore, no_retries},
    endpoint::ServerAddress,
    http::{HttpOptions, misconfigured},
    secret_value,
};
use crate::StoreError;
use blockd_store_config::GoogleConfig;
use object_store::gcp::GoogleCloudStorageBuilder;
use serde::Deserialize;
use zeroize::Zeroizing;

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
    let GoogleConfig { bucket, access, .. } = config;
    let wrong = |detail: String| misconfigured("Google", bucket, detail);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if bucket.is_empty() || !bucket.bytes().all(plain) {
        return Err(wrong("the bucket's name has letters, digits, '-', '.' and '_' only".into()));
    }
    let endpoint = config.endpoint.as_deref().map(|given| ServerAddress::parse(given, config.disable_ssl));
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
    Ok(BucketStore::new(client, format!("bucket {bucket} at {server}"), None, http.stall_timeout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreErrorKind;
    use blockd_store_config::{GoogleAccess, Secret};

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
}
