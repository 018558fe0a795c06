//! Google Cloud Storage.

use super::{
    bucket::{BucketStore, no_retries},
    endpoint::Endpoint,
    http::{HttpOptions, misconfigured},
};
use crate::StoreError;
use object_store::gcp::GoogleCloudStorageBuilder;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Authentication for a Google bucket.
#[derive(Clone)]
pub enum GoogleAccess {
    /// The content of a service account's key file (JSON).
    ServiceAccountKey(Zeroizing<String>),
    /// The identity of the machine: the application default credentials of the daemon's user, or the metadata
    /// service.
    Instance,
}

/// Settings of a bucket.
#[derive(Clone)]
pub struct GoogleOptions {
    /// The bucket.
    pub bucket: String,
    /// Authentication.
    pub access: GoogleAccess,
    /// `host` or `host:port` of a server that is not Google's own.
    pub endpoint: Option<String>,
    /// Plain HTTP where the endpoint names no scheme.
    pub disable_ssl: bool,
    /// HTTP options.
    pub http: HttpOptions,
}

impl std::fmt::Debug for GoogleOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GoogleOptions")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Required members of a key file. Others are ignored, as some would redirect the client.
#[derive(Deserialize)]
struct KeyFile {
    private_key: String,
    private_key_id: String,
    client_email: String,
}

impl KeyFile {
    /// The same file with nothing in it but what is needed.
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

impl GoogleOptions {
    /// Makes a client; asks the server nothing yet.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which says which setting is
    /// wrong.
    pub fn open(&self) -> Result<BucketStore, StoreError> {
        let wrong = |detail: String| misconfigured("Google", &self.bucket, detail);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if self.bucket.is_empty() || !self.bucket.bytes().all(plain) {
            return Err(wrong("the bucket's name has letters, digits, '-', '.' and '_' only".into()));
        }
        let endpoint = self.endpoint.as_deref().map(|given| Endpoint::parse(given, self.disable_ssl));
        let endpoint = endpoint.transpose().map_err(wrong)?;
        let description = match &endpoint {
            Some(endpoint) => format!("bucket {} at {}", self.bucket, endpoint.url()),
            None => format!("bucket {} at Google Cloud Storage", self.bucket),
        };
        let allow_http = endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls)
            || matches!(self.access, GoogleAccess::Instance);
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&self.bucket)
            .with_retry(no_retries())
            .with_http_connector(self.http.connector(allow_http).map_err(wrong)?);
        if let GoogleAccess::ServiceAccountKey(key) = &self.access {
            builder = builder.with_service_account_key(KeyFile::parse(key).map_err(wrong)?.as_str());
        }
        if let Some(endpoint) = &endpoint {
            builder = builder.with_base_url(&endpoint.url());
        }
        let client = builder.build().map_err(|_| {
            wrong(match &self.access {
                GoogleAccess::ServiceAccountKey(_) => {
                    "the key file's private_key cannot be used: an RSA key in PEM is expected".into()
                }
                GoogleAccess::Instance => "the application default credentials cannot be used".into(),
            })
        })?;
        Ok(BucketStore::new(client, description, None, self.http.stall_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreErrorKind;

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
            let options = GoogleOptions {
                bucket: bucket.into(),
                access: GoogleAccess::ServiceAccountKey(key.to_owned().into()),
                endpoint: None,
                disable_ssl: false,
                http: HttpOptions::default(),
            };
            let error = options.open().err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("planted"), "{error}");
            assert!(!format!("{options:?}").contains("planted"));
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
