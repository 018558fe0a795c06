//! S3 and what speaks like it.
//!
//! The requests are made by `object_store`, with explicit credentials always (it would otherwise ask the instance
//! metadata service) and without its retries: [`RetryStore`](super::RetryStore) does that, and counts.

use super::{
    LIST_MAX_OBJECTS, ObjectInfo, ObjectStore, PutMode, StoreError, StoreErrorKind, StoreFuture, check_key,
    check_prefix,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::{
    BackoffConfig, ClientOptions, Error as S3Error, GetOptions, GetRange, ObjectStore as _,
    ObjectStoreExt as _, PutOptions, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpError, HttpErrorKind},
    multipart::{MultipartStore, PartId},
    path::Path,
};
use std::{error::Error as StdError, sync::Arc, time::Duration};
use zeroize::Zeroizing;

/// Where a bucket is and how it is asked.
#[derive(Clone)]
pub struct S3Options {
    /// `host`, `host:port`, or either with `http://` or `https://`; Amazon's own for the region if there is none.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Access key.
    pub access_key: Zeroizing<String>,
    /// Secret key.
    pub secret_key: Zeroizing<String>,
    /// Plain HTTP where the endpoint names no scheme.
    pub disable_ssl: bool,
    /// The bucket is part of the host name, not of the path.
    pub virtual_hosted_style: bool,
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

/// A bucket.
pub struct S3Store {
    client: AmazonS3,
    description: String,
}

impl S3Store {
    /// Makes a client; asks the server nothing yet.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misconfigured`], which says which setting is wrong.
    pub fn open(options: &S3Options) -> Result<Self, StoreError> {
        let wrong = |detail: String| {
            StoreError::new(StoreErrorKind::Misconfigured, "OPEN", &options.bucket, "S3").with_detail(detail)
        };
        for (name, value) in [
            ("the access key", options.access_key.as_str()),
            ("the secret key", options.secret_key.as_str()),
            ("the region", options.region.as_str()),
        ] {
            if value.trim().is_empty() {
                return Err(wrong(format!("{name} is empty")));
            }
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if options.bucket.is_empty() || !options.bucket.bytes().all(plain) {
            return Err(wrong("the bucket's name has letters, digits, '-', '.' and '_' only".into()));
        }
        let endpoint = options.endpoint.as_deref().map(|given| Endpoint::parse(given, options));
        let endpoint = endpoint.transpose().map_err(wrong)?;
        let description = match &endpoint {
            Some(endpoint) => format!("bucket {} at {}", options.bucket, endpoint.address),
            None => format!("bucket {} at Amazon S3, region {}", options.bucket, options.region),
        };
        let allow_http = endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls);
        let mut builder = AmazonS3Builder::new()
            .with_region(&options.region)
            .with_bucket_name(&options.bucket)
            .with_access_key_id(options.access_key.as_str())
            .with_secret_access_key(options.secret_key.as_str())
            .with_virtual_hosted_style_request(options.virtual_hosted_style)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: 0,
                retry_timeout: Duration::from_secs(1),
            })
            .with_client_options(
                ClientOptions::new()
                    .with_allow_http(allow_http)
                    .with_connect_timeout(Duration::from_secs(10))
                    .with_timeout_disabled(),
            );
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(&endpoint.url);
        }
        let client = builder.build().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { client, description })
    }

    fn path(&self, operation: &'static str, key: &str) -> Result<Path, StoreError> {
        let bad = || StoreError::new(StoreErrorKind::BadKey, operation, key, &self.description);
        if !check_key(key) {
            return Err(bad());
        }
        Path::parse(key).map_err(|_| bad())
    }

    fn error(&self, operation: &'static str, key: &str, error: S3Error) -> StoreError {
        let (kind, detail) = classify(&error);
        let mut out = StoreError::new(kind, operation, key, &self.description).with_detail(detail);
        // The answer's text is not kept: some servers repeat the request's signature in it.
        if !matches!(kind, StoreErrorKind::Unauthorized) {
            out.source = Some(Arc::new(error));
        }
        out
    }

    async fn fetch(
        &self,
        key: &str,
        range: Option<std::ops::Range<u64>>,
        max_len_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let path = self.path("GET", key)?;
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let answer =
            self.client.get_opts(&path, options).await.map_err(|error| self.error("GET", key, error))?;
        let len_bytes = answer.range.end.saturating_sub(answer.range.start);
        let fail =
            |kind, detail: String| StoreError::new(kind, "GET", key, &self.description).with_detail(detail);
        if range.is_some_and(|range| range != answer.range) {
            return Err(fail(
                StoreErrorKind::RangeBeyondEnd,
                format!("the object has {} bytes", answer.meta.size),
            ));
        }
        if len_bytes > max_len_bytes {
            return Err(fail(
                StoreErrorKind::TooLarge,
                format!("{len_bytes} bytes, at most {max_len_bytes} are expected"),
            ));
        }
        let mut body = BytesMut::with_capacity(len_bytes as usize);
        let mut stream = answer.into_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.error("GET", key, error))?;
            if (body.len() + piece.len()) as u64 > len_bytes {
                return Err(fail(
                    StoreErrorKind::Other,
                    "the body is longer than its announced length".into(),
                ));
            }
            body.extend_from_slice(&piece);
        }
        if body.len() as u64 != len_bytes {
            return Err(fail(
                StoreErrorKind::ShortBody,
                format!("{} of {len_bytes} bytes arrived", body.len()),
            ));
        }
        Ok(body.freeze())
    }
}

struct Endpoint {
    /// What the client is given.
    url: String,
    /// What messages show.
    address: String,
    tls: bool,
}

impl Endpoint {
    fn parse(given: &str, options: &S3Options) -> Result<Self, String> {
        let given = given.trim().trim_end_matches('/');
        let (tls, host) = match given.split_once("://") {
            Some(("http", host)) => (false, host),
            Some(("https", host)) if options.disable_ssl => {
                return Err(format!(
                    "the endpoint {host} says https, but TLS is disabled: drop one of the two"
                ));
            }
            Some(("https", host)) => (true, host),
            Some((scheme, _)) => {
                return Err(format!("the endpoint's scheme {scheme} is neither http nor https"));
            }
            None => (!options.disable_ssl, given),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']');
        if host.is_empty() || !host.bytes().all(plain) {
            return Err("the endpoint is not HOST or HOST:PORT".into());
        }
        let scheme = if tls { "https" } else { "http" };
        let url = if options.virtual_hosted_style {
            format!("{scheme}://{}.{host}", options.bucket)
        } else {
            format!("{scheme}://{host}")
        };
        Ok(Self { url, address: format!("{scheme}://{host}"), tls })
    }
}

/// The part of an XML answer between two tags.
fn between<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{tag}>"))? + tag.len() + 2;
    let end = text[start..].find("</")? + start;
    Some(&text[start..end])
}

/// What an error of the client means, and one line about it.
fn classify(error: &S3Error) -> (StoreErrorKind, String) {
    use StoreErrorKind as Kind;
    let mut chain = Vec::new();
    let mut at: Option<&(dyn StdError + 'static)> = Some(error);
    let mut http = None;
    while let Some(source) = at {
        if let Some(found) = source.downcast_ref::<HttpError>() {
            http = Some(found.kind());
        }
        chain.push(source.to_string());
        at = source.source();
    }
    let text = chain.join(" ");
    let code = between(&text, "Code").unwrap_or_default();
    let said = match (code, between(&text, "Message")) {
        ("", _) => chain.last().cloned().unwrap_or_default(),
        (code, Some(message)) => format!("{code}: {message}"),
        (code, None) => code.to_owned(),
    };
    let status = |code: &str| text.contains(&format!("status code: {code}"));
    let kind = match code {
        "NoSuchBucket" => Kind::BucketMissing,
        "AccessDenied"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "AuthorizationHeaderMalformed"
        | "ExpiredToken"
        | "InvalidToken"
        | "AllAccessDisabled"
        | "AccountProblem" => Kind::Unauthorized,
        "SlowDown"
        | "ServiceUnavailable"
        | "InternalError"
        | "RequestTimeout"
        | "TooManyRequests"
        | "OperationAborted"
        | "ConditionalRequestConflict" => Kind::Throttled,
        "QuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "InsufficientCapacity"
        | "ServiceQuotaExceeded" => Kind::NoSpace,
        "InvalidRange" => Kind::RangeBeyondEnd,
        "NotImplemented" => Kind::Unsupported,
        "PreconditionFailed" => Kind::AlreadyExists,
        _ => match error {
            S3Error::NotFound { .. } => Kind::NotFound,
            S3Error::AlreadyExists { .. } | S3Error::Precondition { .. } => Kind::AlreadyExists,
            S3Error::NotImplemented { .. } | S3Error::NotSupported { .. } => Kind::Unsupported,
            S3Error::PermissionDenied { .. } | S3Error::Unauthenticated { .. } => Kind::Unauthorized,
            _ if status("501") => Kind::Unsupported,
            _ if status("507") => Kind::NoSpace,
            _ if status("416") => Kind::RangeBeyondEnd,
            _ if ["429", "500", "502", "503", "504"].into_iter().any(status) => Kind::Throttled,
            _ => match http {
                Some(HttpErrorKind::Connect | HttpErrorKind::Request) => Kind::Unreachable,
                Some(HttpErrorKind::Timeout) => Kind::Timeout,
                Some(HttpErrorKind::Interrupted | HttpErrorKind::Decode) => Kind::ShortBody,
                // The client reports a range that the server clipped to the object's end by its own error.
                _ if text.contains("Requested range") || text.contains("range started at") => {
                    Kind::RangeBeyondEnd
                }
                _ => Kind::Other,
            },
        },
    };
    // Errors of access say enough themselves, and what servers add may repeat parts of the credentials.
    let detail = if kind == Kind::Unauthorized { code.to_owned() } else { said };
    (kind, detail)
}

impl ObjectStore for S3Store {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let path = self.path("PUT", key)?;
            let mode = match mode {
                PutMode::CreateIfAbsent => object_store::PutMode::Create,
                PutMode::Overwrite => object_store::PutMode::Overwrite,
            };
            let options = PutOptions { mode, ..PutOptions::default() };
            let put = self.client.put_opts(&path, PutPayload::from(body), options).await;
            // A bucket that is not there answers a put with "not found", and nothing else can.
            put.map(|_| ()).map_err(|error| match self.error("PUT", key, error) {
                mut error if error.kind == StoreErrorKind::NotFound => {
                    error.kind = StoreErrorKind::BucketMissing;
                    error
                }
                error => error,
            })
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(self.fetch(key, None, max_len_bytes))
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            if len_bytes == 0 {
                return Ok(Bytes::new());
            }
            self.fetch(key, Some(offset_bytes..offset_bytes.saturating_add(len_bytes)), len_bytes).await
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let path = self.path("DELETE", key)?;
            match self.client.delete(&path).await {
                // S3 does not tell whether there was one.
                Ok(()) => Ok(true),
                Err(error) => match self.error("DELETE", key, error) {
                    error if error.kind == StoreErrorKind::NotFound => Ok(false),
                    error => Err(error),
                },
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        Box::pin(async move {
            if !check_prefix(prefix) {
                return Err(StoreError::new(StoreErrorKind::BadKey, "LIST", prefix, &self.description));
            }
            // The client lists by whole names between slashes: the rest of the prefix is compared here.
            let above = prefix.rfind('/').map(|at| &prefix[..at]);
            let above = above.map(|above| self.path("LIST", above)).transpose()?;
            let mut pages = self.client.list(above.as_ref());
            let mut objects = Vec::new();
            loop {
                let next = pages.try_next().await.map_err(|error| self.error("LIST", prefix, error));
                let found = match next {
                    Ok(Some(found)) => found,
                    Ok(None) => break,
                    Err(mut error) if error.kind == StoreErrorKind::NotFound => {
                        error.kind = StoreErrorKind::BucketMissing;
                        return Err(error);
                    }
                    Err(error) => return Err(error),
                };
                let key = found.location.to_string();
                if key.starts_with(prefix) {
                    let tag = found.e_tag.unwrap_or_default();
                    let version = format!("{tag}-{}-{}", found.size, found.last_modified.timestamp_millis());
                    objects.push(ObjectInfo { key, size_bytes: found.size, version });
                }
                if objects.len() > LIST_MAX_OBJECTS {
                    return Err(StoreError::new(StoreErrorKind::TooLarge, "LIST", prefix, &self.description)
                        .with_detail(format!("more than {LIST_MAX_OBJECTS} objects")));
                }
            }
            // Not every server sorts, and pages may overlap while objects come and go.
            objects.sort();
            objects.dedup();
            Ok(objects)
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            self.client.create_multipart(&path).await.map_err(|error| self.error("MULTIPART", key, error))
        })
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            let part = self
                .client
                .put_part(&path, &upload_id.to_owned(), part_no as usize, PutPayload::from(body))
                .await
                .map_err(|error| self.error("MULTIPART", key, error))?;
            Ok(part.content_id)
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            let parts = tags.iter().map(|tag| PartId { content_id: tag.clone() }).collect();
            self.client
                .complete_multipart(&path, &upload_id.to_owned(), parts)
                .await
                .map(|_| ())
                .map_err(|error| self.error("MULTIPART", key, error))
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            self.client
                .abort_multipart(&path, &upload_id.to_owned())
                .await
                .map_err(|error| self.error("MULTIPART", key, error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> S3Options {
        S3Options {
            endpoint: Some("127.0.0.1:9".into()),
            region: "us-east-1".into(),
            bucket: "bkt".into(),
            access_key: "AKIAEXAMPLE".to_owned().into(),
            secret_key: "very-secret".to_owned().into(),
            disable_ssl: true,
            virtual_hosted_style: false,
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |change: fn(&mut S3Options), word: &str| {
            let mut options = options();
            change(&mut options);
            let error = S3Store::open(&options).err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
        };
        refused(|o| o.endpoint = Some("ftp://x".into()), "scheme");
        refused(|o| o.endpoint = Some("https://x".into()), "TLS is disabled");
        refused(|o| o.endpoint = Some("a b".into()), "HOST");
        refused(|o| o.bucket = "a/b".into(), "bucket");
        refused(|o| o.secret_key = String::new().into(), "secret key");
        refused(|o| o.region = String::new(), "region");
    }

    #[test]
    fn endpoints_take_either_style() {
        let mut options = options();
        assert_eq!(Endpoint::parse("h:1", &options).unwrap().url, "http://h:1");
        options.virtual_hosted_style = true;
        assert_eq!(Endpoint::parse("h:1/", &options).unwrap().url, "http://bkt.h:1");
        options.disable_ssl = false;
        let endpoint = Endpoint::parse("h", &options).unwrap();
        assert_eq!((endpoint.url.as_str(), endpoint.address.as_str()), ("https://bkt.h", "https://h"));
    }

    #[tokio::test]
    async fn an_endpoint_where_nobody_listens_is_unreachable_and_named() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let store =
            S3Store::open(&S3Options { endpoint: Some(format!("127.0.0.1:{port}")), ..options() }).unwrap();
        let error = store.get("a", 10).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains(&format!("http://127.0.0.1:{port}")), "{error}");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let shown = format!("{:?}", options());
        assert!(!shown.contains("very-secret") && !shown.contains("AKIAEXAMPLE"), "{shown}");
    }
}
